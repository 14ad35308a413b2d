"""Training by the bundles: from a folder of labeled images to a bank, a trained head and its card."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import run

import mrad_med
from tests.conftest import run_in_two_processes

ROOT = Path(__file__).parent.parent
BUNDLES = ("mrad_ft", "mrad_clip")
each_bundle = pytest.mark.parametrize("bundle", BUNDLES)
# 9 x 9 patches and a few images: enough to see that everything is joined up, not to learn.
SMALL = {"image_size": 126, "batch_size": 4, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("embedded_is_loaded")
EPOCHS = {"mrad_ft": 2, "mrad_clip": 2}


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("surfaces")
    return mrad_med.write_surface_dataset(folder, surfaces=["fabric", "leather", "tiles"], count=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder of features that all trainings here share."""
    return str(tmp_path_factory.mktemp("features"))


def configs_of(bundle: str, *names: str) -> list[str]:
    return [str(ROOT / "bundles" / bundle / "configs" / f"{name}.json") for name in names]


def settings(bundle: str, output: Path, surfaces: str, cache: str, **changed: Any) -> dict[str, Any]:
    values = {"bundle_root": str(ROOT / "bundles" / bundle), "output_dir": str(output), "dataset_dir": surfaces}
    return {**values, "cache_dir": cache, "max_epochs": EPOCHS[bundle], **SMALL, **changed}


def arguments(values: dict[str, Any]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module", params=BUNDLES)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, surfaces: str, cache: str
) -> tuple[str, Path]:
    """Return a bundle and the folder it has trained into."""
    output = tmp_path_factory.mktemp(request.param)
    values = settings(request.param, output, surfaces, cache)
    run(config_file=configs_of(request.param, "train"), **values)
    return request.param, output


def card_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "models" / "model.json").read_text(encoding="utf-8"))


