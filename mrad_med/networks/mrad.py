"""MRAD as one network: frozen encoder, memory bank and head."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mrad_med.errors import HeadError
from mrad_med.networks.clip import CLIP, CLIPImageEncoder, CLIPTextEncoder
from mrad_med.networks.head_files import PREFIX, check_head, drop_prefix, load_head, load_weights
from mrad_med.networks.heads import FineTunedHead, Head, PromptedHead, TrainFreeHead
from mrad_med.networks.maps import GAUSSIAN_SIGMA, upsample_and_blur
from mrad_med.networks.memory_bank import MemoryBank
from mrad_med.networks.prompts import CONTEXT_LENGTH, DEEP_LENGTH, DEPTH, RegionPrompts
from mrad_med.types import ImageFeatures

__all__ = ["MRAD", "build_mrad_clip", "build_mrad_ft", "build_mrad_tf"]

Checkpoint = str | os.PathLike[str] | Mapping[str, Tensor]


class MRAD(nn.Module):
    """Compute anomaly maps of images. Each step is a method, so an image needs to be encoded only once.

    Args:
        image_encoder: frozen encoder.
        head: any module with the methods of `Head`.
        sigma: standard deviation of the map's Gaussian, in pixels of the network's input.
    """

    def __init__(self, image_encoder: CLIPImageEncoder, head: Head, *, sigma: float = GAUSSIAN_SIGMA) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.head = head
        self.sigma = sigma
        self.register_load_state_dict_pre_hook(_complete_head)  # type: ignore[no-untyped-call]

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
        return upsample_and_blur(patch_maps, image_size, sigma=self.sigma).clamp(0, 1)  # corrects float rounding

    def with_bank(self, bank: MemoryBank) -> MRAD:
        """Return the same network with another memory bank, for example an extended one; the encoder is shared."""
        device = next(self.image_encoder.parameters()).device
        return MRAD(self.image_encoder, self.head.with_bank(bank), sigma=self.sigma).to(device).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 1, H, W) anomaly maps in [0, 1] for (B, 3, H, W) normalized images."""
        return self.anomaly_map(self.encode(images), (images.shape[-2], images.shape[-1]))


def build_mrad_tf(clip: CLIP, bank: MemoryBank, *, temperature: float = 1.0, sigma: float = GAUSSIAN_SIGMA) -> MRAD:
    """Return MRAD-TF, the train-free variant.

    Args:
        clip: backbone that made the bank.
        bank: memory bank.
        temperature: divisor of the similarities. The published code uses 1, the paper states 0.07.
        sigma: standard deviation of the map's Gaussian, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone or lacks a label.
    """
    bank.check(clip.card)
    return _assemble(clip, TrainFreeHead(bank, temperature=temperature), sigma)


def build_mrad_ft(
    clip: CLIP,
    bank: MemoryBank,
    *,
    checkpoint: Checkpoint | None = None,
    start_temperature: float | None = None,
    seed: int | None = None,
    sigma: float = GAUSSIAN_SIGMA,
) -> MRAD:
    """Return MRAD-FT, retrieval by a learned metric.

    Args:
        clip: backbone that made the bank.
        bank: memory bank.
        checkpoint: file of `save_head`, published checkpoint file, or state dict of a `FineTunedHead`; None returns a
            network for training.
        start_temperature: temperature of MRAD-TF that the initial weights reproduce, as in `FineTunedHead`; None starts
            from random weights, as published.
        seed: seed of the random weights; None uses torch's random state.
        sigma: standard deviation of the map's Gaussian, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone or lacks a label.
        HeadError: the head belongs to another backbone, bank or variant, or its file is damaged.
        ValueError: the temperature is not positive, or a checkpoint without a card is not a published one.
    """
    bank.check(clip.card)
    state, _ = _read_checkpoint(checkpoint, clip, bank)
    with _random_weights(seed):
        head = FineTunedHead(bank, start_temperature=start_temperature)
    if state is not None:
        load_weights(head, state)
    return _assemble(clip, head, sigma)


