"""Areas under curves and points on them: values against scikit-learn and by hand, bounds against the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from mrad_med.metrics import histogram as histograms
from mrad_med.metrics.curves import (
    Bounded,
    area_under_pro,
    area_under_roc,
    average_precision,
    best_f1,
    pro_200,
    sensitivity_at,
)
from mrad_med.metrics.histogram import ScoreCounts, count_scores
from tests.metrics.test_histogram import RANGES, histogram_of, split

ROUNDING = 1e-9

METRICS = {
    "auroc": area_under_roc,
    "ap": average_precision,
    "f1": lambda counts: best_f1(counts)[0],
    "pro": lambda counts: area_under_pro(counts, 0.3),
    "pro to 1": lambda counts: area_under_pro(counts, 1.0),
    "sensitivity": lambda counts: sensitivity_at(counts, 0.05),
}
each_metric = pytest.mark.parametrize("metric", METRICS)


def labeled(name: str, seed: int, count: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, of which anomalous ones are higher, their truth, and the weight of each anomalous one."""
    random = np.random.RandomState(seed)
    scores = np.sort(RANGES[name](random, count).astype(np.float32))
    truth = random.uniform(0, 1, count) < np.linspace(0, 0.5, count) ** 2
    order = random.permutation(count)
    sizes = random.randint(1, 400, truth.sum())
    return scores[order], truth[order], (1 / sizes).astype(np.float32)


def exact_counts(scores: np.ndarray, truth: np.ndarray, overlap: np.ndarray) -> ScoreCounts:
    return count_scores(scores, np.flatnonzero(truth), overlap)


def binned(positive: list[float], negative: list[float], overlap: list[float] | None = None) -> ScoreCounts:
    """Return counts in open bins."""
    lowest = np.arange(len(positive), dtype=np.float32)[::-1]
    overlaps = np.array(positive if overlap is None else overlap, float)
    return ScoreCounts(lowest, lowest + 0.5, np.array(positive, float), np.array(negative, float), overlaps, (0, 1))


def orders(counts: ScoreCounts) -> list[ScoreCounts]:
    """Return the counts of distinct scores in every order that the bins allow, ties left out."""
    of_bins = []
    for positive, negative in zip(counts.positive.astype(int), counts.negative.astype(int), strict=True):
        kinds = range(positive + negative)
        of_bins.append([[i in chosen for i in kinds] for chosen in itertools.combinations(kinds, positive)])
    results = []
    for choice in itertools.product(*of_bins):
        truth = np.array([kind for part in choice for kind in part], float)
        lowest = np.arange(len(truth), dtype=np.float32)[::-1]
        results.append(ScoreCounts(lowest, lowest, truth, 1 - truth, truth, (0, 1)))
    return results


@pytest.mark.parametrize("name", RANGES)
def test_distinct_scores_give_the_metrics_of_sklearn(name: str):
    scores, truth, overlap = labeled(name, seed=1)
    counts, scores = exact_counts(scores, truth, overlap), scores.astype(float)
    precision, recall, _ = precision_recall_curve(truth, scores)
    rates, recalls, _ = roc_curve(truth, scores, drop_intermediate=False)
    expected = {
        "auroc": roc_auc_score(truth, scores),
        "ap": average_precision_score(truth, scores),
        "f1": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        "sensitivity": recalls[rates <= 0.05].max(),
    }
    for metric, value in expected.items():
        measured = METRICS[metric](counts)
        assert measured.value == pytest.approx(value, abs=ROUNDING)
        assert measured.error == 0


def test_the_threshold_of_the_best_f1_reaches_it():
    scores, truth, overlap = labeled("unit", seed=2)
    f1, threshold = best_f1(exact_counts(scores, truth, overlap))
    found = scores >= threshold
    assert f1.value == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()), abs=ROUNDING)


@pytest.mark.parametrize("limit", [0.01, 0.3, 1.0])
def test_pro_of_distinct_scores_is_the_area_up_to_the_interpolated_limit(limit: float):
    scores, truth, overlap = labeled("tied", seed=3)
    weights = np.zeros(len(scores))
    weights[truth] = overlap
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        rates.append((~truth)[scores >= threshold].sum() / (~truth).sum())
        overlaps.append(weights[scores >= threshold].sum() / weights.sum())
    inside = np.array(rates) < limit
    x = np.append(np.array(rates)[inside], limit)
    y = np.append(np.array(overlaps)[inside], np.interp(limit, rates, overlaps))
    measured = area_under_pro(exact_counts(scores, truth, overlap), limit)
    assert measured.value == pytest.approx(np.trapezoid(y, x) / limit, abs=ROUNDING)
    assert measured.error == 0


def test_equal_scores_of_both_kinds_are_a_straight_line():
    counts = count_scores(np.zeros(5, np.float32), np.array([0, 1]), np.array([0.5, 0.5], np.float32))
    assert area_under_roc(counts) == (0.5, 0)
    assert area_under_pro(counts, 0.2) == (pytest.approx(0.1), 0)
    assert average_precision(counts) == (pytest.approx(2 / 5), 0)
    assert sensitivity_at(counts, 0.9) == (0, 0)


def test_an_open_bin_leaves_half_of_its_rectangle_unknown():
    counts = binned([1], [1])
    assert area_under_roc(counts) == (0.5, 0.5)
    assert average_precision(counts) == (0.5, 0.5)  # 1 or 1/2
    assert best_f1(counts)[0] == (pytest.approx(2 / 3), pytest.approx(1 / 3))  # 1 or 2/3
    assert sensitivity_at(counts, 0.5) == (0, 1)
    assert sensitivity_at(counts, 1.0) == (1, 0)
    # Up to 1/2 the straight line has an area of 1/8; the curve has at least none and at most 1/2.
    assert area_under_pro(counts, 0.5) == (pytest.approx(0.25), pytest.approx(0.75))


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "ap"])
def test_bins_of_one_kind_leave_nothing_unknown(metric: str):
    measured = METRICS[metric](binned([5, 0, 3, 0], [0, 7, 0, 4]))
    assert measured.error == 0
    assert measured.value == pytest.approx(METRICS[metric](orders(binned([5, 0, 3, 0], [0, 7, 0, 4]))[0]).value)


