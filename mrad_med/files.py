"""Files that are whole or absent, their hashes, and why results cannot be written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "atomic_path",
    "sha256_of_file",
]


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


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
