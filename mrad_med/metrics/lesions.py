"""Lesion metrics: detected lesions at given rates of false positives (FROC), and overlap of masks (Dice, IoU)."""

from __future__ import annotations

import numpy as np
from monai.metrics import compute_froc_score
from numpy.typing import NDArray
from scipy.ndimage import label as label_regions
from skimage.feature import peak_local_max
from skimage.morphology import local_maxima
from torch import Tensor

__all__ = ["FROC_RATES", "LesionMetrics", "OverlapMetrics", "find_candidates"]

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per image, as in LUNA16
MIN_DISTANCE = 14  # pixels: side of a patch of the image encoder

_EIGHT_CONNECTED = np.ones((3, 3), int)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def find_candidates(
    anomaly_map: NDArray[np.floating], *, min_distance: int = MIN_DISTANCE
) -> tuple[Integers, NDArray[np.floating]]:
    """Return the local maxima of an anomaly map as candidates for lesions.

    A plateau of equal values, for example where a map saturates, gives one point: its pixel nearest to its center. Of
    equal maxima within the distance, the upper one is kept, and of those in one row the left one. A constant map has no
    maxima.

    Args:
        anomaly_map: (H, W) anomaly map.
        min_distance: smallest distance of candidates, in pixels along rows or columns. A maximum is left out if a
            higher one is at most this far away in both directions.

    Returns:
        (K, 2) rows and columns, highest score first, and their (K,) scores.

    Raises:
        ValueError: the map does not have two axes, it has NaN values, or the distance is below 1.
    """
    if anomaly_map.ndim != 2:
        raise ValueError(f"expected one anomaly map (H, W), got shape {anomaly_map.shape}")
    if np.isnan(anomaly_map).any():
        raise ValueError("an anomaly map has NaN values; the network's weights or input are damaged")
    _check_distance("min_distance", min_distance, 1)
    rows, columns = _plateau_centers(local_maxima(anomaly_map, connectivity=2))
    # Ranks replace scores because they have no ties: the footprint alone keeps points apart.
    ranks = np.zeros(anomaly_map.shape, np.int32)
    ascending = np.lexsort((-columns, -rows, anomaly_map[rows, columns]))
    ranks[rows[ascending], columns[ascending]] = np.arange(1, len(rows) + 1)
    footprint = np.ones((2 * min_distance + 1,) * 2)
    points = peak_local_max(ranks, footprint=footprint, exclude_border=False, threshold_abs=0)
    return points, anomaly_map[tuple(points.T)]


