"""Cases found in folders: nested, badly named, with circular links, of all file types."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import EnhancedSRStorage, RTStructureSetStorage

from mrad_med.data.privacy import Origin, write_key
from mrad_med.data.search import find_cases, survey
from mrad_med.errors import DatasetError, ImageFileError, OutputError
from mrad_med.io.frames import Frame, OverlayVideo, list_frames
from mrad_med.io.image import read_image
from mrad_med.store import make_key
from tests.small_dicom import COLUMNS, ROWS, make_image, write_image, write_series


def fill(root: Path, names: Iterable[str]) -> Path:
    """Make files that only look like images: finding does not open them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")
    return root


def case_ids(root: Path, **options) -> list[str]:
    return [case["case_id"] for case in find_cases(root, **options)]


def found_names(root: Path, **options) -> list[str]:
    return [Path(case["image"]).relative_to(root).as_posix() for case in find_cases(root, **options)]


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("a.png", "a"),
        ("scan.nii.gz", "scan"),
        ("Scan.NII.GZ", "Scan"),
        ("day 1.5.jpeg", "day 1.5"),
        ("IM0001", "IM0001"),
        ("anything.xyz", "anything.xyz"),  # given explicitly: the reader will report the problem
    ],
)
def test_file_is_one_case(tmp_path, name, case_id):
    fill(tmp_path, [name])
    assert find_cases(tmp_path / name) == [{"image": str(tmp_path / name), "case_id": case_id, "study": ""}]


def test_folder_may_be_given_as_text(tmp_path):
    fill(tmp_path, ["a.png"])
    assert find_cases(str(tmp_path)) == [{"image": str(tmp_path / "a.png"), "case_id": "a", "study": ""}]


def test_folder_is_searched_to_the_bottom_in_order(tmp_path):
    fill(tmp_path, ["b.png", "a.png", "visit 2/x.jpg", "visit 1/deep/er/y.tif", "visit 1/z.bmp"])
    assert case_ids(tmp_path) == ["a", "b", "visit 1/z", "visit 1/deep/er/y", "visit 2/x"]


@pytest.mark.parametrize(
    "name", ["a.png", "a.JPG", "a.jpeg", "a.bmp", "a.tif", "a.TIFF", "a.webp", "a.gif", "a.dcm", "a.ima", "a.nii"]
)
def test_images_are_known_by_their_suffix(tmp_path, name):
    fill(tmp_path, [name, "notes.txt", "table.csv", "archive.gz", "png"])
    assert found_names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.2.5"])
def test_dicom_without_a_suffix_is_found_by_its_first_bytes(tmp_path, name):
    fill(tmp_path, ["README", "1.2.3.txt"])
    shutil.copyfile(get_testdata_file("CT_small.dcm"), tmp_path / name)
    assert found_names(tmp_path) == [name]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    fill(tmp_path, ["a.png", ".b.png", ".partial-7-c.png", ".cache/d.png", "sub/.e/f.png"])
    assert case_ids(tmp_path) == ["a"]


def test_hidden_root_is_searched_all_the_same(tmp_path):
    fill(tmp_path / ".data", ["a.png"])
    assert case_ids(tmp_path / ".data") == ["a"]


def test_folder_named_like_an_image_is_a_folder(tmp_path):
    fill(tmp_path, ["b.png/a.jpg"])
    assert case_ids(tmp_path) == ["b.png/a"]


def test_names_with_spaces_and_characters_of_any_script_are_kept(tmp_path):
    names = ["Fall 3 (neu).png", "Größe.png", "病例.png", "50% $x$.png"]
    fill(tmp_path, names)
    assert sorted(case_ids(tmp_path)) == sorted(name.removesuffix(".png") for name in names)


def test_volumes_lose_both_suffixes(tmp_path):
    fill(tmp_path, ["v1.0/brain.nii.gz", "v1.0/knee.nii"])
    assert case_ids(tmp_path) == ["v1.0/brain", "v1.0/knee"]


def test_names_that_differ_only_in_the_suffix_keep_it(tmp_path):
    fill(tmp_path, ["a.png", "a.jpg", "b.png", "c/a.png"])
    assert case_ids(tmp_path) == ["a_jpg", "a_png", "b", "c/a"]


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a.jpg", "a_png.bmp"],
        ["x.y/a.png", "x.y/a.jpg", "x_y/a.png", "x_y/a.jpg"],
        ["a.nii", "a.nii.gz", "a.png", "a_nii_gz.png", "a_nii.gif"],
        ["a.b.png", "a.b.jpg", "a_b.png", "a_b.jpg"],
    ],
)
def test_no_two_cases_share_a_name(tmp_path, names):
    """Output files are named by case id: one would overwrite the other."""
    ids = case_ids(fill(tmp_path, names))
    assert len(set(ids)) == len(ids) == len(names)


def test_output_folder_is_not_searched(tmp_path):
    fill(tmp_path, ["a.png", "out/overlays/a.png", "output/b.png", "sub/out/c.png"])
    assert case_ids(tmp_path, exclude=tmp_path / "out") == ["a", "output/b", "sub/out/c"]
    assert case_ids(tmp_path, exclude=tmp_path / "sub" / ".." / "out") == ["a", "output/b", "sub/out/c"]
    assert len(case_ids(tmp_path, exclude=tmp_path / "not made yet")) == 4


