"""Datalists of folders: nested, badly named, with circular links, partly labeled."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrad_med import (
    ImageView,
    build_preprocessing,
    choose_held_out,
    load_labeled_folder,
    load_training_set,
    make_phantom,
)
from mrad_med.data import load_visa
from mrad_med.errors import DatasetError
from mrad_med.types import BackboneCard


def fill(root: Path, names: Iterable[str]) -> Path:
    """Make files that only look like images: finding does not open them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"pixels")
    return root


# labeled folders


def test_masks_are_paired_by_name_not_by_order(tmp_path):
    fill(tmp_path, ["defect/b.jpg", "defect/a.png", "mask/a.bmp", "mask/b.png", "normal/a.png", "mask/unused.png"])
    assert load_labeled_folder(tmp_path) == [
        {
            "image": str(tmp_path / "normal/a.png"),
            "case_id": "normal/a",
            "label": 0,
            "mask": None,
            "class": tmp_path.name,
        },
        {
            "image": str(tmp_path / "defect/a.png"),
            "case_id": "defect/a",
            "label": 1,
            "mask": str(tmp_path / "mask/a.bmp"),
            "class": tmp_path.name,
        },
        {
            "image": str(tmp_path / "defect/b.jpg"),
            "case_id": "defect/b",
            "label": 1,
            "mask": str(tmp_path / "mask/b.png"),
            "class": tmp_path.name,
        },
    ]


def test_masks_are_paired_in_subfolders_too(tmp_path):
    fill(tmp_path, ["defect/tile/a.png", "defect/board/a.png", "mask/board/a.png", "mask/tile/a.png"])
    pairs = {item["case_id"]: item["mask"] for item in load_labeled_folder(tmp_path)}
    assert pairs == {
        "defect/board/a": str(tmp_path / "mask/board/a.png"),
        "defect/tile/a": str(tmp_path / "mask/tile/a.png"),
    }


def test_missing_mask_is_named(tmp_path):
    fill(tmp_path, ["defect/a.png", "defect/crack 7.png", "mask/a.png", "normal/n.png"])
    with pytest.raises(DatasetError, match=r"1 image\(s\) in .*defect have no mask .* in .*mask: defect/crack 7$"):
        load_labeled_folder(tmp_path)


def test_many_missing_masks_are_counted_and_some_are_named(tmp_path):
    fill(tmp_path, [f"defect/{i}.png" for i in range(9)] + ["mask/0.png"])
    with pytest.raises(
        DatasetError, match=r"^8 image\(s\) .*: defect/1, defect/2, defect/3, defect/4, defect/5, \.\.\."
    ):
        load_labeled_folder(tmp_path)


def test_image_whose_mask_is_missing_is_kept_without_where_not_strict(tmp_path, caplog):
    fill(tmp_path, ["defect/a.png", "defect/b.png", "mask/a.png"])
    items = load_labeled_folder(tmp_path, strict=False)
    assert [(item["label"], item["mask"]) for item in items] == [(1, str(tmp_path / "mask/a.png")), (1, None)]
    assert "1 image(s) in" in caplog.text
    assert caplog.text.rstrip().endswith("defect/b")


def test_without_a_mask_folder_there_are_labels_only(tmp_path):
    fill(tmp_path, ["defect/a.png", "normal/n.png"])
    items = load_labeled_folder(tmp_path)
    assert [(item["label"], item.get("mask")) for item in items] == [(0, None), (1, None)]


@pytest.mark.parametrize(("name", "label"), [("normal", 0), ("defect", 1)])
def test_one_of_the_two_folders_is_enough(tmp_path, name, label):
    fill(tmp_path, [f"{name}/a.png", f"{name}/b.png"])
    items = load_labeled_folder(str(tmp_path))
    assert [(item["case_id"], item["label"]) for item in items] == [(f"{name}/a", label), (f"{name}/b", label)]


