"""Intervals of the metrics of a set, of its classes, and of the mean of its classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrad_med.metrics.intervals_bootstrap import (
    Interval,
    bootstrap_weights,
    percentile_interval,
    pixel_replicates,
    weighted_auroc,
    weighted_average_precision,
    weighted_f1_max,
)
from mrad_med.metrics.intervals_delong import delong

__all__ = ["Draws", "class_seed", "defined", "mean_intervals", "scores_and_labels"]

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

_IMAGE_METRICS = {"auroc": weighted_auroc, "ap": weighted_average_precision, "f1_max": weighted_f1_max}


@dataclass(frozen=True)
class Draws:
    """Metrics of the bootstrap resamples of a set.

    Attributes:
        scores: (N,) anomaly scores.
        labels: (N,) labels.
        groups: patient of each case; None if cases are drawn.
        drawn: (R,) values by level and metric, NaN where undefined.
    """

    scores: Floats
    labels: NDArray[np.int64]
    groups: list[str] | None
    drawn: dict[str, dict[str, Floats]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        counts: Mapping[str, NDArray[np.float32]],
        exact: Mapping[str, Any],
        *,
        resamples: int,
        seed: int,
    ) -> Draws:
        """Draw cases, or patients if every case has one.

        Args:
            rows: rows of `SetMeasurement.rows`.
            counts: counts of each case in bins, by case id; empty where pixel metrics are undefined.
            exact: pixel metrics of the rows.
            resamples: number of draws.
            seed: seed of the draws.
        """
        rows = sorted(rows, key=lambda row: row["case_id"])  # the same order for any number of processes
        patients = [str(row["patient"]) for row in rows]
        groups = patients if rows and all(patients) else None
        scores, labels = scores_and_labels(rows)
        drawn: dict[str, dict[str, Floats]] = {}
        if rows:
            weights = bootstrap_weights(len(rows), groups=groups, resamples=resamples, seed=seed)
            if 0 < labels.sum() < len(labels):
                drawn["image"] = {name: draw(scores, labels, weights) for name, draw in _IMAGE_METRICS.items()}
            if counts and "auroc" in exact:
                stacked = np.stack([counts[row["case_id"]] for row in rows])
                drawn["pixel"] = pixel_replicates(stacked, weights, exact)
        return cls(scores, labels, groups, drawn)

    def intervals(self) -> dict[str, dict[str, Any]]:
        """Return the interval of each metric by level, or the reason why it is undefined."""
        result: dict[str, dict[str, Any]] = {}
        for name, values in self.drawn.get("image", {}).items():
            use_delong = name == "auroc" and self.groups is None
            interval = defined(self._of_delong) if use_delong else _of_draws(values)
            result.setdefault("image", {})[name] = interval
        if "pixel" in self.drawn:
            pixel = self.drawn["pixel"]
            result["pixel"] = defined(
                lambda: {name: _plain(percentile_interval(values)) for name, values in pixel.items()}
            )
        return result

    def _of_delong(self) -> dict[str, Any]:
        result = delong(self.scores, self.labels)
        return {"low": result.low, "high": result.high, "method": "DeLong"}


def class_seed(seed: int, number: int) -> int:
    """Return the seed of a class, so that classes of equal size are not drawn alike.

    Args:
        seed: seed of the set.
        number: number of the class, from 0.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def mean_intervals(classes: Sequence[Draws]) -> dict[str, dict[str, Any]]:
    """Return the interval of the mean over classes of each metric, by level.

    Each class is drawn by itself. In each draw, the mean is over the classes where the metric is defined.
    """
    result: dict[str, dict[str, Any]] = {}
    for level in ("image", "pixel"):
        known = [item.drawn[level] for item in classes if level in item.drawn]
        for name in known[0] if known else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of a draw in which no class is defined
                means = np.nanmean([item[name] for item in known], axis=0)
            result.setdefault(level, {})[name] = _of_draws(means)
    return result


def scores_and_labels(rows: Sequence[Row]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the anomaly scores (N,) and the labels (N,) of rows."""
    scores = np.array([row["anomaly_score"] for row in rows], np.float64)
    return scores, np.array([row["label"] for row in rows], np.int64)


def defined(compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return metrics or intervals, or the reason why they are undefined."""
    try:
        return dict(compute())
    except ValueError as error:
        return {"undefined": str(error)}


def _of_draws(values: Floats) -> dict[str, Any]:
    return defined(lambda: _plain(percentile_interval(values)))


def _plain(interval: Interval) -> dict[str, float]:
    undefined = {"undefined_resamples": interval.undefined} if interval.undefined else {}
    return {"low": interval.low, "high": interval.high, **undefined}
