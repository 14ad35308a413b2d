"""Pixel and image metrics of a set as MONAI metrics, over all processes."""

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
    """A metric of a whole set, chosen by its name.

    Args:
        name: name of the metric.
        known: names of all metrics.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__()
        if name not in known:
            raise ValueError(f"there is no metric {name!r}: choose one of {', '.join(known)}")
        self.name = name
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Remove all batches."""

    def get_buffer(self) -> Tensor:
        """Return an empty tensor: a metric of a set has no details of each image for `IgniteMetricHandler`."""
        return torch.zeros(0)


class PixelMonaiMetric(_SetMetric):
    """One of the `PixelMetrics` as a MONAI metric over all processes.

    Third link of the chain `pixel_metrics` (function) -> `PixelMetrics` (accumulator) -> `PixelMonaiMetric` (MONAI
    metric) -> `PixelMetricHandler` (ignite, in `mrad_med.training`).

    Args:
        name: key of `PixelMetrics.compute`, for example ``"auroc"`` or ``"pro"``.
        stride: step between the rows and the columns that are used; 1 uses all pixels.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str = "auroc", *, stride: int = 1) -> None:
        example, pixels = torch.tensor([[[[0.0, 1.0]]]]), PixelMetrics()
        pixels.update(example, example)
        super().__init__(name, pixels.compute())
        self.stride = stride

    def reset(self) -> None:
        """Remove all batches."""
        self._pixels = PixelMetrics()

    def __call__(self, y_pred: Tensor, y: Tensor) -> None:
        """Add a batch. Images whose mask has NaN (unknown) are skipped.

        Args:
            y_pred: anomaly maps (B, 1, H, W), or a list of (1, H, W).
            y: masks (B, 1, H, W), or a list of (1, H, W); a value above 0.5 is anomalous.
        """
        for anomaly_map, mask in zip(y_pred, y, strict=True):
            if not torch.isnan(mask).any():
                part = (item[None, :, :: self.stride, :: self.stride] for item in (anomaly_map, mask))
                self._pixels.update(*part)

    def aggregate(self) -> float:
        """Return the metric of all batches since `reset`, from all processes.

        Raises:
            ValueError: the metric is undefined.
        """
        merged = PixelMetrics()
        for part in gather_parts(self._pixels):
            merged.merge(part)
        return merged.compute()[self.name]


class ImageMonaiMetric(_SetMetric):
    """One of the `image_metrics` as a MONAI metric over all processes.

    Second link of the chain `image_metrics` (function) -> `ImageMonaiMetric` (MONAI metric) -> `ImageMetricHandler`
    (ignite, in `mrad_med.training`).

    Args:
        name: key of `image_metrics`, for example ``"auroc"`` or ``"ap"``.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str = "auroc") -> None:
        example = torch.tensor([0.0, 1.0])
        super().__init__(name, image_metrics(example, example))

    def reset(self) -> None:
        """Remove all batches."""
        self._scores: list[float] = []
        self._labels: list[int] = []

    def __call__(self, y_pred: Tensor, y: Tensor) -> None:
        """Add a batch.

        Args:
            y_pred: B anomaly scores, as a tensor or a list.
            y: B labels, 0 normal and 1 anomalous, as a tensor or a list.
        """
        for score, label in zip(y_pred, y, strict=True):
            self._scores.append(float(score))
            self._labels.append(int(label))

    def aggregate(self) -> float:
        """Return the metric of all batches since `reset`, from all processes.

        Raises:
            ValueError: the metric is undefined.
        """
        parts = gather_parts((self._scores, self._labels))
        scores, labels = ([value for part in parts for value in part[index]] for index in (0, 1))
        values = image_metrics(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.int64))
        return values[self.name]