def test_folder_with_neither_is_refused(tmp_path):
    fill(tmp_path, ["good/a.png", "mask/a.png"])
    with pytest.raises(DatasetError, match="nor a folder below it has normal/ or defect/; put the labeled images"):
        load_labeled_folder(tmp_path)


def test_empty_folder_of_images_is_refused(tmp_path):
    fill(tmp_path, ["normal/a.png"])
    (tmp_path / "defect").mkdir()
    with pytest.raises(DatasetError, match=f"no image below .*{os.sep}defect"):
        load_labeled_folder(tmp_path)


# folders of classes


def test_folders_of_labeled_folders_are_classes_however_deep(tmp_path):
    fill(tmp_path, ["tile/normal/a.png", "tile/defect/a.png", "tile/mask/a.png", "set 2/board/normal/a.png"])
    items = load_labeled_folder(tmp_path)
    assert [(item["case_id"], item["class"], item["label"], item["mask"]) for item in items] == [
        ("tile/normal/a", "tile", 0, None),
        ("tile/defect/a", "tile", 1, str(tmp_path / "tile/mask/a.png")),
        ("set 2/board/normal/a", "set 2/board", 0, None),
    ]


def test_class_without_masks_does_not_take_those_of_another(tmp_path):
    fill(tmp_path, ["a/defect/1.png", "a/mask/1.png", "b/defect/1.png"])
    assert [item["mask"] for item in load_labeled_folder(tmp_path)] == [str(tmp_path / "a/mask/1.png"), None]


def test_class_that_lacks_a_mask_is_named(tmp_path):
    fill(tmp_path, ["a/defect/1.png", "a/mask/1.png", "b/defect/1.png", "b/mask/2.png"])
    with pytest.raises(DatasetError, match=r"1 image\(s\) in .*b.defect have no mask .*: b/defect/1$"):
        load_labeled_folder(tmp_path)


def test_hidden_classes_are_skipped(tmp_path):
    fill(tmp_path, ["a/normal/1.png", ".trash/b/normal/1.png", "deeper/.c/normal/1.png"])
    assert [item["class"] for item in load_labeled_folder(tmp_path)] == ["a"]


def test_only_class_is_named_like_its_folder_from_wherever_it_is_read(tmp_path, monkeypatch):
    fill(tmp_path / "tiles", ["normal/1.png"])
    monkeypatch.chdir(tmp_path / "tiles")
    for root in (".", tmp_path / "tiles", "../tiles", tmp_path / "tiles" / "normal" / ".."):
        assert [item["class"] for item in load_labeled_folder(root)] == ["tiles"]


# VisA

COLUMNS = "object,split,label,image,mask"
GOOD = "candle,test,normal,candle/Data/Images/Normal/001.JPG,"
VISA = (
    "candle,train,normal,candle/Data/Images/Normal/000.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/001.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "pcb1,train,normal,pcb1/Data/Images/Normal/000.JPG,",
    "pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png",
)


def make_visa(root: Path, *rows: str, columns: str = COLUMNS, start: str = "") -> Path:
    """Make all files that `VISA` names, and a table of it or of the given rows."""
    fill(root, [name for row in VISA for name in row.split(",")[3:] if name])
    (root / "split_csv").mkdir()
    table = "\r\n".join([columns, *(rows or VISA)]) + "\r\n"
    (root / "split_csv" / "1cls.csv").write_text(start + table, encoding="utf-8", newline="")
    return root


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "saved by a spreadsheet"])
def test_visa_is_read_as_downloaded(tmp_path, start):
    root = make_visa(tmp_path, start=start)
    assert load_visa(root) == [
        {
            "image": str(root / "candle/Data/Images/Normal/001.JPG"),
            "case_id": "candle/Data/Images/Normal/001",
            "label": 0,
            "mask": None,
            "mask_threshold": 0,
            "class": "candle",
        },
        {
            "image": str(root / "candle/Data/Images/Anomaly/000.JPG"),
            "case_id": "candle/Data/Images/Anomaly/000",
            "label": 1,
            "mask": str(root / "candle/Data/Masks/Anomaly/000.png"),
            "mask_threshold": 0,
            "class": "candle",
        },
        {
            "image": str(root / "pcb1/Data/Images/Anomaly/000.JPG"),
            "case_id": "pcb1/Data/Images/Anomaly/000",
            "label": 1,
            "mask": str(root / "pcb1/Data/Masks/Anomaly/000.png"),
            "mask_threshold": 0,
            "class": "pcb1",
        },
    ]


