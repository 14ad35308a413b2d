"""Names of cases: fit to be printed and to become files, and free of who the patient is."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["DistinctNames", "code_of", "printable"]

CODE_LENGTH = 10  # hexadecimal digits: 40 bits, so that of 100,000 codes two are equal once in 200 runs


def code_of(key: str) -> str:
    """Return the short code that stands for a key in names.

    Args:
        key: key or hash in hexadecimal digits (`mrad_med.store.make_key`).
    """
    return key[:CODE_LENGTH]


class DistinctNames:
    """Give each name to one content, so that a case keeps its name whatever other cases there are.

    Names are made to be different by what the cases are: paths, or codes of contents. Where two are the same all the
    same, the contents decide, and never a count.
    """

    def __init__(self) -> None:
        self._contents: dict[str, Callable[[], str]] = {}

    def __call__(self, name: str, content: Callable[[], str]) -> str | None:
        """Return the name, with a code where another content has it.

        Args:
            name: the wanted name.
            content: returns the key of the content; called only where the name is taken.

        Returns:
            None where the same content has the name already: both are one case.
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


def printable(name: str) -> str:
    """Return a name that can be printed, tabulated and made a file of: no bytes outside Unicode, no backslash.

    Control characters, such as line breaks, become underscores too.
    """
    text = name.encode("utf-8", "replace").decode("utf-8").replace("\\", "_")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "_", text)
