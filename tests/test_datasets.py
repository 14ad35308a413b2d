"""Datalists of folders as people have them: nested, badly named, linked in circles, half labelled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from mrad_med import DatasetError, find_cases, load_labelled_folder


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


# any folder of images


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("a.png", "a"),
        ("scan.nii.gz", "scan"),
        ("Scan.NII.GZ", "Scan"),
        ("day 1.5.jpeg", "day 1.5"),
        ("IM0001", "IM0001"),
        ("anything.xyz", "anything.xyz"),  # asked for by name: the reader will say what is wrong with it
    ],
)
def test_file_is_one_case(tmp_path, name, case_id):
    fill(tmp_path, [name])
    assert find_cases(tmp_path / name) == [{"image": str(tmp_path / name), "case_id": case_id}]


def test_folder_may_be_given_as_text(tmp_path):
    fill(tmp_path, ["a.png"])
    assert find_cases(str(tmp_path)) == [{"image": str(tmp_path / "a.png"), "case_id": "a"}]


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


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    fill(tmp_path, ["a.png", ".b.png", ".partial-7-c.png", ".cache/d.png", "sub/.e/f.png"])
    assert case_ids(tmp_path) == ["a"]


def test_hidden_root_is_searched_all_the_same(tmp_path):
    fill(tmp_path / ".data", ["a.png"])
    assert case_ids(tmp_path / ".data") == ["a"]


def test_folder_named_like_an_image_is_a_folder(tmp_path):
    fill(tmp_path, ["b.png/a.jpg"])
    assert case_ids(tmp_path) == ["b.png/a"]


def test_names_with_spaces_and_letters_of_any_script_are_kept(tmp_path):
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
    """Results are files by the case's name: one would overwrite the other."""
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
    with pytest.raises(DatasetError, match=r"no image below .*: photographs \(png, jpg, tif, \.\.\.\), DICOM .* NIfTI"):
        find_cases(tmp_path)


def test_missing_path_is_refused_by_its_name(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no file or folder .*nowhere"):
        find_cases(tmp_path / "nowhere")


# labelled folders


def test_masks_are_paired_by_name_not_by_order(tmp_path):
    fill(tmp_path, ["defect/b.jpg", "defect/a.png", "mask/a.bmp", "mask/b.png", "normal/a.png", "mask/unused.png"])
    assert load_labelled_folder(tmp_path) == [
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
    pairs = {item["case_id"]: item["mask"] for item in load_labelled_folder(tmp_path)}
    assert pairs == {
        "defect/board/a": str(tmp_path / "mask/board/a.png"),
        "defect/tile/a": str(tmp_path / "mask/tile/a.png"),
    }


def test_missing_mask_is_named(tmp_path):
    fill(tmp_path, ["defect/a.png", "defect/crack 7.png", "mask/a.png", "normal/n.png"])
    with pytest.raises(DatasetError, match=r"1 image\(s\) in .*defect have no mask .* in .*mask: defect/crack 7$"):
        load_labelled_folder(tmp_path)


def test_many_missing_masks_are_counted_and_some_are_named(tmp_path):
    fill(tmp_path, [f"defect/{i}.png" for i in range(9)] + ["mask/0.png"])
    with pytest.raises(
        DatasetError, match=r"^8 image\(s\) .*: defect/1, defect/2, defect/3, defect/4, defect/5, \.\.\."
    ):
        load_labelled_folder(tmp_path)


def test_without_a_mask_folder_there_are_labels_only(tmp_path):
    fill(tmp_path, ["defect/a.png", "normal/n.png"])
    items = load_labelled_folder(tmp_path)
    assert [(item["label"], item.get("mask")) for item in items] == [(0, None), (1, None)]


@pytest.mark.parametrize(("name", "label"), [("normal", 0), ("defect", 1)])
def test_one_of_the_two_folders_is_enough(tmp_path, name, label):
    fill(tmp_path, [f"{name}/a.png", f"{name}/b.png"])
    items = load_labelled_folder(str(tmp_path))
    assert [(item["case_id"], item["label"]) for item in items] == [(f"{name}/a", label), (f"{name}/b", label)]


def test_folder_with_neither_is_refused(tmp_path):
    fill(tmp_path, ["good/a.png", "mask/a.png"])
    with pytest.raises(DatasetError, match="nor a folder below it has normal/ or defect/: labelled images"):
        load_labelled_folder(tmp_path)


def test_empty_folder_of_images_is_refused(tmp_path):
    fill(tmp_path, ["normal/a.png"])
    (tmp_path / "defect").mkdir()
    with pytest.raises(DatasetError, match=f"no image below .*{os.sep}defect"):
        load_labelled_folder(tmp_path)


def test_index_of_an_export_disk_is_no_case(tmp_path):
    fill(tmp_path, ["a.png"])
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "1.2.840.7").write_bytes(b"\0" * 128 + b"DICM")
    assert [case["case_id"] for case in find_cases(tmp_path)] == ["1.2.840.7", "a"]


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/closed"))

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DatasetError, match=r"cannot list .*closed \(Permission denied\)"):
        find_cases(tmp_path)
