"""DICOM results: values and positions read back by highdicom and pydicom, privacy, and validation by dciodvfy."""

from __future__ import annotations

import builtins
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread

from mrad_med.errors import OutputError
from mrad_med.io.dicom.source import frames_on_source, read_source_series, warn_burned_in
from mrad_med.io.dicom.writer import write_overlay_captures, write_parametric_map, write_segmentation
from tests.dicom_phantoms import (
    AXIAL,
    COLUMNS,
    CORONAL,
    FLIPPED,
    OBLIQUE,
    PRIVATE,
    ROWS,
    SLICES,
    affine_of,
    positions,
    write_multiframe,
    write_series,
    write_ultrasound,
)

THRESHOLD = 0.5
AXES = {"axial": AXIAL, "coronal": CORONAL, "flipped": FLIPPED, "oblique": OBLIQUE}
KINDS = ["segmentation", "parametric map", "overlay"]


def make_map() -> np.ndarray:
    """(column, row, slice), as in readers of volumes."""
    return np.random.RandomState(0).rand(COLUMNS, ROWS, SLICES).astype(np.float32)


def make_overlay() -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)


def write(kind: str, folder: Path, source, **keywords) -> Path:
    if kind == "overlay":
        (path,) = write_overlay_captures(folder, {3: make_overlay()}, source, **keywords)
        return path
    path = folder / f"{kind}.dcm"
    if kind == "segmentation":
        write_segmentation(path, make_map(), source, threshold=THRESHOLD, **keywords)
    else:
        write_parametric_map(path, make_map(), source, **keywords)
    return path


def elements(dataset: Dataset) -> list:
    return [element for element in dataset.iterall() if element.VR != "SQ"]


def texts(dataset: Dataset) -> set[str]:
    """Return all values of a dataset and of its nested items."""
    return {str(element.value) for element in elements(dataset)} | {
        str(part) for element in elements(dataset) if element.VM > 1 for part in element.value
    }


# what comes back


def test_segmentation_is_the_map_at_or_above_the_threshold(tmp_path):
    paths, anomaly_map = write_series(tmp_path / "source"), make_map()
    anomaly_map[3, 4, 2] = THRESHOLD
    write_segmentation(tmp_path / "seg.dcm", anomaly_map, read_source_series(paths), threshold=THRESHOLD)
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [dcmread(path).SOPInstanceUID for path in paths]
    frames = segmentation.get_pixels_by_source_instance(uids, segment_numbers=[1])[..., 0]
    np.testing.assert_array_equal(frames, (anomaly_map >= THRESHOLD).transpose(2, 1, 0))
    assert frames[2, 4, 3] == 1
    assert segmentation.SegmentationType == "BINARY"
    (segment,) = segmentation.SegmentSequence
    assert segment.SegmentLabel == "anomaly"
    assert segment.segmented_property_type.value == "49755003"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "mrad_med"


def test_segmentation_of_nothing_found_is_a_frame_of_zeros_for_each_slice(tmp_path):
    source = read_source_series(write_series(tmp_path / "source"))
    write_segmentation(tmp_path / "seg.dcm", make_map(), source, threshold=2.0)
    pixels = dcmread(tmp_path / "seg.dcm").pixel_array
    assert pixels.shape == (SLICES, ROWS, COLUMNS)
    assert not pixels.any()


def test_parametric_map_holds_the_values_themselves(tmp_path):
    paths = write_series(tmp_path / "source")
    path = write("parametric map", tmp_path, read_source_series(paths))
    read = dcmread(path)
    assert read.pixel_array.dtype == np.float32
    for frame, group in zip(read.pixel_array, read.PerFrameFunctionalGroupsSequence, strict=True):
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        index = [dcmread(p).SOPInstanceUID for p in paths].index(reference.ReferencedSOPInstanceUID)
        np.testing.assert_array_equal(frame, make_map()[..., index].T)
    shared = read.SharedFunctionalGroupsSequence[0]
    mapping = shared.RealWorldValueMappingSequence[0]
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    window = shared.FrameVOILUTSequence[0]
    assert float(window.WindowWidth) == pytest.approx(np.ptp(make_map()), rel=1e-5)
    assert window.VOILUTFunction == "LINEAR_EXACT"


def test_overlay_holds_the_pixels_and_refers_to_its_source(tmp_path):
    paths = write_series(tmp_path / "source")
    path = write("overlay", tmp_path, read_source_series(paths))
    read, image = dcmread(path), dcmread(paths[3])
    assert path.name == "overlay_0004.dcm"
    np.testing.assert_array_equal(read.pixel_array, make_overlay())
    assert read.PhotometricInterpretation == "RGB"
    assert read.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
        assert read[keyword].value == image[keyword].value
    assert read.PatientOrientation == ["L", "P"]


