"""Frames of one DICOM file as volumes, images and sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from mrad_med import find_cases
from mrad_med.data.dicom_series import find_series
from mrad_med.data.search import survey
from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.frame_groups import frame_times, group_frames
from mrad_med.io.dicom.frames import DicomFrame, DicomStack, read_dicom_frames
from mrad_med.io.dicom.series import read_series
from mrad_med.io.image import read_image
from tests.small_dicom import item, make_image, write_image

SIDE = 20
AXIAL, SAGITTAL = ("1", "0", "0", "0", "1", "0"), ("0", "1", "0", "0", "0", "-1")


def frames_of(count: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 4096, (count, SIDE, SIDE)).astype(np.uint16)


def group(position, *, orientation=AXIAL, spacing=("1", "1"), thickness="3", **groups) -> pydicom.Dataset:
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=[str(value) for value in position])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=list(orientation))],
        PixelMeasuresSequence=[item(PixelSpacing=list(spacing), SliceThickness=thickness)],
        **groups,
    )


def write_groups(path: Path, groups: list[pydicom.Dataset], **tags) -> Path:
    dataset = make_image(
        frames_of(len(groups)), NumberOfFrames=len(groups), PerFrameFunctionalGroupsSequence=groups, **tags
    )
    return write_image(path, dataset)


def content(**values) -> dict:
    return {"FrameContentSequence": [item(**values)]}


PARTS = {
    "direction": [group((0, 0, z)) for z in range(3)] + [group((-x, 0, 0), orientation=SAGITTAL) for x in range(3)],
    "spacing": [group((0, 0, z)) for z in range(3)] + [group((0, 0, z), spacing=("2", "2")) for z in range(3, 6)],
    "thickness": [group((0, 0, z)) for z in range(3)] + [group((0, 0, z), thickness="5") for z in range(3, 6)],
    "stack": [group((0, 0, z), **content(StackID=str(1 + z // 3))) for z in range(6)],
    "time": [group((0, 0, i % 3), **content(TemporalPositionIndex=1 + i // 3)) for i in range(6)],
    "echo": [group((0, 0, i % 3), MREchoSequence=[item(EffectiveEchoTime=10.0 + i // 3)]) for i in range(6)],
    "diffusion": [group((0, 0, i % 3), MRDiffusionSequence=[item(DiffusionBValue=i // 3)]) for i in range(6)],
    "dimension": [group((0, 0, i % 3), **content(DimensionIndexValues=[1 + i % 3, 1 + i // 3])) for i in range(6)],
}


@pytest.mark.parametrize("name", PARTS)
def test_frames_that_differ_are_separate_volumes(tmp_path, name):
    path = write_groups(tmp_path / "a.dcm", PARTS[name])
    with pytest.raises(ImageFileError, match=r"its 6 frames differ in .* and form 2 volumes or images; list them with"):
        read_image(path)
    cases = find_cases(tmp_path, keep_identifiers=True)
    assert [case["case_id"] for case in cases] == ["a/part_1", "a/part_2"]
    assert [case["image"] for case in cases] == [DicomStack(str(path), (0, 1, 2)), DicomStack(str(path), (3, 4, 5))]
    first, second = find_series(tmp_path)
    assert first.case_id != second.case_id
    for case, series, numbers in zip(cases, (first, second), ((0, 1, 2), (3, 4, 5)), strict=True):
        image = read_image(case["image"])
        np.testing.assert_array_equal(image.numpy()[0], frames_of(6)[list(numbers)].transpose(2, 1, 0))
        np.testing.assert_array_equal(read_series(series).numpy(), image.numpy())
        place = [float(value) for value in PARTS[name][numbers[0]].PlanePositionSequence[0].ImagePositionPatient]
        np.testing.assert_allclose(image.affine.numpy()[:3, 3], np.array([-1, -1, 1]) * place)


def test_two_attributes_together_separate_volumes(tmp_path):
    groups = [
        group((0, 0, z), MREchoSequence=[item(EffectiveEchoTime=float(echo))], **content(TemporalPositionIndex=time))
        for echo in (1, 2)
        for time in (1, 2)
        for z in range(3)
    ]
    write_groups(tmp_path / "a.dcm", groups)
    assert [case["image"].frames for case in find_cases(tmp_path, keep_identifiers=True)] == [
        (0, 1, 2),
        (3, 4, 5),
        (6, 7, 8),
        (9, 10, 11),
    ]


def test_localizer_with_one_frame_in_each_direction_is_three_images(tmp_path):
    groups = [group((0, 0, 0)), group((0, 0, 0), orientation=SAGITTAL), group((0, 0, 9), spacing=("2", "2"))]
    write_groups(tmp_path / "a.dcm", groups)
    cases = find_cases(tmp_path, keep_identifiers=True)
    assert [read_image(case["image"]).shape for case in cases] == [(1, SIDE, SIDE)] * 3


def test_repeated_positions_without_an_attribute_are_refused_in_words(tmp_path):
    path = write_groups(tmp_path / "a.dcm", [group((0, 0, z)) for z in (0, 1, 1, 2)])
    found = survey(tmp_path, keep_identifiers=True)
    assert found.remarks == {"a": "1 slice(s) at the position of another"}
    with pytest.raises(ImageFileError, match=r"cannot form one volume: 1 slice\(s\) at the position of another"):
        read_image(path)


def test_volume_of_one_file_costs_no_other_when_it_has_a_gap(tmp_path):
    groups = [group((0, 0, z), **content(StackID="1")) for z in (0, 1, 5)]
    write_groups(tmp_path / "a.dcm", groups + [group((0, 0, z), **content(StackID="2")) for z in range(3)])
    broken, whole = find_cases(tmp_path, keep_identifiers=True)
    with pytest.raises(ImageFileError, match=r"cannot form one volume: 1 gap\(s\)"):
        read_image(broken["image"])
    assert read_image(whole["image"]).shape == (1, SIDE, SIDE, 3)


def test_cine_is_listed_frame_by_frame_with_its_times(tmp_path):
    path = write_image(tmp_path / "us.dcm", make_image(frames_of(4), NumberOfFrames=4, FrameTime="40"))
    cases = find_cases(tmp_path, keep_identifiers=True)
    assert [case["image"] for case in cases] == [DicomFrame(str(path), i, 0.04 * i) for i in range(4)]
    assert [case["case_id"] for case in cases] == [f"us/frame_{i}" for i in range(4)]
    assert {case["study"] for case in cases} == {"us"}
    assert len(find_cases(tmp_path, keep_identifiers=True, frames_per_second=12.5)) == 2
    with pytest.raises(ImageFileError, match="its 4 frames do not form a volume"):
        read_image(path)


@pytest.mark.parametrize(
    ("tags", "times"),
    [
        ({"FrameTime": "40"}, [0, 0.04, 0.08]),
        ({"FrameTimeVector": ["0", "30", "50"]}, [0, 0.03, 0.08]),
        ({"FrameTimeVector": ["0", "30"]}, [None] * 3),
        ({"FrameTime": "0"}, [None] * 3),
        ({}, [None] * 3),
    ],
)
def test_times_of_frames_are_those_of_the_header(tags, times):
    found = frame_times(make_image(frames_of(3), NumberOfFrames=3, **tags))
    assert found == [None if time is None else pytest.approx(time) for time in times]


def test_volume_without_a_place_says_so(tmp_path):
    tags = {"NumberOfFrames": 3, "PixelSpacing": ["1", "1"], "SpacingBetweenSlices": "4", "SliceThickness": "9"}
    write_image(tmp_path / "a.dcm", make_image(frames_of(3), **tags))
    (case,) = find_cases(tmp_path, keep_identifiers=True)
    image = read_image(case["image"])
    np.testing.assert_array_equal(image.affine, np.diag([-1, -1, 4, 1]))
    assert image.meta["has_position"] is False
    assert "place and direction are unknown" in survey(tmp_path, keep_identifiers=True).remarks["a"]


def test_siemens_mosaic_is_refused_by_name(tmp_path):
    path = write_image(tmp_path / "a.dcm", make_image(frames_of(1)[0], ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]))
    with pytest.raises(ImageFileError, match=r"Siemens mosaic, .*; convert it to NIfTI with dcm2niix"):
        read_image(path)
    assert "dcm2niix" in survey(tmp_path, keep_identifiers=True).remarks["a"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((0, 1), "do not form one volume"),
        ((7,), "do not form one volume"),
        ((), "distinct numbers"),
        ((1, 1), "distinct"),
    ],
)
def test_frames_that_are_no_volume_of_the_file_are_refused(tmp_path, frames, message):
    path = write_groups(tmp_path / "a.dcm", PARTS["stack"])
    with pytest.raises(ImageFileError, match=f"{message}.*; list them with find_cases"):
        read_dicom_frames(DicomStack(str(path), frames))


def test_missing_file_of_frames_is_refused(tmp_path):
    with pytest.raises(ImageFileError, match="there is no such file"):
        read_dicom_frames(DicomFrame(str(tmp_path / "none.dcm"), 0, None))


def test_groups_keep_the_order_of_the_file():
    dataset = make_image(frames_of(3), NumberOfFrames=3, PerFrameFunctionalGroupsSequence=PARTS["stack"][2::-1])
    (found,) = group_frames(dataset)
    assert found.frames == (0, 1, 2)
    np.testing.assert_array_equal(found.planes.positions[:, 2], [2, 1, 0])
