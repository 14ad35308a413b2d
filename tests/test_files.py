"""Atomic writing and hashes of files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrad_med.files import atomic_path, prepare_output_file, remove_partial, sha256_of_file


def test_file_takes_its_name_when_the_block_ends(tmp_path: Path):
    final = tmp_path / "bank.safetensors"
    with atomic_path(final) as partial:
        partial.write_bytes(b"new")
        assert not final.exists()
    assert final.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [final]


def test_new_file_replaces_the_old_one_only_at_the_end(tmp_path: Path):
    final = tmp_path / "bank.safetensors"
    final.write_bytes(b"old")
    with atomic_path(final) as partial:
        partial.write_bytes(b"new")
        assert final.read_bytes() == b"old"
    assert final.read_bytes() == b"new"


def test_partial_file_is_beside_the_final_one_and_ends_like_it(tmp_path: Path):
    final = tmp_path / "map.nii.gz"
    with atomic_path(final) as partial:
        partial.touch()
    assert partial.parent == final.parent
    assert partial != final
    assert partial.name.endswith("map.nii.gz")


def write_half_and_fail(final: Path, error: BaseException) -> None:
    with atomic_path(final) as partial:
        partial.write_bytes(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt("disk full")])
def test_error_leaves_the_old_file_and_no_partial_one(tmp_path: Path, error: BaseException):
    final = tmp_path / "bank.safetensors"
    final.write_bytes(b"old")
    with pytest.raises(type(error), match="disk full"):
        write_half_and_fail(final, error)
    assert final.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [final]


def test_error_without_an_old_file_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError, match="disk full"):
        write_half_and_fail(tmp_path / "bank.safetensors", RuntimeError("disk full"))
    assert list(tmp_path.iterdir()) == []


def test_missing_parent_folders_are_made(tmp_path: Path):
    final = tmp_path / "out" / "study" / "map.png"
    with atomic_path(final) as partial:
        partial.write_bytes(b"map")
    assert final.read_bytes() == b"map"


def test_path_may_be_a_string(tmp_path: Path):
    with atomic_path(str(tmp_path / "map.png")) as partial:
        partial.write_bytes(b"map")
    assert sha256_of_file(str(tmp_path / "map.png")) == hashlib.sha256(b"map").hexdigest()


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_hash_agrees_with_hashlib_whatever_the_size(tmp_path: Path, size: int):
    content = bytes(range(251)) * (size // 251 + 1)
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    assert sha256_of_file(path) == hashlib.sha256(content[:size]).hexdigest()


def test_hash_of_the_empty_file_is_the_published_one(tmp_path: Path):
    path = tmp_path / "file"
    path.touch()
    assert sha256_of_file(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_hash_of_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        sha256_of_file(tmp_path / "nothing")


def a_process_that_is_gone() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_a_killed_process_left_of_a_file_is_removed_before_it_is_written_again(tmp_path: Path):
    gone = a_process_that_is_gone()
    left = [tmp_path / f".partial-{gone}-net[1].onnx", tmp_path / f".partial-{gone}-other.onnx"]
    running = tmp_path / f".partial-{os.getpid()}-net[1].onnx"
    for path in (*left, running):
        path.write_bytes(b"half")
    prepare_output_file(tmp_path / "net[1].onnx")
    assert [path.exists() for path in (*left, running)] == [False, True, True]


def test_only_half_written_files_are_removed(tmp_path: Path):
    for name in ("a.png", ".partial-a.png", "partial-1-a.png", f"{a_process_that_is_gone()}"):
        (tmp_path / name).write_bytes(b"whole")
        remove_partial(tmp_path / name)
        assert (tmp_path / name).exists()
    remove_partial(tmp_path / f".partial-{a_process_that_is_gone()}-gone.png")  # nothing is there
