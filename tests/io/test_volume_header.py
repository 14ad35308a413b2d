"""Headers of volumes: lengths in mm whatever the unit, which affine is used, axes of time, and limits of expansion."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from mrad_med.data.search import survey
from mrad_med.errors import ImageFileError
from mrad_med.io.image import read_image
from mrad_med.io.limits import check_expansion, check_voxels
from mrad_med.io.volume_header import VolumeHeader
from mrad_med.io.volume_reader import VolumeReader, read_volume_header
from mrad_med.networks.provenance import fingerprint
from mrad_med.transforms.load import LoadMedicalImage
from mrad_med.transforms.preprocessing import ImageView, build_preprocessing
from mrad_med.types import BackboneCard

AFFINE = np.array([[-1.0, 0, 0, 10], [0, 1.0, 0, -20], [0, 0, 2.0, 30], [0, 0, 0, 1]])
UNITS = {"unknown": 1.0, "mm": 1.0, "micron": 1000.0, "meter": 0.001}  # number that stands for 1 mm


def write_nifti(path: Path, shape: tuple[int, ...] = (20, 18, 22), kind: type = nibabel.Nifti1Image, **options) -> Path:
    """Write zeros on a grid of 1 x 1 x 2 mm; the values of the header are not checked."""
    units, codes = options.pop("units", ("mm", "unknown")), options.pop("codes", (1, 1))
    scaled = AFFINE * [[UNITS[units[0]]], [UNITS[units[0]]], [UNITS[units[0]]], [1]]
    image = kind(np.zeros(shape, options.pop("dtype", np.uint8)), scaled)
    image.set_qform(scaled, code=codes[0])
    image.set_sform(options.pop("sform", 1) * scaled, code=codes[1])
    image.header.set_xyzt_units(*units)
    for name, value in options.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def write_nrrd(path: Path, shape: tuple[int, ...] = (20, 18, 22), **fields) -> Path:
    nrrd.write(str(path), np.zeros(shape, np.uint8), fields)
    return path


def remark_on(path: Path) -> str:
    """Return the remark of the listing on a single file."""
    return survey(path).remarks.get(path.name.split(".")[0], "")


# units


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 3)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("unit", UNITS)
def test_affine_is_in_mm_in_any_unit(tmp_path, unit, kind, codes):
    path = write_nifti(tmp_path / "a.nii.gz", kind=kind, units=(unit, "unknown"), codes=codes)
    np.testing.assert_allclose(read_image(path).affine, AFFINE, rtol=1e-6)
    assert read_volume_header(path).unit == ("mm" if unit == "unknown" else unit)


@pytest.mark.parametrize("unit", UNITS)
def test_affine_without_codes_is_in_mm_too(tmp_path, unit):
    path = write_nifti(tmp_path / "a.nii.gz", units=(unit, "unknown"), codes=(0, 0))
    expected = [[-1, 0, 0, 9.5], [0, 1, 0, -8.5], [0, 0, 2, -21], [0, 0, 0, 1]]  # the center of the volume is 0
    np.testing.assert_allclose(read_image(path).affine, expected, rtol=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_spacing_is_that_of_simpleitk(tmp_path, unit):
    path = write_nifti(tmp_path / "a.nii.gz", units=(unit, "unknown"))
    spacing = pytest.importorskip("SimpleITK").ReadImage(str(path)).GetSpacing()
    np.testing.assert_allclose(np.linalg.norm(read_volume_header(path).affine[:3, :3], axis=0), spacing, rtol=1e-6)


def test_another_unit_is_remarked(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", units=("micron", "unknown"))
    assert remark_on(path) == "its lengths are stored in micron; tables state mm, NIfTI maps keep the unit"
    assert remark_on(write_nifti(tmp_path / "b.nii.gz")) == ""


@pytest.mark.parametrize("units", [{"space units": ["um"] * 3}, {"units": ["um"] * 3}, {"units": ["mm", "mm", "cm"]}])
def test_units_of_an_nrrd_are_ignored_as_in_itk_and_remarked(tmp_path, units):
    grid = {"spacings": [1, 1, 2]} if "units" in units else {"space": "LPS", "space directions": np.diag([1.0, 1, 2])}
    path = write_nrrd(tmp_path / "a.nrrd", **grid, **units)
    np.testing.assert_array_equal(np.abs(read_image(path).affine.diagonal()), [1, 1, 2, 1])
    assert remark_on(path).startswith("its header states lengths in another unit than mm: they are treated as mm")
    assert remark_on(write_nrrd(tmp_path / "b.nrrd", spacings=[1, 1, 2], units=["mm", "mm", ""])) == ""


# forms


def test_both_codes_0_are_remarked_with_the_affine_that_is_used(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", codes=(0, 0))
    assert re.search("as in nibabel, .* left, anterior and superior; .* check left and right", remark_on(path))


def test_forms_that_differ_are_remarked_and_the_sform_is_used(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", codes=(1, 2), sform=np.diag([1, 1, 1.5, 1]))
    assert remark_on(path) == "its sform and its qform differ: the sform is used, and other programs may use the qform"
    assert read_image(path).affine[2, 2] == 3
    assert remark_on(write_nifti(tmp_path / "b.nii.gz", codes=(1, 2))) == ""
    assert remark_on(write_nifti(tmp_path / "c.nii.gz", codes=(0, 2), sform=np.diag([1, 1, 1.5, 1]))) == ""


def test_damaged_quaternion_beside_a_sform_is_remarked(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", quatern_b=5)
    assert "the sform is used" in remark_on(path)


def test_grids_are_one_if_their_corners_are_at_one_place():
    header = VolumeHeader("NIfTI", (11, 11, 11), np.dtype(np.uint8), np.diag([2.0, 1, 1, 1]))
    assert header.fits((11, 11, 11), np.diag([2.00009, 1, 1, 1]))  # the last corner is off by 0.0009
    assert not header.fits((11, 11, 11), np.diag([2.00011, 1, 1, 1]))
    assert header.fits((11, 11, 11), np.diag([2.00011, 1, 1, 1]), tolerance=0.01)
    assert not header.fits((11, 11, 12), np.diag([2.0, 1, 1, 1]))
    assert not header.fits((11, 11, 11), np.array([[2.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


# axes of time


@pytest.mark.parametrize("shape", [(20, 18, 1, 5), (20, 18, 22, 5), (20, 18, 1, 1, 3)])
def test_series_of_images_is_refused_with_advice(tmp_path, shape):
    advice = ", for example with nibabel.four_to_three or fslsplit" if len(shape) == 4 else ""
    message = f"{len(shape)}-D data cannot be scored; split it into 2-D images or 3-D volumes{advice}"
    with pytest.raises(ImageFileError, match=f"^{re.escape(message)}$"):
        read_image(write_nifti(tmp_path / "a.nii.gz", shape))


@pytest.mark.parametrize(
    "options", [{"units": ("unknown", "sec")}, {"units": ("unknown", "hz")}, {"intent_code": 2001}]
)
def test_third_axis_of_time_is_no_volume(tmp_path, options):
    with pytest.raises(ImageFileError, match="its third axis is time and not space; split it into 2-D images"):
        read_image(write_nifti(tmp_path / "a.nii.gz", (20, 18, 22), **options))


@pytest.mark.parametrize("shape", [(20, 18, 22), (20, 18, 22, 1), (20, 18, 1)])
def test_unit_of_time_beside_one_of_length_is_common_in_volumes(tmp_path, shape):
    assert read_image(write_nifti(tmp_path / "a.nii.gz", shape, units=("mm", "sec"))).shape == (1, *shape[:3])


@pytest.mark.parametrize(
    "fields",
    [
        {"kinds": ["domain", "domain", "time"]},
        {"kinds": ["space", "space", "time"], "space": "LPS", "space directions": np.eye(3)},
        {"spacings": [1, 1, 2], "units": ["mm", "mm", "s"]},
        {"spacings": [1, 1, 2], "units": ["mm", "mm", "ms"]},
    ],
)
def test_axis_of_time_of_an_nrrd_is_no_volume(tmp_path, fields):
    with pytest.raises(ImageFileError, match=r"3-D data has an axis that is not spatial \(colors, vectors or times\)"):
        read_image(write_nrrd(tmp_path / "a.nrrd", **fields))


# limits


def zeros(path: Path, megabytes: int) -> Path:
    """Write a volume of zeros that expands about 1000 times."""
    return write_nifti(path, (1000, 1000, megabytes))


def test_volume_that_expands_over_200_times_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = zeros(tmp_path / "a.nii.gz", 20)
    monkeypatch.setattr("mrad_med.io.volume_reader._read_voxels", lambda *_: pytest.fail("values were unpacked"))
    with pytest.raises(ImageFileError, match=r"announces 0\.02 GB of values, \d{3,4} times .* 200 times; .*--max_exp"):
        read_image(path)


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_nrrd_that_expands_over_200_times_is_refused(tmp_path, encoding):
    with pytest.raises(ImageFileError, match=r"\d{3,} times their compressed size, and the limit is 200 times"):
        read_image(write_nrrd(tmp_path / "a.nrrd", (1000, 1000, 20), encoding=encoding))
    assert read_image(write_nrrd(tmp_path / "b.nrrd", (1000, 1000, 20), encoding="raw")).shape == (1, 1000, 1000, 20)


def test_raised_limit_admits_it_and_small_values_may_expand(tmp_path):
    assert read_image(zeros(tmp_path / "a.nii.gz", 20), max_expansion=2000).shape == (1, 1000, 1000, 20)
    assert read_image(zeros(tmp_path / "b.nii.gz", 10)).shape == (1, 1000, 1000, 10)


def test_expansion_is_counted_by_hand():
    check_expansion(20_000_000, 100_000, limit=200)
    check_expansion(10_000_000, 1, limit=200)
    with pytest.raises(ImageFileError, match=r"announces 0\.02 GB of values, 200 times"):
        check_expansion(20_000_001, 100_000, limit=200)


def test_ct_of_1000_slices_is_within_the_limits(tmp_path):
    """Only its header is written; noise of 12 bits compresses about 1.5 times."""
    check_voxels(512, 512, 1000, limit=VolumeReader().max_voxels)
    check_expansion(512 * 512 * 1000 * 2, 350_000_000, limit=VolumeReader().max_expansion)
    random = np.random.RandomState(0).randint(-1024, 3072, (512, 512, 2)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(random, AFFINE), tmp_path / "a.nii.gz")
    assert random.nbytes < 2 * (tmp_path / "a.nii.gz").stat().st_size


def test_limit_of_voxels_states_the_memory_and_the_option(tmp_path):
    with pytest.raises(ImageFileError, match=r"limit of 7919; crop it, or .*--max_voxels.* \(0\.0 GB as float32\)"):
        read_image(write_nifti(tmp_path / "a.nii.gz"), max_voxels=20 * 18 * 22 - 1)
    assert read_image(write_nifti(tmp_path / "a.nii.gz"), max_voxels=20 * 18 * 22).shape == (1, 20, 18, 22)
    with pytest.raises(ImageFileError, match=r"\(4\.2 GB as float32\)"):
        check_voxels(1024, 1024, 1000, limit=500_000_000)


def test_limits_of_a_view_hold_when_a_case_is_loaded_and_not_when_it_is_shown(tmp_path):
    path = zeros(tmp_path / "a.nii.gz", 11)
    card = BackboneCard("tiny", "0" * 64, 8, 8, 14, 28, (0.5,) * 3, (0.5,) * 3)
    for limits, message in (({}, "--max_expansion"), ({"max_expansion": 2000, "max_voxels": 10}, "--max_voxels")):
        view = ImageView(image_size=28, **limits)
        with pytest.raises(RuntimeError) as raised:
            build_preprocessing(card, view)({"image": path})
        assert message in str(raised.value.__cause__)
        assert view.show_stored(path).shape == (1000, 1000, 11, 3)


def test_limits_change_no_result():
    assert fingerprint(ImageView(max_voxels=10, max_expansion=2)) == fingerprint(ImageView())
    assert fingerprint(LoadMedicalImage(max_voxels=10, max_expansion=2)) == fingerprint(LoadMedicalImage())


def test_bad_volume_costs_only_itself_in_the_listing(tmp_path):
    zeros(tmp_path / "bomb.nii.gz", 20)
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(write_nifti(tmp_path / "a.nii").read_bytes())[:200])
    (tmp_path / "empty.nrrd").write_bytes(b"NRRD0004\n\n")
    found = survey(tmp_path)
    assert [case["case_id"] for case in found.cases] == ["a", "bomb", "cut", "empty"]
    assert found.remarks == {}
