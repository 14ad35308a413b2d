"""Conversion of errors of libraries to `ImageFileError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mrad_med.errors import ImageFileError

__all__ = ["refusing"]


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Replace any error that a library raises while reading an image by an `ImageFileError`.

    Libraries raise errors of many classes on damaged files, and their messages may quote the file's content. The new
    error therefore has neither their message nor their traceback chain. An `ImageFileError` is kept. A
    `MemoryError`, an interruption and an exit are kept too, because they are not faults of the file.

    Args:
        message: text of the new error; ``{kind}`` in it is replaced by the class name of the original error.

    Raises:
        ImageFileError: the block raised another error.
    """
    try:
        yield
    except (ImageFileError, MemoryError):
        raise
    except FileNotFoundError:
        raise ImageFileError("there is no such file") from None
    except PermissionError:
        raise ImageFileError("there is no permission to read the file; grant it") from None
    except Exception as error:
        raise ImageFileError(message.replace("{kind}", type(error).__name__)) from None
