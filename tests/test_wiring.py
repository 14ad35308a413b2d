"""Every way to run a bundle uses the components that its config declares. docs/configs.md has the table."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser, run as run_bundle
from PIL import Image

import mrad_med
from mrad_med import AnomalyDetector, BundleWorkflow, load_memory_bank, merge_memory_banks
from mrad_med.bundle import read_bundle
from mrad_med.cli import main

pytestmark = pytest.mark.usefixtures("embedded_is_loaded")

ROOT = Path(__file__).parent.parent
SIZE = 70
SMALL = ["--image_size", str(SIZE), "--device", "cpu"]
BRIGHTER = {
    "_target_": "Compose",
    "transforms": [
        "$mrad_med.build_preprocessing(@clip.card, @view, with_mask=@with_mask, resize_mask=@resize_mask)",
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": None, "maxv": None, "factor": 0.5},
    ],
}
IMAGE_ONLY = {"_target_": "mrad_med.AnomalyInferer", "image_weight": 1.0}
HALVED = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "mrad_med.build_postprocessing", "preprocessing": "@preprocessing"},
        {"_target_": "ScaleIntensityd", "keys": "anomaly_map", "minv": None, "maxv": None, "factor": -0.5},
    ],
}
EDITS = {"preprocessing": BRIGHTER, "inferer": IMAGE_ONLY, "postprocessing": HALVED}


def copy_bundle(folder: Path, **edits: Any) -> Path:
    """Copy the bundle of MRAD-TF with its bank, and edit its config for inference."""
    for name in ("mrad_tf", "memory_banks"):
        shutil.copytree(ROOT / "bundles" / name, folder / name, ignore=shutil.ignore_patterns("eval"))
    file = folder / "mrad_tf" / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **edits}), encoding="utf-8")
    return folder / "mrad_tf"


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a labeled folder of four images, half of them with a bright square."""
    folder = tmp_path_factory.mktemp("set")
    random = np.random.RandomState(0)
    for index in range(4):
        kind, pixels = ("normal", "defect")[index % 2], random.randint(60, 120, (64, 80, 3)).astype(np.uint8)
        mask = np.zeros((64, 80), np.uint8)
        if index % 2:
            pixels[20:40, 30:60], mask[20:40, 30:60] = 255, 255
            (folder / "mask").mkdir(exist_ok=True)
            Image.fromarray(mask).save(folder / "mask" / f"{index}.png")
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{index}.png")
    return folder


def tables(folder: Path, name: str) -> dict[str, float]:
    with (folder / name).open(newline="", encoding="utf-8") as stream:
        return {Path(row["case_id"]).name: float(row["anomaly_score"]) for row in csv.DictReader(stream)}


def detected(folder: Path) -> tuple[dict[str, float], np.ndarray]:
    """Return the scores and one map of a folder of results."""
    return tables(folder, "scores.csv"), tifffile.imread(folder / "maps" / "1.tiff")


def by_detect(bundle: Path, images: Path, out: Path) -> tuple[dict[str, float], np.ndarray]:
    assert main(["detect", str(images), "--bundle", str(bundle), "--out", str(out), *SMALL]) == 0
    return detected(out)


def by_run(bundle: Path, images: Path, out: Path) -> tuple[dict[str, float], np.ndarray]:
    assert main(["run", str(bundle), "--dataset_dir", str(images), "--output_dir", str(out), *SMALL]) == 0
    return detected(out)


