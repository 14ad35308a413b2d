"""Every output as other programs open it: its values, and their position in the image or in the patient."""

from __future__ import annotations

import builtins
import weakref
from dataclasses import replace
from pathlib import Path

import highdicom
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
from matplotlib import colormaps
from PIL import Image
from pydicom import dcmread
from scipy import ndimage

from mrad_med import CaseResult, ResultWriter
from mrad_med.errors import ImageFileError, OutputError
from mrad_med.io.dicom.frames import DicomFrame
from mrad_med.io.frames import Frame
from mrad_med.io.image import read_image
from mrad_med.results import outputs
from mrad_med.results.output_names import DEFAULT_OUTPUTS
from mrad_med.results.outputs import OUTPUTS, OutputSettings, check_outputs, is_dicom
from mrad_med.results.tables import slices_of
from mrad_med.transforms.preprocessing import ImageView
from tests.dicom_phantoms import (
    AXIAL,
    COLUMNS,
    CORONAL,
    FLIPPED,
    OBLIQUE,
    ROWS,
    SLICES,
    affine_of,
    write_multiframe,
    write_series,
    write_ultrasound,
)

AXES = {"axial": AXIAL, "oblique": OBLIQUE, "flipped": FLIPPED, "coronal": CORONAL}
THRESHOLD = 0.7  # not a float32 number; the nearest one is 0.699999988
TURNED = np.array([[0.0, 0.0, 1.5, -3.0], [0.5, 0.0, 0.0, 2.0], [0.0, -2.5, 0.0, 9.0], [0.0, 0.0, 0.0, 1.0]])
VOXEL = (17, 6, 3)  # column, row and slice of the one that is marked
STORED = ImageView(window="stored")  # the default only for CT and radiographs


def settings_for(folder: Path, **changes) -> OutputSettings:
    return OutputSettings(folder, **{"threshold": THRESHOLD, **changes})


def write(name: str, result: CaseResult, folder: Path, **changes) -> list[Path]:
    return list(OUTPUTS[name].write(result, folder / f"out{OUTPUTS[name].suffix}", settings_for(folder, **changes)))


def make_map(*shape: int) -> np.ndarray:
    """Return values below 0, above 1 and of the threshold itself among random ones."""
    anomaly_map = np.random.RandomState(0).rand(*shape).astype(np.float32)
    anomaly_map.flat[:4] = [-0.25, 1.5, THRESHOLD, np.nextafter(np.float32(THRESHOLD), np.float32(0))]
    return anomaly_map


def make_photograph(folder: Path, size: tuple[int, int] = (20, 30)) -> CaseResult:
    pixels = np.random.RandomState(1).randint(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return CaseResult("photo", folder / "photo.png", 0.5, make_map(*size))


def make_volume(folder: Path, affine: np.ndarray = TURNED) -> CaseResult:
    nibabel.save(nibabel.Nifti1Image(np.random.RandomState(1).rand(18, 20, 22), affine), folder / "volume.nii.gz")
    return CaseResult("volume", folder / "volume.nii.gz", 0.5, make_map(18, 20, 22), affine)


def fill(paths: list[Path]) -> list[Path]:
    """Give phantoms, which are black, random pixels and a window in which 0 is black and 1000 white."""
    for number, path in enumerate(paths):
        image = dcmread(path)
        size = int(image.get("NumberOfFrames", 1)) * ROWS * COLUMNS
        image.PixelData = np.random.RandomState(number).randint(0, 1001, size).astype("<u2").tobytes()
        image.WindowCenter, image.WindowWidth = 500.5, 1001
        image.save_as(path)
    return paths


def make_dicom(source, mark: np.ndarray | None = None) -> CaseResult:
    """Return the result of a DICOM source on the grid that its reader gives, marked at a place (RAS, mm)."""
    affine = read_image(source).affine.numpy()
    anomaly_map = np.zeros(read_image(source).shape[1:], np.float32)
    if mark is not None:
        voxel = np.linalg.solve(affine, mark)[:3]
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-3)
        anomaly_map[tuple(voxel.round().astype(int))] = 1
    return CaseResult("series", source, 0.5, anomaly_map, affine)


