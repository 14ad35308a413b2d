"""Text on the terminal, and the exit statuses of the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["ALL_WELL", "NOTHING_DONE", "SIGNALED", "SOME_FAILED", "STOPPED", "say", "say_table"]

ALL_WELL, SOME_FAILED, NOTHING_DONE, STOPPED = 0, 1, 2, 130  # exit statuses
SIGNALED = 128  # plus the number of a signal: exit status of a program that was ended by it


def say(text: str, *, to_error: bool = False) -> None:
    """Write a line; characters that the terminal cannot encode are written as escape sequences."""
    stream = sys.stderr if to_error else sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Write rows of texts in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(map(str.ljust, row, widths)).rstrip())
