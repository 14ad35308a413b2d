"""What stands between files and the network, and between the network and results, in MONAI's transforms."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from monai.transforms import Compose, FlattenSubKeysd, Invertd, NormalizeIntensityd, ScaleIntensityRanged
from monai.utils import CommonKeys

from mrad_med.readers import MAX_PIXELS
from mrad_med.transforms import (
    IMAGE_SIZE,
    LoadMaskd,
    LoadMedicalImage,
    LoadMedicalImaged,
    ResizeBicubicd,
    ResizeMaskd,
    ScaleToBytes,
    ScaleToBytesd,
    ToDisplayOrientation,
    ToDisplayOrientationd,
    ToRGB,
    ToRGBd,
)
from mrad_med.types import AnomalyKeys, BackboneCard

__all__ = ["build_postprocessing", "build_preprocessing", "load_picture"]


def build_preprocessing(
    card: BackboneCard,
    *,
    image_size: int = IMAGE_SIZE,
    with_mask: bool = False,
    resize_mask: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Compose:
    """Return what stands between a case ``{"image": path, ...}`` and the network, in MONAI's transforms.

    Args:
        card: of the backbone, for its normalization constants.
        image_size: side of the square input in pixels, a multiple of the patch size.
        with_mask: also load ``"mask"`` (a path, None or absent) as (1, H, W).
        resize_mask: bring the mask to the size of the input; it stays at that of the file otherwise.
        max_pixels: photographs with more pixels are refused.

    Returns:
        A transform that makes ``"image"`` (3, H, W), or (3, H, W, D) for a volume. Its inverse brings maps back onto
        the file's own grid.

    Raises:
        ValueError: ``image_size`` is not a multiple of the patch size.
    """
    if image_size < card.patch_size or image_size % card.patch_size:
        raise ValueError(f"image_size must be a multiple of the patch size {card.patch_size}, got {image_size}")
    image, mask = [AnomalyKeys.IMAGE.value], [AnomalyKeys.MASK.value] * with_mask
    return Compose(
        [
            LoadMedicalImaged(image, max_pixels),
            *([LoadMaskd(mask)] if with_mask else []),
            ToDisplayOrientationd(image + mask),
            ScaleToBytesd(image),
            ToRGBd(image),
            ResizeBicubicd(image, image_size),
            *([ResizeMaskd(mask, image_size)] if with_mask and resize_mask else []),
            ScaleIntensityRanged(image, a_min=0, a_max=255, b_min=0, b_max=1),
            NormalizeIntensityd(image, subtrahend=card.mean, divisor=card.std, channel_wise=True),
        ]
    )


def build_postprocessing(preprocessing: Compose) -> Compose:
    """Return what brings an inferer's output back onto the file's own grid, in MONAI's transforms.

    Args:
        preprocessing: of the images; it is inverted.
    """
    maps = AnomalyKeys.ANOMALY_MAP.value
    return Compose(
        [
            FlattenSubKeysd(keys=CommonKeys.PRED, delete_keys=True),
            Invertd(keys=maps, transform=preprocessing, orig_keys=AnomalyKeys.IMAGE.value, nearest_interp=False),
        ]
    )


def load_picture(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """Return what the network sees of a file at the file's own size: uint8 (H, W, 3), or (H, W, D, 3) for a volume.

    No limit of pixels applies: it is meant for files that were scored.
    """
    steps = Compose([LoadMedicalImage(sys.maxsize), ToDisplayOrientation(), ScaleToBytes(), ToRGB()])
    picture: np.ndarray[Any, Any] = steps(path).numpy()
    return np.moveaxis(picture, 0, -1)
