"""Trainings of both stages on the tiny backbone, for the tests."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler, ValidationHandler
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mrad_med import (
    CLIP,
    MRAD,
    FeatureInferer,
    FineTuneTrainer,
    ImageMetricHandler,
    MemoryBank,
    PixelMetricHandler,
    PrepareFeatures,
    PromptTrainer,
    TrainingCheckpoint,
    build_memory_bank,
    build_mrad_clip,
    build_mrad_ft,
    collate_features,
    feature_loader,
)
from mrad_med.networks import FineTunedHead
from mrad_med.training import FeatureDataset
from mrad_med.training.features import UNKNOWN
from tests.conftest import make_labeled_batches, make_tiny_clip

STAGES = ("fine_tune", "prompts")


@dataclass
class TrainingRun:
    """The parts of one training."""

    network: MRAD
    trainer: FineTuneTrainer | PromptTrainer
    evaluator: SupervisedEvaluator
    checkpoint: TrainingCheckpoint

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.network.head.learned_state().items()}


def write_features(
    folder: Path, clip: CLIP, *, count: int = 12, seed: int = 1, unknown: int | None = None, empty: int | None = None
) -> FeatureDataset:
    """Return features as a cache keeps them, every second image anomalous; the masks of two may be damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    cases, files = [], []
    for index, batch in enumerate(make_labeled_batches(count, batch_size=1, seed=seed)):
        features = clip.image_encoder(batch["image"])
        mask = batch["mask"][0, 0].byte()
        if index == unknown:
            mask = torch.full_like(mask, UNKNOWN)
        if index == empty:
            mask = torch.zeros_like(mask)
        files.append(folder / f"{seed}_{index}.safetensors")
        save_file({"image": features.image[0], "patches": features.patches[0], "mask": mask}, files[-1])
        cases.append({"case_id": f"case {index}", "label": int(batch["label"]), "class": "tiny"})
    return FeatureDataset(cases, files, features.grid_size)


def bank_of(clip: CLIP, dataset: FeatureDataset) -> MemoryBank:
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate_features)
    return build_memory_bank(clip, loader, progress=False)


def make_stage_1(clip: CLIP, bank: MemoryBank) -> FineTunedHead:
    """Return a fine-tuned head that finds both regions in most images: a random one finds all patches normal."""
    head = build_mrad_ft(clip, bank, seed=1).head
    with torch.no_grad():
        for layer in (head.patch_query, head.patch_key):
            layer.weight.copy_(25 * torch.eye(*layer.weight.shape))
            layer.bias.zero_()
    return head


def make_run(
    stage: str,
    folder: Path,
    clip: CLIP,
    dataset: FeatureDataset,
    *,
    max_epochs: int = 3,
    batch_size: int = 4,
    learning_rate: float = 1e-2,
    validation: FeatureDataset | None = None,
    identity: dict[str, Any] | None = None,
    handlers: tuple[Any, ...] = (),
    **keywords: Any,
) -> TrainingRun:
    """Return a training of a stage with all its parts, composed as in the bundles."""
    bank = bank_of(clip, dataset)
    if stage == "fine_tune":
        network = build_mrad_ft(clip, bank, seed=0)
    else:
        network = build_mrad_clip(clip, bank, seed=0)
        keywords = {
            "image_encoder": clip.image_encoder,
            "fine_tuned": make_stage_1(clip, bank),
        } | keywords
    learned = [parameter for parameter in network.head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=learning_rate, betas=(0.5, 0.999))
    loader = feature_loader(dataset, batch_size=batch_size, shuffle=True, seed=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    evaluator = SupervisedEvaluator(
        "cpu",
        feature_loader(validation or dataset, batch_size=batch_size),
        network,
        prepare_batch=PrepareFeatures(clip.image_encoder),
        inferer=FeatureInferer(),
        key_val_metric={"pixel_auroc": PixelMetricHandler("auroc")},
        additional_metrics={"image_auroc": ImageMetricHandler("auroc")},
        decollate=False,
    )
    checkpoint = TrainingCheckpoint(
        folder,
        network.head,
        optimizer,
        lr_scheduler=schedule,
        evaluator=evaluator,
        identity=identity or {"memory_bank": bank.sha256},
    )
    head: nn.Module = DistributedDataParallel(network.head) if dist.is_initialized() else network.head
    trainer = (FineTuneTrainer if stage == "fine_tune" else PromptTrainer)(
        "cpu",
        max_epochs,
        loader,
        head,
        optimizer,
        train_handlers=[
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(1, evaluator),
            checkpoint,
            *handlers,
        ],
        **keywords,
    )
    return TrainingRun(network, trainer, evaluator, checkpoint)


def assert_same_training(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare weights of two trainings that differ in rounding alone."""
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        # A constant added to all scores of a query changes nothing: the gradient of a key's bias is rounding alone,
        # which Adam scales up.
        if not name.endswith("_key.bias"):
            torch.testing.assert_close(given[name], tensor, atol=1e-4, rtol=0)


def train_both_stages(folder: Path, *, batch_size: int) -> dict[str, Any]:
    """Return weights and metrics after two epochs of each stage; batches are those of one process."""
    clip = make_tiny_clip()
    with tempfile.TemporaryDirectory() as features:
        dataset = write_features(Path(features), clip, count=8)
        validation = write_features(Path(features), clip, count=5, seed=2)
        results = {}
        for stage in STAGES:
            run = make_run(
                stage, folder / stage, clip, dataset, max_epochs=2, batch_size=batch_size, validation=validation
            )
            run.trainer.run()
            results[stage] = {"weights": run.weights, "metrics": dict(run.evaluator.state.metrics)}
    return results


def train_in_one_of_two(rank: int, folder: Path) -> None:
    """Train both stages as process ``rank`` of two."""
    dist.init_process_group("gloo")
    torch.save(train_both_stages(folder, batch_size=2), folder / f"process_{rank}.pt")
    dist.destroy_process_group()
