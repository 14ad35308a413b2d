"""Datasets in tables: which rows are read, which are left out, and which paths are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrad_med.data.tables import load_csv, load_datalist_json, load_meta_json, read_table
from mrad_med.errors import DatasetError
from tests.small_archives import pictures, text


def make_csv(root: Path, *lines: str, name: str = "cases.csv") -> Path:
    pictures(root, "a.png b.png sub/c~1.jpg m/a.png m/b.png")
    text(root / name, "\n".join(lines) + "\n")
    return root / name


def make_json(root: Path, content: object, name: str) -> Path:
    pictures(root, "a.png b.png sub/c~1.jpg m/a.png m/b.png")
    text(root / name, json.dumps(content))
    return root / name


def shown(cases: list[dict], *keys: str) -> list[tuple]:
    return [tuple(case[key] for key in keys) for case in cases]


# tables


def test_header_and_cells_may_have_spaces_and_any_case(tmp_path):
    text(tmp_path / "t.csv", '\ufeffImage, Label ,note\r\n a.png , 1 ,"x, y"\r\n\r\n , ,\r\nb.png,0\r\n')
    assert read_table(tmp_path / "t.csv", ["image", "label"]) == [
        {"image": "a.png", "label": "1", "note": "x, y"},
        {"image": "b.png", "label": "0", "note": ""},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"t\.csv lacks the columns image; it has none$"),
        (b"path,label\n", r"t\.csv lacks the columns image; it has path, label$"),
        (b"image\n\xff\xfe.png\n", r"t\.csv cannot be read \(UnicodeDecodeError\); save it as CSV in UTF-8"),
        (b"image\n" + b"x" * 200_000, r"t\.csv cannot be read \(Error\); save it as CSV"),
    ],
)
def test_table_that_cannot_be_read_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        read_table(tmp_path / "t.csv", ["image"])


def test_csv_with_all_columns_is_read(tmp_path):
    table = make_csv(
        tmp_path,
        "image,label,mask,class,case_id,patient,sequence,mask_threshold",
        "a.png,1,m/a.png,tile,Müller 1/left,P1,v1,0",
        "sub/c 1.jpg,normal,,,,,,",
    )
    assert load_csv(table, strict=True) == [
        {
            "image": str(tmp_path / "a.png"),
            "case_id": "Müller 1/left",
            "label": 1,
            "mask": str(tmp_path / "m/a.png"),
            "class": "tile",
            "patient": "P1",
            "sequence": "v1",
            "mask_threshold": 0.0,
        },
        {
            "image": str(tmp_path / "sub/c 1.jpg"),
            "case_id": "sub/c 1",
            "label": 0,
            "mask": None,
            "class": tmp_path.name,
        },
    ]


def test_folder_with_one_table_may_be_given_instead_of_it(tmp_path):
    make_csv(tmp_path, "image,label", "a.png,1")
    text(tmp_path / ".hidden.csv")
    assert load_csv(str(tmp_path)) == load_csv(tmp_path / "cases.csv")


def test_without_label_images_with_a_mask_are_anomalous(tmp_path):
    table = make_csv(tmp_path, "image,mask", "a.png,m/a.png", "b.png,")
    assert shown(load_csv(table, strict=True), "case_id", "label", "mask") == [
        ("a", 1, str(tmp_path / "m/a.png")),
        ("b", 0, None),
    ]


def test_empty_label_is_anomalous_where_there_is_a_mask(tmp_path):
    assert shown(load_csv(make_csv(tmp_path, "image,label,mask", "a.png,,m/a.png", "b.png,0,m/b.png")), "label") == [
        (1,),
        (0,),
    ]


@pytest.mark.parametrize(
    ("word", "label"), [("0", 0), ("Normal", 0), ("good", 0), ("0.0", 0), ("1", 1), ("ANOMALY", 1), ("True", 1)]
)
def test_labels_are_numbers_or_words(tmp_path, word, label):
    assert shown(load_csv(make_csv(tmp_path, "image,label", f"a.png,{word}"), strict=True), "label") == [(label,)]


def test_split_column_chooses_rows(tmp_path):
    table = make_csv(tmp_path, "image,label,split", "a.png,1,test", "b.png,0,train")
    assert shown(load_csv(table, split="train"), "case_id", "label") == [("b", 0)]
    with pytest.raises(DatasetError, match=r"cases\.csv has no split 'valid'; it has test, train$"):
        load_csv(table, split="valid")


PROBLEMS = [
    ("image,label", ",1", "1 row.* name no image and are left out; fill in the image: row 1"),
    ("image,label", "gone.png,1", r"1 row.* name an image that does not exist and are left out; .*: gone\.png"),
    ("image,label", "b.png,1", r"1 row.* repeat an image or case_id of an earlier row and are left out; .*: b\.png"),
    ("image,label", "a.png,2", r"1 row.* have no label of 0 or 1 \(or normal, anomaly\) and are left out; .*: a\.png"),
    ("image,label", "a.png,", r"1 row.* have no label of 0 or 1 .*: a\.png"),
    ("image,label", "a.png", r"1 row.* have no label of 0 or 1 .*: a\.png"),
    ("image,label", "a.png,1,2", r"1 row.* have more cells than the table has columns and are left out; .*: a\.png"),
]


@pytest.mark.parametrize(("columns", "row", "message"), PROBLEMS)
def test_row_that_cannot_be_used_costs_only_itself(tmp_path, caplog, columns, row, message):
    table = make_csv(tmp_path, columns, "b.png,0", row)
    message = message.replace("row 1", "row 2")
    assert shown(load_csv(table), "case_id") == [("b",)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].getMessage().startswith("1 row")
    with pytest.raises(DatasetError, match=message):
        load_csv(table, strict=True)


def test_two_rows_of_one_case_id_are_reported(tmp_path):
    table = make_csv(tmp_path, "image,label,case_id", "a.png,0,x", "b.png,0,x")
    assert shown(load_csv(table), "image") == [(str(tmp_path / "a.png"),)]
    with pytest.raises(DatasetError, match=r"of an earlier row and are left out; remove them: b\.png"):
        load_csv(table, strict=True)


def test_names_of_files_make_way_for_given_case_ids(tmp_path):
    table = make_csv(tmp_path, "image,label,case_id", "a.png,0,", "b.png,0,a")
    assert shown(load_csv(table, strict=True), "case_id") == [("a_",), ("a",)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,1,m/gone.png", r"1 row.* name a mask that does not exist and are kept without it; .*: a\.png"),
        (
            "a.png,1,",
            r"1 row.* are labeled anomalous but have no mask, unlike other rows, and are kept without it; .*: a\.png",
        ),
    ],
)
def test_case_whose_mask_is_missing_is_kept_without(tmp_path, caplog, row, message):
    table = make_csv(tmp_path, "image,label,mask", "b.png,1,m/b.png", row)
    assert shown(load_csv(table), "case_id", "label", "mask") == [("b", 1, str(tmp_path / "m/b.png")), ("a", 1, None)]
    assert len(caplog.records) == 1
    with pytest.raises(DatasetError, match=message):
        load_csv(table, strict=True)


def test_anomalous_cases_need_no_masks_where_none_has_one(tmp_path):
    table = make_csv(tmp_path, "image,label,mask", "a.png,1,", "b.png,1,")
    assert shown(load_csv(table, strict=True), "mask") == [(None,), (None,)]


@pytest.mark.parametrize(
    "row",
    [
        "../a.png,1,,",
        "/a.png,1,,",
        "a.png,1,../m.png,",
        "a.png,1,,../x",
        "a.png,1,,/x",
        "C:\\a.png,1,,",
        "..\\a.png,1,,",
    ],
)
def test_nothing_outside_the_folder_can_be_named(tmp_path, row):
    (tmp_path / "set").mkdir()
    pictures(tmp_path, "a.png m.png")
    table = make_csv(tmp_path / "set", "image,label,mask,case_id", row)
    with pytest.raises(DatasetError, match="names a file outside its folder"):
        load_csv(table)  # not even where problems are forgiven


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["picture,label", "a.png,1"], "lacks the columns image; it has picture, label"),
        (["image,class", "a.png,tile"], "lacks the columns label and mask; one of them must mark"),
        (["image,label"], "names no usable image"),
        (
            ["image,label", "gone.png,1"],
            "names no usable image; check that it is the right table and in the folder of its images",
        ),
        (["image,label,mask_threshold", "a.png,1,half"], "has a mask_threshold that is not a number: 'half'"),
    ],
)
def test_table_of_no_use_is_refused(tmp_path, lines, message):
    with pytest.raises(DatasetError, match=message):
        load_csv(make_csv(tmp_path, *lines))


@pytest.mark.parametrize(
    ("names", "found"), [((), "none"), (("b.csv", "a.csv"), r"2 \(a\.csv, b\.csv\)")], ids=["none", "two"]
)
def test_one_table_is_expected_in_a_folder(tmp_path, names, found):
    for name in names:
        text(tmp_path / name)
    with pytest.raises(DatasetError, match=rf"expected one \.csv file in .*, found {found}; give its path"):
        load_csv(tmp_path)


@pytest.mark.parametrize("load", [load_csv, load_meta_json, load_datalist_json])
def test_missing_root_is_named(tmp_path, load):
    with pytest.raises(DatasetError, match=r"there is no file or folder .*nowhere"):
        load(tmp_path / "nowhere")


# meta.json


def meta_entry(image: str, mask: str = "", *, anomaly: int) -> dict:
    return {"img_path": image, "mask_path": mask, "cls_name": "x", "specie_name": "good", "anomaly": anomaly}


def test_meta_json_is_read_class_by_class(tmp_path):
    meta = {
        "train": {"tile": [meta_entry("b.png", anomaly=0)]},
        "test": {
            "tile": [meta_entry("a.png", "m\\a.png", anomaly=1)],
            "board": [meta_entry("sub/c 1.jpg", anomaly=0)],
        },
    }
    make_json(tmp_path, meta, "meta.json")
    text(tmp_path / "meta_old.json", "{}")
    assert shown(load_meta_json(tmp_path, strict=True), "case_id", "label", "mask", "class") == [
        ("a", 1, str(tmp_path / "m/a.png"), "tile"),
        ("sub/c 1", 0, None, "board"),
    ]
    assert shown(load_meta_json(tmp_path / "meta.json", split="train"), "case_id", "class") == [("b", "tile")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {}}, r"meta\.json has no split 'test'; it has train$"),
        ({}, r"has no split 'test'; it has none$"),
        ([], "has an unexpected layout; expected {split: {class:"),
        ({"test": []}, "has an unexpected layout"),
        ({"test": {"tile": [1]}}, "has an unexpected layout"),
        ({"test": {"tile": {}}}, "has an unexpected layout"),
        ({"test": {}}, "names no usable image"),
        ({"test": {"tile": [meta_entry("../a.png", anomaly=0)]}}, "outside its folder"),
        ({"test": {"tile": [meta_entry("a.png", "/m.png", anomaly=1)]}}, "outside its folder"),
        ({"test": {"tile": [{"path": "a.png"}]}}, "names no usable image"),
    ],
)
def test_meta_json_of_another_layout_is_refused(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        load_meta_json(make_json(tmp_path, content, "meta.json"))


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\ud800".encode("utf-16", "surrogatepass").decode("latin-1")])
def test_file_that_is_no_json_is_refused(tmp_path, content):
    text(tmp_path / "meta.json", content)
    with pytest.raises(DatasetError, match=r"meta\.json cannot be read as JSON \(\w+\); save it again"):
        load_meta_json(tmp_path)


# MONAI datalists


def test_monai_datalist_is_read_by_its_splits(tmp_path):
    content = {
        "name": "mine",
        "training": [{"image": "b.png", "label": 0}],
        "validation": [
            {"image": "./a.png", "label": 1, "mask": "m/a.png", "class": "tile", "patient": "P1", "fold": 3},
            {"image": "sub/c 1.jpg", "label": False},
        ],
    }
    make_json(tmp_path, content, "dataset.json")
    text(tmp_path / "other.json")
    assert load_datalist_json(tmp_path, split="validation", strict=True) == [
        {
            "image": str(tmp_path / "a.png"),
            "case_id": "a",
            "label": 1,
            "mask": str(tmp_path / "m/a.png"),
            "class": "tile",
            "patient": "P1",
        },
        {
            "image": str(tmp_path / "sub/c 1.jpg"),
            "case_id": "sub/c 1",
            "label": 0,
            "mask": None,
            "class": tmp_path.name,
        },
    ]
    assert shown(load_datalist_json(tmp_path, split="training"), "case_id") == [("b",)]


def test_list_is_taken_for_any_split_and_a_label_that_is_a_path_for_a_mask(tmp_path):
    path = make_json(tmp_path, [{"image": "a.png", "label": "m/a.png"}, {"image": "b.png", "label": "0"}], "l.json")
    assert shown(load_datalist_json(path, split="any", strict=True), "label", "mask") == [
        (1, str(tmp_path / "m/a.png")),
        (0, None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": []}, "has no split 'test'; it has training"),
        ({"test": {}}, r"has an unexpected layout; expected \[cases\] or {split: \[cases\]}"),
        ({"test": ["a.png"]}, "has an unexpected layout"),
        ("test", "has an unexpected layout"),
        ([], "names no usable image"),
        ([{"image": ["a.png", "b.png"], "label": 0}], "names no usable image"),
        ([{"image": "a.png"}], "names no usable image"),
        ([{"image": "../a.png", "label": 0}], "outside its folder"),
        ([{"image": "a.png", "label": "/etc/passwd"}], "outside its folder"),
    ],
)
def test_datalist_of_another_layout_is_refused(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        load_datalist_json(make_json(tmp_path, content, "datalist.json"))
