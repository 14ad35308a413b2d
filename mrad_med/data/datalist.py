"""Datalists, and the handling of problems in a dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrad_med.data.paths import name_cases
from mrad_med.errors import DatasetError

__all__ = ["Datalist", "Report", "make_cases", "reporter", "shorten"]

logger = logging.getLogger(__name__)

Datalist = list[dict[str, Any]]
Report = Callable[[str], None]  # called with a problem of a dataset and what to do about it
SHOWN = 5  # largest number of names in a message; the message states the total first


def reporter(*, strict: bool) -> Report:
    """Return the function that handles a problem: raise `DatasetError` if strict, else log a warning."""
    return _refuse if strict else _warn


def _refuse(problem: str) -> None:
    raise DatasetError(problem)


def _warn(problem: str) -> None:
    logger.warning("%s", problem)


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
