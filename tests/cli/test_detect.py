"""The command `mrad-med detect`: cases, outputs, failures, resuming, and hidden identifiers of patients."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import re
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import dcmread
from pydicom.uid import EnhancedSRStorage

import mrad_med
from mrad_med import CaseDataset, ResultWriter, make_chest_phantom
from mrad_med.cli import main
from mrad_med.data import write_sample_series
from mrad_med.io.frames import OverlayVideo
from mrad_med.results.outputs import OUTPUTS
from tests.dicom_phantoms import OBLIQUE, PRIVATE, write_multiframe, write_series, write_ultrasound

KEEP = "--keep-identifiers"  # cases of a study with DICOM files are then named after their paths
SMALL = ["--bundle", "mrad_tf", "--image_size", "70", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("embedded_is_loaded", "plain_figures")
DAMAGED = b"\x08\0\0\0" + bytes(100)  # may be DICOM without preamble
CASES = ["brain", "photo", "ct/series_1-238d1e6b95"]  # files of a folder precede those of its subfolders


def photograph(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


def report(path: Path) -> Path:
    """Write a DICOM object that is not an image."""
    dataset = dcmread(write_ultrasound(path))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedSRStorage
    dataset.Modality = "SR"
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]
    dataset.save_as(path)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def study(tmp_path) -> Path:
    """A photograph, a NIfTI volume, a DICOM series, and a file that is not an image."""
    root = tmp_path / "study"
    photograph(root / "photo.png")
    volume = np.random.RandomState(0).normal(size=(20, 24, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), root / "brain.nii.gz")
    write_sample_series(root / "ct", *make_chest_phantom((24, 20, 5))[::2])
    (root / "notes.txt").write_text("no image", encoding="utf-8")
    return root


@pytest.fixture
def scored(monkeypatch) -> list[list[str]]:
    """Names of the cases that pass through the network, for each run."""
    runs: list[list[str]] = [[]]
    make = CaseDataset.__init__

    def note(self, data, transform):
        runs[-1].extend(case["case_id"] for case in data)
        make(self, data, transform)

    monkeypatch.setattr(CaseDataset, "__init__", note)
    return runs


def detect(root: Path, out: Path, *words: str) -> int:
    return main(["detect", str(root), "--out", str(out), *SMALL, *words])


def table(out: Path, name: str = "scores") -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def scores(out: Path) -> dict[str, str]:
    return {row["case_id"]: row["anomaly_score"] for row in table(out)}


def written(out: Path) -> list[str]:
    """Return the outputs alone, without tables and records."""
    return sorted(path.relative_to(out).as_posix() for path in out.glob("*/**/*") if path.is_file())


# cases and outputs


def test_each_kind_has_its_outputs_and_a_bad_file_costs_only_itself(study, out, capfd, caplog):
    (study / "ct" / "damaged.dcm").write_bytes(DAMAGED)
    report(study / "ct" / "report")
    assert detect(study, out, KEEP) == 1
    assert written(out) == [
        *("maps/brain.nii.gz", "maps/ct/series_1-238d1e6b95.nii.gz", "maps/photo.tiff"),
        *("montages/brain.png", "montages/ct/series_1-238d1e6b95.png"),
        *("overlays/brain.png", "overlays/ct/series_1-238d1e6b95.png", "overlays/photo.png"),
    ]
    printed = capfd.readouterr()
    assert "3 of 4 case(s) scored" in printed.out
    # Progress counts images: 6 and 5 slices, a photograph and the damaged file. It shows the remaining time.
    assert re.search(r"images: 100%.* 13/13 \[\d\d:\d\d<00:00, .*image/s\]", printed.err)
    last = printed.err.splitlines()[-1]
    rows = {row["case_id"]: row for row in table(out)}
    assert {name: row["status"] for name, row in rows.items()} == {**dict.fromkeys(CASES, "ok"), "ct/damaged": "failed"}
    assert last == f"left out ct/damaged: {rows['ct/damaged']['reason']}"
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["failures"] == [{"case_id": "ct/damaged", "reason": rows["ct/damaged"]["reason"]}]
    assert record["cases"] == {"total": 4, "ok": 3, "failed": 1, "nothing_to_score": 0}
    assert any("ct/report: skipped: " in message and "structured report" in message for message in caplog.messages)
    assert Counter(row["case_id"] for row in table(out, "slices")) == {"brain": 6, "ct/series_1-238d1e6b95": 5}
    assert [row["study"] for row in table(out, "studies")] == ["study-40c5e4875b"]
    (study / "ct" / "damaged.dcm").unlink()
    assert detect(study, out, KEEP) == 0


OF_EACH = {
    "tiff": ["maps/photo.tiff"],
    "png": ["maps/photo.png"],
    "nifti": ["maps/brain.nii.gz", "maps/ct/series_1-238d1e6b95.nii.gz"],
    "nrrd": ["maps/brain.nrrd", "maps/ct/series_1-238d1e6b95.nrrd"],
    "mask": ["masks/brain.nii.gz", "masks/ct/series_1-238d1e6b95.nii.gz", "masks/photo.png"],
    "overlay": ["overlays/brain.png", "overlays/ct/series_1-238d1e6b95.png", "overlays/photo.png"],
    "montage": ["montages/brain.png", "montages/ct/series_1-238d1e6b95.png"],
    "seg": ["dicom/ct/series_1-238d1e6b95_seg.dcm"],
    "parametric-map": ["dicom/ct/series_1-238d1e6b95_map.dcm"],
    "capture": [f"dicom/ct/series_1-238d1e6b95/overlay_000{number}.dcm" for number in range(1, 6)],
    "video": [],
}


def test_each_output_is_written_by_its_name(study, tmp_path):
    assert set(OF_EACH) == {*OUTPUTS, "video"}
    for name, files in OF_EACH.items():
        assert detect(study, tmp_path / name, KEEP, "--write", name, "--threshold", "0.4") == 0
        assert written(tmp_path / name) == files


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--write", "tiff", "tif"], "there is no output tif; there are tiff, png, nifti, nrrd, mask, overlay, mo"),
        (["--write", "mask", "tiff"], "mask marks pixels at or above a threshold; give one (--threshold)"),
        (["--write", "seg"], "seg marks pixels at or above a threshold; give one (--threshold)"),
        (["--profile", "lungs"], "mrad_tf has no profile lungs; it has endoscopy, sliding, volume"),
        (["--window", "lungs"], "there is no window 'lungs'"),
        (["--plane", "oblique"], "plane must be one of auto, axial, coronal, sagittal"),
        *(
            (["--write", "mask", "--threshold", number], "--threshold must be a number from 0 to 1, as anomaly values")
            for number in ("nan", "inf", "1.01", "-0.01", "40")
        ),
    ],
)
def test_mistakes_are_reported_before_anything_is_scored_or_written(study, out, scored, capsys, words, message):
    assert detect(study, out, KEEP, *words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert scored == [[]]
    assert not out.exists()


def test_dry_run_lists_what_is_found_and_leaves_no_trace(study, out, monkeypatch, capsys):
    (study / "ct" / "damaged.dcm").write_bytes(DAMAGED)
    report(study / "ct" / "report")
    before = sorted(study.rglob("*"))
    monkeypatch.setattr(mrad_med, "load_clip", lambda *_, **__: pytest.fail("nothing should be loaded"))
    assert main(["detect", str(study), "--dry-run", KEEP]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["case", "study", "what", "remarks"]
    cells = [re.split(r" {2,}", line) for line in lines[:-1]]
    damage, reason = (row.pop() for row in (cells[3], cells[4]))
    assert cells == [
        ["brain", "volume"],
        ["photo", "photograph"],
        ["ct/series_1-238d1e6b95", "study-40c5e4875b", "DICOM CT 5 slices of 24 x 20, axial, 2 x 2 x 5 mm"],
        ["ct/damaged", "DICOM, damaged"],
        ["ct/report", "skipped"],
    ]
    assert "copy or export the file again" in damage
    assert "structured report" in reason
    assert lines[-1] == "4 case(s) would be scored, 1 file(s) skipped"
    assert main(["detect", str(study), "--dry-run", "--profile", "lungs"]) == 2
    assert main(["detect", str(study), *SMALL]) == 2
    assert "mrad-med: give a folder for results with --out, or list the cases with --dry-run" in capsys.readouterr().err
    assert detect(study, out, KEEP, "--dry-run", "--strict_geometry", "False") == 0
    assert not out.exists()
    assert sorted(study.rglob("*")) == before


def test_profiles_change_what_is_written(study, out):
    assert detect(study, out, KEEP, "--profile", "volume", "--profile", "sliding", "--write", "nifti") == 0
    assert written(out) == OF_EACH["nifti"]
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))["settings"]
    assert (record["profiles"], record["smooth"], record["view"]["keep_size"]) == (["volume", "sliding"], 1.0, True)


def test_frames_of_a_video_are_as_many_as_asked_for(tmp_path, out, scored):
    pytest.importorskip("av")
    (tmp_path / "exam").mkdir()
    with OverlayVideo(tmp_path / "exam" / "a.mp4", frames_per_second=10) as video:
        for index in range(10):
            video.write(np.random.RandomState(index).randint(0, 256, (48, 64, 3)).astype(np.uint8))
    assert detect(tmp_path / "exam", out, "--frames_per_second", "5") == 0
    assert [row["time_s"] for row in table(out)] == ["0.000", "0.200", "0.400", "0.600", "0.800"]
    assert written(out) == ["videos/a.mp4"]
    assert [(row["study"], row["cases"]) for row in table(out, "studies")] == [("a", "5")]
    scored.append([])
    assert detect(tmp_path / "exam", out) == 0
    assert len(scored[-1]) == len(table(out)) == 10  # a video is made of all of its frames or not at all
    assert detect(tmp_path / "exam", tmp_path / "other", "--profile", "endoscopy") == 0
    assert len(table(tmp_path / "other")) == 5
    assert detect(tmp_path / "exam", tmp_path / "none", "--frames_per_second", "0") == 2


def test_numbered_photographs_are_frames_where_a_rate_is_given(tmp_path, out):
    for index in range(3):
        photograph(tmp_path / "exam" / f"f_{index}.png", index)
    assert detect(tmp_path / "exam", out, "--sequence_rate", "4") == 0
    assert [(row["time_s"], row["study"]) for row in table(out)] == [("0.000", "f"), ("0.250", "f"), ("0.500", "f")]
    assert written(out) == ["videos/f.mp4"]


def test_processes_that_read_ahead_change_nothing(study, tmp_path):
    photograph(study / "second.png", 1)
    (study / "bad.png").write_bytes(b"no image")
    for jobs in ("0", "2"):
        assert detect(study, tmp_path / jobs, KEEP, "--jobs", jobs, "--write", "tiff", "nifti") == 1
    assert table(tmp_path / "0") == table(tmp_path / "2")
    assert written(tmp_path / "0") == written(tmp_path / "2")
    for name in written(tmp_path / "0"):
        read = tifffile.imread if name.endswith("tiff") else lambda path: nibabel.load(path).get_fdata()
        np.testing.assert_array_equal(read(tmp_path / "0" / name), read(tmp_path / "2" / name))


def test_highest_scores_are_shown_and_the_rest_is_counted(tmp_path, out, capsys):
    for index in range(22):
        photograph(tmp_path / "many" / f"{index:02d}.png", index)
    assert detect(tmp_path / "many", out, "--write", "png") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["case", "score"]
    ranked = sorted(((float(score), name) for name, score in scores(out).items()), reverse=True)[:20]
    assert [line.split() for line in lines[:20]] == [[name, f"{score:.4f}"] for score, name in ranked]
    assert lines[20:] == ["... and 2 more in scores.csv", f"22 of 22 case(s) scored, results in {out}"]


NAMES = ["a b  c", 'it\'s "so"', "line\nbreak", "Größe 病例 حالة", "50% $x; rm", "-rf", "x,y;z", "{braces}", "=1+1"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_files_of_any_name_are_scored_and_written(tmp_path, out, capsys):
    for index, name in enumerate(NAMES):
        photograph(tmp_path / "in here" / f"{name}.png", index)
    assert detect(tmp_path / "in here", out) == 0
    names = {name.replace("\n", "_") for name in NAMES} - {"-rf", "=1+1"} | {"_-rf", "_=1+1"}
    assert set(scores(out)) == names
    assert {Path(name).name for name in written(out)} == {f"{name}.{end}" for name in names for end in ("png", "tiff")}
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert len(printed.splitlines()) == len(NAMES) + 2


# another run


def run(scored: list[list[str]], root: Path, out: Path, *words: str) -> list[str]:
    """Return the names of what a run scores."""
    scored.append([])
    assert detect(root, out, *words) == 0
    return list(scored[-1])


def test_finished_cases_are_not_scored_again_unless_they_or_the_settings_changed(study, out, scored, capsys):
    few = ("--write", "tiff", "nifti")
    assert run(scored, study, out, KEEP, *few) == CASES
    first = table(out)
    capsys.readouterr()
    assert run(scored, study, out, KEEP, *few) == []
    printed = capsys.readouterr().out
    assert printed.startswith("3 of 3 case(s) are finished already; --restart scores them again\n")
    assert "3 of 3 case(s) scored" in printed
    assert table(out) == first
    assert run(scored, study, out, KEEP, *few, "--batch_size", "1", "--jobs", "0") == []
    photograph(study / "photo.png", 5)
    os.utime(study / "photo.png", (1, 1))
    assert run(scored, study, out, KEEP, *few) == ["photo"]
    assert scores(out)["photo"] != first[1]["anomaly_score"]
    photograph(study / "added.png", 6)
    assert run(scored, study, out, KEEP, *few) == ["added"]
    assert list(scores(out)) == ["added", *CASES]
    (out / "maps" / "ct" / "series_1-238d1e6b95.nii.gz").unlink()
    assert run(scored, study, out, KEEP, *few) == ["ct/series_1-238d1e6b95"]
    (study / "added.png").unlink()
    assert run(scored, study, out, KEEP, *few) == []
    assert list(scores(out)) == CASES
    assert run(scored, study, out, KEEP, *few, "--window", "percentile") == CASES
    assert run(scored, study, out, KEEP, *few, "--window", "percentile") == []
    assert run(scored, study, out, KEEP, *few, "--window", "percentile", "--restart") == CASES


def test_failed_case_is_tried_again_and_reported_again(study, out, scored, capsys):
    (study / "bad.png").write_bytes(b"no image")
    assert detect(study, out, KEEP) == 1
    scored.append([])
    capsys.readouterr()
    assert detect(study, out, KEEP) == 1
    assert scored[-1] == ["bad"]
    assert "left out bad: " in capsys.readouterr().err
    photograph(study / "bad.png")
    assert run(scored, study, out, KEEP) == ["bad"]


def test_output_that_could_not_be_made_is_reported_by_each_run(tmp_path, out):
    write_ultrasound(tmp_path / "us" / "a.dcm")
    assert [detect(tmp_path / "us", out, "--write", "parametric-map") for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("ends", ["stopped", "killed"])
def test_run_that_was_stopped_resumes_where_it_stopped(study, tmp_path, monkeypatch, scored, ends):
    photograph(study / "another.png", 1)
    whole, out = tmp_path / "whole", tmp_path / "out"
    words = ("--batch_size", "1", "--write", "tiff", "nifti")
    every = run(scored, study, whole, KEEP, *words)
    done: list[str] = []
    write = ResultWriter.write

    def write_two(self, result):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(result.case_id)
        write(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(ResultWriter, "write", write_two)
        if ends == "killed":  # nothing is run after it
            patch.setattr(ResultWriter, "finish", lambda *_, **__: None)
        assert detect(study, out, KEEP, *words) == 130
    assert (out / "scores.csv").exists() is (ends == "stopped")
    if ends == "stopped":
        assert list(scores(out)) == done == every[:2]
    assert run(scored, study, out, KEEP, *words) == every[2:]
    assert table(out) == table(whole)
    assert table(out, "slices") == table(whole, "slices")
    assert written(out) == written(whole)


# identity of the patient


@pytest.fixture
def export(tmp_path) -> Path:
    """An export whose paths name the patient, with one object that fails and one that is not an image."""
    folder = tmp_path / "export" / "Fingal_Olive PID-73519" / "1952-03-14"
    write_series(folder / "ACC-9912" / "2025-09-17 olive", axes=OBLIQUE)
    write_multiframe(folder / "enhanced Olive.dcm")
    write_ultrasound(folder / "fingal.dcm", BurnedInAnnotation="YES")
    (folder / "olive damaged.dcm").write_bytes(write_ultrasound(folder / "whole.dcm").read_bytes()[:-300])
    report(folder / "report of olive.dcm")
    return tmp_path / "export"


WORDS = ["Fingal", "Olive", "Quill", "Larch", "2025-09-17", "1952-03-14", "73519", "secret of"]
WORDS += [value for value in PRIVATE.values() if len(value) > 3]


def test_nothing_of_a_run_identifies_the_patient(export, out, caplog, capfd, recwarn):
    recwarn.clear()
    with caplog.at_level(logging.DEBUG, logger="mrad_med"):
        assert detect(export, out, "--write", *OUTPUTS, "video", "--threshold", "0.4") == 1
        assert detect(export, out, "--dry-run") == 0
        assert detect(export, out, "--write", *OUTPUTS, "--threshold", "0.4", "--jobs", "1") == 1
    printed = capfd.readouterr()
    texts = {"log": caplog.text, "out": printed.out, "err": printed.err, "warnings": str([w.message for w in recwarn])}
    found = {name: text.encode() for name, text in texts.items()}
    for path in out.rglob("*.*"):
        name, data = str(path.relative_to(out)), path.read_bytes()
        found[name] = name.encode() + data + (gzip.decompress(data) if path.suffix == ".gz" else b"")
    assert {Path(name).suffix for name in found} >= {".dcm", ".png", ".csv", ".json", ".jsonl", ".gz", ".nrrd", ".tiff"}
    assert {row["status"] for row in table(out)} == {"ok", "failed"}
    assert b"study-" in found["out"]
    words = [word.lower().encode() for word in WORDS]
    assert [(name, word) for name, data in found.items() for word in words if word in data.lower()] == []


def test_identifiers_are_kept_on_request(export, out):
    assert detect(export, out, "--write", "overlay", "seg", "--threshold", "0.4", "--keep-identifiers") == 1
    series = [row["case_id"] for row in table(out) if "2025-09-17 olive" in row["case_id"]]
    assert [name.split("/")[0] for name in series] == ["Fingal_Olive PID-73519"]
    (segmentation,) = (out / "dicom").rglob("*/2025-09-17 olive/*_seg.dcm")
    assert dcmread(segmentation).PatientName == PRIVATE["PatientName"]
