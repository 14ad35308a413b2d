"""Ignite handlers of a training: validation metrics, checkpoints that a killed run resumes from, early stopping."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import Evaluator, Trainer
from torch import Tensor, nn

from mrad_med.engines import TrainingError
from mrad_med.files import atomic_path
from mrad_med.heads import PromptedHead
from mrad_med.metrics import PixelMetrics, image_metrics
from mrad_med.types import AnomalyKeys

__all__ = ["EarlyStop", "PixelMetric", "ScoreMetric", "TrainingCheckpoint"]

logger = logging.getLogger(__name__)

VALIDATION_STRIDE = 4  # maps are smoothed over 4 pixels, so that every fourth says as much


class PixelMetric(Metric):
    """One of the `PixelMetrics` as an ignite metric of an evaluator, over all processes.

    Args:
        name: which of them, for example ``"auroc"`` or ``"ap"``.
        stride: only every such row and column of maps and masks is looked at.
    """

    def __init__(self, name: str = "auroc", *, stride: int = VALIDATION_STRIDE) -> None:
        self.name = name
        self.stride = stride
        super().__init__(output_transform=itemgetter("pred", "label"))

    def reset(self) -> None:
        """Forget everything."""
        self._pixels = PixelMetrics()

    def update(self, output: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> None:
        """Take in predictions and targets of a batch; masks that are not known are left out."""
        prediction, target = output
        known = ~target["mask"].isnan().flatten(1).any(1)
        maps, masks = prediction[AnomalyKeys.ANOMALY_MAP][known], target["mask"][known]
        self._pixels.update(maps[..., :: self.stride, :: self.stride], masks[..., :: self.stride, :: self.stride])

    def compute(self) -> float:
        """Return the metric; NaN where it is undefined."""
        merged = PixelMetrics()
        for part in _gather(self._pixels):
            merged.merge(part)
        try:
            return merged.compute()[self.name]
        except ValueError as error:
            logger.warning("%s", error)
            return float("nan")


class ScoreMetric(Metric):
    """One of the `image_metrics` as an ignite metric of an evaluator, over all processes.

    Args:
        name: ``"auroc"`` or ``"ap"``.
    """

    def __init__(self, name: str = "auroc") -> None:
        self.name = name
        super().__init__(output_transform=itemgetter("pred", "label"))

    def reset(self) -> None:
        """Forget everything."""
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, output: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> None:
        """Take in predictions and targets of a batch."""
        prediction, target = output
        self._scores.append(prediction[AnomalyKeys.ANOMALY_SCORE].flatten().cpu())
        self._labels.append(target["label"].flatten().cpu())

    def compute(self) -> float:
        """Return the metric; NaN where it is undefined."""
        parts = _gather((self._scores, self._labels))
        scores, labels = (torch.cat([tensor for part in parts for tensor in part[i]]) for i in (0, 1))
        try:
            return image_metrics(scores, labels)[self.name]
        except ValueError as error:
            logger.warning("%s", error)
            return float("nan")


def _gather(part: Any) -> list[Any]:
    """Return what every process has."""
    if not dist.is_initialized():
        return [part]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


class TrainingCheckpoint:
    """Save a training after every epoch, resume one that was killed, and end with the best weights.

    One file, ``last.pt``, replaced as a whole: MONAI's `CheckpointSaver` writes into the file that it replaces, and its
    notion of what was best does not survive the process. Training is reproducible from epoch to epoch, so a resumed one
    ends with the weights of an uninterrupted one.

    Args:
        folder: where ``last.pt`` goes; one training each.
        trainer_head: the head that is trained, not wrapped for several processes.
        optimizer: of the training.
        lr_scheduler: of the training, if it has one.
        evaluator: of the validation; its key metric says which epoch was best. The last is kept without one.
        identity: what must be the same in a run that resumes: hashes of backbone, bank and training set, settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        head: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        lr_scheduler: Any = None,
        evaluator: Evaluator | None = None,
        identity: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None:
        self.path = Path(folder) / "last.pt"
        self.head = head
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.identity = dict(identity or {})
        self._best: dict[str, Tensor] | None = None

    def attach(self, engine: Trainer) -> None:
        """Listen to the trainer; the validation must be attached before."""
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.restore_best)

    def resume(self, engine: Trainer) -> None:
        """Go on from the last epoch that was completed.

        Raises:
            TrainingError: the checkpoint is damaged, or of another training.
        """
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = saved["identity"]
        except Exception as error:  # bytes that are no checkpoint make the unpickler raise almost anything
            raise TrainingError(f"{self.path} is damaged; delete it to train from the start") from error
        other = sorted(name for name in {*identity, *self.identity} if identity.get(name) != self.identity.get(name))
        if other:
            raise TrainingError(
                f"{self.path} belongs to another training: {', '.join(other)} differ(s); choose another output folder, "
                "or delete it to train from the start"
            )
        max_epochs = engine.state.max_epochs
        engine.load_state_dict(saved["trainer"])
        engine.state.max_epochs = max_epochs
        self.head.load_state_dict(saved["head"], strict=False)  # without the text tower, which is the backbone's
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        self._best = saved["best_head"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = saved["best_metric"]
            self.evaluator.state.best_metric_epoch = saved["best_metric_epoch"]
        logger.info("resumed after epoch %d of %d", engine.state.epoch, max_epochs)

    def save(self, engine: Trainer) -> None:
        """Write the state of the training.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; the checkpoint before is untouched.
        """
        head = _learned(self.head)
        best = None if self.evaluator is None else self.evaluator.state
        if best is not None and best.best_metric_epoch == engine.state.epoch:
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in head.items()}
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        content = {
            "identity": self.identity,
            "trainer": engine.state_dict(),
            "head": head,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "best_head": self._best,
            "best_metric": None if best is None else float(best.best_metric),
            "best_metric_epoch": None if best is None else best.best_metric_epoch,
        }
        try:
            with atomic_path(self.path) as partial:
                torch.save(content, partial)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            raise OSError(f"cannot write {self.path}: {error}; the checkpoint before is untouched") from error

    def restore_best(self, _: Engine) -> None:
        """Give the head the weights that were best in validation."""
        if self._best is not None:
            self.head.load_state_dict(self._best, strict=False)


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
        best = self.evaluator.state.best_metric_epoch
        if best > 0 and engine.state.epoch - best >= self.patience:
            logger.info("stopped after epoch %d: epoch %d was the best", engine.state.epoch, best)
            engine.terminate()


def _learned(head: nn.Module) -> dict[str, Tensor]:
    return head.learned_state() if isinstance(head, PromptedHead) else head.state_dict()
