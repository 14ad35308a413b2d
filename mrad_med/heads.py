"""What turns features and a memory bank into probabilities. METHOD: arXiv 2602.00522, section 3."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from mrad_med.memory import MemoryBank
from mrad_med.retrieval import average_neighbors, retrieve
from mrad_med.types import ImageFeatures

__all__ = ["Head", "TrainFreeHead"]


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
        # Not in the state dict: a bank is a file of its own, shared by all variants.
        for name in ("image_keys", "image_labels", "patch_keys", "patch_labels"):
            self.register_buffer(name, getattr(bank, name), persistent=False)

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
