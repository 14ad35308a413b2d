"""Counts of scores in bins as fine as memory allows: what exact metrics of any number of pixels are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScoreCounts", "ScoreHistogram", "count_scores"]

MAX_BINS = 2**20  # of a histogram: 24 MB

_CELLS = 2**16  # of floats that share sign, exponent and the first seven bits of the fraction
_CELL_BITS = 16  # the other bits: a cell holds 2^16 floats
_SIGN = np.uint32(0x80000000)
_IN_CELL = np.uint32(2**_CELL_BITS - 1)
_NOWHERE = -(2**_CELL_BITS)  # of a cell that no score fell into yet
_CHUNK = 2**16  # scores that are looked up at once: what is computed on the way fits into the cache
_AIM = 0.75  # share of the bins that is used after some were joined, so that it is not done for every new cell
_SMALLEST_CELL = 16  # bins of a cell of little weight, as long as cells are few
_PENDING = 2**21  # scores that are kept as they are, until there are so many that bins are chosen by them: 8 MB

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Pending = tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]


@dataclass(frozen=True)
class ScoreCounts:
    """How many scores lie in each bin, from the highest bin to the lowest; bins that are empty are left out.

    Attributes:
        lowest: (K,) lower end of each bin, itself inside.
        highest: (K,) upper end, itself inside.
        positive: (..., K) anomalous scores in each bin.
        negative: (..., K) normal ones.
        overlap: (..., K) sum over the anomalous pixels of ``1 / (pixels of its region)``; None for images.
        extremes: the smallest and the largest score.
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    positive: Floats
    negative: Floats
    overlap: Floats | None
    extremes: tuple[float, float]

    @property
    def is_open(self) -> NDArray[np.bool_]:
        """(K,): whether a bin may hold different scores, whose order is not known."""
        return np.not_equal(self.lowest, self.highest)


