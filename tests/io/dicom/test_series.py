"""Series of slices whose place in the patient is known by construction, shuffled, damaged and mixed."""

from __future__ import annotations

import logging
import random
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
import torch
from pydicom.uid import generate_uid

from mrad_med.data import find_cases
from mrad_med.data.dicom_series import find_series
from mrad_med.errors import DatasetError, ImageFileError
from mrad_med.io.dicom.series import DicomSeries, read_series
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.image import read_image
from mrad_med.store import make_key
from tests.small_dicom import item, make_image, write_image, write_series

ROWS, COLUMNS, SLICES = 6, 8, 5
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"
PLANES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
}
OBLIQUE = tuple(np.asarray([[1, 1, 0], [1, -1, 1]] / np.sqrt([[2], [3]])).ravel())


def voxels(slices: int = SLICES, seed: int = 0) -> np.ndarray:
    """(rows, columns, slices) of stored values."""
    return np.random.RandomState(seed).randint(0, 2000, (ROWS, COLUMNS, slices))


def normal_of(orientation: tuple[float, ...]) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def only(folder: Path) -> DicomSeries:
    (series,) = find_series(folder)
    return series


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("orientation", "plane"), [*((value, key) for key, value in PLANES.items()), (OBLIQUE, "oblique")]
)
def test_marker_is_found_at_its_place_in_the_patient(tmp_path, orientation, plane, reverse):
    """One bright voxel; its place in LPS by equation C.7.6.2.1-1, from numbers of the header alone."""
    values, origin, spacing = np.zeros((ROWS, COLUMNS, SLICES)), np.asarray([-12.5, 30.25, -100.0]), (0.75, 1.5)
    row, column, index = 4, 2, 3
    values[row, column, index] = 3000
    step = normal_of(orientation) * (-2.5 if reverse else 2.5)
    write_series(tmp_path, values, origin=tuple(origin), orientation=orientation, spacing=spacing, step=tuple(step))
    series = only(tmp_path)
    volume = read_series(series)
    assert series.plane == plane
    assert series.problems == ()
    assert series.spacing == pytest.approx((1.5, 0.75, 2.5), abs=1e-5)
    assert volume.dtype == torch.float32
    assert volume.shape == (1, COLUMNS, ROWS, SLICES)
    assert float(volume.max()) == 3000 - 1024
    place = np.argwhere(volume.numpy()[0] == float(volume.max()))[0]
    left, posterior, superior = (
        origin
        + np.asarray(orientation[:3]) * column * spacing[1]
        + np.asarray(orientation[3:]) * row * spacing[0]
        + step * index
    )
    np.testing.assert_allclose((volume.affine.numpy() @ [*place, 1])[:3], [-left, -posterior, superior], atol=1e-3)
    assert np.linalg.det(volume.affine.numpy()) > 0


def test_values_are_hounsfield_units_in_the_order_of_positions(tmp_path):
    values = voxels()
    paths = write_series(tmp_path, values, WindowCenter="40", WindowWidth="80")
    random.Random(0).shuffle(paths)
    volume = read_series(paths)
    np.testing.assert_array_equal(volume.numpy()[0], values.transpose(1, 0, 2) - 1024.0)
    assert np.asarray(volume.meta[VOIKeys.WINDOWS])[0].tolist() == [40, 80]
    assert "Beeblebrox" not in str(volume.meta)


def test_names_and_instance_numbers_play_no_part(tmp_path):
    names = ["z", "1.2.840.99", "b.png", "IM7", "a.dcm"]
    paths = write_series(tmp_path, voxels(), names=names)
    series = only(tmp_path)
    assert [path.name for path in series.files] == names
    assert [pydicom.dcmread(path).InstanceNumber for path in paths] == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(read_series(series).numpy()[0], voxels().transpose(1, 0, 2) - 1024.0)


def test_series_in_one_folder_are_told_apart_and_named_without_identifiers(tmp_path):
    first, second, other = (generate_uid() for _ in range(3))
    write_series(tmp_path / "case" / "ct", voxels(3), uid=first, names=["1", "3", "5"])
    write_series(tmp_path / "case" / "ct", voxels(4, 1), uid=second, names=["2", "4", "6", "7"])
    write_series(tmp_path / "case" / "mr", voxels(2), uid=other, SeriesNumber=9, Modality="MR")
    found = find_series(tmp_path)
    codes = [make_key(str(pydicom.dcmread(series.files[0]).SOPInstanceUID))[:10] for series in found]
    places = ["case/ct/series_3", "case/ct/series_3", "case/mr/series_9"]
    assert [series.case_id for series in found] == [f"{a}-{b}" for a, b in zip(places, codes, strict=True)]
    assert [len(series.files) for series in found] == [3, 4, 2]
    assert [series.modality for series in found] == ["CT", "CT", "MR"]
    assert not any(uid in repr(found) for uid in (first, second, other))
    assert find_series(tmp_path) == found