def test_anomalous_scores_above_all_normal_ones_are_precise_in_any_order():
    assert average_precision(binned([5, 0], [0, 7])) == (1, 0)


@each_metric
@pytest.mark.parametrize(
    "counts",
    [
        binned([2, 1, 1], [1, 2, 2]),
        binned([1, 3, 0], [3, 2, 4]),
        binned([3, 1], [0, 4]),
        binned([0, 2, 2], [4, 1, 3]),
        binned([1, 1, 1, 1], [1, 2, 1, 3]),
    ],
)
def test_no_order_of_the_scores_in_the_bins_is_beyond_the_bound(metric: str, counts: ScoreCounts):
    measured = METRICS[metric](counts)
    off = [abs(METRICS[metric](order).value - measured.value) for order in orders(counts)]
    assert max(off) <= measured.error + ROUNDING
    if metric in ("auroc", "f1", "pro to 1", "sensitivity"):
        assert max(off) == pytest.approx(measured.error, abs=ROUNDING)  # some order is as far off


@each_metric
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("max_bins", [64, 512, 4096])
def test_values_of_scores_in_bins_are_within_the_bound(
    metric: str, name: str, max_bins: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(histograms, "_PENDING", 0)
    for seed in range(3):
        scores, truth, overlap = labeled(name, seed=seed)
        batches = split((scores, np.flatnonzero(truth), overlap), 3)
        measured = METRICS[metric](histogram_of(batches, max_bins=max_bins).counts())
        exact = METRICS[metric](exact_counts(scores, truth, overlap))
        assert exact.error == 0
        assert abs(measured.value - exact.value) <= measured.error + ROUNDING


@pytest.mark.parametrize("name", ["unit", "huge", "negative"])
def test_bounds_shrink_with_more_bins_and_with_each_pass(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(histograms, "_PENDING", 0)
    scores, truth, overlap = labeled(name, seed=5, count=20_000)
    batch = (scores, np.flatnonzero(truth), overlap)
    few, many = (histogram_of([batch], max_bins=max_bins) for max_bins in (2**12, 2**16))
    finer = few.refined()
    finer.update(*batch)
    for metric in ("auroc", "ap", "pro"):
        coarse = METRICS[metric](few.counts()).error
        assert METRICS[metric](many.counts()).error < coarse / 4
        assert METRICS[metric](finer.counts()).error < coarse / 2


@each_metric
def test_rows_of_counts_are_measured_each_by_itself(metric: str):
    first, second = binned([2, 1, 1], [1, 2, 2]), binned([0, 3, 1], [2, 0, 5])
    both = ScoreCounts(
        first.lowest,
        first.highest,
        np.stack([first.positive, second.positive]),
        np.stack([first.negative, second.negative]),
        np.stack([first.overlap, second.overlap]),
        (0, 1),
    )
    measured = METRICS[metric](both)
    for row, counts in enumerate((first, second)):
        single = METRICS[metric](counts)
        assert Bounded(measured.value[row], measured.error[row]) == single
    if metric == "f1":
        assert best_f1(both)[1].tolist() == [best_f1(first)[1], best_f1(second)[1]]


@pytest.mark.parametrize("metric", ["auroc", "ap", "pro"])
def test_what_is_undefined_is_nan_and_its_neighbors_are_not(metric: str):
    bins = np.zeros(2, np.float32)
    positive, negative = np.array([[2.0, 1], [0, 0]]), np.array([[1.0, 3], [1, 3]])
    values = METRICS[metric](ScoreCounts(bins, bins, positive, negative, positive, (0, 1))).value
    assert np.isnan(values).tolist() == [False, True]


def test_pro_of_images_is_refused():
    counts = count_scores(np.array([0, 1], np.float32), np.array([1]))
    with pytest.raises(ValueError, match="needs counts of pixels with their regions, got counts of images"):
        area_under_pro(counts, 0.3)


def test_pro_of_200_thresholds_by_hand():
    # Points of the curve where its 200 thresholds are, all below the limit: (1/4, 1), (0, 1), (0, 1/2); rates are
    # divided by the largest of them.
    scores = np.array([1, 0.6, 0.4, 0, 0, 0], np.float32)
    counts = count_scores(scores, np.array([0, 1]), np.array([1, 1], np.float32))
    assert pro_200(counts, 0.3) == pytest.approx(1)
    counts = count_scores(scores, np.array([0, 2]), np.array([1, 1], np.float32))
    assert pro_200(counts, 0.3) == pytest.approx((0.5 + 0.5) / 2)  # 1/2 on the whole way, then 1 at the same rate


@pytest.mark.parametrize(
    "scores",
    [
        [0.4, 0.4, 0.4],  # one score
        [0, 1e-45, 3e-45],  # steps between them round to zero
        [-3e38, 0, 3e38],  # their distance is not a float32 number
        [1, 0, 0],  # all points have a rate of zero
    ],
)
def test_pro_of_200_thresholds_is_nan_where_it_does_not_exist(scores: list[float]):
    counts = count_scores(np.array(scores, np.float32), np.array([0]), np.ones(1, np.float32))
    assert np.isnan(pro_200(counts, 0.3))
