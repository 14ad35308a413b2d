"""Intervals of metrics against brute force, scikit-learn, values worked by hand, and simulated sets."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from mrad_med.metrics import intervals_bootstrap as intervals
from mrad_med.metrics.intervals_bootstrap import (
    Interval,
    bootstrap,
    bootstrap_weights,
    percentile_interval,
    weighted_auroc,
    weighted_average_precision,
)
from mrad_med.metrics.intervals_delong import delong, delong_difference

MEASURES = {
    "auroc": (weighted_auroc, roc_auc_score),
    "ap": (weighted_average_precision, average_precision_score),
}


def cases(seed: int = 0, count: int = 50, *, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of overlapping classes, rounded to so many steps, and labels."""
    random = np.random.RandomState(seed)
    labels = (np.arange(count) % 3 == 0).astype(int)
    scores = random.normal(size=count) + labels
    return (np.round(scores * steps) / steps if steps else scores), labels


def kernel(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each pair of an anomalous and a normal case whether it is ordered rightly, half if tied."""
    difference = scores[labels == 1][:, None] - scores[labels == 0]
    return (difference > 0) + 0.5 * (difference == 0)


def brute_force_covariance(first: np.ndarray, second: np.ndarray) -> float:
    """Return DeLong's covariance of two AUROCs out of their full kernels, as the paper of 1988 writes it."""
    m, n = first.shape
    rows = sum((first.mean(1) - first.mean()) * (second.mean(1) - second.mean())) / (m - 1)
    columns = sum((first.mean(0) - first.mean()) * (second.mean(0) - second.mean())) / (n - 1)
    return rows / m + columns / n


def test_delong_of_four_cases_is_worked_by_hand():
    # The anomalous 0.8 is above both normal ones, 0.4 above one of two: placements 1 and 1/2, variance 1/8. The same of
    # the normal ones. So the AUROC is 3/4 and its variance 1/8 / 2 + 1/8 / 2.
    measured = delong([0.8, 0.4, 0.6, 0.2], [1, 1, 0, 0], level=0.5)
    assert (measured.auroc, measured.variance) == pytest.approx((0.75, 0.125))
    reach = 0.6744897502 * 0.125**0.5  # the third quartile of the normal distribution
    assert (measured.low, measured.high) == pytest.approx((0.75 - reach, 0.75 + reach))


@pytest.mark.parametrize("steps", [None, 2, 1])
def test_delong_equals_the_full_kernel(steps: int | None):
    scores, labels = cases(steps=steps)
    measured = delong(scores, labels)
    full = kernel(scores, labels)
    assert measured.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert measured.variance == pytest.approx(brute_force_covariance(full, full), rel=1e-9)
    assert measured.high - measured.low == pytest.approx(2 * 1.959963985 * measured.variance**0.5)


@pytest.mark.parametrize("steps", [None, 2])
def test_the_difference_equals_variances_minus_twice_the_covariance(steps: int | None):
    scores, labels = cases(steps=steps)
    other = 100 * (scores + cases(seed=1, steps=steps)[0])
    a, b = kernel(scores, labels), kernel(other, labels)
    variance = brute_force_covariance(a, a) + brute_force_covariance(b, b) - 2 * brute_force_covariance(a, b)
    measured = delong_difference(scores, other, labels, level=0.9)
    assert measured.difference == pytest.approx(a.mean() - b.mean())
    assert measured.standard_error == pytest.approx(variance**0.5)
    assert measured.z == pytest.approx((a.mean() - b.mean()) / variance**0.5)
    assert measured.p_value == pytest.approx(2 * norm.sf(abs(measured.z)))
    assert (measured.low, measured.high) == pytest.approx(
        norm.interval(0.9, loc=measured.difference, scale=measured.standard_error)
    )


def test_exchanging_the_methods_or_the_labels_mirrors_the_result():
    scores, labels = cases()
    other = cases(seed=1)[0]
    there, back = delong_difference(scores, other, labels), delong_difference(other, scores, labels)
    assert (back.difference, back.z, back.p_value) == pytest.approx((-there.difference, -there.z, there.p_value))
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    plain, mirrored = delong(scores, labels), delong(scores, 1 - labels)
    assert (mirrored.auroc, mirrored.variance) == pytest.approx((1 - plain.auroc, plain.variance))


def test_the_same_ranking_has_no_difference():
    scores, labels = cases()
    measured = delong_difference(scores, np.exp(scores), labels)
    assert (measured.difference, measured.standard_error, measured.z, measured.p_value) == (0, 0, 0, 1)
    assert (measured.low, measured.high) == (0, 0)


def test_perfect_separation_has_no_variance_and_says_so():
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    perfect, other = np.arange(7.0), np.array([2, 0, 1, 3, 5, 4, 6.0])
    measured = delong(perfect, labels)
    assert (measured.auroc, measured.variance, measured.low, measured.high) == (1, 0, 1, 1)
    assert delong_difference(perfect, other, labels).p_value == 1  # perfect, too, in another order
    opposite = delong_difference(-perfect, perfect, labels)
    assert (opposite.difference, opposite.z, opposite.p_value, opposite.low, opposite.high) == (
        -1,
        -math.inf,
        0,
        -1,
        -1,
    )


def test_intervals_are_cut_to_what_is_possible():
    high = delong([0.1, 0.2, 0.5, 0.4, 0.6, 0.7], [0, 0, 0, 1, 1, 1])
    low = delong([0.1, 0.2, 0.5, 0.4, 0.6, 0.7], [1, 1, 1, 0, 0, 0])
    assert (high.auroc, high.high, low.low) == (pytest.approx(8 / 9), 1, 0)
    scores = np.array([0.1, 0.2, 0.5, 0.4, 0.6, 0.7])
    assert delong_difference(scores, -scores, [0, 0, 0, 1, 1, 1]).high == 1


def test_delong_intervals_cover_the_true_auroc():
    truth = norm.cdf(1 / 2**0.5)  # normal scores one standard deviation apart
    labels = np.repeat([0, 1], [60, 40])
    random = np.random.RandomState(0)
    measured = [delong(random.normal(size=100) + labels, labels) for _ in range(400)]
    covered = np.mean([item.low <= truth <= item.high for item in measured])
    assert 0.92 < covered < 0.98


def test_the_test_of_equal_methods_is_level():
    random = np.random.RandomState(0)
    labels = np.repeat([0, 1], [60, 40])
    values = []
    for _ in range(400):
        common = random.normal(size=100) + labels
        values.append(delong_difference(*(common + random.normal(size=100) for _ in range(2)), labels).p_value)
    assert 0.02 < np.mean(np.array(values) < 0.05) < 0.08
    assert 0.4 < np.mean(values) < 0.6


def test_infinite_scores_are_ranked_as_any_other():
    scores, labels = np.array([np.inf, np.inf, 0.5, -np.inf]), np.array([1, 0, 1, 0])
    assert delong(scores, labels).auroc == 0.625  # pairs: tied, right, wrong, right
    assert weighted_auroc(scores, labels, np.ones((1, 4))) == pytest.approx([0.625])


def test_each_resample_draws_as_many_cases_as_there_are():
    weights = bootstrap_weights(7, resamples=50, seed=3)
    assert weights.shape == (50, 7)
    assert weights.dtype == np.int64
    assert (weights.sum(1) == 7).all()
    assert weights.min() == 0


def test_each_resample_draws_whole_groups():
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = bootstrap_weights(6, groups=groups, resamples=50)
    assert (weights[:, [0]] == weights[:, [2, 5]]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()  # three groups are drawn, however many cases they have
    assert len(np.unique(weights.sum(1))) > 1


def test_groups_of_one_case_are_no_groups():
    np.testing.assert_array_equal(bootstrap_weights(9, groups=np.arange(9) * 7), bootstrap_weights(9))


def test_the_seed_decides_the_draws():
    np.testing.assert_array_equal(bootstrap_weights(20, seed=1), bootstrap_weights(20, seed=1))
    assert (bootstrap_weights(20, seed=1) != bootstrap_weights(20, seed=2)).any()


def test_a_percentile_interval_is_worked_by_hand():
    # 101 values from 0 to 100: the quantile q of them is 100 q.
    assert percentile_interval(np.random.RandomState(0).permutation(101), level=0.9) == Interval(
        pytest.approx(5), pytest.approx(95), 0
    )


def test_undefined_resamples_are_left_out_and_counted():
    values = np.append(np.arange(101.0), [np.nan] * 4)
    assert percentile_interval(values, level=0.5) == Interval(25, 75, 4)


@pytest.mark.parametrize(("name", "steps"), product(MEASURES, [None, 1]))
def test_weighted_metrics_equal_sklearn(name: str, steps: int | None):
    measure, referee = MEASURES[name]
    scores, labels = cases(steps=steps)
    fractions = np.random.RandomState(2).uniform(size=(5, len(labels)))
    for weights in (bootstrap_weights(len(labels), resamples=20), fractions, np.ones((1, len(labels)))):
        expected = [referee(labels, scores, sample_weight=row) for row in weights]
        np.testing.assert_allclose(measure(scores, labels, weights), expected, atol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_a_weight_of_two_is_a_case_that_comes_twice(name: str):
    measure, referee = MEASURES[name]
    scores, labels = cases(steps=2)
    weights = bootstrap_weights(len(labels), resamples=1)
    drawn = np.repeat(np.arange(len(labels)), weights[0])
    assert measure(scores, labels, weights) == pytest.approx([referee(labels[drawn], scores[drawn])])


@pytest.mark.parametrize("name", MEASURES)
def test_a_resample_without_one_label_is_undefined(name: str):
    weights = [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    measured = MEASURES[name][0]([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], weights)
    np.testing.assert_array_equal(measured, [np.nan, np.nan, np.nan, 1])


@pytest.mark.parametrize("name", MEASURES)
def test_blocks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    measure, _ = MEASURES[name]
    scores, labels = cases()
    weights = bootstrap_weights(len(labels), resamples=33)
    whole = measure(scores, labels, weights)
    monkeypatch.setattr(intervals, "_BLOCK", 500)
    np.testing.assert_array_equal(measure(scores, labels, weights), whole)


def test_no_resample_has_no_value():
    assert weighted_auroc([0.1, 0.2], [0, 1], np.empty((0, 2))).shape == (0,)


def test_the_bootstrap_is_its_parts():
    scores, labels = cases()
    patients = np.arange(len(labels)) // 2
    weights = bootstrap_weights(len(labels), groups=patients, resamples=200, seed=5)
    expected = percentile_interval(weighted_auroc(scores, labels, weights), level=0.8)
    assert bootstrap(weighted_auroc, scores, labels, groups=patients, resamples=200, level=0.8, seed=5) == expected


def test_the_bootstrap_agrees_with_delong_on_many_cases():
    scores, labels = cases(count=600)
    exact, drawn = delong(scores, labels), bootstrap(weighted_auroc, scores, labels)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.01)
    assert drawn.undefined == 0


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(1)


def test_only_the_bootstrap_by_patient_covers_where_cases_of_a_patient_are_alike():
    patients = np.repeat(np.arange(30), 6)
    covered = np.zeros(2)
    for seed in range(200):
        random = np.random.RandomState(seed)
        values = random.normal(size=30)[patients] + 0.3 * random.normal(size=180)  # their true mean is 0
        for way, groups in enumerate([patients, None]):
            interval = bootstrap(weighted_mean, values, groups=groups, resamples=200, seed=seed)
            covered[way] += (interval.low <= 0 <= interval.high) / 200
    assert covered[0] > 0.88
    assert covered[1] < 0.7


def test_inputs_are_not_changed():
    scores, labels = cases()
    weights = bootstrap_weights(len(labels), resamples=5)
    kept = scores.copy(), labels.copy(), weights.copy()
    delong_difference(scores, scores[::-1], labels)
    weighted_average_precision(scores, labels, weights)
    for item, copy in zip((scores, labels, weights), kept, strict=True):
        np.testing.assert_array_equal(item, copy)


def test_one_label_only_is_undefined():
    with pytest.raises(ValueError, match="undefined: 3 of 3 cases are anomalous; expected at least 2 of each label"):
        delong([0.1, 0.2, 0.3], [1, 1, 1])
    with pytest.raises(ValueError, match="undefined: 1 of 3 cases are anomalous; expected at least 2"):
        delong_difference([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0, 1, 0])
    with pytest.raises(ValueError, match="undefined: 0 of 2 cases are anomalous; expected at least 1"):
        weighted_auroc([0.1, 0.2], [0, 0], np.ones((1, 2)))
    with pytest.raises(ValueError, match="undefined: 0 of 0 cases"):
        delong([], [])
    with pytest.raises(ValueError, match="the metric is undefined in all 3 resamples"):
        percentile_interval([np.nan] * 3)


def test_wrong_input_is_refused():
    scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        delong([0.1, np.nan, 0.3, 0.4], labels)
    with pytest.raises(ValueError, match="2 of 4 scores are NaN"):
        delong_difference(scores, [0.1, np.nan, np.nan, 0.4], labels)
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(4,\) and \(3,\)"):
        delong(scores, labels[:3])
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(1, 4\)"):
        delong(scores[None], labels[None])
    with pytest.raises(ValueError, match="labels must be 0"):
        delong(scores, [0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"weights of shape \(R, 4\), one for each case, got \(4,\)"):
        weighted_auroc(scores, labels, np.ones(4))
    with pytest.raises(ValueError, match=r"weights of shape \(R, 4\), one for each case, got \(1, 5\)"):
        weighted_average_precision(scores, labels, np.ones((1, 5)))
    for wrong in (-1, np.nan):
        with pytest.raises(ValueError, match="weights must not be negative or NaN"):
            weighted_auroc(scores, labels, np.full((1, 4), wrong))


@pytest.mark.parametrize("level", [0, 1, 95, np.nan])
def test_a_level_outside_0_and_1_is_refused(level: float):
    scores, labels = cases()
    for call in (
        lambda: delong(scores, labels, level=level),
        lambda: delong_difference(scores, scores, labels, level=level),
        lambda: percentile_interval([0.5], level=level),
        lambda: bootstrap(weighted_auroc, scores, labels, level=level),
    ):
        with pytest.raises(ValueError, match=r"level must be in \(0, 1\)"):
            call()


def test_a_bootstrap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one case and one resample, got 0 cases"):
        bootstrap_weights(0)
    with pytest.raises(ValueError, match="got 3 cases and 0 resamples"):
        bootstrap_weights(3, resamples=0)
    with pytest.raises(ValueError, match=r"one group for each of 3 cases, got groups of shape \(2,\)"):
        bootstrap_weights(3, groups=["a", "b"])
    with pytest.raises(ValueError, match=r"all of one length, got lengths \[2, 3\]"):
        bootstrap(weighted_auroc, np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match=r"got lengths \[\]"):
        bootstrap(weighted_mean)
    with pytest.raises(ValueError, match="expected one value per resample"):
        percentile_interval(np.zeros((2, 2)))
