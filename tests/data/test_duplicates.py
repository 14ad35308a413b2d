"""Copies of images: found by their content, whatever their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrad_med.data.duplicates import find_duplicates


def make_cases(root: Path, **contents: bytes) -> list[dict]:
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return [{"case_id": name, "image": str(root / name)} for name in contents]


def test_later_copies_are_returned_with_the_first(tmp_path):
    cases = make_cases(tmp_path, a=b"1", b=b"22", c=b"1", d=b"23", e=b"1", f=b"22")
    assert find_duplicates(cases) == {"c": "a", "e": "a", "f": "b"}


def test_order_of_the_datalist_defines_the_first(tmp_path):
    cases = make_cases(tmp_path, a=b"1", b=b"1", c=b"1")
    duplicates = find_duplicates(cases[::-1])
    assert duplicates == {"b": "c", "a": "c"}
    assert list(duplicates) == ["b", "a"]


def test_files_of_one_size_with_other_bytes_are_not_copies(tmp_path):
    assert find_duplicates(make_cases(tmp_path, a=b"xy", b=b"yx", c=b"xx")) == {}
    assert find_duplicates([]) == {}


def test_only_files_whose_size_occurs_twice_are_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("mrad_med.data.duplicates.hash_of_file", lambda path: read.append(path.name) or path.name)
    find_duplicates(make_cases(tmp_path, a=b"1", b=b"22", c=b"333", d=b"44"))
    assert read == ["b", "d"]


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        find_duplicates([{"case_id": "a", "image": str(tmp_path / "gone.png")}])
