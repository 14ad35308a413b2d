"""DeLong's variance of the AUROC, and the paired test for the difference of two AUROCs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

__all__ = ["DeLong", "DeLongDifference", "check_level", "checked_scores", "delong", "delong_difference"]

LEVEL = 0.95  # confidence level

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """An AUROC, its variance, and its confidence interval, clipped to [0, 1]."""

    auroc: float
    variance: float
    low: float
    high: float


@dataclass(frozen=True)
class DeLongDifference:
    """The difference of two AUROCs on the same cases.

    Attributes:
        difference: first AUROC minus the second, in [-1, 1].
        standard_error: standard error of the difference.
        z: difference divided by the standard error; infinite if the difference is not 0 and the error is 0.
        p_value: two-sided p value of the hypothesis that both AUROCs are equal.
        low: lower end of the confidence interval, clipped to [-1, 1].
        high: upper end of the confidence interval, clipped to [-1, 1].
    """

    difference: float
    standard_error: float
    z: float
    p_value: float
    low: float
    high: float


def delong(scores: ArrayLike, labels: ArrayLike, *, level: float = LEVEL) -> DeLong:
    """Return the AUROC with DeLong's variance and the normal-approximation interval.

    If scores separate the labels perfectly, the variance is 0 and the interval is a single point. It then does not
    state how much lower the AUROC of other cases may be.

    Args:
        scores: (N,) anomaly scores; ties count half.
        labels: (N,) integers, 0 normal and 1 anomalous.
        level: confidence level of the interval, in (0, 1).

    Raises:
        ValueError: a label has fewer than two cases, so the variance is undefined. Or a score is NaN, a label is not 0
            or 1, shapes differ, or the level is outside (0, 1).

    Reference:
        Sun and Xu, "Fast implementation of DeLong's algorithm for comparing the areas under correlated receiver
        operating characteristic curves", IEEE Signal Process. Lett. 21, 2014: placements from mid-ranks, O(N log N).
    """
    check_level(level)
    values, is_positive = checked_scores(scores, labels, fewest=2)
    positive, negative = _placements(values, is_positive)
    auroc = float(positive.mean() / len(negative))
    variance = _variance(positive, negative)
    reach = float(ndtri((1 + level) / 2)) * variance**0.5
    return DeLong(auroc, variance, max(auroc - reach, 0.0), min(auroc + reach, 1.0))


def delong_difference(
    scores_a: ArrayLike, scores_b: ArrayLike, labels: ArrayLike, *, level: float = LEVEL
) -> DeLongDifference:
    """Return the difference of two methods' AUROCs on the same cases, with DeLong's paired test.

    The variance of the difference is computed from the differences of paired placements. It equals the sum of both
    variances minus twice the covariance. If it is 0, a difference of 0 (same ranking, or both perfect) has z = 0 and
    p = 1. Any other difference has infinite z and p = 0.

    Args:
        scores_a: (N,) anomaly scores of the first method.
        scores_b: (N,) anomaly scores of the second method. Scales may differ, because only the order matters.
        labels: (N,) integers, 0 normal and 1 anomalous.
        level: confidence level of the interval, in (0, 1).

    Raises:
        ValueError: see `delong`.

    Reference:
        DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988.
    """
    check_level(level)
    first, is_positive = checked_scores(scores_a, labels, fewest=2)
    second, _ = checked_scores(scores_b, labels, fewest=2)
    positive, negative = (
        a - b for a, b in zip(_placements(first, is_positive), _placements(second, is_positive), strict=True)
    )
    difference = float(positive.mean() / len(negative))
    error = _variance(positive, negative) ** 0.5
    is_infinite = error == 0 and difference != 0
    z = math.copysign(math.inf, difference) if is_infinite else difference / (error or 1.0)
    reach = float(ndtri((1 + level) / 2)) * error
    low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return DeLongDifference(difference, error, z, float(2 * ndtr(-abs(z))), low, high)


def _placements(scores: Floats, is_positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the placements of anomalous cases (m,) and of normal cases (n,). Ties count half.

    The placement of an anomalous case is the number of normal cases with a lower score. That of a normal case is the
    number of anomalous cases with a higher score. Counts are exact floats, unlike fractions, so equal placements have a
    variance of exactly 0.
    """
    ranks = rankdata(scores)
    positive = ranks[is_positive] - rankdata(scores[is_positive])
    negative = is_positive.sum() - (ranks[~is_positive] - rankdata(scores[~is_positive]))
    return positive, negative


def _variance(positive: Floats, negative: Floats) -> float:
    """Return DeLong's variance from the placements of anomalous cases (m,) and of normal cases (n,)."""
    m, n = len(positive), len(negative)
    return float(positive.var(ddof=1) / n**2 / m + negative.var(ddof=1) / m**2 / n)


def check_level(level: float) -> None:
    """Raise a `ValueError` unless a confidence level is in (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), for example {LEVEL}, got {level}")


def checked_scores(scores: ArrayLike, labels: ArrayLike, *, fewest: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the scores (N,) as float64, and whether each case is anomalous (N,).

    Raises:
        ValueError: shapes differ, a score is NaN, a label is not 0 or 1, or a label has fewer than ``fewest`` cases.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"expected scores and labels of one shape (N,), got {values.shape} and {truth.shape}")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN; leave failed cases out")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 for normal and 1 for anomalous")
    is_positive = truth == 1
    positives = int(is_positive.sum())
    if min(positives, len(values) - positives) < fewest:
        raise ValueError(
            f"undefined: {positives} of {len(values)} cases are anomalous; expected at least {fewest} of each label"
        )
    return values, is_positive
