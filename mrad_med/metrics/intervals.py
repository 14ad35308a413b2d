"""How sure a metric of a set is: DeLong's variance of the AUROC, and the bootstrap by case or by patient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

__all__ = [
    "DeLong",
    "DeLongDifference",
    "Interval",
    "bootstrap",
    "bootstrap_weights",
    "delong",
    "delong_difference",
    "percentile_interval",
    "weighted_auroc",
    "weighted_average_precision",
]

LEVEL = 0.95
RESAMPLES = 1000

_BLOCK = 2**20  # weights worked on at a time, so that temporary arrays stay at a few times 8 MB

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval, and in how many resamples the metric was undefined, which it leaves out."""

    low: float
    high: float
    undefined: int


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
    _check_level(level)
    values, is_positive = _checked(scores, labels, fewest=2)
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
    _check_level(level)
    first, is_positive = _checked(scores_a, labels, fewest=2)
    second, _ = _checked(scores_b, labels, fewest=2)
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


def bootstrap_weights(
    n: int, *, groups: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Integers:
    """Return how often each resample draws each case.

    A metric that is a ratio of sums over cases takes one matrix product with them for all resamples.

    Args:
        n: number of cases.
        groups: (n,) what each case belongs to, such as its patient. Whole groups are drawn, as many as there are
            (cluster bootstrap), so that cases of one patient do not count as independent. None: every case is its own.
        resamples: number of resamples R.
        seed: of the draws; the same seed gives the same weights.

    Returns:
        (R, n).

    Raises:
        ValueError: no case, no resample, or not one group per case.
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
    """Return the interval between the percentiles of a metric's values in resamples (Efron's percentile interval).

    Args:
        values: (R,) one value per resample, NaN where the metric was undefined.
        level: confidence of the interval, in (0, 1).

    Raises:
        ValueError: every value is NaN, or there is none; not one axis; a level outside (0, 1).
    """
    _check_level(level)
    replicates = np.asarray(values, np.float64)
    if replicates.ndim != 1:
        raise ValueError(f"expected one value per resample, (R,), got shape {replicates.shape}")
    defined = replicates[~np.isnan(replicates)]
    if len(defined) == 0:
        raise ValueError(f"the interval is undefined: the metric was in all {len(replicates)} resamples; add cases")
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

    Such as ``bootstrap(weighted_auroc, scores, labels, groups=patients)``. Methods that are compared on the same cases
    with the same seed are drawn the same resamples.

    Args:
        statistic: called once with the data and the (R, n) weights of `bootstrap_weights`; returns (R,) values, NaN
            where the metric is undefined.
        data: arrays of one length n, a case each.
        groups: (n,) what is drawn as a whole, such as each case's patient.
        resamples: number of resamples R.
        level: confidence of the interval, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: no data, or lengths that differ; else as `bootstrap_weights` and `percentile_interval`.
    """
    _check_level(level)
    lengths = {len(item) for item in data}
    if len(lengths) != 1:
        raise ValueError(f"expected arrays with one entry per case, all of one length, got lengths {sorted(lengths)}")
    weights = bootstrap_weights(lengths.pop(), groups=groups, resamples=resamples, seed=seed)
    return percentile_interval(statistic(*data, weights), level=level)


def weighted_auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the AUROC for each row of weights; the scores are sorted once. Ties count half.

    Args:
        scores: (N,) anomaly scores.
        labels: (N,) integers, 0 normal and 1 anomalous.
        weights: (R, N), not negative, such as those of `bootstrap_weights`.

    Returns:
        (R,), NaN where one label has no weight.

    Raises:
        ValueError: only one label occurs; scores with NaN; labels other than 0 and 1; negative weights; shapes that
            do not fit.
    """
    return _for_each_row(_auroc, scores, labels, weights)


def weighted_average_precision(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike) -> Floats:
    """Return the average precision for each row of weights; the scores are sorted once. Ties are one threshold.

    Arguments, returned values and errors are those of `weighted_auroc`.
    """
    return _for_each_row(_average_precision, scores, labels, weights)


def _for_each_row(
    measure: Callable[[Floats, Floats], Floats], scores: ArrayLike, labels: ArrayLike, weights: ArrayLike
) -> Floats:
    """Hand the sorted thresholds' cumulated weights, (r, K) anomalous and (r, K) normal, to `measure`, in blocks."""
    values, is_positive = _checked(scores, labels, fewest=1)
    rows = np.asarray(weights)
    if rows.ndim != 2 or rows.shape[1] != len(values):
        raise ValueError(f"expected weights of shape (R, {len(values)}), one for each case, got {rows.shape}")
    if not (rows >= 0).all():  # so that NaN is refused, too
        raise ValueError("weights must not be negative or NaN")
    order = np.argsort(-values, kind="stable")
    ordered_values, hit = values[order], is_positive[order]
    starts = np.flatnonzero(np.append(True, ordered_values[1:] != ordered_values[:-1]))  # of each run of equal scores
    results = [np.empty(0)]
    for block in np.array_split(rows, max(1, rows.size // _BLOCK)):
        ordered = block[:, order].astype(np.float64)
        positive, negative = (np.add.reduceat(ordered * side, starts, axis=1).cumsum(1) for side in (hit, ~hit))
        is_defined = (positive[:, -1] > 0) & (negative[:, -1] > 0)
        with np.errstate(invalid="ignore"):
            results.append(np.where(is_defined, measure(positive, negative), np.nan))
    return np.concatenate(results)


def _auroc(positive: Floats, negative: Floats) -> Floats:
    steps = np.diff(negative, prepend=0)
    middle = positive - np.diff(positive, prepend=0) / 2
    areas: Floats = (middle * steps).sum(1) / (positive[:, -1] * negative[:, -1])
    return areas


def _average_precision(positive: Floats, negative: Floats) -> Floats:
    found = positive + negative
    precision = np.divide(positive, found, out=np.zeros_like(found), where=found > 0)
    areas: Floats = (np.diff(positive, prepend=0) * precision).sum(1) / positive[:, -1]
    return areas


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), such as {LEVEL}, got {level}")


def _checked(scores: ArrayLike, labels: ArrayLike, *, fewest: int) -> tuple[Floats, NDArray[np.bool_]]:
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
