"""From patch probabilities to an anomaly map and a score, as in MRAD (arXiv 2602.00522): pure functions."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fuse_scores", "top_fraction_mean", "upsample_and_blur"]

GAUSSIAN_SIGMA = 4.0  # pixels, as published
GAUSSIAN_TRUNCATE = 4.0  # the kernel is cut at this many sigmas, as scipy does
IMAGE_WEIGHT = 0.7  # share of the image-level probability in the score, as published
TOP_FRACTION = 0.01  # share of the map's pixels that the pixel term of the score averages, as published


def upsample_and_blur(patch_maps: Tensor, image_size: tuple[int, int], *, sigma: float = GAUSSIAN_SIGMA) -> Tensor:
    """Return maps at image size: bilinear upsampling, then a Gaussian with mirrored edges, as one matrix per axis.

    Both steps are linear and separable, so ``rows @ map @ columns.T`` is exact. Edges are mirrored with the edge
    pixel repeated (d c b a | a b c d), as `scipy.ndimage.gaussian_filter` does by default.

    Args:
        patch_maps: (B, 1, h, w) probabilities on the patch grid.
        image_size: height and width in pixels.
        sigma: of the Gaussian, in pixels; 0 leaves it out.

    Returns:
        (B, 1, height, width).

    Raises:
        ValueError: ``sigma`` is negative.
    """
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    rows = _axis_matrix(patch_maps.shape[-2], image_size[0], sigma).to(patch_maps)
    columns = _axis_matrix(patch_maps.shape[-1], image_size[1], sigma).to(patch_maps)
    with torch.autocast(patch_maps.device.type, enabled=False):
        return rows @ patch_maps @ columns.T


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a tensor made in inference mode could not take part in a later backward pass
@torch.no_grad()
def _axis_matrix(source: int, target: int, sigma: float) -> Tensor:
    """Return the (target, source) float64 matrix that upsamples one axis and blurs it."""
    identity = torch.eye(source, dtype=torch.float64)
    upsampled = F.interpolate(identity[:, None], size=target, mode="linear", align_corners=False)[:, 0].T
    radius = int(GAUSSIAN_TRUNCATE * sigma + 0.5)
    if radius == 0:
        return upsampled.contiguous()
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma).double() ** 2)
    kernel /= kernel.sum()
    # Mirroring with period 2 * target also holds where the kernel is longer than the axis.
    position = (torch.arange(target)[:, None] + offsets) % (2 * target)
    position = torch.where(position < target, position, 2 * target - 1 - position)
    blur = torch.zeros(target, target, dtype=torch.float64)
    blur.scatter_add_(1, position, kernel.expand(target, -1))
    return blur @ upsampled


def top_fraction_mean(maps: Tensor, *, fraction: float = TOP_FRACTION) -> Tensor:
    """Return the mean of the highest pixels of each map.

    Args:
        maps: (B, 1, ...) maps.
        fraction: share of the pixels, in (0, 1]; at least one pixel is taken.

    Returns:
        (B, 1).

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
    """Return the anomaly score: image-level probability and the map's highest pixels, weighted.

    Args:
        image_probability: (B, 1).
        maps: (B, 1, ...) anomaly maps.
        image_weight: weight of the image-level probability, in [0, 1]; the map's pixels have the rest.
        fraction: share of the pixels that are averaged.

    Returns:
        (B, 1).
    """
    return image_weight * image_probability + (1 - image_weight) * top_fraction_mean(maps, fraction=fraction)
