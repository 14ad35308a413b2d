"""Counts of scores in bins as fine as memory allows. Exact metrics of any number of pixels are computed from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScoreCounts", "ScoreHistogram", "count_scores"]

MAX_BINS = 2**20  # of a histogram: 24 MiB

_CELLS = 2**16  # a cell is the set of floats with the same sign, exponent and first seven bits of the fraction
_CELL_BITS = 16  # the other bits: a cell has 2^16 floats
_SIGN = np.uint32(0x80000000)
_IN_CELL = np.uint32(2**_CELL_BITS - 1)
_NOWHERE = -(2**_CELL_BITS)  # start of a cell without scores
_CHUNK = 2**16  # scores that are looked up at a time; their intermediate arrays fit into the cache
_AIM = 0.75  # fraction of the bins in use after bins were joined; the others are free for new cells
_SMALLEST_CELL = 16  # fewest bins of a cell, if there are not too many cells
_PENDING = 2**21  # scores that are kept before bins are chosen: 8 MiB

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Pending = tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]


@dataclass(frozen=True)
class ScoreCounts:
    """The number of scores in each bin, from the highest bin to the lowest, without empty bins.

    Attributes:
        lowest: (K,) lower end of each bin, inclusive.
        highest: (K,) upper end of each bin, inclusive.
        positive: (..., K) number of anomalous scores in each bin.
        negative: (..., K) number of normal scores in each bin.
        overlap: (..., K) sum of ``1 / (pixels of its region)`` over the anomalous pixels in each bin; None for images.
        extremes: smallest and largest score.
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    positive: Floats
    negative: Floats
    overlap: Floats | None
    extremes: tuple[float, float]

    @property
    def is_open(self) -> NDArray[np.bool_]:
        """(K,) whether a bin may hold different scores. Their order is then unknown."""
        return np.not_equal(self.lowest, self.highest)


