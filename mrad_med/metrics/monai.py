"""Metrics of a set as MONAI metrics, over all processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from monai.metrics import Metric
from torch import Tensor

from mrad_med.distributed import gather_parts
from mrad_med.metrics.image import image_metrics
from mrad_med.metrics.pixel import PixelMetrics

__all__ = ["PixelMonaiMetric", "ImageMonaiMetric"]


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


class PixelMonaiMetric(_SetMetric):
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


class ImageMonaiMetric(_SetMetric):
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
