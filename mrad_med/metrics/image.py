"""Metrics of anomaly scores and labels of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mrad_med.metrics.curves import area_under_roc, average_precision, best_f1, plain_values, sensitivity_at
from mrad_med.metrics.histogram import count_scores

__all__ = ["image_metrics"]

SPECIFICITIES = (0.9, 0.95)  # specificities at which the sensitivity is reported


def image_metrics(
    scores: Tensor, labels: Tensor, *, specificities: Sequence[float] = SPECIFICITIES
) -> dict[str, float]:
    """Return image-level metrics of anomaly scores.

    First link of the chain `image_metrics` (function) -> `ImageMonaiMetric` (MONAI metric) -> `ImageMetricHandler`
    (ignite, in `mrad_med.training`).

    Args:
        scores: (N,) anomaly scores.
        labels: (N,) integers, 0 normal and 1 anomalous.
        specificities: specificities at which the sensitivity is reported, in [0, 1].

    Returns:
        ``auroc``, ``ap``, ``f1_max``, ``f1_max_threshold``, and ``sensitivity_at_specificity_<value>`` for each
        specificity.

    Raises:
        ValueError: only one label occurs, scores and labels differ in number, or a score is NaN or infinite.
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
        **{  # 1e-12 is added because 1 - 0.9 is below 0.1 in floats
            f"sensitivity_at_specificity_{value:g}": sensitivity_at(counts, 1 - value + 1e-12)
            for value in specificities
        },
    }
    return {**plain_values(bounded), "f1_max_threshold": float(threshold)}
