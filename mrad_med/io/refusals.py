"""The one place where errors of libraries become errors of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mrad_med.errors import ImageFileError

__all__ = ["refusing"]


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Raise an `ImageFileError` in place of whatever a library raises while it reads an image.

    Libraries raise nearly everything on damaged files, and their messages may quote the file's content. So neither the
    message nor the chain of the new error holds theirs. An `ImageFileError` stays as it is. A lack of memory, an
    interruption and an exit are not faults of the file, and stay as they are too.

    Args:
        message: what is wrong and what to do; ``{kind}`` in it becomes the name of the error's class.

    Raises:
        ImageFileError: anything else went wrong.
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