def test_overlays_of_one_source_are_one_series(tmp_path):
    source = read_source_series(write_series(tmp_path / "source"))
    overlays = {4: make_overlay(), 0: make_overlay()[::-1].copy()}
    paths = write_overlay_captures(tmp_path / "out", overlays, source)
    read = [dcmread(path) for path in paths]
    assert [path.name for path in paths] == ["overlay_0001.dcm", "overlay_0005.dcm"]
    assert len({dataset.SeriesInstanceUID for dataset in read}) == 1
    assert len({dataset.SOPInstanceUID for dataset in read}) == 2


def test_figure_of_another_size_has_no_place_in_space(tmp_path):
    source = read_source_series(write_series(tmp_path / "source"))
    (path,) = write_overlay_captures(tmp_path, {0: np.zeros((50, 70, 3), np.uint8)}, source)
    read = dcmread(path)
    assert "ImagePositionPatient" not in read
    assert "FrameOfReferenceUID" not in read
    assert len(read.SourceImageSequence) == 1


# position


@pytest.mark.parametrize("own_measures", [False, True])
def test_multi_frame_source_is_referenced_frame_by_frame(tmp_path, own_measures):
    source_path = write_multiframe(tmp_path / "source.dcm", own_measures=own_measures)
    source = read_source_series([source_path])
    path = write("segmentation", tmp_path, source, affine=affine_of(OBLIQUE))
    segmentation, uid = highdicom.seg.segread(path), dcmread(source_path).SOPInstanceUID
    frames = segmentation.get_pixels_by_source_frame(uid, list(range(1, SLICES + 1)), segment_numbers=[1])[..., 0]
    np.testing.assert_array_equal(frames, (make_map() >= THRESHOLD).transpose(2, 1, 0))
    overlay = dcmread(write("overlay", tmp_path, source))
    assert overlay.SourceImageSequence[0].ReferencedFrameNumber == 4
    np.testing.assert_allclose(overlay.ImagePositionPatient, positions(OBLIQUE)[3], atol=1e-6)


@pytest.mark.parametrize("kind", ["segmentation", "parametric map"])
@pytest.mark.parametrize("name", AXES)
def test_frames_lie_where_the_source_frames_lie(tmp_path, kind, name):
    paths = write_series(tmp_path / "source", axes=AXES[name])
    read = dcmread(write(kind, tmp_path, read_source_series(paths), affine=affine_of(AXES[name])))
    by_uid = {image.SOPInstanceUID: image for image in map(dcmread, paths)}
    assert len(read.PerFrameFunctionalGroupsSequence) == SLICES
    for group in read.PerFrameFunctionalGroupsSequence:
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        image = by_uid.pop(uid)
        assert group.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
    shared = read.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == image.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == image.PixelSpacing
    assert read.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert read.StudyInstanceUID == image.StudyInstanceUID


@pytest.mark.parametrize("name", AXES)
def test_marked_voxel_keeps_its_place_in_the_world(tmp_path, name):
    paths, marked = write_series(tmp_path / "source", axes=AXES[name]), np.zeros((COLUMNS, ROWS, SLICES), np.float32)
    marked[17, 6, 3] = 1
    source, affine = read_source_series(paths[::-1]), affine_of(AXES[name])
    write_segmentation(tmp_path / "seg.dcm", marked, source, threshold=THRESHOLD, affine=affine)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    ((world),) = volume.map_indices_to_reference(np.argwhere(volume.array))
    expected = affine @ [17, 6, 3, 1]
    np.testing.assert_allclose(world, [-expected[0], -expected[1], expected[2]], atol=1e-3)


def test_affine_of_permuted_and_flipped_axes_finds_the_same_frames(tmp_path):
    source, affine = read_source_series(write_series(tmp_path, axes=OBLIQUE)), affine_of(OBLIQUE)
    expected = make_map().transpose(2, 1, 0)
    np.testing.assert_array_equal(frames_on_source(make_map(), source, affine), expected)
    flip = np.array([[0, -1.0, 0, COLUMNS - 1], [0, 0, 1, 0], [-1, 0, 0, SLICES - 1], [0, 0, 0, 1]])
    turned = make_map()[::-1, :, ::-1].transpose(2, 0, 1)  # axes: slice (flipped), column (flipped), row
    np.testing.assert_array_equal(frames_on_source(turned, source, affine @ flip), expected)


