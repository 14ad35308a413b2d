"""What pydicom says of invalid values, and that none of it gets out: they may be a name in the wrong place."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest

from mrad_med import CaseResult, ResultWriter, find_cases
from mrad_med.data import find_series
from mrad_med.errors import ImageFileError, OutputError, UnfitSourceError
from mrad_med.io import (
    DicomReader,
    read_image,
    read_series,
    read_source_series,
    warn_burned_in,
    write_overlay_captures,
    write_parametric_map,
    write_segmentation,
)
from mrad_med.io.dicom.headers import quiet, read_header, silent
from mrad_med.io.dicom.series import read_slice
from mrad_med.io.dicom.source import burned_in_warning
from mrad_med.results.output_names import DEFAULT_OUTPUTS
from mrad_med.results.outputs import OUTPUTS
from tests.dicom_phantoms import COLUMNS, ROWS, SLICES, write_multiframe, write_series

SECRET = "Beeblebrox"
TOO_LONG = SECRET * 8  # of names, numbers and texts, which may have 16 or 64 characters
INVALID = {
    **dict.fromkeys(("PatientBirthDate", "StudyDate", "StudyTime", "SeriesDate"), SECRET),
    **dict.fromkeys(("AcquisitionDate", "ContentDate", "PatientSex"), SECRET),
    **dict.fromkeys(("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID"), TOO_LONG),
    **dict.fromkeys(("ReferringPhysicianName", "BurnedInAnnotation"), TOO_LONG),
    "PositionReferenceIndicator": SECRET,
}
MAP = np.random.RandomState(0).rand(COLUMNS, ROWS, SLICES).astype(np.float32)
# highdicom refuses to write these where they are kept and are not what they should be.
VALID = {"PatientBirthDate": "19520314", "StudyDate": "20250917", "StudyTime": "081522", "PatientSex": "F"}


def write_invalid(folder: Path, **changes) -> list[Path]:
    with silent():
        return write_series(folder, **{**INVALID, **changes})


@contextmanager
def nothing_quoted(caplog, capfd) -> Iterator[None]:
    """Check that no warning, log, output or error quotes a value."""
    caplog.set_level(logging.DEBUG)
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (ImageFileError, OutputError) as error:
            said += [str(error), str(error.__cause__)]
    captured = capfd.readouterr()
    said += [str(warning.message) for warning in caught]
    assert SECRET not in "".join([*said, caplog.text, captured.out, captured.err])


def test_reading_such_a_header_plainly_would_quote_it(tmp_path, caplog):
    """The test below could not fail otherwise."""
    (path, *_) = write_invalid(tmp_path, FrameOfReferenceUID=TOO_LONG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        str(pydicom.dcmread(path))
    assert SECRET in "".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("keep", [False, True])
def test_no_function_quotes_an_invalid_value(tmp_path, caplog, capfd, keep):
    paths = write_invalid(tmp_path / "source", **(VALID if keep else {}))
    overlay = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    with nothing_quoted(caplog, capfd):
        (series,) = find_series(tmp_path / "source")
        assert repr(series).count("Path(") == SLICES
        assert read_slice(paths[0]).size == (COLUMNS, ROWS)
        assert read_series(series).shape == read_image([str(path) for path in paths]).shape
        assert DicomReader().get_data(DicomReader().read(paths[0]))[0].shape == (COLUMNS, ROWS)
        assert burned_in_warning(paths[0]) == warn_burned_in(read_header(paths[0])) == ""
        source = read_source_series(paths, keep_identifiers=keep)
        repr(source)
        assert source.place(1).PatientOrientation == ["L", "P"]
        write_segmentation(tmp_path / "seg.dcm", MAP, source, threshold=0.5)
        write_parametric_map(tmp_path / "map.dcm", MAP, source)
        written = write_overlay_captures(tmp_path, {0: overlay}, source)
    for path in (*written, tmp_path / "seg.dcm", tmp_path / "map.dcm"):
        assert (b"\x10\x00\x10\x00PN" + TOO_LONG.encode() in without_lengths(path)) == keep


def without_lengths(path: Path) -> bytes:
    """Return a file without the two bytes of the length of its patient's name."""
    start, name, rest = path.read_bytes().partition(b"\x10\x00\x10\x00PN")
    return start + name + rest[2:]


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_name_in_place_of_a_uid_reaches_no_result(tmp_path, caplog, capfd, keyword):
    paths = write_invalid(tmp_path / "source", **{keyword: SECRET})
    with nothing_quoted(caplog, capfd):
        if keyword == "FrameOfReferenceUID":
            source = read_source_series(paths)
            with pytest.raises(OutputError, match="have no FrameOfReferenceUID; export them again"):
                write_segmentation(tmp_path / "seg.dcm", MAP, source, threshold=0.5)
            (path,) = write_overlay_captures(tmp_path, {0: np.zeros((ROWS, COLUMNS, 3), np.uint8)}, source)
            assert SECRET.encode() not in path.read_bytes()
        else:
            with pytest.raises(UnfitSourceError, match=f"source image 1 of 5 has no {keyword}, so results cannot"):
                read_source_series(paths)


