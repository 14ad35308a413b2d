"""Tables of a run: rows worked by hand, positions of slices in the patient, and what other programs read back."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mrad_med import CaseResult
from mrad_med.data.names import printable
from mrad_med.io.frames import Frame
from mrad_med.results.tables import (
    SCORE_COLUMNS,
    SLICE_COLUMNS,
    STUDY_COLUMNS,
    score_row,
    slices_of,
    study_rows,
    write_table,
)
from mrad_med.types import FailedCase

MAP = np.array([[0.25, 0.125, 0.5], [0.75, 0.0625, 0.5]], np.float32)


def make_result(source="photo.png", **changes) -> CaseResult:
    return CaseResult(**{"case_id": "a", "source": source, "anomaly_score": 0.625, "anomaly_map": MAP, **changes})


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# cases


def test_row_of_an_image():
    files = {"tiff": ["maps/a.tiff"], "overlay": ["overlays/a.png"], "mask": ["masks/a.png"]}
    assert score_row(make_result(study="exam"), files) == {
        "case_id": "a",
        "status": "ok",
        "anomaly_score": "0.625",
        "map_minimum": "0.0625",
        "map_maximum": "0.75",
        "peak": "1 0",
        "kind": "image",
        "study": "exam",
        "time_s": "",
        "map": "maps/a.tiff",
        "overlay": "overlays/a.png",
        "files": "masks/a.png",
    }


def test_columns_of_a_row_are_those_of_the_table_but_the_reason_of_a_failure():
    assert [*score_row(make_result(), {}), "reason"] == list(SCORE_COLUMNS)


@pytest.mark.parametrize(("time", "stated"), [(0.0, "0.000"), (61.0404, "61.040"), (None, "")])
def test_row_of_a_frame_states_its_time(time, stated):
    row = score_row(make_result(Frame("v.mp4", 3, time)), {"video": ["videos/v.mp4"]})
    assert (row["kind"], row["time_s"], row["map"], row["files"]) == ("frame", stated, "", "videos/v.mp4")


def test_row_of_a_volume_states_its_peak_as_stored():
    anomaly_map = np.zeros((2, 3, 4), np.float32)
    anomaly_map[1, 0, 2] = 1
    row = score_row(make_result("v.nii.gz", anomaly_map=anomaly_map, affine=np.eye(4)), {})
    assert (row["kind"], row["peak"], row["map_minimum"], row["map_maximum"]) == ("volume", "1 0 2", "0", "1")


@pytest.mark.parametrize(
    ("names", "chosen", "others"),
    [
        (["png", "tiff"], "tiff", "png"),
        (["nrrd", "nifti"], "nifti", "nrrd"),
        (["nrrd"], "nrrd", ""),
        (["png"], "png", ""),
        (["mask"], "", "mask"),
    ],
)
def test_map_of_the_table_is_the_most_exact_one_and_others_are_among_the_files(names, chosen, others):
    row = score_row(make_result(), {name: [f"{name}/a"] for name in names})
    assert row["map"] == (f"{chosen}/a" if chosen else "")
    assert row["files"] == (f"{others}/a" if others else "")


def test_all_files_of_an_output_are_listed_and_none_of_one_that_failed():
    captures = ["dicom/a/overlay_0001.dcm", "dicom/a/overlay_0002.dcm"]
    row = score_row(make_result(), {"tiff": [], "overlay": [], "capture": captures, "seg": ["dicom/a_seg.dcm"]})
    assert (row["map"], row["overlay"]) == ("", "")
    assert row["files"].split("; ") == [*captures, "dicom/a_seg.dcm"]


# slices


# Columns of length 0.8, 0.8 and 2; the first two are at right angles, the third is along their normal (0.6, 0, 0.8).
TURNED = np.array([[0.64, 0.0, 1.2, -7.0], [0.0, 0.8, 0.0, 5.0], [-0.48, 0.0, 1.6, 10.0], [0, 0, 0, 1.0]])


def test_slices_of_an_oblique_volume_lie_along_their_normal():
    """The first slice's origin has the distance 0.6 * -7 + 0.8 * 10 = 3.8 mm, and slices follow each other by 2 mm."""
    anomaly_map = np.zeros((4, 5, 3), np.float32)
    anomaly_map[2, 4, 1], anomaly_map[3, 0, 2] = 0.5, 0.25
    scores = np.array([0.125, 0.625, 0.375], np.float32)
    result = make_result("v.nii", anomaly_map=anomaly_map, affine=TURNED, slice_scores=scores, slice_axis=2)
    assert slices_of(result) == [
        {
            "case_id": "a",
            "slice": 0,
            "position_mm": 3.8,
            "score": 0.125,
            "map_maximum": 0.0,
            "peak": "0 0 0",
            "status": "ok",
        },
        {
            "case_id": "a",
            "slice": 1,
            "position_mm": 5.8,
            "score": 0.625,
            "map_maximum": 0.5,
            "peak": "2 4 1",
            "status": "ok",
        },
        {
            "case_id": "a",
            "slice": 2,
            "position_mm": 7.8,
            "score": 0.375,
            "map_maximum": 0.25,
            "peak": "3 0 2",
            "status": "ok",
        },
    ]
    assert tuple(slices_of(result)[0]) == SLICE_COLUMNS