def test_output_folder_is_known_by_any_of_its_names(tmp_path, monkeypatch):
    fill(tmp_path / "study", ["a.png", "out/overlays/a.png"])
    (tmp_path / "link").symlink_to(tmp_path / "study", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "study")
    for root, exclude in ((".", tmp_path / "study" / "out"), (tmp_path / "study", "out"), (tmp_path / "link", "out")):
        assert case_ids(root, exclude=exclude) == ["a"]


def test_link_to_a_parent_folder_is_not_followed(tmp_path):
    fill(tmp_path, ["sub/a.png"])
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert case_ids(tmp_path) == ["sub/a"]


def test_link_to_a_file_is_a_case(tmp_path):
    fill(tmp_path, ["elsewhere/a.png", "study/b.png"])
    (tmp_path / "study" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert case_ids(tmp_path / "study") == ["b", "c"]


def test_links_that_lead_nowhere_do_not_stop_the_search(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert case_ids(tmp_path) == ["a"]


@pytest.mark.parametrize("names", [[], ["notes.txt", "sub/table.csv", ".hidden.png"]])
def test_folder_without_images_is_refused(tmp_path, names):
    fill(tmp_path, names)
    with pytest.raises(
        DatasetError, match=r"no image below .*; supported are photographs \(png, jpg, tif, \.\.\.\), DICOM .* NIfTI"
    ):
        find_cases(tmp_path)


def test_missing_path_is_refused_by_its_name(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no file or folder .*nowhere"):
        find_cases(tmp_path / "nowhere")


def test_index_of_an_export_disk_is_no_case(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "1.2.840.7")
    assert [case["case_id"] for case in find_cases(tmp_path, keep_identifiers=True)] == ["1.2.840.7", "a"]


# DICOM


DAMAGED = b"\x08\0\0\0" + bytes(100)  # may be DICOM without preamble


def write_slices(folder: Path, count: int = 4, **options) -> list[Path]:
    values = np.arange(ROWS * COLUMNS * count).reshape(ROWS, COLUMNS, count)
    return write_series(folder, values, **{"StudyInstanceUID": "1.2.3", **options})


def write_object(path: Path, sop_class: str, modality: str) -> Path:
    """A DICOM object without an image."""
    dataset = make_image(np.zeros((ROWS, COLUMNS), np.uint8), Modality=modality, StudyDate="20250917")
    dataset.SOPClassUID = sop_class
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]
    return write_image(path, dataset)


def write_colors(folder: Path, count: int = 3, **tags) -> list[Path]:
    colors = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "SeriesInstanceUID": "1.2.3.4"}
    return [
        write_image(
            folder / f"{index}.dcm",
            make_image(colors, photometric="RGB", ImagePositionPatient=[0, 0, index], **{**place, **tags}),
        )
        for index in range(count)
    ]


def code(path: Path) -> str:
    """Return the code of a DICOM file: of its SOP instance UID."""
    return make_key(str(pydicom.dcmread(path).SOPInstanceUID))[:10]


def content_code(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


STUDY = f"study-{make_key('1.2.3')[:10]}"  # as `write_slices` writes it


def texts(paths: Iterable[Path]) -> list[str]:
    return [str(path) for path in paths]


@pytest.mark.parametrize("seed", range(3))
def test_slices_of_a_series_are_one_case_in_the_order_of_their_places(tmp_path, seed, caplog):
    names = [f"{name}.dcm" for name in "abcdef"]
    random.Random(seed).shuffle(names)
    paths = write_slices(tmp_path / "ct", 6, names=names)
    cases = find_cases(tmp_path, keep_identifiers=True)
    assert cases == [{"image": texts(paths), "case_id": f"ct/series_3-{code(paths[0])}", "study": STUDY}]
    assert read_image(cases[0]["image"]).shape == (1, COLUMNS, ROWS, 6)
    assert caplog.messages == []


def test_series_of_one_folder_are_separate_cases(tmp_path):
    first = write_slices(tmp_path, 3, names=["1", "3", "5"])
    second = write_slices(tmp_path, 4, names=["2", "4", "6", "8"])
    other = write_slices(tmp_path, 2, names=["7", "9"], SeriesNumber=8)
    assert find_cases(tmp_path, keep_identifiers=True) == [
        {"image": texts(first), "case_id": f"series_3-{code(first[0])}", "study": STUDY},
        {"image": texts(second), "case_id": f"series_3-{code(second[0])}", "study": STUDY},
        {"image": texts(other), "case_id": f"series_8-{code(other[0])}", "study": STUDY},
    ]


def test_series_across_folders_is_one_case(tmp_path):
    write_slices(tmp_path / "x", 4, uid="1.2.3.4")
    for index in (1, 3):
        (tmp_path / "y").mkdir(exist_ok=True)
        (tmp_path / "x" / f"slice00{index}.dcm").rename(tmp_path / "y" / f"slice00{index}.dcm")
    places = ["x/slice000.dcm", "y/slice001.dcm", "x/slice002.dcm", "y/slice003.dcm"]
    name = f"x/series_3-{code(tmp_path / places[0])}"
    assert find_cases(tmp_path, keep_identifiers=True) == [
        {"image": texts(tmp_path / place for place in places), "case_id": name, "study": STUDY}
    ]


def test_copies_of_slices_are_skipped_and_reported(tmp_path, caplog):
    paths = write_slices(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy of a")
    name = f"a/series_3-{code(paths[0])}"
    assert find_cases(tmp_path, keep_identifiers=True) == [{"image": texts(paths), "case_id": name, "study": STUDY}]
    assert caplog.messages == [f"{name}: 4 copies of slices skipped"]


def test_series_with_a_gap_is_separate_images_unless_not_strict(tmp_path, caplog):
    paths = write_slices(tmp_path, 6)
    paths.pop(2).unlink()
    cases = find_cases(tmp_path, keep_identifiers=True)
    assert [case["image"] for case in cases] == texts(paths)
    assert [case["case_id"] for case in cases] == [path.stem for path in paths]
    assert {case["study"] for case in cases} == {STUDY}
    gap = "1 gap(s) between slices (up to 4 mm, usually 2 mm), about 1 slice(s) missing"
    assert caplog.messages == [
        f"slice000 and 4 more: one of 5 slices that cannot form a volume and are scored separately; {gap}"
    ]
    caplog.clear()
    (case,) = find_cases(tmp_path, strict=False, keep_identifiers=True)
    assert case["image"] == texts(paths)
    assert caplog.messages == [f"series_3-{code(paths[0])}: {gap}"]
    assert read_image(case["image"], strict=False).shape == (1, COLUMNS, ROWS, 5)


@pytest.mark.parametrize("strict", [True, False])
def test_slices_that_no_setting_makes_a_volume_are_images(tmp_path, strict, caplog):
    write_slices(tmp_path, 3, uid="1.2.3.4")
    write_slices(tmp_path, 3, uid="1.2.3.4", names=["x", "y", "z"], origin=(0, 0, 6), spacing=(1.0, 1.5))
    assert case_ids(tmp_path, strict=strict, keep_identifiers=True) == [
        "slice000",
        "slice001",
        "slice002",
        "x",
        "y",
        "z",
    ]
    assert caplog.messages == [
        "slice000 and 5 more: one of 6 slices that cannot form a volume and are scored separately; "
        "different pixel spacings in one series"
    ]
    for case in find_cases(tmp_path, strict=strict, keep_identifiers=True):
        assert read_image(case["image"], strict=strict).shape == (1, COLUMNS, ROWS)


@pytest.mark.parametrize("strict", [True, False])
def test_slices_with_colors_are_images(tmp_path, strict):
    paths = write_colors(tmp_path)
    assert [case["image"] for case in find_cases(tmp_path, strict=strict, keep_identifiers=True)] == texts(paths)


def test_images_without_position_get_no_remark(tmp_path, caplog):
    for index in range(3):
        dataset = make_image(np.zeros((ROWS, COLUMNS), np.uint8), Modality="US", SeriesInstanceUID="1.2.3.4")
        write_image(tmp_path / f"{index}.dcm", dataset)
    assert case_ids(tmp_path, keep_identifiers=True) == ["0", "1", "2"]
    assert caplog.messages == []


def test_objects_that_are_not_images_are_skipped_with_the_reason(tmp_path, caplog):
    paths = write_slices(tmp_path / "a")
    for index in range(2):
        write_object(tmp_path / "a" / f"contours{index}.dcm", RTStructureSetStorage, "RTSTRUCT")
    write_object(tmp_path / "a" / "report", EnhancedSRStorage, "SR")
    found = survey(tmp_path, keep_identifiers=True)
    assert [case["image"] for case in found.cases] == [texts(paths)]
    assert [item.case_id for item in found.skipped] == ["a/contours0", "a/contours1", "a/report"]
    found.warn()
    assert caplog.messages == [
        "a/contours0 and 1 more: skipped: this DICOM object is a radiotherapy structure set, not an image; "
        "leave it out",
        "a/report: skipped: this DICOM object is a structured report, not an image; leave it out",
    ]


def test_folder_of_nothing_but_reports_is_refused(tmp_path):
    write_object(tmp_path / "report", EnhancedSRStorage, "SR")
    with pytest.raises(DatasetError, match="has no image to score: this DICOM object is a structured repo"):
        find_cases(tmp_path, keep_identifiers=True)


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])
def test_index_of_an_export_disk_stands_for_its_folder(tmp_path, name, monkeypatch):
    paths = write_slices(tmp_path / "disk" / "ct")
    (tmp_path / "disk" / name).write_bytes(b"\0" * 128 + b"DICM")
    assert find_cases(tmp_path / "disk" / name, keep_identifiers=True) == find_cases(
        tmp_path / "disk", keep_identifiers=True
    )
    monkeypatch.chdir(tmp_path / "disk")
    assert case_ids(name, keep_identifiers=True) == [f"ct/series_3-{code(paths[0])}"]


def test_damaged_slice_is_a_case_of_its_own_that_the_reader_refuses(tmp_path):
    first, path, *_ = write_slices(tmp_path, 4)
    path.write_bytes(DAMAGED)
    found = survey(tmp_path, strict=False, keep_identifiers=True)
    assert [case["case_id"] for case in found.cases] == [f"series_3-{code(first)}", "slice001"]
    assert found.descriptions["slice001"] == "DICOM, damaged"
    assert found.remarks["slice001"].startswith("the DICOM header cannot be read")
    with pytest.raises(ImageFileError, match="copy or export the file again"):
        read_image(found.cases[1]["image"])


def test_each_case_has_a_description(tmp_path):
    paths = write_slices(tmp_path / "ct", 3, spacing=(0.5, 0.75))
    write_colors(tmp_path / "us", 1, Modality="US", NumberOfFrames=1)
    write_image(tmp_path / "frames.dcm", make_image(np.zeros((4, ROWS, COLUMNS), np.uint8), NumberOfFrames=4))
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    fill(tmp_path, ["v.nii"])
    assert survey(tmp_path, keep_identifiers=True).descriptions == {
        f"ct/series_3-{code(paths[0])}": f"DICOM CT 3 slices of {COLUMNS} x {ROWS}, axial, 0.75 x 0.5 x 2 mm",
        "us/0": f"DICOM US image of {COLUMNS} x {ROWS}, axial, 1 x 1 x 1 mm",
        **{f"frames/frame_{index}": f"DICOM frame of {COLUMNS} x {ROWS}" for index in range(4)},
        "a": "photograph",
        "v": "volume",
    }


def test_studies_have_codes_of_their_own_and_only_where_they_are_stated(tmp_path):
    uids = {"a": "1.2.9", "b": "1.2.1", "c": "1.2.9", "d": ""}
    for name, uid in uids.items():
        write_slices(tmp_path / name, StudyInstanceUID=uid)
    fill(tmp_path, ["e.png"])
    studies = {case["case_id"].split("/")[0]: case["study"] for case in find_cases(tmp_path, keep_identifiers=True)}
    assert studies == {**{name: f"study-{make_key(uid)[:10]}" if uid else "" for name, uid in uids.items()}, "e": ""}
    shutil.rmtree(tmp_path / "a")
    assert {case["case_id"].split("/")[0]: case["study"] for case in find_cases(tmp_path, keep_identifiers=True)}[
        "b"
    ] == studies["b"]


def test_cases_of_all_kinds_are_in_the_order_of_their_files(tmp_path):
    paths = write_slices(tmp_path / "b", 3, names=["m", "a", "z"])
    write_object(tmp_path / "b" / "n", EnhancedSRStorage, "SR")
    write_colors(tmp_path / "c", 2)
    fill(tmp_path, ["z.png", "a/x.nii", "b/b.png", "d/y.dcm"])
    assert case_ids(tmp_path, keep_identifiers=True) == [
        "z",
        "a/x",
        f"b/series_3-{code(paths[0])}",
        "b/b",
        "c/0",
        "c/1",
        "d/y",
    ]


# patient identifiers: if a run holds DICOM, no part of a path is in a name

PATIENT = {"PatientName": "Fingal^Olive", "PatientID": "73519", "StudyDate": "20250917", "PatientBirthDate": "19520314"}
IDENTIFYING = ("fingal", "olive", "73519", "2025-09-17", "20250917", "19520314", "14.03.1952", "olive1")


@pytest.fixture
def patient_folder(tmp_path) -> Path:
    """Folders as in exports: several types of DICOM files in folders and files named after the patient."""
    root = tmp_path / "export"
    write_slices(root / "Fingal_Olive" / "2025-09-17", uid="1.2.3.1", **PATIENT)
    gap = write_slices(root / "Olive" / "late", 5, uid="1.2.3.2", names=[f"olive{i}" for i in range(5)], **PATIENT)
    gap[2].unlink()
    (root / "73519" / "b").mkdir(parents=True)
    (root / "73519" / "b" / "olive.dcm").write_bytes(DAMAGED)  # without patient identifiers
    write_slices(root / "73519" / "c", 1, uid="1.2.3.4", names=["olive.dcm"], NumberOfFrames=-1, **PATIENT)
    write_object(root / "14.03.1952" / "fingal_report.dcm", EnhancedSRStorage, "SR")
    write_object(root / "14.03.1952" / "fingal_contours.dcm", RTStructureSetStorage, "RTSTRUCT")
    return root


def test_case_ids_are_codes_and_study_is_the_folder(patient_folder):
    found = survey(patient_folder)
    series, late = patient_folder / "Fingal_Olive" / "2025-09-17", patient_folder / "Olive" / "late"
    assert found.names_are_hidden
    assert [case["case_id"] for case in found.cases] == [
        f"dicom-{content_code(patient_folder / '73519' / 'b' / 'olive.dcm')}",
        f"dicom-{content_code(patient_folder / '73519' / 'c' / 'olive.dcm')}",
        f"{STUDY}/series_3-{code(series / 'slice000.dcm')}",
        *(f"{STUDY}/dicom-{code(late / f'olive{index}')}" for index in (0, 1, 3, 4)),
    ]
    assert [Path(case["image"]).name for case in found.cases[3:]] == ["olive0", "olive1", "olive3", "olive4"]
    others = [content_code(path) for path in sorted((patient_folder / "14.03.1952").iterdir())]
    assert [item.case_id for item in found.skipped] == [f"dicom-{other}" for other in others]


def test_neither_log_nor_output_identifies_the_patient(patient_folder, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        names = [case["case_id"] for case in find_cases(patient_folder)]
        find_cases(patient_folder, strict=False)
    out, err = capfd.readouterr()
    log = (caplog.text + out + err).lower()
    assert f"{names[3]} and 3 more: one of 4 slices" in log
    assert not [word for word in IDENTIFYING if word in log]


def test_names_are_kept_on_request(patient_folder):
    found = survey(patient_folder, keep_identifiers=True)
    first = patient_folder / "Fingal_Olive" / "2025-09-17" / "slice000.dcm"
    assert not found.names_are_hidden
    assert [case["case_id"] for case in found.cases] == [
        "73519/b/olive",
        "73519/c/olive",
        f"Fingal_Olive/2025-09-17/series_3-{code(first)}",
        *(f"Olive/late/olive{index}" for index in (0, 1, 3, 4)),
    ]
    assert [item.case_id for item in found.skipped] == ["14.03.1952/fingal_contours", "14.03.1952/fingal_report"]


@pytest.mark.parametrize("kind", ["image", "report", "damaged", "index"])
def test_one_dicom_object_of_any_kind_hides_all_names(tmp_path, kind):
    fill(tmp_path, ["Olive/Fingal.png", "Olive/b.nii"])
    assert case_ids(tmp_path) == ["Olive/Fingal", "Olive/b"]
    folder = tmp_path / "elsewhere" / "deep"
    if kind == "image":
        write_slices(folder)
    elif kind == "report":
        write_object(folder / "a", EnhancedSRStorage, "SR")
    else:
        folder.mkdir(parents=True)
        (folder / ("DICOMDIR" if kind == "index" else "b.dcm")).write_bytes(DAMAGED)
    pixels = hashlib.sha256(b"pixels").hexdigest()[:10]
    assert case_ids(tmp_path)[-2:] == [f"photograph-{pixels}", f"volume-{pixels}"] or case_ids(tmp_path)[:2] == [
        f"photograph-{pixels}",
        f"volume-{pixels}",
    ]
    assert case_ids(tmp_path, keep_identifiers=True)[:2] == ["Olive/Fingal", "Olive/b"]


def test_every_file_type_beside_dicom_has_a_code_of_its_content(tmp_path):
    folder = tmp_path / "Olive"
    paths = write_slices(folder)
    fill(folder, ["Fingal.nii.gz", "al.png"])
    (folder / "al.png").write_bytes(b"other pixels")
    write_gif(folder / "clip of olive.gif", 2)
    for number in (1, 2):
        (folder / f"li_{number}.bmp").write_bytes(b"BM" + bytes([number] * 50))
    names = [case["case_id"] for case in find_cases(tmp_path, sequence_rate=1)]
    sequence = make_key([hashlib.sha256((folder / f"li_{n}.bmp").read_bytes()).hexdigest() for n in (1, 2)])[:10]
    clip = content_code(folder / "clip of olive.gif")
    assert names == [
        f"volume-{content_code(folder / 'Fingal.nii.gz')}",
        f"photograph-{content_code(folder / 'al.png')}",
        f"photograph-{clip}/frame_0",
        f"photograph-{clip}/frame_1",
        f"sequence-{sequence}/frame_0",
        f"sequence-{sequence}/frame_1",
        f"{STUDY}/series_3-{code(paths[0])}",
    ]


def test_series_number_that_may_be_a_date_is_hidden(tmp_path):
    first = write_slices(tmp_path / "a", SeriesNumber=19520314)
    second = write_slices(tmp_path / "b", SeriesNumber=30501)
    assert case_ids(tmp_path) == [f"{STUDY}/series-{code(first[0])}", f"{STUDY}/series_30501-{code(second[0])}"]


# errors


def test_folder_that_cannot_be_listed_is_named_only_on_request(tmp_path, monkeypatch):
    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/Olive"))

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DatasetError, match=r"cannot list .*Olive \(Permission denied\); grant access or leave it out"):
        find_cases(tmp_path, keep_identifiers=True)
    with pytest.raises(
        DatasetError, match=r"^cannot list a folder below the given path \(Permission denied\); gr"
    ) as e:
        find_cases(tmp_path)
    assert e.value.__suppress_context__  # the error of the system names it


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user and return")
@pytest.mark.parametrize("mode", [0o000, 0o444])  # of the second, the files are listed but cannot be accessed
def test_folder_without_access_is_not_named(tmp_path, mode):
    write_slices(tmp_path / "Olive" / "Fingal")
    (tmp_path / "Olive" / "Fingal").chmod(mode)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/") and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(DatasetError, match=r"^cannot list a folder below the given path \(Permission denied\)"):
            find_cases(tmp_path)
    finally:
        os.seteuid(0)
        (tmp_path / "Olive" / "Fingal").chmod(0o755)


def test_link_into_a_folder_without_access_is_not_named(tmp_path, monkeypatch):
    fill(tmp_path, ["olive.png"])

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path) if path.suffix == ".png" else is_file(path))
    with pytest.raises(DatasetError, match=r"^cannot list a folder below the given path \(Permission denied\)"):
        find_cases(tmp_path)