def test_training_leaves_a_bank_a_head_and_checkpoints(trained: tuple[str, Path]):
    bundle, output = trained
    card = card_of(output)
    bank = mrad_med.load_memory_bank(output / "memory_bank.safetensors")
    (held_out,) = card["configuration"]["held_out_classes"]
    kept = sorted({"fabric", "leather", "tiles"} - {held_out})
    assert card["training_set"] == [{"name": name, "normal": 2, "anomalous": 2} for name in kept]
    assert [source["name"] for source in bank.card.sources] == kept
    assert bank.card.counts == {"image_normal": 4, "image_anomalous": 4, "patch_normal": 8, "patch_anomalous": 4}
    assert card["bank_sha256"] == bank.sha256
    assert card["variant"] == {"mrad_ft": "MRAD-FT", "mrad_clip": "MRAD-CLIP"}[bundle]
    metric = card["metrics"]["val_pixel_auroc"]
    assert 0 <= metric["best_metric"] <= 1
    assert 1 <= metric["best_metric_epoch"] <= 2
    stage = {"mrad_ft": "fine_tune", "mrad_clip": "prompts"}[bundle]
    last = torch.load(output / "training" / stage / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == 4  # two epochs of two batches
    assert last["trainer"]["best_metric_epoch"] > 0
    state = torch.load(output / "models" / "model.pt", weights_only=True)
    for name, tensor in torch.load(output / "training" / stage / "best.pt", weights_only=True).items():
        assert torch.equal(state[f"head.{name}"], tensor)


def test_prompts_are_learned_over_the_fine_tuned_head_of_the_same_run(trained: tuple[str, Path]):
    bundle, output = trained
    stage_1 = torch.load(output / "training" / "fine_tune" / "best.pt", weights_only=True)
    state = torch.load(output / "models" / "model.pt", weights_only=True)
    prefix = "head." if bundle == "mrad_ft" else "head.fine_tuned."
    assert all(torch.equal(state[prefix + name], tensor) for name, tensor in stage_1.items())
    if bundle == "mrad_clip":
        configuration = card_of(output)["configuration"]
        blocks = len(mrad_med.load_clip().text_encoder.tower.transformer.resblocks)
        assert configuration["depth"] == min(9, blocks)
        assert sum(name.startswith("head.prompts.deep_prompts.") for name in state) == configuration["depth"] - 1


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is optional: without it nothing is written")
def test_curves_are_written_for_tensorboard(trained: tuple[str, Path]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    bundle, output = trained
    stages = {"mrad_ft": ["train"], "mrad_clip": ["fine_tune", "train"]}[bundle]
    for stage in stages:
        scalars = EventAccumulator(str(output / "tensorboard" / stage)).Reload()
        epochs = {"train": 2, "fine_tune": 1}[stage]
        assert len(scalars.Scalars(f"{stage}_loss")) == 2 * epochs
        assert len(scalars.Scalars(f"{stage}_mean_loss")) == epochs
    metrics = EventAccumulator(str(output / "tensorboard" / "validate")).Reload()
    assert [event.step for event in metrics.Scalars("val_pixel_auroc")] == [1, 2]
    assert [event.step for event in metrics.Scalars("val_image_auroc")] == [1, 2]


def test_a_finished_training_is_not_repeated(
    trained: tuple[str, Path], surfaces: str, cache: str, monkeypatch: pytest.MonkeyPatch
):
    bundle, output = trained
    checkpoints = {path: path.read_bytes() for path in (output / "training").rglob("*.pt")}
    card, state = card_of(output), torch.load(output / "models" / "model.pt", weights_only=True)
    monkeypatch.setattr(mrad_med.networks.CLIPImageEncoder, "forward", None)  # features come from the cache
    monkeypatch.setattr(torch.optim.Adam, "step", None)
    run(config_file=configs_of(bundle, "train"), **settings(bundle, output, surfaces, cache))
    assert {path: path.read_bytes() for path in (output / "training").rglob("*.pt")} == checkpoints
    again = torch.load(output / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    volatile = {"weights_sha256": "", "created": ""}  # a zip file names its writer
    assert card_of(output) | volatile == card | volatile


def test_a_run_with_other_settings_does_not_touch_the_training(trained: tuple[str, Path], surfaces: str, cache: str):
    bundle, output = trained
    files = [output / "memory_bank.safetensors", *(output / "models").iterdir(), *(output / "training").rglob("*.pt")]
    before = {path: path.read_bytes() for path in files}
    changes: list[dict[str, Any]] = [{"seed": 1}, {"held_out": 0}, {"learning_rate": 0.1}]
    if bundle == "mrad_ft":
        changes.append({"final_learning_rate": 1e-5})
    for changed in changes:
        workflow = mrad_med.BundleWorkflow(
            configs_of(bundle, "train"), workflow_type="train", **settings(bundle, output, surfaces, cache, **changed)
        )
        workflow.initialize()
        with pytest.raises(mrad_med.errors.TrainingError, match=r"last\.pt belongs to another training: .* differ"):
            workflow.run()
    assert {path: path.read_bytes() for path in files} == before


def test_monai_finds_every_property_of_the_training(trained: tuple[str, Path], surfaces: str, cache: str):
    bundle, output = trained
    workflow = mrad_med.BundleWorkflow(
        configs_of(bundle, "train"), workflow_type="train", **settings(bundle, output, surfaces, cache)
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.train_dataset, mrad_med.training.FeatureDataset)
    assert workflow.max_epochs == 2
    trainer = {"mrad_ft": mrad_med.FineTuneTrainer, "mrad_clip": mrad_med.PromptTrainer}[bundle]
    assert isinstance(workflow.trainer, trainer)
    assert workflow.evaluator.state.key_metric_name == "val_pixel_auroc"


def test_the_trained_head_scores_and_is_evaluated(trained: tuple[str, Path], tmp_path: Path):
    bundle, output = trained
    values = {"bundle_root": str(ROOT / "bundles" / bundle), "output_dir": str(tmp_path), **SMALL}
    values |= {"checkpoint": str(output / "models" / "model.pt")}
    values |= {"memory_bank": str(output / "memory_bank.safetensors")}
    run(config_file=configs_of(bundle, "inference"), **values)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["status"] for row in rows} == {"ok"}
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["variant"] == card_of(output)["variant"]
    assert record["memory_bank"]["sha256"] == card_of(output)["bank_sha256"]
    run(config_file=configs_of(bundle, "inference", "evaluate"), **values)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"] == {"normal": 3, "anomalous": 3}
    assert 0 <= metrics["pixel"]["auroc"] <= 1


def test_the_trained_head_is_refused_with_another_bank(trained: tuple[str, Path], tmp_path: Path):
    bundle, output = trained
    shipped = ROOT / "bundles" / "memory_banks" / "embedded_industrial.safetensors"
    workflow = mrad_med.BundleWorkflow(
        str(ROOT / "bundles" / bundle),
        output_dir=str(tmp_path),
        checkpoint=str(output / "models" / "model.pt"),
        memory_bank=str(shipped),
        **SMALL,
    )
    workflow.initialize()
    with pytest.raises(mrad_med.errors.HeadError, match="this head was trained with another memory bank"):
        workflow.run()


def test_without_held_out_classes_the_last_weights_are_kept(tmp_path: Path, surfaces: str, cache: str):
    run(
        config_file=configs_of("mrad_ft", "train"),
        **settings("mrad_ft", tmp_path, surfaces, cache, held_out=0, patience=1),
    )
    card = card_of(tmp_path)
    assert len(card["training_set"]) == 3
    assert card["metrics"] == {}
    last = torch.load(tmp_path / "training" / "fine_tune" / "last.pt", weights_only=True)
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(state[f"head.{name}"], tensor) for name, tensor in last["head"].items())


def test_classes_are_held_out_by_name(tmp_path: Path, surfaces: str, cache: str):
    values = settings("mrad_ft", tmp_path, surfaces, cache, held_out=["tiles", "fabric"], max_epochs=1)
    run(config_file=configs_of("mrad_ft", "train"), **values)
    assert card_of(tmp_path)["configuration"]["held_out_classes"] == ["fabric", "tiles"]
    assert [source["name"] for source in card_of(tmp_path)["training_set"]] == ["leather"]


def test_an_image_that_cannot_be_read_is_named_after_training_on_the_others(
    tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture
):
    folder = Path(mrad_med.write_surface_dataset(tmp_path / "set", surfaces=["fabric", "tiles"], count=2))
    (folder / "tiles" / "normal" / "whole_001.png").write_bytes(b"no image")
    values = settings("mrad_ft", tmp_path / "out", str(folder), cache, held_out=["fabric"], max_epochs=1)
    workflow = mrad_med.BundleWorkflow(configs_of("mrad_ft", "train"), workflow_type="train", **values)
    workflow.initialize()
    with pytest.raises(mrad_med.errors.FailedCasesError, match=r"1 of 8 case\(s\) failed.*\n.*tiles/normal/whole_001"):
        workflow.run()
    assert card_of(tmp_path / "out")["training_set"] == [{"name": "tiles", "normal": 1, "anomalous": 2}]
    # The main process alone says so, when it has saved the head: one that failed before would end all of them.
    values |= {"output_dir": str(tmp_path / "other process"), "is_main": False}
    workflow = mrad_med.BundleWorkflow(configs_of("mrad_ft", "train"), workflow_type="train", **values)
    workflow.initialize()
    workflow.run()
    assert [path.name for path in (tmp_path / "other process").iterdir()] == ["training"]


@each_bundle
def test_a_set_of_one_label_is_refused(bundle: str, tmp_path: Path, cache: str):
    folder = Path(mrad_med.write_surface_dataset(tmp_path / "set", surfaces=["fabric"], count=1))
    (folder / "fabric" / "defect" / "bump_000.png").unlink()
    (folder / "fabric" / "defect").rmdir()
    workflow = mrad_med.BundleWorkflow(
        configs_of(bundle, "train"),
        workflow_type="train",
        **settings(bundle, tmp_path / "out", str(folder), cache, held_out=0),
    )
    workflow.initialize()
    with pytest.raises(
        (mrad_med.errors.TrainingError, mrad_med.errors.MemoryBankError), match=r"no image anomalous|both labels"
    ):
        workflow.run()
    assert not (tmp_path / "out" / "models").exists()


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is optional: only `--tracking mlflow` needs it")
def test_monais_tracking_with_mlflow_sees_losses_and_metrics(tmp_path: Path, surfaces: str, cache: str):
    import mlflow

    run(
        config_file=configs_of("mrad_clip", "train"),
        tracking="mlflow",
        **settings("mrad_clip", tmp_path, surfaces, cache),
    )
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    (experiment,) = (item for item in client.search_experiments() if item.name == "monai_experiment")
    (tracked,) = client.search_runs(experiment.experiment_id)
    assert {"train_loss", "train_mean_loss", "val_pixel_auroc", "val_image_auroc"} <= tracked.data.metrics.keys()
    assert len(client.get_metric_history(tracked.info.run_id, "train_loss")) == 4


@pytest.mark.slow
def test_the_command_works_from_any_directory_and_says_how_it_goes(tmp_path: Path, surfaces: str, cache: str):
    values = settings("mrad_ft", tmp_path / "out", surfaces, cache)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", *configs_of("mrad_ft", "train")]
    finished = subprocess.run([*command, *arguments(values)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    said = finished.stdout + finished.stderr
    assert "val_pixel_auroc" in said
    assert "train_mean_loss" in said
    assert "train [2/2]" in said  # the progress bar
    assert (tmp_path / "out" / "models" / "model.pt").is_file()


def test_both_bundles_have_the_same_overlay_for_several_processes():
    overlays = []
    for bundle in BUNDLES:
        (path,) = configs_of(bundle, "multi_gpu_train")
        overlays.append(json.loads(Path(path).read_text(encoding="utf-8")))
    fine_tuned, prompted = overlays
    assert prompted.pop("fine_tune#head") == {
        **fine_tuned["train#head"],
        "module": fine_tuned["train#head"]["module"].replace("train#network", "fine_tune#network"),
    }
    assert prompted == fine_tuned


def train_in_one_of_two(rank: int, configs: list[str], settings: dict[str, Any]) -> None:
    """Train as process ``rank`` of two, which the configuration learns from its environment."""
    run(config_file=configs, **settings)


def test_two_processes_train_what_one_does(tmp_path: Path, surfaces: str, cache: str):
    bundle = "mrad_clip"  # one is enough, this one has both stages
    common = settings(bundle, tmp_path / "two", surfaces, cache, max_epochs=1)
    configs = configs_of(bundle, "train", "multi_gpu_train")
    run_in_two_processes(train_in_one_of_two, configs, common | {"batch_size": 2})
    run(config_file=configs_of(bundle, "train"), **common | {"output_dir": str(tmp_path / "one")})
    two, one = (torch.load(tmp_path / name / "models" / "model.pt", weights_only=True) for name in ("two", "one"))
    for name, tensor in one.items():
        if not name.endswith("_key.bias"):  # its gradient is rounding alone, which Adam scales up
            torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=0)
    cards = [card_of(tmp_path / name) for name in ("two", "one")]
    assert [card["configuration"]["processes"] for card in cards] == [2, 1]
    scores = [card["metrics"]["val_pixel_auroc"]["best_metric"] for card in cards]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
