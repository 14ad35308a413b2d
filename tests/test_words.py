"""The words of the project: argument texts, error messages, help and documents follow CONTRIBUTING.md."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "mrad_med").rglob("*.py"))
PROGRAMS = sorted(path for folder in ("scripts", "benchmarks", "tutorials") for path in (ROOT / folder).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bundles").glob("*/docs/*.md")])
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))

LONGEST_SENTENCE = 35  # words of an error message or a help text
LONGEST_README = 1000  # words
# An argument text begins with a noun phrase. These words begin a clause that needs the argument's name.
NO_BEGINNING = ["of", "that", "at", "from", "whose", "which", "by", "as", "on", "with"]
# Names of old config keys, of papers and of data that stay as they are.
ALLOWED = (
    '"pictures": "view"',
    "IEEE Signal Processing Letters",
    "pass over",
    "_image.tell()",
    "def shade(",
    "foreign, shade, smear",
    '"stain", "shade"',
    '"shade": (',
)
# Habits that make a reader stop, with what to write. CONTRIBUTING.md has the words of the project.
REPLACED = {
    r"tells?\b|told\b": "state, report, return, detect",
    r"anew\b": "again",
    r"pass(es|ed|ing)? over\b": "skip",
    r"(go|goes|going|went) on\b": "resume, continue",
    r"take(s|n)? for\b|took for\b": "treat as",
    r"(come|comes|came) before\b": "take precedence",
    r"ha(s|ve) it\b": "as in",
    r"from which on\b": "at or above which",
    r"(?<!there )(is|are) no\b": "is not a",
    r"(lie|lies|lay)\b": "is, position",
    r"pictures?\b": "image",
    r"films?\b": "multi-frame file",
    r"tones?\b": "photometric interpretation",
    r"shades?\b": "gray levels",
    r"letters?\b": "characters",
    r"(cannot|not|need not|must not) be (said|heard)\b": "is not known",
    r"kin\b": "similar",
    r"untold\b": "unknown",
}
FAMILIAR = re.compile("|".join(rf"\b(?:{habit})" for habit in REPLACED), re.IGNORECASE)


def argument_texts(docstring: str) -> Iterator[tuple[str, str]]:
    """Return name and text of everything in the sections Args and Attributes."""
    text = inspect.cleandoc(docstring) + "\n"
    for section in re.findall(r"^(?:Args|Attributes):\n((?: +.*\n|\n)+)", text, re.MULTILINE):
        yield from re.findall(r"^ {4}(\S[^:]*): (.*)", section, re.MULTILINE)


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def strings_in(node: ast.AST) -> str:
    """Return the text of a string expression; each value that is filled in counts as one word."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "X"
    if isinstance(node, ast.JoinedStr):
        return "".join(strings_in(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return strings_in(node.left) + strings_in(node.right)
    return "X"


def messages(path: Path) -> Iterator[str]:
    """Return the texts of errors, of warnings, and of help."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from map(strings_in, node.exc.args)
        elif isinstance(node, ast.Call):
            yield from (
                strings_in(item.value) for item in node.keywords if item.arg in ("help", "description", "epilog")
            )


def sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.:;!?])\s+", text) if part]


def prose(path: Path) -> str:
    """Return what a person reads of a file: comments and strings of a program, a document without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    if path.suffix == ".md":
        return re.sub(r"```.*?```|`[^`]*`", "`code`", text, flags=re.DOTALL)
    return text


def habits(text: str) -> list[str]:
    names = re.compile("|".join([r"`[^`]*`", r"https?://\S+", *map(re.escape, ALLOWED)]))
    return [line.strip() for line in text.splitlines() if FAMILIAR.search(names.sub("", line))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_argument_texts_begin_with_what_the_argument_is(path: Path):
    found = [f"{name}: {text}" for docstring in docstrings(path) for name, text in argument_texts(docstring)]
    assert [line for line in found if re.match(rf".*?: ({'|'.join(NO_BEGINNING)})\b", line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sentences_of_errors_and_help_are_short(path: Path):
    found = [sentence for message in messages(path) for sentence in sentences(message)]
    assert [sentence for sentence in found if len(sentence.split()) > LONGEST_SENTENCE] == []


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS, *DOCUMENTS, *NOTEBOOKS], ids=relative)
def test_no_habit_that_makes_a_reader_stop(path: Path):
    assert habits(prose(path)) == []


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < LONGEST_README


def test_the_checks_find_what_they_are_for():
    docstring = """Return nothing.

    Args:
        sigma: of the Gaussian, in pixels.
        size: side of the image in pixels: of which
            at most 3 are used.

    Raises:
        ValueError: of no use.
    """
    assert list(argument_texts(docstring)) == [
        ("sigma", "of the Gaussian, in pixels."),
        ("size", "side of the image in pixels: of which"),
    ]
    assert habits("it tells nothing\nthere is no file\nthis is no file\n`tell` is code") == [
        "it tells nothing",
        "this is no file",
    ]
    message = ast.parse("raise ValueError(f'a {b + 1!r} c' + ' d')").body[0]
    assert strings_in(message.exc.args[0])  # type: ignore[attr-defined] == "a X c d"
