"""Ignite handlers of a training: validation metrics, checkpoints that a killed run resumes from, early stopping."""

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

VALIDATION_STRIDE = 4  # maps are smoothed over 4 pixels, so that every fourth says as much


class _DefinedMetric(IgniteMetricHandler):
    """An ignite metric of an evaluator that is NaN, with a warning, where it is undefined."""

    def compute(self) -> float:
        """Return the metric; NaN where it is undefined."""
        try:
            return float(super().compute())
        except ValueError as error:
            logger.warning("%s", error)
            return float("nan")


class PixelMetricHandler(_DefinedMetric):
    """One of the `PixelMetrics` as an ignite metric of an evaluator, over all processes.

    Args:
        name: which of them, for example ``"auroc"`` or ``"ap"``.
        stride: only every such row and column of maps and masks is looked at.
    """

    def __init__(self, name: str = "auroc", *, stride: int = VALIDATION_STRIDE) -> None:
        metric = PixelMonaiMetric(name, stride=stride)
        super().__init__(metric, output_transform=_maps_and_masks, save_details=False)


class ImageMetricHandler(_DefinedMetric):
    """One of the `image_metrics` as an ignite metric of an evaluator, over all processes.

    Args:
        name: which of them, for example ``"auroc"`` or ``"ap"``.
    """

    def __init__(self, name: str = "auroc") -> None:
        super().__init__(ImageMonaiMetric(name), output_transform=_scores_and_labels, save_details=False)


def _maps_and_masks(output: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return output["pred"][AnomalyKeys.ANOMALY_MAP], output["label"]["mask"]


def _scores_and_labels(output: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return output["pred"][AnomalyKeys.ANOMALY_SCORE].flatten(), output["label"]["label"].flatten()


class TrainingCheckpoint:
    """Save a training after every epoch, resume one that was killed, and end with the best weights.

    Writes two files into a folder. ``last.pt`` holds everything a run needs to go on: the head after the last epoch
    (``head``), after the best one (``best_head``), optimizer, schedule and counts. ``best.pt`` is the state dict of the
    best head alone, there as soon as a validation has said which that is:
    ``build_mrad_ft(clip, bank, checkpoint=torch.load("best.pt", weights_only=True))``.

    It stands where zoo bundles have MONAI's `CheckpointSaver`, which writes into the file that it replaces, so that a
    run killed at that moment leaves neither, and which forgets with the process what was best. Nothing in an epoch is
    random but the order, which follows from seed and epoch, so on a CPU a resumed training ends with the weights of an
    uninterrupted one.

    Args:
        folder: where the files go; one training each.
        head: the head that is trained, not wrapped for several processes.
        optimizer: of the training.
        lr_scheduler: of the training, if it has one.
        evaluator: of the validation; its key metric, where it is defined, says which epoch was best. The last is kept
            without one.
        identity: what must be the same in a run that resumes: hashes of backbone, bank and training set, settings.
            Optimizer, schedule, batches an epoch, processes and text tower are compared without being named here.
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
        """Listen to the trainer; validation and schedule must be attached before, early stopping after."""
        for state in (engine, self.evaluator):
            if state is not None:
                state.state_dict_user_keys.extend(["best_metric", "best_metric_epoch"])
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.restore_best)

    def resume(self, engine: Trainer) -> None:
        """Go on from the last epoch that was completed.

        Raises:
            TrainingError: the checkpoint is damaged, of another training, or of more epochs than are asked for.
        """
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            given, expected = saved["identity"], self._identity(engine)
            epochs = saved["trainer"]["iteration"] // expected["epoch_length"]
        except Exception as error:  # bytes that are no checkpoint make the unpickler raise almost anything
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
                f"{self.path} holds a training of {epochs} epoch(s), more than max_epochs, which is {max_epochs}: give "
                f"at least {epochs}, choose another output folder, or delete it to train from the start"
            )
        engine.load_state_dict(saved["trainer"])
        engine.state.max_epochs = max_epochs  # which may have been raised
        load_weights(self.head, saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        if self.evaluator is not None and saved["evaluator"] is not None:
            self.evaluator.load_state_dict(saved["evaluator"])
        self._best = saved["best_head"]
        logger.info("resumed after epoch %d of %d", engine.state.epoch, max_epochs)

    def save(self, engine: Trainer) -> None:
        """Write the state of the training.

        Raises:
            TrainingError: a weight is NaN; the checkpoint before is untouched.
            OSError: the disk is full, or the folder cannot be written to; the checkpoint before is untouched.
        """
        head = copy_weights(self.head)
        if not all(tensor.isfinite().all() for tensor in head.values()):
            raise TrainingError(
                f"weights became NaN or infinite in epoch {engine.state.epoch}: lower the learning rate; the "
                f"checkpoint of the epoch before in {self.path.parent} is untouched"
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
        """Give the head the weights that were best in validation."""
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
    """Stop a training whose validation has not become better for some epochs; it survives a resumption.

    Args:
        evaluator: of the validation.
        patience: epochs without a better key metric.
    """

    def __init__(self, evaluator: Evaluator, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, got {patience}")
        self.evaluator = evaluator
        self.patience = patience

    def attach(self, engine: Trainer) -> None:
        """Listen to the trainer; checkpoint and validation must be attached before."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        """Stop if it is time."""
        best = best_epoch(self.evaluator)
        if best is not None and engine.state.epoch - best >= self.patience:
            logger.info("stopped after epoch %d: epoch %d was the best", engine.state.epoch, best)
            engine.terminate()
