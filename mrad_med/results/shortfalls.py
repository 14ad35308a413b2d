"""Outputs of scored cases that cannot be written: the run continues, and the reason is kept."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrad_med.errors import ImageFileError, OutputError, UnfitSourceError
from mrad_med.types import FailedCase

__all__ = ["attempt", "pairs_of"]

logger = logging.getLogger(__name__)


def attempt(
    write: Callable[[], Any], *, what: str, case_id: str, output_dir: Path, shortfalls: list[FailedCase]
) -> Any:
    """Call a function that writes an output, and return its value.

    If the output cannot be written, the reason is added to the shortfalls and an empty list is returned.

    Args:
        write: function that writes the output.
        what: name of the output, for the reason.
        case_id: name of the case.
        output_dir: folder of the results, for the error.
        shortfalls: list that the reason is added to.

    Raises:
        OutputError: the disk is full, or the folder is gone.
    """
    try:
        return write()
    except UnfitSourceError as error:
        reason = str(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise OutputError(f"cannot write the results of {case_id} to {output_dir}: {error}") from error
        reason = "its file name would be too long; rename the case"
    except Exception as error:  # of a library; its message may quote the source
        reason = str(error) if isinstance(error, ImageFileError) else f"unforeseen {type(error).__name__}"
    logger.warning("%s: no %s could be written: %s", case_id, what, reason)
    shortfalls.append(FailedCase(case_id, f"no {what} could be written: {reason}"))
    return []


def pairs_of(shortfalls: Sequence[FailedCase]) -> tuple[tuple[str, str], ...]:
    """Return the name of the case and the reason of each shortfall."""
    return tuple((item.case_id, item.reason) for item in shortfalls)
