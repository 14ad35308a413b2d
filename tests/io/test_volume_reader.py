"""Volumes against nibabel, MONAI and SimpleITK, places worked by hand, bombs, and files that must be refused."""

from __future__ import annotations

import builtins
import bz2
import gzip
import re
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from monai.data import NibabelReader
from monai.transforms import LoadImage

from mrad_med.errors import ImageFileError
from mrad_med.io.volume_reader import VOLUME_SUFFIXES, VolumeReader
from mrad_med.io.volume_writer import write_volume

OBLIQUE = np.array([[0.8, 0.1, 0.0, -10.3], [-0.1, 0.8, 0.2, 5.1], [0.0, -0.05, 2.0, 7.7], [0.0, 0.0, 0.0, 1.0]])
FLIPPED = np.array([[-0.7, 0.0, 0.0, 90.1], [0.0, -0.7, 0.0, 120.5], [0.0, 0.0, -3.0, 44.2], [0.0, 0.0, 0.0, 1.0]])
PERMUTED = np.array([[0.0, 0.0, 1.5, -3.0], [0.5, 0.0, 0.0, 2.0], [0.0, -2.5, 0.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
AFFINES = {"identity": np.eye(4), "sheared": OBLIQUE, "flipped": FLIPPED, "permuted": PERMUTED}
META_KEYS = {"affine", "original_affine", "space", "spatial_shape", "original_channel_dim"}
MARK = (5, 2, 3)
PATIENT = "Beeblebrox"
MEBIBYTE = 2**20

LPS = "space: left-posterior-superior"
GRID = "space directions: (0,2,0) (3,0,0) (0,0,4)\nspace origin: (7,8,9)"


def phantom() -> np.ndarray:
    """Odd sizes, every half of its own value, so that any flip or swap of axes shows; one voxel is the highest."""
    x, y, z = np.mgrid[:7, :9, :5]
    values = (x > 3) * 1.0 + (y > 4) * 2.0 + (z > 2) * 4.0 + x * 0.01
    values[MARK] = 99
    return values.astype(np.float32)


def load(path: Path, **keywords) -> tuple[np.ndarray, dict]:
    reader = VolumeReader(**keywords)
    return reader.get_data(reader.read(path))


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = OBLIQUE, **fields) -> Path:
    """Write without nibabel's checks of what is to be written."""
    image = nibabel.Nifti1Image(values, affine)
    content = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]))
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_nrrd(path: Path, fields: str = f"{LPS}\n{GRID}", data: bytes | None = None, **changed) -> Path:
    """Write 4 x 5 x 6 bytes, counted up, with a header of these fields."""
    basic = {"type": "uchar", "dimension": 3, "sizes": "4 5 6", "encoding": "raw"} | changed
    header = "\n".join(["NRRD0004", *(f"{name}: {value}" for name, value in basic.items()), fields]).strip() + "\n\n"
    path.write_bytes(header.encode() + (bytes(range(120)) if data is None else data))
    return path


def write_pynrrd(path: Path, values: np.ndarray, affine: np.ndarray, space: str = "RAS", **header) -> Path:
    signs = {"RAS": (1, 1, 1), "LAS": (-1, 1, 1), "LPS": (-1, -1, 1)}[space]
    local = np.diag(signs) @ affine[:3]
    grid = {"space": space, "space directions": local[:, :3].T, "space origin": local[:, 3]}
    nrrd.write(str(path), values, grid | header)
    return path


