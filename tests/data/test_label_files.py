"""Masks below a path are recognized by a word of their name and by their content, and are not scored."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mrad_med import find_cases, make_phantom
from mrad_med.cli import main
from mrad_med.data import survey
from mrad_med.data.label_files import MASK_REASON, has_mask_name
from mrad_med.errors import DatasetError
from tests.small_dicom import write_series

PHOTOGRAPH, MASK = make_phantom((60, 80), lesion_radius=0.2, seed=1)


def names_in(folder: Path, **search: bool) -> tuple[list[str], list[str]]:
    """Return the names of the cases below a folder, and those of the files that are skipped."""
    found = survey(folder, **search)
    return [case["case_id"] for case in found.cases], [item.case_id for item in found.skipped]


def save(folder: Path, name: str, pixels: np.ndarray) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize(
    "name",
    [
        "masks/1.png",
        "Mask/1.png",
        "set/ground_truth/good/1.png",
        "GroundTruth/1.bmp",
        "a/1_mask.png",
        "1-seg.nii.gz",
        "1.seg.nrrd",
        "labelsTr/case.nii.gz",
        "LABELS2/1.png",
        "gt1.png",
        "case_GT.png",
        "PatientMask.png",
        "segmentation.nii",
    ],
)
def test_names_with_a_word_for_masks_are_recognized(name: str):
    assert has_mask_name(name)


@pytest.mark.parametrize(
    "name", ["unmasked/1.png", "masked.png", "segment1.png", "labeled.png", "width.png", "image/1.png", "maskara.jpg"]
)
def test_parts_of_other_words_are_not(name: str):
    assert not has_mask_name(name)


def test_masks_beside_images_are_skipped_with_the_reason_and_the_option(tmp_path: Path):
    save(tmp_path, "images/1.jpg", PHOTOGRAPH)
    save(tmp_path, "masks/1.jpg", MASK)  # compression gives such a mask many gray values
    save(tmp_path, "masks/2.png", MASK // 255)
    save(tmp_path, "annotated/2_gt.png", np.stack([MASK, MASK // 2, MASK], axis=-1))
    assert names_in(tmp_path) == (["images/1"], ["annotated/2_gt", "masks/1", "masks/2"])
    assert {item.reason for item in survey(tmp_path).skipped} == {MASK_REASON}
    assert "--include-masks" in MASK_REASON
    everything = ["annotated/2_gt", "images/1", "masks/1", "masks/2"]
    assert names_in(tmp_path, include_masks=True) == (everything, [])
    assert [case["case_id"] for case in find_cases(tmp_path)] == ["images/1"]
    assert [case["case_id"] for case in find_cases(tmp_path, include_masks=True)] == everything


def test_neither_a_name_nor_a_content_alone_skips_a_file(tmp_path: Path):
    save(tmp_path, "mask/photo.png", PHOTOGRAPH)
    save(tmp_path, "mask/photo_jpeg.jpg", PHOTOGRAPH)
    save(tmp_path, "images/two_values.png", MASK)
    (tmp_path / "mask" / "damaged.png").write_bytes(b"no image")
    cases, skipped = names_in(tmp_path)
    assert (len(cases), skipped) == (4, [])


@pytest.mark.parametrize(("values", "is_skipped"), [(16, True), (17, False)])
def test_a_label_volume_has_at_most_16_values(tmp_path: Path, values: int, is_skipped: bool):
    labels = np.zeros((20, 24, 18), np.float32)
    labels.reshape(-1)[-values:] = np.arange(values)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "seg.nii.gz")
    save(tmp_path, "photo.png", PHOTOGRAPH)
    assert ("seg" in names_in(tmp_path)[1]) == is_skipped


def test_values_between_integers_are_not_labels(tmp_path: Path):
    probability = np.linspace(0, 1, 5, dtype=np.float32)[:, None, None].repeat(20, 1).repeat(20, 2).repeat(4, 0)
    nibabel.save(nibabel.Nifti1Image(probability, np.eye(4)), tmp_path / "mask.nii")
    assert names_in(tmp_path) == (["mask"], [])


def test_a_dicom_series_is_a_mask_only_as_a_whole(tmp_path: Path):
    random = np.random.RandomState(0).randint(0, 900, (20, 24, 4))
    random[..., 0] = 0  # a black slice
    write_series(tmp_path / "labels_of_reader", random)
    assert names_in(tmp_path)[1] == []
    write_series(tmp_path / "labels_2", random % 3, uid="1.2.3")
    cases, skipped = names_in(tmp_path)
    assert (len(cases), len(skipped)) == (1, 4)


def test_a_folder_of_masks_only_is_an_error_that_names_the_option(tmp_path: Path):
    save(tmp_path, "masks/1.png", MASK)
    with pytest.raises(DatasetError, match=r"no image to score: it is a mask: .*--include-masks \(include_masks\)"):
        find_cases(tmp_path)


@pytest.mark.usefixtures("embedded_is_loaded")
def test_the_command_lists_masks_that_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save(tmp_path, "in/images/1.png", PHOTOGRAPH)
    for number in (1, 2):
        save(tmp_path, f"in/masks/{number}.png", MASK)
    command = ["detect", str(tmp_path / "in"), "--bundle", "mrad_tf", "--image_size", "70", "--device", "cpu"]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(rf"(\S+) +skipped +{re.escape(MASK_REASON)}", printed) == ["masks/1", "masks/2"]
    assert "1 case(s) would be scored, 2 file(s) skipped" in printed
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 case(s) scored" in printed
    assert f"skipped masks/1 and 1 more: {MASK_REASON}" in printed
    assert main([*command, "--out", str(tmp_path / "out"), "--include-masks"]) == 0
    assert "3 of 3 case(s) scored" in capsys.readouterr().out


@pytest.mark.usefixtures("embedded_is_loaded")
def test_content_alone_is_reported_but_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for number in (1, 2):
        save(tmp_path, f"in/{number}.png", MASK)
    save(tmp_path, "in/3.png", PHOTOGRAPH)
    command = ["detect", str(tmp_path / "in"), "--bundle", "mrad_tf", "--image_size", "70", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    warnings = [record.getMessage() for record in caplog.records if "distinct values" in record.getMessage()]
    assert warnings == [
        "1 and 1 more: at most 16 distinct values, as in a mask; ignore the results if these are labels"
    ]
