"""Exact pixel metrics of anomaly maps, in one pass and in constant memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label as label_regions
from torch import Tensor

from mrad_med.metrics.curves import (
    area_under_pro,
    area_under_roc,
    average_precision,
    best_f1,
    plain_values,
    pro_200,
    sensitivity_at,
)
from mrad_med.metrics.histogram import MAX_BINS, ScoreCounts, ScoreHistogram

__all__ = ["PixelMetrics", "pixel_metrics"]

PRO_LIMIT = 0.3  # largest false positive rate of the PRO curve, as in the literature
FALSE_POSITIVE_RATES = (0.01, 0.05)  # rates at which the sensitivity to pixels is reported
_EIGHT_CONNECTED = np.ones((3, 3), int)


def pixel_metrics(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Return pixel metrics of anomaly maps that fit into memory, with the keys of `PixelMetrics.compute`.

    First link of the chain `pixel_metrics` (function) -> `PixelMetrics` (accumulator) -> `PixelMonaiMetric` (MONAI
    metric) -> `PixelMetricHandler` (ignite, in `mrad_med.training`).

    Args:
        maps: (B, 1, H, W) anomaly maps with finite values.
        masks: (B, 1, H, W) masks; a value above 0.5 is anomalous.

    Raises:
        ValueError: shapes differ, a map has NaN or infinite values, or only normal or only anomalous pixels occur.
    """
    metrics = PixelMetrics()
    metrics.update(maps, masks)
    return metrics.compute()


class PixelMetrics:
    """Accumulator of pixel metrics over a dataset: call `update` with each batch, then `compute`.

    Second link of the chain `pixel_metrics` (function) -> `PixelMetrics` (accumulator) -> `PixelMonaiMetric` (MONAI
    metric) -> `PixelMetricHandler` (ignite, in `mrad_med.training`).

    Scores are counted in a `ScoreHistogram`. Metrics are exact while it has a bin for each float in the range of the
    scores; otherwise an error bound is reported. The per-region overlap (PRO) sums a weight for each pixel: one divided
    by the size of its region. Regions are thus labeled only once.

    Args:
        pro_limit: largest false positive rate of the PRO curve, in (0, 1].
        false_positive_rates: false positive rates at which the sensitivity is reported, in (0, 1].
        max_bins: largest number of bins of the histogram, 24 bytes each, allocated when needed.

    Raises:
        ValueError: a rate is outside (0, 1], or ``max_bins`` is below 2.
    """

    def __init__(
        self,
        *,
        pro_limit: float = PRO_LIMIT,
        false_positive_rates: Sequence[float] = FALSE_POSITIVE_RATES,
        max_bins: int = MAX_BINS,
    ) -> None:
        for rate in (pro_limit, *false_positive_rates):
            if not 0 < rate <= 1:
                raise ValueError(f"pro_limit and false positive rates must be in (0, 1], got {rate}")
        self.pro_limit = pro_limit
        self.false_positive_rates = tuple(false_positive_rates)
        self._histogram = ScoreHistogram(max_bins=max_bins)

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch.

        Args:
            maps: (B, 1, H, W) anomaly maps.
            masks: (B, 1, H, W) masks; a value above 0.5 is anomalous.

        Raises:
            ValueError: shapes differ, or a map has NaN or infinite values.
        """
        if maps.shape != masks.shape or maps.ndim != 4 or maps.shape[1] != 1:
            raise ValueError(
                f"expected maps and masks of one shape (B, 1, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}"
            )
        scores = maps.detach().to("cpu", torch.float32).numpy()[:, 0]
        if scores.size and not np.isfinite([scores.min(), scores.max()]).all():
            raise ValueError("an anomaly map has NaN or infinite values; the network's weights or input are damaged")
        pixels, overlaps = [], []
        for index, mask in enumerate(masks.detach().cpu().numpy()[:, 0] > 0.5):
            inside, overlap = region_weights(mask)
            pixels.append(inside + index * mask.size)
            overlaps.append(overlap)
        if pixels:
            self._histogram.update(scores.reshape(-1), np.concatenate(pixels), np.concatenate(overlaps))

    def merge(self, other: PixelMetrics) -> None:
        """Add the counts of another instance, for example from another process."""
        self._histogram.merge(other._histogram)

    def counts(self) -> ScoreCounts:
        """Return the counts from which the metrics are computed.

        Raises:
            ValueError: no pixel is anomalous or no pixel is normal, so the metrics are undefined.
        """
        counts = self._histogram.counts()
        positives, negatives = int(counts.positive.sum()), int(counts.negative.sum())
        if positives == 0 or negatives == 0:
            raise ValueError(
                f"pixel metrics are undefined: {positives} anomalous and {negatives} normal pixels in this set"
            )
        return counts

    def compute(self) -> dict[str, float]:
        """Return the metrics, all in [0, 1] except the threshold.

        Returns:
            ``auroc``, ``ap``, ``f1_max`` and ``f1_max_threshold``. ``pro``: area under the PRO curve up to the limit,
            by trapezoids over all thresholds, interpolated at the limit, divided by it. ``tpr_at_fpr_<rate>``:
            sensitivity to pixels at each false positive rate. ``error_bound``: largest possible error of these metrics,
            except for float rounding; 0 if every bin holds a single score. ``pro_200``: the literature's approximation
            of PRO with 200 thresholds, only for comparison with published tables. It changes when scores are rescaled,
            and ``error_bound`` does not cover it.

        Raises:
            ValueError: no pixel is anomalous or no pixel is normal, so the metrics are undefined.
        """
        counts = self.counts()
        f1, threshold = best_f1(counts)
        bounded = {
            "auroc": area_under_roc(counts),
            "ap": average_precision(counts),
            "f1_max": f1,
            "pro": area_under_pro(counts, self.pro_limit),
            **{f"tpr_at_fpr_{rate:g}": sensitivity_at(counts, rate) for rate in self.false_positive_rates},
        }
        return {
            **plain_values(bounded),
            "f1_max_threshold": float(threshold),
            "pro_200": pro_200(counts, self.pro_limit),
            "error_bound": max(float(item.error) for item in bounded.values()),
        }

    def refined(self) -> PixelMetrics:
        """Return an empty instance for a second pass through the maps, with finer bins where the error is largest."""
        finer = PixelMetrics(pro_limit=self.pro_limit, false_positive_rates=self.false_positive_rates)
        finer._histogram = self._histogram.refined()
        return finer


def region_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the anomalous pixels of a mask, and the weight of each pixel in the per-region overlap.

    Args:
        mask: (H, W) mask. Its regions are 8-connected.

    Returns:
        (P,) indices in the flattened mask, and (P,) weights: one divided by the size of the pixel's region.
    """
    inside = np.flatnonzero(mask)
    if inside.size == 0:
        return inside, np.zeros(0, np.float32)
    rows, columns = np.divmod(inside, mask.shape[1])
    top, left = rows.min(), columns.min()
    box = mask[top : rows.max() + 1, left : columns.max() + 1]  # labeling the whole image would take longer
    regions, _ = label_regions(box, _EIGHT_CONNECTED)
    region_of = regions[rows - top, columns - left]
    return inside, (1 / np.bincount(region_of)[region_of]).astype(np.float32)
