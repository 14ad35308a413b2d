"""The rooms of the package: allowed imports, and the length of files. CONTRIBUTING.md describes them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mrad_med"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The ground files know nothing of any room; the roof (`cli`, `benchmark`, `detector`) may import everything.
GROUND = {"errors", "types", "files", "store", "distributed"}
GROUNDS = {"io", "networks", "metrics"}
BELOW = GROUNDS | {"transforms", "data"}
MAY_IMPORT = {
    "io": set(),
    "networks": set(),
    "metrics": set(),
    "transforms": {"io"},
    "data": {"io", "transforms"},
    "results": BELOW,
    "training": BELOW,
    "evaluation": BELOW,
}
ROOF = {"__init__", "__main__", "cli", "benchmark", "bundle", "detector"}
MOST_LINES = 400


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Return the modules and rooms of the package that a file imports, anywhere in its code, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively, which this test cannot follow"
            if node.module == "mrad_med":
                found |= {name.name for name in node.names}
            elif (node.module or "").startswith("mrad_med."):
                found.add(str(node.module).removeprefix("mrad_med."))
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("mrad_med.") for name in node.names if name.name.startswith("mrad_med.")}
            found |= {"__init__" for name in node.names if name.name == "mrad_med"}
    return found


def test_every_file_is_in_a_room_on_the_ground_or_on_the_roof():
    assert {room_of(path) for path in MODULES} == {*MAY_IMPORT, *GROUND, *ROOF}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_import_only_from_their_own_room_and_from_rooms_below(path: Path):
    room, rooms = room_of(path), {name.split(".")[0] for name in imported(path)}
    if room == "bundle":
        assert rooms <= {"errors"}
    elif room in GROUND:
        assert rooms <= GROUND
    elif room in MAY_IMPORT:
        assert rooms <= {room} | MAY_IMPORT[room] | GROUND


def test_no_file_is_part_of_an_import_circle():
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in MODULES}
    below = {name: {other for other in imported(path) if other in names} for name, path in names.items()}
    while leaves := [name for name, others in below.items() if not others]:
        below = {name: others - set(leaves) for name, others in below.items() if name not in leaves}
    assert below == {}


def test_files_stay_short_and_have_names_that_say_something():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    assert [path.name for path in MODULES if re.search(r"util|common|base|helper|misc", path.stem)] == []


def test_tests_are_in_the_rooms_of_what_they_test():
    for path in (ROOT / "tests").rglob("*/test_*.py"):
        room = path.relative_to(ROOT / "tests").parent
        assert (PACKAGE / room).is_dir(), f"{path} is in a room that the package does not have"


def test_the_page_for_contributors_names_every_room_and_no_other():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)) == {*MAY_IMPORT, "cli"}
