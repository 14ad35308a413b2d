"""Commands that are interrupted and run again end like undisturbed ones: one moment of each, as the script has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "stress.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and disks are those of Linux")
@pytest.mark.parametrize("command", ["detect", "evaluate", "train", "export"])
def test_an_interrupted_command_ends_like_an_undisturbed_one(command: str):
    words = [sys.executable, str(SCRIPT), "--only", command, "--rounds", "1", "--kinds", "SIGKILL", "--seed", "1"]
    finished = subprocess.run(words, check=False, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "1 round(s), 0 with faults" in finished.stdout