# maps and masks


def test_tiff_and_nifti_and_nrrd_hold_the_values_themselves(tmp_path):
    photo, volume = make_photograph(tmp_path), make_volume(tmp_path)
    (path,) = write("tiff", photo, tmp_path)
    np.testing.assert_array_equal(tifffile.imread(path), photo.anomaly_map, strict=True)
    (path,) = write("nifti", volume, tmp_path)
    stored = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), volume.anomaly_map, strict=True)
    np.testing.assert_allclose(stored.affine, TURNED)
    (path,) = write("nrrd", volume, tmp_path)
    values, header = nrrd.read(str(path))
    np.testing.assert_array_equal(values, volume.anomaly_map, strict=True)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(lps_to_ras @ header["space directions"].T, TURNED[:3, :3])
    np.testing.assert_allclose(lps_to_ras @ header["space origin"], TURNED[:3, 3])


def test_png_holds_0_to_1_in_16_bits(tmp_path):
    photo = make_photograph(tmp_path)
    (path,) = write("png", photo, tmp_path)
    with Image.open(path) as stored:
        assert stored.mode == "I;16"
        values = np.asarray(stored)
    clipped = photo.anomaly_map.clip(0, 1).astype(np.float64)
    np.testing.assert_allclose(values / 65535, clipped, atol=0.5 / 65535 + 1e-7)
    assert values.flat[:2].tolist() == [0, 65535]


@pytest.mark.parametrize("threshold", [THRESHOLD, np.float32(THRESHOLD)])
def test_mask_of_a_photograph_is_a_png_of_0_and_255(tmp_path, threshold):
    photo = make_photograph(tmp_path)
    (path,) = write("mask", photo, tmp_path, threshold=threshold)
    assert path.name == "out.png"
    with Image.open(path) as stored:
        mask = np.asarray(stored)
    np.testing.assert_array_equal(mask, np.where(photo.anomaly_map >= np.float32(threshold), 255, 0))
    assert mask.flat[:4].tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_mask_of_a_volume_is_0_and_1_on_the_grid_of_the_source(tmp_path, suffix):
    volume = make_volume(tmp_path)
    (path,) = write("mask", volume, tmp_path, volume_suffix=suffix)
    assert path.name == f"out{suffix}"
    mask = nrrd.read(str(path))[0] if suffix == ".nrrd" else np.asarray(nibabel.load(path).dataobj)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, volume.anomaly_map >= np.float32(THRESHOLD))
    assert mask.flat[:4].tolist() == [0, 1, 1, 0]
    if suffix == ".nii.gz":
        np.testing.assert_allclose(nibabel.load(path).affine, TURNED)


FORMS = {  # codes of qform and sform, and whether the two differ
    "scanner": (1, 1, False),
    "qform alone": (1, 0, False),
    "sform alone": (0, 3, False),
    "template": (2, 4, False),
    "differing": (1, 2, True),
    "none": (0, 0, False),
}
GEOMETRY = [
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
]
UNITS = {"unknown": 1.0, "mm": 1.0, "micron": 1e-3, "meter": 1e3}  # in mm


