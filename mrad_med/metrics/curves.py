"""Areas under curves and points on them, of counted scores, each with a bound of its error.

A bin says how many anomalous and normal scores it holds, not in which order. The curves are known at the ends of bins;
between them they rise within a rectangle. Each function takes the straight line through it and returns with the value a
bound of how far off that can be: zero where every bin holds a single score. All sums run over the last axis, so that
counts may have leading axes, one row for each resample of a bootstrap, say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrad_med.metrics.histogram import ScoreCounts

__all__ = [
    "Bounded",
    "area_under_pro",
    "area_under_roc",
    "average_precision",
    "best_f1",
    "plain_values",
    "pro_200",
    "sensitivity_at",
]

_PRO_200_STEPS = 200

Floats = NDArray[np.float64]


class Bounded(NamedTuple):
    """Values, and how far off each may be at most."""

    value: Floats
    error: Floats


def area_under_roc(counts: ScoreCounts) -> Bounded:
    """Return the area under the ROC curve, equal scores of both kinds counted half."""
    rate, recall = _rates(counts)
    return _area(rate, recall, counts)


def area_under_pro(counts: ScoreCounts, limit: float) -> Bounded:
    """Return the area under the per-region overlap up to a false positive rate, divided by that rate.

    Args:
        counts: of pixels, with their overlap.
        limit: false positive rate in (0, 1]; the curve is interpolated there.

    Reference:
        Bergmann et al., The MVTec anomaly detection dataset, IJCV 2021: per-region overlap.
    """
    rate, overlap = _rates(counts)[0], _share(_overlap(counts))
    value, error = _area(rate, overlap, counts, limit)
    return Bounded(value / limit, error / limit)


def average_precision(counts: ScoreCounts) -> Bounded:
    """Return the average precision: the sum of precision times the rise of recall, one threshold per score."""
    positive, before, total = _cumulated(counts)
    positives = before[..., -1:] + positive[..., -1:]
    weight = positive / np.where(positives > 0, positives, np.nan)
    at_end = _divide(before + positive, total)
    value = (weight * at_end).sum(-1)
    if not counts.is_open.any():
        return Bounded(value, 0 * value)
    # No anomalous score of a bin has a higher precision than the last of them when all come first, and none a lower
    # one than the first of them when all normal ones come before.
    best = _divide(before + positive, total - counts.negative)
    worst = _divide(before + 1, total - positive + 1)
    spread = np.maximum(best - at_end, at_end - worst) * counts.is_open
    return Bounded(value, (weight * spread).sum(-1))


def best_f1(counts: ScoreCounts) -> tuple[Bounded, NDArray[np.float32]]:
    """Return the largest F1 score over all thresholds, and the threshold at and above which it is reached."""
    positive, before, total = _cumulated(counts)
    positives = before[..., -1:] + positive[..., -1:]
    f1 = _divide(2 * (before + positive), total + positives)
    best = f1.max(-1)
    possible = _divide(2 * (before + positive), total - counts.negative * counts.is_open + positives)
    return Bounded(best, possible.max(-1) - best), counts.lowest[f1.argmax(-1)]


def sensitivity_at(counts: ScoreCounts, rate: float) -> Bounded:
    """Return the largest share of the anomalous that is found with a share of at most ``rate`` of the normal."""
    rates, recall = _rates(counts)
    allowed = rates <= rate
    found = np.where(allowed, recall, 0).max(-1)
    # Beyond the last point that is allowed, all anomalous scores of an open bin may come first.
    reachable = recall[..., :-1] + np.diff(recall) * counts.is_open
    return Bounded(found, np.maximum(np.where(allowed[..., :-1], reachable, 0).max(-1) - found, 0))


def pro_200(counts: ScoreCounts, limit: float) -> float:
    """Return the literature's PRO: 200 equally spaced thresholds, points below the limit, rescaled by the largest.

    It changes when scores are rescaled. No bound comes with it: a threshold inside a bin counts the bin as below. It is
    NaN where all scores are equal, where fewer than two of its points differ, and where float32 has no such thresholds.
    """
    low, high = (np.float32(value) for value in counts.extremes)
    with np.errstate(over="ignore"):
        step = (high - low) / _PRO_200_STEPS  # rounded to float32, as published
    if not 0 < step < np.inf:
        return float("nan")
    rate, overlap = _rates(counts)[0], _share(_overlap(counts))
    steps = np.arange(low, high, step)
    above = np.searchsorted(-counts.lowest, -steps, side="left")  # curve point of "score > step"
    rates, overlaps = rate[above], overlap[above]
    kept = rates < limit
    rates, overlaps = rates[kept], overlaps[kept]
    if len(rates) < 2 or rates.max() == rates.min():
        return float("nan")
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    return float(-np.trapezoid(overlaps, rates))  # thresholds rise, so rates fall


def _area(x: Floats, y: Floats, counts: ScoreCounts, limit: float = 1.0) -> Bounded:
    """Return the area under a rising curve through points (..., K + 1) from 0 to ``limit``."""
    width, rise = np.diff(x), np.diff(y)
    inside = np.clip(_divide(limit - x[..., :-1], width), 0, 1)  # share of each piece that is below the limit
    area = (width * inside * (y[..., :-1] + rise * inside / 2)).sum(-1)
    if not counts.is_open.any():
        return Bounded(area, 0 * area)
    # The curve is anywhere in the rectangle between two points: half of it away from the diagonal at most, or more of
    # the part that is below the limit.
    return Bounded(area, (width * inside * rise * (1 - inside / 2) * counts.is_open).sum(-1))


def _rates(counts: ScoreCounts) -> tuple[Floats, Floats]:
    """Return false positive rate and recall at the ends of bins, from (0, 0): (..., K + 1)."""
    return _share(counts.negative), _share(counts.positive)


def _share(values: Floats) -> Floats:
    """Return the running share of the sum, from 0; NaN where there is nothing."""
    summed = np.cumsum(values, -1)
    start = np.zeros((*summed.shape[:-1], 1))
    with np.errstate(invalid="ignore"):
        return np.concatenate([start, summed / summed[..., -1:]], -1)


def _overlap(counts: ScoreCounts) -> Floats:
    if counts.overlap is None:
        raise ValueError("the per-region overlap needs the regions of pixels: these are counts of images")
    return counts.overlap


def _cumulated(counts: ScoreCounts) -> tuple[Floats, Floats, Floats]:
    """Return anomalous scores in each bin and in those above, and all scores down to the bin's end."""
    positive = counts.positive
    summed = np.cumsum(positive, -1)
    return positive, summed - positive, np.cumsum(positive + counts.negative, -1)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, and 0 for 0 / 0."""
    return np.where(denominator == 0, 0.0, numerator / np.where(denominator == 0, 1, denominator))


def plain_values(bounded: Mapping[str, Bounded]) -> dict[str, float]:
    """Return metrics by name as floats, without the bounds of their errors."""
    return {name: float(item.value) for name, item in bounded.items()}