def test_train_split_of_visa_is_normal(tmp_path):
    cases = load_visa(str(make_visa(tmp_path)), split="train")
    assert [(case["class"], case["label"], case["mask"]) for case in cases] == [("candle", 0, None), ("pcb1", 0, None)]


def test_cases_of_visa_that_differ_only_in_the_suffix_have_names_of_their_own(tmp_path):
    rows = [
        "candle,test,normal,candle/Data/Images/Normal/001.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/001.png,",
    ]
    fill(tmp_path, ["candle/Data/Images/Normal/001.png"])
    case_ids = [case["case_id"] for case in load_visa(make_visa(tmp_path, *rows))]
    assert case_ids == ["candle/Data/Images/Normal/001_JPG", "candle/Data/Images/Normal/001_png"]


def test_class_numbers_in_the_masks_of_visa_are_anomalous(tmp_path):
    make_visa(tmp_path)
    picture, mask = make_phantom((40, 60))[0], np.zeros((40, 60), np.uint8)
    mask[:20, :30], mask[20:, 30:] = 3, 11
    Image.fromarray(picture).save(tmp_path / "pcb1/Data/Images/Anomaly/000.JPG")
    Image.fromarray(mask).save(tmp_path / "pcb1/Data/Masks/Anomaly/000.png")
    card = BackboneCard("tiny", "", 32, 24, 14, 56, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    loaded = build_preprocessing(card, ImageView(image_size=56), with_mask=True)(load_visa(tmp_path)[-1])["mask"]
    expected = np.kron([[1, 0], [0, 1]], np.ones((28, 28)))
    np.testing.assert_array_equal(loaded[0], expected)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (VISA, "object,split,image", r"1cls\.csv lacks the columns label, mask; it has object, split, image$"),
        ((), "image;mask", r"1cls\.csv lacks the columns object, split, label, image, mask; it has image;mask$"),
        (VISA[:1], COLUMNS, r"1cls\.csv has no split 'test'; 'train' and 'test' are expected"),
        ((f"{GOOD[:-1].replace('normal', 'broken')},", *VISA), COLUMNS, "^1 row.* have no label of 0 or 1 .*001.JPG$"),
        ((GOOD + ",", *VISA), COLUMNS, r"^1 row\(s\) of .*1cls\.csv have more cells than the table has columns"),
        (("candle,test,normal", *VISA), COLUMNS, r"^1 row\(s\) of .*1cls\.csv name no image .*: row 1$"),
        ((GOOD, GOOD), COLUMNS, r"^1 row\(s\) of .*1cls\.csv repeat an image .* of an earlier row"),
        (
            ("candle,test,normal,gone.JPG,", *VISA),
            COLUMNS,
            r"^1 row.* name an image that does not exist .*: gone\.JPG$",
        ),
        (
            ("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,gone.png",),
            COLUMNS,
            "^1 row.* a mask that does not exist",
        ),
        (("candle,test,normal,/etc/passwd,",), COLUMNS, "names a file outside its folder .*: '/etc/passwd'"),
        (("candle,test,normal,candle/../../a.JPG,",), COLUMNS, r"outside its folder .*: 'candle/\.\./\.\./a\.JPG'"),
        (
            ("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,../a.png",),
            COLUMNS,
            r"outside its folder .*: '\.\./a\.png'",
        ),
    ],
)
def test_table_of_visa_that_cannot_be_trusted_is_refused(tmp_path, rows, columns, message):
    with pytest.raises(DatasetError, match=message):
        load_visa(make_visa(tmp_path, *rows, columns=columns))


