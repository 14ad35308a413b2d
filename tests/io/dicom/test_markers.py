"""Which texts of a source reach its DICOM results: a marker is planted in every text attribute of the dictionary."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary

from mrad_med.io.dicom.headers import KEPT_IDENTIFIERS, silent
from mrad_med.io.dicom.source import read_source_series
from mrad_med.io.dicom.writer import write_overlay_captures, write_parametric_map, write_segmentation
from tests.dicom_phantoms import AXIAL, COLUMNS, ROWS, SLICES, affine_of, write_multiframe, write_series

MARK = "ZQX"
VALUES = {
    **dict.fromkeys(("LO", "SH", "PN", "LT", "ST", "UT", "UC", "UR"), f"{MARK}text"),
    **dict.fromkeys(("CS", "AE"), f"{MARK}CODE"),
    "DA": "19871203",
    "TM": "112233.445566",
    "DT": "19871203112233",
    "AS": "087Y",
    "UI": "1.2.3.87654321.9",
}
# What a viewer needs of the source: references, geometry and pixels; no text about the patient.
KEPT = {
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("FrameOfReferenceUID", "PhotometricInterpretation"),
}


def markers() -> dict[str, tuple[str, str]]:
    """Return VR and value of every text attribute of an image header, by keyword."""
    return {
        keyword: (vr, VALUES[vr])
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items()
        if vr in VALUES and keyword and not retired and 0x0008 <= tag >> 16 < 0x7FE0 and keyword not in KEPT
    }


def plant(header: Dataset) -> None:
    for keyword, (vr, value) in markers().items():
        header.add_new(keyword, vr, value)
    nested = Dataset()
    for keyword, (vr, value) in list(markers().items())[:200]:
        nested.add_new(keyword, vr, value)
    nested.private_block(0x0015, MARK, create=True).add_new(1, "LO", f"{MARK}private")
    for keyword in ("ReferencedStudySequence", "RequestAttributesSequence", "DerivationImageSequence"):
        setattr(header, keyword, [nested])
    for keyword in ("OtherPatientIDsSequence", "ReferencedPatientSequence", "AnatomicRegionSequence"):
        setattr(header, keyword, [nested])
    header.private_block(0x0013, MARK, create=True).add_new(1, "UT", f"{MARK}private")


def planted(tmp_path: Path, *, multiframe: bool) -> list[Path]:
    paths = [write_multiframe(tmp_path / "s.dcm", axes=AXIAL)] if multiframe else write_series(tmp_path / "source")
    with silent():
        for path in paths:
            header = dcmread(path)
            plant(header)
            for group in header.get("PerFrameFunctionalGroupsSequence", []):
                for item in (group, group.PlanePositionSequence[0], group.FrameContentSequence[0]):
                    for keyword, (vr, value) in list(markers().items())[:200]:
                        item.add_new(keyword, vr, value)
            header.save_as(path)
    return paths


def found_in(dataset: Dataset) -> set[str]:
    wanted = {*VALUES.values()}
    with silent():
        return {
            element.keyword or str(element.tag)
            for element in dataset.iterall()
            if element.VR != "SQ" and (MARK in str(element.value) or str(element.value) in wanted)
        }


def results(folder: Path, paths: list[Path], *, keep: bool) -> list[Dataset]:
    values = np.random.RandomState(0).rand(COLUMNS, ROWS, SLICES).astype(np.float32)
    source, affine = read_source_series(paths, keep_identifiers=keep), affine_of(AXIAL)
    write_segmentation(folder / "seg.dcm", values, source, threshold=0.5, affine=affine)
    write_parametric_map(folder / "map.dcm", values, source, affine=affine)
    captures = write_overlay_captures(folder, {1: np.zeros((ROWS, COLUMNS, 3), np.uint8)}, source, warn=False)
    with silent():
        return [dcmread(path) for path in (folder / "seg.dcm", folder / "map.dcm", *captures)]


def test_markers_are_everywhere_in_the_source(tmp_path):
    """The tests below could not fail otherwise."""
    (path,) = planted(tmp_path, multiframe=True)
    with silent():
        header = dcmread(path)
        assert len(markers()) > 800
        assert found_in(header) >= set(markers())
        assert f"{MARK}private" in str(header)


@pytest.mark.parametrize("multiframe", [False, True])
def test_no_text_of_a_source_reaches_a_result(tmp_path, multiframe, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    paths = planted(tmp_path, multiframe=multiframe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = results(tmp_path, paths, keep=False)
    assert [found_in(dataset) for dataset in written] == [set(), set(), set()]
    captured = capfd.readouterr()
    said = "".join([caplog.text, captured.out, captured.err, *(str(warning.message) for warning in caught)])
    assert not [value for value in (MARK, *VALUES.values()) if value in said]
    for path in tmp_path.glob("*.dcm"):
        if path.name != "s.dcm":
            assert MARK.encode() not in path.read_bytes()


@pytest.mark.parametrize("multiframe", [False, True])
def test_only_the_kept_identifiers_reach_a_result_on_request(tmp_path, multiframe):
    paths = planted(tmp_path, multiframe=multiframe)
    with silent():
        for path in paths:
            header = dcmread(path)
            header.PatientSex = "O"
            header.save_as(path)
    for dataset in results(tmp_path, paths, keep=True):
        assert found_in(dataset) == set(KEPT_IDENTIFIERS) - {"PatientSex"}
        assert dataset.PatientSex == "O"


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({"LossyImageCompression": "01", "LossyImageCompressionRatio": "10"}, "01"),
        ({"LossyImageCompression": MARK, "LossyImageCompressionRatio": "10"}, None),
        ({"LossyImageCompression": "01", "LossyImageCompressionMethod": f"{MARK}METHOD"}, "01"),
        ({"BurnedInAnnotation": f"{MARK}"}, None),
    ],
)
def test_codes_travel_only_where_they_are_terms_of_the_standard(tmp_path, attributes, kept):
    with silent():
        paths = write_series(tmp_path / "source", **attributes)
    for dataset in results(tmp_path, paths, keep=False):
        assert MARK not in str(dataset)
        assert dataset.get("BurnedInAnnotation") in (None, "NO", "YES")
        if kept:
            assert dataset.LossyImageCompression == kept


def test_version_of_pydicom_has_the_whole_dictionary():
    assert len(pydicom.datadict.DicomDictionary) > 5000