@pytest.mark.parametrize("names", [["report"], ["DICOMDIR"]])
def test_folder_of_no_dicom_image_is_not_named(tmp_path, names):
    for name in names:
        write_object(tmp_path / "Olive" / name, EnhancedSRStorage, "SR")
    with pytest.raises(
        DatasetError, match=r"the given path has no image to score|no image below the given path;"
    ) as error:
        find_cases(tmp_path / "Olive")
    assert "Olive" not in str(error.value)


# the key


def read_key(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_key_lists_the_path_and_the_uids_of_each_name(tmp_path):
    root = tmp_path / "Olive"
    paths = write_slices(root / "ct", 3, uid="1.2.3.1")
    fill(root, ["a.png", "copy.png"])
    write_gif(root / "clip.gif", 2)
    write_object(root / "report", EnhancedSRStorage, "SR")
    found = survey(root)
    key = write_key(tmp_path / "new" / "key.csv", found.origins, outside=tmp_path / "out")
    assert key.stat().st_mode & 0o777 == 0o600
    rows = {row["path"]: (row["case_id"], row["study"], row["files"], row["series_uid"]) for row in read_key(key)}
    pixels, clip = hashlib.sha256(b"pixels").hexdigest()[:10], f"photograph-{content_code(root / 'clip.gif')}"
    assert rows == {
        str(root / "a.png"): (f"photograph-{pixels}", "", "1", ""),
        str(root / "copy.png"): (f"photograph-{pixels}", "", "1", ""),
        str(root / "clip.gif"): (clip, clip, "1", ""),
        str(root / "ct"): (f"{STUDY}/series_3-{code(paths[0])}", STUDY, "3", "1.2.3.1"),
        str(root / "report"): (f"dicom-{content_code(root / 'report')}", "", "1", ""),
    }
    assert {row["study_uid"] for row in read_key(key)} == {"", "1.2.3"}
    assert {case["case_id"].split("/frame")[0] for case in found.cases} <= {name for name, *_ in rows.values()}


def test_key_is_replaced_by_a_newer_key_and_by_nothing_else(tmp_path):
    origins = [Origin("a", "", ("/x/a.png",))]
    write_key(tmp_path / "key.csv", origins)
    (tmp_path / "key.csv").chmod(0o644)
    write_key(tmp_path / "key.csv", [*origins, Origin("b", "", ("/x/=b\u202e.png",))])
    assert (tmp_path / "key.csv").stat().st_mode & 0o777 == 0o600
    assert [row["path"] for row in read_key(tmp_path / "key.csv")] == ["/x/a.png", r"/x/=b\u202e.png"]
    (tmp_path / "notes.csv").write_text("image,label\n", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("notes.csv", "link.csv", "folder"):
        with pytest.raises(OutputError, match="exists and is not a key; choose another name"):
            write_key(tmp_path / name, origins)
    assert (tmp_path / "notes.csv").read_text(encoding="utf-8") == "image,label\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "key.csv", "link.csv", "notes.csv"]


@pytest.mark.parametrize("place", ["out/key.csv", "out/deep/key.csv", "in/../out/key.csv", "link/key.csv"])
def test_key_in_the_folder_of_the_results_is_refused(tmp_path, place):
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(OutputError, match="the key would be in the folder of the results"):
        write_key(tmp_path / place, [], outside=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_key_that_cannot_be_written_is_refused_without_its_path(tmp_path):
    (tmp_path / "Olive").write_bytes(b"")
    with pytest.raises(
        OutputError, match=r"^the key cannot be written \((Not a directory|File exists)\); choose another file$"
    ):
        write_key(tmp_path / "Olive" / "key.csv", [])


# names do not depend on other cases


def copy_below(root: Path, *names: str, **options) -> dict[str, str]:
    """Return the case ids of some folders of a root, by their first file and frame."""
    for path in root.parent.glob("some"):
        shutil.rmtree(path)
    for name in names:
        shutil.copytree(root / name, root.parent / "some" / name)
    cases = find_cases(root.parent / "some", **options)
    return {_place(case["image"], root.parent / "some"): case["case_id"] for case in cases}


def _place(image, root: Path) -> str:
    first = image[0] if isinstance(image, list) else getattr(image, "path", image)
    return f"{Path(first).relative_to(root)} {image.index if isinstance(image, Frame) else ''}"


@pytest.fixture
def wards(tmp_path) -> Path:
    """Two folders whose names are those of patients, and one that is not, with files of equal names."""
    root = tmp_path / "wards"
    for number, folder in enumerate(("Fingal_Olive", "Quill_Peter", "ward 3")):
        name = folder.replace("_", "^") if "_" in folder else "Rook^Adalbert"
        write_slices(root / folder, 3, StudyInstanceUID=f"1.2.3.{number}", PatientName=name)
        write_slices(root / folder / "again", 3, names=["x", "y", "z"], StudyInstanceUID=f"1.2.3.{number}")
        uids = {"StudyInstanceUID": f"1.2.3.{number}", "SeriesInstanceUID": f"1.2.4.{number}"}
        write_colors(root / folder / "colors", 2, PatientName=name, **uids)
        fill(root, [f"{folder}/{sub}.png" for sub in ("photo", "olive", "s_1", "s_2", "olive_1", "olive_2")])
        for path in (root / folder).glob("*.png"):
            path.write_bytes(f"pixels of {folder} {path.stem}".encode())
        write_gif(root / folder / "clip.gif", 2 + number)
    return root


@pytest.mark.parametrize("options", [{}, {"sequence_rate": 5.0}])
def test_other_cases_change_no_name(wards, options):
    names = [path.name for path in sorted(wards.iterdir())]
    together = copy_below(wards, *names, **options)
    assert len(set(together.values())) == len(together)
    assert not re.search("fingal|quill|olive|ward|colors|again", " ".join(together.values()), re.IGNORECASE)
    for left_out in names:
        rest = copy_below(wards, *(name for name in names if name != left_out), **options)
        expected = {place: name for place, name in together.items() if not place.startswith(left_out)}
        assert rest == expected


def test_renaming_a_folder_changes_no_name(wards):
    before = copy_below(wards, "Fingal_Olive", "Quill_Peter")
    (wards / "Quill_Peter").rename(wards / "1 Quill")
    after = copy_below(wards, "Fingal_Olive", "1 Quill")
    assert sorted(after.values()) == sorted(before.values())


def test_copies_of_one_image_below_two_hidden_folders_are_one_case(tmp_path):
    for folder in ("Olive", "Fingal"):
        write_slices(tmp_path / folder, 2, PatientName="Fingal^Olive", uid=f"1.2.{len(folder)}")
        write_gif(tmp_path / folder / "clip.gif", 2)
    fill(tmp_path, ["Olive/a.png", "Fingal/a.png", "Olive/b.png"])
    found = survey(tmp_path)
    names = [case["case_id"] for case in found.cases]
    pixels = f"photograph-{hashlib.sha256(b'pixels').hexdigest()[:10]}"
    clip = f"photograph-{content_code(tmp_path / 'Olive' / 'clip.gif')}"
    assert [name for name in names if name.startswith("photo")] == [pixels, f"{clip}/frame_0", f"{clip}/frame_1"]
    assert len(names) == 2 + 1 + 2  # series, photograph, frames
    assert sorted(item.case_id for item in found.skipped) == sorted([pixels, pixels, clip])
    assert {item.reason for item in found.skipped} == {
        "another case has the same content and the same hidden name; only that case is kept"
    }
    assert len(survey(tmp_path, keep_identifiers=True).cases) == 2 + 3 + 4


def test_file_without_uids_has_a_code_of_its_content_and_never_of_its_path(tmp_path):
    paths = write_slices(tmp_path / "Olive", 3, PatientName="Fingal^Olive")
    for path in paths:
        dataset = pydicom.dcmread(path)
        del dataset.SOPInstanceUID, dataset.StudyInstanceUID
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        dataset.save_as(path)
    own = content_code(paths[0])
    assert case_ids(tmp_path) == [f"series_3-{own}"]
    (tmp_path / "Olive").rename(tmp_path / "Fingal")
    assert case_ids(tmp_path) == [f"series_3-{own}"]


def test_file_that_cannot_be_read_is_a_case_without_its_name(tmp_path, monkeypatch):
    write_slices(tmp_path / "ct", 2, PatientName="Fingal^Olive")
    fill(tmp_path, ["olive.png"])
    opened = Path.open

    def refuse(path, *arguments, **options):
        if path.name == "olive.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert [name.split("-")[0] for name in case_ids(tmp_path)] == ["photograph", "study"]


# frames


def write_gif(path: Path, count: int = 12) -> Path:
    pages = [Image.new("L", (20, 24), 255 - 16 * index) for index in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=100)
    return path


def test_frames_of_an_animation_are_cases_with_their_times(tmp_path):
    path = write_gif(tmp_path / "clip.gif")
    found = survey(path)
    assert len(found.cases) == 12
    assert found.cases[10] == {"image": list_frames(path)[10], "case_id": "clip/frame_10", "study": "clip"}
    assert found.cases[1]["case_id"] == "clip/frame_01"
    assert found.descriptions["clip/frame_10"] == "frame at 1.000 s"
    assert case_ids(path, frames_per_second=2) == ["clip/frame_00", "clip/frame_05", "clip/frame_10"]
    assert read_image(found.cases[10]["image"]).shape == (3, 20, 24)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif"])
def test_single_image_that_might_have_pages_is_an_image(tmp_path, suffix):
    Image.new("L", (20, 24)).save(tmp_path / f"a{suffix}")
    assert find_cases(tmp_path) == [{"image": str(tmp_path / f"a{suffix}"), "case_id": "a", "study": ""}]


def test_pages_without_times_are_cases(tmp_path):
    pages = [Image.new("L", (20, 24), gray) for gray in (0, 9)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = survey(tmp_path)
    assert found.descriptions == {"a/frame_0": "frame", "a/frame_1": "frame"}
    assert {case["study"] for case in found.cases} == {"a"}


def test_frames_share_no_name_with_other_files(tmp_path):
    write_gif(tmp_path / "clip.gif", 2)
    fill(tmp_path, ["clip/frame_0.png", "clip/frame_1.dcm"])
    ids = case_ids(tmp_path, keep_identifiers=True)
    code_of_pixels = hashlib.sha256(b"pixels").hexdigest()
    others = [name.removeprefix(f"clip/frame_{index}-") for index, name in enumerate(ids[2:])]
    assert ids[:2] == ["clip/frame_0", "clip/frame_1"]
    assert others == [make_key([code_of_pixels])[:10]] * 2  # of their content


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_damaged_animation_or_video_is_one_case_that_the_reader_refuses(tmp_path, name):
    (tmp_path / name).write_bytes(b"GIF89a damaged")
    (case,) = find_cases(tmp_path)
    assert case["image"] == str(tmp_path / name)
    with pytest.raises(ImageFileError, match="not an image in any known format; check that the name is right"):
        read_image(case["image"])


def test_frames_of_a_video_are_cases_even_if_there_is_only_one(tmp_path):
    pytest.importorskip("av")
    for name, count in (("long.mp4", 5), ("short.mp4", 1)):
        with OverlayVideo(tmp_path / name, frames_per_second=5) as video:
            for index in range(count):
                video.write(np.full((32, 48, 3), 40 * index, np.uint8))
    cases = find_cases(tmp_path, frames_per_second=2.5)
    assert [Path(case["case_id"]).name for case in cases] == ["frame_0", "frame_2", "frame_4", "frame_0"]
    assert [case["study"] for case in cases] == [str(Path(case["case_id"]).parent) for case in cases]
    assert [case["study"].removesuffix(".mp4") for case in cases] == ["long", "long", "long", "short"]
    assert read_image(cases[0]["image"]).shape == (3, 48, 32)


def test_numbered_photographs_are_a_video_where_a_rate_is_given(tmp_path):
    fill(tmp_path, [*(f"exam/frame_{number}.png" for number in (1, 2, 10, 9)), "exam/other.png", "a/7.jpg", "a/8.jpg"])
    fill(tmp_path, ["a/7.png", "a/8.png"])
    assert all(isinstance(case["image"], str) and not case["study"] for case in find_cases(tmp_path))
    cases = find_cases(tmp_path, sequence_rate=4)
    pixels = hashlib.sha256(b"pixels").hexdigest()
    other = f"sequence-{make_key(make_key([pixels] * 2), 'a/7_png', 'a/8_png')[:10]}"
    assert [(case["case_id"], case["study"]) for case in cases] == [
        ("a/7_jpg", "a/sequence"),
        ("a/8_jpg", "a/sequence"),
        ("a/7_png", f"a/{other}"),  # another format, another sequence
        ("a/8_png", f"a/{other}"),
        ("exam/frame_1", "exam/frame"),
        ("exam/frame_2", "exam/frame"),
        ("exam/frame_9", "exam/frame"),
        ("exam/frame_10", "exam/frame"),
        ("exam/other", ""),
    ]
    assert [case["image"].time for case in cases[4:8]] == [0, 0.25, 0.5, 0.75]
    thinned = find_cases(tmp_path, sequence_rate=4, frames_per_second=2)
    assert [case["case_id"] for case in thinned] == ["a/7_jpg", "a/7_png", "exam/frame_1", "exam/frame_9", "exam/other"]


def test_rate_of_a_sequence_is_checked(tmp_path):
    fill(tmp_path, ["1.png", "2.png"])
    with pytest.raises(ValueError, match="sequence_rate must be positive and finite, got 0"):
        find_cases(tmp_path, sequence_rate=0)


@pytest.mark.parametrize(("name", "kind"), [("a", "TIFF"), ("a", "GIF"), ("a.png", "PNG"), ("b.jpg", "WEBP")])
def test_pages_are_found_by_content(tmp_path, name, kind):
    pages = [Image.new("RGB", (32, 24), (60 * number, 0, 0)) for number in range(3)]
    pages[0].save(tmp_path / name, format=kind, save_all=True, append_images=pages[1:], duration=200)
    assert [case["image"].index for case in find_cases(tmp_path)] == [0, 1, 2]
    if kind != "TIFF":
        assert [case["image"].index for case in find_cases(tmp_path, frames_per_second=1)] == [0]


@pytest.mark.parametrize("kind", ["BMP", "PPM"])
def test_photographs_without_suffix_are_found(tmp_path, kind):
    Image.new("RGB", (32, 24)).save(tmp_path / "photograph", format=kind)
    (case,) = find_cases(tmp_path)
    assert read_image(case["image"]).shape == (3, 32, 24)


def test_images_with_pages_are_not_part_of_a_sequence(tmp_path):
    pages = [Image.new("RGB", (32, 24), (60 * number, 0, 0)) for number in range(3)]
    for number in (1, 2):
        pages[0].save(tmp_path / f"v_{number}.tif", save_all=True, append_images=pages[1:])
        pages[0].save(tmp_path / f"s_{number}.tif")
    cases = find_cases(tmp_path, sequence_rate=1)
    assert [case["study"] for case in cases] == ["s", "s", "v_1", "v_1", "v_1", "v_2", "v_2", "v_2"]
