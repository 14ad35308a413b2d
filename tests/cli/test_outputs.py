"""Outputs that cannot be written are refused in one line, before anything is computed."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

import mrad_med
from mrad_med import files
from mrad_med.cli import main

COMMANDS = {
    "build": ["bank", "build", "images", "--out"],
    "extend": ["bank", "extend", "bank.safetensors", "images", "--out"],
    "merge": ["bank", "merge", "bank.safetensors", "--out"],
    "export": ["export", "mrad_tf", "--device", "cpu", "--out"],
}
# What of a training is written where, each with a value of the config.
TRAINED = ["--output_dir", "--cache_dir", "--ckpt_dir", "--checkpoint", "--memory_bank"]
each_file = pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
each_trained = pytest.mark.parametrize("option", TRAINED)


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let a command fail with another message where it begins to work."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mrad_med, "load_clip", refuse)
    monkeypatch.setattr(mrad_med, "load_memory_bank", refuse)
    monkeypatch.setattr(mrad_med.AnomalyDetector, "from_bundle", refuse)
    monkeypatch.setattr(mrad_med.BundleWorkflow, "initialize", refuse)


def refusal_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command ends with."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def make_unwritable(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def train(option: str, path: Path) -> list[str]:
    words = ["train", "mrad_ft", "--dataset_dir", "images", "--output_dir", "out", "--device", "cpu"]
    return [*words, option, str(path)]


@each_file
def test_a_file_below_a_file_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes").touch()
    folder = tmp_path / "notes" / "results"
    line = refusal_of([*words, str(folder / "a.ts")], capsys)
    assert line == f"mrad-med: cannot write to {folder} (Not a directory); choose another folder"


@each_file
def test_a_file_named_like_a_folder_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.ts").mkdir()
    line = refusal_of([*words, str(tmp_path / "a.ts")], capsys)
    assert line == f"mrad-med: cannot write the file {tmp_path / 'a.ts'}: a folder has this name; choose another name"


@each_file
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_file_on_a_full_or_read_only_disk_is_refused(
    words: list[str],
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    make_unwritable(monkeypatch, number)
    line = refusal_of([*words, str(tmp_path / "a.ts")], capsys)
    assert line == f"mrad-med: cannot write to {tmp_path} ({os.strerror(number)}); choose another folder"


@each_trained
def test_a_training_below_a_file_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "notes").touch()
    line = refusal_of(train(option, tmp_path / "notes" / "results" / "x"), capsys)
    assert line.startswith(f"mrad-med: cannot write to {tmp_path / 'notes' / 'results'}")
    assert line.endswith("(Not a directory); choose another folder")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_training_on_a_full_or_read_only_disk_is_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    make_unwritable(monkeypatch, number)
    line = refusal_of(train("--output_dir", tmp_path / "out"), capsys)
    assert line == f"mrad-med: cannot write to {tmp_path / 'out'} ({os.strerror(number)}); choose another folder"


@pytest.mark.parametrize("words", [*COMMANDS.values()], ids=COMMANDS)
def test_work_begins_where_the_file_can_be_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*words, str(tmp_path / "new" / "a.ts")]) == 2
    assert "work has begun" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


def test_a_training_begins_where_all_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(train("--output_dir", tmp_path / "new")) == 2
    assert "work has begun" in capsys.readouterr().err


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path):
    file = tmp_path / "deep" / "bank.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"earlier")
    assert files.prepare_output_file(file) == file
    assert [path.read_bytes() for path in file.parent.iterdir()] == [b"earlier"]


def test_a_name_alone_is_of_the_current_folder(tmp_path: Path):
    assert files.prepare_output_file("a.ts") == Path("a.ts")
    assert list(tmp_path.iterdir()) == []