def count_scores(
    scores: NDArray[np.float32], positive: NDArray[np.intp], overlap: NDArray[np.float32] | None = None
) -> ScoreCounts:
    """Return the counts of few scores: each distinct one is a bin of its own.

    Args:
        scores: (N,) finite.
        positive: (P,) indices of the anomalous ones.
        overlap: (P,) weight of each of them, for pixels.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    found = np.bincount(place[positive], minlength=len(distinct))[::-1].astype(np.float64)
    total = np.bincount(place, minlength=len(distinct))[::-1]
    shares = None if overlap is None else np.bincount(place[positive], overlap, len(distinct))[::-1].astype(np.float64)
    extremes = (float(distinct[0]), float(distinct[-1])) if len(distinct) else (float("nan"), float("nan"))
    return ScoreCounts(distinct[::-1], distinct[::-1], found, total - found, shares, extremes)


class ScoreHistogram:
    """A histogram of float32 scores whose memory does not depend on how many there are.

    A score falls into one of 65536 cells by its sign, its exponent and seven bits of its fraction; a cell has up to
    65536 bins, one for each float in it. As long as `max_bins` suffice, which they do for any range of 0.01 between
    0.25 and 0.5, nothing is joined and all counts are exact; so they are of the first two million scores whatever their
    range. Then neighboring bins are joined where few scores are: most of the bins go where most of the scores are. Two
    histograms merge exactly at the coarser of their bins.

    Args:
        max_bins: how many bins there may be; never less than one for each cell that a score fell into.
    """

    def __init__(self, *, max_bins: int = MAX_BINS) -> None:
        if max_bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, got max_bins {max_bins}")
        self.max_bins = max_bins
        self._extremes = (float("inf"), float("-inf"))
        self._shifts = np.zeros(_CELLS, np.int64)  # a bin of the cell holds 2^shift floats
        self._starts = np.full(_CELLS, _NOWHERE)  # first bin of each cell
        self._used = 0
        self._total = np.zeros(0, np.int64)
        self._positive = np.zeros(0, np.int64)
        self._overlap = np.zeros(0)
        self._pending: list[Pending] = []

    def update(self, scores: NDArray[np.float32], positive: NDArray[np.intp], overlap: NDArray[np.float32]) -> None:
        """Add scores.

        Args:
            scores: (N,) finite.
            positive: (P,) indices of the anomalous ones.
            overlap: (P,) weight of each of them.
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
        """Return the bin of each score; a negative number where its cell has none yet."""
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
        """Add what another histogram has counted."""
        if other._used:
            self._count_pending()
            self._merge_bins(other)
        for pending in other._pending:
            self.update(*pending)

    def _merge_bins(self, other: ScoreHistogram) -> None:
        mine, theirs = self._starts >= 0, other._starts >= 0
        self._widen(*other._extremes)
        shifts = np.maximum(self._shifts, other._shifts)  # 0 where there is no cell
        cells = np.flatnonzero(mine | theirs)
        weight = self._cell_counts() + other._cell_counts()
        shifts[cells] = _coarsened(shifts[cells], weight[cells], self.max_bins)
        parts = [part._rebinned(cells, shifts) for part in (self, other)]
        self._lay_out(cells, shifts)
        self._total = parts[0][0] + parts[1][0]
        self._positive = parts[0][1] + parts[1][1]
        self._overlap = parts[0][2] + parts[1][2]

    def refined(self, *, max_bins: int | None = None) -> ScoreHistogram:
        """Return an empty histogram for another pass over the same scores: its bins are where they are needed most.

        Args:
            max_bins: four times the present number if None.
        """
        finer = ScoreHistogram(max_bins=max_bins or 4 * self.max_bins)
        if self._used == 0:  # exact as it is
            return finer
        cells = np.flatnonzero(self._starts >= 0)
        positive, total = self._cell_counts(self._positive)[cells], self._cell_counts()[cells]
        above = np.maximum(np.cumsum(total[::-1])[::-1], 1)
        # In b bins a cell leaves the average precision unknown by about positive * total / above / b: the sum over all
        # cells is smallest with b as the root of it. What it leaves unknown of areas is less.
        weight = np.sqrt(positive * total / above)
        shifts = np.zeros(_CELLS, np.int64)
        shifts[cells] = _coarsened(shifts[cells], weight, finer.max_bins)
        finer._lay_out(cells, shifts)
        finer._total, finer._positive = np.zeros(finer._used, np.int64), np.zeros(finer._used, np.int64)
        finer._overlap = np.zeros(finer._used)
        return finer

    def counts(self) -> ScoreCounts:
        """Return what was counted, highest scores first."""
        if self._used == 0:
            return count_scores(*_joined(self._pending))
        cells, offsets = self._places()
        order = np.lexsort((offsets, cells))[::-1]
        order = order[self._total[order] > 0]
        lowest = (cells[order] << _CELL_BITS) + offsets[order]
        highest = lowest + (1 << self._shifts[cells[order]]) - 1
        lowest += lowest == int(_SIGN)  # plus zero, as which no score is counted
        positive = self._positive[order].astype(np.float64)
        negative = self._total[order] - positive
        # What saturates is at the extremes: clipped to them, its bins hold a single score.
        low, high = (np.clip(_scores_of(keys), *self._extremes) for keys in (lowest, highest))
        return ScoreCounts(low, high, positive, negative, self._overlap[order], self._extremes)

    def _places(self) -> tuple[Integers, Integers]:
        """Return the cell of each bin, and the lowest of the cell's floats that is in it."""
        cells = np.flatnonzero(self._starts >= 0)
        cells = cells[np.argsort(self._starts[cells])]
        of_bin = np.repeat(cells, 1 << (_CELL_BITS - self._shifts[cells]))
        return of_bin, (np.arange(self._used) - self._starts[of_bin]) << self._shifts[of_bin]

    def _cell_counts(self, values: Integers | None = None) -> Integers:
        cells, _ = self._places()
        return np.bincount(cells, self._total if values is None else values, _CELLS).astype(np.int64)

    def _make_room(self, new: Integers, counts: Integers) -> None:
        """Give new cells their bins, and join bins elsewhere where there would be too many."""
        free = self.max_bins - self._used
        full = 2**_CELL_BITS
        if len(new) * full <= free:
            shifts = np.zeros(len(new), np.int64)
        elif self._used and free >= self.max_bins // 8 and len(new) * _SMALLEST_CELL <= free // 8:
            # A few cells beside many: a share of what was kept free for them.
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
        """Lay out all cells anew, in fewer bins than there may be."""
        weight = self._cell_counts()
        weight[new] = counts
        cells = np.flatnonzero((self._starts >= 0) | (weight > 0))
        shifts = self._shifts.copy()
        shifts[cells] = _coarsened(shifts[cells], weight[cells], int(_AIM * self.max_bins))
        parts = self._rebinned(cells, shifts)
        self._lay_out(cells, shifts)
        self._total, self._positive, self._overlap = parts

    def _lay_out(self, cells: Integers, shifts: Integers) -> None:
        self._shifts, self._starts = shifts, _starts_of(cells, shifts)
        self._used = int((1 << (_CELL_BITS - shifts[cells])).sum())

    def _rebinned(self, cells: Integers, shifts: Integers) -> tuple[Integers, Integers, Floats]:
        """Return the counts in bins of another layout, nowhere finer than this one."""
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
    """Return several updates as one."""
    nothing = np.zeros(0, np.float32)
    scores, positive, overlap = zip((nothing, np.zeros(0, np.intp), nothing), *pending, strict=True)
    firsts = np.cumsum([0, *map(len, scores)])
    shifted = [indices + first for indices, first in zip(positive, firsts[:-1], strict=True)]
    return np.concatenate(scores), np.concatenate(shifted), np.concatenate(overlap)