WRITERS = {
    "nibabel.nii": lambda path, affine: nibabel.save(nibabel.Nifti1Image(phantom(), affine), path),
    "nibabel.nii.gz": lambda path, affine: nibabel.save(nibabel.Nifti2Image(phantom(), affine), path),
    "ras.nrrd": lambda path, affine: write_pynrrd(path, phantom(), affine, "RAS"),
    "las.nrrd": lambda path, affine: write_pynrrd(path, phantom(), affine, "LAS", encoding="raw", endian="big"),
    "lps.nrrd": lambda path, affine: write_pynrrd(path, phantom(), affine, "LPS", encoding="bzip2"),
    "text.nrrd": lambda path, affine: write_pynrrd(path, phantom(), affine, "LPS", encoding="ascii"),
    "ours.nii": lambda path, affine: write_volume(path, phantom(), affine),
    "ours.nii.gz": lambda path, affine: write_volume(path, phantom(), affine),
    "ours.nrrd": lambda path, affine: write_volume(path, phantom(), affine),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("writer", WRITERS)
def test_marked_voxel_is_at_one_place_of_the_world_whoever_wrote_it(tmp_path, writer, name):
    WRITERS[writer](tmp_path / writer, AFFINES[name])
    values, meta = load(tmp_path / writer)
    np.testing.assert_allclose(values, phantom(), rtol=1e-6)
    marked = np.unravel_index(values.argmax(), values.shape)
    np.testing.assert_allclose((meta["affine"] @ [*marked, 1])[:3], (AFFINES[name] @ [*MARK, 1])[:3], atol=1e-3)
    np.testing.assert_allclose(meta["affine"], AFFINES[name], atol=1e-5)  # NIfTI keeps float32


@pytest.mark.parametrize("name", ["nibabel.nii.gz", "ours.nrrd"])
def test_metadata_are_the_geometry_and_nothing_else(tmp_path, name):
    WRITERS[name](tmp_path / name, OBLIQUE)
    values, meta = load(tmp_path / name)
    assert set(meta) == META_KEYS
    assert meta["affine"].dtype == np.float64
    assert meta["original_affine"] is not meta["affine"]
    np.testing.assert_array_equal(meta["original_affine"], meta["affine"])
    assert (str(meta["space"]), meta["spatial_shape"].tolist()) == ("RAS", [7, 9, 5])
    assert np.isnan(meta["original_channel_dim"])
    assert values.flags.writeable


@pytest.mark.parametrize("name", ["nibabel.nii.gz", "ours.nrrd"])
def test_reader_serves_monai(tmp_path, name):
    WRITERS[name](tmp_path / name, FLIPPED)
    image = LoadImage(reader=VolumeReader(), image_only=True, ensure_channel_first=True)(tmp_path / name)
    np.testing.assert_array_equal(image.numpy()[0], phantom())
    np.testing.assert_allclose(image.affine.numpy(), FLIPPED, atol=1e-5)


def test_reader_knows_volumes_by_their_names():
    reader = VolumeReader()
    assert all(reader.verify_suffix(f"A{suffix.upper()}") for suffix in VOLUME_SUFFIXES)
    assert reader.verify_suffix([Path("a.nii"), "b.nrrd"])
    assert not reader.verify_suffix(["a.nii.gz", "b.nhdr"])


def test_reader_takes_one_file_at_a_time(tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd")
    assert VolumeReader().read([path]).values.shape == (4, 5, 6)
    with pytest.raises(ImageFileError, match="one file is one case, got 2 files; list them as separate cases"):
        VolumeReader().read([path, path])


def test_content_decides_where_the_name_is_wrong(tmp_path):
    for writer, name in (
        ("nibabel.nii.gz", "a.nii"),
        ("ours.nii", "b.nii.gz"),
        ("ours.nrrd", "c.nii"),
        ("ours.nii", "d"),
    ):
        WRITERS[writer](tmp_path / writer, OBLIQUE)
        (tmp_path / writer).rename(tmp_path / name)
        np.testing.assert_array_equal(load(tmp_path / name)[0], phantom())


def test_infinite_and_missing_values_pass(tmp_path):
    values = phantom()
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    write_volume(tmp_path / "a.nii.gz", values, OBLIQUE)
    write_volume(tmp_path / "a.nrrd", values, OBLIQUE)
    for name in ("a.nii.gz", "a.nrrd"):
        np.testing.assert_array_equal(load(tmp_path / name)[0], values)


@pytest.mark.parametrize("name", ["noise.nii", "noise.nii.gz", "noise.nrrd"])
def test_random_bytes_are_refused(tmp_path, name):
    for start in (b"", b"\x1f\x8b\x08", b"NRRD0005\n"):
        (tmp_path / name).write_bytes(start + np.random.RandomState(4).bytes(3000))
        with pytest.raises(ImageFileError, match=r"cannot be read \(.*\); copy or export it again"):
            load(tmp_path / name)


def test_missing_permission_is_told_as_such(tmp_path, monkeypatch):
    def forbid(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbid)
    with pytest.raises(ImageFileError, match="there is no permission to read the file; grant it"):
        load(tmp_path / "a.nii")


# NIfTI: nibabel and MONAI are the referees


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
def test_nifti_equals_what_monai_reads(tmp_path, dtype, order):
    values = (np.random.RandomState(6).rand(7, 9, 5) * 100).astype(dtype)
    for number, (slope, inter) in enumerate([(1, 0), (0.5, -3), (2, 0)]):
        image = nibabel.Nifti1Image(values, OBLIQUE, nibabel.Nifti1Header(endianness=order), dtype=dtype)
        image.header.set_slope_inter(slope, inter)
        nibabel.save(image, tmp_path / f"{number}.nii.gz")
        read, meta = load(tmp_path / f"{number}.nii.gz")
        referee = NibabelReader()
        expected, expected_meta = referee.get_data(referee.read(tmp_path / f"{number}.nii.gz"))
        np.testing.assert_array_equal(read, expected)
        assert read.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(meta["affine"], expected_meta["affine"])
        np.testing.assert_array_equal(meta["spatial_shape"], expected_meta["spatial_shape"])


def test_scaling_beyond_doubles_stays_in_doubles(tmp_path):
    """Nibabel goes over to longer floats, which PyTorch does not know, lest large numbers overflow."""
    image = nibabel.Nifti2Image((phantom() > 3).astype(np.int64), OBLIQUE, dtype=np.int64)
    image.header.set_slope_inter(1e300, 0)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj).dtype.itemsize > 8
    values, _ = load(tmp_path / "a.nii")
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, (phantom() > 3) * 1e300)


