"""Bootstrap intervals of pixel metrics out of counts, against metrics of the resampled pixels themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mrad_med.metrics import histogram as histograms, intervals_bootstrap
from mrad_med.metrics.histogram import ScoreCounts
from mrad_med.metrics.intervals_bootstrap import bin_edges, bootstrap_weights, count_case, pixel_intervals
from tests.metrics.test_pixel import PixelMetrics, add, blobs, brute_force_pro, compute


def narrow_blobs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return maps and masks; scores are as close together as those of retrieval."""
    maps, masks = blobs(seed=8, count=count, side=24)
    return (0.36 + 0.01 * maps).astype(np.float32), masks


def counts_of(maps: np.ndarray, masks: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.stack([count_case(*case, edges) for case in zip(maps, masks, strict=True)])


def edges_of(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return bin_edges(add(PixelMetrics(), maps, masks).counts())


def drawn_again(maps: np.ndarray, masks: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of each resample by repeating its maps."""
    values: dict[str, list[float]] = {"auroc": [], "ap": [], "f1_max": [], "pro": []}
    for row in weights:
        drawn_maps, drawn_masks = np.repeat(maps, row, 0), np.repeat(masks, row, 0)
        scores, truth = drawn_maps.ravel().astype(float), drawn_masks.ravel()
        values["auroc"].append(roc_auc_score(truth, scores))
        values["ap"].append(average_precision_score(truth, scores))
        precision, recall, _ = precision_recall_curve(truth, scores)
        values["f1_max"].append((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())
        values["pro"].append(brute_force_pro(drawn_maps.round(5), drawn_masks, 0.3))
    return {name: np.array(item) for name, item in values.items()}


def test_intervals_are_those_of_metrics_computed_from_resampled_pixels():
    maps, masks = narrow_blobs(6)
    weights = bootstrap_weights(6, resamples=12, seed=3)
    counts, exact = counts_of(maps, masks, edges_of(maps, masks)), compute(maps, masks)
    expected = drawn_again(maps, masks, weights)
    for name, interval in pixel_intervals(counts, weights, exact).items():
        low, high = np.quantile(expected[name], [0.025, 0.975])
        assert (interval.low, interval.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))
        assert interval.undefined == 0
    for row in range(len(weights)):  # each resample by itself
        for name, interval in pixel_intervals(counts, weights[[row]], exact).items():
            assert interval.low == interval.high == pytest.approx(expected[name][row], abs=2e-3)


def test_drawing_every_case_once_gives_the_metrics_of_the_set():
    maps, masks = narrow_blobs(5)
    exact = compute(maps, masks)
    counts = counts_of(maps, masks, edges_of(maps, masks))
    for name, interval in pixel_intervals(counts, np.ones((1, 5), int), exact).items():
        assert interval.low == interval.high == pytest.approx(exact[name], abs=1e-12)


def test_many_resamples_are_those_drawn_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    maps, masks = narrow_blobs(5)
    counts, exact = counts_of(maps, masks, edges_of(maps, masks)), compute(maps, masks)
    weights = bootstrap_weights(5, resamples=30)
    at_once = pixel_intervals(counts, weights, exact)
    monkeypatch.setattr(intervals_bootstrap, "_RESAMPLES_AT_ONCE", 7)
    for name, interval in pixel_intervals(counts, weights, exact).items():
        assert (interval.low, interval.high) == pytest.approx((at_once[name].low, at_once[name].high), abs=1e-12)


def test_cases_whose_masks_are_not_known_add_nothing():
    maps, masks = narrow_blobs(4)
    edges, exact = edges_of(maps, masks), compute(maps, masks)
    unknown = count_case(maps[0] + 0.002, None, edges)
    assert unknown.shape == (3, len(edges) + 1)
    assert not unknown.any()
    counts, weights = counts_of(maps, masks, edges), bootstrap_weights(4, resamples=20)
    with_unknown = pixel_intervals(
        np.concatenate([counts, unknown[None]]), np.concatenate([weights, weights[:, :1]], 1), exact
    )
    assert with_unknown == pixel_intervals(counts, weights, exact)


def test_resamples_without_an_anomalous_pixel_are_left_out_and_counted():
    maps, masks = narrow_blobs(4)  # the last one is normal
    counts, exact = counts_of(maps, masks, edges_of(maps, masks)), compute(maps, masks)
    weights = np.array([[1, 1, 1, 1], [0, 0, 0, 4], [2, 1, 0, 1]])
    for interval in pixel_intervals(counts, weights, exact).values():
        assert interval.undefined == 1
        assert 0 <= interval.low <= interval.high <= 1
    with pytest.raises(ValueError, match="in all 1 resamples; add cases"):
        pixel_intervals(counts, weights[1:2], exact)


def test_intervals_stay_where_metrics_are():
    masks = np.zeros((3, 8, 8), bool)
    masks[:, :2, :2] = True
    maps = np.where(masks, 0.9, 0.1).astype(np.float32)
    counts = counts_of(maps, masks, np.array([0.05], np.float32))  # all pixels in one bin
    for interval in pixel_intervals(counts, np.array([[1, 1, 1], [3, 0, 0]]), {"auroc": 1, "ap": 1, "pro": 1}).values():
        assert (interval.low, interval.high) == (1, 1)
    moved = pixel_intervals(
        counts_of(maps, masks, np.array([0.5], np.float32)), np.ones((1, 3)), {"auroc": 1.2, "ap": -1, "pro": 2}
    )
    assert [(interval.low, interval.high) for interval in moved.values()] == [(1, 1), (0, 0), (1, 1)]


def test_a_case_counts_its_pixels_between_the_edges_highest_first():
    anomaly_map = np.array([[0.1, 0.2, 0.3, 0.35], [0.4, 0.45, 0.5, 0.6]], np.float32)
    mask = np.array([[True, False, False, False], [False, False, True, True]])
    counts = count_case(anomaly_map, mask, np.array([0.2, 0.5], np.float32))
    assert counts.tolist() == [[2, 0, 1], [0, 5, 0], [1, 0, 1]]  # 0.5 and 0.6 are one region, 0.1 is another


def test_edges_share_out_all_pixels_and_the_anomalous_ones():
    scores = np.linspace(1, 0, 100_000, dtype=np.float32)
    positive = (np.arange(100_000) % 1000 == 0).astype(float)
    positive[:100] = 1
    counts = ScoreCounts(scores, scores, positive, 1 - positive, positive, (0, 1))
    edges = bin_edges(counts)
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= intervals_bootstrap._BINS
    bins = np.searchsorted(edges, scores, side="right")
    assert np.bincount(bins).max() <= 2 * 100_000 / intervals_bootstrap._BINS + 1
    assert np.bincount(bins, positive).max() <= 1 + 2 * positive.sum() / intervals_bootstrap._BINS


def test_edges_of_few_distinct_scores_are_these_scores():
    counts = histograms.count_scores(np.array([0, 0.5, 0.5, 1], np.float32), np.array([1]), np.ones(1, np.float32))
    assert bin_edges(counts).tolist() == [0, 0.5, 1]
