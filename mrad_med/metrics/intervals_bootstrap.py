"""Bootstrap intervals of the metrics of a set, by case or by patient. Pixel metrics need only counts of each case."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrad_med.metrics.curves import Bounded, area_under_pro, area_under_roc, average_precision, best_f1
from mrad_med.metrics.histogram import ScoreCounts
from mrad_med.metrics.intervals_delong import LEVEL, Floats, check_level, checked_scores
from mrad_med.metrics.pixel import PRO_LIMIT, region_weights

__all__ = [
    "Interval",
    "bin_edges",
    "bootstrap",
    "bootstrap_weights",
    "count_case",
    "percentile_interval",
    "pixel_intervals",
    "pixel_replicates",
    "weighted_auroc",
    "weighted_average_precision",
    "weighted_f1_max",
]

RESAMPLES = 1000

_BLOCK = 2**20  # weights that are processed at a time; temporary arrays take a few times 8 MiB

Integers = NDArray[np.int64]

_BINS = 2048
_RESAMPLES_AT_ONCE = 64  # 64 resamples of three counts in 2048 bins take 3 MiB as float64


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval.

    Attributes:
        low: lower end.
        high: upper end.
        undefined: number of resamples without a defined metric; the interval leaves them out.
    """

    low: float
    high: float
    undefined: int


def bootstrap_weights(
    n: int, *, groups: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Integers:
    """Return how often each resample draws each case.

    If a metric is a ratio of sums over cases, one matrix product with these weights gives it for all resamples.

    Args:
        n: number of cases.
        groups: (n,) group of each case, for example its patient; by default each case is a group. Whole groups are
            drawn (cluster bootstrap), because cases of one patient are not independent.
        resamples: number of resamples R.
        seed: seed of the draws; the same seed gives the same weights.

    Returns:
        (R, n) weights.

    Raises:
        ValueError: there is no case or no resample, or the number of groups is not n.
    """
    if n < 1 or resamples < 1:
        raise ValueError(f"expected at least one case and one resample, got {n} cases and {resamples} resamples")
    names = np.arange(n) if groups is None else np.asarray(groups)
    if names.shape != (n,):
        raise ValueError(f"expected one group for each of {n} cases, got groups of shape {names.shape}")
    distinct, member = np.unique(names, return_inverse=True)
    count = len(distinct)
    drawn: Integers = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, member]


def percentile_interval(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the interval between two percentiles of a metric's values in resamples (Efron's percentile interval).

    Args:
        values: (R,) one value for each resample, NaN where the metric is undefined.
        level: confidence level of the interval, in (0, 1).

    Raises:
        ValueError: no value is defined, the values do not have one axis, or the level is outside (0, 1).
    """
    check_level(level)
    replicates = np.asarray(values, np.float64)
    if replicates.ndim != 1:
        raise ValueError(f"expected one value per resample, (R,), got shape {replicates.shape}")
    defined = replicates[~np.isnan(replicates)]
    if len(defined) == 0:
        raise ValueError(f"interval undefined: the metric is undefined in all {len(replicates)} resamples; add cases")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(replicates) - len(defined))


def bootstrap(
    statistic: Callable[..., NDArray[Any]],
    *data: NDArray[Any],
    groups: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap interval of a metric, by case or by patient.

    Example: ``bootstrap(weighted_auroc, scores, labels, groups=patients)``. With the same cases and the same seed,
    different methods are compared on the same resamples.

    Args:
        statistic: function that is called once, with the data and the (R, n) weights of `bootstrap_weights`. It returns
            (R,) values, NaN where the metric is undefined.
        data: arrays of the same length n, with one value for each case.
        groups: (n,) group of each case, see `bootstrap_weights`.
        resamples: number of resamples R.
        level: confidence level of the interval, in (0, 1).
        seed: seed of the draws.

    Raises:
        ValueError: there is no data, or lengths differ; also as in `bootstrap_weights` and `percentile_interval`.
    """
    check_level(level)
    lengths = {len(item) for item in data}
    if len(lengths) != 1:
        raise ValueError(f"expected arrays with one value per case, all of one length, got lengths {sorted(lengths)}")
    weights = bootstrap_weights(lengths.pop(), groups=groups, resamples=resamples, seed=seed)
    return percentile_interval(statistic(*data, weights), level=level)


def weighted_auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the AUROC for each row of weights. Scores are sorted only once, and ties count half.

    Args:
        scores: (N,) anomaly scores.
        labels: (N,) integers, 0 normal and 1 anomalous.
        weights: (R, N) weights, at least 0, for example from `bootstrap_weights`.

    Returns:
        (R,) values, NaN where one label has no weight.

    Raises:
        ValueError: only one label occurs, a score is NaN, a label is not 0 or 1, a weight is negative or NaN, or shapes
            do not match.
    """
    return _for_each_row(area_under_roc, scores, labels, weights)


def weighted_average_precision(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the average precision for each row of weights. Scores are sorted only once, and ties are one threshold.

    Arguments, returned values and errors are those of `weighted_auroc`.
    """
    return _for_each_row(average_precision, scores, labels, weights)


