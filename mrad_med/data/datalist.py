"""Datalists, and the handling of problems in a dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrad_med.data.paths import holds_dicom, name_cases
from mrad_med.errors import DatasetError

__all__ = ["Datalist", "Report", "make_cases", "reporter", "shorten", "withheld_names"]

logger = logging.getLogger(__name__)

Datalist = list[dict[str, Any]]
Report = Callable[[str], None]  # called with a problem of a dataset and what to do about it
_WITHHELD = (
    "the dataset holds DICOM files and has a problem whose description names files; set keep_identifiers "
    "(--keep-identifiers) to read it"
)
SHOWN = 5  # largest number of names in a message; the message states the total first


def reporter(*, strict: bool) -> Report:
    """Return the function that handles a problem: raise `DatasetError` if strict, else log a warning."""
    return _refuse if strict else _warn


def _refuse(problem: str) -> None:
    raise DatasetError(problem)


def _warn(problem: str) -> None:
    logger.warning("%s", problem)


@contextmanager
def withheld_names(root: str | os.PathLike[str], *, keep_identifiers: bool) -> Iterator[None]:
    """Withhold warnings and errors about a labeled set that holds DICOM, because they name files.

    Args:
        root: folder of the set, or its table.
        keep_identifiers: whether names may be shown; then nothing is withheld.

    Raises:
        DatasetError: loading failed; the message names files only if they may be shown.
    """
    if keep_identifiers:
        yield
        return
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        held.append(record)
        return False

    place = Path(root).parent if os.path.isfile(root) else root  # noqa: PTH113 - Path.is_file may raise
    logger.addFilter(hold)
    try:
        yield
    except DatasetError:
        if holds_dicom(place):
            raise DatasetError(_WITHHELD) from None
        raise
    finally:
        logger.removeFilter(hold)
        if held and holds_dicom(place):
            logger.warning("%s (%d)", _WITHHELD, len(held))
            held.clear()
        for record in held:
            logger.handle(record)


def shorten(names: Iterable[object]) -> str:
    """Return the first few names as one text, followed by "..." if there are more."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")


def make_cases(root: Path, images: Sequence[Path], label: int, masks: Mapping[Path, Path], class_name: str) -> Datalist:
    """Return cases with the same label and class, and the mask of each image that has one."""
    return [
        {
            "image": str(image),
            "case_id": case_id,
            "label": label,
            "mask": str(masks[image]) if image in masks else None,
            "class": class_name,
        }
        for image, case_id in zip(images, name_cases(images, root), strict=True)
    ]
