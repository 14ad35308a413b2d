"""Trainers of the heads on MONAI's `SupervisedTrainer`: encoder and bank are frozen, features come from a cache."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents, SupervisedTrainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from mrad_med.errors import TrainingError
from mrad_med.networks.clip import CLIPImageEncoder
from mrad_med.networks.heads import FineTunedHead, PromptedHead
from mrad_med.networks.memory_bank import MemoryBank
from mrad_med.training.features import FeatureDataset
from mrad_med.training.losses import FineTuneLoss, PromptLoss
from mrad_med.types import AnomalyKeys, BackboneCard, HeadCard, ImageFeatures

__all__ = ["FineTuneTrainer", "PrepareFeatures", "PromptTrainer", "describe_head", "select_trainable"]

logger = logging.getLogger(__name__)


class PrepareFeatures:
    """Move a batch of cached features to a device, as MONAI's engines ask of ``prepare_batch``.

    Args:
        image_encoder: projects the patches into the joint space, for heads that look there; None leaves them out.
    """

    def __init__(self, image_encoder: CLIPImageEncoder | None = None) -> None:
        self.image_encoder = image_encoder

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[ImageFeatures, dict[str, Tensor]]:
        """Return features, and the ``mask`` (B, 1, H, W) and ``label`` (B,) they are compared with."""
        given: ImageFeatures = batch["features"]
        patches = given.patches.to(device, non_blocking=non_blocking)
        with torch.no_grad():
            projected = patches[..., :0] if self.image_encoder is None else self.image_encoder.project(patches)
        image = given.image.to(device, non_blocking=non_blocking)
        features = ImageFeatures(image, patches, projected, given.grid_size)
        return features, {name: batch[name].to(device, non_blocking=non_blocking) for name in ("mask", "label")}


class _HeadTrainer(SupervisedTrainer):
    """What both stages share: a check of the training set, what each image needs only once, a watch over the loss."""

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: DataLoader[dict[str, Any]],
        network: nn.Module,
        optimizer: Optimizer,
        **keywords: Any,
    ) -> None:
        _check_labels(cast(FeatureDataset, train_data_loader.dataset))
        self._prepare_features = keywords.pop("prepare_batch")
        self._known: dict[int, dict[str, Tensor]] = {}  # by index of the image
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            prepare_batch=self._prepare_with_known,
            decollate=False,
            **keywords,
        )
        self.add_event_handler(IterationEvents.LOSS_COMPLETED, _stop_at_nan)

    def run(self) -> None:
        """Train; the head is in evaluation mode afterwards, ready to score."""
        super().run()
        self.head.eval()

    @property
    def head(self) -> nn.Module:
        """The head itself, without the wrapper that averages its gradients over processes."""
        return cast(nn.Module, getattr(self.network, "module", self.network))

    def _once(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Return what the head needs to know of an image, the same in every epoch: a batch of one."""
        raise NotImplementedError

    @torch.no_grad()
    def _prepare_with_known(self, batch: dict[str, Any], device: torch.device, *args: Any, **keywords: Any) -> Any:
        features, target = self._prepare_features(batch, device, *args, **keywords)
        indices = batch["index"].tolist()
        self.head.train()
        for row, index in enumerate(indices):
            if index not in self._known:
                # Each image alone: the last bits may depend on the batch, and a resumed training meets it in another.
                found = self._once(_image_of(features, row))
                self._known[index] = {name: values[0].cpu() for name, values in found.items()}
        names = self._known[indices[0]]
        known = {name: torch.stack([self._known[index][name] for index in indices]).to(device) for name in names}
        return features, target, (), known

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> Any:
        output = super()._iteration(engine, batchdata)
        # MONAI's handlers, those of its MLflow tracking among them, look for the loss in a list of dictionaries.
        return [{**output, "loss": output["loss"].item()}]


