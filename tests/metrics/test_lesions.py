"""Lesion-wise metrics on maps worked by hand, against MONAI, scikit-learn, and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_fp_tp_probs, compute_froc_curve_data, compute_froc_score, compute_iou
from scipy.ndimage import gaussian_filter, label
from sklearn.metrics import f1_score, jaccard_score

from mrad_med import PixelMetrics
from mrad_med.metrics.lesions import FROC_RATES, LesionMetrics, OverlapMetrics, find_candidates


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Return (B, 1, H, W) of (B, H, W)."""
    return tuple(torch.from_numpy(np.asarray(array, np.float32))[:, None] for array in arrays)


def spots(side: int, values: dict[tuple[int, int], float]) -> np.ndarray:
    """Return a map that is 0 but for a few pixels."""
    anomaly_map = np.zeros((side, side), np.float32)
    for place, value in values.items():
        anomaly_map[place] = value
    return anomaly_map


def noise(seed: int = 0, count: int = 6, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth positive maps, somewhat higher in lesions, and masks; the last image is normal."""
    random = np.random.RandomState(seed)
    masks = np.zeros((count, side, side), bool)
    for mask in masks[:-1]:
        for _ in range(3):
            row, column = random.randint(0, side - 9, 2)
            mask[row : row + random.randint(2, 9), column : column + random.randint(2, 9)] = True
    maps = np.stack([gaussian_filter(random.uniform(0, 1, mask.shape) + 0.2 * mask, 1.5) for mask in masks])
    return maps.astype(np.float32), masks


def measure(maps: np.ndarray, masks: np.ndarray, **options: int) -> LesionMetrics:
    metrics = LesionMetrics(**options)
    metrics.update(*tensors(maps, masks))
    return metrics


# Candidates


def test_candidates_are_maxima_from_the_highest_on():
    anomaly_map = spots(40, {(5, 30): 0.5, (20, 3): 0.9, (35, 20): 0.7})
    points, scores = find_candidates(anomaly_map)
    assert points.tolist() == [[20, 3], [35, 20], [5, 30]]
    np.testing.assert_array_equal(scores, np.float32([0.9, 0.7, 0.5]))


def test_a_maximum_with_a_higher_one_within_the_distance_is_left_out():
    anomaly_map = spots(40, {(10, 10): 0.9, (10, 15): 0.8, (15, 10): 0.7, (16, 10): 0.1, (4, 4): 0.6})
    assert find_candidates(anomaly_map, min_distance=5)[0].tolist() == [[10, 10], [4, 4]]
    assert find_candidates(anomaly_map, min_distance=4)[0].tolist() == [[10, 10], [10, 15], [15, 10], [4, 4]]


def test_candidates_lie_at_the_border_too():
    anomaly_map = spots(40, {(0, 0): 0.9, (39, 17): 0.8, (20, 39): 0.7})
    assert find_candidates(anomaly_map)[0].tolist() == [[0, 0], [39, 17], [20, 39]]


def test_a_plateau_gives_the_pixel_nearest_to_its_center():
    anomaly_map = np.zeros((60, 80), np.float32)
    anomaly_map[5:30, 10:71] = 1  # wider than any footprint: skimage alone gives several points
    assert find_candidates(anomaly_map)[0].tolist() == [[17, 40]]
    anomaly_map[:] = 0
    anomaly_map[[10, 10, 11, 11], [10, 11, 10, 11]] = 1  # four pixels as near: the first in reading order
    assert find_candidates(anomaly_map)[0].tolist() == [[10, 10]]


def test_the_point_of_a_bent_plateau_is_on_it():
    anomaly_map = np.zeros((60, 60), np.float32)
    anomaly_map[10:50, 10] = anomaly_map[10, 10:50] = anomaly_map[49, 10:50] = 1  # its center is outside
    points, scores = find_candidates(anomaly_map)
    assert scores.tolist() == [1]
    assert points.tolist() == [[29, 10]]


def test_a_terrace_on_the_way_up_is_no_maximum():
    anomaly_map = np.zeros((60, 60), np.float32)
    anomaly_map[:, 20:] = 0.5
    anomaly_map[30, 55] = 0.9  # far from most of the terrace
    assert find_candidates(anomaly_map, min_distance=3)[0].tolist() == [[30, 55]]


def test_of_equal_maxima_the_first_in_reading_order_stays():
    assert find_candidates(spots(30, {(8, 12): 1, (10, 10): 1, (8, 20): 1}))[0].tolist() == [[8, 12]]
    assert find_candidates(spots(30, {(8, 12): 1, (10, 10): 1, (8, 29): 1}))[0].tolist() == [[8, 12], [8, 29]]


def test_a_constant_map_has_no_candidates():
    points, scores = find_candidates(np.full((30, 30), 0.7, np.float32))
    assert (points.shape, scores.shape) == ((0, 2), (0,))


def test_candidates_are_apart_and_the_highest_around():
    anomaly_map = noise()[0][0]
    points, scores = find_candidates(anomaly_map, min_distance=4)
    assert len(points) > 10
    apart = np.abs(points[:, None] - points).max(-1)
    assert apart[~np.eye(len(points), dtype=bool)].min() > 4
    assert (np.diff(scores) <= 0).all()
    for (row, column), score in zip(points, scores, strict=True):
        assert score == anomaly_map[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()


def test_candidates_of_wrong_input_are_refused():
    with pytest.raises(ValueError, match=r"one anomaly map \(H, W\), got shape \(1, 4, 4\)"):
        find_candidates(np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="NaN"):
        find_candidates(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="min_distance must be at least 1 pixels, got 0"):
        find_candidates(np.zeros((4, 4)), min_distance=0)


# Free-response ROC


def two_images() -> tuple[np.ndarray, np.ndarray]:
    """Return an image with two lesions, of which one is found at 0.8 and 0.6, and a normal image; false alarms."""
    maps = np.stack(
        [
            spots(60, {(10, 10): 0.6, (10, 16): 0.8, (50, 50): 0.9, (50, 10): 0.2, (30, 30): 0.3}),
            spots(60, {(10, 10): 0.7, (40, 40): 0.1}),
        ]
    )
    masks = np.zeros(maps.shape, bool)
    masks[0, 8:13, 8:19] = True  # two candidates
    masks[0, 48:53, 8:13] = True  # the one at 0.2
    masks[0, 30, 50] = True  # none
    return maps, masks


def test_froc_is_worked_by_hand():
    metrics = measure(*two_images(), min_distance=3)
    rates, found, thresholds = metrics.curve()
    assert thresholds.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.7, 0.8, 0.9, np.inf])
    # False alarms at 0.9, 0.7, 0.3 and 0.1 in two images; lesions found at 0.8 and 0.2, one of three not at all.
    assert rates.tolist() == [2, 1.5, 1.5, 1, 0.5, 0.5, 0]
    assert found.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert metrics.compute() == pytest.approx(
        {
            "froc": (0 + 0 + 1 / 3 + 1 / 3 + 3 * 2 / 3) / 7,
            "sensitivity_at_0.125": 0,
            "sensitivity_at_0.25": 0,
            "sensitivity_at_0.5": 1 / 3,
            "sensitivity_at_1": 1 / 3,
            "sensitivity_at_2": 2 / 3,
            "sensitivity_at_4": 2 / 3,  # there are no more false alarms than two an image
            "sensitivity_at_8": 2 / 3,
            "lesions": 3,
            "images": 2,
        }
    )


def test_sensitivity_is_interpolated_between_false_alarms():
    # One lesion found above the only false alarm, the other below it: 1/2 at no false alarm, 1 at one in an image.
    maps = spots(60, {(10, 10): 0.9, (30, 30): 0.8, (50, 50): 0.7})[None]
    masks = np.zeros(maps.shape, bool)
    masks[0, 10, 10] = masks[0, 50, 50] = True
    measured = measure(maps, masks).compute()
    assert [measured[f"sensitivity_at_{rate}"] for rate in ("0.125", "0.5", "1", "8")] == [0.5, 0.5, 1, 1]
    # Here two lesions tie with the false alarm: from (0, 0) a line leads to (1, 1).
    tied = measure(np.minimum(maps, 0.7), masks).compute()
    assert [tied[f"sensitivity_at_{rate}"] for rate in ("0.125", "0.5", "1", "8")] == [0.125, 0.5, 1, 1]


def test_lesions_touching_by_a_corner_are_one():
    maps = spots(40, {(10, 10): 0.9})[None]
    masks = np.zeros(maps.shape, bool)
    masks[0, 10, 10] = masks[0, 11, 11] = True
    assert measure(maps, masks).compute()["lesions"] == 1


def test_masks_are_anomalous_above_a_half():
    maps = spots(40, {(10, 10): 0.9, (30, 30): 0.8})[None]
    masks = np.full(maps.shape, 0.5)
    masks[0, 10, 10] = 0.51
    assert measure(maps, masks).compute()["lesions"] == 1
    assert overlap(maps, masks)["dice"] == pytest.approx(2 / 3)


def test_maps_and_masks_that_agree_score_one_and_constant_maps_zero():
    _, masks = noise()
    perfect = measure(masks, masks, min_distance=1).compute()
    assert (perfect["froc"], perfect["sensitivity_at_0.125"]) == (1, 1)
    assert measure(np.full(masks.shape, 0.4), masks).compute()["froc"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_froc_equals_monai(seed: int):
    maps, masks = noise(seed)
    false, best, lesions = [], [], 0
    for anomaly_map, mask in zip(maps, masks, strict=True):
        points, scores = find_candidates(anomaly_map, min_distance=6)
        regions, _ = label(mask, np.ones((3, 3)))
        false_scores, best_scores, count = compute_fp_tp_probs(scores, points[:, 0], points[:, 1], regions)
        false, best, lesions = [*false, false_scores], [*best, best_scores], lesions + count
    best = np.concatenate(best)
    assert (best == 0).any()  # a lesion without candidate, so that MONAI leaves out no score
    curve = compute_froc_curve_data(np.concatenate(false), best, lesions, len(maps))
    metrics = measure(maps, masks, min_distance=6)
    rates, found, _ = metrics.curve()
    np.testing.assert_allclose(rates, curve[0])
    np.testing.assert_allclose(found, curve[1])
    assert metrics.compute()["froc"] == pytest.approx(compute_froc_score(*curve, FROC_RATES))
    assert 0.1 < metrics.compute()["froc"] < 0.9


@pytest.mark.parametrize(("nearest", "tolerances"), [((3, 4), (0, 4, 5)), ((1, 5), (0, 5, 6)), ((0, 1), (0, 0, 1))])
def test_tolerance_reaches_as_far_as_it_says(nearest: tuple[int, int], tolerances: tuple[int, int, int]):
    maps = spots(60, {(10, 10): 0.9})[None]
    masks = np.zeros(maps.shape, bool)
    masks[0, 10 + nearest[0] : 20, 10 + nearest[1] : 20] = True
    found = [measure(maps, masks, tolerance=tolerance).curve()[1][0] for tolerance in tolerances]
    assert found == [0, 0, 1]


def test_a_candidate_between_two_lesions_finds_the_nearest():
    maps = np.stack([spots(60, {(10, 10): 0.9}), spots(60, {(10, 10): 0.9, (10, 5): 0.1})])
    masks = np.zeros(maps.shape, bool)
    masks[:, 10, 13] = masks[:, 10, 8] = True
    rates, found, _ = measure(maps, masks, tolerance=4, min_distance=3).curve()
    assert rates.max() == 0
    assert found.tolist() == [0.5, 0]  # 0.1 is next to the lesion that 0.9 has found, and adds nothing
    one = measure(maps[:1], masks[:1], tolerance=4)
    assert one._best[0].tolist() == [np.float32(0.9), -np.inf]  # the left one is two pixels away, the right one three


def test_tolerance_ends_at_the_border():
    maps = spots(30, {(0, 0): 0.9, (29, 29): 0.8})[None]
    masks = np.zeros(maps.shape, bool)
    masks[0, 0, 29] = masks[0, 29, 0] = True  # what an index around the border would reach
    assert measure(maps, masks, tolerance=3).curve()[1].max() == 0


def test_negative_scores_and_scores_of_zero_count():
    maps, masks = two_images()
    plain = measure(maps, masks, min_distance=3)
    for shifted in (maps - 0.2, maps - 1):
        moved = measure(shifted.astype(np.float32), masks, min_distance=3)
        assert moved.compute() == plain.compute()
        np.testing.assert_allclose(moved.curve()[:2], plain.curve()[:2])


def test_rescaling_scores_monotonically_changes_no_point_of_the_curve():
    maps, masks = noise()
    plain, rescaled = (measure(item, masks, min_distance=4) for item in (maps, np.exp(3 * maps)))
    np.testing.assert_array_equal(plain.curve()[:2], rescaled.curve()[:2])


def test_the_curve_rises_with_its_rate():
    rates, found, thresholds = measure(*noise(), min_distance=4).curve()
    assert (np.diff(rates) <= 0).all()
    assert (np.diff(found) <= 0).all()
    assert (np.diff(thresholds) > 0).all()
    assert (rates[-1], found[-1], thresholds[-1]) == (0, 0, np.inf)


def test_order_batches_and_merging_do_not_matter():
    maps, masks = noise()
    whole = measure(maps, masks, min_distance=4)
    parts = [measure(maps[part], masks[part], min_distance=4) for part in (slice(4, 6), slice(0, 1), slice(1, 4))]
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    shuffled = [3, 1, 5, 0, 4, 2]
    assert parts[0].compute() == whole.compute() == measure(maps[shuffled], masks[shuffled], min_distance=4).compute()
    assert len(parts[1]._best) == 1  # what was merged stays as it was


def test_maps_are_not_kept():
    maps, masks = noise(count=2)
    metrics = measure(maps, masks)
    for item in metrics._false + metrics._best:
        assert item.base is None or item.base.size < 1000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_maps_of_any_precision_are_taken(dtype: torch.dtype):
    maps, masks = tensors(*two_images())
    metrics = LesionMetrics(min_distance=3)
    metrics.update(maps.to(dtype).requires_grad_(), masks)
    assert metrics.compute() == measure(*two_images(), min_distance=3).compute()


def test_without_lesions_the_metrics_are_undefined():
    with pytest.raises(ValueError, match="undefined: no lesion in the masks of 2 images"):
        measure(np.random.RandomState(0).rand(2, 20, 20), np.zeros((2, 20, 20))).compute()
    with pytest.raises(ValueError, match="undefined: no lesion in the masks of 0 images"):
        LesionMetrics().compute()
    with pytest.raises(ValueError, match="undefined: none of 1 images has a lesion"):
        overlap(np.ones((1, 4, 4)), np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="undefined: none of 0 images"):
        OverlapMetrics(0.5).compute()


@pytest.mark.parametrize("metrics", [LesionMetrics(), OverlapMetrics(0.5)], ids=lambda item: type(item).__name__)
def test_wrong_batches_are_refused_as_a_whole(metrics: LesionMetrics | OverlapMetrics):
    with pytest.raises(ValueError, match="of one shape"):
        metrics.update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match=r"one shape \(B, 1, H, W\)"):
        metrics.update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    maps = torch.zeros(2, 1, 4, 4)
    maps[1, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(maps, torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\b0 images"):
        metrics.compute()


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="min_distance must be at least 1 pixels, got 0"):
        LesionMetrics(min_distance=0)
    with pytest.raises(ValueError, match="tolerance must be at least 0 pixels, got -1"):
        LesionMetrics(tolerance=-1)
    with pytest.raises(ValueError, match="threshold must be a number"):
        OverlapMetrics(float("nan"))


def test_metrics_of_other_options_do_not_merge():
    with pytest.raises(ValueError, match=r"min_distance and tolerance \(14, 0\) with \(14, 2\)"):
        LesionMetrics().merge(LesionMetrics(tolerance=2))
    with pytest.raises(ValueError, match=r"threshold 0\.5 with those at 0\.4"):
        OverlapMetrics(0.5).merge(OverlapMetrics(0.4))


# Overlap


def overlap(maps: np.ndarray, masks: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    metrics = OverlapMetrics(threshold)
    metrics.update(*tensors(maps, masks))
    return metrics.compute()


def test_overlaps_are_worked_by_hand():
    masks, maps = np.zeros((3, 10, 10)), np.zeros((3, 10, 10))
    masks[0, 0, :4] = 1
    maps[0, 0, 2:8] = 0.5  # six pixels at the threshold, two of them right: Dice 4 / 10, IoU 2 / 8
    masks[1, 0, :2] = maps[1, 0, :2] = 1  # right: 1 and 1
    maps[2, 0, :8] = 0.9  # a false alarm on a normal image: in none of the means
    expected = {"dice": 8 / 22, "iou": 4 / 18, "dice_mean": 0.7, "iou_mean": 0.625}
    assert overlap(maps, masks) == pytest.approx(expected)


def test_overlaps_equal_monai_and_sklearn():
    maps, masks = noise()
    measured = overlap(maps, masks, threshold=0.6)
    detected = maps >= 0.6
    assert measured["dice"] == pytest.approx(f1_score(masks.ravel(), detected.ravel()))
    assert measured["iou"] == pytest.approx(jaccard_score(masks.ravel(), detected.ravel()))
    prediction, truth = tensors(detected, masks)  # MONAI gives NaN for the normal image
    assert measured["dice_mean"] == pytest.approx(float(compute_dice(prediction, truth).nanmean()))
    assert measured["iou_mean"] == pytest.approx(float(compute_iou(prediction, truth).nanmean()))


def test_dice_at_the_best_f1_threshold_is_the_best_f1():
    maps, masks = noise()
    pixels = PixelMetrics()
    pixels.update(*tensors(maps, masks))
    best = pixels.compute()
    assert overlap(maps, masks, best["f1_max_threshold"])["dice"] == pytest.approx(best["f1_max"], abs=1e-6)


def test_order_batches_and_merging_do_not_matter_to_overlaps():
    maps, masks = noise()
    first, second = OverlapMetrics(0.6), OverlapMetrics(0.6)
    first.update(*tensors(maps[4:], masks[4:]))
    second.update(*tensors(maps[:4], masks[:4]))
    first.merge(second)
    assert first.compute() == pytest.approx(overlap(maps, masks, 0.6), abs=1e-15)
