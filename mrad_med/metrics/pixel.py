"""Exact pixel-level and image-level metrics of anomaly maps and scores, in one pass and in constant memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from monai.metrics import Metric
from numpy.typing import NDArray
from scipy.ndimage import label as label_regions
from torch import Tensor

from mrad_med.distributed import gather_parts
from mrad_med.metrics.curves import (
    Bounded,
    area_under_pro,
    area_under_roc,
    average_precision,
    best_f1,
    pro_200,
    sensitivity_at,
)
from mrad_med.metrics.histogram import MAX_BINS, ScoreCounts, ScoreHistogram, count_scores

__all__ = ["AnomalyMapMetric", "AnomalyScoreMetric", "PixelMetrics", "image_metrics"]

PRO_LIMIT = 0.3  # largest false positive rate of the PRO curve, as the literature has it
FALSE_POSITIVE_RATES = (0.01, 0.05)  # at which the sensitivity to pixels is told
SPECIFICITIES = (0.9, 0.95)  # at which the sensitivity to images is told
_EIGHT_CONNECTED = np.ones((3, 3), int)


class PixelMetrics:
    """Pixel metrics of a set: `update` with batches, then `compute`.

    Scores are counted in a `ScoreHistogram`, exactly as long as it has a bin for each float in their range, and with a
    bound of the error beyond. The per-region overlap (PRO) needs no relabelling: the share of regions covered above a
    threshold is a sum of per-pixel weights, one over the size of the pixel's region.

    Args:
        pro_limit: largest false positive rate of the PRO curve.
        false_positive_rates: at which the sensitivity is told.
        max_bins: of the histogram; 24 bytes each, allocated as they are needed.
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
            masks: (B, 1, H, W), anomalous above 0.5.

        Raises:
            ValueError: the shapes differ, or a map has NaN or infinite values.
        """
        if maps.shape != masks.shape or maps.ndim != 4 or maps.shape[1] != 1:
            raise ValueError(
                f"expected two (B, 1, H, W) of one shape, got {tuple(maps.shape)} and {tuple(masks.shape)}"
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
        """Add what another instance, for example of another process, was updated with."""
        self._histogram.merge(other._histogram)

    def counts(self) -> ScoreCounts:
        """Return the counts that the metrics are computed from.

        Raises:
            ValueError: no pixel is anomalous, or none is normal: the metrics are undefined.
        """
        counts = self._histogram.counts()
        positives, negatives = int(counts.positive.sum()), int(counts.negative.sum())
        if positives == 0 or negatives == 0:
            raise ValueError(
                f"pixel metrics are undefined: {positives} anomalous and {negatives} normal pixels in this set"
            )
        return counts

    def compute(self) -> dict[str, float]:
        """Return the metrics, all in [0, 1] but the threshold.

        ``auroc``, ``ap``, ``f1_max`` and ``f1_max_threshold``; ``pro``, the exact area under the PRO curve: trapezoids
        over all thresholds, the limit interpolated, divided by the limit; ``tpr_at_fpr_<rate>``, the sensitivity to
        pixels at each false positive rate; ``error_bound``: none of these can be off by more, but for float rounding;
        it is 0 where every bin held a single score.

        ``pro_200`` is the literature's approximation by 200 thresholds, which changes when scores are rescaled; it is
        there for comparison with published tables only, and the bound is not for it.

        Raises:
            ValueError: no pixel is anomalous, or none is normal: the metrics are undefined.
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
            **_values(bounded),
            "f1_max_threshold": float(threshold),
            "pro_200": pro_200(counts, self.pro_limit),
            "error_bound": max(float(item.error) for item in bounded.values()),
        }

    def refined(self) -> PixelMetrics:
        """Return an empty instance with finer bins where order is unknown, for another pass over the same maps."""
        finer = PixelMetrics(pro_limit=self.pro_limit, false_positive_rates=self.false_positive_rates)
        finer._histogram = self._histogram.refined()
        return finer


