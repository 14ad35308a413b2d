"""What turns features and a memory bank into probabilities, as in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad_med.memory import MemoryBank
from mrad_med.prompts import RegionPrompts
from mrad_med.retrieval import average_neighbors, exclude_nearest, region_tokens, retrieve
from mrad_med.types import ImageFeatures

__all__ = ["FineTunedHead", "Head", "PromptedHead", "TrainFreeHead"]

PATCH_QUANTILE, IMAGE_QUANTILE = 0.8, 0.95  # keys above it are excluded in training, as published
TEXT_TEMPERATURE = 0.07  # of the softmax over text features, as published


class Head(Protocol):
    """The two questions every variant of MRAD answers."""

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch is anomalous."""

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""

    def with_bank(self, bank: MemoryBank) -> Head:
        """Return the same head over another memory bank."""


class TrainFreeHead(nn.Module):
    """MRAD-TF: retrieval by cosine similarity, nothing learned.

    Args:
        bank: the memory. Its keys become buffers, so they move with the module.
        temperature: similarities are divided by it. The published code uses 1, the paper writes 0.07.
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
        queries = F.normalize(average_neighbors(features.patches, features.grid_size), dim=-1)
        return retrieve(queries, self.patch_keys, self.patch_labels, temperature=self.temperature)

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""
        queries = F.normalize(features.image, dim=-1)[:, None]
        return retrieve(queries, self.image_keys, self.image_labels, temperature=self.temperature)

    def with_bank(self, bank: MemoryBank) -> TrainFreeHead:
        """Return the same head over another memory bank."""
        return TrainFreeHead(bank, temperature=self.temperature)


class FineTunedHead(nn.Module):
    """MRAD-FT: retrieval by a learned metric, two pairs of linear layers.

    Projected keys are kept while the head is in evaluation mode and its weights do not change. In training mode the
    keys nearest to a query are excluded, for the images trained on are in the bank themselves.

    Args:
        bank: the memory. Its keys become buffers outside the state dict.
        patch_quantile: of the raw cosine, above which patch keys are excluded in training.
        image_quantile: the same for image keys.
    """

    image_keys: Tensor
    image_labels: Tensor
    patch_keys: Tensor
    patch_labels: Tensor

    def __init__(
        self, bank: MemoryBank, *, patch_quantile: float = PATCH_QUANTILE, image_quantile: float = IMAGE_QUANTILE
    ) -> None:
        super().__init__()
        width, embed_dim = bank.patch_keys.shape[1], bank.image_keys.shape[1]
        self.patch_query = nn.Linear(width, embed_dim)
        self.patch_key = nn.Linear(width, embed_dim)
        self.image_query = nn.Linear(embed_dim, embed_dim)
        self.image_key = nn.Linear(embed_dim, embed_dim)
        self.patch_quantile = patch_quantile
        self.image_quantile = image_quantile
        _register_bank(self, bank)
        self._folded: dict[str, tuple[object, Tensor]] = {}

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch, averaged with its neighbors, is anomalous."""
        queries = F.normalize(average_neighbors(features.patches, features.grid_size), dim=-1)
        return self._retrieve("patch", queries, self.patch_keys, self.patch_labels, self.patch_quantile)

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""
        queries = F.normalize(features.image, dim=-1)[:, None]
        return self._retrieve("image", queries, self.image_keys, self.image_labels, self.image_quantile)

    def _retrieve(self, level: str, queries: Tensor, keys: Tensor, labels: Tensor, quantile: float) -> Tensor:
        query_layer, key_layer = self.get_submodule(f"{level}_query"), self.get_submodule(f"{level}_key")
        excluded = exclude_nearest(queries, keys, quantile) if self.training else None
        return retrieve(query_layer(queries), self._project_keys(level, key_layer, keys), labels, excluded=excluded)

    def _project_keys(self, level: str, layer: nn.Module, keys: Tensor) -> Tensor:
        """Return the projected keys; in evaluation they are computed once per change of weights or keys."""
        if self.training or torch.is_grad_enabled():
            return layer(keys)  # type: ignore[no-any-return]
        # Writing to a tensor raises its version, moving it changes its address.
        state = tuple((tensor.data_ptr(), _version(tensor)) for tensor in (*layer.parameters(), keys))
        if self._folded.get(level, (None,))[0] != state:
            self._folded[level] = (state, layer(keys))
        return self._folded[level][1]

    def with_bank(self, bank: MemoryBank) -> FineTunedHead:
        """Return the same head over another memory bank, with the same weights."""
        other = FineTunedHead(bank, patch_quantile=self.patch_quantile, image_quantile=self.image_quantile)
        other.load_state_dict(self.state_dict())
        return other


class PromptedHead(nn.Module):
    """MRAD-CLIP: patches against the text features of prompts that the fine-tuned head's regions have biased.

    Args:
        fine_tuned: finds the regions and answers for whole images. Frozen.
        prompts: region tokens to text features.
        threshold: patches whose retrieval probability is above it are the anomalous region.
        temperature: of the softmax over the two text features.
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

    def text_features(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 2, E) text features made for each image, normal first."""
        return self.prompts(self.region_tokens(features))  # type: ignore[no-any-return]

    def region_tokens(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 2, E) mean projected patch of the normal and of the anomalous region."""
        probability = self.fine_tuned.patch_probability(features)
        return region_tokens(self._projected(features), probability, threshold=self.threshold)

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch is anomalous."""
        similarity = self._projected(features) @ self.text_features(features).mT  # (B, N, 2)
        return (similarity / self.temperature).softmax(-1)[..., 1]

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) retrieval probability of the fine-tuned head."""
        return self.fine_tuned.image_probability(features)

    def with_bank(self, bank: MemoryBank) -> PromptedHead:
        """Return the same head over another memory bank."""
        fine_tuned = self.fine_tuned.with_bank(bank)
        return PromptedHead(fine_tuned, self.prompts, threshold=self.threshold, temperature=self.temperature)

    def _projected(self, features: ImageFeatures) -> Tensor:
        averaged = average_neighbors(features.projected_patches, features.grid_size)
        return F.normalize(averaged, dim=-1)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; one made in inference mode does not count and stays at 0."""
    return 0 if tensor.is_inference() else tensor._version


def _register_bank(head: nn.Module, bank: MemoryBank) -> None:
    """Make the bank's tensors buffers of a head, so that they move with it.

    They are not in its state dict: a bank is a file of its own, shared by all variants.
    """
    for name in ("image_keys", "image_labels", "patch_keys", "patch_labels"):
        head.register_buffer(name, getattr(bank, name), persistent=False)