class FineTuneTrainer(_HeadTrainer):
    """Train a `FineTunedHead` on cached features: stage 1 of MRAD.

    Args:
        device: where the head is trained.
        max_epochs: passes over the training set; 1 as published.
        train_data_loader: of `feature_loader`, over images of both labels whose masks are known.
        network: the head, or a `DistributedDataParallel` around it.
        optimizer: of its parameters.
        loss_function: a `FineTuneLoss` if None.
        **keywords: further arguments of MONAI's `SupervisedTrainer`.

    Raises:
        TrainingError: the training set has only normal or only anomalous images; while it runs: the loss is NaN.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: DataLoader[dict[str, Any]],
        network: nn.Module,
        optimizer: Optimizer,
        *,
        loss_function: Callable[..., Tensor] | None = None,
        **keywords: Any,
    ) -> None:
        keywords = {"prepare_batch": PrepareFeatures(), "loss_function": loss_function or FineTuneLoss(), **keywords}
        super().__init__(device, max_epochs, train_data_loader, network, optimizer, **keywords)

    def _once(self, features: ImageFeatures) -> dict[str, Tensor]:
        # In a single epoch each image comes by once: finding its thresholds apart from the step would only cost time.
        return cast(FineTunedHead, self.head).thresholds(features) if self.state.max_epochs > 1 else {}


class PromptTrainer(_HeadTrainer):
    """Learn the prompts of a `PromptedHead` on cached features, its fine-tuned head frozen: stage 2 of MRAD-CLIP.

    Args:
        device: where the head is trained.
        max_epochs: passes over the training set; 5 as published.
        train_data_loader: of `feature_loader`, over images of both labels whose masks are known.
        network: the head, or a `DistributedDataParallel` around it.
        optimizer: of its learned parameters.
        image_encoder: projects cached patches into the joint space.
        fine_tuned: stage 1, whose weights are taken over when the training starts; None where the head has them.
        loss_function: a `PromptLoss` if None.
        **keywords: further arguments of MONAI's `SupervisedTrainer`.

    Raises:
        TrainingError: the training set has only normal or only anomalous images; while it runs: the loss is NaN.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: DataLoader[dict[str, Any]],
        network: nn.Module,
        optimizer: Optimizer,
        *,
        image_encoder: CLIPImageEncoder,
        fine_tuned: FineTunedHead | None = None,
        loss_function: Callable[..., Tensor] | None = None,
        **keywords: Any,
    ) -> None:
        keywords = {
            "prepare_batch": PrepareFeatures(image_encoder),
            "loss_function": loss_function or PromptLoss(),
            **keywords,
        }
        super().__init__(device, max_epochs, train_data_loader, network, optimizer, **keywords)
        self.fine_tuned = fine_tuned

    def run(self) -> None:
        """Take over the weights of stage 1 and train; a checkpoint that is resumed from brings its own."""
        if self.fine_tuned is not None:
            cast(PromptedHead, self.head).fine_tuned.load_state_dict(self.fine_tuned.state_dict())
        super().run()

    def _once(self, features: ImageFeatures) -> dict[str, Tensor]:
        return {"region_tokens": cast(PromptedHead, self.head).region_tokens(features)}


def select_trainable(dataset: FeatureDataset) -> FeatureDataset:
    """Return the part of a training set that can be learned from, and name what is left out in the log.

    An anomalous image without a mask, or with an empty one, does not say what is anomalous in it.

    Raises:
        TrainingError: only normal or only anomalous images are left.
    """
    usable = []
    for index, case in enumerate(dataset.cases):
        if int(case[AnomalyKeys.LABEL]) == 1 and not (dataset.mask(index) > 0.5).any():  # NaN is not above
            logger.warning("%s: left out of training: labeled anomalous, but its mask is empty", case["case_id"])
        else:
            usable.append(index)
    selected = dataset.subset(usable)
    _check_labels(selected)
    return selected


def _image_of(features: ImageFeatures, row: int) -> ImageFeatures:
    image, patches, projected = (
        tensor[row : row + 1] for tensor in (features.image, features.patches, features.projected_patches)
    )
    return ImageFeatures(image, patches, projected, features.grid_size)


def _check_labels(dataset: FeatureDataset) -> None:
    anomalous = sum(int(case[AnomalyKeys.LABEL]) for case in dataset.cases)
    if anomalous in (0, len(dataset)):
        raise TrainingError(
            f"a head cannot learn from {len(dataset) - anomalous} normal and {anomalous} anomalous image(s) with a "
            "mask: both kinds are needed"
        )


def _stop_at_nan(engine: Engine) -> None:
    """Stop before the weights are touched."""
    loss = engine.state.output["loss"].item()
    if not math.isfinite(loss):
        cases = ", ".join(engine.state.batch["case_id"])
        raise TrainingError(
            f"the loss is {loss} in epoch {engine.state.epoch}, on {cases}: look at these images and masks, "
            "or lower the learning rate; the last checkpoint is untouched"
        )


def describe_head(
    *,
    variant: str,
    backbone: BackboneCard,
    bank: MemoryBank,
    training_set: FeatureDataset,
    configuration: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> HeadCard:
    """Return the card of a head that is trained with a bank on cached features; arguments as in `HeadCard`."""
    return HeadCard(
        variant=variant,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        bank_sha256=bank.sha256,
        training_set=training_set.sources,
        configuration=dict(configuration or {}),
        metrics=dict(metrics or {}),
    )
