"""What turns features and a memory bank into probabilities, as in MRAD (arXiv 2602.00522)."""

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
        """Return the same head over another memory bank."""
        return TrainFreeHead(bank, temperature=self.temperature)


class FineTunedHead(nn.Module):
    """MRAD-FT: retrieval by a learned metric, two pairs of linear layers.

    Projected keys are kept while the head is in evaluation mode and its weights do not change. In training mode the
    keys nearest to a query are excluded, for the images trained on are in the bank themselves.

    Args:
        bank: the memory. Its keys become buffers outside the state dict.
        start_temperature: the weights start as those of MRAD-TF at this temperature (exactly, unless the joint space
            is the narrower one). None starts from random weights, as published.
        patch_quantile: of the raw cosine, above which patch keys are excluded in training.
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
        """Return what the loss compares: (B, 1, h, w) patch probabilities on their grid, (B, 1) image probabilities.

        Args:
            features: of the batch.
            patch_threshold: (B, N), as `thresholds` gives; found anew if None. Without a part in evaluation mode.
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
        """Return what `forward` needs to exclude the nearest keys: it depends on nothing that is learned."""
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
        """Return the projected keys; in evaluation they are computed once per change of weights or keys."""
        if self.training or torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return layer(keys)  # type: ignore[no-any-return]
        # Writing to a tensor raises its version, moving it changes its address.
        state = tuple((tensor.data_ptr(), _version(tensor)) for tensor in (*layer.parameters(), keys))
        if self._folded.get(level, (None,))[0] != state:
            self._folded[level] = (state, layer(keys))
        return self._folded[level][1]

    def learned_state(self) -> dict[str, Tensor]:
        """Return the weights that were learned: the state dict, for the bank's tensors are not in it."""
        return self.state_dict()

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

    def forward(self, features: ImageFeatures, *, region_tokens: Tensor | None = None) -> Tensor:
        """Return what the loss compares: (B, 1, h, w) patch probabilities on their grid.

        Args:
            features: of the batch.
            region_tokens: (B, 2, E), as `region_tokens` gives; found anew if None.
        """
        patch = self.patch_probability(features, region_tokens=region_tokens)
        return patch.reshape(-1, 1, *features.grid_size)

    def text_features(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 2, E) text features made for each image, normal first."""
        return self.prompts(self.region_tokens(features))  # type: ignore[no-any-return]

    def region_tokens(self, features: ImageFeatures, *, patch_threshold: Tensor | None = None) -> Tensor:
        """Return the (B, 2, E) mean projected patch of the normal and of the anomalous region.

        The fine-tuned head is frozen, so they stay the same as long as features and bank do.
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
        """Return the weights that were learned: the state dict without the text tower, which is the backbone's."""
        return {name: value for name, value in self.state_dict().items() if ".text_encoder." not in name}

    def with_bank(self, bank: MemoryBank) -> PromptedHead:
        """Return the same head over another memory bank."""
        fine_tuned = self.fine_tuned.with_bank(bank)
        return PromptedHead(fine_tuned, self.prompts, threshold=self.threshold, temperature=self.temperature)

    def _projected(self, features: ImageFeatures) -> Tensor:
        averaged = average_neighbors(features.projected_patches, features.grid_size)
        return F.normalize(averaged, dim=-1)


def _start_from_retrieval(query: nn.Linear, key: nn.Linear, temperature: float) -> None:
    """Make the product of a projected query and a projected key their cosine divided by a temperature."""
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
    """Return how often a tensor was written to; one made in inference mode does not count and stays at 0."""
    return 0 if tensor.is_inference() else tensor._version


def _register_bank(head: nn.Module, bank: MemoryBank) -> None:
    """Make the bank's tensors buffers of a head, so that they move with it.

    They are not in its state dict: a bank is a file of its own, shared by all variants.
    """
    for name in ("image_keys", "image_labels", "patch_keys", "patch_labels"):
        head.register_buffer(name, getattr(bank, name), persistent=False)
