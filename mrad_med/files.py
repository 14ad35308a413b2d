"""Files that are whole or absent, their hashes, and why results cannot be written."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from mrad_med.errors import OutputError

__all__ = [
    "atomic_path",
    "prepare_output",
    "prepare_output_file",
    "remove_partial",
    "safe_relative_path",
    "sha256_of_file",
]

_PARTIAL = re.compile(r"\.partial-(\d+)-")
_NEEDED_BYTES = 2**16  # a full disk may still have room for a few bytes beside the names of files


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the name ``path`` only when the block ends without an error.

    The temporary name ends like the final one, so that writers which go by suffix choose the same format. Missing
    parent folders are made.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Of a long name only the end, for the system allows 255 bytes, which letters of any script may fill four by four.
    partial = final.with_name(f".partial-{os.getpid()}-{final.name[-40:]}")
    try:
        yield partial
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Remove a file that a process began to write and left half-written, because it was killed.

    Args:
        path: any file. One with another name than `atomic_path` yields, or of a process that runs, is left alone.
    """
    found = _PARTIAL.match(path.name)
    if found is None or os.name != "posix":  # elsewhere signal 0 is not a question
        return
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        with suppress(OSError):
            path.unlink()
    except (OSError, OverflowError):  # it belongs to somebody else, or is no number of a process
        return


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prepare_output(output_dir: str | os.PathLike[str]) -> Path:
    """Make a folder for results; refuse it before hours of computing, not after.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(_NEEDED_BYTES))
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror}); choose another folder") from error
    return folder


def prepare_output_file(path: str | os.PathLike[str]) -> Path:
    """Make the folder of a file for results; refuse the file before hours of computing, not after.

    A file that exists is not changed. What a process that was killed left of it is removed.

    Raises:
        OutputError: the path is a folder, or its folder cannot be made or written to.
    """
    file = Path(path)
    if os.path.isdir(file):  # noqa: PTH112 - unlike Path's, false where it cannot be known
        raise OutputError(f"cannot write the file {file}: there is a folder of this name; name a file")
    prepare_output(file.parent)
    for partial in file.parent.glob(f".partial-*-{glob.escape(file.name[-40:])}"):
        remove_partial(partial)
    return file


def safe_relative_path(case_id: str) -> str:
    """Return the path below the output folder that a name stands for.

    Raises:
        ValueError: it would lead out of it.
    """
    path = PurePosixPath(case_id)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in case_id:
        raise ValueError(f"case name {case_id!r} cannot become a file below the output folder; rename the case")
    return str(path)
