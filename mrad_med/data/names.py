"""Names of cases: fit to be printed and to become files, and free of who the patient is."""

from __future__ import annotations

import re

__all__ = ["UniqueNames", "printable"]


class UniqueNames:
    """Give names that were given before a count."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._counts: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """Return the name, with ``_2`` and so on where it was given before."""
        given, count = name, self._counts.get(name, 1)
        while given in self._given:
            count += 1
            given = f"{name}_{count}"
        self._counts[name] = count
        self._given.add(given)
        return given


def printable(name: str) -> str:
    """Return a name that can be printed, tabulated and made a file of: no bytes outside Unicode, no backslash.

    Control characters, such as line breaks, become underscores too.
    """
    text = name.encode("utf-8", "replace").decode("utf-8").replace("\\", "_")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "_", text)
