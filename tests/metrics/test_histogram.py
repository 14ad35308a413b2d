"""Counts of scores: what is counted is all there, in the right bin, in no more memory than is allowed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from mrad_med.metrics import histogram as histograms
from mrad_med.metrics.histogram import ScoreCounts, ScoreHistogram, count_scores

HUGE = float(np.finfo(np.float32).max)
DENORMAL = float(np.finfo(np.float32).smallest_subnormal)

RANGES = {
    "unit": lambda random, n: random.uniform(0, 1, n),
    "narrow": lambda random, n: random.uniform(0.36, 0.37, n),
    "negative": lambda random, n: -random.gamma(2.0, 3.0, n),
    "both signs": lambda random, n: random.normal(0, 1, n).round(2) * random.choice([-1.0, 1.0, 0.0], n),
    "denormal": lambda random, n: random.randint(-500, 500, n) * DENORMAL,
    "huge": lambda random, n: random.uniform(-HUGE, HUGE, n),
    "many magnitudes": lambda random, n: random.choice([-1, 1], n) * 10 ** random.uniform(-44, 38, n),
    "tied": lambda random, n: random.randint(0, 9, n) / 8,
    "constant": lambda _, n: np.full(n, 0.4),
}
each_range = pytest.mark.parametrize("name", RANGES)

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_batch(name: str, *, seed: int = 0, count: int = 3000) -> Batch:
    """Return scores, indices of the anomalous ones, and weights that add up without rounding."""
    random = np.random.RandomState(seed)
    scores = RANGES[name](random, count).astype(np.float32)
    positive = np.flatnonzero(random.uniform(0, 1, count) < 0.2)
    return scores, positive, (random.randint(1, 9, len(positive)) / 8).astype(np.float32)


def histogram_of(batches: Iterable[Batch], **keywords) -> ScoreHistogram:
    histogram = ScoreHistogram(**keywords)
    for batch in batches:
        histogram.update(*batch)
    return histogram


def joined(batches: list[Batch]) -> Batch:
    """Return batches as one."""
    firsts = np.cumsum([0] + [len(scores) for scores, _, _ in batches])
    scores, positive, overlap = zip(*batches, strict=True)
    shifted = [indices + first for indices, first in zip(positive, firsts[:-1], strict=True)]
    return np.concatenate(scores), np.concatenate(shifted), np.concatenate(overlap)


def split(batch: Batch, parts: int) -> list[Batch]:
    scores, positive, overlap = batch
    batches = []
    for indices in np.array_split(np.arange(len(scores)), parts):
        inside = (positive >= indices[0]) & (positive <= indices[-1])
        batches.append((scores[indices], positive[inside] - indices[0], overlap[inside]))
    return batches


def assert_equal_counts(given: ScoreCounts, expected: ScoreCounts) -> None:
    for name in ("lowest", "highest", "positive", "negative", "overlap", "extremes"):
        np.testing.assert_array_equal(getattr(given, name), getattr(expected, name), err_msg=name)


def assert_counts_are_of(counts: ScoreCounts, batch: Batch) -> None:
    """Check that each score is counted once, in its bin."""
    scores, positive, overlap = batch
    rising = np.argsort(counts.lowest, kind="stable")
    assert (counts.highest >= counts.lowest).all()
    assert (counts.highest[1:] < counts.lowest[:-1]).all()  # highest first, and no two of them overlap
    place = rising[np.searchsorted(counts.lowest[rising], scores, side="right") - 1]
    assert ((counts.lowest[place] <= scores) & (scores <= counts.highest[place])).all()
    found = np.bincount(place[positive], minlength=len(rising))
    np.testing.assert_array_equal(counts.positive, found)
    np.testing.assert_array_equal(counts.negative, np.bincount(place, minlength=len(rising)) - found)
    np.testing.assert_array_equal(counts.overlap, np.bincount(place[positive], overlap, len(rising)))
    assert counts.extremes == (scores.min(), scores.max())


def size_of(histogram: ScoreHistogram) -> int:
    """Return the bytes of all arrays of a histogram, without those of its 65536 cells."""
    arrays = [value for value in vars(histogram).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays if len(array) != 2**16)


@pytest.fixture
def binned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scores go into bins at once."""
    monkeypatch.setattr(histograms, "_PENDING", 0)


def test_distinct_scores_are_counted_from_the_highest_to_the_lowest():
    scores = np.array([0.5, -1, 0.0, 0.5, -0.0, 2], np.float32)
    counts = count_scores(scores, np.array([0, 4, 5]), np.array([0.25, 0.5, 1], np.float32))
    assert counts.lowest.tolist() == counts.highest.tolist() == [2, 0.5, 0, -1]
    assert counts.positive.tolist() == [1, 1, 1, 0]
    assert counts.negative.tolist() == [0, 1, 1, 1]  # zero has no sign
    assert counts.overlap.tolist() == [1, 0.25, 0.5, 0]
    assert counts.extremes == (-1, 2)
    assert not counts.is_open.any()


