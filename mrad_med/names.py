"""Names of cases: fit to be printed and to become files, and free of who the patient is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import combinations

__all__ = ["DatasetError", "printable", "without_identifiers"]

HIDDEN = "anonymous"
# UTF-8 bytes that make a name, number or date worth hiding: "1" and "MR" are in half of all names, but one Chinese
# character, which takes three bytes, may be a whole name.
_LEAST = 3
_INSIDE = 5  # that are also hidden inside of a longer word


class DatasetError(ValueError):
    """A folder that does not hold what is expected of it."""


def printable(name: str) -> str:
    """Return a name that can be printed, tabulated and made a file of: no bytes outside Unicode, no backslash.

    Control characters, such as line breaks, become underscores too.
    """
    text = name.encode("utf-8", "replace").decode("utf-8").replace("\\", "_")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "_", text)


def without_identifiers(name: str, identifiers: Iterable[str]) -> str:
    """Return a path with those parts replaced that tell who a patient is, as folders of exports often do.

    Args:
        name: a relative path, its parts separated by ``/``.
        identifiers: names, numbers and dates as DICOM holds them, such as ``"Fingal^Olive"`` and ``"20250917"``.

    Returns:
        The path; ``anonymous`` stands for each part in which an identifier, or a part of a name, was found.
    """
    words = {word for identifier in identifiers for word in _words(identifier)}
    return "/".join(HIDDEN if words and _tells(part, words) else part for part in name.split("/"))


def _words(identifier: str) -> set[str]:
    """Return what of an identifier would give it away: its words, and all of it without separators, in either order."""
    words: set[str] = set()
    for spelling in identifier.split("="):  # of a name, in several scripts
        parts = _split(spelling)
        words |= {*parts, "".join(parts), "".join(reversed(parts))}
    for year, month, day in re.findall(r"^((?:19|20)\d\d)(\d\d)(\d\d)$", identifier.strip()):
        words |= {day + month + year, month + day + year}  # as people write it
    return {word for word in words if len(word.encode()) >= _LEAST}


def _tells(part: str, words: set[str]) -> bool:
    present = _split(part)
    runs = {"".join(present[i:j]) for i, j in combinations(range(len(present) + 1), 2)}  # finds "2025-09-17"
    return bool(runs & words) or any(word in "".join(present) for word in words if len(word.encode()) >= _INSIDE)


def _split(text: str) -> list[str]:
    """Return the words of a text without case and accents, which file systems store in one way or another."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[^\W_]+", "".join(letter for letter in plain if not unicodedata.combining(letter)))
