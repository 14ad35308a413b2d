"""MRAD as one network: frozen encoder + memory bank + head."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor, nn

from mrad_med.clip import CLIP, CLIPImageEncoder
from mrad_med.head_files import HeadError, check_head, load_head
from mrad_med.heads import FineTunedHead, Head, PromptedHead, TrainFreeHead
from mrad_med.maps import GAUSSIAN_SIGMA, upsample_and_blur
from mrad_med.memory import MemoryBank
from mrad_med.prompts import CONTEXT_LENGTH, DEEP_LENGTH, DEPTH, RegionPrompts
from mrad_med.types import ImageFeatures

__all__ = ["MRAD", "build_mrad_clip", "build_mrad_ft", "build_mrad_tf"]

Checkpoint = str | os.PathLike[str] | Mapping[str, Tensor]


class MRAD(nn.Module):
    """Image in, anomaly map out; every step can be called on its own, so that an image is encoded once.

    Args:
        image_encoder: the frozen encoder.
        head: any module with `patch_probability` and `image_probability`.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.
    """

    def __init__(self, image_encoder: CLIPImageEncoder, head: Head, *, sigma: float = GAUSSIAN_SIGMA) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.head = head
        self.sigma = sigma

    def encode(self, images: Tensor) -> ImageFeatures:
        """Return the features of (B, 3, H, W) normalized images."""
        return self.image_encoder(images)  # type: ignore[no-any-return]

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, N) probability that each patch is anomalous."""
        return self.head.patch_probability(features)

    def image_probability(self, features: ImageFeatures) -> Tensor:
        """Return the (B, 1) probability that each image is anomalous."""
        return self.head.image_probability(features)

    def anomaly_map(self, features: ImageFeatures, image_size: tuple[int, int]) -> Tensor:
        """Return (B, 1, H, W) maps in [0, 1], upsampled to ``image_size`` (H, W) and blurred."""
        probability = self.patch_probability(features)
        patch_maps = probability.reshape(-1, 1, *features.grid_size)
        return upsample_and_blur(patch_maps, image_size, sigma=self.sigma).clamp(0, 1)  # float rounding

    def with_bank(self, bank: MemoryBank) -> MRAD:
        """Return the same network over another memory bank, for example an extended one; the encoder is shared."""
        device = next(self.image_encoder.parameters()).device
        return MRAD(self.image_encoder, self.head.with_bank(bank), sigma=self.sigma).to(device).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 1, H, W) anomaly maps in [0, 1] of (B, 3, H, W) normalized images."""
        return self.anomaly_map(self.encode(images), (images.shape[-2], images.shape[-1]))


def build_mrad_tf(clip: CLIP, bank: MemoryBank, *, temperature: float = 1.0, sigma: float = GAUSSIAN_SIGMA) -> MRAD:
    """Return MRAD-TF, the train-free variant.

    Args:
        clip: the backbone that made the bank.
        bank: the memory.
        temperature: similarities are divided by it. The published code uses 1, the paper writes 0.07.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone.
    """
    bank.check(clip.card)
    return _assemble(clip, TrainFreeHead(bank, temperature=temperature), sigma)


def build_mrad_ft(
    clip: CLIP, bank: MemoryBank, *, checkpoint: Checkpoint | None = None, sigma: float = GAUSSIAN_SIGMA
) -> MRAD:
    """Return MRAD-FT, retrieval by a learned metric.

    Args:
        clip: the backbone that made the bank.
        bank: the memory.
        checkpoint: a file of `save_head`, a published checkpoint file, or the state dict of a `FineTunedHead`; None
            starts from random weights, for training.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone.
        HeadError: the head was trained on another backbone or with another bank, or its file is damaged.
        ValueError: the checkpoint belongs to another variant.
    """
    bank.check(clip.card)
    head = FineTunedHead(bank)
    _load_weights(head, checkpoint, clip, bank)
    return _assemble(clip, head, sigma)


def build_mrad_clip(
    clip: CLIP,
    bank: MemoryBank,
    *,
    checkpoint: Checkpoint | None = None,
    threshold: float = 0.5,
    context_length: int = CONTEXT_LENGTH,
    depth: int = DEPTH,
    deep_length: int = DEEP_LENGTH,
    fp16_deep_prompts: bool = False,
    sigma: float = GAUSSIAN_SIGMA,
) -> MRAD:
    """Return MRAD-CLIP, patches against text prompts that each image's regions bias.

    Args:
        clip: the backbone that made the bank, with a text tower.
        bank: the memory.
        checkpoint: a file of `save_head`, a published checkpoint file, or the state dict of a `PromptedHead` (its text
            tower may be absent); None starts from random weights, for training.
        threshold: patches whose retrieval probability is above it are the anomalous region.
        context_length: as in `RegionPrompts`.
        depth: as in `RegionPrompts`.
        deep_length: as in `RegionPrompts`.
        fp16_deep_prompts: as in `RegionPrompts`; the published code rounds.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone.
        HeadError: the head was trained on another backbone or with another bank, or its file is damaged.
        ValueError: the backbone has no text tower, or the checkpoint belongs to another variant.
    """
    bank.check(clip.card)
    if clip.text_encoder is None:
        raise ValueError(f"{clip.card.name} has no text tower; MRAD-CLIP needs one: load for example 'openai'")
    prompts = RegionPrompts(
        clip.text_encoder,
        clip.card.embed_dim,
        context_length=context_length,
        depth=depth,
        deep_length=deep_length,
        fp16_deep_prompts=fp16_deep_prompts,
    )
    head = PromptedHead(FineTunedHead(bank), prompts, threshold=threshold)
    _load_weights(head, checkpoint, clip, bank)
    return _assemble(clip, head, sigma)


def _load_weights(
    head: FineTunedHead | PromptedHead, checkpoint: Checkpoint | None, clip: CLIP, bank: MemoryBank
) -> None:
    """Load weights into a head; everything but the text tower, which is the backbone's, must be there."""
    if checkpoint is None:
        return
    state, card = (checkpoint, None) if isinstance(checkpoint, Mapping) else load_head(checkpoint)
    if card is not None:
        check_head(card, clip.card, bank)
    try:
        missing, unexpected = head.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise HeadError(f"this checkpoint belongs to another backbone: {error}") from error
    missing = [name for name in missing if not name.startswith("prompts.text_encoder.")]
    if missing or unexpected:
        raise HeadError(
            f"this checkpoint is not one of a {type(head).__name__}: it lacks {missing[:3]} and brings {unexpected[:3]}"
        )


def _assemble(clip: CLIP, head: Head, sigma: float) -> MRAD:
    device = next(clip.image_encoder.parameters()).device
    return MRAD(clip.image_encoder, head, sigma=sigma).to(device).eval()