def region_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the anomalous pixels of a mask, and the weight of each in the per-region overlap.

    Args:
        mask: (H, W); its regions are 8-connected.

    Returns:
        (P,) indices into the flat mask, and (P,) one over the size of the pixel's region.
    """
    inside = np.flatnonzero(mask)
    if inside.size == 0:
        return inside, np.zeros(0, np.float32)
    rows, columns = np.divmod(inside, mask.shape[1])
    top, left = rows.min(), columns.min()
    box = mask[top : rows.max() + 1, left : columns.max() + 1]  # labelling the whole image would take longer
    regions, _ = label_regions(box, _EIGHT_CONNECTED)
    of_pixel = regions[rows - top, columns - left]
    return inside, (1 / np.bincount(of_pixel)[of_pixel]).astype(np.float32)


def image_metrics(
    scores: Tensor, labels: Tensor, *, specificities: Sequence[float] = SPECIFICITIES
) -> dict[str, float]:
    """Return image-level metrics of anomaly scores.

    Args:
        scores: (N,) anomaly scores.
        labels: (N,) integers, 0 normal and 1 anomalous.
        specificities: at which the sensitivity is told.

    Returns:
        ``auroc``, ``ap``, ``f1_max``, ``f1_max_threshold``, and ``sensitivity_at_specificity_<value>`` for each.

    Raises:
        ValueError: only one label occurs: the metrics are undefined. Or scores and labels differ in number, or a score
            is NaN or infinite.
    """
    if scores.numel() != labels.numel():
        raise ValueError(f"expected one label for each score, got {scores.numel()} scores and {labels.numel()} labels")
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        raise ValueError(f"image metrics are undefined: {positives} of {len(labels)} images are anomalous")
    if not torch.isfinite(scores).all():
        raise ValueError("an anomaly score is NaN or infinite; the network's weights or input are damaged")
    counts = count_scores(scores.flatten().cpu().numpy(), np.flatnonzero(labels.flatten().cpu().numpy()))
    f1, threshold = best_f1(counts)
    bounded = {
        "auroc": area_under_roc(counts),
        "ap": average_precision(counts),
        "f1_max": f1,
        **{
            f"sensitivity_at_specificity_{value:g}": sensitivity_at(counts, 1 - value + 1e-12)  # 1 - 0.9 is below 0.1
            for value in specificities
        },
    }
    return {**_values(bounded), "f1_max_threshold": float(threshold)}


def _values(bounded: dict[str, Bounded]) -> dict[str, float]:
    return {name: float(item.value) for name, item in bounded.items()}


class _SetMetric(Metric):
    """A metric of a whole set by its name.

    Args:
        name: of the metric.
        known: the names there are.

    Raises:
        ValueError: there is no such metric.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__()
        if name not in known:
            raise ValueError(f"there is no metric {name!r}: choose one of {', '.join(known)}")
        self.name = name
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    def get_buffer(self) -> Tensor:
        """Return what `IgniteMetricHandler` keeps as details of each image: none, for a set has one value."""
        return torch.zeros(0)


class AnomalyMapMetric(_SetMetric):
    """One of the `PixelMetrics` as a MONAI metric, over all processes; MONAI's `IgniteMetricHandler` takes it.

    Args:
        name: which of them, for example ``"auroc"`` or ``"pro"``.
        stride: only every such row and column of maps and masks is looked at.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str = "auroc", *, stride: int = 1) -> None:
        example, pixels = torch.tensor([[[[0.0, 1.0]]]]), PixelMetrics()
        pixels.update(example, example)
        super().__init__(name, pixels.compute())
        self.stride = stride

    def reset(self) -> None:
        """Forget everything."""
        self._pixels = PixelMetrics()

    def __call__(self, y_pred: Tensor, y: Tensor) -> None:
        """Take in maps and masks (B, 1, H, W), or lists of (1, H, W); masks that are not known (NaN) are left out."""
        for anomaly_map, mask in zip(y_pred, y, strict=True):
            if not torch.isnan(mask).any():
                part = (item[None, :, :: self.stride, :: self.stride] for item in (anomaly_map, mask))
                self._pixels.update(*part)

    def aggregate(self) -> float:
        """Return the metric of everything since `reset`.

        Raises:
            ValueError: it is undefined.
        """
        merged = PixelMetrics()
        for part in gather_parts(self._pixels):
            merged.merge(part)
        return merged.compute()[self.name]


class AnomalyScoreMetric(_SetMetric):
    """One of the `image_metrics` as a MONAI metric, over all processes; MONAI's `IgniteMetricHandler` takes it.

    Args:
        name: which of them, for example ``"auroc"`` or ``"ap"``.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str = "auroc") -> None:
        example = torch.tensor([0.0, 1.0])
        super().__init__(name, image_metrics(example, example))

    def reset(self) -> None:
        """Forget everything."""
        self._scores: list[float] = []
        self._labels: list[int] = []

    def __call__(self, y_pred: Tensor, y: Tensor) -> None:
        """Take in anomaly scores and labels: B numbers each, as tensors or lists."""
        for score, label in zip(y_pred, y, strict=True):
            self._scores.append(float(score))
            self._labels.append(int(label))

    def aggregate(self) -> float:
        """Return the metric of everything since `reset`.

        Raises:
            ValueError: it is undefined.
        """
        parts = gather_parts((self._scores, self._labels))
        scores, labels = ([value for part in parts for value in part[index]] for index in (0, 1))
        values = image_metrics(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64))
        return values[self.name]
