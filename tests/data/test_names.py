"""Case ids: printable, and without patient identifiers."""

from __future__ import annotations

import os
import unicodedata

import pytest

from mrad_med.data.names import DistinctNames, code_of, printable
from mrad_med.data.privacy import HIDDEN, Identifiers
from mrad_med.files import safe_relative_path

FINGAL = ["Fingal^Olive", "PID-73519", "20250917", "19520314"]


def without_identifiers(name: str, identifiers: list[str]) -> str:
    return hide(Identifiers(identifiers), name)


def hide(identifiers: Identifiers, name: str) -> str:
    return "/".join(HIDDEN if identifiers.found_in(part) else part for part in name.split("/"))


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
    ],
)
def test_printable_name_has_neither_control_characters_nor_backslashes(name, expected):
    assert printable(name) == expected
    assert printable(printable(name)) == expected
    printable(name).encode()


@pytest.mark.parametrize(
    "part",
    [
        *(
            "Fingal",
            "fingal olive",
            "OLIVE",
            "Olive.Fingal",
            "scan_of_olive_2",
            "olive2",
            "FingalOlive",
            "ct-Fingal-old",
        ),
        *("PID-73519", "pid73519", "p73519x", "73519"),
        *("20250917", "2025-09-17", "2025_09_17", "17.09.2025", "09-17-2025", "CT20250917a", "1952.03.14"),
        *("1952-3-14", "14 March 1952", "Mar. 14, 1952", "14mar1952", "520314", "scan 14-03-52", "17sep25"),
    ],
)
def test_part_with_an_identifier_is_replaced(part):
    assert without_identifiers(f"visits/{part}/series_3", FINGAL) == "visits/anonymous/series_3"


@pytest.mark.parametrize(
    "part", ["Oliver's", "73518", "2025-09-18", "2025", "Fin gull", "pi", "MR", "IM_0001", "1952-3-15", "25-9-17"]
)
def test_part_without_an_identifier_is_kept(part):
    identifiers = ["Fingal^Oli", *FINGAL[1:]]
    assert without_identifiers(f"visits/{part}/series_3", identifiers) == f"visits/{part}/series_3"


def test_each_part_is_checked_separately():
    assert without_identifiers("Fingal/ct/2025-09-17/Fingal_3", FINGAL) == "anonymous/ct/anonymous/anonymous"
    assert without_identifiers("Fin/gal", FINGAL) == "Fin/gal"


@pytest.mark.parametrize("identifiers", [[], [""], ["^", " ", "=", "_"], ["1", "MR", "42", "F"]])
def test_identifier_that_is_too_short_hides_nothing(identifiers):
    assert without_identifiers("MR/1/42/F", identifiers) == "MR/1/42/F"


@pytest.mark.parametrize(
    ("identifier", "part", "is_hidden"),
    [
        ("001", "IM_001", True),  # three digits as a word of their own
        ("001", "IM_10015", False),  # and not inside of a longer one
        ("A123", "xA123x", False),
        ("A1234", "xA1234x", True),
        ("Ann", "annual", False),
        ("Annabel", "annabella", True),
        ("['A1234', 'B98765']", "b98765", True),  # several values of one tag
    ],
)
def test_short_identifiers_are_words_and_long_ones_are_found_inside(identifier, part, is_hidden):
    assert without_identifiers(part, [identifier]) == ("anonymous" if is_hidden else part)


@pytest.mark.parametrize("part", ["Li_Bo", "Bo Li", "LI.BO", "ct_li_bo_2", "libo"])
def test_short_words_of_a_name_identify_together(part):
    assert without_identifiers(part, ["Li^Bo"]) == "anonymous"
    assert without_identifiers("li/bo/bolt", ["Li^Bo"]) == "li/bo/bolt"


@pytest.mark.parametrize(
    ("identifier", "part"),
    [
        ("Müller^Jürgen", unicodedata.normalize("NFD", "Müller")),  # as macOS stores file names
        (unicodedata.normalize("NFD", "Müller^Jürgen"), "müller"),
        ("Müller^Jürgen", "MULLER"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田太郎"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "CT 太郎"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "tarou"),
        ("Wang^Ming=王^明", "王明のCT"),
        ("Hong^Gildong=洪^吉洞=홍^길동", "홍길동"),
        ("Петров^Лев", "ПЕТРОВ"),
        ("Strauß^Franz", "STRAUSS"),
        ("علی^", "علی"),
    ],
)
def test_names_of_any_script_and_spelling_are_found(identifier, part):
    assert without_identifiers(f"{part}/series_3", [identifier]) == "anonymous/series_3"


def test_name_without_identifiers_is_kept_as_it_is():
    name = "Größe_x/MÜLLER 2025-09-17/_"
    assert without_identifiers(name, ()) == name
    assert without_identifiers("", FINGAL) == ""


def test_words_shorter_than_requested_are_skipped():
    assert hide(Identifiers(["Lee^Anna"], shortest=5), "Lee/Anna/anna lee/2025") == "Lee/Anna/anonymous/2025"
    assert hide(Identifiers(["20250917"], shortest=5), "17 Sep 2025") == "anonymous"


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
