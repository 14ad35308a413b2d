"""Exact metrics against scikit-learn, brute force, and the literature's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from mrad_med import PixelMetrics
from mrad_med.distributed import gather_parts
from mrad_med.metrics import ImageMonaiMetric, PixelMonaiMetric, histogram as histograms, image_metrics, pixel_metrics
from mrad_med.metrics.pixel import region_weights
from tests.conftest import run_in_two_processes

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"
BOUNDED = ("auroc", "ap", "f1_max", "pro", "tpr_at_fpr_0.01", "tpr_at_fpr_0.05")


@pytest.fixture
def binned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scores go into bins at once, as they do when there are millions."""
    monkeypatch.setattr(histograms, "_PENDING", 0)


@pytest.fixture(params=["kept", "binned"])
def kept_or_binned(request: pytest.FixtureRequest) -> None:
    """Measure few scores, which are kept as they are, and as if there were many."""
    if request.param == "binned":
        request.getfixturevalue("binned")


def blobs(seed: int = 0, count: int = 4, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    masks = np.zeros((count, side, side), bool)
    for mask in masks[:-1]:  # the last image is normal
        for _ in range(2):
            row, column = random.randint(4, side - 10, 2)
            mask[row : row + random.randint(2, 9), column : column + random.randint(2, 9)] = True
    maps = random.uniform(0, 1, masks.shape) + 0.4 * masks
    return (maps / 1.4).astype(np.float32), masks


def add(metrics: PixelMetrics, maps: Iterable[np.ndarray], masks: Iterable[np.ndarray]) -> PixelMetrics:
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.update(torch.from_numpy(anomaly_map)[None, None], torch.from_numpy(mask)[None, None].float())
    return metrics


def compute(maps: np.ndarray, masks: np.ndarray, **keywords) -> dict[str, float]:
    return add(PixelMetrics(**keywords), maps, masks).compute()


def test_function_and_accumulator_agree_over_batches():
    maps, masks = blobs()
    whole = pixel_metrics(torch.from_numpy(maps)[:, None], torch.from_numpy(masks)[:, None].float())
    assert whole == compute(maps, masks)
    with pytest.raises(ValueError, match="pixel metrics are undefined: 0 anomalous and 64 normal pixels"):
        pixel_metrics(torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def brute_force_pro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Return the area under the PRO curve with one relabeled pass per distinct score."""
    regions = []
    for index, mask in enumerate(masks):
        labeled, count = label(mask, np.ones((3, 3)))
        regions += [(index, labeled == number) for number in range(1, count + 1)]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        rates.append((above & ~masks).sum() / (~masks).sum())
        overlaps.append(float(np.mean([above[index][region].mean() for index, region in regions])))
    rates, overlaps = np.array(rates), np.array(overlaps)
    inside = rates < limit
    x = np.append(rates[inside], limit)
    y = np.append(overlaps[inside], np.interp(limit, rates, overlaps))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


def truth_of(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Return the bounded metrics by scikit-learn and brute force."""
    truth, scores = masks.ravel(), maps.ravel().astype(float)
    precision, recall, _ = precision_recall_curve(truth, scores)
    rates, sensitivities, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(truth, scores),
        "ap": average_precision_score(truth, scores),
        "f1_max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        "pro": brute_force_pro(maps, masks, 0.3),
        "tpr_at_fpr_0.01": sensitivities[rates <= 0.01].max(),
        "tpr_at_fpr_0.05": sensitivities[rates <= 0.05].max(),
    }


RESHAPED = {
    "unit range": lambda maps: maps,
    "narrow range": lambda maps: 0.36 + 0.01 * maps,
    "saturated": lambda maps: 1 / (1 + np.exp(-80 * (maps - 0.5))),
    "tied": lambda maps: np.round(maps * 8) / 8,
    "constant": lambda maps: np.full_like(maps, 0.4),
}

WIDE = {
    "unit range": lambda maps: maps,
    "both signs": lambda maps: np.where(np.abs(maps - 0.4) < 0.1, np.copysign(0.0, maps - 0.4), maps - 0.4),
    "denormal": lambda maps: maps * 1e-41 - 3e-42,
    "huge": lambda maps: (maps - 0.5) * 6e38,
    "many magnitudes": lambda maps: 10 ** (80 * maps - 42),
    "saturated": lambda maps: 1 / (1 + np.exp(-80 * (maps - 0.5))),
}


@pytest.mark.parametrize("shape", RESHAPED)
def test_pixel_metrics_equal_sklearn_and_brute_force(shape: str):
    maps, masks = blobs()
    maps = RESHAPED[shape](maps).astype(np.float32)
    measured = compute(maps, masks)
    assert measured["error_bound"] == 0
    for name, value in truth_of(maps, masks).items():
        assert measured[name] == pytest.approx(value, abs=1e-6 if name == "pro" else 1e-9)


@pytest.mark.parametrize("shape", RESHAPED)
def test_pixel_metrics_of_many_pixels_equal_sklearn_and_brute_force(shape: str, binned: None):
    maps, masks = blobs(seed=3, count=5)
    maps = RESHAPED[shape](maps).astype(np.float32)
    measured = compute(maps, masks)
    assert measured["error_bound"] == 0 if shape in ("narrow range", "constant") else measured["error_bound"] < 1e-3
    for name, value in truth_of(maps, masks).items():
        tolerance = {"auroc": 1e-5, "ap": 1e-5, "pro": 1e-4}.get(name, measured["error_bound"] + 1e-9)
        assert measured[name] == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("shape", WIDE)
@pytest.mark.parametrize("max_bins", [64, 1024, 4096])
def test_no_metric_is_off_by_more_than_the_bound(shape: str, max_bins: int, binned: None):
    for seed in range(2):
        maps, masks = blobs(seed=seed, count=3, side=32)
        maps = WIDE[shape](maps.astype(float)).astype(np.float32)
        measured = compute(maps, masks, max_bins=max_bins)
        assert 0 < measured["error_bound"] < 1
        for name, value in truth_of(maps, masks).items():
            assert abs(measured[name] - value) <= measured["error_bound"] + 1e-6


def test_another_pass_in_finer_bins_comes_closer(binned: None):
    maps, masks = blobs(seed=4, count=6)
    first = add(PixelMetrics(max_bins=512, pro_limit=0.2, false_positive_rates=[0.1]), maps, masks)
    passes = [first]
    for _ in range(3):
        passes.append(add(passes[-1].refined(), maps, masks))
    bounds = [item.compute()["error_bound"] for item in passes]
    assert sorted(bounds, reverse=True) == bounds
    assert bounds[-1] < bounds[0] / 8
    last = passes[-1].compute()
    assert last["pro"] == pytest.approx(brute_force_pro(maps, masks, 0.2), abs=last["error_bound"] + 1e-6)
    assert "tpr_at_fpr_0.1" in last


@pytest.mark.parametrize("max_bins", [512, 2**20])
def test_merged_parts_are_one_pass(max_bins: int, kept_or_binned: None):
    maps, masks = blobs(seed=5, count=6)
    parts = [add(PixelMetrics(max_bins=max_bins), maps[part::3], masks[part::3]) for part in range(3)]
    merged = PixelMetrics(max_bins=max_bins)
    for part in parts[::-1]:
        merged.merge(part)
    given, expected = merged.compute(), compute(maps, masks, max_bins=max_bins)
    for name in BOUNDED:
        allowed = given["error_bound"] + expected["error_bound"] + 1e-9
        assert given[name] == pytest.approx(expected[name], abs=allowed)


def test_merged_parts_are_one_pass_to_the_last_bit_where_bins_are_exact(binned: None):
    maps, masks = blobs(seed=5)
    maps = (0.36 + 0.01 * maps).astype(np.float32)
    first, second = (add(PixelMetrics(), maps[part::2], masks[part::2]) for part in range(2))
    second.merge(first)
    assert second.compute() == pytest.approx(compute(maps, masks), abs=1e-12)
    assert second.compute()["error_bound"] == 0


def test_the_order_of_images_does_not_matter(kept_or_binned: None):
    maps, masks = blobs(seed=6)
    maps = (0.36 + 0.01 * maps).astype(np.float32)
    assert compute(maps[::-1], masks[::-1]) == pytest.approx(compute(maps, masks), abs=1e-12)


def test_regions_touch_at_corners_and_share_one_weight():
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = mask[1, 1] = True  # one region by its corner
    mask[3, 2:6] = True
    inside, weights = region_weights(mask)
    assert inside.tolist() == [0, 7, 20, 21, 22, 23]
    assert weights.tolist() == [0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert [len(part) for part in region_weights(np.zeros((4, 6), bool))] == [0, 0]


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro_limit_is_interpolated(limit: float):
    maps, masks = blobs(seed=1, count=3, side=24)
    assert compute(maps, masks, pro_limit=limit)["pro"] == pytest.approx(brute_force_pro(maps, masks, limit), abs=1e-6)


def test_published_numbers_are_reproduced():
    golden = np.load(GOLDEN)
    measured = compute(golden["metric_maps"], golden["metric_masks"] > 0)
    assert measured["auroc"] == pytest.approx(float(golden["metric_auroc"]), abs=1e-6)
    assert measured["ap"] == pytest.approx(float(golden["metric_ap"]), abs=1e-6)
    assert measured["f1_max"] == pytest.approx(float(golden["metric_f1max"]), abs=1e-6)
    assert measured["pro_200"] == pytest.approx(float(golden["metric_aupro_200"]), abs=1e-6)


def test_perfect_maps_score_one():
    _, masks = blobs()
    measured = compute(masks.astype(np.float32), masks)
    assert [measured[name] for name in ("auroc", "ap", "f1_max", "pro")] == pytest.approx([1, 1, 1, 1])
    assert measured["f1_max_threshold"] == 1


@pytest.mark.parametrize(
    "rescale",
    [
        lambda maps: maps**8,
        lambda maps: maps**40,
        lambda maps: 1 / (1 + np.exp(-80 * (maps - 0.9))),
        lambda maps: 0.30 + 0.01 * maps,
    ],
    ids=["power 8", "power 40", "sigmoid", "hundredth"],
)
def test_rescaling_scores_monotonically_changes_no_metric(rescale: Callable, kept_or_binned: None):
    maps, masks = blobs(seed=2)
    plain, rescaled = compute(maps, masks), compute(rescale(maps.astype(float)).astype(np.float32), masks)
    for name in ("auroc", "ap", "pro"):
        assert rescaled[name] == pytest.approx(plain[name], abs=1e-4)
    assert rescaled["f1_max"] == pytest.approx(plain["f1_max"], abs=1e-4 + rescaled["error_bound"])


def test_rescaling_scores_changes_the_200_threshold_pro():
    maps, masks = blobs(seed=2)
    assert abs(compute(maps**8, masks)["pro_200"] - compute(maps, masks)["pro_200"]) > 1e-3


def test_the_metrics_of_the_published_maps_are_within_the_bound_in_bins(binned: None):
    golden = np.load(GOLDEN)
    measured = compute(golden["metric_maps"], golden["metric_masks"] > 0)
    for name, published in (("auroc", "auroc"), ("ap", "ap"), ("f1_max", "f1max")):
        assert measured[name] == pytest.approx(float(golden[f"metric_{published}"]), abs=measured["error_bound"] + 1e-6)


def test_batches_do_not_matter():
    maps, masks = (torch.from_numpy(item.astype(np.float32))[:, None] for item in blobs())
    whole = PixelMetrics()
    whole.update(maps, masks)
    assert whole.compute() == compute(*blobs())


@pytest.mark.parametrize("steps", [12, 10**9])
def test_image_metrics_equal_sklearn(steps: int):
    random = np.random.RandomState(0)
    labels, scores = random.randint(0, 2, 60), random.randint(0, steps, 60) / steps
    measured = image_metrics(torch.from_numpy(scores), torch.from_numpy(labels), specificities=[0.9, 0.5])
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    rates, sensitivities, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert measured == pytest.approx(
        {
            "auroc": roc_auc_score(labels, scores),
            "ap": average_precision_score(labels, scores),
            "f1_max": f1.max(),
            "f1_max_threshold": thresholds[f1.argmax()],
            "sensitivity_at_specificity_0.9": sensitivities[1 - rates >= 0.9].max(),
            "sensitivity_at_specificity_0.5": sensitivities[1 - rates >= 0.5].max(),
        },
        abs=1e-12,
    )


def test_a_specificity_is_reached_at_exactly_its_share():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    labels = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])  # one of ten normal ones is above both anomalous ones
    measured = image_metrics(scores, labels)
    assert measured["sensitivity_at_specificity_0.9"] == 1
    assert measured["sensitivity_at_specificity_0.95"] == 0.5