def test_counts_of_images_have_no_overlap():
    assert count_scores(np.zeros(2, np.float32), np.array([1])).overlap is None


@each_range
def test_few_scores_are_kept_apart(name: str):
    batches = [make_batch(name, seed=seed) for seed in range(3)]
    counts = histogram_of(batches, max_bins=2).counts()
    assert_equal_counts(counts, count_scores(*joined(batches)))
    assert_counts_are_of(counts, joined(batches))


@each_range
@pytest.mark.parametrize("max_bins", [64, 4096, 2**16])
def test_every_score_is_counted_in_the_bin_that_it_lies_in(name: str, max_bins: int, binned: None):
    batches = [make_batch(name, seed=seed, count=count) for seed, count in enumerate((500, 1, 3000))]
    assert_counts_are_of(histogram_of(batches, max_bins=max_bins).counts(), joined(batches))


@pytest.mark.parametrize("name", ["narrow", "denormal", "tied", "constant"])
def test_counts_are_exact_where_there_is_a_bin_for_each_float(name: str, binned: None):
    batches = [make_batch(name, seed=seed) for seed in range(2)]
    assert_equal_counts(histogram_of(batches).counts(), count_scores(*joined(batches)))


def test_a_range_of_a_hundredth_between_a_quarter_and_a_half_is_exact_at_any_number_of_scores(binned: None):
    neighbors = np.nextafter(np.float32(0.4), np.float32([0, 1]))
    scores = np.concatenate([np.linspace(0.395, 0.405, 50_000, dtype=np.float32), neighbors])
    batch = (scores, np.arange(0, len(scores), 7), np.ones(len(scores[::7]), np.float32))
    assert_equal_counts(histogram_of(split(batch, 3)).counts(), count_scores(*batch))


def test_scores_go_into_bins_when_they_become_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(histograms, "_PENDING", 5000)
    batches = [make_batch("unit", seed=seed) for seed in range(3)]
    assert not histogram_of(batches[:1], max_bins=64).counts().is_open.any()
    counts = histogram_of(batches, max_bins=64).counts()
    assert counts.is_open.any()
    assert_counts_are_of(counts, joined(batches))


@pytest.mark.parametrize("max_bins", [2**16, 2**17])
def test_bins_are_never_more_than_allowed_however_scores_drift(max_bins: int, binned: None):
    histogram, batches = ScoreHistogram(max_bins=max_bins), []
    for seed, name in enumerate(["narrow", "unit", "huge", "narrow", "negative", "denormal", "many magnitudes"]):
        batches.append(make_batch(name, seed=seed))
        histogram.update(*batches[-1])
        assert size_of(histogram) <= 24 * max_bins
    assert_counts_are_of(histogram.counts(), joined(batches))


def test_bins_are_no_more_than_allowed_when_every_cell_is_met(binned: None):
    bits = np.arange(0, 2**32, 2**15 + 1, dtype=np.uint32)
    scores = bits.view(np.float32)
    scores = scores[np.isfinite(scores)]
    batch = (scores, np.arange(0, len(scores), 5), np.ones(len(scores[::5]), np.float32))
    histogram = histogram_of(split(batch, 4), max_bins=2**16)
    assert size_of(histogram) <= 24 * 2**16
    assert_counts_are_of(histogram.counts(), batch)


def test_with_few_bins_each_cell_still_has_one(binned: None):
    batch = make_batch("many magnitudes")
    cells = len(np.unique((batch[0] + np.float32(0)).view(np.uint32) >> 16))
    assert cells > 1000
    histogram = histogram_of([batch], max_bins=2)
    assert size_of(histogram) == 24 * cells
    assert_counts_are_of(histogram.counts(), batch)


def test_saturated_scores_are_separate_from_their_neighbors(binned: None):
    scores, positive, overlap = make_batch("unit")
    scores = np.clip(4 * scores - 1.5, 0, 1)
    counts = histogram_of(split((scores, positive, overlap), 3), max_bins=4096).counts()
    assert not counts.is_open[[0, -1]].any()
    assert counts.lowest[[0, -1]].tolist() == [1, 0]
    assert counts.positive[0] + counts.negative[0] == (scores == 1).sum()
    assert_counts_are_of(counts, (scores, positive, overlap))


