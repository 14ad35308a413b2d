"""The bundles as MONAI sees them: metadata, properties, network, and whole runs on small inputs."""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser, run, verify_metadata, verify_net_in_out
from PIL import Image

import mrad_med
from mrad_med.files import sha256_of_file
from mrad_med.networks.head_files import sha256_of_text_tower

ROOT = Path(__file__).parent.parent
BUNDLES = {name: ROOT / "bundles" / name for name in ("mrad_tf", "mrad_ft", "mrad_clip")}
VARIANTS = {"mrad_tf": "MRAD-TF", "mrad_ft": "MRAD-FT", "mrad_clip": "MRAD-CLIP"}
each_bundle = pytest.mark.parametrize("bundle", BUNDLES)
# Where there is no network, a copy of MONAI's schema may be named here.
SCHEMA = os.environ.get("MRAD_MED_METADATA_SCHEMA", "")
SMALL = {"image_size": 126, "batch_size": 2}  # 9 x 9 patches: fast, and enough to see that everything is joined up


def config(bundle: str, name: str) -> str:
    return str(BUNDLES[bundle] / "configs" / f"{name}.json")


def values(path: str | Path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


@each_bundle
def test_metadata_has_what_the_schema_requires(bundle: str):
    metadata = values(config(bundle, "metadata"))
    required = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"}
    required |= {"task", "description", "authors", "copyright", "network_data_format", "changelog"}
    assert required <= metadata.keys()
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == mrad_med.__version__
    assert {"inputs", "outputs"} <= metadata["network_data_format"].keys()


@each_bundle
@pytest.mark.skipif(not Path(SCHEMA).is_file(), reason="needs MONAI's metadata schema, which is downloaded")
def test_metadata_is_valid_by_the_schema(bundle: str):
    verify_metadata(meta_file=config(bundle, "metadata"), filepath=SCHEMA)


@each_bundle
@pytest.mark.parametrize("n", [9, 13])
def test_network_takes_and_gives_what_the_metadata_says(bundle: str, n: int):
    verify_net_in_out(
        net_id="network_def",
        meta_file=config(bundle, "metadata"),
        config_file=config(bundle, "inference"),
        bundle_root=str(BUNDLES[bundle]),
        device="cpu",
        n=n,
    )


@each_bundle
def test_the_zoo_finds_every_property(bundle: str, tmp_path: Path):
    workflow = mrad_med.BundleWorkflow(str(BUNDLES[bundle]), output_dir=str(tmp_path), **SMALL)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, mrad_med.MRAD)
    assert workflow.bundle_root == str(BUNDLES[bundle])


@each_bundle
def test_inference_runs_on_the_samples_and_finds_the_phantoms_lesion(bundle: str, tmp_path: Path):
    run(config_file=config(bundle, "inference"), bundle_root=str(BUNDLES[bundle]), output_dir=str(tmp_path), **SMALL)
    written = rows(tmp_path)
    assert set(written) == {"ct_slice", "mr_slice", "retina", "retina_closeup", "histology", "phantom"}
    assert {row["status"] for row in written.values()} == {"ok"}
    for row in written.values():
        anomaly_map = tifffile.imread(tmp_path / row["map"])
        assert anomaly_map.dtype == np.float32
        assert 0 <= anomaly_map.min() <= anomaly_map.max() <= 1
        with Image.open(tmp_path / row["overlay"]) as overlay:
            assert min(overlay.size) > 200
    lesion = mrad_med.make_phantom()[1] > 0
    phantom_map = tifffile.imread(tmp_path / "maps" / "phantom.tiff")
    assert phantom_map.shape == lesion.shape
    assert lesion[np.unravel_index(phantom_map.argmax(), lesion.shape)]
    record = values(tmp_path / "run.json")
    assert record["cases"] == {"total": 6, "ok": 6, "failed": 0, "nothing_to_score": 0}
    assert record["backbone"]["name"] == "embedded ViT-S/14"
    assert record["settings"]["variant"] == VARIANTS[bundle]
    weights = BUNDLES[bundle] / "models" / "model.pt"
    assert record["settings"].get("head_sha256") == (None if bundle == "mrad_tf" else sha256_of_file(weights))


@each_bundle
def test_evaluation_measures_the_sample_set(bundle: str, tmp_path: Path):
    configs = [config(bundle, "inference"), config(bundle, "evaluate")]
    chosen = {"resamples": 20, "dice_threshold": 0.5, "file_size": True, "progress": False, **SMALL}
    run(config_file=configs, bundle_root=str(BUNDLES[bundle]), output_dir=str(tmp_path), **chosen)
    record = values(tmp_path / "metrics.json")
    assert record["images"] == {"normal": 3, "anomalous": 3}
    assert record["pixel"]["auroc"] > 0.9
    assert {"auroc", "ap", "f1_max"} <= record["image"].keys()
    assert {"dice", "iou"} <= record["overlap"].keys()
    assert record["compared_at"] == "size of the files"
    assert record["intervals"]["drawn"]["resamples"] == 20
    assert record["settings"]["bundle"] == bundle
    assert record["settings"]["variant"] == VARIANTS[bundle]
    assert record["failures"] == []
    assert "**6 images prove nothing**" in (tmp_path / "metrics.md").read_text(encoding="utf-8")


