"""Commands that are interrupted and run again end like uninterrupted ones: one moment of each, run by the script."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "scripts" / "stress.py"


@pytest.fixture
def stress(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("stress")


def write_results(folder: Path) -> None:
    folder.mkdir()
    tifffile.imwrite(folder / "map.tiff", np.full((4, 5), 0.25, np.float32))
    Image.new("RGB", (4, 5), (9, 9, 9)).save(folder / "overlay.png")
    (folder / "scores.csv").write_text("case_id,anomaly_score\na,0.5\n", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"out": str(folder), "n": [1, 2], "started": str(folder)}), "utf-8")
    row = {"key": "k", "row": {"case_id": "a", "anomaly_score": "0.5"}}
    (folder / "finished.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "model.pt").write_bytes(b"weights")


def change_nothing(_: Path) -> None:
    return


def move_the_map(by: float) -> Callable[[Path], None]:
    return lambda folder: tifffile.imwrite(folder / "map.tiff", np.full((4, 5), 0.25 + by, np.float32))


def replace_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (change_nothing, []),
        (move_the_map(5e-7), []),
        (move_the_map(2e-6), ["map.tiff differs"]),
        (lambda folder: Image.new("RGB", (4, 5), (9, 9, 8)).save(folder / "overlay.png"), ["overlay.png differs"]),
        (replace_text("scores.csv", "0.5", "0.5000005"), []),
        (replace_text("scores.csv", "0.5", "0.50001"), ["scores.csv differs"]),
        (replace_text("scores.csv", "a,", "b,"), ["scores.csv differs"]),
        (replace_text("run.json", "[1, 2]", "[1, 3]"), ["run.json differs"]),
        (replace_text("run.json", "[1, 2]", "[1]"), ["run.json differs"]),
        (replace_text("finished.jsonl", '"k"', '""'), ["finished.jsonl differs"]),
        (lambda folder: (folder / "model.pt").write_bytes(b"weighta"), ["model.pt differs"]),
        (lambda folder: (folder / "model.pt").unlink(), ["model.pt is missing"]),
        (lambda folder: (folder / ".partial-1-map.tiff").touch(), [".partial-1-map.tiff is left over"]),
    ],
)
def test_results_that_differ_are_found(
    stress: ModuleType, tmp_path: Path, change: Callable[[Path], None], faults: list[str]
):
    for name in ("given", "expected"):
        write_results(tmp_path / name)
    change(tmp_path / "given")
    assert stress.differences(tmp_path / "given", tmp_path / "expected") == faults


@pytest.mark.parametrize(
    ("content", "interruption", "status", "log", "fault"),
    [
        ('{"complete": true}', "SIGKILL", 0, "", ""),
        ('{"complete": false}', "SIGTERM", 143, "", ""),
        ("{}", "SIGTERM", 143, "", ""),
        ("", "SIGTERM", 143, "", ""),
        ('{"complete": true}', "SIGKILL", -9, "", r'run.json has "complete": True after exit status -9'),
        ('{"complete": false}', "SIGKILL", 0, "", r'run.json has "complete": False after exit status 0'),
        (
            "",
            "full disk",
            2,
            "Traceback\nOSError: x\n",
            "a traceback after the interruption, with the last line: OSError: x",
        ),
    ],
)
def test_an_interruption_that_leaves_a_wrong_record_or_a_traceback_is_found(
    stress: ModuleType, tmp_path: Path, content: str, interruption: str, status: int, log: str, fault: str
):
    if content:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    (tmp_path / "log.txt").write_text(log, encoding="utf-8")
    faults = stress.faults_of_interruption(interruption, status, tmp_path, tmp_path)
    assert faults == ([fault] if fault else [])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and disks are those of Linux")
@pytest.mark.parametrize("command", ["detect", "evaluate", "train", "export"])
def test_an_interrupted_command_ends_like_an_uninterrupted_one(command: str):
    words = [sys.executable, str(SCRIPT), "--only", command, "--rounds", "1", "--kinds", "SIGKILL", "--seed", "1"]
    finished = subprocess.run(words, check=False, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "1 round(s), 0 with faults" in finished.stdout
