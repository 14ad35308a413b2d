"""torch and MONAI are loaded only when needed, because that takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
{statement}
print(*(name for name in ("torch", "monai") if name in sys.modules))
"""
RUN = "from mrad_med.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
COMMANDS = ("detect", "run", "train", "evaluate", "benchmark", "datasets", "export", "bank")


def loaded_by(statement: str) -> str:
    program = PROGRAM.format(statement=statement)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return finished.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", ["mrad_med", "mrad_med.io, mrad_med.networks, mrad_med.errors, mrad_med.types"])
def test_importing_the_package_and_its_rooms_loads_neither_torch_nor_monai(module: str):
    assert loaded_by(f"import {module}") == ""


def test_names_load_what_they_need_when_they_are_first_used():
    assert loaded_by("import mrad_med; mrad_med.AnomalyKeys") == ""
    assert loaded_by("import mrad_med; mrad_med.load_clip") == "torch"


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["datasets"], ["bank", "build", "--help"]])
def test_commands_that_only_print_load_neither_torch_nor_monai(words: list[str]):
    assert loaded_by(RUN.format(words=words)) == ""


def test_help_of_every_command_loads_neither_torch_nor_monai():
    runs = "\n".join(RUN.format(words=[command, "--help"]) for command in COMMANDS)
    assert loaded_by(runs) == ""
