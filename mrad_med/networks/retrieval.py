"""Retrieval from a memory: pure functions on features, as in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_neighbors", "exclude_nearest", "nearest_threshold", "region_tokens", "retrieve"]

# Scores of one chunk of keys: 4 M floats are 16 MB, enough for fast matrix products; temporaries take a few times that.
_SCORES_PER_CHUNK = 2**22


def average_neighbors(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Return each patch averaged with its neighbors on the patch grid.

    The mean of 1x1, 3x3 and 5x5 average pooling with stride 1, where zero padding counts in the divisor, is one
    5x5 kernel applied to every channel.

    Args:
        patches: (B, N, D) tokens, row by row.
        grid_size: rows and columns of the grid.

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
    """Return the probability that each query is anomalous: softmax over all keys, summed over the anomalous ones.

    Computed as ``sigmoid(logsumexp(anomalous scores) - logsumexp(normal scores))`` over chunks of keys, so that the
    matrix of all scores never exists. Always in float32: probabilities may span no more than 0.01.

    Args:
        queries: (..., C) features; the train-free method passes L2-normalized ones.
        keys: (K, C) features.
        labels: (K,) integers, 0 normal and 1 anomalous.
        temperature: scores are divided by it. The published code uses 1, the paper writes 0.07.
        excluded: (..., K) booleans; a key is left out for the queries where it is True (`exclude_nearest`).
        chunk_size: keys scored at once; None chooses it so that one chunk of scores takes 16 MB.

    Returns:
        (...) probabilities in [0, 1].

    Raises:
        ValueError: the widths differ, there is no key, or the temperature is not positive.

    Reference:
        MRAD, arXiv 2602.00522; the streamed form is this project's, and exact.
    """
    if queries.shape[-1] != keys.shape[-1]:
        raise ValueError(f"queries are {queries.shape[-1]} wide and keys {keys.shape[-1]}: they must agree")
    if len(keys) == 0 or labels.shape != keys.shape[:1]:
        raise ValueError(f"expected at least one key and one label for each, got {len(keys)} and {len(labels)}")
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
    """Return which keys are too near to each query to learn from: its cosine is above its quantile over the keys.

    In training the bank holds the very images that are queried; without this they would answer for themselves.

    Args:
        queries: (..., C) L2-normalized features.
        keys: (K, C) L2-normalized features.
        quantile: in [0, 1], interpolated linearly; the published code uses 0.8 for patches and 0.95 for images.
        threshold: (...) the quantiles, where `nearest_threshold` has found them before.

    Returns:
        (..., K) booleans, True where the key is excluded.

    Reference:
        MRAD, arXiv 2602.00522, as its published code trains.
    """
    cosines = queries @ keys.T
    return cosines > (_quantile(cosines, quantile) if threshold is None else threshold)[..., None]


def nearest_threshold(queries: Tensor, keys: Tensor, quantile: float) -> Tensor:
    """Return the (...) quantile of each query's cosines over all keys: frozen features need it found once only."""
    return _quantile(queries @ keys.T, quantile)


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """Return the quantile along the last axis, interpolated linearly, as `torch.quantile` does by sorting."""
    # One order statistic and its neighbor are enough: all at and above the lower one are few.
    position = quantile * (values.shape[-1] - 1)
    below = int(position)
    highest = values.topk(values.shape[-1] - below, dim=-1).values
    low = highest[..., -1]
    high = highest[..., -2] if highest.shape[-1] > 1 else low
    return low + (high - low) * (position - below)


def region_tokens(projected_patches: Tensor, probability: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Return the mean patch of the normal and of the anomalous region of each image.

    Args:
        projected_patches: (B, N, E) L2-normalized patches in the joint space.
        probability: (B, N) anomalous probability.
        threshold: patches above it are the anomalous region.

    Returns:
        (B, 2, E), normal first; zeros for an empty region.

    Reference:
        MRAD, arXiv 2602.00522: the region priors of MRAD-CLIP.
    """
    anomalous = (probability > threshold).to(projected_patches)  # (B, N)
    regions = torch.stack([1 - anomalous, anomalous], dim=1)  # (B, 2, N)
    return regions @ projected_patches / regions.sum(-1, keepdim=True).clamp(min=1)