def build_mrad_clip(
    clip: CLIP,
    bank: MemoryBank,
    *,
    checkpoint: Checkpoint | None = None,
    threshold: float = 0.5,
    context_length: int | None = None,
    depth: int | None = None,
    deep_length: int | None = None,
    fp16_deep_prompts: bool | None = None,
    seed: int | None = None,
    sigma: float = GAUSSIAN_SIGMA,
) -> MRAD:
    """Return MRAD-CLIP, which compares patches with text prompts that depend on the regions of the image.

    Args:
        clip: backbone that made the bank, with a text tower.
        bank: memory bank.
        checkpoint: file of `save_head`, published checkpoint file, or state dict of a `PromptedHead`, with or without
            the text tower; None starts from random weights, for training.
        threshold: retrieval probability above which a patch belongs to the anomalous region.
        context_length: number of context vectors; None uses the checkpoint's, or 12 as published.
        depth: number of text blocks with learned tokens, including the first; None uses the checkpoint's, or 9 as
            published, at most all blocks.
        deep_length: number of learned tokens per further block; None uses the checkpoint's, or 4 as published.
        fp16_deep_prompts: whether to round these tokens to fp16; None uses the checkpoint's card, or False without one.
            The published code rounds.
        seed: seed of the random weights; None uses torch's random state.
        sigma: standard deviation of the map's Gaussian, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone or lacks a label.
        HeadError: the head belongs to another backbone, bank or variant, has other prompts, or its file is damaged.
        ValueError: the backbone has no text tower, or a text tower that is too small for these prompts, or a checkpoint
            without a card is not a published one.
    """
    bank.check(clip.card)
    if clip.text_encoder is None:
        raise ValueError(f"{clip.card.name} has no text tower; MRAD-CLIP needs one: load, for example, 'openai'")
    state, trained = _read_checkpoint(checkpoint, clip, bank)
    rounds = bool(trained.get("fp16_deep_prompts", False)) if fp16_deep_prompts is None else fp16_deep_prompts
    sizes = _prompt_sizes(clip.text_encoder, state, context_length=context_length, depth=depth, deep_length=deep_length)
    with _random_weights(seed):
        prompts = RegionPrompts(clip.text_encoder, clip.card.embed_dim, fp16_deep_prompts=rounds, **sizes)
        head = PromptedHead(FineTunedHead(bank), prompts, threshold=threshold)
    if state is not None:
        load_weights(head, state)
    return _assemble(clip, head, sigma)


def _complete_head(network: MRAD, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Complete the state dict of a head, as `save_head` writes it, with the frozen weights of the network.

    MONAI's commands, such as ``ckpt_export``, load a bundle's models/model.pt into the network.
    """
    if prefix or any(name.startswith("image_encoder.") for name in state):
        return
    learned = {f"{PREFIX}{name}": tensor for name, tensor in drop_prefix(state).items()}
    state.clear()
    frozen = network.state_dict()
    state.update({name: frozen[name] for name in frozen if "image_encoder." in name or ".text_encoder." in name})
    state.update(learned)


def _read_checkpoint(
    checkpoint: Checkpoint | None, clip: CLIP, bank: MemoryBank
) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Any]]:
    """Return the weights and the configuration that they were trained with; it is empty if unknown."""
    if checkpoint is None or isinstance(checkpoint, Mapping):
        return None if checkpoint is None else drop_prefix(checkpoint), {}
    state, card = load_head(checkpoint)
    if card is None:
        return state, {}
    check_head(card, clip.card, bank, clip.text_encoder)
    return state, card.configuration


def _prompt_sizes(
    text_encoder: CLIPTextEncoder, state: Mapping[str, Tensor] | None, **requested: int | None
) -> dict[str, int]:
    """Return the numbers of learned tokens: requested, else from the weights, else published."""
    blocks = len(text_encoder.tower.transformer.resblocks)
    published = {"context_length": CONTEXT_LENGTH, "depth": min(DEPTH, blocks), "deep_length": DEEP_LENGTH}
    found: dict[str, int] = {}
    if state is not None and "prompts.context_normal" in state:
        deep = [len(tensor) for name, tensor in state.items() if name.startswith("prompts.deep_prompts.")]
        found = {"context_length": len(state["prompts.context_normal"]), "depth": 1 + len(deep)}
        found |= {"deep_length": deep[0]} if deep else {}
    given = {name: value for name, value in requested.items() if value is not None}
    differing = [
        f"{name} {found[name]}, not {given[name]}" for name in given if found.get(name) not in (None, given[name])
    ]
    if differing:
        raise HeadError(f"this checkpoint has {', '.join(differing)}: leave these arguments out to use its values")
    return {**published, **found, **given}


@contextmanager
def _random_weights(seed: int | None) -> Iterator[None]:
    """Seed the random weights created in the block and restore torch's random state; without a seed, do nothing.

    Random values drawn before depend on the run, for example on cached features. Without a seed, a repeated training
    would start from other weights.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _assemble(clip: CLIP, head: Head, sigma: float) -> MRAD:
    device = next(clip.image_encoder.parameters()).device
    return MRAD(clip.image_encoder, head, sigma=sigma).to(device).eval()