def test_refusal_of_an_invalid_value_that_would_be_kept_does_not_quote_it(tmp_path, caplog, capfd):
    paths = write_invalid(tmp_path / "source")
    with nothing_quoted(caplog, capfd):
        source = read_source_series(paths, keep_identifiers=True)
        with pytest.raises(OutputError, match=r"highdicom cannot build a Segmentation .*\(ValueError\)") as refusal:
            write_segmentation(tmp_path / "seg.dcm", MAP, source, threshold=0.5)
    assert SECRET not in str(refusal.value)
    assert refusal.value.__suppress_context__  # highdicom's error quotes it


@pytest.mark.parametrize("keep", [False, True])
def test_no_result_of_a_run_quotes_an_invalid_value(tmp_path, caplog, capfd, keep):
    write_invalid(tmp_path / "source", **(VALID if keep else {}))
    with nothing_quoted(caplog, capfd):
        (case,) = find_cases(tmp_path / "source", keep_identifiers=keep)
        affine = read_image(case["image"]).affine.numpy()
        result = CaseResult(case["case_id"], case["image"], 0.5, MAP, affine)
        outputs = [name for name, output in OUTPUTS.items() if output.suits(result)]
        assert {*DEFAULT_OUTPUTS["volume"], "seg", "parametric-map", "capture"} <= set(outputs)
        writer = ResultWriter(tmp_path / "out", write=outputs, threshold=0.2, keep_identifiers=keep)
        writer.write(result)
        writer.finish()
    assert writer.shortfalls == []
    tables = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert len(tables) == 3
    for path in tables:
        assert SECRET not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_geometry_that_is_a_name_is_refused_without_being_quoted(tmp_path, caplog, capfd, keyword):
    paths = write_series(tmp_path)
    path = paths[0]
    marker, content = b"DS", path.read_bytes()
    tag = pydicom.datadict.tag_for_keyword(keyword)
    start = content.index((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + marker) + 8
    path.write_bytes(content[:start] + SECRET[:5].encode() + content[start + 5 :])
    with nothing_quoted(caplog, capfd):
        with pytest.raises(
            UnfitSourceError, match=r"source image 1 of 5 cannot be read as DICOM|has no valid"
        ) as error:
            read_source_series(paths)
        assert SECRET[:5] not in str(error.value) + str(error.value.__cause__)
        with pytest.raises(ImageFileError) as refusal:
            read_series(paths)
        assert SECRET[:5] not in str(refusal.value) + str(refusal.value.__cause__)


def test_values_in_the_groups_of_frames_are_not_quoted(tmp_path, caplog, capfd):
    path = write_multiframe(tmp_path / "a.dcm")
    header = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        for group in header.PerFrameFunctionalGroupsSequence:
            group.FrameContentSequence[0].FrameComments = SECRET * 1100  # more than LT holds
            group.PlanePositionSequence[0].PositionReferenceIndicator = TOO_LONG
        header.save_as(path)
    with nothing_quoted(caplog, capfd):
        source = read_source_series([path])
        write_segmentation(tmp_path / "seg.dcm", np.ones((COLUMNS, ROWS, SLICES), np.float32), source, threshold=0.5)
        assert read_image(path).shape == (1, COLUMNS, ROWS, SLICES)
    assert SECRET.encode() not in (tmp_path / "seg.dcm").read_bytes()


def test_name_of_a_case_is_free_of_time_and_physician(tmp_path):
    paths = write_series(tmp_path / "Quill 081522")
    (case,) = find_cases(paths[0].parents[1])
    assert re.fullmatch(r"study-[0-9a-f]{10}/series-[0-9a-f]{10}", case["case_id"])


def test_errors_are_turned_into_refusals_and_interruptions_are_not(tmp_path):
    with pytest.raises(ImageFileError, match="the header cannot be read; copy") as refusal, quiet("the header"):
        raise KeyError(SECRET)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__
    for kind in (KeyboardInterrupt, MemoryError):
        with pytest.raises(kind), quiet("the header"):
            raise kind
    with pytest.raises(ImageFileError, match="there is no such file"):
        read_header(tmp_path / "none.dcm")
