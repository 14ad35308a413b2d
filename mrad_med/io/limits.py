"""Limits of the size of images and volumes, checked before decoding."""

from __future__ import annotations

import math

from mrad_med.errors import ImageFileError

__all__ = ["MAX_PIXELS", "MAX_VOXELS", "check_pixels", "check_voxels"]

MAX_PIXELS = 100_000_000  # 10000 x 10000; a decoded RGB image of that size takes 300 MB
MAX_VOXELS = 500_000_000  # 512 x 512 x 1900; a float32 volume of that size takes 2 GB


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
    if math.prod(size) > limit:
        raise ImageFileError(f"{' x '.join(map(str, size))} voxels are more than the limit of {limit}; crop it")
