"""`monai.bundle.load`, and bundles that are run from elsewhere."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load, run as run_bundle
from PIL import Image

import mrad_med
from mrad_med import MRAD, AnomalyDetector, load_memory_bank, merge_memory_banks
from mrad_med.bundle import root_of_config
from mrad_med.cli import main

pytestmark = pytest.mark.usefixtures("embedded_is_loaded")

BUNDLES = Path(__file__).parent.parent / "bundles"
# Variables of the head in models/model.pt, and of the whole network with the embedded backbone.
COPIED = {"mrad_tf": (1, 115), "mrad_ft": (8, 122), "mrad_clip": (19, 210)}
each_bundle = pytest.mark.parametrize("bundle", COPIED)


def images(size: int = 70) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_bundles(folder: Path, *names: str) -> Path:
    for name in (*names, "memory_banks"):
        shutil.copytree(BUNDLES / name, folder / name, ignore=shutil.ignore_patterns("eval"))
    return folder


def maps_and_probabilities(network: MRAD) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return network(images()), network.image_probability(network.encode(images()))


@each_bundle
def test_monai_loads_the_network_that_ships_from_any_directory(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    before = files_below(BUNDLES)
    with caplog.at_level(logging.INFO, "monai.networks.utils"):
        network = load(bundle, bundle_dir=BUNDLES, device="cpu")
    copied, variables = COPIED[bundle]
    assert f"'dst' model updated: {copied} of {variables} variables." in caplog.text
    shipped = AnomalyDetector.from_bundle(BUNDLES / bundle, device="cpu").network
    for given, expected in zip(maps_and_probabilities(network), maps_and_probabilities(shipped), strict=True):
        torch.testing.assert_close(given, expected, atol=1e-7, rtol=0)
    assert files_below(BUNDLES) == before
    assert list(tmp_path.iterdir()) == []


def test_a_copied_bundle_loads_its_own_bank_and_weights(tmp_path: Path):
    folder = copy_bundles(tmp_path, "mrad_ft")
    shipped = load_memory_bank(BUNDLES / "memory_banks" / "embedded_industrial.safetensors")
    merge_memory_banks([shipped, shipped]).save(folder / "memory_banks" / "embedded_industrial.safetensors")
    network = load("mrad_ft", bundle_dir=folder, device="cpu")
    assert len(network.head.patch_keys) == 2 * len(shipped.patch_keys)


def test_the_temperature_of_the_file_is_what_is_loaded(tmp_path: Path):
    folder = copy_bundles(tmp_path, "mrad_tf")
    torch.save({"head._extra_state": torch.tensor(0.5, dtype=torch.float64)}, folder / "mrad_tf/models/model.pt")
    assert load("mrad_tf", bundle_dir=folder, device="cpu").head.temperature == 0.5


def test_values_of_the_network_and_a_network_of_ones_own_are_taken(embedded: mrad_med.CLIP, tmp_path: Path):
    assert load("mrad_ft", bundle_dir=BUNDLES, device="cpu", net_override={"sigma": 2.0}).sigma == 2.0
    bank = load_memory_bank(BUNDLES / "memory_banks" / "embedded_industrial.safetensors")
    network = mrad_med.build_mrad_ft(embedded, bank, seed=1)
    loaded = load("mrad_ft", model=network, bundle_dir=BUNDLES, device="cpu")
    expected, _ = mrad_med.networks.load_head(BUNDLES / "mrad_ft" / "models" / "model.pt")
    for name, weight in loaded.head.state_dict().items():
        assert torch.equal(weight, expected[name])


@each_bundle
def test_the_config_for_inference_loads_the_same_and_writes_nothing(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    before = files_below(BUNDLES)
    network = load(bundle, bundle_dir=BUNDLES, device="cpu", workflow_type="inference")
    shipped = AnomalyDetector.from_bundle(BUNDLES / bundle, device="cpu").network
    torch.testing.assert_close(network(images()), shipped(images()), atol=1e-7, rtol=0)
    assert files_below(BUNDLES) == before


def score_of(folder: Path) -> str:
    return (folder / "scores.csv").read_text(encoding="utf-8")


@each_bundle
def test_a_bundle_runs_from_any_directory(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (40, 60, 3)).astype(np.uint8)).save(folder / "a.png")
    words = ["--dataset_dir", str(folder), "--image_size", "70", "--device", "cpu"]
    assert main(["run", str(BUNDLES / bundle), "--output_dir", str(tmp_path / "by_path"), *words]) == 0
    assert main(["run", bundle, "--output_dir", str(tmp_path / "by_name"), *words]) == 0
    config = str(BUNDLES / bundle / "configs" / "inference.json")
    values = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "by_monai")}
    run_bundle(config_file=config, **values, image_size=70, device="cpu")
    assert score_of(tmp_path / "by_path") == score_of(tmp_path / "by_name") == score_of(tmp_path / "by_monai")
    assert list(elsewhere.iterdir()) == []


def test_a_config_that_cannot_find_its_bundle_asks_for_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"bundles/mrad_ft of this config is not in .*: --bundle_root"):
        root_of_config("bundles/mrad_ft")
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "mrad_ft" / "configs" / "inference.json"))
    with pytest.raises(FileNotFoundError, match="--bundle_root DIRECTORY"), mrad_med.bundle.plain_errors():
        parser.get_parsed_content("network_def")


@pytest.mark.parametrize(
    ("bundle", "left", "message"),
    [
        ("mrad_tf", (), r"no memory bank .* --bundle_root DIRECTORY"),
        ("mrad_ft", ("memory_banks",), r"there is no head file .* --bundle_root DIRECTORY"),
    ],
)
def test_a_file_that_the_root_lacks_is_named_with_the_option(
    bundle: str, left: tuple[str, ...], message: str, tmp_path: Path
):
    for name in left:
        shutil.copytree(BUNDLES / name, tmp_path / name)
    root = tmp_path / "wrong"
    (root / "configs").mkdir(parents=True)
    workflow = mrad_med.BundleWorkflow(str(BUNDLES / bundle), bundle_root=str(root), device="cpu")
    workflow.initialize()
    with pytest.raises(FileNotFoundError, match=message):
        workflow.run()


def test_a_train_free_bundle_is_trained_into_a_bank_and_a_temperature(tmp_path: Path):
    folder = mrad_med.write_sample_dataset(tmp_path / "set", count=1)
    words = ["--dataset_dir", folder, "--output_dir", str(tmp_path / "out"), "--temperature", "0.5"]
    assert main(["train", "mrad_tf", *words, "--image_size", "126", "--device", "cpu"]) == 0
    files = {"checkpoint": tmp_path / "out/models/model.pt", "memory_bank": tmp_path / "out/memory_bank.safetensors"}
    state = torch.load(files["checkpoint"], weights_only=True)
    assert {name: float(value) for name, value in state.items()} == {"head._extra_state": 0.5}
    card = json.loads(files["checkpoint"].with_suffix(".json").read_text(encoding="utf-8"))
    assert card["bank_sha256"] == load_memory_bank(files["memory_bank"]).sha256
    assert card["configuration"]["temperature"] == 0.5
