"""DeLong's variance of the AUROC, and his test of the difference of two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

__all__ = ["DeLong", "DeLongDifference", "check_level", "checked_scores", "delong", "delong_difference"]

LEVEL = 0.95  # confidence

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """An AUROC, its variance, and its confidence interval, cut to [0, 1]."""

    auroc: float
    variance: float
    low: float
    high: float


@dataclass(frozen=True)
class DeLongDifference:
    """The difference of two AUROCs on the same cases: the first minus the second.

    Attributes:
        difference: in [-1, 1].
        standard_error: of the difference.
        z: the difference in standard errors; infinite where a difference has no error.
        p_value: two-sided, of the hypothesis that both AUROCs are equal.
        low: lower end of the confidence interval, cut to [-1, 1].
        high: upper end.
    """

    difference: float
    standard_error: float
    z: float
    p_value: float
    low: float
    high: float


def delong(scores: ArrayLike, labels: ArrayLike, *, level: float = LEVEL) -> DeLong:
    """Return the AUROC of scores with DeLong's variance and the normal interval it gives.

    Sun and Xu, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 21, 2014: placements out of
    mid-ranks, O(N log N). Where the labels are separated perfectly, the variance is 0 and the interval a point: these
    cases then tell nothing of how far the AUROC of others may lie below.

    Args:
        scores: (N,) anomaly scores; ties count half.
        labels: (N,) integers, 0 normal and 1 anomalous.
        level: confidence of the interval, in (0, 1).

    Raises:
        ValueError: fewer than two cases of a label, which leaves the variance undefined; scores with NaN; labels other
            than 0 and 1; shapes that differ; a level outside (0, 1).
    """
    check_level(level)
    values, is_positive = checked_scores(scores, labels, fewest=2)
    above, below = _placements(values, is_positive)
    auroc = float(above.mean() / len(below))
    variance = _variance(above, below)
    reach = float(ndtri((1 + level) / 2)) * variance**0.5
    return DeLong(auroc, variance, max(auroc - reach, 0.0), min(auroc + reach, 1.0))


def delong_difference(
    scores_a: ArrayLike, scores_b: ArrayLike, labels: ArrayLike, *, level: float = LEVEL
) -> DeLongDifference:
    """Return the difference of two methods' AUROCs on the same cases, with DeLong's paired test.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988. The variance of the difference is that of the paired
    placements' differences, which equals the two variances minus twice the covariance. Without variance, a difference
    of 0 (the same ranking, or both perfect) has z 0 and p 1, any other z infinite and p 0.

    Args:
        scores_a: (N,) anomaly scores of the first method.
        scores_b: (N,) those of the second; only their order counts, so that scales may differ.
        labels: (N,) integers, 0 normal and 1 anomalous.
        level: confidence of the interval, in (0, 1).

    Raises:
        ValueError: as in `delong`.
    """
    check_level(level)
    first, is_positive = checked_scores(scores_a, labels, fewest=2)
    second, _ = checked_scores(scores_b, labels, fewest=2)
    above, below = (
        a - b for a, b in zip(_placements(first, is_positive), _placements(second, is_positive), strict=True)
    )
    difference = float(above.mean() / len(below))
    error = _variance(above, below) ** 0.5
    is_infinite = error == 0 and difference != 0
    z = math.copysign(math.inf, difference) if is_infinite else difference / (error or 1.0)
    reach = float(ndtri((1 + level) / 2)) * error
    low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return DeLongDifference(difference, error, z, float(2 * ndtr(-abs(z))), low, high)


def _placements(scores: Floats, is_positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return for each anomalous case how many normal ones lie below, for each normal one how many anomalous above.

    Counts and no shares: multiples of a half are exact, so that equal placements have exactly no variance.
    """
    ranks = rankdata(scores)
    below = ranks[is_positive] - rankdata(scores[is_positive])
    above = is_positive.sum() - (ranks[~is_positive] - rankdata(scores[~is_positive]))
    return below, above


def _variance(above: Floats, below: Floats) -> float:
    """Return DeLong's variance of placements, of which (m,) belong to anomalous and (n,) to normal cases."""
    m, n = len(above), len(below)
    return float(above.var(ddof=1) / n**2 / m + below.var(ddof=1) / m**2 / n)


def check_level(level: float) -> None:
    """Raise a `ValueError` unless a confidence level is in (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), such as {LEVEL}, got {level}")


def checked_scores(scores: ArrayLike, labels: ArrayLike, *, fewest: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (N,) scores and whether each is of an anomalous case, of which there are `fewest`, and so many normal."""
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