def test_file_that_is_not_a_slice_is_skipped(tmp_path, caplog):
    write_series(tmp_path, voxels())
    (tmp_path / "notes.txt").write_text("patient 17")
    (tmp_path / "archive.zip").write_bytes(b"PK\3\4" + bytes(200))
    (tmp_path / "empty").touch()
    (tmp_path / "DICOMDIR").write_bytes((TEST_FILES / "dicomdirtests" / "DICOMDIR").read_bytes())
    (tmp_path / "report").write_bytes((TEST_FILES / "test-SR.dcm").read_bytes())
    (tmp_path / "false.dcm").write_bytes(b"\x08\0\0\0" + bytes(100))
    (tmp_path / ".hidden.dcm").write_bytes((TEST_FILES / "CT_small.dcm").read_bytes())
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "a.dcm").write_bytes((TEST_FILES / "CT_small.dcm").read_bytes())
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        series = only(tmp_path)
    assert len(series.files) == SLICES
    assert "2 of 7 file(s) skipped: not images, or damaged" in caplog.text


def test_slices_without_preamble_are_found(tmp_path):
    for path in write_series(tmp_path, voxels()):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.save_as(path.with_suffix(""), implicit_vr=True, little_endian=True, enforce_file_format=False)
        path.unlink()
    np.testing.assert_array_equal(read_series(only(tmp_path)).numpy()[0], voxels().transpose(1, 0, 2) - 1024.0)


def test_gap_is_reported_and_refused_unless_allowed(tmp_path, caplog):
    paths = write_series(tmp_path, voxels(8))
    for index in (2, 5, 6):
        paths[index].unlink()
    series = only(tmp_path)
    assert series.problems == ("2 gap(s) between slices (up to 6 mm, usually 2 mm), about 3 slice(s) missing",)
    with pytest.raises(ImageFileError, match=r"are not evenly spaced: .*gap\(s\).*complete or export the series again"):
        read_series(series)
    volume = read_series(series, strict=False)
    assert volume.shape[-1] == 5
    assert "are not evenly spaced" in caplog.text
    np.testing.assert_allclose((volume.affine.numpy() @ [0, 0, 4, 1])[:3], [0, 0, 14], atol=1e-6)


def test_repeated_position_is_told_and_refused_unless_asked_for(tmp_path):
    write_series(tmp_path, voxels(), uid="1.2.3")
    write_series(tmp_path, voxels(1, 7), uid="1.2.3", origin=(0, 0, 4), names=["copy.dcm"])
    series = only(tmp_path)
    assert series.problems == ("1 slice(s) at the position of another",)
    with pytest.raises(ImageFileError, match=r"1 slice\(s\) at the position of another"):
        read_series(series)
    volume = read_series(series, strict=False).numpy()[0]
    assert volume.shape == (COLUMNS, ROWS, SLICES)
    np.testing.assert_array_equal(volume[..., 2], voxels(1, 7)[..., 0].T - 1024.0)  # the first by name


def test_uneven_and_sideways_slices_are_reported(tmp_path):
    write_series(tmp_path / "a", voxels(2), uid="1.2.3")
    write_series(tmp_path / "a", voxels(2), uid="1.2.3", origin=(0, 0, 4.5), names=["x", "y"])
    assert only(tmp_path / "a").problems == ("uneven distances between slices, from 2 to 2.5 mm",)
    write_series(tmp_path / "b", voxels(3), uid="1.2.4")
    write_series(tmp_path / "b", voxels(1), uid="1.2.4", origin=(7, 0, 6), names=["x"])
    write_series(tmp_path / "b", voxels(1), uid="1.2.4", origin=(0, 0, 8), names=["y"])
    assert only(tmp_path / "b").problems == ("slices up to 7 mm off one line",)


def test_tilt_of_the_gantry_is_in_the_affine_and_reported(tmp_path):
    """A gantry tilted by 20 degrees, the table moving along the patient: worked by hand."""
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    values = np.zeros((ROWS, COLUMNS, SLICES))
    values[5, 1, 4] = 100
    write_series(tmp_path, values, orientation=(1, 0, 0, 0, cosine, sine), step=(0, 0, 3))
    series = only(tmp_path)
    volume = read_series(series)
    assert series.problems == ("a gantry tilt of 20.0 degrees, included in the affine",)
    assert series.plane == "axial"
    np.testing.assert_allclose(volume.affine.numpy()[:3, 2], [0, 0, 3], atol=1e-6)
    place = np.argwhere(volume.numpy()[0] == volume.max().item())[0]
    np.testing.assert_allclose((volume.affine.numpy() @ [*place, 1])[:3], [-1, -5 * cosine, 5 * sine + 12], atol=1e-6)


