"""Check of the content of images: constant images are refused, and images that look like masks are marked."""

from __future__ import annotations

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray

from mrad_med.errors import NothingToScoreError
from mrad_med.transforms.dictionary import Eachd

__all__ = ["LIKE_MASK", "MOST_LABELS", "CheckVisible", "CheckVisibled", "CheckValues", "CheckValuesd", "count_values"]

LIKE_MASK = "like_mask"  # key of the metadata: whether an image has as few values as a mask
MOST_LABELS = 16  # distinct integers; an image with more of them is not a mask
_PART = 2**18  # values that are examined at a time: most images have more distinct values in the first part


def count_values(pixels: NDArray[np.generic], *, most: int = MOST_LABELS) -> int:
    """Return the number of distinct values of an image; of colors if it has several channels.

    Args:
        pixels: (C, ...) values. NaN and infinite values are ignored.
        most: number of values after which counting stops.

    Returns:
        0 to ``most + 1``. ``most + 1`` also if a value is not an integer and there are several values.
    """
    flat = pixels.reshape(len(pixels), -1)
    seen = np.zeros((len(pixels), 0), pixels.dtype)
    for start in range(0, flat.shape[1], _PART):
        part = flat[:, start : start + _PART]
        if part.dtype.kind == "f":
            part = part[:, np.isfinite(part).all(0)]
        if part.shape[1] and (seen.shape[1] != 1 or (part != seen).any()):
            seen = np.unique(np.concatenate([seen, _distinct(part, most)], axis=1), axis=1)
        if seen.shape[1] > most or (seen.shape[1] > 1 and (seen != np.round(seen)).any()):
            return most + 1
    return int(seen.shape[1])


def _distinct(part: NDArray[np.generic], most: int) -> NDArray[np.generic]:
    """Return distinct columns of (C, N) values: all of them, or at least ``most + 1`` of them."""
    single = [np.unique(channel) for channel in part]
    if max(map(len, single)) > most:  # sorting one channel is fast, sorting colors is not
        longest = max(range(len(single)), key=lambda index: len(single[index]))
        return part[:, np.unique(part[longest], return_index=True)[1][: most + 1]]
    if len(part) == 1:
        return single[0][None]
    codes = np.zeros(part.shape[1], np.int64)
    for channel, values in zip(part, single, strict=True):
        codes = codes * len(values) + np.searchsorted(values, channel)
    return part[:, np.unique(codes, return_index=True)[1]]


class CheckValues(Transform):
    """Refuse an image or volume with one value, and mark one with at most `MOST_LABELS` distinct integers.

    The transform works on the values of the file, before a window. Padding of DICOM images has the lowest value of the
    other pixels (`DicomReader`), so it does not count. NaN and infinite values do not count either.
    """

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image, with the mark in its metadata (`LIKE_MASK`).

        Args:
            image: (C, ...) image or volume as it is stored.

        Raises:
            NothingToScoreError: all pixels have one value.
        """
        count = count_values(image.detach().cpu().numpy())
        if count == 1:
            raise NothingToScoreError("all its pixels have one value; check the file")
        result = MetaTensor(image.as_tensor()).copy_meta_from(image)
        result.meta[LIKE_MASK] = 1 < count <= MOST_LABELS
        return result


class CheckVisible(Transform):
    """Refuse an image in which the network would see one value only, and a volume whose slices are all of this kind.

    The transform works on the input of the network, after window, removal of artifacts, and resizing.
    """

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image unchanged.

        Args:
            image: (C, H, W) image or (C, H, W, D) volume of D slices.

        Raises:
            NothingToScoreError: each channel has one value, in each slice.
        """
        low, high = torch.aminmax(image.flatten(1, 2), dim=1)
        if (low == high).all():
            slices = "each of its slices" if image.ndim == 4 else "it"
            raise NothingToScoreError(f"{slices} shows one gray value or color in this window; try another --window")
        return image


class CheckValuesd(Eachd):
    """Dictionary version of `CheckValues`."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CheckValues()


class CheckVisibled(Eachd):
    """Dictionary version of `CheckVisible`."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CheckVisible()
