"""The scripts in benchmarks/ run: all parse their options, and each measures its smallest case."""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mrad_med import CLIP, MemoryBank
from tests.conftest import TINY_SIZE

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))

SMALLEST = {
    "detect": ["--small"],
    "encoder": ["--images", "1", "--layers", "1", "--size", "56", "--repeats", "1", "--precision", "fp32"],
    "evaluate": ["--images", "2", "--layers", "2", "--size", "56"],
    "journal": ["--cases", "20"],
    "loading": ["--count", "4", "--jobs", "1", "--repeats", "1"],
    "memory": ["--blocks", "2", "--image-size", "56", "--batch-size", "1", "--case", "tf"],
    "metrics": ["--images", "4", "--subset", "2", "--exact", "1", "--size", "56"],
    "retrieval": ["--keys", "100", "--width", "16", "--queries", "8", "--repeats", "1"],
    "sliding_window": ["--small", "--case", "tiny"],
    "startup": ["--repeats", "1"],
    "training": ["--images", "4", "--blocks", "2", "--image-size", "56", "--batch-size", "2"],
}


def test_each_script_has_a_smallest_case():
    assert sorted(SMALLEST) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_imported_and_explains_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert "options:" in capsys.readouterr().out


def test_the_benchmark_of_evaluations_makes_and_runs_its_evaluation(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "evaluate.py"))
    cases = script["write_images"](tmp_path, 2)
    options = argparse.Namespace(size=TINY_SIZE, batch_size=2)
    outcome = script["evaluate_ours"](tiny_clip, tiny_bank, cases, tmp_path / "out", options)
    assert len(outcome.maps) == len(outcome.scores) == 2
    assert outcome.metrics.keys() == {
        "image auroc",
        "image ap",
        "pixel auroc",
        "pixel ap",
        "pixel pro",
        "pixel pro_200",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_smallest_case_of_each_script_runs(name: str, tmp_path: Path):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *SMALLEST[name]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr[-2000:] if result.returncode else "") == (0, "")