def _starts_of(cells: Integers, shifts: Integers) -> Integers:
    """Return the first bin of each cell when they lie one after the other."""
    sizes = 1 << (_CELL_BITS - shifts[cells])
    starts = np.full(_CELLS, _NOWHERE)
    starts[cells] = np.cumsum(sizes) - sizes
    return starts


def _coarsened(shifts: Integers, weight: Integers | Floats, max_bins: int) -> Integers:
    """Return shifts, none smaller than given, with bins in proportion to each cell's weight and no more than allowed.

    Every cell has one bin at least, so there may be more bins than allowed where cells are as many.
    """
    sizes = 1 << (_CELL_BITS - shifts)
    if sizes.sum() <= max_bins:
        return shifts
    smallest = np.minimum(sizes, max(1, min(_SMALLEST_CELL, max_bins // (4 * len(sizes)))))
    share = weight / max(float(weight.sum()), 1.0)

    def sized(bins: float) -> Integers:
        wanted = np.exp2(np.floor(np.log2(np.maximum(bins * share, 1))))
        return np.clip(wanted.astype(np.int64), smallest, sizes)

    # Bisection over how many bins are shared out by weight: the most that fit.
    low, high = 0.0, 2**_CELL_BITS / float(share[share > 0].min(initial=1))
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sized(middle).sum() <= max_bins else (low, middle)
    return _CELL_BITS - np.log2(sized(low)).astype(np.int64)


def _ordered_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return unsigned integers in the order of the floats; zeros of both signs are one.

    Zero ends the cell of small negative scores, so that it does not share a bin where there are none.
    """
    bits = (np.float32(0) - scores).view(np.uint32)  # the negative of a zero is always plus zero
    return bits ^ (~(bits.view(np.int32) >> 31).view(np.uint32) & ~_SIGN)


def _cells_of(keys: NDArray[np.uint32]) -> Integers:
    return (keys >> np.uint32(_CELL_BITS)).astype(np.int64)


def _scores_of(keys: Integers) -> NDArray[np.float32]:
    """Return the floats of ordered keys."""
    bits = keys.astype(np.uint32)
    return (bits ^ np.where(bits & _SIGN, _SIGN, np.uint32(0xFFFFFFFF))).view(np.float32)
