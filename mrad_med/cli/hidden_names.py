"""Names that a command hides: its messages hold no path, and a file holds the key from names to paths."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mrad_med
from mrad_med.cli.console import say
from mrad_med.errors import FailedCasesError

if TYPE_CHECKING:
    from mrad_med.data import Origin

__all__ = ["add_options", "check_key", "say_hidden", "without_paths", "write_key"]

_PLACE = "PATH"  # stands for a path in a message


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--keep-identifiers`` and ``--key``."""
    parser.add_argument(
        "--keep-identifiers",
        action="store_true",
        default=None,
        help="name cases after their paths, and keep names, numbers and dates of patients in DICOM outputs "
        "(default: if any file is DICOM, name cases with codes, and remove them)",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="CSV file that will list the path, study and series of each case id. Only you can read it. "
        "It must not be in the folder for results (default: none)",
    )


def check_key(options: argparse.Namespace, out: str | os.PathLike[str] | None) -> None:
    """Check that the key can be written, before anything is scored. Arguments are those of `write_key`."""
    if options.key is not None:
        mrad_med.data.check_key(options.key, outside=out)


def write_key(options: argparse.Namespace, origins: Sequence[Origin], out: str | os.PathLike[str] | None) -> None:
    """Write the key that the options ask for, if any.

    Args:
        options: options of the command.
        origins: names and their files.
        out: folder for results, which must not hold the key.
    """
    if options.key is not None:
        mrad_med.data.write_key(options.key, origins, outside=out)


def say_hidden(options: argparse.Namespace, origins: Sequence[Origin], how: str) -> None:
    """Say how many names are hidden, and where the key is or how to get it.

    Args:
        options: options of the command.
        origins: hidden names and their files; empty if no name is hidden.
        how: options that write the key in a later run.
    """
    count = len({origin.case_id for origin in origins})
    if count:
        key = "the key is in the file of --key" if options.key else f"{how} with the same paths writes the key"
        say(f"{count} name(s) are hidden, because DICOM files are among the images; {key}")


@contextmanager
def without_paths(
    source: str | os.PathLike[str], *others: str | os.PathLike[str] | None, keep_identifiers: bool
) -> Iterator[None]:
    """Raise errors of a run with DICOM files without their paths.

    Args:
        source: path of the images.
        *others: other paths that were given.
        keep_identifiers: whether paths may be shown; then errors are raised as they are.

    Raises:
        ValueError: an error whose message held a path; the message states ``PATH`` in its place.
    """
    try:
        yield
    except FailedCasesError:  # its case ids are hidden already
        raise
    except Exception as error:
        if keep_identifiers or not mrad_med.data.holds_dicom(source):
            raise
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        shown = _replaced(message, (source, *(path for path in others if path is not None)))
        name = "" if isinstance(error, (ValueError, OSError, KeyError)) and shown else f"{type(error).__name__}: "
        raise ValueError(f"{name}{shown}") from None


def _replaced(message: str, paths: Sequence[str | os.PathLike[str]]) -> str:
    """Return a message in which each path is replaced. A longer path ends at its quotation mark or with the message."""
    given = {str(form) for path in paths for form in (os.fspath(path), Path(path), Path(path).absolute())}
    given |= {str(Path(path).resolve()) for path in paths}
    for path in sorted(given - {".", "/"}, key=len, reverse=True):
        start = re.escape(path)
        message = re.sub(rf"(?<=(['\"])){start}[/\\].*?(?=\1)", _PLACE, message, flags=re.DOTALL)
        message = re.sub(rf"(?<![\w/]){start}(?!\w)([/\\].*)?", _PLACE, message, flags=re.DOTALL)
    return message
