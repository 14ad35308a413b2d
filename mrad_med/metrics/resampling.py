"""Bootstrap intervals of pixel metrics, out of counts of each case: no map is looked at for a resample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrad_med.metrics.curves import area_under_pro, area_under_roc, average_precision
from mrad_med.metrics.histogram import ScoreCounts
from mrad_med.metrics.intervals import Interval, percentile_interval
from mrad_med.metrics.pixel import PRO_LIMIT, region_weights

__all__ = ["bin_edges", "count_case", "pixel_intervals"]

_BINS = 2048
_RESAMPLES_AT_ONCE = 64  # 64 resamples of three counts in 2048 bins are 3 MB


def bin_edges(counts: ScoreCounts) -> NDArray[np.float32]:
    """Return rising scores that share out the pixels of a set.

    Half of the edges share out all pixels, half the anomalous ones: both axes of every curve are then fine enough.
    """
    positions = (np.arange(_BINS // 2) + 1) / (_BINS // 2 + 1)
    edges = []
    for values in (counts.positive + counts.negative, counts.positive):
        share = np.cumsum(values) / values.sum()
        edges.append(counts.lowest[np.minimum(np.searchsorted(share, positions), len(share) - 1)])
    return np.unique(np.concatenate(edges))


def count_case(
    anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_] | None, edges: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return what a case adds to each bin between the edges, highest first.

    Args:
        anomaly_map: (H, W).
        mask: (H, W), or None where what is anomalous is not known: the case then adds nothing.
        edges: (K,) of `bin_edges`.

    Returns:
        (3, K + 1): anomalous pixels, normal pixels, overlap of regions.
    """
    size = len(edges) + 1
    if mask is None:
        return np.zeros((3, size), np.float32)
    bins = np.searchsorted(edges, anomaly_map.reshape(-1), side="right")
    inside, overlap = region_weights(mask)
    total = np.bincount(bins, minlength=size)
    positive = np.bincount(bins[inside], minlength=size)
    shares = np.bincount(bins[inside], overlap, size)
    return np.stack([positive, total - positive, shares]).astype(np.float32)[:, ::-1]


def pixel_intervals(
    counts: NDArray[np.float32], weights: NDArray[Any], exact: Mapping[str, float]
) -> dict[str, Interval]:
    """Return the intervals of ``auroc``, ``ap`` and ``pro`` of a set.

    Args:
        counts: (N, 3, K) of `count_case`.
        weights: (R, N) how often each resample draws each case (`bootstrap_weights`).
        exact: the metrics of the set itself. The little that bins change of them is taken off the draws.

    Raises:
        ValueError: a metric is undefined in every resample.
    """
    once = np.ones((1, len(counts)))
    parts = [_metrics(np.tensordot(rows.astype(np.float64), counts, axes=1)) for rows in (once, *_blocks(weights))]
    intervals = {}
    for name in parts[0]:
        binned, drawn = float(parts[0][name][0]), np.concatenate([part[name] for part in parts[1:]])
        intervals[name] = percentile_interval(np.clip(drawn + (exact[name] - binned), 0, 1))
    return intervals


def _blocks(weights: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (weights[start : start + _RESAMPLES_AT_ONCE] for start in range(0, len(weights), _RESAMPLES_AT_ONCE))


def _metrics(drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return pixel metrics of (r, 3, K) counts: (r,) each, NaN where undefined."""
    edges = np.zeros(drawn.shape[-1], np.float32)  # equal ends: each bin counts as one score
    counts = ScoreCounts(edges, edges, drawn[:, 0], drawn[:, 1], drawn[:, 2], (math.nan, math.nan))
    return {
        "auroc": area_under_roc(counts).value,
        "ap": average_precision(counts).value,
        "pro": area_under_pro(counts, PRO_LIMIT).value,
    }