def test_files_in_any_order_get_their_own_slices(tmp_path):
    paths, order = write_series(tmp_path), [3, 0, 4, 2, 1]
    frames = frames_on_source(make_map(), read_source_series([paths[k] for k in order]), affine_of(AXIAL))
    np.testing.assert_array_equal(frames, make_map().transpose(2, 1, 0)[order])


def test_tilted_gantry_lies_on_its_sheared_grid(tmp_path):
    origins = positions(AXIAL, shear=0.9)
    paths = write_series(tmp_path, origins=origins)
    frames = frames_on_source(make_map(), read_source_series(paths), affine_of(AXIAL, origins))
    np.testing.assert_array_equal(frames, make_map().transpose(2, 1, 0))


@pytest.mark.parametrize(
    "change",
    [np.diag([1.0, 1.0, 1.1, 1.0]), np.diag([1.02, 1.0, 1.0, 1.0]), np.eye(4) + 3 * np.eye(4, k=3)],
    ids=["other spacing", "other pixels", "moved"],
)
def test_map_of_another_grid_is_refused(tmp_path, change):
    source = read_source_series(write_series(tmp_path))
    with pytest.raises(OutputError, match="is not on the source's grid"):
        frames_on_source(make_map(), source, affine_of(AXIAL) @ change)


def test_series_with_a_gap_is_not_the_grid_of_the_map(tmp_path):
    origins = positions(AXIAL)
    origins[3:] += [0, 0, 2.5]
    source = read_source_series(write_series(tmp_path, origins=origins))
    with pytest.raises(OutputError, match="is not on the source's grid"):
        frames_on_source(make_map(), source, affine_of(AXIAL))


def test_two_frames_at_one_place_are_refused(tmp_path):
    origins = positions(AXIAL)
    source = read_source_series(write_series(tmp_path, origins=origins[[0, 1, 2, 3, 3]]))
    with pytest.raises(OutputError, match="is not on the source's grid"):
        frames_on_source(make_map(), source, affine_of(AXIAL))


def test_affine_without_inverse_is_refused(tmp_path):
    source = read_source_series(write_series(tmp_path))
    with pytest.raises(OutputError, match="cannot be inverted"):
        frames_on_source(make_map(), source, np.zeros((4, 4)))


@pytest.mark.parametrize("shape", [(COLUMNS, ROWS, SLICES - 1), (ROWS, COLUMNS, SLICES), (ROWS, COLUMNS)])
def test_map_of_another_size_is_refused(tmp_path, shape):
    source = read_source_series(write_series(tmp_path))
    with pytest.raises(OutputError, match="does not match the source's grid"):
        frames_on_source(np.zeros(shape, np.float32), source)


def test_map_that_is_not_finite_is_refused(tmp_path):
    source = read_source_series(write_series(tmp_path))
    with pytest.raises(OutputError, match="not finite"):
        frames_on_source(np.full_like(make_map(), np.nan), source)


# images without a position


def test_image_without_a_position_gets_a_segmentation_and_an_overlay(tmp_path):
    source = read_source_series([write_ultrasound(tmp_path / "source.dcm", BurnedInAnnotation="NO")])
    anomaly_map = make_map()[..., 0].T.copy()
    write_segmentation(tmp_path / "seg.dcm", anomaly_map, source, threshold=THRESHOLD)
    np.testing.assert_array_equal(dcmread(tmp_path / "seg.dcm").pixel_array, anomaly_map >= THRESHOLD)
    (path,) = write_overlay_captures(tmp_path, {0: make_overlay()}, source)
    assert dcmread(path).PatientOrientation in (None, "")
    assert dcmread(path).BurnedInAnnotation == "NO"


def test_parametric_map_of_an_image_without_a_position_is_refused(tmp_path):
    source = read_source_series([write_ultrasound(tmp_path / "source.dcm")])
    with pytest.raises(OutputError, match="a parametric map needs source images with position"):
        write_parametric_map(tmp_path / "pm.dcm", make_map()[..., 0].T, source)


def test_cine_without_places_gets_overlays_only(tmp_path):
    source = read_source_series([write_ultrasound(tmp_path / "source.dcm", NumberOfFrames=SLICES)])
    with pytest.raises(OutputError, match="a segmentation of several frames needs"):
        write("segmentation", tmp_path, source)
    assert dcmread(write("overlay", tmp_path, source)).SourceImageSequence[0].ReferencedFrameNumber == 4


# what must not travel


