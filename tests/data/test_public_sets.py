"""Datasets by name: the loader for each, numbers checked against the published ones, and the inventory on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil

import pytest

from mrad_med.data.catalog import DATASETS
from mrad_med.data.public_sets import list_datasets, load_datalist
from mrad_med.errors import DatasetError
from tests.small_archives import MAKERS, make_archive, make_polyps, picture, pictures, text


@pytest.fixture
def publish(monkeypatch):
    """Replace the published numbers of images of a dataset."""

    def change(name: str, **changes) -> None:
        entry = dataclasses.replace(DATASETS[name], **changes)
        monkeypatch.setattr("mrad_med.data.public_sets.DATASETS", {**DATASETS, name: entry})

    return change


# by name


@pytest.mark.parametrize("name", ["cvc-300", "CVC-300", "cvc_300", " CVC 300 "])
def test_names_are_spelled_in_any_case(tmp_path, publish, name):
    publish("cvc-300", counts={"test": (0, 3)})
    root = make_archive("cvc-300", tmp_path)
    cases = load_datalist(name, root, strict=True)
    assert [case["case_id"] for case in cases] == ["images/1", "images/10", "images/2"]


def test_split_is_handed_on(tmp_path):
    cases = load_datalist("tn3k", make_archive("tn3k", tmp_path), split="train")
    assert [case["case_id"] for case in cases] == ["trainval-image/0000"]


def test_general_layouts_have_names_too(tmp_path):
    pictures(tmp_path, "normal/a.png defect/b.png mask/b.png")
    row = {"img_path": "normal/a.png", "mask_path": "", "anomaly": 0}
    text(tmp_path / "meta.json", json.dumps({"test": {"tile": [row]}}))
    text(tmp_path / "list/datalist.json", json.dumps({"training": [{"image": "c.png", "label": 1}]}))
    picture(tmp_path / "list/c.png")
    text(tmp_path / "cases.csv", "image,label\ndefect/b.png,1\n")
    assert [case["case_id"] for case in load_datalist("folder", tmp_path, strict=True)] == ["normal/a", "defect/b"]
    assert [case["class"] for case in load_datalist("meta.json", tmp_path, strict=True)] == ["tile"]
    assert [case["case_id"] for case in load_datalist("csv", tmp_path, strict=True)] == ["defect/b"]
    assert [case["case_id"] for case in load_datalist("datalist", tmp_path / "list", split="training")] == ["c"]


@pytest.mark.parametrize(
    ("name", "hint"), [("mvtec", "did you mean 'mvtec-ad'? "), ("kvasir-seg", "did you mean 'kvasir'? "), ("zzz", "")]
)
def test_unknown_name_is_refused_with_those_there_are(tmp_path, name, hint):
    message = f"there is no dataset '{name}'; {hint}Public datasets: mvtec-ad, visa, btad, "
    with pytest.raises(DatasetError, match=f"{re.escape(message)}.*General layouts: folder, meta.json, csv, datalist$"):
        load_datalist(name, tmp_path)


def test_problem_of_the_set_is_a_warning_or_where_strict_an_error(tmp_path, caplog, publish):
    publish("kvasir", counts={"test": (0, 2)})
    root = make_archive("kvasir", tmp_path)
    (root / "masks/cju0qkwl35piu0993l0dewei2.jpg").unlink()
    assert [bool(case["mask"]) for case in load_datalist("kvasir", root)] == [False, True]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "have no mask of the same name: cju0qkwl35piu0993l0dewei2.jpg" in caplog.text
    with pytest.raises(DatasetError, match=r"1 of 2 image\(s\) in .* have no mask of the same name"):
        load_datalist("kvasir", root, strict=True)


# counts


@pytest.mark.parametrize("name", MAKERS)
def test_numbers_that_are_not_the_published_ones_are_reported(tmp_path, caplog, name):
    cases = load_datalist(name, make_archive(name, tmp_path))
    expected = DATASETS[name].counts.get("test")
    if expected is None:
        assert caplog.records == []
        return
    anomalous = sum(case["label"] for case in cases)
    message = (
        f"{name}, split test: found {len(cases) - anomalous} of {expected[0]} normal and {anomalous} of {expected[1]} "
        "anomalous images"
    )
    assert message in caplog.text
    assert DATASETS[name].home in caplog.text


def test_shortfall_names_the_classes(tmp_path):
    root = make_archive("btad", tmp_path)
    message = (
        "btad, split test: found 3 of 451 normal and 6 of 290 anomalous images (01: 3, 02: 3, 03: 3); unpack the whole"
    )
    with pytest.raises(DatasetError, match=re.escape(message)):
        load_datalist("btad", root, strict=True)


def test_surplus_is_reported_as_well(tmp_path, caplog, publish):
    publish("br35h", counts={"test": (1, 1)})
    load_datalist("br35h", make_archive("br35h", tmp_path))
    assert "found 2 of 1 normal and 1 of 1 anomalous images; unpack" in caplog.text


def test_published_numbers_cause_no_warning(tmp_path, caplog, publish):
    publish("headct", counts={"test": (1, 2)})
    assert len(load_datalist("headct", make_archive("headct", tmp_path), strict=True)) == 3
    assert caplog.records == []


def test_known_part_of_a_set_is_reported_by_its_name(tmp_path, caplog):
    for number in range(62):
        pictures(tmp_path, f"TestDataset/CVC-ClinicDB/images/{number}.png TestDataset/CVC-ClinicDB/masks/{number}.png")
    assert len(load_datalist("cvc-clinicdb", tmp_path)) == 62
    assert caplog.records[0].getMessage().startswith("cvc-clinicdb has 62 of 612 images, as in PraNet's test data: ")
    assert len(caplog.records) == 1


# what is on disk


def test_without_a_root_the_inventory_is_the_catalog():
    rows = list_datasets()
    assert [row.dataset for row in rows] == list(DATASETS.values())
    assert all((row.root, row.found, row.problems) == (None, {}, ()) for row in rows)


def test_every_set_is_found_beside_the_others(tmp_path):
    roots = {name: make_archive(name, tmp_path) for name in MAKERS}
    rows = {row.dataset.name: row for row in list_datasets(tmp_path)}
    assert {name: row.root for name, row in rows.items()} == roots
    assert rows["mvtec-ad"].found == {"test": (15, 15), "train": (15, 0)}
    assert rows["bmad-brain"].found == {"test": (1, 1), "valid": (1, 1), "train": (1, 0)}
    assert rows["kvasir"].found == {"test": (0, 2)}
    assert rows["kvasir"].problems == (
        "kvasir, split test: found 0 of 0 normal and 2 of 1000 anomalous images; unpack the whole archive from "
        "https://datasets.simula.no/kvasir-seg/, without files of your own",
    )


def test_set_is_found_in_the_folder_of_its_name(tmp_path):
    make_polyps(tmp_path / "etis" / "data")
    make_archive("mpdd", tmp_path / "mpdd")
    found = {row.dataset.name: row.root for row in list_datasets(tmp_path) if row.root}
    assert found == {"etis": tmp_path / "etis" / "data", "mpdd": tmp_path / "mpdd" / "MPDD"}


def test_root_is_a_dataset_if_its_files_or_its_name_identify_it(tmp_path):
    for name in ("btad", "cvc-300"):
        root = make_archive(name, tmp_path / name)
        assert {row.dataset.name: row.root for row in list_datasets(root) if row.root} == {name: root}
    make_polyps(tmp_path / "somewhere")
    assert not any(row.root for row in list_datasets(tmp_path / "somewhere"))


def test_split_that_was_not_unpacked_is_not_a_problem_of_the_inventory(tmp_path, publish):
    publish("tn3k", counts={"test": (0, 1)})
    root = make_archive("tn3k", tmp_path)
    shutil.rmtree(root / "trainval-image")
    row = next(row for row in list_datasets(tmp_path) if row.dataset.name == "tn3k")
    assert (row.found, row.problems) == ({"test": (0, 1)}, ())


def test_set_that_cannot_be_read_does_not_stop_the_others(tmp_path):
    visa, polyps = make_archive("visa", tmp_path), make_archive("cvc-300", tmp_path)
    text(visa / "split_csv/1cls.csv", "image\n../../secret.png\n")
    rows = {row.dataset.name: row for row in list_datasets(tmp_path)}
    assert rows["cvc-300"].root == polyps
    assert (rows["visa"].root, rows["visa"].found) == (visa, {})
    assert len(rows["visa"].problems) == 1
    assert "1cls.csv lacks the columns object, split, label, mask; it has image" in rows["visa"].problems[0]


def test_folder_that_cannot_be_listed_is_reported_in_every_row(tmp_path):
    rows = list_datasets(tmp_path / "nowhere")
    assert all(row.root is None and "cannot list" in row.problems[0] for row in rows)


def test_row_is_a_few_lines_of_text(tmp_path):
    root = make_archive("headct", tmp_path)
    rows = {row.dataset.name: row for row in list_datasets(tmp_path)}
    home = "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage"
    assert str(rows["headct"]).splitlines() == [
        "headct: HeadCT (medical; CT of the head, hemorrhage), license: see its home",
        f"  home: {home}",
        "  published: test 100 normal, 100 anomalous",
        f"  found in {root}: test 1 normal, 2 anomalous",
        "  problem: headct, split test: found 1 of 100 normal and 2 of 100 anomalous images; unpack the whole archive "
        f"from {home}, without files of your own",
    ]
    assert len(str(rows["visa"]).splitlines()) == 3