def test_lost_files_of_visa_cost_only_their_cases_where_not_strict(tmp_path, caplog):
    root = make_visa(tmp_path)
    (root / "candle/Data/Images/Normal/001.JPG").unlink()
    (root / "pcb1/Data/Masks/Anomaly/000.png").unlink()
    cases = load_visa(root, strict=False)
    assert [(case["case_id"], case["mask"] is None) for case in cases] == [
        ("candle/Data/Images/Anomaly/000", False),
        ("pcb1/Data/Images/Anomaly/000", True),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "candle/Data/Images/Normal/001.JPG" in caplog.text
    assert "pcb1/Data/Images/Anomaly/000.JPG" in caplog.text


def test_visa_without_its_table_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"has no split_csv/1cls\.csv: unpack the whole archive of VisA there"):
        load_visa(tmp_path)


def test_unknown_split_of_visa_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no split 'val'; 'train' and 'test' are expected"):
        load_visa(make_visa(tmp_path), split="val")


def test_training_set_is_visa_or_labeled_folders(tmp_path):
    visa, folders = make_visa(tmp_path / "visa"), fill(tmp_path / "folders", ["a/normal/1.png", "b/defect/1.png"])
    assert load_training_set(visa) == load_visa(visa)
    assert load_training_set(str(folders)) == load_labeled_folder(folders)
    with pytest.raises(DatasetError, match=r"neither .* nor a folder below it has normal/ or defect/"):
        load_training_set(visa / "candle")


# classes to validate on


def make_classes(*names: str) -> list[dict]:
    return [{"case_id": f"{name}/{i}", "class": name} for i in range(2) for name in names]


def test_classes_are_held_out_by_their_names():
    cases = make_classes("b", "a", "c")
    assert choose_held_out(cases, ["c", "a"]) == ["a", "c"]
    assert choose_held_out(cases, "b") == ["b"]
    assert choose_held_out(cases, []) == []


def test_number_of_held_out_classes_is_drawn_by_the_seed():
    cases = make_classes(*"abcdefgh")
    drawn = [choose_held_out(cases, 3, seed=seed) for seed in range(20)]
    assert all(len(set(names)) == 3 and set(names) < set("abcdefgh") and names == sorted(names) for names in drawn)
    assert {name for names in drawn for name in names} == set("abcdefgh")
    assert drawn == [choose_held_out(cases[::-1], 3, seed=seed) for seed in range(20)]


def test_no_class_is_held_out_for_a_training_on_all():
    assert choose_held_out(make_classes("a"), 0) == []


@pytest.mark.parametrize("held_out", [2, 5, ["a", "b"], ["b", "a", "a"]])
def test_holding_out_all_classes_is_refused(held_out):
    with pytest.raises(
        DatasetError, match="no class is left to train on: a, b would be held out; hold out fewer, or 0"
    ):
        choose_held_out(make_classes("b", "a"), held_out)


@pytest.mark.parametrize(("held_out", "unknown"), [(["z", "a", "y"], "y, z"), ("ab", "ab")])
def test_unknown_class_is_refused_with_those_there_are(held_out, unknown):
    message = f"there is no class {unknown} to hold out; the set has a, b"
    with pytest.raises(DatasetError, match=re.escape(message)):
        choose_held_out(make_classes("b", "a"), held_out)


def test_negative_number_of_held_out_classes_is_refused():
    with pytest.raises(DatasetError, match="must not be negative, got -1"):
        choose_held_out(make_classes("b", "a"), -1)


def test_cases_without_classes_can_be_trained_on_but_not_held_out():
    cases = [{"case_id": "1"}, {"case_id": "2"}]
    assert choose_held_out(cases, 0) == []
    with pytest.raises(DatasetError, match="no class is left to train on"):
        choose_held_out(cases, 1)
