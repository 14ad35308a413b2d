"""Areas under curves and points on curves, computed from counted scores, each with an error bound.

A bin holds the numbers of anomalous and normal scores, but not their order. A curve is therefore known only at the ends
of bins. Between two ends it rises within a rectangle, and each function uses the diagonal of that rectangle. The error
bound is the largest possible distance to the true value. It is 0 if every bin holds a single score. Sums run over the
last axis, so counts may have leading axes, for example one row for each resample of a bootstrap.
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
    """Values, with the largest possible error of each."""

    value: Floats
    error: Floats


def area_under_roc(counts: ScoreCounts) -> Bounded:
    """Return the area under the ROC curve. Ties between anomalous and normal scores count half."""
    rate, recall = _rates(counts)
    return _area(rate, recall, counts)


def area_under_pro(counts: ScoreCounts, limit: float) -> Bounded:
    """Return the area under the per-region overlap (PRO) curve up to a false positive rate, divided by that rate.

    Args:
        counts: counts of pixels, with their overlap.
        limit: largest false positive rate, in (0, 1]. The curve is interpolated there.

    Raises:
        ValueError: the counts are those of images and have no overlap.

    Reference:
        Bergmann et al., The MVTec anomaly detection dataset, IJCV 2021: per-region overlap.
    """
    rate, overlap = _rates(counts)[0], _share(_overlap(counts))
    value, error = _area(rate, overlap, counts, limit)
    return Bounded(value / limit, error / limit)


def average_precision(counts: ScoreCounts) -> Bounded:
    """Return the average precision: the sum over thresholds of precision times the increase in recall.

    Each distinct score is a threshold.
    """
    positive, before, total = _cumulated(counts)
    positives = before[..., -1:] + positive[..., -1:]
    weight = positive / np.where(positives > 0, positives, np.nan)
    at_end = _divide(before + positive, total)
    value = (weight * at_end).sum(-1)
    if not counts.is_open.any():
        return Bounded(value, 0 * value)
    # The precision within a bin is highest if all anomalous scores come first, at the last of them. It is lowest if all
    # normal scores come first, at the first anomalous score.
    best = _divide(before + positive, total - counts.negative)
    worst = _divide(before + 1, total - positive + 1)
    spread = np.maximum(best - at_end, at_end - worst) * counts.is_open
    return Bounded(value, (weight * spread).sum(-1))


def best_f1(counts: ScoreCounts) -> tuple[Bounded, NDArray[np.float32]]:
    """Return the largest F1 score over all thresholds, and its threshold. Scores at or above it are detected."""
    positive, before, total = _cumulated(counts)
    positives = before[..., -1:] + positive[..., -1:]
    f1 = _divide(2 * (before + positive), total + positives)
    best = f1.max(-1)
    possible = _divide(2 * (before + positive), total - counts.negative * counts.is_open + positives)
    return Bounded(best, possible.max(-1) - best), counts.lowest[f1.argmax(-1)]


def sensitivity_at(counts: ScoreCounts, rate: float) -> Bounded:
    """Return the largest recall (sensitivity) at a false positive rate of at most ``rate``."""
    rates, recall = _rates(counts)
    allowed = rates <= rate
    found = np.where(allowed, recall, 0).max(-1)
    # In the open bin after the last allowed point, all anomalous scores may come first.
    reachable = recall[..., :-1] + np.diff(recall) * counts.is_open
    return Bounded(found, np.maximum(np.where(allowed[..., :-1], reachable, 0).max(-1) - found, 0))


def pro_200(counts: ScoreCounts, limit: float) -> float:
    """Return the approximation of PRO in the literature, from 200 equally spaced thresholds.

    Only points below the false positive rate ``limit`` are used, and their rates are rescaled to 0 to 1. The value
    changes when scores are rescaled. It has no error bound: a bin that contains a threshold counts as below it. It is
    NaN if all scores are equal, if fewer than two false positive rates differ, or if float32 cannot represent the
    step between thresholds.
    """
    low, high = (np.float32(value) for value in counts.extremes)
    with np.errstate(over="ignore"):
        step = (high - low) / _PRO_200_STEPS  # rounded to float32, as published
    if not 0 < step < np.inf:
        return float("nan")
    rate, overlap = _rates(counts)[0], _share(_overlap(counts))
    steps = np.arange(low, high, step)
    above = np.searchsorted(-counts.lowest, -steps, side="left")  # index of the curve point of "score > step"
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
    inside = np.clip(_divide(limit - x[..., :-1], width), 0, 1)  # fraction of each segment that is below the limit
    area = (width * inside * (y[..., :-1] + rise * inside / 2)).sum(-1)
    if not counts.is_open.any():
        return Bounded(area, 0 * area)
    # Between two points the curve can be anywhere in their rectangle. Its area differs from that under the diagonal by
    # at most half the rectangle, or by more of the part below the limit if the limit cuts the rectangle.
    return Bounded(area, (width * inside * rise * (1 - inside / 2) * counts.is_open).sum(-1))


def _rates(counts: ScoreCounts) -> tuple[Floats, Floats]:
    """Return false positive rates and recalls at the ends of bins, each (..., K + 1) and starting at 0."""
    return _share(counts.negative), _share(counts.positive)


def _share(values: Floats) -> Floats:
    """Return the cumulative sum from 0, divided by the total; NaN where the total is 0."""
    summed = np.cumsum(values, -1)
    start = np.zeros((*summed.shape[:-1], 1))
    with np.errstate(invalid="ignore"):
        return np.concatenate([start, summed / summed[..., -1:]], -1)


def _overlap(counts: ScoreCounts) -> Floats:
    if counts.overlap is None:
        raise ValueError("the per-region overlap needs counts of pixels with their regions, got counts of images")
    return counts.overlap


def _cumulated(counts: ScoreCounts) -> tuple[Floats, Floats, Floats]:
    """Return the anomalous scores in each bin, those in higher bins, and all scores in it and in higher bins."""
    positive = counts.positive
    summed = np.cumsum(positive, -1)
    return positive, summed - positive, np.cumsum(positive + counts.negative, -1)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient; 0 where the denominator is 0."""
    return np.where(denominator == 0, 0.0, numerator / np.where(denominator == 0, 1, denominator))


def plain_values(bounded: Mapping[str, Bounded]) -> dict[str, float]:
    """Return metrics by name as floats, without their error bounds."""
    return {name: float(item.value) for name, item in bounded.items()}