def test_most_bins_go_where_most_scores_are(binned: None):
    crowd, rest = make_batch("narrow", count=9000), make_batch("unit", count=1000)
    counts = histogram_of([joined([crowd, rest])], max_bins=2**16).counts()
    width = counts.highest - counts.lowest
    is_crowded = (counts.lowest > 0.36) & (counts.lowest < 0.37)
    assert np.median(width[is_crowded]) < np.median(width[~is_crowded]) / 16


@each_range
def test_batches_and_their_order_do_not_matter_where_bins_are_exact(name: str):
    batches = [make_batch(name, seed=seed, count=700) for seed in range(3)]
    one = histogram_of([joined(batches)]).counts()
    assert_equal_counts(histogram_of(batches).counts(), one)
    assert_equal_counts(histogram_of(batches[::-1]).counts(), one)


@pytest.mark.parametrize("pending", [(0, 0), (0, 10**6), (10**6, 0), (10**6, 10**6)])
def test_merging_adds_what_the_other_has_counted(pending: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    batches, parts = [make_batch("narrow", seed=seed) for seed in range(2)], []
    for batch, limit in zip(batches, pending, strict=True):
        monkeypatch.setattr(histograms, "_PENDING", limit)
        parts.append(histogram_of([batch]))
    before = parts[1].counts()
    parts[0].merge(parts[1])
    assert_equal_counts(parts[0].counts(), count_scores(*joined(batches)))
    assert_equal_counts(parts[1].counts(), before)


@each_range
@pytest.mark.parametrize("max_bins", [64, 2**16])
def test_histograms_of_different_bins_merge_at_the_coarser_ones(name: str, max_bins: int, binned: None):
    batches = [make_batch(name), make_batch("unit", seed=1), make_batch(name, seed=2, count=200)]
    parts = [histogram_of([batch], max_bins=max_bins) for batch in batches]
    whole = ScoreHistogram(max_bins=max_bins)
    for part in parts:
        whole.merge(part)
    assert_counts_are_of(whole.counts(), joined(batches))
    if max_bins == 2**16:
        assert size_of(whole) <= 24 * max_bins


def test_merging_with_an_empty_histogram_changes_nothing(binned: None):
    batch = make_batch("unit")
    histogram = histogram_of([batch], max_bins=4096)
    expected = histogram.counts()
    histogram.merge(ScoreHistogram())
    assert_equal_counts(histogram.counts(), expected)
    empty = ScoreHistogram(max_bins=4096)
    empty.merge(histogram)
    assert_equal_counts(empty.counts(), expected)


@pytest.mark.parametrize("name", ["unit", "many magnitudes", "negative"])
def test_a_second_pass_counts_the_same_in_finer_bins(name: str, binned: None):
    batches = [make_batch(name, seed=seed) for seed in range(2)]
    first = histogram_of(batches, max_bins=4096)
    finer = first.refined()
    assert finer.max_bins == 4 * 4096
    assert finer.counts().positive.size == 0
    for batch in batches:
        finer.update(*batch)
    assert_counts_are_of(finer.counts(), joined(batches))
    assert len(finer.counts().lowest) > len(first.counts().lowest)


def test_parts_of_a_second_pass_merge_to_the_whole(binned: None):
    batches = [make_batch("unit", seed=seed) for seed in range(2)]
    first = histogram_of(batches, max_bins=4096)
    whole, parts = first.refined(max_bins=2**15), [first.refined(max_bins=2**15) for _ in batches]
    for part, batch in zip(parts, batches, strict=True):
        part.update(*batch)
        whole.update(*batch)
    parts[0].merge(parts[1])
    assert_equal_counts(parts[0].counts(), whole.counts())


def test_a_second_pass_over_few_scores_is_as_exact_as_the_first():
    batch = make_batch("unit")
    finer = histogram_of([batch], max_bins=64).refined()
    finer.update(*batch)
    assert_equal_counts(finer.counts(), count_scores(*batch))


def test_scores_may_change_after_they_were_added():
    scores, positive, overlap = make_batch("unit")
    expected = count_scores(scores, positive, overlap)
    given = scores.copy()
    histogram = histogram_of([(given, positive, overlap)])
    given[:] = 0
    assert_equal_counts(histogram.counts(), expected)


def test_no_scores_are_no_counts():
    nothing = (np.zeros(0, np.float32), np.zeros(0, np.intp), np.zeros(0, np.float32))
    counts = histogram_of([nothing]).counts()
    assert counts.lowest.size == counts.positive.size == 0
    assert np.isnan(counts.extremes).all()


def test_a_histogram_needs_two_bins():
    with pytest.raises(ValueError, match="at least 2 bins, got max_bins 1"):
        ScoreHistogram(max_bins=1)