def make_nifti(path: Path, forms: str, unit: str, kind: type = nibabel.Nifti1Image) -> CaseResult:
    """Write a volume of 1 x 1 x 2 mm, turned by 30 degrees and mirrored, and return its result as the product does."""
    qform_code, sform_code, differ = FORMS[forms]
    cosine, sine = np.sqrt(3) / 2, 0.5
    affine = np.array([[-cosine, sine, 0, 10], [sine, cosine, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])
    affine[:3] /= UNITS[unit]
    image = kind(np.random.RandomState(1).rand(18, 20, 22).astype(np.float32), affine)
    image.set_qform(affine, code=qform_code)
    image.set_sform(np.diag([2, 1, 1, 1]) @ affine if differ else affine, code=sform_code)
    image.header.set_xyzt_units(unit, "unknown" if unit == "unknown" else "sec")
    image.header["pixdim"][4:] = [3, 0, 0, 0]
    nibabel.save(image, path)
    return CaseResult("volume", path, 0.5, make_map(18, 20, 22), read_image(path).affine.numpy())


def itk_grid(path: Path) -> np.ndarray:
    """Return spacing, origin and direction as SimpleITK reads them: what 3D Slicer shows."""
    image = pytest.importorskip("SimpleITK").ReadImage(str(path))
    return np.array([*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("name", ["nifti", "mask"])
def test_nifti_has_the_whole_geometry_of_its_nifti_source(tmp_path, name, forms, unit):
    result = make_nifti(tmp_path / "source.nii.gz", forms, unit)
    (path,) = write(name, result, tmp_path)
    source, written = nibabel.load(tmp_path / "source.nii.gz"), nibabel.load(path)
    for field in GEOMETRY:
        np.testing.assert_array_equal(written.header[field], source.header[field], field)
    np.testing.assert_array_equal(written.affine, source.affine)
    np.testing.assert_array_equal(itk_grid(path), itk_grid(tmp_path / "source.nii.gz"))
    expected = result.anomaly_map if name == "nifti" else result.anomaly_map >= THRESHOLD
    np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), expected)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("forms", ["scanner", "qform alone", "sform alone", "template"])
def test_nrrd_in_mm_lies_on_its_nifti_source_in_any_unit(tmp_path, forms, unit):
    (path,) = write("nrrd", make_nifti(tmp_path / "source.nii.gz", forms, unit), tmp_path)
    np.testing.assert_allclose(itk_grid(path), itk_grid(tmp_path / "source.nii.gz"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_slices_are_2_mm_apart_in_any_unit(tmp_path, unit):
    result = make_nifti(tmp_path / "source.nii.gz", "scanner", unit)
    scored = replace(result, slice_scores=np.zeros(22, np.float32), slice_axis=2)
    assert [row["position_mm"] for row in slices_of(scored)] == pytest.approx([30 + 2 * i for i in range(22)], abs=1e-3)


@pytest.mark.parametrize("forms", FORMS)
def test_map_of_a_nifti_2_is_a_nifti_1_at_the_same_place(tmp_path, forms):
    result = make_nifti(tmp_path / "source.nii", forms, "micron", nibabel.Nifti2Image)
    (path,) = write("nifti", result, tmp_path)
    source, written = nibabel.load(tmp_path / "source.nii"), nibabel.load(path)
    for field in GEOMETRY:
        np.testing.assert_array_equal(written.header[field], np.float32(source.header[field]), field)
    assert type(written) is nibabel.Nifti1Image  # ITK 5.4 reads no NIfTI-2


def test_map_on_another_grid_than_its_file_keeps_its_own_affine(tmp_path):
    """The file was replaced, or the map was resampled."""
    result = make_nifti(tmp_path / "source.nii.gz", "template", "mm")
    moved = result.affine.copy()
    moved[0, 3] += 5
    (path,) = write("nifti", replace(result, affine=moved), tmp_path)
    written = nibabel.load(path)
    np.testing.assert_allclose(written.affine, moved, atol=1e-5)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)


@pytest.mark.parametrize("name", ["mask", "seg"])
def test_what_marks_pixels_needs_a_threshold(tmp_path, name):
    result = make_dicom(write_series(tmp_path / "source"))
    with pytest.raises(ValueError, match="needs a threshold"):
        write(name, result, tmp_path, threshold=None)


@pytest.mark.parametrize("name", ["nifti", "nrrd", "montage"])
def test_outputs_of_volumes_are_not_made_of_an_image(tmp_path, name):
    with pytest.raises(ValueError, match="this output needs a volume"):
        write(name, make_photograph(tmp_path), tmp_path)


# DICOM


@pytest.mark.parametrize("name", ["seg", "parametric-map"])
@pytest.mark.parametrize("axes", AXES)
def test_marked_voxel_is_marked_on_its_own_source_image(tmp_path, name, axes):
    """Files come in any order; the reader sorts them by position, and stores what it likes where it likes."""
    paths, affine = write_series(tmp_path / "source", axes=AXES[axes]), affine_of(AXES[axes])
    mark = affine @ [*VOXEL, 1]
    (path,) = write(name, make_dicom([paths[k] for k in (3, 0, 4, 2, 1)], mark), tmp_path)
    read, (column, row, number) = dcmread(path), VOXEL
    (found,) = np.argwhere(read.pixel_array == 1)
    assert np.count_nonzero(read.pixel_array) == 1
    assert found[1:].tolist() == [row, column]
    group = read.PerFrameFunctionalGroupsSequence[found[0]]
    reference = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    assert reference == dcmread(paths[number]).SOPInstanceUID
    if name == "seg":
        volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
        ((world),) = volume.map_indices_to_reference(np.argwhere(volume.array))
        np.testing.assert_allclose(world, mark[:3] * [-1, -1, 1], atol=1e-3)


@pytest.mark.parametrize("name", ["seg", "parametric-map"])
def test_marked_voxel_is_marked_on_its_own_frame_of_a_multi_frame_image(tmp_path, name):
    source = write_multiframe(tmp_path / "source.dcm", axes=OBLIQUE)
    (path,) = write(name, make_dicom(source, affine_of(OBLIQUE) @ [*VOXEL, 1]), tmp_path)
    read, (column, row, number) = dcmread(path), VOXEL
    (found,) = np.argwhere(read.pixel_array == 1)
    assert found[1:].tolist() == [row, column]
    group = read.PerFrameFunctionalGroupsSequence[found[0]]
    reference = group.DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == dcmread(source).SOPInstanceUID
    assert reference.ReferencedFrameNumber == number + 1


def test_value_equal_to_the_threshold_is_in_the_segmentation(tmp_path):
    (source,) = write_series(tmp_path / "source")[:1]
    result = CaseResult("slice", source, 0.5, make_map(ROWS, COLUMNS))
    pixels = dcmread(write("seg", result, tmp_path)[0]).pixel_array
    np.testing.assert_array_equal(pixels, result.anomaly_map >= np.float32(THRESHOLD))
    assert pixels.flat[:4].tolist() == [0, 1, 1, 0]


def under(gray: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return gray under a map's color, of which 10 % is seen where the map is lowest and 70 % where it is highest."""
    opacity = (0.1 + 0.6 * share)[..., None]
    return (1 - opacity) * gray[..., None] + opacity * 255 * colormaps["inferno"](share)[..., :3]


@pytest.mark.parametrize("axes", AXES)
def test_captures_are_the_nine_frames_of_the_highest_map_over_their_own_pixels(tmp_path, axes):
    normal = np.cross(*AXES[axes])
    origins = np.array([[-31.5, 12.25, 7.75]]) + 2.5 * np.arange(12)[:, None] * normal
    paths = fill(write_series(tmp_path / "source", axes=AXES[axes], origins=origins))
    order = np.random.RandomState(3).permutation(12)
    result = make_dicom([paths[k] for k in order])
    values = np.random.RandomState(4).rand(12).round(3) + 1  # of the images' maps, in the order of positions
    expected, to_voxel = {}, np.linalg.inv(result.affine) @ affine_of(AXES[axes], origins)
    for k in range(12):  # a band of a fifth of the rows is high
        corners = np.array([[0, 4, k, 1], [COLUMNS - 1, 7, k, 1]]).T
        low, high = np.sort((to_voxel @ corners)[:3].round().astype(int), axis=1).T
        result.anomaly_map[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = values[k]
        share = np.zeros((ROWS, COLUMNS))
        share[4:8] = values[k] / values.max()
        expected[dcmread(paths[k]).SOPInstanceUID] = under(dcmread(paths[k]).pixel_array * 0.255, share)
    captures = [dcmread(path) for path in write("capture", result, tmp_path)]
    shown = {capture.SourceImageSequence[0].ReferencedSOPInstanceUID: capture for capture in captures}
    assert set(shown) == {dcmread(paths[k]).SOPInstanceUID for k in np.argsort(values)[-9:]}
    for uid, capture in shown.items():
        np.testing.assert_allclose(capture.pixel_array, expected[uid], atol=1.5)
    numbers = sorted(1 + order.tolist().index(k) for k in np.argsort(values)[-9:])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"overlay_{n:04d}.dcm" for n in numbers]


@pytest.mark.parametrize("make", [write_ultrasound, lambda path: write_series(path.parent)[0]])
def test_capture_of_a_single_image_is_upright(tmp_path, make):
    source = fill([make(tmp_path / "source.dcm")])[0]
    anomaly_map = np.random.RandomState(5).rand(ROWS, COLUMNS).astype(np.float32)
    (path,) = write("capture", CaseResult("ultrasound", source, 0.5, anomaly_map), tmp_path, view=STORED)
    share = (anomaly_map - anomaly_map.min()) / np.ptp(anomaly_map)
    np.testing.assert_allclose(dcmread(path).pixel_array, under(dcmread(source).pixel_array * 0.255, share), atol=1.5)


def test_capture_of_a_frame_of_a_dicom_cine_shows_it_and_refers_to_it(tmp_path):
    (path,) = fill([write_ultrasound(tmp_path / "source.dcm", NumberOfFrames=SLICES)])
    frames = dcmread(path).pixel_array
    anomaly_map = np.random.RandomState(5).rand(ROWS, COLUMNS).astype(np.float32)
    result = CaseResult("cine/frame_3", DicomFrame(str(path), 3, None), 0.5, anomaly_map)
    assert result.kind == "frame"
    (capture,) = write("capture", result, tmp_path, view=STORED)
    share = (anomaly_map - anomaly_map.min()) / np.ptp(anomaly_map)
    np.testing.assert_allclose(dcmread(capture).pixel_array, under(frames[3] * 0.255, share), atol=1.5)
    assert dcmread(capture).SourceImageSequence[0].ReferencedFrameNumber == 4


# images for people


def panels_of(path: Path) -> list[np.ndarray]:
    """Return the dark panels of a figure on white, gray (H, W), in reading order."""
    with Image.open(path) as image:
        gray = np.asarray(image.convert("L"))
    regions = ndimage.find_objects(ndimage.label(gray < 70)[0])
    areas = [np.prod([side.stop - side.start for side in region]) for region in regions]
    panels = [region for region, area in zip(regions, areas, strict=True) if area > 0.5 * max(areas)]
    return [gray[region] for region in sorted(panels, key=lambda region: (region[0].start // 20, region[1].start))]


def bright_place(panel: np.ndarray) -> np.ndarray:
    """Return where a dark panel is bright: the share of its height and width."""
    return (np.argwhere(panel > 150).mean(0) + 0.5) / panel.shape


def make_lesion(folder: Path, codes: str, plane: str) -> tuple[CaseResult, np.ndarray, np.ndarray]:
    """Return a black volume of thick slices with a white lesion that the map finds, its place and the extent (RAS)."""
    size, spacing = np.array([24, 30, 36]), np.ones(3)
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    size[across], spacing[across] = 8, 5
    ras = np.zeros(size, np.float32)
    place = (size * [0.7, 0.25, 0.8]).astype(int)
    ras[tuple(slice(i, i + 1) if axis == across else slice(i - 2, i + 3) for axis, i in enumerate(place))] = 1
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    image = nibabel.Nifti1Image(ras, np.diag([*spacing, 1.0])).as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    nibabel.save(image, folder / "volume.nii")
    anomaly_map = np.asarray(image.dataobj, np.float32) * 0.5 + 0.25
    return CaseResult("volume", folder / "volume.nii", 0.5, anomaly_map, image.affine), (place + 0.5) / size, size


def seen_at(place: np.ndarray, plane: str) -> list[float]:
    """Return (down, right) of a place (shares of the way to the right, the front and the head) as radiologists see it.

    At the left is the patient's right, or of sagittal slices the front; up is the head, or of axial slices the front.
    """
    right, front, head = place
    return {"axial": [1 - front, 1 - right], "coronal": [1 - head, 1 - right], "sagittal": [1 - head, 1 - front]}[plane]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRP", "AIL"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_lesion_of_a_volume_is_where_a_radiologist_expects_it(tmp_path, codes, plane):
    result, place, size = make_lesion(tmp_path, codes, plane)
    rows, columns = {"axial": size[[1, 0]], "coronal": size[[2, 0]], "sagittal": size[[2, 1]]}[plane]
    panels = panels_of(write("overlay", result, tmp_path)[0])
    assert len(panels) == 2
    montage = panels_of(write("montage", result, tmp_path)[0])
    assert len(montage) == 8
    for panel in (*panels, montage[0]):  # the slice with the lesion comes first
        assert panel.shape[0] / panel.shape[1] == pytest.approx(rows / columns, rel=0.05)
        np.testing.assert_allclose(bright_place(panel), seen_at(place, plane), atol=0.02)
    assert all(panel.max() < 100 for panel in montage[1:])


def test_lesion_of_a_photograph_is_on_its_pixels(tmp_path):
    pixels, anomaly_map = np.zeros((60, 40, 3), np.uint8), np.zeros((60, 40), np.float32)
    pixels[10:20, 24:34], anomaly_map[10:20, 24:34] = 255, 0.1
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    panels = panels_of(write("overlay", CaseResult("photo", tmp_path / "photo.png", 0.5, anomaly_map), tmp_path)[0])
    assert len(panels) == 2
    for panel in panels:
        np.testing.assert_allclose(bright_place(panel), [15 / 60, 29 / 40], atol=0.02)


@pytest.mark.parametrize(("codes", "first"), [("RAS", 2), ("RAI", 7)])
def test_montage_goes_by_the_scores_of_slices_as_they_are_stored(tmp_path, monkeypatch, codes, first):
    """Axial slices are counted from the feet up: slice 1 as stored is the second of eight, or from the head the 7th."""
    result, _, _ = make_lesion(tmp_path, codes, "axial")
    scores, titles = np.zeros(8, np.float32), []
    scores[1] = 0.875
    drawn = outputs.draw_montage
    monkeypatch.setattr(outputs, "draw_montage", lambda *args, **kw: titles.append(drawn(*args, **kw)) or titles[-1])
    scored = CaseResult("v", result.source, 0.5, result.anomaly_map, result.affine, scores, slice_axis=2)
    write("montage", scored, tmp_path)
    assert titles[0].axes[0].get_title() == f"slice {first} of 8, score 0.8750"


def titles_of(monkeypatch) -> dict[str, list[str]]:
    """Collect what overlays and montages write above their panels."""
    titles: dict[str, list[str]] = {"overlay": [], "montage": []}

    def overlay(*args, title, **kw):
        titles["overlay"].append(title.splitlines()[0])
        return draw_overlay(*args, title=title, **kw)

    def montage(*args, **kw):
        figure = draw_montage(*args, **kw)
        titles["montage"] += [axes.get_title() for axes in figure.axes if axes.get_title()]
        return figure

    draw_overlay, draw_montage = outputs.draw_overlay, outputs.draw_montage
    monkeypatch.setattr(outputs, "draw_overlay", overlay)
    monkeypatch.setattr(outputs, "draw_montage", montage)
    return titles


@pytest.mark.parametrize("step", [2.5, -2.5])
@pytest.mark.parametrize("axes", AXES)
def test_all_outputs_name_the_same_slice_where_the_scores_and_the_map_differ(tmp_path, monkeypatch, axes, step):
    """The map is highest in slice 8, the scores in slices 2 and 5 alike; the files come in any order."""
    origins = np.array([[-31.5, 12.25, 7.75]]) + step * np.arange(12)[:, None] * np.cross(*AXES[axes])
    paths = fill(write_series(tmp_path / "source", axes=AXES[axes], origins=origins))
    order = np.random.RandomState(3).permutation(12)
    plain = make_dicom([paths[k] for k in order])
    plain.anomaly_map[..., 8] = 1
    scores = np.linspace(0.1, 0.2, 12, dtype=np.float32)
    scores[[2, 5]] = 0.75
    result = replace(plain, slice_scores=scores, slice_axis=2)
    titles = titles_of(monkeypatch)
    write("overlay", result, tmp_path)
    write("montage", result, tmp_path)
    captures = [dcmread(path) for path in write("capture", result, tmp_path)]

    rows = slices_of(result)
    assert max(rows, key=lambda row: row["score"])["slice"] == 2
    shown = 1 + (11 - 2 if STORED.layout(result.affine).is_flipped else 2)
    assert titles["overlay"] == [f"series, slice {shown} of 12"]
    assert titles["montage"][0] == f"slice {shown} of 12, score 0.7500"
    # The lowest three slices are left out; the highest map has a score in the middle.
    by_position = np.argsort(origins @ np.cross(*AXES[axes]))
    uids = [dcmread(paths[k]).SOPInstanceUID for k in by_position]
    assert {c.SourceImageSequence[0].ReferencedSOPInstanceUID for c in captures} == {
        uids[index] for index in np.argsort(-scores, kind="stable")[:9]
    }


def test_most_suspicious_slice_is_captured_where_a_single_one_is(tmp_path, monkeypatch):
    paths = fill(write_series(tmp_path / "source"))
    result = make_dicom(paths)
    result.anomaly_map[..., 3] = 1
    scores = np.array([0.1, 0.5, 0.2, 0.3, 0.5], np.float32)
    monkeypatch.setattr(outputs, "CAPTURES", 1)
    (path,) = write("capture", replace(result, slice_scores=scores, slice_axis=2), tmp_path)
    assert path.name == "overlay_0002.dcm"


def test_captures_of_a_volume_that_was_cut_across_its_frames_are_those_of_the_highest_map(tmp_path, monkeypatch):
    result = make_dicom(fill(write_series(tmp_path / "source")))  # axial frames
    result.anomaly_map[..., 3] = 1
    coronal = ImageView(plane="coronal")
    scored = replace(result, slice_scores=np.arange(ROWS, dtype=np.float32), slice_axis=1)
    monkeypatch.setattr(outputs, "CAPTURES", 1)
    (path,) = write("capture", scored, tmp_path, view=coronal)
    assert path.name == "overlay_0004.dcm"


def test_outputs_of_one_case_read_its_source_once(tmp_path, opened):
    paths = fill(write_series(tmp_path / "source"))
    result, settings = make_dicom(paths), settings_for(tmp_path)
    opened()
    for name in ("overlay", "montage", "seg", "parametric-map", "capture"):
        OUTPUTS[name].write(result, tmp_path / f"out{OUTPUTS[name].suffix}", settings)
    counts = opened()
    # Once for the pixels, and once for the headers of what is written as DICOM.
    assert {path.name: counts[path.name] for path in paths} == {path.name: 2 for path in paths}


def test_image_of_a_case_is_kept_no_longer_than_its_result(tmp_path):
    settings, first = settings_for(tmp_path), make_photograph(tmp_path)
    kept = weakref.ref(settings.stored(first))
    assert settings.stored(first) is kept()
    second = replace(first, source=Image.new("RGB", (40, 30), "white"))
    np.testing.assert_array_equal(settings.stored(second), np.full((40, 30, 3), 255))
    assert kept() is None  # one case at a time
    kept = weakref.ref(settings.stored(second))
    assert kept() is not None
    del second
    assert kept() is None


# what can be made of what


def test_each_kind_has_the_outputs_that_can_be_made_of_it(tmp_path):
    cine = write_ultrasound(tmp_path / "cine.dcm", NumberOfFrames=SLICES)
    anomaly_map, flat = np.zeros((COLUMNS, ROWS, SLICES), np.float32), np.zeros((ROWS, COLUMNS), np.float32)
    plain, dicom = ["tiff", "png", "mask", "overlay"], ["seg", "parametric-map", "capture"]
    volumes = ["nifti", "nrrd", "mask", "overlay", "montage"]
    cases = [
        (CaseResult("photograph", make_photograph(tmp_path).source, 0.5, flat), plain),
        (CaseResult("in memory", np.zeros((ROWS, COLUMNS), np.uint8), 0.5, flat), plain),
        (CaseResult("frame", Frame("video.mp4", 0, 0.0), 0.5, flat), plain),
        (CaseResult("ultrasound", write_ultrasound(tmp_path / "us.dcm"), 0.5, flat), plain + dicom),
        (make_volume(tmp_path), volumes),
        (CaseResult("series", write_series(tmp_path / "ct"), 0.5, anomaly_map, np.eye(4)), volumes + dicom),
        (CaseResult("cine", cine, 0.5, anomaly_map, np.eye(4)), volumes + dicom),
    ]
    for result, expected in cases:
        assert [name for name, output in OUTPUTS.items() if output.suits(result)] == expected, result.case_id
        assert is_dicom(result) == ("seg" in expected)
        assert set(DEFAULT_OUTPUTS[result.kind]) - {"video"} <= set(expected)


def test_outputs_are_checked_before_anything_is_computed():
    check_outputs([*OUTPUTS, "video"], 0.5)
    check_outputs([*set(OUTPUTS) - {"mask", "seg"}, "video"], None)
    check_outputs(["mask"], 0.0)  # a threshold like any other
    with pytest.raises(ValueError, match=r"there is no output jpeg, gif; there are tiff, png, .*, capture, video"):
        check_outputs(["tiff", "jpeg", "gif"], 0.5)
    with pytest.raises(ValueError, match=r"mask, seg marks pixels at or above a threshold; give one \(--threshold\)"):
        check_outputs(["mask", "tiff", "seg"], None)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), 1.01, -0.01, 40, "0.5", True, np.float32(2)])
def test_threshold_that_anomaly_values_cannot_reach_is_refused(tmp_path, threshold):
    message = "threshold must be a number from 0 to 1, as anomaly values are; got "
    with pytest.raises(ValueError, match=message):
        check_outputs(["mask"], threshold)
    with pytest.raises(ValueError, match=message):
        check_outputs(["tiff"], threshold)  # without use for it, too
    with pytest.raises(ValueError, match=message):
        ResultWriter(tmp_path, threshold=threshold)


@pytest.mark.parametrize("threshold", [0, 1, 0.0, 1.0, np.float32(0.5), None])
def test_every_threshold_from_0_to_1_is_accepted(threshold):
    check_outputs(["tiff"], threshold)


@pytest.mark.parametrize(
    ("module", "needing", "error", "message"),
    [
        ("highdicom", ["seg", "parametric-map", "capture"], OutputError, r"mrad-med\[seg\]"),
        ("nrrd", ["nrrd"], ImportError, r"mrad-med\[nrrd\]"),
        ("av", ["video"], ImageFileError, r"mrad-med\[video\]"),
    ],
)
def test_missing_package_is_reported_before_anything_is_computed(monkeypatch, module, needing, error, message):
    original = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == module:
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    check_outputs([name for name in (*OUTPUTS, "video") if name not in needing], 0.5)
    for name in needing:
        with pytest.raises(error, match=message):
            check_outputs([name], 0.5)
