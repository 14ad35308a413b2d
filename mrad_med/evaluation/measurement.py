"""Metrics of a set, accumulated case by case; memory hardly grows with the number of cases."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mrad_med.distributed import gather_parts
from mrad_med.evaluation.intervals import Draws, class_seed, defined, mean_intervals, scores_and_labels
from mrad_med.evaluation.records import CaseRecord, MapMaker
from mrad_med.metrics.histogram import MAX_BINS
from mrad_med.metrics.image import image_metrics
from mrad_med.metrics.intervals_bootstrap import bin_edges, count_case
from mrad_med.metrics.lesions import LesionMetrics, OverlapMetrics
from mrad_med.metrics.pixel import PixelMetrics
from mrad_med.types import AnomalyKeys, check_threshold

__all__ = ["SetMeasurement", "undefined_metrics"]

logger = logging.getLogger(__name__)

ERROR_BOUND = 1e-5  # of pixel metrics: above it pixels are counted again in finer bins
_MOST_BINS = 2**26  # of all groups together when pixels are counted again: 1.6 GB

Case = Mapping[str, Any]
Metrics = dict[str, Any]
Group = tuple[str, bool]  # class, and whether the case is a copy of another case
Belongs = Callable[[Group], bool]


def undefined_metrics(cases: Sequence[Case]) -> dict[str, str]:
    """Return which metrics are undefined for a set, before anything is computed.

    Args:
        cases: cases of a datalist.

    Returns:
        The reason for each undefined level, ``"image"`` or ``"pixel"``.
    """
    anomalous = sum(int(case[AnomalyKeys.LABEL]) for case in cases)
    reasons = {}
    if anomalous in (0, len(cases)):
        reasons["image"] = f"{anomalous} of {len(cases)} images are anomalous: normal and anomalous images are needed"
    if anomalous == 0:
        reasons["pixel"] = "the set has no anomalous images, and so no anomalous pixels"
    elif not any(case.get(AnomalyKeys.MASK) for case in cases):
        reasons["pixel"] = "the set has no masks"
    return reasons


class SetMeasurement:
    """Accumulator of the metrics of a set.

    `add` the cases, `merge` the measurements of other processes, `refine` the pixel metrics, then use `summary`.

    Args:
        make_map: function that returns map and score of a record.
        threshold: anomaly value at or above which a pixel counts for Dice and IoU. None leaves both out, because a
            threshold chosen on this set would not apply to other sets.
        max_bins: largest number of bins of a pixel histogram; `refine` uses more where needed.

    Raises:
        ValueError: ``threshold`` is not in [0, 1].
    """

    def __init__(self, make_map: MapMaker, *, threshold: float | None = None, max_bins: int = MAX_BINS) -> None:
        check_threshold(threshold, name="dice_threshold")
        self.make_map = make_map
        self.threshold = threshold
        self.max_bins = max_bins
        self.rows: list[dict[str, Any]] = []
        self._pixels: dict[Group, PixelMetrics] = {}
        self._lesions: dict[Group, LesionMetrics] = {}
        self._overlaps: dict[Group, OverlapMetrics] = {}

    def add(self, case: Case, record: CaseRecord, *, duplicate_of: str | None = None) -> None:
        """Add one case.

        Args:
            case: case of a datalist.
            record: record of the case.
            duplicate_of: case id of another case with the same image, or None.
        """
        anomaly_map, score = self.make_map(record)
        label = int(case[AnomalyKeys.LABEL])
        group = (str(case.get("class", "")), duplicate_of is not None)
        pixels: int | str = ""
        if record.mask is not None:
            mask = torch.from_numpy(record.mask)[None, None]
            for meters, make in self._meters():
                meters.setdefault(group, make()).update(anomaly_map, mask)
            pixels = int(record.mask.sum())
        if label and pixels == 0:
            logger.warning("%s: labeled anomalous, but its mask is empty; check the mask", case["case_id"])
        self.rows.append(
            {
                "case_id": case[AnomalyKeys.CASE_ID],
                "class": group[0],
                "patient": case.get("patient", ""),
                "label": label,
                "anomaly_score": score,
                "image_probability": record.image_probability,
                "map_maximum": float(anomaly_map.max()),
                "anomalous_pixels": pixels,
                "duplicate_of": duplicate_of or "",
            }
        )

    def merge(self, other: SetMeasurement) -> None:
        """Add the cases of another instance, for example of another process."""
        self.rows += other.rows
        for (mine, make), (theirs, _) in zip(self._meters(), other._meters(), strict=True):
            for group, meter in theirs.items():
                mine.setdefault(group, make()).merge(meter)

    def _meters(self) -> list[tuple[dict[Group, Any], Callable[[], Any]]]:
        """Return the pixel, lesion and overlap metrics by group, each with a function that returns an empty metric."""
        meters: list[tuple[dict[Group, Any], Callable[[], Any]]] = [
            (self._pixels, partial(PixelMetrics, max_bins=self.max_bins)),
            (self._lesions, LesionMetrics),
        ]
        threshold = self.threshold
        return meters if threshold is None else [*meters, (self._overlaps, lambda: OverlapMetrics(threshold))]

    @property
    def error_bound(self) -> float:
        """Largest possible error of a pixel metric of the set or of any class; 0 where none is defined."""
        parts: list[Belongs] = [_all, _is_original, *(partial(_is_of_class, name) for name in self._classes())]
        return max(float(defined(self._pooled(part)[0].compute).get("error_bound", 0)) for part in parts)

    def _classes(self) -> list[str]:
        return sorted({row["class"] for row in self.rows})

    def refine(self, records: Callable[[], Iterable[tuple[Case, CaseRecord]]]) -> None:
        """Count pixels again in finer bins until the error of every pixel metric is within `ERROR_BOUND`.

        It stops earlier where bins would take too much memory. `summary` reports the bound that was reached. All
        classes have the same bins, so their counts can be added without loss.

        Args:
            records: function that returns the cases and records of this process, at every call.
        """
        groups = {row["case_id"]: (row["class"], bool(row["duplicate_of"])) for row in self.rows}
        while self.error_bound > ERROR_BOUND and 4 * self.max_bins * len(self._pixels) <= _MOST_BINS:
            bins = self._pooled(_all)[0].refined()
            self.max_bins *= 4
            finer = {group: copy.deepcopy(bins) for group in self._pixels}
            for case, record in records():
                if record.mask is not None:
                    anomaly_map, _ = self.make_map(record)
                    mask = torch.from_numpy(record.mask)[None, None]
                    finer[groups[case[AnomalyKeys.CASE_ID]]].update(anomaly_map, mask)
            self._pixels, *others = gather_parts(finer)
            for part in others:
                for group, pixels in part.items():
                    self._pixels[group].merge(pixels)

    def summary(self) -> Metrics:
        """Return counts and metrics of all cases, of each class, their mean, and without repeated images.

        Metrics that are undefined are replaced by the reason.
        """
        summary = self._summary_of(_all)
        classes = self._classes()
        if len(classes) > 1:
            of_class = {name: self._summary_of(partial(_is_of_class, name)) for name in classes}
            summary |= {"classes": of_class, "class_mean": _mean_of_classes(list(of_class.values()))}
        if any(row["duplicate_of"] for row in self.rows):
            summary["without_duplicates"] = self._summary_of(_is_original)
        return summary

    def _summary_of(self, belongs: Belongs) -> Metrics:
        """Return counts and metrics of the groups that belong."""
        rows = [row for row in self.rows if belongs((row["class"], bool(row["duplicate_of"])))]
        pixels, lesions, *overlap = self._pooled(belongs)
        scores, labels = scores_and_labels(rows)
        return {
            "images": {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())},
            "unknown_masks": sum(row["anomalous_pixels"] == "" for row in rows),
            "image": defined(lambda: image_metrics(torch.from_numpy(scores), torch.from_numpy(labels))),
            "pixel": defined(pixels.compute),
            "lesion": defined(lesions.compute),
            **({"overlap": defined(overlap[0].compute)} if overlap else {}),
        }

    def _pooled(self, belongs: Belongs) -> list[Any]:
        """Return pixel, lesion and (with a threshold) overlap metrics, merged over the groups that belong."""
        pooled = []
        for meters, make in self._meters():
            together = make()
            for group, meter in meters.items():
                if belongs(group):
                    together.merge(meter)
            pooled.append(together)
        return pooled

    def interval_edges(self) -> NDArray[np.float32] | None:
        """Return the edges of the bins of `case_counts`; None where pixel metrics are undefined."""
        try:
            return bin_edges(self._pooled(_all)[0].counts())
        except ValueError:
            return None

    def case_counts(self, record: CaseRecord, edges: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the counts of one case in each bin; see `count_case`."""
        return count_case(self.make_map(record)[0].numpy()[0, 0], record.mask, edges)

    def intervals(
        self, counts: Mapping[str, NDArray[np.float32]], *, resamples: int, seed: int
    ) -> dict[str, dict[str, Any]]:
        """Return 95 % intervals of the metrics of all cases together, of each class, and of the mean of classes.

        Patients are drawn if every case has one, otherwise cases. The image-level AUROC has DeLong's interval unless
        patients are drawn. Draws of pixel metrics use counts in bins; the intervals are corrected for the small
        difference from the exact metric. The draws of a class are inside the class.

        Args:
            counts: `case_counts` by case id; empty where pixel metrics are undefined.
            resamples: number of draws.
            seed: seed of the draws.

        Returns:
            ``drawn``, how it was drawn; intervals by level and metric; for several classes also ``classes``, the same
            by class, and ``class_mean``.
        """
        draws = self._draws(_all, counts, resamples=resamples, seed=seed)
        by = "case" if draws.groups is None else "patient"
        result: dict[str, Any] = {"drawn": {"by": by, "resamples": resamples, "seed": seed}, **draws.intervals()}
        classes = self._classes()
        if len(classes) > 1:
            of_class = {
                name: self._draws(
                    partial(_is_of_class, name), counts, resamples=resamples, seed=class_seed(seed, number)
                )
                for number, name in enumerate(classes)
            }
            result["classes"] = {name: item.intervals() for name, item in of_class.items()}
            result["class_mean"] = mean_intervals(list(of_class.values()))
        return result

    def _draws(
        self, belongs: Belongs, counts: Mapping[str, NDArray[np.float32]], *, resamples: int, seed: int
    ) -> Draws:
        """Return the draws of the groups that belong."""
        rows = [row for row in self.rows if belongs((row["class"], bool(row["duplicate_of"])))]
        exact = defined(self._pooled(belongs)[0].compute) if counts else {}
        return Draws.of(rows, counts, exact, resamples=resamples, seed=seed)


def _all(_: Group) -> bool:
    return True


def _is_original(group: Group) -> bool:
    return not group[1]


def _is_of_class(name: str, group: Group) -> bool:
    return group[0] == name


def _mean_of_classes(classes: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over the classes where it is defined, as in the literature."""
    means: Metrics = {}
    for level in ("pixel", "image", "lesion", "overlap"):
        known = [item[level] for item in classes if level in item and "undefined" not in item[level]]
        names = [] if not known else [name for name in known[0] if name not in ("lesions", "images", "error_bound")]
        if names:
            means[level] = {name: float(np.mean([item[name] for item in known])) for name in names}
            means[level]["classes"] = len(known)
    return means