def test_nifti_without_place_lies_around_the_origin_with_its_first_axis_to_the_left(tmp_path):
    path = write_nifti(tmp_path / "a.nii", phantom(), None, pixdim=[1, 2, 3, 4, 0, 0, 0, 0])
    _, meta = load(path)
    expected = [[-2, 0, 0, 6], [0, 3, 0, -12], [0, 0, 4, -8], [0, 0, 0, 1]]
    np.testing.assert_array_equal(meta["affine"], expected)
    np.testing.assert_array_equal(nibabel.load(path).affine, expected)


@pytest.mark.parametrize("qform_code", [0, 1])
def test_affine_that_contradicts_the_voxel_sizes_is_believed_as_nibabel_does(tmp_path, qform_code):
    """MONAI's own reader would replace it, without a qform by one that mirrors left and right."""
    write_nifti(tmp_path / "a.nii", phantom(), FLIPPED, qform_code=qform_code, srow_x=[5, 0, 0, 0])
    affine = load(tmp_path / "a.nii")[1]["affine"]
    assert affine[0, 0] == 5
    np.testing.assert_array_equal(affine, nibabel.load(tmp_path / "a.nii").affine)


@pytest.mark.parametrize(("shape", "expected"), [((7, 9), (7, 9)), ((7, 9, 1), (7, 9, 1)), ((7, 9, 5, 1), (7, 9, 5))])
def test_axes_of_length_one_after_the_third_are_dropped(tmp_path, shape, expected):
    values, meta = load(write_nifti(tmp_path / "a.nii", np.ones(shape, np.float32)))
    assert values.shape == expected == tuple(meta["spatial_shape"])
    assert meta["affine"].shape == (4, 4)


def test_header_extensions_are_skipped(tmp_path):
    image = nibabel.Nifti1Image(phantom(), OBLIQUE)
    image.header["descrip"] = PATIENT
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", PATIENT.encode() * 100))
    nibabel.save(image, tmp_path / "a.nii.gz")
    values, meta = load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(values, phantom())
    assert PATIENT not in str(meta)


