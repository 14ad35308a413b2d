"""Patient identifiers found in paths, since folders of exports are often named after patients."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import combinations, product

__all__ = ["HIDDEN", "Identifiers"]

HIDDEN = "anonymous"
# UTF-8 bytes that make a name, number or date worth hiding: "1" and "MR" are in half of all names, but one Chinese
# character, which takes three bytes, may be a whole name.
_LEAST = 3
_INSIDE = 5  # that are also hidden inside of a longer word
_DATE = re.compile(r"^\s*((?:19|20)\d\d)(\d\d)(\d\d)\s*$")  # as DICOM writes it
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]


class Identifiers:
    """What tells who patients are, to be found in paths, as folders of exports are often named after patients.

    Args:
        values: names, numbers and dates as DICOM holds them, such as ``"Fingal^Olive"`` and ``"20250917"``.
        shortest: bytes (UTF-8) of the shortest word that is looked for.
    """

    def __init__(self, values: Iterable[str], *, shortest: int = _LEAST) -> None:
        values = set(values)
        words = {word for value in values for word in _words(value)}
        self._words = {word for word in words if len(word.encode()) >= shortest}
        self._inside = {word for word in self._words if len(word.encode()) >= _INSIDE}
        self._lengths = {len(word) for word in self._inside}
        self._words |= {date for value in values for date in _dates(value)}

    def found_in(self, part: str) -> bool:
        """Return whether one of them is in a part of a path."""
        if not self._words:
            return False
        present = _split(part)
        runs = {"".join(present[i:j]) for i, j in combinations(range(len(present) + 1), 2)}  # finds "2025-09-17"
        if runs & self._words:
            return True
        text = "".join(present)  # of which all pieces are looked up, since there may be thousands of words
        return any(text[i : i + n] in self._inside for n in self._lengths for i in range(len(text) - n + 1))


def _words(identifier: str) -> set[str]:
    """Return what of an identifier would give it away: its words, and all of it without separators, in either order."""
    words: set[str] = set()
    for spelling in identifier.split("="):  # of a name, in several scripts
        parts = _split(spelling)
        words |= {*parts, "".join(parts), "".join(reversed(parts))}
    for year, month, day in _DATE.findall(identifier):
        words |= {day + month + year, month + day + year}
    return words


def _dates(identifier: str) -> set[str]:
    """Return the further spellings of a date, without what separates its parts: 7 Sep 2025, 2025-9-7, 250907."""
    dates: set[str] = set()
    for year, month, day in _DATE.findall(identifier):
        name = _MONTHS[int(month) - 1] if 1 <= int(month) <= 12 else month
        months = {month.lstrip("0"), month, name, name[:3]}
        parts = {*product((year,), months, (day, day.lstrip("0"))), *product((year[2:],), (month, name[:3]), (day,))}
        dates |= {"".join(order) for y, m, d in parts for order in ((y, m, d), (d, m, y), (m, d, y))}
    return dates


def _split(text: str) -> list[str]:
    """Return the words of a text without case and accents, which file systems store in one way or another."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[^\W_]+", "".join(letter for letter in plain if not unicodedata.combining(letter)))