def test_slices_along_another_axis_are_counted_along_it():
    """Across the first axis, whose normal is the cross product (0.8, 0, -0.6): -7 * 0.8 - 0.6 * 10 = -11.6 mm."""
    anomaly_map = np.zeros((4, 5, 3), np.float32)
    anomaly_map[1, 4, 2] = 0.5
    scores = np.arange(4, dtype=np.float32)
    result = make_result("v.nii", anomaly_map=anomaly_map, affine=TURNED, slice_scores=scores, slice_axis=0)
    rows = slices_of(result)
    assert [row["position_mm"] for row in rows] == pytest.approx([-11.6, -10.8, -10.0, -9.2])
    assert [row["score"] for row in rows] == [0, 1, 2, 3]
    assert (rows[1]["peak"], rows[1]["map_maximum"]) == ("1 4 2", 0.5)


def test_volume_stored_from_head_to_feet_has_falling_positions():
    affine = np.diag([1.0, 1.0, -3.0, 1.0])
    affine[2, 3] = 100
    scores = np.zeros(3, np.float32)
    volume = make_result(
        "v.nii", anomaly_map=np.zeros((4, 5, 3), np.float32), affine=affine, slice_scores=scores, slice_axis=2
    )
    assert [row["position_mm"] for row in slices_of(volume)] == [100, 97, 94]


def test_images_and_volumes_whose_slices_were_not_scored_have_no_slices():
    assert slices_of(make_result()) == []
    assert slices_of(make_result("v.nii", anomaly_map=np.zeros((4, 5, 3), np.float32), affine=np.eye(4))) == []


# studies


def row_of(case_id: str, study: str, score: str) -> dict[str, str]:
    return {"case_id": case_id, "study": study, "anomaly_score": score}


def test_row_of_a_study_states_its_highest_case_and_how_many_failed():
    rows = [
        row_of("a", "study_1", "0.25"),
        row_of("b", "study_2", "0.5"),
        row_of("c", "study_1", "1e-05"),
        row_of("d", "study_1", "0.75"),
        row_of("e", "", "0.875"),
    ]
    table = study_rows(rows, [FailedCase("f", "empty", "study_1"), FailedCase("g", "empty")])
    assert table == [
        {
            "study": "study_1",
            "cases": 3,
            "failed": 1,
            "nothing_to_score": 0,
            "anomaly_score": "0.75",
            "highest_case": "d",
        },
        {
            "study": "study_2",
            "cases": 1,
            "failed": 0,
            "nothing_to_score": 0,
            "anomaly_score": "0.5",
            "highest_case": "b",
        },
    ]
    assert tuple(table[0]) == STUDY_COLUMNS


def test_highest_score_is_the_highest_number_not_the_last_text():
    (row,) = study_rows([row_of("a", "s", "9e-05"), row_of("b", "s", "0.1"), row_of("c", "s", "-5")], [])
    assert (row["highest_case"], row["anomaly_score"]) == ("b", "0.1")


def test_of_equal_scores_the_first_case_is_listed():
    (row,) = study_rows([row_of("a", "s", "0.5"), row_of("b", "s", "0.5")], [])
    assert row["highest_case"] == "a"


def test_cases_of_no_study_make_no_table():
    assert study_rows([row_of("a", "", "0.5")], [FailedCase("b", "empty")]) == []