def test_what_nibabel_mends_in_a_header_is_not_logged(tmp_path, caplog, capfd):
    path = write_nifti(tmp_path / "a.nii", phantom(), qform_code=512)
    assert load(path)[0].shape == (7, 9, 5)
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")
    nibabel.load(path)
    assert "512" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((7, 9, 5), np.complex64), "its values are complex; export plain numbers"),
        (np.zeros((7, 9, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "its values are RGB or structured"),
        (np.zeros((7, 9, 5, 3), np.uint8), "4-D data cannot be scored; split it into"),
        (np.zeros((7, 9, 5, 1, 3), np.uint8), "5-D data cannot be scored; split it into"),
        (np.zeros(7, np.uint8), "1-D data cannot be scored; "),
        (np.zeros((7, 0, 5), np.uint8), "its size of 7 x 0 x 5 voxels has an empty axis; export it again"),
        (np.zeros((7, 9, 6), np.uint8), "7 x 9 x 6 voxels are more than the limit of 315; crop it"),
    ],
)
def test_nifti_of_other_than_plain_numbers_on_a_grid_is_refused(tmp_path, values, message):
    with pytest.raises(ImageFileError, match=message):
        load(write_nifti(tmp_path / "a.nii.gz", values), max_voxels=7 * 9 * 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x": [np.nan, 0, 0, 0]},
        {"srow_y": [0, 1, 0, np.inf]},
        {"srow_z": [0, 0, 0, 0]},
        {"srow_y": [1, 0, 0, 5]},  # two equal directions
        {"sform_code": 0, "qform_code": 1, "quatern_b": np.nan},
        {"sform_code": 0, "qform_code": 1, "qoffset_x": np.inf},
        {"sform_code": 0, "qform_code": 1, "quatern_c": 5},  # no rotation
    ],
)
def test_nifti_with_damaged_geometry_is_refused(tmp_path, fields):
    path = write_nifti(tmp_path / "a.nii", phantom(), np.eye(4), **fields)
    with pytest.raises(ImageFileError, match="the affine in its header does not define independent axes; export"):
        load(path)


def test_header_of_a_pair_is_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"voxels are in another file \(.hdr and .img\)"):
        load(write_nifti(tmp_path / "a.nii", phantom(), magic=b"ni1"))


@pytest.mark.parametrize("offset", [2**28, 1e30])
def test_voxels_that_begin_nowhere_are_refused(tmp_path, offset):
    with pytest.raises(ImageFileError, match="its header states an invalid voxel offset"):
        load(write_nifti(tmp_path / "a.nii", phantom(), vox_offset=offset))


@pytest.mark.parametrize("name", ["ours.nii", "ours.nii.gz", "ours.nrrd", "las.nrrd", "lps.nrrd", "text.nrrd"])
def test_truncated_file_is_refused_wherever_it_ends(tmp_path, name):
    WRITERS[name](tmp_path / name, OBLIQUE)
    content = (tmp_path / name).read_bytes()
    for length in (10, 100, len(content) // 2, len(content) - 30):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(ImageFileError, match=r"the file cannot be read \(.*\); copy or export it again"):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["ours.nii.gz", "ours.nrrd"])
def test_packed_values_that_fail_their_checksum_are_refused(tmp_path, name):
    WRITERS[name](tmp_path / name, OBLIQUE)
    content = bytearray((tmp_path / name).read_bytes())
    content[-8] ^= 1  # of the CRC that ends a gzip file
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageFileError, match=r"cannot be read \(BadGzipFile\)"):
        load(tmp_path / name)


# NRRD: SimpleITK is the referee