def _plateau_centers(is_maximum: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """Return row and column of the pixel of each region that is nearest to its center of mass."""
    regions, _ = label_regions(is_maximum, _EIGHT_CONNECTED)
    rows, columns = np.nonzero(is_maximum)
    member = regions[rows, columns] - 1
    sizes = np.bincount(member)
    centers = np.stack([np.bincount(member, axis) / sizes for axis in (rows, columns)])
    away = ((np.stack([rows, columns]) - centers[:, member]) ** 2).sum(0)
    order = np.lexsort((away, member))  # stable: of equally near pixels the upper left one is first
    first = order[np.flatnonzero(np.diff(member[order], prepend=-1))]
    return rows[first], columns[first]


class LesionMetrics:
    """Accumulator of the free-response ROC (FROC) of a set: call `update` with each batch, then `compute`.

    Lesions are the 8-connected regions of the masks. Candidates are the maxima of `find_candidates`. A lesion is found
    if a candidate is inside (or within ``tolerance``). Its score is that of its highest candidate; others are ignored.
    A candidate outside of all lesions is a false positive. Only scores of candidates are kept in memory.

    MONAI's ``compute_froc_curve_data`` returns the same points except for two conventions. It gives a missed lesion the
    score 0, and it leaves out the lowest score. `curve` has all scores, of any range.

    Args:
        min_distance: smallest distance of candidates, in pixels, see `find_candidates`.
        tolerance: largest distance from a candidate to a lesion that it finds, in pixels; with 0, candidates must be
            inside. Of several lesions within this distance, the candidate finds the nearest.
    """

    def __init__(self, *, min_distance: int = MIN_DISTANCE, tolerance: int = 0) -> None:
        _check_distance("min_distance", min_distance, 1)
        _check_distance("tolerance", tolerance, 0)
        self.min_distance = min_distance
        self.tolerance = tolerance
        self._false: list[NDArray[np.float32]] = []  # scores of false positives
        self._best: list[NDArray[np.float32]] = []  # highest score of each lesion, -inf without a candidate
        self._images = 0

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch.

        Args:
            maps: (B, 1, H, W) anomaly maps.
            masks: (B, 1, H, W) masks; a value above 0.5 is anomalous.

        Raises:
            ValueError: shapes differ, or a map has NaN.
        """
        for anomaly_map, mask in zip(*_checked(maps, masks), strict=True):
            points, scores = find_candidates(anomaly_map, min_distance=self.min_distance)
            lesions, count = label_regions(mask, _EIGHT_CONNECTED)
            hit = _lesions_at(lesions, points, self.tolerance)
            best = np.full(count + 1, -np.inf, np.float32)
            np.maximum.at(best, hit, scores)
            self._false.append(scores[hit == 0])
            self._best.append(best[1:])
            self._images += 1

    def merge(self, other: LesionMetrics) -> None:
        """Add the counts of another instance, for example from another process.

        Raises:
            ValueError: the other instance has another ``min_distance`` or ``tolerance``.
        """
        mine, theirs = ((item.min_distance, item.tolerance) for item in (self, other))
        if mine != theirs:
            raise ValueError(f"cannot merge lesion metrics of min_distance and tolerance {mine} with {theirs}")
        self._false += other._false
        self._best += other._best
        self._images += other._images

    def curve(self) -> tuple[Floats, Floats, Floats]:
        """Return the FROC curve from the lowest threshold to the highest, as MONAI does.

        Returns:
            (T + 1,) false positives per image, (T + 1,) sensitivities, and (T + 1,) thresholds. Thresholds are the T
            distinct scores, then infinity, where nothing is detected.

        Raises:
            ValueError: there is no lesion, so the sensitivity is undefined.
        """
        nothing = np.empty(0, np.float32)
        false, best = np.sort(np.concatenate([nothing, *self._false])), np.sort(np.concatenate([nothing, *self._best]))
        if len(best) == 0:
            raise ValueError(f"lesion metrics are undefined: no lesion in the masks of {self._images} images")
        thresholds = np.append(np.unique(np.concatenate([false, best[best > -np.inf]])), np.float32(np.inf))
        rates = (len(false) - np.searchsorted(false, thresholds)) / self._images
        sensitivity = (len(best) - np.searchsorted(best, thresholds)) / len(best)
        return rates, sensitivity, thresholds.astype(np.float64)

    def compute(self) -> dict[str, float]:
        """Return the sensitivities at `FROC_RATES` false positives per image, and their mean.

        Normal images are included in the number of images. Sensitivity is interpolated between points of the curve. At
        a rate that the set does not reach, it is the sensitivity with all candidates
        (``monai.metrics.compute_froc_score``).

        Returns:
            ``froc``, the mean; ``sensitivity_at_0.125`` to ``sensitivity_at_8``; the numbers of ``lesions`` and
            ``images``.

        Raises:
            ValueError: there is no lesion, so the metrics are undefined.
        """
        rates, sensitivity, _ = self.curve()
        at = {rate: float(compute_froc_score(rates, sensitivity, (rate,))) for rate in FROC_RATES}
        return {
            "froc": sum(at.values()) / len(at),
            **{f"sensitivity_at_{rate:g}": value for rate, value in at.items()},
            "lesions": float(sum(len(best) for best in self._best)),
            "images": float(self._images),
        }


def _lesions_at(lesions: NDArray[np.int32], points: Integers, tolerance: int) -> Integers:
    """Return for each of K points the number of the nearest lesion within the tolerance; 0 if there is none."""
    reach = np.arange(-tolerance, tolerance + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), -1).reshape(-1, 2)
    squared = (offsets**2).sum(1)
    order = np.argsort(squared, kind="stable")
    disk = offsets[order[: (squared <= tolerance**2).sum()]]
    rows, columns = np.moveaxis(points[:, None] + disk + tolerance, -1, 0)  # each (K, pixels of the disk)
    near = np.pad(lesions, tolerance)[rows, columns]
    hit: Integers = near[np.arange(len(points)), (near > 0).argmax(1)]
    return hit


class OverlapMetrics:
    """Accumulator of Dice and IoU at one threshold: call `update` with each batch, then `compute`.

    Three counts are kept for each image.

    Args:
        threshold: lowest anomaly value of a detected pixel, for example ``f1_max_threshold`` of `PixelMetrics`. Choose
            it on other images than these; on the same images, Dice and IoU are too optimistic.
    """

    def __init__(self, threshold: float) -> None:
        if np.isnan(threshold):
            raise ValueError("threshold must be a number, got NaN")
        self.threshold = threshold
        self._counts: list[tuple[int, int, int]] = []  # pixels in both, detected, in the mask

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch.

        Args:
            maps: (B, 1, H, W) anomaly maps.
            masks: (B, 1, H, W) masks; a value above 0.5 is anomalous.

        Raises:
            ValueError: shapes differ, or a map has NaN.
        """
        for anomaly_map, mask in zip(*_checked(maps, masks), strict=True):
            detected = anomaly_map >= self.threshold
            self._counts.append((int((detected & mask).sum()), int(detected.sum()), int(mask.sum())))

    def merge(self, other: OverlapMetrics) -> None:
        """Add the counts of another instance, for example from another process.

        Raises:
            ValueError: the other instance has another threshold.
        """
        if self.threshold != other.threshold:
            raise ValueError(f"cannot merge overlaps at threshold {self.threshold} with those at {other.threshold}")
        self._counts += other._counts

    def compute(self) -> dict[str, float]:
        """Return Dice and IoU, in [0, 1].

        ``dice`` and ``iou`` are computed from all pixels of the set, with false positives on normal images.
        ``dice_mean`` and ``iou_mean`` are means over the images with a lesion, equally weighted.

        Raises:
            ValueError: no image has a lesion, so the metrics are undefined.
        """
        counts = np.array(self._counts, np.int64).reshape(-1, 3)
        with_lesion = counts[counts[:, 2] > 0]
        if len(with_lesion) == 0:
            raise ValueError(f"overlap metrics are undefined: none of {len(counts)} images has a lesion")
        dice, iou = _overlaps(counts.sum(0, keepdims=True))
        dices, ious = _overlaps(with_lesion)
        return {
            "dice": float(dice[0]),
            "iou": float(iou[0]),
            "dice_mean": float(dices.mean()),
            "iou_mean": float(ious.mean()),
        }


def _overlaps(counts: Integers) -> tuple[Floats, Floats]:
    """Return Dice (N,) and IoU (N,) from (N, 3) numbers of pixels: in both, detected, in the mask."""
    both, detected, marked = counts.T
    return 2 * both / (detected + marked), both / (detected + marked - both)


def _checked(maps: Tensor, masks: Tensor) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return maps (B, H, W) and masks (B, H, W) from the arguments of `update`, after checks."""
    if maps.shape != masks.shape or maps.ndim != 4 or maps.shape[1] != 1:
        raise ValueError(
            f"expected maps and masks of one shape (B, 1, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    arrays = maps.detach().float().cpu().numpy()[:, 0]
    if np.isnan(arrays).any():
        raise ValueError("an anomaly map has NaN values; the network's weights or input are damaged")
    return arrays, masks.cpu().numpy()[:, 0] > 0.5


def _check_distance(name: str, distance: int, smallest: int) -> None:
    if distance < smallest:
        raise ValueError(f"{name} must be at least {smallest} pixels, got {distance}")