def weighted_f1_max(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the largest F1 score over all thresholds for each row of weights. Each row has its own best threshold.

    Arguments, returned values and errors are those of `weighted_auroc`.
    """
    return _for_each_row(lambda counts: best_f1(counts)[0], scores, labels, weights)


def _for_each_row(
    measure: Callable[[ScoreCounts], Bounded], scores: ArrayLike, labels: ArrayLike, weights: ArrayLike
) -> Floats:
    """Return a metric for each row of weights, from the weights (r, K) of the K distinct scores, highest first."""
    values, is_positive = checked_scores(scores, labels, fewest=1)
    rows = np.asarray(weights)
    if rows.ndim != 2 or rows.shape[1] != len(values):
        raise ValueError(f"expected weights of shape (R, {len(values)}), one for each case, got {rows.shape}")
    if not (rows >= 0).all():  # also refuses NaN
        raise ValueError("weights must not be negative or NaN")
    order = np.argsort(-values, kind="stable")
    ordered_values, hit = values[order], is_positive[order]
    starts = np.flatnonzero(np.append(True, ordered_values[1:] != ordered_values[:-1]))  # runs of equal scores
    parts = [np.empty(0)]
    for block in np.array_split(rows, max(1, rows.size // _BLOCK)):
        ordered = block[:, order].astype(np.float64)
        positive, negative = (np.add.reduceat(ordered * side, starts, axis=1) for side in (hit, ~hit))
        is_defined = positive.any(1) & negative.any(1)
        parts.append(np.where(is_defined, measure(_of_single_scores(positive, negative)).value, np.nan))
    return np.concatenate(parts)


def _of_single_scores(positive: Floats, negative: Floats, overlap: Floats | None = None) -> ScoreCounts:
    """Return counts (r, K) in which each bin is treated as one score."""
    edges = np.zeros(positive.shape[-1], np.float32)  # equal ends mark a single score
    return ScoreCounts(edges, edges, positive, negative, overlap, (math.nan, math.nan))


def bin_edges(counts: ScoreCounts) -> NDArray[np.float32]:
    """Return edges of bins for the pixels of a set, in rising order.

    Half of the edges are quantiles of all pixels, the other half are quantiles of the anomalous pixels. Both axes of
    every curve are then fine enough.
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
    """Return the counts of a case in each bin between the edges, highest bin first.

    Args:
        anomaly_map: (H, W) anomaly map.
        mask: (H, W) mask; None if it is unknown, and all counts are then 0.
        edges: (K,) edges from `bin_edges`.

    Returns:
        (3, K + 1) anomalous pixels, normal pixels, and overlap of regions in each bin.
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
    """Return the intervals of ``auroc``, ``ap``, ``f1_max`` and ``pro`` of a set.

    Arguments are those of `pixel_replicates`.

    Raises:
        ValueError: a metric is undefined in all resamples.
    """
    return {name: percentile_interval(drawn) for name, drawn in pixel_replicates(counts, weights, exact).items()}


def pixel_replicates(
    counts: NDArray[np.float32], weights: NDArray[Any], exact: Mapping[str, float]
) -> dict[str, Floats]:
    """Return ``auroc``, ``ap``, ``f1_max`` and ``pro`` of each resample of a set, each (R,), NaN where undefined.

    Args:
        counts: (N, 3, K) counts from `count_case`.
        weights: (R, N) number of times each resample draws each case (`bootstrap_weights`).
        exact: exact metrics of the set; a metric that is not among them is left out. Their difference to the metrics
            from bins is added to each resample's value.
    """
    once = np.ones((1, len(counts)))
    parts = [_metrics(np.tensordot(rows.astype(np.float64), counts, axes=1)) for rows in (once, *_blocks(weights))]
    replicates = {}
    for name in [name for name in parts[0] if name in exact]:
        binned, drawn = float(parts[0][name][0]), np.concatenate([part[name] for part in parts[1:]])
        replicates[name] = np.clip(drawn + (exact[name] - binned), 0, 1)
    return replicates


def _blocks(weights: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (weights[start : start + _RESAMPLES_AT_ONCE] for start in range(0, len(weights), _RESAMPLES_AT_ONCE))


def _metrics(drawn: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return pixel metrics of (r, 3, K) counts, each (r,) and NaN where it is undefined."""
    counts = _of_single_scores(drawn[:, 0], drawn[:, 1], drawn[:, 2])
    return {
        "auroc": area_under_roc(counts).value,
        "ap": average_precision(counts).value,
        "f1_max": np.where(drawn[:, 0].any(-1) & drawn[:, 1].any(-1), best_f1(counts)[0].value, np.nan),
        "pro": area_under_pro(counts, PRO_LIMIT).value,
    }
