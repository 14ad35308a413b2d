"""Ignite handlers for training: validation metrics, checkpoints to resume from, and early stopping."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from monai.handlers import IgniteMetricHandler
from torch import Tensor

from mrad_med.distributed import rank_and_world
from mrad_med.errors import TrainingError
from mrad_med.metrics.monai import ImageMonaiMetric, PixelMonaiMetric
from mrad_med.networks.head_files import best_epoch, copy_weights, load_weights, save_tensors, sha256_of_text_tower
from mrad_med.networks.heads import FineTunedHead, PromptedHead
from mrad_med.types import AnomalyKeys

__all__ = ["EarlyStop", "PixelMetricHandler", "ImageMetricHandler", "TrainingCheckpoint"]

logger = logging.getLogger(__name__)

VALIDATION_STRIDE = 4  # maps are smoothed over 4 pixels, so every fourth pixel is enough


class _DefinedMetric(IgniteMetricHandler):
    """An ignite metric that is NaN, with a warning, where it is undefined."""

    def compute(self) -> float:
        """Return the metric, or NaN where it is undefined."""
        try:
            return float(super().compute())
        except ValueError as error:
            logger.warning("%s", error)
            return float("nan")


class PixelMetricHandler(_DefinedMetric):
    """One pixel metric as an ignite handler of an evaluator, over all processes.

    This is the last link of the chain `pixel_metrics` (function), `PixelMetrics` (accumulator), `PixelMonaiMetric`
    (MONAI metric), `PixelMetricHandler` (ignite handler).

    Args:
        name: name of a metric of `PixelMetrics`, for example ``"auroc"`` or ``"ap"``.
        stride: step in pixels between the rows and columns of maps and masks that are used.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str = "auroc", *, stride: int = VALIDATION_STRIDE) -> None:
        metric = PixelMonaiMetric(name, stride=stride)
        super().__init__(metric, output_transform=_maps_and_masks, save_details=False)


class ImageMetricHandler(_DefinedMetric):
    """One image-level metric as an ignite handler of an evaluator, over all processes.

    This is the last link of the chain `image_metrics` (function), `ImageMonaiMetric` (MONAI metric),
    `ImageMetricHandler` (ignite handler).

    Args:
        name: name of a metric of `image_metrics`, for example ``"auroc"`` or ``"ap"``.

    Raises:
        ValueError: there is no metric of this name.
    """

    def __init__(self, name: str = "auroc") -> None:
        super().__init__(ImageMonaiMetric(name), output_transform=_scores_and_labels, save_details=False)