def test_places_of_an_nrrd_by_hand(tmp_path):
    """In LPS, the first axis runs 2 mm to posterior, the second 3 mm to the left, the third 4 mm up."""
    values, meta = load(write_nrrd(tmp_path / "a.nrrd"))
    assert (values[1, 0, 0], values[0, 1, 0], values[0, 0, 1]) == (1, 4, 20)
    places = [(meta["affine"] @ [*voxel, 1])[:3].tolist() for voxel in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert places == [[-7, -8, 9], [-7, -10, 9], [-10, -8, 9], [-7, -8, 13]]


@pytest.mark.parametrize(
    ("space", "place"),
    [
        ("space: LPS", [-7, -8, 9]),
        ("space: Left-Posterior-Superior", [-7, -8, 9]),
        ("space: ras", [7, 8, 9]),
        ("space: right-anterior-superior", [7, 8, 9]),
        ("SPACE: LAS", [-7, 8, 9]),
        ("space: LEFT-ANTERIOR-SUPERIOR", [-7, 8, 9]),
        ("space: scanner-xyz", [-7, -8, 9]),
        ("space: 3D-left-handed", [-7, -8, 9]),
        ("space dimension: 3", [-7, -8, 9]),
        ("", [-7, -8, 9]),
    ],
)
def test_origin_lies_where_the_space_says_or_as_in_lps(tmp_path, space, place):
    assert load(write_nrrd(tmp_path / "a.nrrd", f"{space}\n{GRID}".strip()))[1]["affine"][:3, 3].tolist() == place


SIMILAR_HEADERS = [
    *(f"space: {space}\n{GRID}" for space in ("LPS", "RAS", "LAS", "scanner-xyz", "3D-right-handed", "3D-left-handed")),
    f"space dimension: 3\n{GRID}",
    "space: LAS\nspace directions: (1.5,0.2,0) (-0.2,1.5,0.1) (0,-0.1,-5)\nspace origin: (-7.5,8,9)",
    "SPACE: RAS\nSpace Directions: (0, 2,0) ( 3 ,0,0) (0,0,4)\nspace origin: (7,8,9)",
    f'{LPS}\n{GRID}\nspace units: "cm" "cm" "cm"',
    f"{LPS}\n{GRID}\nmeasurement frame: (0,1,0) (1,0,0) (0,0,1)\ncenterings: node node cell",
    f"{LPS}\n{GRID}".replace("\n", "\r\n") + "\r",
    f"{LPS}\n{GRID}\nspace:=right-anterior-superior\ndata file:=other.raw",  # key/value pairs of a confusing name
    f"{LPS}\nspace directions: (0,2,0) (3,0,0) (0,0,4)",
    "",
    "spacings: 2 3 4",
    "spacings: -2 3 4",
    "spacings: 2 3 4\naxis mins: 10 20 30",
    "spacings: 2 3 4\naxis mins: 10 20 30\ncenterings: node cell ???",
    "axis mins: 10 20 30",
]


@pytest.mark.parametrize("fields", SIMILAR_HEADERS)
def test_nrrd_lies_where_simpleitk_has_it(tmp_path, fields):
    sitk = pytest.importorskip("SimpleITK")
    path = write_nrrd(tmp_path / "a.nrrd", fields)
    values, meta = load(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(values, sitk.GetArrayFromImage(image).T)
    for voxel in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((meta["affine"] @ [*voxel, 1])[:3], [-left, -posterior, superior], atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "affine"),
    [
        ("", np.diag([-1.0, -1.0, 1.0, 1.0])),
        ("spacings: 2 3 4", np.diag([-2.0, -3.0, 4.0, 1.0])),
        (f"{LPS}\nspacings: 2 3 4", np.diag([-2.0, -3.0, 4.0, 1.0])),
        ("spacings: 2 3 4\naxismins: 10 20 30", [[-2, 0, 0, -11], [0, -3, 0, -21.5], [0, 0, 4, 32], [0, 0, 0, 1]]),
    ],
)
def test_axes_without_directions_are_those_of_lps(tmp_path, fields, affine):
    np.testing.assert_array_equal(load(write_nrrd(tmp_path / "a.nrrd", fields))[1]["affine"], affine)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        (f"{LPS}\nspace directions: none (0,2,0) (3,0,0) (0,0,4)\nspace origin: (7,8,9)", {"sizes": "1 4 5 6"}),
        (f"{LPS}\nspace directions: (0,2,0) (3,0,0) (0,0,4) none\nspace origin: (7,8,9)", {"sizes": "4 5 6 1"}),
        ("kinds: vector domain domain domain\nspacings: nan 2 3 4", {"sizes": "1 4 5 6"}),
        ("kinds: space space space time\nspacings: 2 3 4 nan", {"sizes": "4 5 6 1"}),
        ("spacings: 2 3 4 1", {"sizes": "4 5 6 1"}),
    ],
)
@pytest.mark.parametrize("types", ["double matrix", "double vector list"])
def test_axis_of_length_one_that_is_none_of_space_is_dropped(tmp_path, monkeypatch, fields, changed, types):
    monkeypatch.setattr(nrrd, "SPACE_DIRECTIONS_TYPE", types)  # pynrrd announces to change it
    values, meta = load(write_nrrd(tmp_path / "a.nrrd", fields, dimension=4, **changed))
    assert values.shape == (4, 5, 6)
    assert np.linalg.norm(meta["affine"][:3, :3], axis=0).tolist() == [2, 3, 4]


