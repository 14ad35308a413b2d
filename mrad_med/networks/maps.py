"""Pure functions that compute anomaly maps and scores from patch probabilities, as in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["fuse_scores", "top_fraction_mean", "upsample_and_blur"]

GAUSSIAN_SIGMA = 4.0  # pixels, as published
GAUSSIAN_TRUNCATE = 4.0  # the kernel is truncated at this many sigmas, as in scipy
IMAGE_WEIGHT = 0.7  # weight of the image-level probability in the score, as published
TOP_FRACTION = 0.01  # share of the map's pixels that the pixel term of the score averages, as published


def upsample_and_blur(patch_maps: Tensor, image_size: tuple[int, int], *, sigma: float = GAUSSIAN_SIGMA) -> Tensor:
    """Return maps at image size: bilinear upsampling, then a Gaussian with mirrored edges.

    Both steps are linear and separable, so one matrix per axis is exact: ``rows @ map @ columns.T``. The edge pixel is
    repeated (d c b a | a b c d), the default of `scipy.ndimage.gaussian_filter`.

    Args:
        patch_maps: (B, 1, h, w) probabilities on the patch grid.
        image_size: height and width in pixels.
        sigma: standard deviation of the Gaussian, in pixels; 0 disables it.

    Returns:
        (B, 1, height, width) maps.

    Raises:
        ValueError: ``sigma`` is negative.
    """
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    # int: sizes are tensors under a tracer
    rows, columns = (
        torch.from_numpy(_axis_matrix(int(source), int(target), sigma)).to(patch_maps)
        for source, target in zip(patch_maps.shape[-2:], image_size, strict=True)
    )
    with torch.autocast(patch_maps.device.type, enabled=False):
        return rows @ patch_maps @ columns.T


@lru_cache(maxsize=32)
def _axis_matrix(source: int, target: int, sigma: float) -> NDArray[np.float64]:
    """Return the (target, source) matrix that upsamples one axis and blurs it.

    A cached tensor would depend on the mode of the first caller (inference, tracing, export), an array does not.
    """
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    # Bilinear: a triangle around each source pixel.
    upsampled: NDArray[np.float64] = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source)))
    radius = int(GAUSSIAN_TRUNCATE * sigma + 0.5)
    if radius == 0:
        return upsampled
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    # The period 2 * target also holds for a kernel longer than the axis.
    neighbors = (np.arange(target)[:, None] + offsets) % (2 * target)
    neighbors = np.where(neighbors < target, neighbors, 2 * target - 1 - neighbors)
    blur: NDArray[np.float64] = np.zeros((target, target))
    np.add.at(blur, (np.arange(target)[:, None], neighbors), kernel)
    return blur @ upsampled


def top_fraction_mean(maps: Tensor, *, fraction: float = TOP_FRACTION) -> Tensor:
    """Return the mean of the highest pixels of each map.

    Args:
        maps: (B, 1, ...) anomaly maps.
        fraction: share of the pixels, in (0, 1]; at least one pixel is used.

    Returns:
        (B, 1) means.

    Raises:
        ValueError: ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    flat = maps.flatten(1)
    count = max(1, int(fraction * flat.shape[1]))
    return flat.topk(count, dim=1).values.mean(1, keepdim=True)


def fuse_scores(
    image_probability: Tensor,
    maps: Tensor,
    *,
    image_weight: float = IMAGE_WEIGHT,
    fraction: float = TOP_FRACTION,
) -> Tensor:
    """Return the anomaly score: weighted mean of the image-level probability and the mean of the highest pixels.

    Args:
        image_probability: (B, 1) image-level probabilities.
        maps: (B, 1, ...) anomaly maps.
        image_weight: weight of the image-level probability, in [0, 1]; the pixels have the rest.
        fraction: share of the pixels that are averaged, in (0, 1].

    Returns:
        (B, 1) scores.
    """
    return image_weight * image_probability + (1 - image_weight) * top_fraction_mean(maps, fraction=fraction)
