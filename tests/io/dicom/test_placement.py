"""Positions of DICOM results, read back by SimpleITK, highdicom and pydicom, for series of several geometries."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from pydicom import dcmread

from mrad_med.errors import UnfitSourceError
from mrad_med.io.dicom.frames import DicomStack
from mrad_med.io.dicom.series import read_series
from mrad_med.io.dicom.source import read_source_series
from mrad_med.io.dicom.writer import write_overlay_captures, write_parametric_map, write_segmentation
from mrad_med.io.image import read_image
from tests.dicom_phantoms import (
    AXIAL,
    COLUMNS,
    CORONAL,
    FLIPPED,
    OBLIQUE,
    ROWS,
    SLICES,
    positions,
    write_multiframe,
    write_series,
    write_ultrasound,
)

SAGITTAL = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
HEAD_DOWN = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # a negative cosine of the columns
SERIES = {
    "axial": (AXIAL, None),
    "coronal": (CORONAL, None),
    "sagittal": (SAGITTAL, None),
    "rows to the right": (FLIPPED, None),
    "columns to the front": (HEAD_DOWN, None),
    "oblique": (OBLIQUE, None),
    "descending": (AXIAL, positions(AXIAL)[::-1]),
    "tilted": (AXIAL, positions(AXIAL, shear=0.9)),
    "tilted and descending": (AXIAL, positions(AXIAL, shear=-0.4)[::-1]),
}
MARKED = (17, 6, 3)  # column, row, slice of the volume as it is read


def marked_map() -> np.ndarray:
    marked = np.random.RandomState(0).rand(COLUMNS, ROWS, SLICES).astype(np.float32)
    marked[MARKED] = 2
    return marked


def in_lps(affine: np.ndarray, voxel: tuple[int, ...]) -> np.ndarray:
    return (np.diag([-1, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]


def place_in_file(path: Path) -> np.ndarray:
    """Return the position (LPS) of the highest pixel, from the functional groups alone (PS3.3, C.7.6.2.1.1)."""
    read = dcmread(path)
    frame, row, column = np.unravel_index(read.pixel_array.argmax(), read.pixel_array.shape)
    shared, own = read.SharedFunctionalGroupsSequence[0], read.PerFrameFunctionalGroupsSequence[frame]
    orientation = shared.get("PlaneOrientationSequence") or own.PlaneOrientationSequence
    right, down = np.reshape(np.asarray(orientation[0].ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
    origin = np.asarray(own.PlanePositionSequence[0].ImagePositionPatient, float)
    return origin + right * between_columns * column + down * between_rows * row


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("kind", ["segmentation", "parametric map"])
def test_marked_voxel_is_where_it_is_in_the_source(tmp_path, kind, name):
    axes, origins = SERIES[name]
    paths = write_series(tmp_path / "source", axes=axes, origins=origins)
    affine, source = read_series(paths).affine.numpy(), read_source_series(paths)
    path = tmp_path / "result.dcm"
    if kind == "segmentation":
        write_segmentation(path, marked_map(), source, threshold=1.5, affine=affine)
    else:
        write_parametric_map(path, marked_map(), source, affine=affine)
    np.testing.assert_allclose(place_in_file(path), in_lps(affine, MARKED), atol=1e-3)
    stored = {tuple(dcmread(item).ImagePositionPatient) for item in paths}
    groups = dcmread(path).PerFrameFunctionalGroupsSequence
    assert {tuple(group.PlanePositionSequence[0].ImagePositionPatient) for group in groups} == stored


@pytest.mark.parametrize("name", [name for name in SERIES if "tilted" not in name])
def test_simpleitk_finds_the_marked_voxel_of_a_segmentation(tmp_path, name):
    """SimpleITK has no shear, so a tilted gantry has its own test below."""
    axes, origins = SERIES[name]
    paths = write_series(tmp_path / "source", axes=axes, origins=origins)
    affine = read_series(paths).affine.numpy()
    write_segmentation(tmp_path / "a.dcm", marked_map(), read_source_series(paths), threshold=1.5, affine=affine)
    image = sitk.ReadImage(str(tmp_path / "a.dcm"))
    ((z, y, x),) = np.argwhere(sitk.GetArrayFromImage(image))
    world = image.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
    np.testing.assert_allclose(world, in_lps(affine, MARKED), atol=1e-3)


@pytest.mark.parametrize("name", ["tilted", "tilted and descending"])
def test_simpleitk_reads_one_end_of_a_tilted_segmentation_in_place(tmp_path, name):
    axes, origins = SERIES[name]
    paths = write_series(tmp_path / "source", axes=axes, origins=origins)
    affine = read_series(paths).affine.numpy()
    write_segmentation(tmp_path / "a.dcm", marked_map(), read_source_series(paths), threshold=0.0, affine=affine)
    image = sitk.ReadImage(str(tmp_path / "a.dcm"))
    assert image.GetSize() == (COLUMNS, ROWS, SLICES)
    distances = [np.linalg.norm(image.GetOrigin() - in_lps(affine, (0, 0, index))) for index in (0, SLICES - 1)]
    assert min(distances) < 1e-3


@pytest.mark.parametrize("axes", [SAGITTAL, CORONAL, OBLIQUE, HEAD_DOWN])
def test_frames_of_a_multi_frame_source_keep_their_places(tmp_path, axes):
    path = write_multiframe(tmp_path / "source.dcm", axes=axes)
    affine, source = read_image(path).affine.numpy(), read_source_series([path])
    write_segmentation(tmp_path / "a.dcm", marked_map(), source, threshold=1.5, affine=affine)
    write_parametric_map(tmp_path / "b.dcm", marked_map(), source, affine=affine)
    for name in ("a.dcm", "b.dcm"):
        np.testing.assert_allclose(place_in_file(tmp_path / name), in_lps(affine, MARKED), atol=1e-3)


@pytest.mark.parametrize("frames", [(1, 2, 3), (4,)])
def test_part_of_a_multi_frame_source_is_referenced_by_the_numbers_in_its_file(tmp_path, frames):
    path = write_multiframe(tmp_path / "source.dcm")
    header = dcmread(path)
    for number, group in enumerate(header.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].StackID = "1" if number in frames else "2" if number < 1 else "3"
    header.save_as(path)
    image = read_image(DicomStack(str(path), frames))
    source = read_source_series([path], frames=frames)
    assert source.frame_count == len(frames)
    values = np.random.RandomState(0).rand(COLUMNS, ROWS, len(frames)).astype(np.float32)
    affine = image.affine.numpy() if len(frames) > 1 else None
    anomaly_map = values if len(frames) > 1 else values[..., 0].T.copy()
    write_segmentation(tmp_path / "a.dcm", anomaly_map, source, threshold=0.5, affine=affine)
    read = highdicom.seg.segread(tmp_path / "a.dcm")
    numbers = [frame + 1 for frame in frames]
    pixels = read.get_pixels_by_source_frame(header.SOPInstanceUID, numbers, segment_numbers=[1])[..., 0]
    np.testing.assert_array_equal(pixels, (values >= 0.5).transpose(2, 1, 0))
    places = {
        int(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber): (
            group.PlanePositionSequence[0].ImagePositionPatient
        )
        for group in read.PerFrameFunctionalGroupsSequence
    }
    assert sorted(places) == numbers
    for number in numbers:
        np.testing.assert_allclose(places[number], positions(OBLIQUE)[number - 1], atol=1e-6)
    (overlay,) = write_overlay_captures(tmp_path, {0: np.zeros((ROWS, COLUMNS, 3), np.uint8)}, source)
    assert dcmread(overlay).SourceImageSequence[0].ReferencedFrameNumber == numbers[0]
    np.testing.assert_allclose(dcmread(overlay).ImagePositionPatient, positions(OBLIQUE)[frames[0]], atol=1e-6)


def test_frame_of_a_cine_gets_a_segmentation_that_refers_to_it(tmp_path):
    path = write_ultrasound(tmp_path / "source.dcm", NumberOfFrames=SLICES)
    source = read_source_series([path], frames=[3])
    anomaly_map = np.random.RandomState(0).rand(ROWS, COLUMNS).astype(np.float32)
    write_segmentation(tmp_path / "a.dcm", anomaly_map, source, threshold=0.5)
    read = dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read.pixel_array, anomaly_map >= 0.5)
    (group,) = read.PerFrameFunctionalGroupsSequence
    assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == 4


@pytest.mark.parametrize("frames", [[], [5], [-1]])
def test_frames_that_the_source_does_not_have_are_refused(tmp_path, frames):
    path = write_multiframe(tmp_path / "source.dcm")
    with pytest.raises(UnfitSourceError, match=r"the source has 5 frame\(s\), not those that were scored"):
        read_source_series([path], frames=frames)
