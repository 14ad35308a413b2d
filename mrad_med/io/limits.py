"""Limits of the size of images and volumes, checked before decoding."""

from __future__ import annotations

import math

from mrad_med.errors import ImageFileError

__all__ = ["MAX_EXPANSION", "MAX_PIXELS", "MAX_VOXELS", "check_expansion", "check_pixels", "check_voxels"]

MAX_PIXELS = 100_000_000  # 10000 x 10000; a decoded RGB image of that size takes 300 MB
MAX_VOXELS = 500_000_000  # 512 x 512 x 1900; a float32 volume of that size takes 2 GB
MAX_EXPANSION = 200.0  # decompressed size by compressed size; of CT and MR about 2 to 5, of zeros about 1000

_HARMLESS = 10_000_000  # bytes; sizes up to this may expand by any ratio


def check_pixels(width: int, height: int, limit: int) -> None:
    """Check the number of pixels of an image before it is decoded.

    Raises:
        ImageFileError: the image has more pixels than ``limit``.
    """
    if width * height > limit:
        raise ImageFileError(
            f"{width} x {height} pixels are more than the limit of {limit}; make the image smaller or raise the limit "
            "(--max_pixels)"
        )


def check_voxels(*size: int, limit: int) -> None:
    """Check the number of voxels of a volume before it is decoded.

    Raises:
        ImageFileError: the volume has more voxels than ``limit``.
    """
    voxels = math.prod(size)
    if voxels > limit:
        raise ImageFileError(
            f"{' x '.join(map(str, size))} voxels are more than the limit of {limit}; crop it, or raise the "
            f"limit (--max_voxels) if there is memory for them ({4 * voxels / 1e9:.1f} GB as float32)"
        )


def check_expansion(size: int, packed: int, *, limit: float) -> None:
    """Check how much compressed data expand, before they are decompressed.

    Args:
        size: size of the decompressed data, in bytes.
        packed: size of the compressed data, in bytes.
        limit: largest ratio of the two sizes; data of up to 10 MB may expand by any ratio.

    Raises:
        ImageFileError: the data expand more.
    """
    if size > max(_HARMLESS, limit * packed):
        raise ImageFileError(
            f"its header announces {size / 1e9:.2f} GB of values, {size / max(packed, 1):.0f} times their compressed "
            f"size, and the limit is {limit:g} times; copy the file again if it is incomplete, or raise the limit "
            "(--max_expansion)"
        )