def count_scores(
    scores: NDArray[np.float32], positive: NDArray[np.intp], overlap: NDArray[np.float32] | None = None
) -> ScoreCounts:
    """Return the exact counts of a small number of scores, with one bin for each distinct score.

    Args:
        scores: (N,) finite scores.
        positive: (P,) indices of the anomalous scores.
        overlap: (P,) weights of the anomalous pixels; None for images.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    found = np.bincount(place[positive], minlength=len(distinct))[::-1].astype(np.float64)
    total = np.bincount(place, minlength=len(distinct))[::-1]
    shares = None if overlap is None else np.bincount(place[positive], overlap, len(distinct))[::-1].astype(np.float64)
    extremes = (float(distinct[0]), float(distinct[-1])) if len(distinct) else (float("nan"), float("nan"))
    return ScoreCounts(distinct[::-1], distinct[::-1], found, total - found, shares, extremes)


class ScoreHistogram:
    """A histogram of float32 scores. Its memory does not depend on the number of scores.

    A score belongs to one of 65536 cells by its sign, its exponent and seven bits of its fraction. A cell has up to
    65536 bins, one for each of its floats. Counts are exact while `max_bins` suffice, as for any range of 0.01 between
    0.25 and 0.5. Up to two million scores are counted exactly, whatever their range. When bins run out, neighboring
    bins are joined where scores are few. Merged histograms use the coarser bins of the two.

    Args:
        max_bins: largest number of bins, at least 2; exceeded only if more cells than this have scores.

    Raises:
        ValueError: ``max_bins`` is below 2.
    """

    def __init__(self, *, max_bins: int = MAX_BINS) -> None:
        if max_bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, got max_bins {max_bins}")
        self.max_bins = max_bins
        self._extremes = (float("inf"), float("-inf"))
        self._shifts = np.zeros(_CELLS, np.int64)  # a bin of the cell has 2^shift floats
        self._starts = np.full(_CELLS, _NOWHERE)  # first bin of each cell
        self._used = 0
        self._total = np.zeros(0, np.int64)
        self._positive = np.zeros(0, np.int64)
        self._overlap = np.zeros(0)
        self._pending: list[Pending] = []

    def update(self, scores: NDArray[np.float32], positive: NDArray[np.intp], overlap: NDArray[np.float32]) -> None:
        """Add scores.

        Args:
            scores: (N,) finite scores.
            positive: (P,) indices of the anomalous scores.
            overlap: (P,) weights of the anomalous scores in the per-region overlap.
        """
        if scores.size == 0:
            return
        if self._used == 0:
            self._pending.append((scores.copy(), positive, overlap))
            if sum(len(item[0]) for item in self._pending) > _PENDING:
                self._count_pending()
        else:
            self._count(scores, positive, overlap)

    def _count_pending(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, []
            self._count(*_joined(pending))

    def _count(self, scores: NDArray[np.float32], positive: NDArray[np.intp], overlap: NDArray[np.float32]) -> None:
        self._widen(float(scores.min()), float(scores.max()))
        bins = self._bins_of(scores)
        if bins.min() < 0:
            cells, counts = np.unique(_cells_of(_ordered_keys(scores)), return_counts=True)
            is_new = self._starts[cells] < 0
            self._make_room(cells[is_new], counts[is_new])
            bins = self._bins_of(scores)
        self._total += np.bincount(bins, minlength=self._used)
        np.add.at(self._positive, bins[positive], 1)
        np.add.at(self._overlap, bins[positive], overlap.astype(np.float64))

    def _bins_of(self, scores: NDArray[np.float32]) -> Integers:
        """Return the bin of each score; negative where its cell has no bins yet."""
        bins = np.empty(len(scores), np.int64)
        for start in range(0, len(scores), _CHUNK):
            keys = _ordered_keys(scores[start : start + _CHUNK])
            cells = _cells_of(keys)
            offsets = (keys & _IN_CELL).astype(np.int64) >> self._shifts.take(cells)
            bins[start : start + _CHUNK] = self._starts.take(cells) + offsets
        return bins

    def _widen(self, lowest: float, highest: float) -> None:
        self._extremes = min(self._extremes[0], lowest), max(self._extremes[1], highest)

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of another histogram."""
        if other._used:
            self._count_pending()
            self._merge_bins(other)
        for pending in other._pending:
            self.update(*pending)

    def _merge_bins(self, other: ScoreHistogram) -> None:
        mine, theirs = self._starts >= 0, other._starts >= 0
        self._widen(*other._extremes)
        shifts = np.maximum(self._shifts, other._shifts)  # 0 where a cell has no bins
        cells = np.flatnonzero(mine | theirs)
        weight = self._cell_counts() + other._cell_counts()
        shifts[cells] = _coarsened(shifts[cells], weight[cells], self.max_bins)
        parts = [part._rebinned(cells, shifts) for part in (self, other)]
        self._arrange(cells, shifts)
        self._total = parts[0][0] + parts[1][0]
        self._positive = parts[0][1] + parts[1][1]
        self._overlap = parts[0][2] + parts[1][2]

    def refined(self, *, max_bins: int | None = None) -> ScoreHistogram:
        """Return an empty histogram for a second pass through the scores, with finer bins where the error is largest.

        Args:
            max_bins: largest number of bins; four times that of this histogram if None.
        """
        finer = ScoreHistogram(max_bins=max_bins or 4 * self.max_bins)
        if self._used == 0:  # all counts are exact
            return finer
        cells = np.flatnonzero(self._starts >= 0)
        positive, total = self._cell_counts(self._positive)[cells], self._cell_counts()[cells]
        above = np.maximum(np.cumsum(total[::-1])[::-1], 1)
        # A cell with b bins adds an error of about positive * total / above / b to the average precision. For a given
        # number of bins, the sum is smallest if b is proportional to the root of positive * total / above. The errors
        # of areas are smaller.
        weight = np.sqrt(positive * total / above)
        shifts = np.zeros(_CELLS, np.int64)
        shifts[cells] = _coarsened(shifts[cells], weight, finer.max_bins)
        finer._arrange(cells, shifts)
        finer._total, finer._positive = np.zeros(finer._used, np.int64), np.zeros(finer._used, np.int64)
        finer._overlap = np.zeros(finer._used)
        return finer

    def counts(self) -> ScoreCounts:
        """Return the counts, highest scores first."""
        if self._used == 0:
            return count_scores(*_joined(self._pending))
        cells, offsets = self._places()
        order = np.lexsort((offsets, cells))[::-1]
        order = order[self._total[order] > 0]
        lowest = (cells[order] << _CELL_BITS) + offsets[order]
        highest = lowest + (1 << self._shifts[cells[order]]) - 1
        lowest += lowest == int(_SIGN)  # the key of plus zero, which no score has
        positive = self._positive[order].astype(np.float64)
        negative = self._total[order] - positive
        # Scores of a saturated map equal an extreme. Clipping the ends to the extremes makes their bin a single score.
        low, high = (np.clip(_scores_of(keys), *self._extremes) for keys in (lowest, highest))
        return ScoreCounts(low, high, positive, negative, self._overlap[order], self._extremes)

    def _places(self) -> tuple[Integers, Integers]:
        """Return the cell of each bin, and the offset of the bin's lowest float in the cell."""
        cells = np.flatnonzero(self._starts >= 0)
        cells = cells[np.argsort(self._starts[cells])]
        of_bin = np.repeat(cells, 1 << (_CELL_BITS - self._shifts[cells]))
        return of_bin, (np.arange(self._used) - self._starts[of_bin]) << self._shifts[of_bin]

    def _cell_counts(self, values: Integers | None = None) -> Integers:
        cells, _ = self._places()
        return np.bincount(cells, self._total if values is None else values, _CELLS).astype(np.int64)

    def _make_room(self, new: Integers, counts: Integers) -> None:
        """Give bins to new cells, and join bins of all cells if there would be too many."""
        free = self.max_bins - self._used
        full = 2**_CELL_BITS
        if len(new) * full <= free:
            shifts = np.zeros(len(new), np.int64)
        elif self._used and free >= self.max_bins // 8 and len(new) * _SMALLEST_CELL <= free // 8:
            # Only a few new cells: they get a part of the free bins.
            shifts = np.full(len(new), _CELL_BITS - int(np.log2(min(full, free // (4 * len(new))))))
        else:
            self._join(new, counts)
            return
        sizes = 1 << (_CELL_BITS - shifts)
        self._shifts[new] = shifts
        self._starts[new] = self._used + np.cumsum(sizes) - sizes
        self._used += int(sizes.sum())
        grown = self._used - len(self._total)
        self._total = np.append(self._total, np.zeros(grown, np.int64))
        self._positive = np.append(self._positive, np.zeros(grown, np.int64))
        self._overlap = np.append(self._overlap, np.zeros(grown))

    def _join(self, new: Integers, counts: Integers) -> None:
        """Distribute fewer than ``max_bins`` bins over all cells again."""
        weight = self._cell_counts()
        weight[new] = counts
        cells = np.flatnonzero((self._starts >= 0) | (weight > 0))
        shifts = self._shifts.copy()
        shifts[cells] = _coarsened(shifts[cells], weight[cells], int(_AIM * self.max_bins))
        parts = self._rebinned(cells, shifts)
        self._arrange(cells, shifts)
        self._total, self._positive, self._overlap = parts

    def _arrange(self, cells: Integers, shifts: Integers) -> None:
        self._shifts, self._starts = shifts, _starts_of(cells, shifts)
        self._used = int((1 << (_CELL_BITS - shifts[cells])).sum())

    def _rebinned(self, cells: Integers, shifts: Integers) -> tuple[Integers, Integers, Floats]:
        """Return the counts in other bins, which must not be finer than the present ones."""
        starts = _starts_of(cells, shifts)
        of_bin, offsets = self._places()
        bins = starts[of_bin] + (offsets >> shifts[of_bin])
        length = int((1 << (_CELL_BITS - shifts[cells])).sum())
        total, positive, overlap = np.zeros(length, np.int64), np.zeros(length, np.int64), np.zeros(length)
        np.add.at(total, bins, self._total)
        np.add.at(positive, bins, self._positive)
        np.add.at(overlap, bins, self._overlap)
        return total, positive, overlap


def _joined(pending: list[Pending]) -> Pending:
    """Return the concatenation of several updates."""
    nothing = np.zeros(0, np.float32)
    scores, positive, overlap = zip((nothing, np.zeros(0, np.intp), nothing), *pending, strict=True)
    firsts = np.cumsum([0, *map(len, scores)])
    shifted = [indices + first for indices, first in zip(positive, firsts[:-1], strict=True)]
    return np.concatenate(scores), np.concatenate(shifted), np.concatenate(overlap)


def _starts_of(cells: Integers, shifts: Integers) -> Integers:
    """Return the first bin of each cell, for consecutive cells."""
    sizes = 1 << (_CELL_BITS - shifts[cells])
    starts = np.full(_CELLS, _NOWHERE)
    starts[cells] = np.cumsum(sizes) - sizes
    return starts


def _coarsened(shifts: Integers, weight: Integers | Floats, max_bins: int) -> Integers:
    """Return shifts for at most ``max_bins`` bins, distributed in proportion to the weights of the cells.

    No shift becomes smaller. Every cell keeps at least one bin, so many cells may need more bins than ``max_bins``.
    """
    sizes = 1 << (_CELL_BITS - shifts)
    if sizes.sum() <= max_bins:
        return shifts
    smallest = np.minimum(sizes, max(1, min(_SMALLEST_CELL, max_bins // (4 * len(sizes)))))
    share = weight / max(float(weight.sum()), 1.0)

    def sized(bins: float) -> Integers:
        wanted = np.exp2(np.floor(np.log2(np.maximum(bins * share, 1))))
        return np.clip(wanted.astype(np.int64), smallest, sizes)

    # Find the largest number of distributed bins that fits, by bisection.
    low, high = 0.0, 2**_CELL_BITS / float(share[share > 0].min(initial=1))
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sized(middle).sum() <= max_bins else (low, middle)
    return _CELL_BITS - np.log2(sized(low)).astype(np.int64)


def _ordered_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return unsigned integers in the order of the floats. Both zeros have the same key.

    Zero is the last float in the cell of small negative scores. Without negative scores, no other score shares its bin.
    """
    bits = (np.float32(0) - scores).view(np.uint32)  # 0 - 0 and 0 - (-0) are both plus zero
    return bits ^ (~(bits.view(np.int32) >> 31).view(np.uint32) & ~_SIGN)


def _cells_of(keys: NDArray[np.uint32]) -> Integers:
    return (keys >> np.uint32(_CELL_BITS)).astype(np.int64)


def _scores_of(keys: Integers) -> NDArray[np.float32]:
    """Return the floats for ordered keys, the inverse of `_ordered_keys`."""
    bits = keys.astype(np.uint32)
    return (bits ^ np.where(bits & _SIGN, _SIGN, np.uint32(0xFFFFFFFF))).view(np.float32)
