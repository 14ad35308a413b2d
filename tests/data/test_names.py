"""Case ids: printable, shown by a spreadsheet as they are, and distinct."""

from __future__ import annotations

import os

import pytest

from mrad_med.data.names import DistinctNames, code_of, printable
from mrad_med.files import safe_relative_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Fall 3 (neu)/Größe.png", "Fall 3 (neu)/Größe.png"),
        ("病例 '7' \"x\"", "病例 '7' \"x\""),
        ("a\\b", "a_b"),
        ("line\nbreak\r\ttab", "line_break__tab"),
        ("next\x85line\u2028and\u2029paragraph", "next_line_and_paragraph"),
        ("\x1b[31mred\x7f", "_[31mred_"),
        (os.fsdecode(b"gr\xfc\xdfe"), "gr??e"),  # a name in Latin-1, as Linux hands it on
        ("", ""),
        ("exam\u202egnp.exe", "exam_gnp.exe"),  # a spreadsheet would show "examexe.png"
        ("a\u2066b\u2069 \u200fc\u061cd", "a_b_ _c_d"),
        ("=1+1", "_=1+1"),
        ("-rf", "_-rf"),
        ("+49 30", "_+49 30"),
        ("@SUM(A1)", "_@SUM(A1)"),
        (" \u3000=1", "_ \u3000=1"),  # a spreadsheet ignores leading spaces
        ("\t=1", "_=1"),
        ("\ufeff=1", "_=1"),
        ("＝1", "_＝1"),  # noqa: RUF001 - as wide as a Chinese character
        ("a;=1", "a;_=1"),  # some programs treat a semicolon as the end of a cell
        ("a-b=c+d@e", "a-b=c+d@e"),
        ("a/=1/-b", "a/_=1/_-b"),
    ],
)
def test_printable_name_has_no_character_that_is_not_shown_and_is_no_formula(name, expected):
    assert printable(name) == expected
    assert printable(printable(name)) == expected
    printable(name).encode()


def test_name_is_given_to_one_content_and_another_content_has_its_own_code():
    distinct = DistinctNames()
    asked = [("x", "a"), ("y", "a"), ("x", "b"), ("x", "b"), ("x", "a"), ("x", "c"), ("y", "b"), ("x", "b")]
    given = [distinct(name, lambda digit=digit: digit * 64) for name, digit in asked]
    assert given == ["x", "y", "x-bbbbbbbbbb", None, None, "x-cccccccccc", "y-bbbbbbbbbb", None]


def test_equal_codes_are_distinguished_by_the_whole_key():
    distinct = DistinctNames()
    keys = ["0" * 64, "a" * 10 + "1" * 54, "a" * 10 + "2" * 54]
    assert [distinct("x", lambda key=key: key) for key in [*keys, *keys]] == [
        *("x", "x-aaaaaaaaaa", f"x-{keys[2]}"),
        *(None, None, None),
    ]


def test_content_is_not_asked_for_where_names_differ():
    distinct = DistinctNames()
    assert [distinct(name, lambda: pytest.fail("hashed for nothing")) for name in "abc"] == ["a", "b", "c"]


def test_code_is_the_start_of_a_key():
    assert code_of("0123456789abcdef" * 4) == "0123456789"


@pytest.mark.parametrize("name", ["..", "a/..", "../a", "/a", "a\\b", "", "."])
def test_name_that_would_lead_out_of_a_folder_is_refused(name):
    with pytest.raises(ValueError, match="cannot become a file below the output folder; rename the case"):
        safe_relative_path(name)


def test_other_names_stay_as_they_are():
    assert [safe_relative_path(name) for name in ("a/b c/d.e", "./a//b", "a..b/...")] == [
        "a/b c/d.e",
        "a/b",
        "a..b/...",
    ]
