"""All metrics of a set, out of records: referees are scikit-learn and the metrics' own classes."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mrad_med import PixelMetrics
from mrad_med.evaluation import measurement
from mrad_med.evaluation.measurement import ERROR_BOUND, SetMeasurement, undefined_metrics
from mrad_med.evaluation.records import CaseRecord, MapMaker
from mrad_med.metrics import histogram as histograms
from mrad_med.metrics.intervals_bootstrap import bootstrap_weights
from mrad_med.metrics.intervals_delong import delong
from mrad_med.metrics.lesions import LesionMetrics, OverlapMetrics

SIDE = 16
MAKE_MAP = MapMaker((SIDE, SIDE), sigma=0.0)  # the map is the record itself
Pair = tuple[dict[str, Any], CaseRecord]


def make_pairs(count: int = 12, *, seed: int = 0, classes: Sequence[str] = ("a",), unknown: int = 0) -> list[Pair]:
    """Every second case is anomalous, in a corner, and mostly brighter there; the first so many masks are unknown."""
    draw = np.random.RandomState(seed)
    pairs = []
    for index in range(count):
        label = (index // len(classes)) % 2
        mask = np.zeros((SIDE, SIDE), bool)
        mask[: 4 * label, : 3 + index % 5] = bool(label)
        values = np.clip(draw.normal(0.4, 0.1, (SIDE, SIDE)) + 0.15 * mask, 0, 1).astype(np.float32)
        hidden = label and unknown > 0
        unknown -= bool(hidden)
        record = CaseRecord(values, float(draw.rand()), None if hidden else mask)
        pairs.append(({"case_id": f"{index:02}", "label": label, "class": classes[index % len(classes)]}, record))
    return pairs


def measured(pairs: Sequence[Pair], *, copies: dict[str, str] | None = None, **keywords: Any) -> SetMeasurement:
    meter = SetMeasurement(MAKE_MAP, **keywords)
    for case, record in pairs:
        meter.add(case, record, duplicate_of=(copies or {}).get(case["case_id"]))
    return meter


def pixels_of(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    known = [record for _, record in pairs if record.mask is not None]
    return tuple(
        np.concatenate([item.ravel() for item in items])
        for items in zip(*((r.mask, r.patch_map) for r in known), strict=True)
    )


def scores_of(pairs: Sequence[Pair]) -> tuple[list[int], list[float]]:
    return [case["label"] for case, _ in pairs], [MAKE_MAP(record)[1] for _, record in pairs]


def assert_summary_is_of(summary: dict[str, Any], pairs: Sequence[Pair]) -> None:
    labels, scores = scores_of(pairs)
    assert summary["images"] == {"normal": labels.count(0), "anomalous": labels.count(1)}
    assert summary["image"]["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert summary["image"]["ap"] == pytest.approx(average_precision_score(labels, scores))
    truth, values = pixels_of(pairs)
    assert summary["pixel"]["auroc"] == pytest.approx(roc_auc_score(truth, values))
    assert summary["pixel"]["ap"] == pytest.approx(average_precision_score(truth, values))


def test_metrics_of_a_set_are_those_of_all_its_pixels_and_scores():
    pairs = make_pairs()
    summary = measured(pairs, threshold=0.5).summary()
    assert_summary_is_of(summary, pairs)
    for level, meter in (("pixel", PixelMetrics()), ("lesion", LesionMetrics()), ("overlap", OverlapMetrics(0.5))):
        for _, record in pairs:
            meter.update(MAKE_MAP(record)[0], MAKE_MAP(record)[0].new_tensor(record.mask)[None, None])
        assert summary[level] == pytest.approx(meter.compute())
    assert summary["unknown_masks"] == 0
    assert summary.keys() == {"images", "unknown_masks", "image", "pixel", "lesion", "overlap"}


def test_dice_and_iou_are_computed_at_a_given_threshold_only():
    assert "overlap" not in measured(make_pairs()).summary()


@pytest.mark.parametrize("threshold", [float("nan"), 1.5, -0.1, "0.5"])
def test_a_threshold_that_anomaly_values_cannot_reach_is_refused(threshold: Any):
    with pytest.raises(ValueError, match="dice_threshold must be a number from 0 to 1, as anomaly values are; got "):
        SetMeasurement(None, threshold=threshold)


def test_classes_have_their_own_metrics_and_a_mean():
    pairs = make_pairs(24, classes=("b", "a", "c"))
    summary = measured(pairs).summary()
    assert_summary_is_of(summary, pairs)
    assert list(summary["classes"]) == ["a", "b", "c"]
    for name, of_class in summary["classes"].items():
        assert_summary_is_of(of_class, [pair for pair in pairs if pair[0]["class"] == name])
    for level, metric in (("image", "auroc"), ("pixel", "pro"), ("lesion", "froc")):
        mean = np.mean([of_class[level][metric] for of_class in summary["classes"].values()])
        assert summary["class_mean"][level][metric] == pytest.approx(mean)
    assert summary["class_mean"]["image"]["classes"] == 3
    assert "error_bound" not in summary["class_mean"]["pixel"]


def test_a_class_that_defines_no_metric_is_left_out_of_the_mean():
    pairs = make_pairs(12, classes=("a", "b"))
    kept = [pair for pair in pairs if pair[0]["class"] == "a" or pair[0]["label"] == 0]
    summary = measured(kept).summary()
    assert "0 of 3 images" in summary["classes"]["b"]["image"]["undefined"]
    assert summary["class_mean"]["image"]["auroc"] == summary["classes"]["a"]["image"]["auroc"]
    assert summary["class_mean"]["image"]["classes"] == summary["class_mean"]["pixel"]["classes"] == 1


def test_repeated_images_count_and_are_also_left_out():
    pairs = make_pairs()
    copied = [({**pairs[index][0], "case_id": f"copy {index}"}, pairs[index][1]) for index in (1, 4)]
    meter = measured([*pairs, *copied], copies={"copy 1": "01", "copy 4": "04"})
    summary = meter.summary()
    assert_summary_is_of(summary, [*pairs, *copied])
    assert_summary_is_of(summary["without_duplicates"], pairs)
    assert {row["case_id"]: row["duplicate_of"] for row in meter.rows if row["duplicate_of"]} == {
        "copy 1": "01",
        "copy 4": "04",
    }


def test_an_anomalous_case_without_mask_counts_at_image_level_only():
    pairs = make_pairs(unknown=2)
    meter = measured(pairs)
    summary = meter.summary()
    assert summary["unknown_masks"] == 2
    assert_summary_is_of(summary, pairs)
    assert [row["anomalous_pixels"] for row in meter.rows[:4]] == [0, "", 0, ""]


def test_an_empty_mask_of_an_anomalous_image_is_named(caplog: pytest.LogCaptureFixture):
    (case, record), *_ = make_pairs(1)
    measured([({**case, "label": 1}, record), ({**case, "case_id": "fine"}, record)])
    assert caplog.messages == ["00: labeled anomalous, but its mask is empty; check the mask"]


def test_rows_say_what_was_measured_of_each_case():
    (case, record) = make_pairs(2)[1]
    (row,) = measured([({**case, "patient": "p1"}, record)]).rows
    assert row == {
        "case_id": "01",
        "class": "a",
        "patient": "p1",
        "label": 1,
        "anomaly_score": MAKE_MAP(record)[1],
        "image_probability": record.image_probability,
        "map_maximum": float(record.patch_map.max()),
        "anomalous_pixels": 16,
        "duplicate_of": "",
    }


def test_parts_add_up_to_the_whole_whatever_their_order():
    pairs = make_pairs(20, classes=("a", "b"), unknown=1)
    whole, shuffled = measured(pairs, threshold=0.5), random.Random(0).sample(pairs, len(pairs))
    joined = measured(shuffled[:3], threshold=0.5)
    for part in (shuffled[3:11], [], shuffled[11:]):
        joined.merge(measured(part, threshold=0.5))
    expected, summary = whole.summary(), joined.summary()
    for level in ("image", "pixel", "lesion", "overlap"):
        assert summary[level] == pytest.approx(expected[level], abs=1e-12)
        for name in "ab":
            assert summary["classes"][name][level] == pytest.approx(expected["classes"][name][level], abs=1e-12)
    assert summary["images"] == expected["images"]


# what a set cannot say


@pytest.mark.parametrize(
    ("labels", "masks", "reasons"),
    [
        ([0, 1], [None, "m.png"], {}),
        ([1, 1], ["m.png", None], {"image": "2 of 2 images are anomalous: normal and anomalous images are needed"}),
        ([0, 1], [None, None], {"pixel": "the set has no masks"}),
        (
            [0, 0],
            [None, None],
            {
                "image": "0 of 2 images are anomalous: normal and anomalous images are needed",
                "pixel": "the set has no anomalous images, and so no anomalous pixels",
            },
        ),
    ],
)
def test_undefined_metrics_of_a_set_are_known_beforehand(labels: list[int], masks: list[str | None], reasons: dict):
    cases = [{"label": label, "mask": mask} for label, mask in zip(labels, masks, strict=True)]
    assert undefined_metrics(cases) == reasons


def test_what_is_undefined_says_why_instead_of_a_number():
    summary = measured([pair for pair in make_pairs() if pair[0]["label"] == 0]).summary()
    assert summary["image"] == {"undefined": "image metrics are undefined: 0 of 6 images are anomalous"}
    assert "0 anomalous" in summary["pixel"]["undefined"]
    assert "no lesion" in summary["lesion"]["undefined"]
    empty = SetMeasurement(MAKE_MAP)
    assert all("undefined" in empty.summary()[level] for level in ("image", "pixel", "lesion"))
    assert empty.error_bound == 0


# finer bins


@pytest.fixture
def wide() -> list[Pair]:
    """Return cases of two classes whose scores span many magnitudes, so that few bins do not separate them."""
    return [
        (case, CaseRecord((record.patch_map ** (8 if case["class"] == "a" else 1.5)), 0.5, record.mask))
        for case, record in make_pairs(24, classes=("a", "b"))
    ]


def test_pixels_are_counted_again_until_the_bound_is_kept(wide: list[Pair], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(histograms, "_PENDING", 0)
    meter = measured(wide, max_bins=64)
    assert meter.error_bound > 100 * ERROR_BOUND
    passes: list[int] = []
    meter.refine(lambda: passes.append(1) or iter(wide))
    assert 1 <= len(passes) < 12
    assert meter.error_bound <= ERROR_BOUND
    summary = meter.summary()
    assert summary["pixel"]["error_bound"] <= ERROR_BOUND
    for name, part in (("", summary), *summary["classes"].items()):
        truth, values = pixels_of([pair for pair in wide if name in ("", pair[0]["class"])])
        assert part["pixel"]["auroc"] == pytest.approx(roc_auc_score(truth, values), abs=ERROR_BOUND)
        assert part["pixel"]["ap"] == pytest.approx(average_precision_score(truth, values), abs=ERROR_BOUND)
        assert part["pixel"]["error_bound"] <= ERROR_BOUND


def test_where_bins_would_take_too_much_memory_the_bound_that_was_reached_is_reported(
    wide: list[Pair], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(histograms, "_PENDING", 0)
    monkeypatch.setattr(measurement, "_MOST_BINS", 2 * 1024)
    meter = measured(wide, max_bins=64)
    meter.refine(lambda: iter(wide))
    assert meter.max_bins == 1024
    summary = meter.summary()
    bounds = [part["pixel"]["error_bound"] for part in (summary, *summary["classes"].values())]
    assert max(bounds) == meter.error_bound > ERROR_BOUND


def test_exact_metrics_are_not_counted_again():
    meter = measured(make_pairs())
    meter.refine(lambda: pytest.fail("nothing is to be done"))
    assert meter.summary()["pixel"]["error_bound"] == 0


# intervals


def intervals_of(meter: SetMeasurement, pairs: Sequence[Pair], **keywords: Any) -> dict[str, Any]:
    edges = meter.interval_edges()
    counts = {} if edges is None else {case["case_id"]: meter.case_counts(record, edges) for case, record in pairs}
    return meter.intervals(counts, **{"resamples": 200, "seed": 0, **keywords})


def test_intervals_hold_the_metrics_and_do_not_depend_on_the_order_of_cases():
    pairs = make_pairs(40, unknown=2)
    meter = measured(pairs)
    summary, intervals = meter.summary(), intervals_of(meter, pairs)
    assert intervals["drawn"] == {"by": "case", "resamples": 200, "seed": 0}
    for level, metric in (("image", "auroc"), ("image", "ap"), ("pixel", "auroc"), ("pixel", "ap"), ("pixel", "pro")):
        interval = intervals[level][metric]
        assert 0 <= interval["low"] < summary[level][metric] < interval["high"] <= 1
    labels, scores = scores_of(pairs)
    expected = delong(scores, labels)
    assert intervals["image"]["auroc"] == pytest.approx(
        {"low": expected.low, "high": expected.high, "method": "DeLong"}
    )
    again = intervals_of(measured(pairs[::-1]), pairs[::-1])
    assert again["pixel"]["ap"] == pytest.approx(intervals["pixel"]["ap"])
    assert intervals_of(meter, pairs, seed=1)["pixel"] != intervals["pixel"]


def test_patients_are_drawn_where_all_are_known():
    pairs = [({**case, "patient": f"p{index % 4}"}, record) for index, (case, record) in enumerate(make_pairs(40))]
    meter = measured(pairs)
    intervals = intervals_of(meter, pairs)
    assert intervals["drawn"]["by"] == "patient"
    assert "method" not in intervals["image"]["auroc"]
    one_unknown = [({**pairs[0][0], "patient": ""}, pairs[0][1]), *pairs[1:]]
    assert intervals_of(measured(one_unknown), one_unknown)["drawn"]["by"] == "case"
    # Copies of one case that belong to one patient are one observation: the interval is that of the case alone.
    tenfold = [
        ({**case, "case_id": f"{case['case_id']}-{copy}", "patient": case["case_id"]}, record)
        for case, record in make_pairs(12)
        for copy in range(10)
    ]
    by_patient = intervals_of(measured(tenfold), tenfold)["pixel"]["auroc"]
    single = intervals_of(measured(make_pairs(12)), make_pairs(12))["pixel"]["auroc"]
    assert by_patient == pytest.approx(single, abs=0.02)


def test_intervals_of_too_few_cases_state_why_they_are_undefined():
    pairs = make_pairs(2)
    meter = measured(pairs)
    normal_twice = next(seed for seed in range(99) if bootstrap_weights(2, resamples=1, seed=seed)[0, 0] == 2)
    intervals = intervals_of(meter, pairs, resamples=1, seed=normal_twice)
    assert "undefined" in intervals["image"]["auroc"]
    assert "all 1 resamples" in intervals["image"]["ap"]["undefined"]
    assert "all 1 resamples" in intervals["pixel"]["undefined"]
    of_one_kind = [pair for pair in make_pairs() if pair[0]["label"] == 1]
    assert intervals_of(measured(of_one_kind), of_one_kind).keys() == {"drawn", "pixel"}
    without_masks = [(case, CaseRecord(record.patch_map, 0.5, None)) for case, record in make_pairs()]
    assert intervals_of(measured(without_masks), without_masks).keys() == {"drawn", "image"}


def test_resamples_without_anomaly_are_left_out_and_counted():
    pairs = [pair for pair in make_pairs(12) if pair[0]["label"] == 0 or pair[0]["case_id"] == "01"]
    intervals = intervals_of(measured(pairs), pairs)
    assert 0 < intervals["pixel"]["auroc"]["undefined_resamples"] < 200


def test_logging_stays_silent_where_nothing_is_wrong(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    measured(make_pairs()).summary()
    assert caplog.messages == []
