"""Masks and their images: paired by name in any order, and every doubtful pair reported."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrad_med.data.datalist import make_cases, reporter, shorten
from mrad_med.data.masks import cases_by_masks, check_masks, pair_masks
from mrad_med.data.paths import list_folders, list_images, name_cases, path_below
from mrad_med.errors import DatasetError
from tests.small_archives import litter, picture, pictures


def paths(folder: str, names: str) -> list[Path]:
    return [Path(folder) / name for name in names.split()]


def pairs_of(images: str, masks: str, *endings: str) -> tuple[dict[str, str], list[str]]:
    problems: list[str] = []
    found = pair_masks(paths("i", images), paths("m", masks), endings=endings, report=problems.append)
    return {image.name: mask.name for image, mask in found.items()}, problems


def test_pairs_are_those_of_the_names_in_any_order_and_with_any_suffix():
    assert pairs_of("b.jpg a.png c.d.tif", "c.d.png a.bmp b.png") == (
        {"a.png": "a.bmp", "b.jpg": "b.png", "c.d.tif": "c.d.png"},
        [],
    )


def test_ending_of_a_mask_is_taken_off_unless_the_image_has_it_too():
    assert pairs_of("a_mask.png b.png", "a_mask.png b_gt.png", "_mask", "_gt") == (
        {"a_mask.png": "a_mask.png", "b.png": "b_gt.png"},
        [],
    )
    assert pairs_of("b.png", "b_gt.png", "_mask")[0] == {}


def test_lonely_images_and_stray_masks_are_named():
    assert pairs_of("1.png 2.png 3.png", "3.png 4.png 5.png") == (
        {"3.png": "3.png"},
        [
            "2 of 3 image(s) in i have no mask of the same name: 1.png, 2.png; unpack or copy the masks again",
            "2 of 3 mask(s) in m have no image of the same name: 4.png, 5.png; unpack or copy the images again",
        ],
    )


@pytest.mark.parametrize(
    ("images", "masks", "unclear"),
    [
        ("a.png a.jpg b.png", "a.png b.png", "a.png, a.jpg"),
        ("a.png b.png", "a.png a.bmp b.png", "a.png, a.bmp"),
        ("a.png b.png", "a.png a_mask.png b.png", "a.png, a_mask.png"),
    ],
)
def test_files_that_share_a_name_are_not_paired_but_named(images, masks, unclear):
    found, problems = pairs_of(images, masks, "_mask")
    assert found == {"b.png": "b.png"}
    assert problems == [
        f"2 file(s) in i or m share a name, so their masks cannot be assigned: {unclear}; keep one file per name"
    ]


def test_problem_is_an_error_where_strict_and_a_warning_else(caplog):
    with pytest.raises(DatasetError, match=r"^the mask of 7 is gone 100%$"):
        reporter(strict=True)("the mask of 7 is gone 100%")
    assert caplog.records == []
    reporter(strict=False)("the mask of 7 is gone 100%")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "the mask of 7 is gone 100%")
    ]


def test_long_lists_are_cut_with_dots():
    assert shorten("abcde") == "a, b, c, d, e"
    assert shorten("abcdef") == "a, b, c, d, e, ..."
    assert shorten(iter([])) == ""


# paths that tables name


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("a/b.png", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        ("./a//b.png", "a/b.png"),
        ("Fall ä/x..y.png", "Fall ä/x..y.png"),
    ],
)
def test_path_below_the_root_is_returned(tmp_path, name, below):
    assert path_below(tmp_path, name) == tmp_path / below


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../a.png",
        "a/../../b.png",
        "a/..",
        "..\\a.png",
        "\\\\host\\a.png",
        "C:\\a.png",
        "c:a.png",
        "a\0b",
    ],
)
def test_path_that_leads_out_of_the_root_is_refused(tmp_path, name):
    message = f"names a file outside its folder {tmp_path}: {name!r}; use paths below it"
    with pytest.raises(DatasetError, match=re.escape(message)):
        path_below(tmp_path, name)


# what is in a folder


def test_folders_and_images_are_listed_in_order_without_litter(tmp_path):
    pictures(tmp_path, "b.png a.JPG Größe~1.tif sub/c.png __MACOSX/d.png .hidden/e.png")
    litter(tmp_path)
    assert [path.name for path in list_images(tmp_path)] == ["Größe 1.tif", "a.JPG", "b.png"]
    assert [path.name for path in list_folders(tmp_path)] == ["sub"]


def test_links_count_as_their_targets(tmp_path):
    pictures(tmp_path, "elsewhere/a.png set/b.png")
    (tmp_path / "set/a.png").symlink_to(tmp_path / "elsewhere/a.png")
    (tmp_path / "set/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [path.name for path in list_images(tmp_path / "set")] == ["a.png", "b.png"]
    assert [path.name for path in list_folders(tmp_path / "set")] == ["sub"]


def test_folder_that_cannot_be_listed_is_refused(tmp_path):
    for listing in (list_images, list_folders):
        with pytest.raises(DatasetError, match=r"cannot list .*\(No such file or directory\); grant access") as error:
            listing(tmp_path / "gone")
        assert "gone" not in str(error.value)  # it may be named after a patient


# cases


def test_cases_are_named_by_their_paths_and_have_the_masks_that_are_known(tmp_path):
    images = [tmp_path / "sub" / name for name in ("a.png", "a.jpg", "b.c.png")]
    assert name_cases(images, tmp_path) == ["sub/a_png", "sub/a_jpg", "sub/b.c"]
    assert make_cases(tmp_path, images[2:], 1, {images[2]: tmp_path / "m.png"}, "tile") == [
        {
            "image": str(images[2]),
            "case_id": "sub/b.c",
            "label": 1,
            "mask": str(tmp_path / "m.png"),
            "class": "tile",
        }
    ]


@pytest.mark.parametrize(
    ("name", "spot", "label"),
    [("m.png", 0, 0), ("m.png", 1, 1), ("m.png", 255, 1), ("m.bmp", 255, 1), ("m.jpg", 0, 0), ("m.jpg", 9, 0)],
)
def test_label_is_whether_the_mask_has_an_anomalous_pixel(tmp_path, name, spot, label):
    image, mask = tmp_path / "a.png", picture(tmp_path / name, spot=spot)
    cases = cases_by_masks(tmp_path, [image, tmp_path / "b.png"], {image: mask}, "x", pytest.fail)
    assert [(case["case_id"], case["label"], case["mask"]) for case in cases] == [("a", label, str(mask))]


def test_mask_that_cannot_be_read_costs_its_case(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    mask.write_bytes(b"pixels")
    problems: list[str] = []
    assert cases_by_masks(tmp_path, [image], {image: mask}, "x", problems.append) == []
    assert len(problems) == 1
    assert re.match(r"the mask .*m\.png cannot be used, left out: not an image in any known format", problems[0])


# sizes


def case(image: Path, mask: Path | None) -> dict:
    return {"image": str(image), "case_id": image.stem, "mask": None if mask is None else str(mask)}


def test_masks_of_the_size_of_their_images_are_not_a_problem(tmp_path):
    picture(tmp_path / "a.tif")
    picture(tmp_path / "a.png")
    assert check_masks([case(tmp_path / "a.tif", tmp_path / "a.png"), case(tmp_path / "b.png", None)]) == []
    assert check_masks([case(tmp_path / "v.nii", tmp_path / "m.nii")]) == []


def test_mask_of_another_size_is_named_with_both(tmp_path):
    picture(tmp_path / "a.png")
    Image.new("L", (20, 17)).save(tmp_path / "m.png")
    assert check_masks([case(tmp_path / "a.png", tmp_path / "m.png")]) == [
        "a: its mask is 20 x 17 and the image 20 x 16"
    ]


def test_sizes_are_compared_as_displayed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (20, 16)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (16, 20)).save(tmp_path / "m.png")
    assert check_masks([case(tmp_path / "a.jpg", tmp_path / "m.png")]) == []


def test_size_of_a_tiff_that_pillow_does_not_know_is_read_too(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", np.zeros((16, 21)))
    picture(tmp_path / "a.png")
    assert check_masks([case(tmp_path / "a.png", tmp_path / "m.tif")]) == [
        "a: its mask is 21 x 16 and the image 20 x 16"
    ]


def test_files_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"pixels")
    assert check_masks([case(tmp_path / "a.png", tmp_path / "gone.png")]) == [
        "a: its image cannot be opened; copy it again",
        "a: its mask cannot be opened; copy it again",
    ]
