"""Heads compute probabilities from features and a memory bank, as in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad_med.networks.memory_bank import MemoryBank
from mrad_med.networks.prompts import RegionPrompts
from mrad_med.networks.retrieval import average_neighbors, exclude_nearest, nearest_threshold, region_tokens, retrieve
from mrad_med.types import ImageFeatures

__all__ = ["FineTunedHead", "Head", "PromptedHead", "TrainFreeHead"]

PATCH_QUANTILE, IMAGE_QUANTILE = 0.8, 0.95  # keys above these quantiles are excluded in training, as published
TEXT_TEMPERATURE = 0.07  # divides similarities before the softmax over text features, as published


class Head(Protocol):
    """Interface of the heads of all MRAD variants."""

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch is anomalous."""

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""

    def with_bank(self, bank: MemoryBank) -> Head:
        """Return the same head with another memory bank."""


class TrainFreeHead(nn.Module):
    """MRAD-TF: retrieval by cosine similarity, without learned weights.

    Args:
        bank: memory bank. Its keys become buffers, so they move with the module.
        temperature: divisor of the similarities. The published code uses 1, the paper states 0.07.
    """

    image_keys: Tensor
    image_labels: Tensor
    patch_keys: Tensor
    patch_labels: Tensor

    def __init__(self, bank: MemoryBank, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        _register_bank(self, bank)

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch, averaged with its neighbors, is anomalous."""
        return retrieve(_patch_queries(features), self.patch_keys, self.patch_labels, temperature=self.temperature)

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""
        return retrieve(_image_queries(features), self.image_keys, self.image_labels, temperature=self.temperature)

    def learned_state(self) -> dict[str, Tensor]:
        """Return the state dict: the temperature alone, for the bank's tensors are not in it."""
        return self.state_dict()

    def get_extra_state(self) -> Tensor:
        """Return the temperature, for the state dict."""
        return torch.tensor(self.temperature, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the temperature of a state dict."""
        self.temperature = float(state)

    def with_bank(self, bank: MemoryBank) -> TrainFreeHead:
        """Return the same head with another memory bank."""
        return TrainFreeHead(bank, temperature=self.temperature)


class FineTunedHead(nn.Module):
    """MRAD-FT: retrieval by a learned metric, one linear layer for queries and one for keys at each level.

    Projected keys are cached in evaluation mode. The keys nearest to a query are excluded in training mode because the
    bank contains the training images.

    Args:
        bank: memory bank. Its keys become buffers outside the state dict.
        start_temperature: temperature of MRAD-TF that the initial weights reproduce, exactly unless the joint space is
            narrower than the patch tokens. None starts from random weights, as published.
        patch_quantile: quantile of a query's cosines, in [0, 1]; patch keys above it are excluded in training.
        image_quantile: the same for image keys.

    Raises:
        ValueError: the temperature is not positive.
    """

    image_keys: Tensor
    image_labels: Tensor
    patch_keys: Tensor
    patch_labels: Tensor

    def __init__(
        self,
        bank: MemoryBank,
        *,
        start_temperature: float | None = None,
        patch_quantile: float = PATCH_QUANTILE,
        image_quantile: float = IMAGE_QUANTILE,
    ) -> None:
        super().__init__()
        width, embed_dim = bank.patch_keys.shape[1], bank.image_keys.shape[1]
        self.patch_query = nn.Linear(width, embed_dim)
        self.patch_key = nn.Linear(width, embed_dim)
        self.image_query = nn.Linear(embed_dim, embed_dim)
        self.image_key = nn.Linear(embed_dim, embed_dim)
        if start_temperature is not None:
            _start_from_retrieval(self.patch_query, self.patch_key, start_temperature)
            _start_from_retrieval(self.image_query, self.image_key, start_temperature)
        self.patch_quantile = patch_quantile
        self.image_quantile = image_quantile
        _register_bank(self, bank)
        self._folded: dict[str, tuple[object, Tensor]] = {}

    def forward(
        self,
        features: ImageFeatures,
        *,
        patch_threshold: Tensor | None = None,
        image_threshold: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (B, 1, h, w) patch probabilities on the patch grid and (B, 1) image probabilities, for the loss.

        Args:
            features: features of the batch.
            patch_threshold: (B, N) result of `thresholds`; None computes it. Not used in evaluation mode.
            image_threshold: (B, 1), the same at image level.
        """
        patch = self.patch_probability(features, threshold=patch_threshold)
        return patch.reshape(-1, 1, *features.grid_size), self.image_probability(features, threshold=image_threshold)

    def patch_probability(self, features: ImageFeatures, *, threshold: Tensor | None = None) -> Tensor:
        """Return the (B, N) probability that each patch, averaged with its neighbors, is anomalous."""
        queries = _patch_queries(features)
        excluded = self._excluded(queries, self.patch_keys, self.patch_quantile, threshold)
        return self._retrieve("patch", queries, self.patch_keys, self.patch_labels, excluded)

    def image_probability(self, features: ImageFeatures, *, threshold: Tensor | None = None) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""
        queries = _image_queries(features)
        excluded = self._excluded(queries, self.image_keys, self.image_quantile, threshold)
        return self._retrieve("image", queries, self.image_keys, self.image_labels, excluded)

    def thresholds(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Return the cosines above which keys are excluded, for `forward`. They do not depend on learned weights."""
        return {
            "patch_threshold": nearest_threshold(_patch_queries(features), self.patch_keys, self.patch_quantile),
            "image_threshold": nearest_threshold(_image_queries(features), self.image_keys, self.image_quantile),
        }

    def _excluded(self, queries: Tensor, keys: Tensor, quantile: float, threshold: Tensor | None) -> Tensor | None:
        return exclude_nearest(queries, keys, quantile, threshold=threshold) if self.training else None

    def _retrieve(self, level: str, queries: Tensor, keys: Tensor, labels: Tensor, excluded: Tensor | None) -> Tensor:
        query_layer, key_layer = self.get_submodule(f"{level}_query"), self.get_submodule(f"{level}_key")
        return retrieve(query_layer(queries), self._project_keys(level, key_layer, keys), labels, excluded=excluded)

    def _project_keys(self, level: str, layer: nn.Module, keys: Tensor) -> Tensor:
        """Return the projected keys, cached in evaluation mode until weights or keys change."""
        if self.training or torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return layer(keys)  # type: ignore[no-any-return]
        # Writing to a tensor increases its version; moving it changes its address.
        state = tuple((tensor.data_ptr(), _version(tensor)) for tensor in (*layer.parameters(), keys))
        if self._folded.get(level, (None,))[0] != state:
            self._folded[level] = (state, layer(keys))
        return self._folded[level][1]

    def learned_state(self) -> dict[str, Tensor]:
        """Return the learned weights: the state dict, which does not contain the bank's tensors."""
        return self.state_dict()

    def with_bank(self, bank: MemoryBank) -> FineTunedHead:
        """Return a head with the same weights and another memory bank."""
        other = FineTunedHead(bank, patch_quantile=self.patch_quantile, image_quantile=self.image_quantile)
        other.load_state_dict(self.state_dict())
        return other


class PromptedHead(nn.Module):
    """MRAD-CLIP: patches are compared with text features of prompts that depend on the image's regions.

    Args:
        fine_tuned: head that finds the regions and returns the image-level probabilities. It is frozen.
        prompts: module that computes text features from region tokens.
        threshold: retrieval probability above which a patch belongs to the anomalous region.
        temperature: divisor of the similarities before the softmax over the two text features.
    """

    def __init__(
        self,
        fine_tuned: FineTunedHead,
        prompts: RegionPrompts,
        *,
        threshold: float = 0.5,
        temperature: float = TEXT_TEMPERATURE,
    ) -> None:
        super().__init__()
        self.fine_tuned = fine_tuned.requires_grad_(False)
        self.prompts = prompts
        self.threshold = threshold
        self.temperature = temperature

    def forward(self, features: ImageFeatures, *, region_tokens: Tensor | None = None) -> Tensor:
        """Return (B, 1, h, w) patch probabilities on the patch grid, for the loss.

        Args:
            features: features of the batch.
            region_tokens: (B, 2, E) result of `region_tokens`; None computes it.
        """
        patch = self.patch_probability(features, region_tokens=region_tokens)
        return patch.reshape(-1, 1, *features.grid_size)

    def text_features(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 2, E) text features for each image, normal first."""
        return self.prompts(self.region_tokens(features))  # type: ignore[no-any-return]

    def region_tokens(self, features: ImageFeatures, *, patch_threshold: Tensor | None = None) -> Tensor:
        """Return the (B, 2, E) mean projected patch of the normal and of the anomalous region.

        They depend only on features and bank because the fine-tuned head is frozen.
        """
        probability = self.fine_tuned.patch_probability(features, threshold=patch_threshold)
        return region_tokens(self._projected(features), probability, threshold=self.threshold)

    def patch_probability(self, features: ImageFeatures, *, region_tokens: Tensor | None = None) -> Tensor:
        """Return the (B, N) probability that each patch is anomalous."""
        text = self.text_features(features) if region_tokens is None else self.prompts(region_tokens)  # (B, 2, E)
        similarity = self._projected(features) @ text.mT  # (B, N, 2)
        return (similarity / self.temperature).softmax(-1)[..., 1]

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) retrieval probability of the fine-tuned head."""
        return self.fine_tuned.image_probability(features)

    def learned_state(self) -> dict[str, Tensor]:
        """Return the learned weights: the state dict without the text tower, which is the backbone's."""
        return {name: value for name, value in self.state_dict().items() if ".text_encoder." not in name}

    def with_bank(self, bank: MemoryBank) -> PromptedHead:
        """Return the same head with another memory bank."""
        fine_tuned = self.fine_tuned.with_bank(bank)
        return PromptedHead(fine_tuned, self.prompts, threshold=self.threshold, temperature=self.temperature)

    def _projected(self, features: ImageFeatures) -> Tensor:
        averaged = average_neighbors(features.projected_patches, features.grid_size)
        return F.normalize(averaged, dim=-1)


def _start_from_retrieval(query: nn.Linear, key: nn.Linear, temperature: float) -> None:
    """Make the product of projected query and projected key equal to their cosine divided by a temperature."""
    if not temperature > 0:
        raise ValueError(f"start_temperature must be positive, got {temperature}")
    nn.init.orthogonal_(query.weight, gain=temperature**-0.5)
    with torch.no_grad():
        key.weight.copy_(query.weight)
        query.bias.zero_()
        key.bias.zero_()


def _patch_queries(features: ImageFeatures) -> Tensor:
    """Return (B, N, D) L2-normalized patches, each averaged with its neighbors."""
    return F.normalize(average_neighbors(features.patches, features.grid_size), dim=-1)


def _image_queries(features: ImageFeatures) -> Tensor:
    """Return (B, 1, E) L2-normalized image features."""
    return F.normalize(features.image, dim=-1)[:, None]


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was modified in place, or 0 for inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _register_bank(head: nn.Module, bank: MemoryBank) -> None:
    """Register the bank's tensors as buffers of a head, which move with it.

    They are not in its state dict because all variants share the file of the bank.
    """
    for name in ("image_keys", "image_labels", "patch_keys", "patch_labels"):
        head.register_buffer(name, getattr(bank, name), persistent=False)