@pytest.mark.parametrize("tag", ["EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime"])
def test_volumes_at_the_same_positions_are_told_apart(tmp_path, tag):
    write_series(tmp_path, voxels(), uid="1.2.3", names=[f"a{i}" for i in range(5)], **{tag: 1})
    write_series(tmp_path, voxels(5, 1), uid="1.2.3", names=[f"b{i}" for i in range(5)], **{tag: 2})
    first, second = find_series(tmp_path)
    assert first.problems == second.problems == ()
    assert first.case_id != second.case_id
    assert {series.case_id.split("-")[0] for series in (first, second)} == {"series_3"}
    assert first == find_series(first.files)[0]  # whatever other volumes there are
    np.testing.assert_array_equal(read_series(second).numpy()[0], voxels(5, 1).transpose(1, 0, 2) - 1024.0)


def test_directions_and_sizes_are_told_apart(tmp_path):
    write_series(tmp_path, voxels(), uid="1.2.3", names=[f"a{i}" for i in range(5)])
    sagittal = PLANES["sagittal"]
    write_series(
        tmp_path, voxels(2), uid="1.2.3", orientation=sagittal, step=tuple(normal_of(sagittal)), names=["b", "c"]
    )
    assert [series.plane for series in find_series(tmp_path)] == ["axial", "sagittal"]
    write_series(tmp_path, voxels(2)[:4], uid="1.2.3", names=["d", "e"])
    found = find_series(tmp_path)
    assert [len(series.files) for series in found] == [5, 2, 2]
    assert all("images of 2 sizes in one series, split by size" in series.problems for series in found)


def test_missing_positions_are_reported_and_refused(tmp_path):
    for path in write_series(tmp_path, voxels()):
        dataset = pydicom.dcmread(path)
        del dataset.ImagePositionPatient
        dataset.save_as(path)
    series = only(tmp_path)
    assert series.plane == "unknown"
    assert series.spacing is None
    assert series.problems == ("5 slice(s) do not state their position",)
    for strict in (True, False):
        with pytest.raises(ImageFileError, match=r"5 slice\(s\) do not state their position; read them as images"):
            read_series(series, strict=strict)


def test_contradictory_spacing_is_reported_and_refused(tmp_path):
    write_series(tmp_path, voxels(), uid="1.2.3")
    write_series(tmp_path, voxels(1), uid="1.2.3", origin=(0, 0, 10), spacing=(1, 2), names=["x"])
    assert only(tmp_path).problems == ("different pixel spacings in one series",)
    with pytest.raises(ImageFileError, match="slices cannot form one volume: pixel spacings differ"):
        read_series(only(tmp_path), strict=False)


def test_slice_whose_header_contradicts_itself_is_told_and_refused(tmp_path):
    write_series(tmp_path, voxels(1), PixelSpacing=["0", "0"])
    (problem,) = only(tmp_path).problems
    assert "a spacing that is not above 0" in problem
    with pytest.raises(ImageFileError, match="a spacing that is not above 0; export the DICOM file again"):
        read_series(only(tmp_path))


def test_files_that_cannot_form_one_volume_are_refused(tmp_path):
    axial = write_series(tmp_path / "a", voxels(2))
    sagittal = write_series(tmp_path / "b", voxels(2), orientation=PLANES["sagittal"], step=(1, 0, 0))
    small = write_series(tmp_path / "c", voxels(2)[:4])
    colors = make_image(
        np.zeros((ROWS, COLUMNS, 3), np.uint8),
        photometric="RGB",
        ImagePositionPatient=["0", "0", "0"],
        ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
        PixelSpacing=["1", "1"],
    )
    cine = make_image(np.zeros((2, ROWS, COLUMNS), np.uint8), NumberOfFrames=2)
    color_cine = make_image(np.zeros((2, ROWS, COLUMNS, 3), np.uint8), photometric="RGB", NumberOfFrames=2)
    paths = [write_image(tmp_path / f"{index}", data) for index, data in enumerate((colors, cine, color_cine))]
    for files, message in [
        ([], "the series has no files"),
        ([tmp_path / "none"], "there is no such file"),
        ([*axial, *sagittal], "slices have different directions"),
        ([*axial, *small], "slices have different sizes"),
        (paths[:1], "color slices cannot form a volume"),
        ([*axial, paths[1]], "a file with several frames is among the slices"),
        (paths[2:], "a multi-frame file in colors is not a volume of gray values"),
    ]:
        with pytest.raises(ImageFileError, match=message):
            read_series(files)


