"""Atomic writing, hashes of files, and checks that results can be written."""

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
_NEEDED_BYTES = 2**16  # a full disk may still accept a file of a few bytes


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is renamed to ``path`` only if the block ends without an error.

    The temporary name has the suffix of the final name, because some writers choose the format by the suffix. Missing
    parent folders are created.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Only the end of a long name is kept: file systems allow 255 bytes, and a character may take four of them.
    partial = final.with_name(f".partial-{os.getpid()}-{final.name[-40:]}")
    try:
        yield partial
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Remove a temporary file of `atomic_path` whose process was killed before the file was complete.

    Args:
        path: path of any file. Files with other names, and files of running processes, are not removed.
    """
    found = _PARTIAL.match(path.name)
    if found is None or os.name != "posix":  # on Windows, signal 0 is Ctrl-C
        return
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        with suppress(OSError):
            path.unlink()
    except (OSError, OverflowError):  # the process of another user, or not a process id
        return


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def prepare_output(output_dir: str | os.PathLike[str]) -> Path:
    """Create a folder for results, and check that files can be written to it before the computation starts.

    Raises:
        OutputError: the folder cannot be created or written to.
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
    """Create the folder of a result file, and check that it can be written to before the computation starts.

    An existing file is not changed. Temporary files that killed processes left of it are removed.

    Raises:
        OutputError: the path is a folder, or its folder cannot be created or written to.
    """
    file = Path(path)
    if os.path.isdir(file):  # noqa: PTH112 - unlike Path.is_dir, it returns False on errors
        raise OutputError(f"cannot write the file {file}: a folder has this name; choose another name")
    prepare_output(file.parent)
    for partial in file.parent.glob(f".partial-*-{glob.escape(file.name[-40:])}"):
        remove_partial(partial)
    return file


def safe_relative_path(case_id: str) -> str:
    """Return the path of a case below the output folder.

    Raises:
        ValueError: the path would be outside of the output folder.
    """
    path = PurePosixPath(case_id)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in case_id:
        raise ValueError(f"case id {case_id!r} cannot become a file below the output folder; rename the case")
    return str(path)
