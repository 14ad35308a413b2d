"""The map in CONTRIBUTING.md is true: every module is on it, and imports only from rows above its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mrad_med"


def rows() -> dict[str, int]:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {name: int(row) for row, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.MULTILINE)}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the package that a module imports from, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mrad_med."):
            found.add(node.module.split(".")[1])
    return found


def test_every_module_is_on_the_map_and_the_map_has_no_other():
    assert set(rows()) == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_modules_import_only_from_rows_above(path: Path):
    row = rows()[path.stem]
    assert {name: rows()[name] for name in imported_modules(path) if rows()[name] >= row} == {}


def test_modules_stay_small():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 330} == {}