def test_2d_image_has_a_step_of_one_along_its_normal(tmp_path):
    flat = {"dimension": 2, "sizes": "10 12"}
    values, meta = load(write_nrrd(tmp_path / "a.nrrd", "spacings: 2 3", **flat))
    assert values.shape == (10, 12)
    np.testing.assert_array_equal(meta["affine"], np.diag([-2.0, -3.0, 1.0, 1.0]))
    fields = f"{LPS}\nspace directions: (0,2,0) (0,0,-3)\nspace origin: (7,8,9)"  # a sagittal one, seen from the left
    _, meta = load(write_nrrd(tmp_path / "a.nrrd", fields, **flat))
    np.testing.assert_array_equal(meta["affine"], [[0, 0, 1, -7], [-2, 0, 0, -8], [0, -3, 0, 9], [0, 0, 0, 1]])


NRRD_TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("dtype", NRRD_TYPES)
def test_nrrd_values_equal_what_pynrrd_wrote(tmp_path, dtype, encoding):
    values = (np.random.RandomState(6).rand(7, 9, 5) * 100 - 20 * (dtype[0] != "u")).clip(0 if dtype[0] == "u" else -99)
    values = values.astype(dtype)
    for endian in ("little", "big"):
        path = write_pynrrd(tmp_path / "a.nrrd", values, OBLIQUE, encoding=encoding, endian=endian)
        read, _ = load(path)
        np.testing.assert_allclose(read, values, rtol=1e-15 if dtype == "float64" else 1e-7)
        assert (read.dtype, read.dtype.isnative) == (values.dtype, True)


@pytest.mark.parametrize(
    ("changed", "fields", "message"),
    [
        (
            {"dimension": 4, "sizes": "4 5 3 2"},
            "",
            "4-D data cannot be scored; split it into 2-D images or 3-D volumes",
        ),
        (
            {"dimension": 4, "sizes": "3 4 5 2"},
            "kinds: RGB-color domain domain domain",
            r"4-D data has an axis that is not spatial \(colors, vectors or times\); split it first",
        ),
        (
            {"dimension": 4, "sizes": "4 5 3 2"},
            f"{LPS}\nspace directions: (1,0,0) (0,1,0) (0,0,1) none",
            "4-D data has",
        ),
        ({}, "kinds: domain domain list", "3-D data has an axis that is not spatial"),
        ({}, "space: RAST\n" + GRID, "its space has a time axis"),
        ({}, "space: scanner-xyz-time", "its space has a time axis"),
        ({"dimension": 1, "sizes": "120"}, "", "1-D data"),
        ({"sizes": "4 0 6"}, "", "its size of 4 x 0 x 6 voxels has an empty axis"),
        ({"sizes": "4 -5 6"}, "", "an empty axis"),
        ({"sizes": "4 5"}, "", "its dimension does not match the number of its sizes"),
        ({"sizes": "40000 50000 60000"}, "", "40000 x 50000 x 60000 voxels are more than the limit of 500000000; crop"),
        ({"type": "block"}, "block size: 4", "its values are blocks of bytes; export plain numbers"),
        ({"type": "string"}, "", "cannot be read"),
        ({"type": "short"}, "", "cannot be read"),  # of which byte order?
        ({"encoding": "hex"}, "", "its encoding is not raw, gzip, bzip2 or ascii; save it as .nrrd with gzip"),
        ({}, "line skip: 1", "do not directly follow the header; save it as one plain .nrrd"),
        ({}, "byteskip: -1", "do not directly follow the header"),
        ({}, f"{LPS}\n{LPS}", "cannot be read"),
        ({}, "space: RAS\nspacings: 2 3 4", "its space is not LPS and has no directions of the axes"),
    ],
)
def test_nrrd_of_other_than_plain_numbers_on_a_grid_is_refused(tmp_path, changed, fields, message):
    with pytest.raises(ImageFileError, match=message):
        load(write_nrrd(tmp_path / "a.nrrd", fields, **changed))


@pytest.mark.parametrize(
    "fields",
    [
        f"{LPS}\nspace directions: (nan,2,0) (3,0,0) (0,0,4)",
        f"{LPS}\nspace directions: (0,inf,0) (3,0,0) (0,0,4)",
        f"{LPS}\nspace directions: (0,2,0) (0,0,0) (0,0,4)",
        f"{LPS}\nspace directions: (0,2,0) (0,4,0) (0,0,4)",
        f"{LPS}\nspace directions: (0,2) (3,0) (1,1)",
        f"{LPS}\nspace directions: (0,2,0,0) (3,0,0,0) (0,0,4,0)",
        f"{LPS}\n{GRID}".replace("(7,8,9)", "(7,nan,9)"),
        f"{LPS}\n{GRID}".replace("(7,8,9)", "(7,8)"),
        "spacings: 2 0 4",
        "spacings: 2 nan 4",
    ],
)
def test_nrrd_with_damaged_geometry_is_refused(tmp_path, fields):
    with pytest.raises(ImageFileError, match="the affine in its header does not define independent axes; export"):
        load(write_nrrd(tmp_path / "a.nrrd", fields))