def by_monai(bundle: Path, images: Path, out: Path) -> tuple[dict[str, float], np.ndarray]:
    values = {"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(out)}
    run_bundle(config_file=str(bundle / "configs" / "inference.json"), **values, image_size=SIZE, device="cpu")
    return detected(out)


def by_detector(bundle: Path, images: Path, _: Path) -> tuple[dict[str, float], np.ndarray]:
    results = AnomalyDetector.from_bundle(bundle, image_size=SIZE, device="cpu").detect(images, progress=False)
    return results.scores, next(case.anomaly_map for case in results if case.case_id == "1")


def by_evaluate(bundle: Path, labeled: Path, out: Path) -> dict[str, float]:
    words = ["--dataset", "folder", "--dataset_dir", str(labeled), "--output_dir", str(out), "--resamples", "0"]
    assert main(["evaluate", str(bundle), *words, *SMALL]) == 0
    return tables(out, "cases.csv")


def by_benchmark(bundle: Path, labeled: Path, out: Path) -> dict[str, float]:
    assert main(["benchmark", f"folder={labeled}", "--bundles", str(bundle), "--out", str(out), *SMALL]) == 0
    return tables(out / "folder" / bundle.name, "cases.csv")


DETECTING = [by_detect, by_run, by_monai, by_detector]
MEASURING = [by_evaluate, by_benchmark]


@pytest.fixture(scope="module")
def plain(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], np.ndarray]:
    """Return scores and a map with the bundle as it is."""
    return by_detector(ROOT / "bundles" / "mrad_tf", labeled / "defect", tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("key", EDITS)
def test_each_entry_that_scores_files_runs_what_the_config_declares(
    key: str, labeled: Path, plain: tuple[dict[str, float], np.ndarray], tmp_path: Path
):
    bundle = copy_bundle(tmp_path, **{key: EDITS[key]})
    outcomes = [by(bundle, labeled / "defect", tmp_path / by.__name__) for by in DETECTING]
    scores, anomaly_map = outcomes[0]
    for other_scores, other_map in outcomes[1:]:
        assert other_scores == pytest.approx(scores, abs=1e-6)
        np.testing.assert_allclose(other_map, anomaly_map, atol=1e-6)
    changes_score, changes_map = key != "postprocessing", key != "inferer"
    assert (scores != pytest.approx(plain[0], abs=1e-4)) == changes_score
    assert (np.abs(anomaly_map - plain[1]).max() > 1e-3) == changes_map


@pytest.mark.parametrize("by", MEASURING)
def test_each_entry_that_measures_runs_what_the_config_declares(
    by: Callable[..., dict[str, float]], labeled: Path, tmp_path: Path
):
    for key in ("preprocessing", "inferer"):
        bundle = copy_bundle(tmp_path / key, **{key: EDITS[key]})
        scores = by(bundle, labeled, tmp_path / key / "out")
        expected = by_detector(bundle, labeled / "defect", tmp_path)[0]
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_an_exported_network_has_the_inferer_of_the_config(tmp_path: Path):
    bundle = copy_bundle(tmp_path, inferer=IMAGE_ONLY)
    detector = AnomalyDetector.from_bundle(bundle, image_size=SIZE, device="cpu")
    assert main(["export", str(bundle), "--out", str(tmp_path / "network.ts"), *SMALL]) == 0
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    _, score = torch.jit.load(tmp_path / "network.ts")(images)
    probability = detector.network.image_probability(detector.network.encode(images))
    torch.testing.assert_close(score, probability, atol=1e-5, rtol=0)


def test_a_bundle_run_resumes_and_writes_the_tables_again(labeled: Path, tmp_path: Path, monkeypatch):
    bundle, out = ROOT / "bundles" / "mrad_tf", tmp_path / "out"
    first = by_run(bundle, labeled / "defect", out)
    (out / "scores.csv").unlink()
    monkeypatch.setattr(mrad_med.networks.CLIPImageEncoder, "forward", None)  # nothing may be scored again
    again = by_run(bundle, labeled / "defect", out)
    assert again[0] == first[0]


def test_a_copied_bundle_uses_its_own_bank(labeled: Path, tmp_path: Path):
    bundle = copy_bundle(tmp_path)
    file = tmp_path / "memory_banks" / "embedded_industrial.safetensors"
    shipped = load_memory_bank(file)
    other = merge_memory_banks([shipped, shipped])
    other.save(file)
    assert other.sha256 != shipped.sha256
    for by in (by_detect, by_run):
        by(bundle, labeled / "defect", tmp_path / by.__name__)
        record = json.loads((tmp_path / by.__name__ / "run.json").read_text(encoding="utf-8"))
        assert record["memory_bank"]["sha256"] == other.sha256
    by_evaluate(bundle, labeled, tmp_path / "evaluated")
    record = json.loads((tmp_path / "evaluated" / "metrics.json").read_text(encoding="utf-8"))
    assert record["memory_bank"]["sha256"] == other.sha256
    assert AnomalyDetector.from_bundle(bundle, device="cpu").bank.sha256 == other.sha256
    workflow = BundleWorkflow(str(bundle / "configs" / "inference.json"), dataset_dir=str(labeled), device="cpu")
    assert workflow.parser.get_parsed_content("bank").sha256 == other.sha256


def test_paths_that_look_like_expressions_are_paths(labeled: Path, tmp_path: Path):
    for name in ("$1 + 1", "@bank", "%a"):
        folder = tmp_path / name
        shutil.copytree(labeled / "defect", folder)
        by_detect(ROOT / "bundles" / "mrad_tf", folder, tmp_path / "$out" / name)


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (None, "strict", r"strict is now strict_geometry \(the slices of a series\) or strict_dataset"),
        (None, "options", "options is now view"),
        (None, "pictures", "pictures is now view"),
        (None, "result_settings#write", "result_settings#write is now writer"),
        ("evaluate", "threshold", "threshold is now dice_threshold"),
        ("evaluate", "dataset", "dataset is now dataset_name"),
    ],
)
def test_an_old_name_of_a_value_is_refused_with_the_new_one(config: str | None, name: str, message: str):
    with pytest.raises(KeyError, match=message):
        read_bundle("mrad_tf", config=config, overrides={name: 1})
    files = [str(ROOT / "bundles/mrad_tf/configs" / f"{item}.json") for item in ("inference", config) if item]
    with pytest.raises(KeyError, match=message):
        BundleWorkflow(files, **{name: 1})


def test_a_config_of_an_older_version_is_refused(tmp_path: Path):
    bundle = copy_bundle(tmp_path, options={"window": "lung"})
    with pytest.raises(ValueError, match=r"for an older version: options is now view\. Copy the bundle"):
        AnomalyDetector.from_bundle(bundle)
    file = bundle / "configs" / "evaluate.json"
    evaluate = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**evaluate, "dataset": "kvasir"}), encoding="utf-8")
    shutil.copy(ROOT / "bundles/mrad_tf/configs/inference.json", bundle / "configs" / "inference.json")
    with pytest.raises(ValueError, match="dataset is now dataset_name"):
        read_bundle(bundle, config="evaluate")


def test_the_page_on_configs_names_every_key_of_the_bundles():
    page = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    for bundle in ("mrad_tf", "mrad_ft", "mrad_clip"):
        for config in ("inference", "evaluate"):
            keys = ConfigParser.load_config_file(str(ROOT / "bundles" / bundle / "configs" / f"{config}.json"))
            assert [key for key in keys if f"`{key}`" not in page] == []