def test_all_bundles_are_evaluated_alike_on_one_or_several_processes():
    for name in ("evaluate", "multi_gpu_evaluate"):
        texts = [Path(config(bundle, name)).read_text(encoding="utf-8").replace(bundle, "NAME") for bundle in BUNDLES]
        assert len(set(texts)) == 1


def test_a_bank_is_built_and_used(tmp_path: Path):
    bank_file = tmp_path / "bank.safetensors"
    common = {"bundle_root": str(BUNDLES["mrad_tf"]), "output_dir": str(tmp_path), **SMALL}
    run(config_file=config("mrad_tf", "train"), memory_bank=str(bank_file), **common)
    bank = mrad_med.load_memory_bank(bank_file)
    assert bank.card.counts == {"image_normal": 3, "image_anomalous": 3, "patch_normal": 6, "patch_anomalous": 3}
    folder = mrad_med.write_sample_dataset(tmp_path / "set", count=1)
    run(
        config_file=config("mrad_tf", "inference"),
        memory_bank=str(bank_file),
        dataset_dir=folder + "/defect",
        **common,
    )
    assert values(tmp_path / "run.json")["memory_bank"]["sha256"] == bank.sha256


def test_every_config_works_from_any_directory_and_any_value_is_overridden(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
):
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser()
    parser.read_config(config("mrad_tf", "inference"))
    overrides = {"backbone": "embedded", "temperature": 0.3, "device": "cpu", "dataset_dir": str(image_folder)}
    parser.update({"bundle_root": str(BUNDLES["mrad_tf"]), "output_dir": str(tmp_path / "out"), **overrides, **SMALL})
    network = parser.get_parsed_content("network_def")
    assert network.head.temperature == 0.3
    assert len(parser.get_parsed_content("dataset")) == 3


def arguments_of_a_run_with_a_bad_file(image_folder: Path, tmp_path: Path) -> list[str]:
    (image_folder / "broken.png").write_bytes(b"not an image")
    arguments = ["--config_file", str(BUNDLES["mrad_clip"]), "--workflow_name", "mrad_med.BundleWorkflow"]
    arguments += ["--dataset_dir", str(image_folder), "--output_dir", str(tmp_path / "out")]
    return [*arguments, "--image_size", "126", "--device", "cpu"]


def assert_only_the_bad_file_failed(folder: Path) -> None:
    assert {name: row["status"] for name, row in rows(folder).items()} == {
        "a": "ok",
        "b": "ok",
        "c": "ok",
        "broken": "failed",
    }


def test_monai_runs_the_bundle_directory_and_a_bad_file_ends_it_with_an_error(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = ["monai.bundle", "run", *arguments_of_a_run_with_a_bad_file(image_folder, tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(mrad_med.errors.FailedCasesError, match=r"1 of 4 case\(s\) failed"):
        runpy.run_module("monai.bundle", run_name="__main__")
    assert_only_the_bad_file_failed(tmp_path / "out")


@pytest.mark.slow
def test_monai_runs_the_bundle_directory_and_a_bad_file_reaches_the_exit_status(tmp_path: Path, image_folder: Path):
    finished = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *arguments_of_a_run_with_a_bad_file(image_folder, tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert finished.returncode != 0
    assert "1 of 4 case(s) failed" in finished.stderr
    assert_only_the_bad_file_failed(tmp_path / "out")


def test_the_shared_bank_belongs_to_the_embedded_backbone_and_says_how_it_was_made(embedded: mrad_med.CLIP):
    bank = mrad_med.load_memory_bank(ROOT / "bundles" / "memory_banks" / "embedded_industrial.safetensors")
    bank.check(embedded.card)
    notes = bank.card.notes
    assert {"temperature", "how_chosen", "held_out_results"} <= notes.keys()
    assert notes["temperature"] == values(config("mrad_tf", "inference"))["temperature"]
    for result in notes["held_out_results"]:
        assert {"held_out", "pixel_auroc", "pro", "image_auroc", "images"} <= result.keys()
    assert all({"name", "license"} <= source.keys() for source in bank.card.sources)


@pytest.mark.parametrize("bundle", ["mrad_ft", "mrad_clip"])
def test_a_shared_head_belongs_to_backbone_and_bank_and_says_how_it_was_made(bundle: str, embedded: mrad_med.CLIP):
    bank = mrad_med.load_memory_bank(ROOT / "bundles" / "memory_banks" / "embedded_industrial.safetensors")
    _, card = mrad_med.networks.load_head(BUNDLES[bundle] / "models" / "model.pt")
    assert card is not None
    assert card.variant == VARIANTS[bundle]
    assert card.backbone_sha256 == embedded.card.sha256
    assert card.bank_sha256 == bank.sha256
    assert card.text_sha256 == (sha256_of_text_tower(embedded.text_encoder) if bundle == "mrad_clip" else None)
    assert {source["name"] for source in card.training_set} == {source["name"] for source in bank.card.sources}
    assert card.metrics["how_chosen"]
    for result in card.metrics["held_out_results"]:
        assert {"held_out", "pixel_auroc", "pixel_ap", "pro", "image_auroc", "images"} <= result.keys()


def test_network_scripts_run_under_torch_no_grad():
    parser = ConfigParser()
    parser.read_config(config("mrad_tf", "inference"))
    parser.update({"bundle_root": str(BUNDLES["mrad_tf"]), "device": "cpu"})
    network = parser.get_parsed_content("network_def")
    maps = network(torch.zeros(1, 3, 126, 126))
    assert maps.shape == (1, 1, 126, 126)
    assert not maps.requires_grad
