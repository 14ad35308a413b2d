"""Folders of results: results of patients are not mixed up, and the page on folders names all files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrad_med
from mrad_med.cli import main
from mrad_med.data import write_sample_series
from mrad_med.errors import FailedCasesError
from mrad_med.store import LOCK_NAME
from tests.small_dicom import write_series

ROOT = Path(__file__).parent.parent
SMALL = ["--bundle", "mrad_tf", "--image_size", "70", "--device", "cpu"]
YEAR_2000 = 946_684_800
PATIENTS = ("Fingal^Olive", "Quill^Peter", "Adams^Zoe")  # the last one's folder is sorted first


def detect(root: Path, out: Path, *words: str) -> int:
    return main(["detect", str(root), "--out", str(out), *SMALL, "--write", "tiff", "nifti", *words])


def scores(out: Path) -> dict[str, float]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "ok"]
    return {row["case_id"]: float(row["anomaly_score"]) for row in rows}


def series(folder: Path, seed: int) -> None:
    """Write slices whose names, sizes and times of change are those of every other patient."""
    values = np.random.RandomState(seed).randint(0, 2000, (40, 48, 3))
    write_series(folder, values, PatientName=PATIENTS[seed], StudyInstanceUID=f"1.2.{seed}")


def photographs(folder: Path, seed: int) -> None:
    """Write photographs likewise; a DICOM file beside them states whose folder it is."""
    values = np.arange(48)[None, :, None].repeat(40, 0)
    write_series(folder, values, names=["own.dcm"], PatientName=PATIENTS[seed], StudyInstanceUID=f"1.2.{seed}")
    for name in ("a.bmp", "b.bmp"):
        Image.fromarray(np.random.RandomState(seed).randint(0, 256, (40, 48, 3), np.uint8)).save(folder / name)
        seed += 10


def add_patient(root: Path, make, seed: int) -> Path:
    folder = root / PATIENTS[seed].replace("^", " ")
    folder.mkdir(parents=True)
    make(folder, seed)
    for path in folder.iterdir():
        os.utime(path, (YEAR_2000, YEAR_2000))
    return folder


@pytest.mark.parametrize(("make", "count"), [(series, 1), (photographs, 3)])
def test_no_patient_gets_the_result_of_another(tmp_path, capsys, make, count):
    root, out = tmp_path / "ward", tmp_path / "out"
    folders = [add_patient(root, make, seed) for seed in (0, 1)]
    # UIDs of the DICOM files are of random length.
    sizes = [sorted((path.name, path.stat().st_size) for path in folder.glob("*.bmp")) for folder in folders]
    assert len(sizes[0]) == count - 1
    assert sizes[0] == sizes[1]
    assert detect(root, out) == 0
    first = scores(out)
    assert len(set(first.values())) > 1
    add_patient(root, make, 2)
    capsys.readouterr()
    assert detect(root, out) == 0
    assert f"{2 * count} of {3 * count} case(s) are finished already" in capsys.readouterr().out
    together = scores(out)
    assert len(together) == 3 * count
    assert together | first == together
    alone: dict[str, float] = {}
    for folder in root.iterdir():
        shutil.copytree(folder, tmp_path / "alone" / folder.name / folder.name)
        assert detect(tmp_path / "alone" / folder.name, tmp_path / "fresh" / folder.name) == 0
        alone |= scores(tmp_path / "fresh" / folder.name)
    assert together == pytest.approx(alone, abs=2e-6)  # other batches round in another way
    assert not re.search("fingal|olive|quill|zoe", " ".join(together), re.IGNORECASE)
    shutil.rmtree(folders[0])
    assert detect(root, out) == 0
    assert scores(out).items() <= together.items()


def test_photograph_that_is_replaced_by_another_of_its_name_size_and_time_is_scored_again(tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    before = []
    for seed in (0, 1):
        Image.fromarray(np.random.RandomState(seed).randint(0, 256, (40, 48, 3), np.uint8)).save(folder / "a.bmp")
        os.utime(folder / "a.bmp", (YEAR_2000, YEAR_2000))
        before.append((folder / "a.bmp").stat()[6:9])
        assert detect(folder, out) == 0
        before.append(scores(out))
    assert before[0] == before[2]
    assert before[1] != before[3]


def replace_once(path: Path, times: int, monkeypatch) -> None:
    """Let another program write to a file each time after it was read."""
    left, read = [times], mrad_med.CaseDataset.__getitem__

    def read_and_replace(self, index: int):
        item = read(self, index)
        if left[0] and Path(self.data[index]["image"]) == path:
            left[0] -= 1
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        return item

    monkeypatch.setattr(mrad_med.CaseDataset, "__getitem__", read_and_replace)


@pytest.mark.parametrize("times", [1, 2])
def test_case_that_changes_while_it_is_read_is_scored_once_more_and_then_refused(tmp_path, monkeypatch, capsys, times):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        Image.fromarray(np.random.RandomState(seed).randint(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{name}.png")
    with monkeypatch.context() as patch:
        replace_once(folder / "a.png", times, patch)
        assert detect(folder, out) == times - 1
    line = "left out a: its file changed while it was read, twice; wait until nothing writes to it, for example"
    assert (line in capsys.readouterr().err) is (times == 2)
    assert detect(folder, tmp_path / "fresh") == 0
    assert scores(out).items() <= scores(tmp_path / "fresh").items()
    assert len(scores(out)) == 3 - times
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["complete"] is True


def test_bundle_run_fails_for_a_case_that_changes_twice(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 48, 3), np.uint8)).save(folder / "a.png")
    values = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "image_size": 70, "device": "cpu"}
    workflow = mrad_med.BundleWorkflow("mrad_tf", **values)
    workflow.initialize()
    replace_once(folder / "a.png", 2, monkeypatch)
    with pytest.raises(FailedCasesError, match=r"1 of 1 case\(s\) failed, .*\n  a: its file changed while it was read"):
        workflow.run()


@pytest.mark.parametrize("command", ["detect", "evaluate", "train"])
def test_folder_of_another_host_is_refused_and_taken_over_on_request(tmp_path, capsys, command):
    out, images = tmp_path / "out", Path(mrad_med.write_sample_dataset(tmp_path / "set", count=1))
    out.mkdir()
    (out / LOCK_NAME).write_text('{"host": "elsewhere", "pid": 4711}', encoding="utf-8")
    small = ["--image_size", "70", "--device", "cpu"]
    words = {
        "detect": ["detect", str(images / "normal"), "--out", str(out), *SMALL],
        "evaluate": ["evaluate", "mrad_tf", "--dataset", "folder", "--dataset_dir", str(images), *small],
        "train": ["train", "mrad_ft", "--dataset_dir", str(images), "--max_epochs", "0", *small],
    }[command]
    words += [] if command == "detect" else ["--output_dir", str(out)]
    words += ["--resamples", "0"] if command == "evaluate" else []
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"mrad-med: {out} is being written to by process 4711 on elsewhere: wait until it has finished, or choose "
        "another folder. If that process has ended, take over the folder: --take-over, in Python take_over=True"
    )
    assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    if command != "train":  # train takes long, and its lock is the same
        assert main([*words, "--take-over"]) == 0
        assert not (out / LOCK_NAME).exists()


# the page on folders


def names_on_the_page(command: str) -> set[str]:
    page = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8")
    section = page.split(f"## `mrad-med {command}`")[1].split("\n## ")[0]
    return {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_page_names_what_detect_leaves(tmp_path):
    pytest.importorskip("av")
    folder, out = tmp_path / "images", tmp_path / "out"
    write_sample_series(folder / "ct", *mrad_med.make_chest_phantom((24, 20, 5))[::2])
    for index in range(2):
        pixels = np.random.RandomState(index).randint(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"frame_{index}.png")
    words = ["--write", "nifti", "mask", "overlay", "montage", "seg", "video", "--threshold", "0.4"]
    assert main(["detect", str(folder), "--out", str(out), *SMALL, "--sequence_rate", "5", *words]) == 0
    assert names_in(out) == names_on_the_page("detect") - {LOCK_NAME}


def test_page_names_what_evaluate_leaves(tmp_path):
    folder, out = mrad_med.write_sample_dataset(tmp_path / "set", count=1), tmp_path / "out"
    words = ["--dataset", "folder", "--dataset_dir", folder, "--output_dir", str(out), "--resamples", "0"]
    assert main(["evaluate", "mrad_tf", *words, "--image_size", "70", "--device", "cpu"]) == 0
    assert names_in(out) == names_on_the_page("evaluate") - {LOCK_NAME}


@pytest.mark.slow
def test_page_names_what_train_leaves(tmp_path):
    folder = mrad_med.write_surface_dataset(tmp_path / "set", surfaces=["fabric", "leather"], count=1)
    words = ["train", "mrad_ft", "--dataset_dir", folder, "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--image_size", "126", "--device", "cpu"]) == 0
    assert names_in(tmp_path / "out") | {"tensorboard"} == names_on_the_page("train") - {LOCK_NAME}
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["complete"] is True
