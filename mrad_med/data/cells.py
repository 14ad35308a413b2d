"""Tables as CSV files, which a spreadsheet shows as they are: no cell is executed, and none is shown reversed."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrad_med.data.names import FORMULA, without_controls
from mrad_med.files import atomic_path

__all__ = ["PRIVATE", "markdown_cell", "safe_cell", "write_csv"]

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)", re.ASCII | re.IGNORECASE)
PRIVATE = 0o600  # mode of a file that only its owner can read


def safe_cell(value: Any) -> Any:
    """Return a value for a cell of a table.

    Numbers, also as text, are returned unchanged. In other texts, control characters and marks of the text direction
    become ``_``, and a text that a spreadsheet would treat as a formula gets a leading apostrophe, as spreadsheets do
    to mark a text. Case ids that are made from paths never need it, see `mrad_med.data.names.printable`.

    Args:
        value: text, number or None.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return FORMULA.sub("'", without_controls(value))


def markdown_cell(text: str) -> str:
    """Return a text for a cell or title in Markdown: on one line, without HTML, and without an end of the cell."""
    return without_controls(text).replace("|", "\\|").replace("<", "&lt;")


def write_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    is_private: bool = False,
) -> None:
    """Write a table as CSV in UTF-8, completely or not at all. Each cell is a `safe_cell`.

    Args:
        path: path of the file.
        columns: names of the columns.
        rows: values by column; a missing value becomes an empty cell.
        is_private: whether only the owner of the file can read it (mode 600).

    Raises:
        ValueError: a row has a value for an unknown column.
        OSError: the file cannot be written.
    """
    with atomic_path(path) as partial, _open(partial, is_private=is_private) as stream:
        table = csv.DictWriter(stream, columns, restval="")
        table.writeheader()
        table.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)


def _open(path: Path, *, is_private: bool) -> Any:
    """Return a new file that is open for writing."""
    mode = PRIVATE if is_private else 0o666
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    if is_private and os.name == "posix":
        os.fchmod(descriptor, PRIVATE)  # before anything is written; an older file keeps its mode
    return os.fdopen(descriptor, "w", newline="", encoding="utf-8")
