"""Exact pixel-level and image-level metrics. Every region-wise curve comes out of one sort of all pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label as label_regions
from torch import Tensor

__all__ = ["PixelMetrics", "image_metrics"]

PRO_LIMIT = 0.3  # largest false positive rate of the PRO curve, as the literature has it
_EIGHT_CONNECTED = np.ones((3, 3), int)
_PRO_200_STEPS = 200

Curve = NDArray[np.float64]


class PixelMetrics:
    """Pixel metrics of a set: `update` with batches, then `compute`.

    All pixels are kept (8 bytes each; `compute` takes about ten times that for a moment) and sorted once, so the values
    are exact whatever the range of the scores. The per-region overlap (PRO) needs no relabelling: the share of regions
    covered above a threshold is a sum of per-pixel weights, one over the size of the pixel's region.

    Args:
        pro_limit: largest false positive rate of the PRO curve.
    """

    def __init__(self, *, pro_limit: float = PRO_LIMIT) -> None:
        if not 0 < pro_limit <= 1:
            raise ValueError(f"pro_limit must be in (0, 1], got {pro_limit}")
        self.pro_limit = pro_limit
        self._scores: list[NDArray[np.float32]] = []
        self._weights: list[NDArray[np.float32]] = []  # 0 outside regions, 1 / (pixels of the region) inside
        self._regions = 0

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch.

        Args:
            maps: (B, 1, H, W) anomaly maps.
            masks: (B, 1, H, W), anomalous above 0.5.

        Raises:
            ValueError: the shapes differ, or a map has NaN.
        """
        if maps.shape != masks.shape or maps.ndim != 4 or maps.shape[1] != 1:
            raise ValueError(
                f"expected two (B, 1, H, W) of one shape, got {tuple(maps.shape)} and {tuple(masks.shape)}"
            )
        if torch.isnan(maps).any():
            raise ValueError("an anomaly map has NaN values; the network's weights or input are damaged")
        for anomaly_map, mask in zip(maps.cpu().numpy()[:, 0], masks.cpu().numpy()[:, 0] > 0.5, strict=True):
            regions, count = label_regions(mask, _EIGHT_CONNECTED)
            sizes = np.bincount(regions.ravel())
            weights = np.append(np.float32(0), 1 / sizes[1:].astype(np.float32))
            self._scores.append(anomaly_map.astype(np.float32).ravel())
            self._weights.append(weights[regions].ravel())
            self._regions += count

    def merge(self, other: PixelMetrics) -> None:
        """Add what another instance, for example of another process, was updated with."""
        self._scores += other._scores
        self._weights += other._weights
        self._regions += other._regions

    def compute(self) -> dict[str, float]:
        """Return auroc, ap, f1_max, f1_max_threshold, pro and pro_200, all in [0, 1] but the threshold.

        ``pro`` is the exact area under the PRO curve: trapezoids over all thresholds, the limit interpolated, divided
        by the limit. ``pro_200`` is the literature's approximation by 200 thresholds, which changes when scores are
        rescaled; it is there for comparison with published tables only.

        Raises:
            ValueError: no pixel is anomalous, or none is normal: the metrics are undefined.
        """
        nothing = np.empty(0, np.float32)
        scores, weights = np.concatenate([nothing, *self._scores]), np.concatenate([nothing, *self._weights])
        positives = int((weights > 0).sum())
        negatives = len(weights) - positives
        if positives == 0 or negatives == 0:
            raise ValueError(
                f"pixel metrics are undefined: {positives} anomalous and {negatives} normal pixels in this set"
            )
        ordered, order = torch.from_numpy(scores).sort(descending=True)
        sorted_weights = weights[order.numpy()]
        is_positive = sorted_weights > 0
        ends = np.flatnonzero(np.append(np.diff(ordered.numpy()) != 0, True))  # last pixel of each run of equal scores
        true_positives = np.cumsum(is_positive)[ends]
        recall = np.append(0, true_positives / positives)
        false_positive_rate = np.append(0, (ends + 1 - true_positives) / negatives)
        overlap = np.append(0, np.cumsum(sorted_weights, dtype=np.float64)[ends] / self._regions)
        precision = true_positives / (ends + 1)
        f1 = 2 * precision * recall[1:] / np.maximum(precision + recall[1:], 1e-12)
        thresholds = ordered.numpy()[ends]
        return {
            "auroc": float(np.trapezoid(recall, false_positive_rate)),
            "ap": float(np.sum(np.diff(recall) * precision)),
            "f1_max": float(f1.max()),
            "f1_max_threshold": float(thresholds[f1.argmax()]),
            "pro": _area_to_limit(false_positive_rate, overlap, self.pro_limit),
            "pro_200": _pro_200(thresholds, false_positive_rate, overlap, self.pro_limit),
        }


def _area_to_limit(rate: Curve, overlap: Curve, limit: float) -> float:
    """Return the area under the curve up to the limit, whose point is interpolated, divided by the limit."""
    inside = rate < limit
    rate_inside = np.append(rate[inside], limit)
    overlap_inside = np.append(overlap[inside], np.interp(limit, rate, overlap))
    return float(np.trapezoid(overlap_inside, rate_inside) / limit)


def _pro_200(thresholds: NDArray[np.float32], rate: Curve, overlap: Curve, limit: float) -> float:
    """Return the literature's PRO: 200 equally spaced thresholds, points below the limit, rescaled by the largest."""
    low, high = thresholds[-1], thresholds[0]
    if low == high:
        return float("nan")
    steps = np.arange(low, high, (high - low) / _PRO_200_STEPS)  # the step is rounded to float32, as published
    above = np.searchsorted(-thresholds, -steps, side="left")  # curve point of "score > step"
    rates, overlaps = rate[above], overlap[above]
    kept = rates < limit
    rates, overlaps = rates[kept], overlaps[kept]
    if len(rates) < 2 or rates.max() == rates.min():
        return float("nan")
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    return float(-np.trapezoid(overlaps, rates))  # thresholds rise, so rates fall


def image_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return image-level auroc and ap of anomaly scores.

    Args:
        scores: (N,) anomaly scores.
        labels: (N,) integers, 0 normal and 1 anomalous.

    Raises:
        ValueError: only one label occurs: the metrics are undefined.
    """
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        raise ValueError(f"image metrics are undefined: {positives} of {len(labels)} images are anomalous")
    ordered, order = scores.flatten().double().sort(descending=True)
    hits = labels.flatten()[order].double().cumsum(0).numpy()
    ends = np.flatnonzero(np.append(np.diff(ordered.numpy()) != 0, True))
    recall = np.append(0, hits[ends] / positives)
    rate = np.append(0, (ends + 1 - hits[ends]) / (len(labels) - positives))
    return {
        "auroc": float(np.trapezoid(recall, rate)),
        "ap": float(np.sum(np.diff(recall) * hits[ends] / (ends + 1))),
    }
