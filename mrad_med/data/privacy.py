"""Find patient identifiers in paths. Folders of exports are often named after patients."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import combinations, product

__all__ = ["HIDDEN", "Identifiers"]

HIDDEN = "anonymous"
# Words of fewer UTF-8 bytes are not hidden: "1" and "MR" occur in half of all names. One Chinese character has three
# bytes and may be a whole name.
_LEAST = 3
_INSIDE = 5  # words of at least this many UTF-8 bytes are also hidden inside a longer word
_DATE = re.compile(r"^\s*((?:19|20)\d\d)(\d\d)(\d\d)\s*$")  # the DICOM format
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
    """Patient identifiers to be found in paths.

    Args:
        values: names, numbers and dates in DICOM format, such as ``"Fingal^Olive"`` and ``"20250917"``.
        shortest: length of the shortest word to find, in UTF-8 bytes.
    """

    def __init__(self, values: Iterable[str], *, shortest: int = _LEAST) -> None:
        values = set(values)
        words = {word for value in values for word in _words(value)}
        self._words = {word for word in words if len(word.encode()) >= shortest}
        self._inside = {word for word in self._words if len(word.encode()) >= _INSIDE}
        self._lengths = {len(word) for word in self._inside}
        self._words |= {date for value in values for date in _dates(value)}

    def found_in(self, part: str) -> bool:
        """Return whether a part of a path contains an identifier."""
        if not self._words:
            return False
        present = _split(part)
        runs = {"".join(present[i:j]) for i, j in combinations(range(len(present) + 1), 2)}  # finds "2025-09-17"
        if runs & self._words:
            return True
        text = "".join(present)  # its substrings are looked up, because there may be thousands of identifiers
        return any(text[i : i + n] in self._inside for n in self._lengths for i in range(len(text) - n + 1))


def _words(identifier: str) -> set[str]:
    """Return the words of an identifier, and all of them joined without separators in both orders."""
    words: set[str] = set()
    for spelling in identifier.split("="):  # a name may be written in several scripts
        parts = _split(spelling)
        words |= {*parts, "".join(parts), "".join(reversed(parts))}
    for year, month, day in _DATE.findall(identifier):
        words |= {day + month + year, month + day + year}
    return words


def _dates(identifier: str) -> set[str]:
    """Return more spellings of a date, without separators: 7 Sep 2025, 2025-9-7, 250907."""
    dates: set[str] = set()
    for year, month, day in _DATE.findall(identifier):
        name = _MONTHS[int(month) - 1] if 1 <= int(month) <= 12 else month
        months = {month.lstrip("0"), month, name, name[:3]}
        parts = {*product((year,), months, (day, day.lstrip("0"))), *product((year[2:],), (month, name[:3]), (day,))}
        dates |= {"".join(order) for y, m, d in parts for order in ((y, m, d), (d, m, y), (m, d, y))}
    return dates


def _split(text: str) -> list[str]:
    """Return the words of a text without case and accents; file systems encode accents in different ways."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return re.findall(r"[^\W_]+", "".join(character for character in plain if not unicodedata.combining(character)))