@pytest.mark.parametrize("text", ["1 2 3", "1 2 three" + " 1" * 117, "300" + " 1" * 119, "1.5" + " 1" * 119])
def test_invalid_text_of_numbers_is_refused(tmp_path, text):
    with pytest.raises(ImageFileError, match="cannot be read"):
        load(write_nrrd(tmp_path / "a.nrrd", "", text.encode(), encoding="ascii"))


@pytest.mark.parametrize("field", ["data file: other.raw", "datafile: /etc/hostname", "Data File: LIST\nother.raw"])
@pytest.mark.parametrize("name", ["a.nhdr", "a.nrrd"])
def test_file_that_a_header_names_is_never_opened(tmp_path, monkeypatch, name, field):
    (tmp_path / "other.raw").write_bytes(bytes(120))
    path = write_nrrd(tmp_path / name, f"{LPS}\n{GRID}\n{field}", b"")
    monkeypatch.setattr(builtins, "open", lambda *_, **__: pytest.fail("a file was opened"))
    with pytest.raises(ImageFileError, match=r"voxels are in another file; save both as one \.nrrd"):
        load(path)


def test_free_text_of_an_nrrd_goes_nowhere(tmp_path):
    fields = f'{LPS}\n{GRID}\ncontent: {PATIENT}\n# {PATIENT}\nlabels: "{PATIENT}\npatient:={PATIENT}'
    values, meta = load(write_nrrd(tmp_path / "a.nrrd", fields))
    assert values.shape == (4, 5, 6)
    assert PATIENT not in str(meta)
    with pytest.raises(ImageFileError, match="cannot be read") as refusal:
        load(write_nrrd(tmp_path / "a.nrrd", f"{LPS}\nspace directions: {PATIENT}"))
    assert PATIENT not in str(refusal.value)


def test_missing_pynrrd_is_reported(tmp_path, monkeypatch):
    original = builtins.__import__

    def without_nrrd(name, *arguments, **keywords):
        if name == "nrrd":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    path = write_nrrd(tmp_path / "a.nrrd")
    monkeypatch.setattr(builtins, "__import__", without_nrrd)
    with pytest.raises(ImageFileError, match=r'NRRD files need pynrrd; pip install "mrad-med\[nrrd\]"'):
        load(path)


# Bombs