@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_patient_travels(tmp_path, kind, multiframe):
    paths = [write_multiframe(tmp_path / "s.dcm")] if multiframe else write_series(tmp_path / "source")
    path = write(kind, tmp_path / "out", read_source_series(paths))
    read, private = dcmread(path), set(PRIVATE.values())
    assert [element.keyword for element in elements(read) if texts_of(element) & private] == []
    assert not [text for text in texts(read) if "Olive" in text]
    assert not any(element.tag.is_private for element in read.iterall())
    content = path.read_bytes()
    assert [value for value in private if len(value) > 6 and value.encode() in content] == []


def texts_of(element) -> set[str]:
    return {str(part) for part in element.value} if element.VM > 1 else {str(element.value)}


@pytest.mark.parametrize("kind", KINDS)
def test_identifiers_travel_on_request_and_no_others(tmp_path, kind):
    paths = write_series(tmp_path / "source", PatientName="Grün^Zoë", SpecificCharacterSet="ISO_IR 100")
    read = dcmread(write(kind, tmp_path, read_source_series(paths, keep_identifiers=True)))
    assert str(read.PatientName) == "Grün^Zoë"
    kept = {element.keyword for element in elements(read) if texts_of(element) & set(PRIVATE.values())}
    assert kept == {
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyID",
        "ReferringPhysicianName",
    }


# determinism


@pytest.mark.parametrize("kind", KINDS)
def test_same_input_gives_the_same_bytes(tmp_path, kind):
    source = read_source_series(write_series(tmp_path / "source"))
    first, second = (write(kind, tmp_path / name, source).read_bytes() for name in ("a", "b"))
    assert first == second


def test_uids_follow_content_threshold_source_and_time(tmp_path):
    source = read_source_series(write_series(tmp_path / "source"))
    named = read_source_series(write_series(tmp_path / "source"), keep_identifiers=True)
    variants = [
        (make_map(), source, 0.5, None),
        (make_map()[::-1].copy(), source, 0.5, None),
        (make_map(), source, np.nextafter(0.5, 1), None),
        (make_map(), named, 0.5, None),
        (make_map(), source, 0.5, datetime(2026, 5, 4, 3, 2, 1)),
    ]
    uids = set()
    for anomaly_map, series, threshold, created in variants:
        write_segmentation(tmp_path / "seg.dcm", anomaly_map, series, threshold=threshold, created=created)
        read = dcmread(tmp_path / "seg.dcm")
        assert read.SOPInstanceUID.is_valid
        uids |= {read.SOPInstanceUID, read.SeriesInstanceUID}
    assert len(uids) == 2 * len(variants)


@pytest.mark.parametrize("kind", KINDS)
def test_time_is_told_when_it_is_given(tmp_path, kind):
    source = read_source_series(write_series(tmp_path / "source"))
    read = dcmread(write(kind, tmp_path, source, created=datetime(2026, 5, 4, 3, 2, 1)))
    assert (read.ContentDate, read.InstanceCreationDate, read.InstanceCreationTime) == (
        "20260504",
        "20260504",
        "030201",
    )
    undated = dcmread(write(kind, tmp_path, source))
    assert undated.ContentDate == "19000101"
    assert "InstanceCreationDate" not in undated


# errors


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows"])
def test_missing_attribute_is_named_with_the_place_of_the_file(tmp_path, keyword):
    paths = write_series(tmp_path, **{keyword: None})
    with pytest.raises(OutputError, match=f"source image 1 of 5 has no {keyword}"):
        read_source_series(paths)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_incomplete_geometry_is_named(tmp_path, keyword):
    paths = write_series(tmp_path, **{keyword: None})
    with pytest.raises(OutputError, match=f"frame 1 of the source has no valid {keyword}"):
        read_source_series(paths)


@pytest.mark.parametrize("change", [{"PixelSpacing": [0, 1]}, {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}])
def test_impossible_geometry_is_refused(tmp_path, change):
    with pytest.raises(OutputError, match="of the source is invalid"):
        read_source_series(write_series(tmp_path, **change))


def test_positions_without_a_frame_of_reference_are_refused(tmp_path):
    with pytest.raises(OutputError, match="no FrameOfReferenceUID"):
        read_source_series(write_series(tmp_path, FrameOfReferenceUID=None))


def test_multi_frame_source_of_several_orientations_is_refused(tmp_path):
    path = write_multiframe(tmp_path / "source.dcm")
    header = dcmread(path)
    turned = Dataset()
    turned.ImageOrientationPatient = AXIAL.ravel().tolist()
    header.PerFrameFunctionalGroupsSequence[2].PlaneOrientationSequence = [turned]
    header.save_as(path)
    with pytest.raises(OutputError, match="differ in orientation or spacing"):
        read_source_series([path])