def test_study_in_which_all_cases_failed_is_listed():
    table = study_rows([row_of("a", "s", "0.5")], [FailedCase("b", "empty", "t")])
    assert [(row["study"], row["cases"], row["failed"]) for row in table] == [("s", 1, 0), ("t", 0, 1)]


# files


@pytest.mark.parametrize(
    "case_id",
    ["plain", "comma, semicolon; x", "quote \" and '", "line_break", "a=b+c-d@e", "線維腫 é", " a ", ""],
)
def test_any_text_comes_back_from_the_csv_module(tmp_path, case_id):
    rows = [
        {
            "study": case_id,
            "cases": 1,
            "failed": 0,
            "nothing_to_score": 0,
            "anomaly_score": "0.5",
            "highest_case": case_id,
        }
    ] * 2
    write_table(tmp_path / "studies.csv", STUDY_COLUMNS, rows)
    read = read_table(tmp_path / "studies.csv")
    assert [row["highest_case"] for row in read] == [case_id, case_id]
    assert [(row["cases"], row["anomaly_score"]) for row in read] == [("1", "0.5")] * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+49 30 123", "'+49 30 123"),
        ("-rf", "'-rf"),
        ("@SUM(A1:A9)", "'@SUM(A1:A9)"),
        ("  =HYPERLINK(A1)", "'  =HYPERLINK(A1)"),
        ("\t=cmd|' /C calc'!A0", "_=cmd|' /C calc'!A0"),
        ("\r\n=1", "__=1"),
        ("a;=1", "a;'=1"),  # some programs treat a semicolon as the end of a cell
        ("＝1", "'＝1"),  # noqa: RUF001 - as wide as a Chinese character
        ("exam\u202egnp.exe", "exam_gnp.exe"),
        ("\u2067a\u2069", "_a_"),
        ("line\nbreak\0\x1b[31m", "line_break__[31m"),
        ("-0.25", "-0.25"),
        ("-1e-05", "-1e-05"),
        ("-inf", "-inf"),
        ("-1-1", "'-1-1"),
        ("a-b", "a-b"),
    ],
)
def test_no_cell_is_a_formula_or_holds_what_is_not_shown(tmp_path, text, shown):
    write_table(tmp_path / "scores.csv", SCORE_COLUMNS, [{"case_id": "a", "study": text, "reason": text}])
    (row,) = read_table(tmp_path / "scores.csv")
    assert (row["study"], row["reason"]) == (shown, shown)


def test_negative_number_stays_a_number(tmp_path):
    rows = [{"case_id": "a", "slice": 0, "position_mm": -12.5, "score": -0.25, "map_maximum": np.float32(-1.5)}]
    write_table(tmp_path / "slices.csv", SLICE_COLUMNS, rows)
    assert (tmp_path / "slices.csv").read_bytes().splitlines()[1] == b"a,0,-12.5,-0.25,-1.5,,"


def test_case_id_of_a_file_is_the_same_in_tables_and_elsewhere(tmp_path):
    for name in ("=1+1", " @a", "\t-b", "x\u202ey", "a;=b", "c\nd"):
        write_table(tmp_path / "scores.csv", SCORE_COLUMNS, [{"case_id": printable(name)}])
        (row,) = read_table(tmp_path / "scores.csv")
        assert row["case_id"] == printable(name)


def test_columns_are_in_their_order_and_what_a_row_lacks_is_blank(tmp_path):
    write_table(tmp_path / "scores.csv", SCORE_COLUMNS, [{"reason": "empty", "status": "failed", "case_id": "a"}])
    header, row = (tmp_path / "scores.csv").read_bytes().decode().splitlines()
    assert (
        header == "case_id,status,anomaly_score,map_minimum,map_maximum,peak,kind,study,time_s,map,overlay,files,reason"
    )
    assert row == "a,failed,,,,,,,,,,,empty"


def test_table_without_rows_is_its_header(tmp_path):
    write_table(tmp_path / "deeper" / "slices.csv", SLICE_COLUMNS, [])
    assert (tmp_path / "deeper" / "slices.csv").read_text().split() == [
        "case_id,slice,position_mm,score,map_maximum,peak,status"
    ]


def test_row_of_unknown_columns_leaves_the_table_as_it_was(tmp_path):
    path = tmp_path / "studies.csv"
    write_table(path, STUDY_COLUMNS, [{"study": "s"}])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_table(path, STUDY_COLUMNS, [{"study": "t"}, {"color": "red"}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
