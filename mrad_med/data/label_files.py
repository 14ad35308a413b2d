"""Masks and label volumes among the files below a path: found by a word of the name, confirmed by the content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.file_types import DICOM, PHOTOGRAPH, VOLUME
from mrad_med.io.frames import list_frames
from mrad_med.io.image import read_image, read_image_file
from mrad_med.transforms.content import MOST_LABELS, count_values
from mrad_med.types import MASK_THRESHOLD

__all__ = ["MASK_REASON", "find_masks", "has_mask_name", "is_mask"]

MASK_REASON = (
    f"it is a mask: a word such as mask or label is in its name, and it has at most {MOST_LABELS} values (apart from "
    "compression). --include-masks (include_masks) scores it"
)

# A word ends at a separator, at a digit, or before a capital character that follows a small one (labelsTr).
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORDS = re.compile(
    r"(?<![^\W\d_])(masks?|labels?|segs?|segmentations?|ground[_\-. ]?truths?|gts?)(?![^\W\d_])", re.IGNORECASE
)
_LOSSY = (".jpg", ".jpeg", ".webp")
# In lossy compression, black and white of a mask become ranges of gray values, and edges between them get any value.
_LOSSY_DISTANCE, _LOSSY_SHARE = 16, 0.98


def has_mask_name(name: str) -> bool:
    """Return whether a file name or the name of a folder above has a word such as mask, label, seg or ground_truth.

    Args:
        name: path of a file below the folder that is searched.
    """
    return any(_WORDS.search(_CAMEL.sub("_", part)) for part in re.split(r"[/\\]", name))


def find_masks(file_types: Mapping[Path, str | None], base: Path) -> set[Path]:
    """Return the files that are masks by name and content. Only files with such a name are read.

    The DICOM files of one folder are one mask or none, because a slice of an image may be black.

    Args:
        file_types: file type of each file that was found.
        base: folder that the names are relative to.
    """
    named = [file for file in file_types if has_mask_name(file.relative_to(base).as_posix())]
    slices: dict[Path, list[Path]] = {}
    for file in named:
        if file_types[file] == DICOM:
            slices.setdefault(file.parent, []).append(file)
    others = [file for file in named if file_types[file] in (PHOTOGRAPH, VOLUME)]
    masks = {file for file in others if is_mask([file])}
    return masks.union(*(files for files in slices.values() if is_mask(files)))


def is_mask(files: Sequence[Path]) -> bool:
    """Return whether files have at most `MOST_LABELS` distinct integers together; a color counts as one.

    A JPEG or WebP image is also a mask if nearly all its pixels are nearly black or nearly white.

    Args:
        files: files of one mask, such as the slices of a series. Files that cannot be read are not masks.
    """
    seen: NDArray[Any] | None = None
    with suppress(ImageFileError):
        for pixels in _images_in(files):
            if files[0].name.lower().endswith(_LOSSY) and _is_black_and_white(pixels):
                pixels = np.where(pixels > MASK_THRESHOLD, 255, 0)
            if count_values(pixels) > MOST_LABELS or (seen is not None and len(seen) != len(pixels)):
                return False
            flat = pixels.reshape(len(pixels), -1)
            found = np.unique(flat[:, np.isfinite(flat).all(0)], axis=1)
            seen = found if seen is None else np.unique(np.concatenate([seen, found], axis=1), axis=1)
            if seen.shape[1] > MOST_LABELS:
                return False
        return seen is not None
    return False


def _is_black_and_white(pixels: NDArray[Any]) -> bool:
    near = (pixels < _LOSSY_DISTANCE) | (pixels > 255 - _LOSSY_DISTANCE)
    return pixels.dtype == np.uint8 and float(near.mean()) >= _LOSSY_SHARE


def _images_in(files: Iterable[Path]) -> Iterable[NDArray[Any]]:
    """Yield the values (C, ...) of each file, and of each page of a file with several pages."""
    for file in files:
        frames = []
        with suppress(ImageFileError):
            frames = list_frames(file)
        for source in frames if len(frames) > 1 else [file]:
            image = read_image_file(source) if isinstance(source, Path) else read_image(source)
            yield image.numpy()