def test_multi_frame_source_with_fewer_places_than_frames_is_refused(tmp_path):
    path = write_multiframe(tmp_path / "source.dcm")
    header = dcmread(path)
    header.PerFrameFunctionalGroupsSequence = header.PerFrameFunctionalGroupsSequence[:-1]
    header.save_as(path)
    with pytest.raises(OutputError, match="4 positions for another number of frames"):
        read_source_series([path])


def test_files_of_two_series_are_refused(tmp_path):
    other = write_series(tmp_path / "b", SeriesInstanceUID="1.2.3")
    with pytest.raises(OutputError, match="source image 6 of 6 differs from the first in SeriesInstanceUID"):
        read_source_series([*write_series(tmp_path / "a"), other[0]])


def test_file_given_twice_is_refused(tmp_path):
    paths = write_series(tmp_path)
    with pytest.raises(OutputError, match="source image 2 of 2 is given twice"):
        read_source_series([paths[0], paths[0]])


def test_no_source_is_refused():
    with pytest.raises(OutputError, match="no source image was given"):
        read_source_series([])


@pytest.mark.parametrize("content", [b"", b"no DICOM at all", None])
def test_file_that_is_not_dicom_is_reported_by_its_index(tmp_path, content):
    path = tmp_path / "Olive.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match="source image 1 of 1 cannot be read as DICOM") as caught:
        read_source_series([path])
    assert "Olive" not in str(caught.value)


def test_kind_of_image_that_highdicom_does_not_know_is_refused(tmp_path):
    source = read_source_series(write_series(tmp_path / "source", SOPClassUID="1.2.3.4"))
    with pytest.raises(OutputError, match="highdicom cannot build a Segmentation from these source images"):
        write("segmentation", tmp_path, source)


def test_threshold_must_be_a_number(tmp_path):
    source = read_source_series(write_series(tmp_path / "source"))
    with pytest.raises(OutputError, match="the threshold must be finite, got nan"):
        write_segmentation(tmp_path / "seg.dcm", make_map(), source, threshold=float("nan"))


@pytest.mark.parametrize("overlay", [make_overlay()[..., 0], make_overlay().astype(np.float32)])
def test_overlay_that_is_not_rgb_is_refused(tmp_path, overlay):
    source = read_source_series(write_series(tmp_path / "source"))
    with pytest.raises(OutputError, match="overlays are uint8"):
        write_overlay_captures(tmp_path / "out", {0: overlay}, source)


def test_frame_that_is_not_there_is_refused(tmp_path):
    source = read_source_series(write_series(tmp_path / "source"))
    with pytest.raises(OutputError, match="there is no frame 5: the source has 5"):
        write_overlay_captures(tmp_path / "out", {0: make_overlay(), 5: make_overlay()}, source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_missing_highdicom_is_told_with_its_extra(tmp_path, monkeypatch, kind):
    source, original = read_source_series(write_series(tmp_path / "source")), builtins.__import__

    def without_highdicom(name, *arguments, **keywords):
        if name == "highdicom":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_highdicom)
    with pytest.raises(OutputError, match=r'pip install "mrad-med\[seg\]"'):
        write(kind, tmp_path, source)


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, kind):
    source = read_source_series(write_series(tmp_path / "source"))

    def write_some(dataset, path, **_):
        Path(path).write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", write_some)
    with pytest.raises(OutputError, match=r"cannot write DICOM results .*No space left"):
        write(kind, tmp_path / "out", source)
    assert list((tmp_path / "out").iterdir()) == []


# texts in pixels


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"Modality": "CT"}, ""),
        ({"Modality": "CT", "BurnedInAnnotation": "YES"}, "BurnedInAnnotation YES"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""),
        ({"Modality": "US"}, "does not state"),
        ({"Modality": "ES"}, "does not state"),
        ({"Modality": "SC"}, "does not state"),
    ],
)
def test_texts_in_pixels_are_warned_of(attributes, words):
    header = Dataset()
    header.update(attributes)
    warning = warn_burned_in(header)
    assert words in warning
    assert bool(warning) == bool(words)


def test_warning_is_logged_with_overlays(tmp_path, caplog):
    source = read_source_series([write_ultrasound(tmp_path / "source.dcm")])
    write_overlay_captures(tmp_path, {0: make_overlay()}, source)
    assert "check overlays before you share them" in caplog.text


# another program's opinion


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(tmp_path, kind, multiframe):
    paths = [write_multiframe(tmp_path / "s.dcm")] if multiframe else write_series(tmp_path / "source")
    path = write(kind, tmp_path, read_source_series(paths))
    answer = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert answer, "dciodvfy says at least what kind of object it sees"
    assert [line for line in answer.splitlines() if line.startswith(("Error", "Abort"))] == []