def _maps_and_masks(output: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return output["pred"][AnomalyKeys.ANOMALY_MAP], output["label"]["mask"]


def _scores_and_labels(output: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return output["pred"][AnomalyKeys.ANOMALY_SCORE].flatten(), output["label"]["label"].flatten()


class TrainingCheckpoint:
    """Save the state of a training after every epoch, resume from it, and end with the best weights.

    The handler writes two files. ``last.pt`` has all that is needed to resume: the weights of the last epoch (``head``)
    and of the best one (``best_head``), optimizer, schedule and counts. ``best.pt`` is the state dict of the best head
    alone, from the first validation with a defined key metric:
    ``build_mrad_ft(clip, bank, checkpoint=torch.load("best.pt", weights_only=True))``.

    It replaces MONAI's `CheckpointSaver` for two reasons. `CheckpointSaver` overwrites its file in place, so a run that
    is killed meanwhile loses both states. It also does not save which epoch was best. Only the order of the cases is
    random in an epoch, and it depends only on seed and epoch. On a CPU a resumed training therefore ends with the same
    weights as an uninterrupted one.

    Args:
        folder: folder of the two files; every training needs its own.
        head: head that is trained, without the wrapper for several processes.
        optimizer: optimizer of the training.
        lr_scheduler: learning rate schedule of the training, or None.
        evaluator: evaluator of the validation, or None. Its key metric, where defined, decides which epoch was best.
            Without an evaluator the last weights are kept.
        identity: values that must be equal in a run that resumes, such as the configuration and the hashes of
            backbone, bank and training set. Optimizer, schedule, batches an epoch, number of processes and text tower
            are always compared and need not be given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        head: FineTunedHead | PromptedHead,
        optimizer: torch.optim.Optimizer,
        *,
        lr_scheduler: Any = None,
        evaluator: Evaluator | None = None,
        identity: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None:
        self.path = Path(folder) / "last.pt"
        self.best_path = Path(folder) / "best.pt"
        self.head = head
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.identity = dict(identity or {})
        if isinstance(head, PromptedHead):
            self.identity["text_tower"] = sha256_of_text_tower(head.prompts.text_encoder)
        self._best: dict[str, Tensor] | None = None

    def attach(self, engine: Trainer) -> None:
        """Attach to the trainer, after validation and schedule and before early stopping."""
        for state in (engine, self.evaluator):
            if state is not None:
                state.state_dict_user_keys.extend(["best_metric", "best_metric_epoch"])
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.restore_best)

    def resume(self, engine: Trainer) -> None:
        """Resume after the last completed epoch; do nothing without a checkpoint.

        Raises:
            TrainingError: the checkpoint is damaged, of another training, or of more epochs than ``max_epochs``.
        """
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            given, expected = saved["identity"], self._identity(engine)
            epochs = saved["trainer"]["iteration"] // expected["epoch_length"]
        except Exception as error:  # the unpickler raises errors of almost any type for other bytes
            raise TrainingError(f"{self.path} is damaged; delete it to train from the start") from error
        other = sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name))
        if other:
            raise TrainingError(
                f"{self.path} belongs to another training: {', '.join(other)} differ(s); choose another output folder, "
                "or delete it to train from the start"
            )
        max_epochs = engine.state.max_epochs
        if epochs > max_epochs:
            raise TrainingError(
                f"{self.path} holds a training of {epochs} epoch(s), more than max_epochs={max_epochs}: set at least "
                f"{epochs}, choose another output folder, or delete it to train from the start"
            )
        engine.load_state_dict(saved["trainer"])
        engine.state.max_epochs = max_epochs  # a resumed run may train for more epochs
        load_weights(self.head, saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        if self.evaluator is not None and saved["evaluator"] is not None:
            self.evaluator.load_state_dict(saved["evaluator"])
        self._best = saved["best_head"]
        logger.info("resumed after epoch %d of %d", engine.state.epoch, max_epochs)

    def save(self, engine: Trainer) -> None:
        """Write the state of the training after an epoch.

        Raises:
            TrainingError: a weight is NaN or infinite; the previous checkpoint is unchanged.
            OSError: the disk is full, or the folder cannot be written to; the previous checkpoint is unchanged.
        """
        head = copy_weights(self.head)
        if not all(tensor.isfinite().all() for tensor in head.values()):
            raise TrainingError(
                f"weights became NaN or infinite in epoch {engine.state.epoch}: lower the learning rate. The "
                f"checkpoint of the previous epoch in {self.path.parent} is unchanged"
            )
        is_best = self.evaluator is not None and best_epoch(self.evaluator) == engine.state.epoch
        if is_best:
            self._best = head
        if rank_and_world()[0] > 0:
            return
        if is_best:
            save_tensors(head, self.best_path)
        content = {
            "identity": self._identity(engine),
            "trainer": engine.state_dict(),
            "evaluator": None if self.evaluator is None else self.evaluator.state_dict(),
            "head": head,
            "best_head": self._best,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
        }
        save_tensors(content, self.path)

    def restore_best(self, _: Engine) -> None:
        """Load the weights with the best validation into the head; do nothing if there are none."""
        if self._best is not None:
            load_weights(self.head, self._best)

    def _identity(self, engine: Trainer) -> dict[str, Any]:
        return {
            **self.identity,
            "optimizer": f"{type(self.optimizer).__name__} {self.optimizer.defaults}",
            "lr_scheduler": None if self.lr_scheduler is None else type(self.lr_scheduler).__name__,
            "epoch_length": engine.state.epoch_length,
            "processes": rank_and_world()[1],
        }


class EarlyStop:
    """Stop a training whose validation has not improved for some epochs; a resumed training continues the count.

    Args:
        evaluator: evaluator of the validation, with a key metric.
        patience: number of epochs without a better key metric, at least 1.

    Raises:
        ValueError: the patience is below 1.
    """

    def __init__(self, evaluator: Evaluator, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, got {patience}")
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, engine: Trainer) -> None:
        """Attach to the trainer, after checkpoint and validation."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        """Stop the training if the best epoch is ``patience`` or more epochs ago."""
        best = best_epoch(self.evaluator)
        if best is not None and engine.state.epoch - best >= self.patience:
            logger.info("stopped after epoch %d: epoch %d was the best", engine.state.epoch, best)
            engine.terminate()
