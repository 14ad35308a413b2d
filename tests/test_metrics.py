"""Exact metrics against scikit-learn, brute force, and the literature's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from mrad_med import PixelMetrics, image_metrics

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


def blobs(seed: int = 0, count: int = 4, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    masks = np.zeros((count, side, side), bool)
    for mask in masks[:-1]:  # the last image is normal
        for _ in range(2):
            row, column = random.randint(4, side - 10, 2)
            mask[row : row + random.randint(2, 9), column : column + random.randint(2, 9)] = True
    maps = random.uniform(0, 1, masks.shape) + 0.4 * masks
    return (maps / 1.4).astype(np.float32), masks


def compute(maps: np.ndarray, masks: np.ndarray, **keywords) -> dict[str, float]:
    metrics = PixelMetrics(**keywords)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(torch.from_numpy(anomaly_map)[None, None], torch.from_numpy(mask)[None, None].float())
    return metrics.compute()


def brute_force_pro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Return the area under the PRO curve with one relabelled pass per distinct score."""
    regions = []
    for index, mask in enumerate(masks):
        labelled, count = label(mask, np.ones((3, 3)))
        regions += [(index, labelled == number) for number in range(1, count + 1)]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        rates.append((above & ~masks).sum() / (~masks).sum())
        overlaps.append(float(np.mean([above[index][region].mean() for index, region in regions])))
    rates, overlaps = np.array(rates), np.array(overlaps)
    inside = rates < limit
    x = np.append(rates[inside], limit)
    y = np.append(overlaps[inside], np.interp(limit, rates, overlaps))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


RESHAPED = {
    "unit range": lambda maps: maps,
    "narrow range": lambda maps: 0.36 + 0.01 * maps,
    "saturated": lambda maps: 1 / (1 + np.exp(-80 * (maps - 0.5))),
    "tied": lambda maps: np.round(maps * 8) / 8,
    "constant": lambda maps: np.full_like(maps, 0.4),
}


@pytest.mark.parametrize("shape", RESHAPED)
def test_pixel_metrics_equal_sklearn_and_brute_force(shape: str):
    maps, masks = blobs()
    maps = RESHAPED[shape](maps).astype(np.float32)
    measured = compute(maps, masks)
    truth, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    assert measured["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert measured["ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert measured["f1_max"] == pytest.approx(f1.max(), abs=1e-9)
    assert measured["pro"] == pytest.approx(brute_force_pro(maps, masks, 0.3), abs=1e-6)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro_limit_is_interpolated(limit: float):
    maps, masks = blobs(seed=1, count=3, side=24)
    assert compute(maps, masks, pro_limit=limit)["pro"] == pytest.approx(brute_force_pro(maps, masks, limit), abs=1e-6)


def test_published_numbers_are_reproduced():
    golden = np.load(GOLDEN)
    measured = compute(golden["metric_maps"], golden["metric_masks"] > 0)
    assert measured["auroc"] == pytest.approx(float(golden["metric_auroc"]), abs=1e-6)
    assert measured["ap"] == pytest.approx(float(golden["metric_ap"]), abs=1e-6)
    assert measured["f1_max"] == pytest.approx(float(golden["metric_f1max"]), abs=1e-6)
    assert measured["pro_200"] == pytest.approx(float(golden["metric_aupro_200"]), abs=1e-6)


def test_perfect_maps_score_one():
    _, masks = blobs()
    measured = compute(masks.astype(np.float32), masks)
    assert [measured[name] for name in ("auroc", "ap", "f1_max", "pro")] == pytest.approx([1, 1, 1, 1])
    assert measured["f1_max_threshold"] == 1


def test_rescaling_scores_monotonically_changes_nothing_but_the_200_threshold_pro():
    maps, masks = blobs(seed=2)
    plain, rescaled = compute(maps, masks), compute(maps**8, masks)
    for name in ("auroc", "ap", "f1_max", "pro"):
        assert rescaled[name] == pytest.approx(plain[name], abs=1e-4)
    assert abs(rescaled["pro_200"] - plain["pro_200"]) > 1e-3


def test_batches_do_not_matter():
    maps, masks = (torch.from_numpy(item.astype(np.float32))[:, None] for item in blobs())
    whole = PixelMetrics()
    whole.update(maps, masks)
    assert whole.compute() == compute(*blobs())


def test_image_metrics_equal_sklearn_with_ties():
    random = np.random.RandomState(0)
    labels, scores = random.randint(0, 2, 60), random.randint(0, 12, 60) / 12
    measured = image_metrics(torch.from_numpy(scores), torch.from_numpy(labels))
    assert measured["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert measured["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_undefined_metrics_say_so():
    maps, masks = blobs()
    with pytest.raises(ValueError, match="undefined: 0 anomalous"):
        compute(maps, np.zeros_like(masks))
    with pytest.raises(ValueError, match="0 normal pixels"):
        compute(maps, np.ones_like(masks))
    with pytest.raises(ValueError, match="undefined: 0 anomalous and 0 normal"):
        PixelMetrics().compute()
    with pytest.raises(ValueError, match="3 of 3 images are anomalous"):
        image_metrics(torch.rand(3), torch.ones(3, dtype=torch.int64))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        PixelMetrics().update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="NaN"):
        PixelMetrics().update(torch.full((1, 1, 4, 4), float("nan")), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="pro_limit"):
        PixelMetrics(pro_limit=0)