def test_undefined_metrics_say_so():
    maps, masks = blobs()
    with pytest.raises(ValueError, match="undefined: 0 anomalous"):
        compute(maps, np.zeros_like(masks))
    with pytest.raises(ValueError, match="0 normal pixels"):
        compute(maps, np.ones_like(masks))
    with pytest.raises(ValueError, match="undefined: 0 anomalous and 0 normal"):
        PixelMetrics().compute()
    with pytest.raises(ValueError, match="3 of 3 images are anomalous"):
        image_metrics(torch.rand(3), torch.ones(3, dtype=torch.int64))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        PixelMetrics().update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    for value in (float("nan"), float("inf"), float("-inf")):
        maps = torch.zeros(2, 1, 4, 4)
        maps[1, 0, 2, 3] = value
        with pytest.raises(ValueError, match="an anomaly map has NaN or infinite values"):
            PixelMetrics().update(maps, torch.zeros(2, 1, 4, 4))
        with pytest.raises(ValueError, match="an anomaly score is NaN or infinite"):
            image_metrics(torch.tensor([0.0, value]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="3 scores and 2 labels"):
        image_metrics(torch.rand(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="pro_limit"):
        PixelMetrics(pro_limit=0)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got 1.5"):
        PixelMetrics(false_positive_rates=[1.5])


def make_cases(count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Return maps that a network passes through, with masks, labels and scores; one mask is not known."""
    maps, masks = blobs(seed=7, count=count, side=24)
    cases = [
        {"image": MetaTensor(anomaly_map[None]), "label": torch.from_numpy(mask[None]).float()}
        for anomaly_map, mask in zip(maps, masks, strict=True)
    ]
    cases[1]["label"][:] = torch.nan
    return cases


def make_evaluator(cases: list[dict[str, torch.Tensor]], name: str, **keywords):
    """Return an engine as a bundle's configuration describes it."""
    parser = ConfigParser(
        {
            "score": "$lambda out: ([x['pred'].max() for x in out], [int(x['pred'].sum()) % 2 for x in out])",
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "cpu",
                "val_data_loader": {"_target_": "DataLoader", "dataset": cases, "batch_size": 2},
                "network": {"_target_": "torch.nn.Identity"},
                "key_val_metric": {
                    "pixel": {
                        "_target_": "monai.handlers.IgniteMetricHandler",
                        "metric_fn": {"_target_": "mrad_med.metrics.PixelMonaiMetric", "name": name, **keywords},
                        "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                    }
                },
                "additional_metrics": {
                    "image": {
                        "_target_": "monai.handlers.IgniteMetricHandler",
                        "metric_fn": {"_target_": "mrad_med.metrics.ImageMonaiMetric"},
                        "output_transform": "@score",
                    }
                },
            },
            "imports": ["$import monai", "$import mrad_med"],
        }
    )
    return parser.get_parsed_content("evaluator")


@pytest.mark.parametrize(("name", "stride"), [("auroc", 1), ("pro", 1), ("ap", 3)])
def test_an_engine_of_a_configuration_measures_known_masks_and_all_images(name: str, stride: int):
    cases = make_cases()
    evaluator = make_evaluator(cases, name, stride=stride)
    known = [case for case in cases if not case["label"].isnan().any()]
    maps, masks = (np.stack([case[key][0, ::stride, ::stride].numpy() for case in known]) for key in ("image", "label"))
    scores, labels = zip(*((float(case["image"].max()), int(case["image"].sum()) % 2) for case in cases), strict=True)
    for _ in range(2):  # the second run starts with an empty metric
        evaluator.run()
        assert evaluator.state.metrics["pixel"] == pytest.approx(truth_of(maps, masks > 0.5)[name], abs=1e-6)
        assert evaluator.state.metrics["image"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


@pytest.mark.parametrize("metric", [PixelMonaiMetric, ImageMonaiMetric])
def test_a_name_that_no_metric_has_is_refused_before_anything_is_measured(metric: type):
    with pytest.raises(ValueError, match="there is no metric 'auc': choose one of auroc, ap, f1_max"):
        metric("auc")


def test_an_undefined_metric_says_so():
    metric = PixelMonaiMetric()
    metric(torch.rand(2, 1, 4, 4), torch.full((2, 1, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="undefined: 0 anomalous and 0 normal pixels"):
        metric.aggregate()
    with pytest.raises(ValueError, match="0 of 0 images are anomalous"):
        ImageMonaiMetric().aggregate()


def test_scores_are_compared_in_double_precision():
    metric = ImageMonaiMetric()
    metric([0.5, 0.5 + 1e-12], [0, 1])
    assert metric.aggregate() == 1


def test_one_process_gathers_its_own_part():
    part = object()
    assert gather_parts(part) == [part]


def measure_in_parallel(rank: int, folder: Path) -> None:
    """Measure every second case in one of two processes."""
    dist.init_process_group("gloo")
    torch.save(measure_part(rank, 2), folder / f"process_{rank}.pt")
    dist.destroy_process_group()


def measure_part(rank: int, processes: int) -> dict[str, float]:
    values = {}
    for name in ("auroc", "ap", "pro", "tpr_at_fpr_0.05"):
        metric = PixelMonaiMetric(name)
        for case in make_cases(5)[rank::processes]:
            metric(case["image"][None], case["label"][None])
        values[name] = metric.aggregate()
    metric = ImageMonaiMetric()
    metric(torch.tensor([0.1, 0.4, 0.35, 0.8, 0.35])[rank::processes], torch.tensor([0, 0, 1, 1, 0])[rank::processes])
    return {**values, "image": metric.aggregate()}


def test_two_processes_measure_what_one_does(tmp_path: Path):
    run_in_two_processes(measure_in_parallel, tmp_path)
    first, second = (torch.load(tmp_path / f"process_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second == pytest.approx(measure_part(0, 1), abs=1e-12)
