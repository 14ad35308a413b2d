"""Case ids: printable, usable as file names and as cells of a spreadsheet, and distinct."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["FORMULA", "DistinctNames", "code_of", "printable", "without_controls"]

CODE_LENGTH = 10  # hexadecimal digits: 40 bits; two of 100,000 codes are equal with a probability of 1 in 200
# Control characters, separators of lines, and the marks that change the direction of text (Unicode UAX 9). A name with
# such a mark is shown reversed: "a<U+202E>gpj.exe" as "aexe.jpg". The last two are invisible and may hide a "=".
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\u200b\ufeff]")
# Characters that begin a formula in a spreadsheet, at the start of a cell or after a semicolon, which some programs
# treat as the start of the next cell. The last four are the wide forms of the first four.
FORMULA = re.compile(r"(?:^|(?<=;))(?=\s*[=+\-@＝＋－＠])")  # noqa: RUF001


def code_of(key: str) -> str:
    """Return the short code that represents a key in names.

    Args:
        key: key or hash in hexadecimal digits, as from `mrad_med.store.make_key`.
    """
    return key[:CODE_LENGTH]


class DistinctNames:
    """Assign each name to one content only.

    Wanted names are paths or codes of contents, so most are distinct. If another content has the name, a code of the
    content is appended, never a running number. Other cases therefore change a name only if it collides.
    """

    def __init__(self) -> None:
        self._contents: dict[str, Callable[[], str]] = {}

    def __call__(self, name: str, content: Callable[[], str]) -> str | None:
        """Return the name, with a code appended if another content already uses the name.

        Args:
            name: wanted name.
            content: function that returns the key of the content; called only if the name is in use.

        Returns:
            The name, or None if the same content already uses it: both are one case.
        """
        if name not in self._contents:
            self._contents[name] = content
            return name
        key = content()
        for candidate in (name, f"{name}-{code_of(key)}", f"{name}-{key}"):
            if candidate not in self._contents:
                self._contents[candidate] = content
                return candidate
            if self._contents[candidate]() == key:
                return None
        raise ValueError("two contents have the same sha256: please report it")


def without_controls(text: str) -> str:
    """Return a text in which control characters and marks of the text direction are ``_``, and invalid bytes ``?``."""
    return _CONTROLS.sub("_", text.encode("utf-8", "replace").decode("utf-8"))


def printable(name: str) -> str:
    """Return a name that can be printed, written to tables and used as a file name.

    Bytes that are not Unicode become ``?``. Backslashes, control characters (such as line breaks) and marks of the text
    direction become ``_``. A part of a name that a spreadsheet would treat as a formula, such as ``=1``, begins with
    ``_``. A file therefore has the same name, however deep the folder is in which it is found.
    """
    parts = without_controls(name).replace("\\", "_").split("/")
    return "/".join(FORMULA.sub("_", part) for part in parts)
