"""Trainers of heads, based on MONAI's `SupervisedTrainer`: encoder and bank are frozen, features come from a cache."""

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
    """Move a batch of cached features to a device; for ``prepare_batch`` of MONAI's engines.

    Args:
        image_encoder: encoder that projects the patches into the joint image-text space, for heads that use projected
            patches; None leaves them out.
    """

    def __init__(self, image_encoder: CLIPImageEncoder | None = None) -> None:
        self.image_encoder = image_encoder

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[ImageFeatures, dict[str, Tensor]]:
        """Return the features, and their target: ``mask`` (B, 1, H, W) and ``label`` (B,)."""
        given: ImageFeatures = batch["features"]
        patches = given.patches.to(device, non_blocking=non_blocking)
        with torch.no_grad():
            projected = patches[..., :0] if self.image_encoder is None else self.image_encoder.project(patches)
        image = given.image.to(device, non_blocking=non_blocking)
        features = ImageFeatures(image, patches, projected, given.grid_size)
        return features, {name: batch[name].to(device, non_blocking=non_blocking) for name in ("mask", "label")}


class _HeadTrainer(SupervisedTrainer):
    """Base of both stages: checks the training set, computes constant inputs once an image, and stops at NaN losses."""

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
        """Train the head and then set it to evaluation mode."""
        super().run()
        self.head.eval()

    @property
    def head(self) -> nn.Module:
        """The head, without the wrapper that averages its gradients over processes."""
        return cast(nn.Module, getattr(self.network, "module", self.network))

    def _once(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Return the inputs of the head that stay the same in every epoch, for a batch of one image."""
        raise NotImplementedError

    @torch.no_grad()
    def _prepare_with_known(self, batch: dict[str, Any], device: torch.device, *args: Any, **keywords: Any) -> Any:
        features, target = self._prepare_features(batch, device, *args, **keywords)
        indices = batch["index"].tolist()
        self.head.train()
        for row, index in enumerate(indices):
            if index not in self._known:
                # One image at a time: the last bits may depend on the batch, and a resumed training has other batches.
                found = self._once(_image_of(features, row))
                self._known[index] = {name: values[0].cpu() for name, values in found.items()}
        names = self._known[indices[0]]
        known = {name: torch.stack([self._known[index][name] for index in indices]).to(device) for name in names}
        return features, target, (), known

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> Any:
        output = super()._iteration(engine, batchdata)
        # MONAI's handlers, such as MLFlowHandler, expect the loss in a list of dictionaries.
        return [{**output, "loss": output["loss"].item()}]


class FineTuneTrainer(_HeadTrainer):
    """Train a `FineTunedHead` on cached features: stage 1 of MRAD.

    Args:
        device: device of the training.
        max_epochs: number of epochs; 1 as published.
        train_data_loader: loader from `feature_loader`, with images of both labels whose masks are known.
        network: the head, or a `DistributedDataParallel` around it.
        optimizer: optimizer of the head's parameters.
        loss_function: loss; `FineTuneLoss` if None.
        **keywords: further arguments of MONAI's `SupervisedTrainer`.

    Raises:
        TrainingError: the training set has only normal or only anomalous images. `run` raises it if the loss is NaN or
            infinite.
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
        # In a single epoch each image is used once: computing its thresholds in advance would only take time.
        return cast(FineTunedHead, self.head).thresholds(features) if self.state.max_epochs > 1 else {}


class PromptTrainer(_HeadTrainer):
    """Train the prompts of a `PromptedHead` on cached features, with a frozen fine-tuned head: stage 2 of MRAD-CLIP.

    Args:
        device: device of the training.
        max_epochs: number of epochs; 5 as published.
        train_data_loader: loader from `feature_loader`, with images of both labels whose masks are known.
        network: the head, or a `DistributedDataParallel` around it.
        optimizer: optimizer of the parameters that are trained.
        image_encoder: encoder that projects cached patches into the joint image-text space.
        fine_tuned: head of stage 1, whose weights are copied when the training starts; None if the head has them.
        loss_function: loss; `PromptLoss` if None.
        **keywords: further arguments of MONAI's `SupervisedTrainer`.

    Raises:
        TrainingError: the training set has only normal or only anomalous images. `run` raises it if the loss is NaN or
            infinite.
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
        """Copy the weights of stage 1 and train; a checkpoint that is resumed replaces these weights."""
        if self.fine_tuned is not None:
            cast(PromptedHead, self.head).fine_tuned.load_state_dict(self.fine_tuned.state_dict())
        super().run()

    def _once(self, features: ImageFeatures) -> dict[str, Tensor]:
        return {"region_tokens": cast(PromptedHead, self.head).region_tokens(features)}


def select_trainable(dataset: FeatureDataset) -> FeatureDataset:
    """Return a training set without anomalous images whose mask is missing or empty; log the names of those.

    Such images do not show which pixels are anomalous.

    Args:
        dataset: training set with normal and anomalous images.

    Raises:
        TrainingError: only normal or only anomalous images remain.
    """
    usable = []
    for index, case in enumerate(dataset.cases):
        if int(case[AnomalyKeys.LABEL]) == 1 and not (dataset.mask(index) > 0.5).any():  # false for NaN
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
            f"a head cannot be trained on {len(dataset) - anomalous} normal and {anomalous} anomalous image(s) with a "
            "mask: both labels are needed"
        )


def _stop_at_nan(engine: Engine) -> None:
    """Raise TrainingError before the weights are updated if the loss is NaN or infinite."""
    loss = engine.state.output["loss"].item()
    if not math.isfinite(loss):
        cases = ", ".join(engine.state.batch["case_id"])
        raise TrainingError(
            f"the loss is {loss} in epoch {engine.state.epoch}, on {cases}: check these images and masks, "
            "or lower the learning rate. The last checkpoint is unchanged"
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
    """Return the card of a head that was trained on cached features.

    Args:
        variant: ``"MRAD-FT"`` or ``"MRAD-CLIP"``.
        backbone: card of the backbone.
        bank: memory bank of the head.
        training_set: features the head was trained on.
        configuration: values of the training and of the head.
        metrics: measured results.
    """
    return HeadCard(
        variant=variant,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        bank_sha256=bank.sha256,
        training_set=training_set.sources,
        configuration=dict(configuration or {}),
        metrics=dict(metrics or {}),
    )