def peak_memory(path: Path, match: str | None = None) -> int:
    """Return the most bytes that reading takes at a time; with ``match``, it must be refused so."""
    load(write_nrrd(path.with_name("warm.nrrd")))  # what is imported and cached once does not count
    tracemalloc.start()
    try:
        if match is None:
            load(path)
        else:
            with pytest.raises(ImageFileError, match=match):
                load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def gibibyte_of_zeros(before: bytes = b"") -> bytes:
    """One gzip member of about a megabyte, without its checksum."""
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = [packer.compress(bytes(16 * MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    return start + zeros[0] + zeros[1] * 63


def test_bomb_is_one():
    """The memory of the tests below would be more, were it unpacked."""
    unpacker = zlib.decompressobj(wbits=31)
    bomb, size = gibibyte_of_zeros(), 0
    while bomb:
        size += len(unpacker.decompress(bomb, 16 * MEBIBYTE))
        bomb = unpacker.unconsumed_tail
    assert size >= 2**30


def test_gzip_bomb_behind_a_small_nifti_is_not_unpacked(tmp_path):
    content = nibabel.Nifti1Image(phantom(), OBLIQUE).to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gibibyte_of_zeros(content))
    assert peak_memory(tmp_path / "a.nii.gz") < 8 * MEBIBYTE


def test_gzip_bomb_in_the_extensions_of_a_nifti_is_not_kept(tmp_path):
    plain = write_nifti(tmp_path / "a.nii", phantom(), vox_offset=2**25).read_bytes()[:348]
    extensions = b"\1\0\0\0" + (2**30).to_bytes(4, "little") + (6).to_bytes(4, "little")
    (tmp_path / "a.nii.gz").write_bytes(gibibyte_of_zeros(plain + extensions))
    assert peak_memory(tmp_path / "a.nii.gz") < 8 * MEBIBYTE


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_bomb_behind_a_small_nrrd_is_not_unpacked(tmp_path, encoding):
    bomb = gibibyte_of_zeros() if encoding == "gzip" else bz2.compress(bytes(16 * MEBIBYTE)) * 64
    write_nrrd(tmp_path / "a.nrrd", data=bomb, encoding=encoding)
    assert peak_memory(tmp_path / "a.nrrd") < 16 * MEBIBYTE  # a block of bzip2 is large


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_huge_announcement_with_little_behind_it_takes_little(tmp_path, encoding):
    data = {"gzip": gzip.compress, "bzip2": bz2.compress}.get(encoding, bytes)(b"1 2 3")
    path = write_nrrd(tmp_path / "a.nrrd", "endian: big", data, encoding=encoding, type="double", sizes="700 700 1000")
    assert peak_memory(path, match="cannot be read") < 8 * MEBIBYTE
    for name in ("a.nii", "a.nii.gz"):
        path = write_nifti(tmp_path / name, phantom().astype(np.float64), dim=[3, 700, 700, 1000, 1, 1, 1, 1])
        assert peak_memory(path, match="it ends before its last voxel") < 8 * MEBIBYTE


def test_endless_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mrad_med.io.volume_reader._MAX_HEADER", MEBIBYTE)
    for line in (b"#" * 2 * MEBIBYTE, b"# one\n" * MEBIBYTE):
        (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + line)
        with pytest.raises(ImageFileError, match="its header does not end"):
            load(tmp_path / "a.nrrd")


# Damage of any kind

TOKENS = (
    b"nan",
    b"-1",
    b"99999999999",
    b"none",
    b"(1,2)",
    b"",
    b"\xff",
    b"1e400",
    b":=",
    b"\n",
    b"0",
    b"uchar",
    b"gzip",
)


def damaged(content: bytes, header_size: int, random: np.random.RandomState) -> bytes:
    """Change, cut out, insert or truncate something, in the header mostly."""
    broken = bytearray(content)
    for _ in range(random.randint(1, 4)):
        place = random.randint(header_size if random.rand() < 0.8 else len(content))
        choice = random.randint(5)
        if choice < 2:
            broken[place : place + 1] = random.bytes(1)
        elif choice == 2:
            broken[place : place + random.randint(1, 8)] = random.bytes(random.randint(4))
        else:
            token = TOKENS[random.randint(len(TOKENS))]
            broken[place : place + random.randint(6)] = token
    return bytes(broken[: random.randint(len(broken))] if random.rand() < 0.1 else broken)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ours.nii", "nibabel.nii.gz", "ours.nrrd", "las.nrrd", "lps.nrrd", "text.nrrd"])
def test_damaged_file_is_refused_or_read_but_nothing_else(tmp_path, name):
    WRITERS[name](tmp_path / name, OBLIQUE)
    content = (tmp_path / name).read_bytes()
    packed = name.endswith(".gz")
    content = gzip.decompress(content) if packed else content
    header_size = 540 if "nii" in name else content.index(b"\n\n")
    random, refusals, read = np.random.RandomState(0), set(), 0
    for number in range(300):
        broken = damaged(content, header_size, random)
        broken = gzip.compress(broken, 1) if packed else broken
        (tmp_path / name).write_bytes(damaged(broken, len(broken), random) if packed and number % 3 == 0 else broken)
        try:
            values, meta = load(tmp_path / name, max_voxels=10_000)
        except ImageFileError as error:
            refusals.add(str(error))
        else:
            assert values.ndim in (2, 3)
            assert 0 < values.size <= 10_000
            assert np.isfinite(meta["affine"]).all()
            assert np.linalg.det(meta["affine"]) != 0
            read += 1
    assert min(read, len(refusals)) >= 3
    advice = re.compile("again|split it|crop it|export|save")
    assert [refusal for refusal in refusals if not advice.search(refusal)] == []