def test_limits_are_kept(tmp_path):
    paths = write_series(tmp_path, voxels())
    with pytest.raises(ImageFileError, match=r"8 x 6 x 5 voxels are more than the limit of 239"):
        read_series(paths, max_voxels=239)
    with pytest.raises(ImageFileError, match=r"8 x 6 pixels are more than the limit of 47"):
        read_series(paths, max_pixels=47)


def test_each_file_of_a_series_is_opened_once_to_be_read(tmp_path, opened):
    paths = write_series(tmp_path, np.zeros((18, 20, 5)))
    (case,) = find_cases(tmp_path)
    assert case["image"] == [str(path) for path in paths]
    opened()
    read_image(case["image"])
    counts = opened()
    assert {path.name: counts[path.name] for path in paths} == {path.name: 1 for path in paths}
    read_series(paths[::-1])
    counts = opened()
    assert {path.name: counts[path.name] for path in paths} == {path.name: 1 for path in paths}


def test_files_in_any_order_make_the_same_volume(tmp_path):
    paths = write_series(tmp_path, voxels(), WindowCenter="40", WindowWidth="400")
    expected = read_series(paths)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        volume = read_series([paths[index] for index in order])
        np.testing.assert_array_equal(volume.numpy(), expected.numpy())
        np.testing.assert_array_equal(volume.affine, expected.affine)
        np.testing.assert_array_equal(volume.meta["windows"], expected.meta["windows"])
        assert volume.meta["filename_or_obj"] == expected.meta["filename_or_obj"]


def test_windows_of_a_series_are_those_of_its_first_slice_that_has_any(tmp_path):
    paths = write_series(tmp_path, voxels(), WindowWidth="400")
    for path, center in zip(paths[1:], (10, 20, 30, 40), strict=True):
        dataset = pydicom.dcmread(path)
        dataset.WindowCenter = str(center)
        dataset.save_as(path)
    for files in (paths, paths[::-1]):
        assert read_series(files).meta["windows"][0].tolist() == [10, 400]


def test_file_of_several_frames_is_a_series_of_its_own(tmp_path):
    frames = voxels(3).transpose(2, 0, 1).astype(np.uint16)
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=["0", "0", str(3 * k)])]) for k in (2, 0, 1)]
    common = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])],
        PixelMeasuresSequence=[item(PixelSpacing=["1", "2"])],
    )
    dataset = make_image(
        frames,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=[common],
        PerFrameFunctionalGroupsSequence=groups,
        SeriesInstanceUID="1.2.3",
    )
    write_image(tmp_path / "a", dataset)
    write_series(tmp_path, voxels(), uid="1.2.3")
    enhanced, slices = find_series(tmp_path)
    assert (len(enhanced.files), len(slices.files)) == (1, 5)
    assert enhanced.spacing == pytest.approx((2, 1, 3))
    volume = read_series(enhanced)
    np.testing.assert_array_equal(volume.numpy()[0], frames[[1, 2, 0]].transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine.numpy(), np.diag([-2, -1, 3, 1]))


def test_single_slice_is_a_thin_volume(tmp_path):
    volume = read_series(write_series(tmp_path, voxels(1), SliceThickness="7"))
    assert volume.shape == (1, COLUMNS, ROWS, 1)
    np.testing.assert_allclose(volume.affine.numpy()[:3, 2], [0, 0, 7])


def test_files_can_be_given_instead_of_a_folder(tmp_path):
    paths = write_series(tmp_path / "a", voxels()) + write_series(tmp_path / "b", voxels(2))
    assert [series.case_id.split("-")[0] for series in find_series(paths)] == ["a/series_3", "b/series_3"]
    assert find_series(paths[0])[0].files == (paths[0],)


def test_series_cannot_be_changed(tmp_path):
    write_series(tmp_path, voxels())
    with pytest.raises(FrozenInstanceError):
        only(tmp_path).case_id = "other"


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no DICOM image in .*; files are recognized by their content"):
        find_series(tmp_path)
    with pytest.raises(DatasetError, match="there is no file or folder"):
        find_series(tmp_path / "none")


def test_real_series_of_pydicom_are_found_and_read():
    """The pixels of these files are cut to 16 x 16, their headers are those of scanners."""
    found = {series.case_id: series for series in find_series(TEST_FILES / "dicomdirtests")}
    assert {len(series.files) for series in found.values()} >= {1, 4, 5}
    axial = [series for series in found.values() if series.plane == "axial" and len(series.files) > 1]
    assert axial
    for series in axial:
        if not series.problems:
            volume = read_series(series)
            heights = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in series.files]
            np.testing.assert_allclose(
                [(volume.affine.numpy() @ [0, 0, index, 1])[2] for index in range(len(heights))], heights, atol=0.05
            )
