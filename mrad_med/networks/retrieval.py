"""Pure functions for retrieval from a memory bank, as in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_neighbors", "exclude_nearest", "nearest_threshold", "region_tokens", "retrieve"]

# Scores per chunk of keys: 4 M floats are 16 MB, enough for fast matrix products. Temporaries need a few times more.
_SCORES_PER_CHUNK = 2**22


def average_neighbors(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Return each patch averaged with its neighbors on the patch grid.

    One 5x5 kernel per channel computes the mean of 1x1, 3x3 and 5x5 average pooling with stride 1. Zero padding counts
    in the divisor.

    Args:
        patches: (B, N, D) patch tokens, row by row.
        grid_size: rows and columns of the patch grid.

    Returns:
        (B, N, D) averaged tokens.

    Raises:
        ValueError: N is not ``rows * columns``.

    Reference:
        MRAD, arXiv 2602.00522: the neighbor average of its published code.
    """
    batch, count, width = patches.shape
    rows, columns = grid_size
    if count != rows * columns:
        raise ValueError(f"{count} patches do not fill a grid of {rows} x {columns}; pass the grid of these features")
    kernel = patches.new_zeros(5, 5)
    kernel += 1 / 25
    kernel[1:4, 1:4] += 1 / 9
    kernel[2, 2] += 1
    kernel /= 3
    grid = patches.reshape(batch, rows, columns, width).permute(0, 3, 1, 2)  # (B, D, rows, columns)
    with torch.autocast(grid.device.type, enabled=False):
        averaged = F.conv2d(grid, kernel.expand(width, 1, 5, 5), padding=2, groups=width)
    return averaged.permute(0, 2, 3, 1).reshape(batch, count, width)


def retrieve(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    excluded: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the probability that each query is anomalous: softmax over all keys, summed over the anomalous keys.

    Computed as ``sigmoid(logsumexp(anomalous scores) - logsumexp(normal scores))`` over chunks of keys, without a
    matrix of all scores. Always in float32, because all probabilities can be within a range of 0.01.

    Args:
        queries: (..., C) features, L2-normalized in the train-free method.
        keys: (K, C) features.
        labels: (K,) integers, 0 normal and 1 anomalous.
        temperature: divisor of the scores. The published code uses 1, the paper states 0.07.
        excluded: (..., K) booleans, True where a key is excluded for a query (see `exclude_nearest`).
        chunk_size: number of keys scored at once; None limits the scores of a chunk to 16 MB.

    Returns:
        (...) probabilities in [0, 1].

    Raises:
        ValueError: the widths differ, keys or labels are missing, or the temperature is not positive.

    Reference:
        MRAD, arXiv 2602.00522. The computation in chunks is this project's and is exact.
    """
    if queries.shape[-1] != keys.shape[-1]:
        raise ValueError(f"queries and keys must have the same width, got {queries.shape[-1]} and {keys.shape[-1]}")
    if len(keys) == 0 or labels.shape != keys.shape[:1]:
        raise ValueError(f"expected at least one key and one label per key, got {len(keys)} and {len(labels)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    flat = queries.reshape(-1, queries.shape[-1]).float() / temperature  # (Q, C)
    step = chunk_size or max(1, _SCORES_PER_CHUNK // max(1, len(flat)))
    hidden = None if excluded is None else excluded.reshape(len(flat), len(keys))
    anomalous, normal = [], []
    for start in range(0, len(keys), step):
        with torch.autocast(flat.device.type, enabled=False):
            scores = flat @ keys[start : start + step].float().T  # (Q, chunk)
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, start : start + step], float("-inf"))
        is_anomalous = labels[start : start + step].bool()
        anomalous.append(torch.logsumexp(scores[:, is_anomalous], dim=1))
        normal.append(torch.logsumexp(scores[:, ~is_anomalous], dim=1))
    odds = torch.stack(anomalous).logsumexp(0) - torch.stack(normal).logsumexp(0)  # (Q,)
    return odds.sigmoid().reshape(queries.shape[:-1])


def exclude_nearest(queries: Tensor, keys: Tensor, quantile: float, *, threshold: Tensor | None = None) -> Tensor:
    """Return which keys are excluded in training: their cosine is above a quantile of the query's cosines.

    In training the bank contains the queried images. Without exclusion, each image would retrieve its own label.

    Args:
        queries: (..., C) L2-normalized features.
        keys: (K, C) L2-normalized features.
        quantile: quantile in [0, 1], interpolated linearly; the published code uses 0.8 for patches and 0.95 for
            images.
        threshold: (...) precomputed result of `nearest_threshold`; None computes it.

    Returns:
        (..., K) booleans, True where a key is excluded.

    Reference:
        MRAD, arXiv 2602.00522: the training of its published code.
    """
    cosines = queries @ keys.T
    return cosines > (_quantile(cosines, quantile) if threshold is None else threshold)[..., None]


def nearest_threshold(queries: Tensor, keys: Tensor, quantile: float) -> Tensor:
    """Return the (...) quantile of each query's cosines over all keys; it is constant for frozen features."""
    return _quantile(queries @ keys.T, quantile)


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """Return the quantile along the last axis, interpolated linearly, as in `torch.quantile` but without sorting."""
    # Two neighboring order statistics are enough; the values from the lower one upward are few.
    position = quantile * (values.shape[-1] - 1)
    below = int(position)
    highest = values.topk(values.shape[-1] - below, dim=-1).values
    low = highest[..., -1]
    high = highest[..., -2] if highest.shape[-1] > 1 else low
    return low + (high - low) * (position - below)


def region_tokens(projected_patches: Tensor, probability: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Return the mean patch of the normal and of the anomalous region of each image.

    Args:
        projected_patches: (B, N, E) L2-normalized patches in the joint image-text space.
        probability: (B, N) probability that each patch is anomalous.
        threshold: probability above which a patch belongs to the anomalous region.

    Returns:
        (B, 2, E) means, normal first; zeros for an empty region.

    Reference:
        MRAD, arXiv 2602.00522: the region priors of MRAD-CLIP.
    """
    anomalous = (probability > threshold).to(projected_patches)  # (B, N)
    regions = torch.stack([1 - anomalous, anomalous], dim=1)  # (B, 2, N)
    return regions @ projected_patches / regions.sum(-1, keepdim=True).clamp(min=1)
