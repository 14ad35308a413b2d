"""Damaged files of every format are read or refused, and nothing else; `scripts/fuzz.py` notices everything else."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from mrad_med.errors import DatasetError

SCRIPTS = Path(__file__).parent.parent / "scripts"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script forks and reads /proc")


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("fuzz")


def refuse(_: Path) -> None:
    raise DatasetError("there is no image")


def fail(_: Path) -> None:
    raise ZeroDivisionError


def crash(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_: Path) -> None:
    while True:
        time.process_time()


def fill_memory(_: Path) -> None:
    bytearray(os.urandom(1)) * 1_000_000_000  # far more than a kernel that reclaims idle pages hides
    raise DatasetError("there is no image")


def write_to_stderr(_: Path) -> None:
    os.write(2, b"the patient is Beeblebrox\n")
    raise DatasetError("there is no image")


def log_as_a_library(_: Path) -> None:
    logging.getLogger("pydicom").warning("an invalid value")
    raise DatasetError("there is no image")


def quote_the_file(_: Path) -> None:
    raise DatasetError("there is no image of Beeblebrox")


def write_as_libtiff(_: Path) -> None:
    os.write(2, b"ZIPDecode: Decoding error at scanline 0, incorrect data check.\n")
    raise DatasetError("there is no image")


@pytest.mark.parametrize(
    ("happens", "fault"),
    [
        (refuse, ""),
        (write_as_libtiff, ""),
        (fail, "unforeseen ZeroDivisionError in the listing"),
        (crash, "the process ended with status -9"),
        (hang, "more than 0.5 s of processor time"),
        (fill_memory, "GB of memory"),
        (write_to_stderr, "on stderr: 'the patient"),
        (log_as_a_library, "a library logged: WARNING:pydicom:an invalid value"),
        (quote_the_file, "a message quotes the file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_a_file_does_is_noticed_and_the_next_file_is_read(
    tmp_path: Path, fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Path], None], fault: str
):
    monkeypatch.setattr(fuzz, "survey", lambda path: happens(path) if path.name == "bad" else refuse(path))
    monkeypatch.setattr(fuzz, "SECONDS", 0.5 if happens is hang else 5.0)
    monkeypatch.setattr(fuzz, "MEMORY", 1e8)
    process = fuzz.Process(tmp_path / "stderr")
    try:
        refused, faults = process.examine(tmp_path / "bad")
        assert (refused, faults) == (True, []) if not fault else len(faults) == 1
        assert not fault or re.search(fault, faults[0])
        assert process.examine(tmp_path / "good") == (True, [])
    finally:
        process.stop()


def test_originals_are_read_and_each_damaged_file_depends_on_its_number_alone(tmp_path: Path, fuzz: ModuleType):
    originals = fuzz.write_originals(tmp_path)
    formats = {".dcm", ".nii", ".gz", ".nrrd", ".png", ".jpg", ".tif", ".gif", ".webp", ".mp4"}
    assert {path.suffix for path in originals} == formats
    for path in originals:
        refused, faults, texts = fuzz.examine(path)
        assert (path.name, refused, faults, fuzz.SECRET in str(texts)) == (path.name, False, [], False)
    made = [fuzz.make_file(originals, 0, number) for number in range(200)]
    assert made[7:9] == [fuzz.make_file(originals, 0, number) for number in (7, 8)]
    assert fuzz.make_file(originals, 1, 7) != made[7]
    content = {path.name: path.read_bytes() for path in originals}
    assert sum(damaged != content[name] for name, damaged in made) > 190


@pytest.mark.slow
def test_150_damaged_files_have_no_fault(tmp_path: Path):
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), "--files", "150", "--keep", str(tmp_path / "faults")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 150 files have faults (seed 0)" in done.stdout
    assert not (tmp_path / "faults").exists()
