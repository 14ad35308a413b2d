"""MRAD as one network: frozen encoder + memory bank + head."""

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
        clip: the backbone that made the bank.
        bank: the memory.
        checkpoint: a file of `save_head`, a published checkpoint file, or the state dict of a `FineTunedHead`; None
            starts from weights for training.
        start_temperature: as in `FineTunedHead`; None starts from random weights, as published.
        seed: of the random weights; None draws them from torch's own state.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone.
        HeadError: the head was trained on another backbone or with another bank, is one of another variant, or its
            file is damaged.
        ValueError: the temperature is not positive.
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
    """Return MRAD-CLIP, patches against text prompts that each image's regions bias.

    Args:
        clip: the backbone that made the bank, with a text tower.
        bank: the memory.
        checkpoint: a file of `save_head`, a published checkpoint file, or the state dict of a `PromptedHead` (its text
            tower may be absent); None starts from random weights, for training.
        threshold: patches whose retrieval probability is above it are the anomalous region.
        context_length: as in `RegionPrompts`; None takes that of the checkpoint, or 12 as published.
        depth: as in `RegionPrompts`; None takes that of the checkpoint, or 9 as published, or as many as there are.
        deep_length: as in `RegionPrompts`; None takes that of the checkpoint, or 4 as published.
        fp16_deep_prompts: as in `RegionPrompts`; None does as the checkpoint's card says it was trained, and does not
            round where there is none. The published code rounds.
        seed: of the random weights; None draws them from torch's own state.
        sigma: of the Gaussian that smooths the map, in pixels of the network's input.

    Raises:
        MemoryBankError: the bank does not belong to this backbone.
        HeadError: the head was trained on another backbone or with another bank, is one of another variant or with
            other prompts, or its file is damaged.
        ValueError: the backbone has no text tower, or one that is too small for these prompts.
    """
    bank.check(clip.card)
    if clip.text_encoder is None:
        raise ValueError(f"{clip.card.name} has no text tower; MRAD-CLIP needs one: load for example 'openai'")
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
    """Let the state dict of a head alone, as `save_head` writes it, load into the network: the rest of it is frozen.

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
    """Return weights, and the configuration they were trained with, as far as it is known."""
    if checkpoint is None or isinstance(checkpoint, Mapping):
        return None if checkpoint is None else drop_prefix(checkpoint), {}
    state, card = load_head(checkpoint)
    if card is None:
        return state, {}
    check_head(card, clip.card, bank, clip.text_encoder)
    return state, card.configuration


def _prompt_sizes(
    text_encoder: CLIPTextEncoder, state: Mapping[str, Tensor] | None, **asked: int | None
) -> dict[str, int]:
    """Return how many learned tokens prompts have: what is asked for, or what the weights say, or as published."""
    blocks = len(text_encoder.tower.transformer.resblocks)
    published = {"context_length": CONTEXT_LENGTH, "depth": min(DEPTH, blocks), "deep_length": DEEP_LENGTH}
    found: dict[str, int] = {}
    if state is not None and "prompts.context_normal" in state:
        deep = [len(tensor) for name, tensor in state.items() if name.startswith("prompts.deep_prompts.")]
        found = {"context_length": len(state["prompts.context_normal"]), "depth": 1 + len(deep)}
        found |= {"deep_length": deep[0]} if deep else {}
    given = {name: value for name, value in asked.items() if value is not None}
    differing = [
        f"{name} {found[name]}, not {given[name]}" for name in given if found.get(name) not in (None, given[name])
    ]
    if differing:
        raise HeadError(f"this checkpoint has {', '.join(differing)}: leave that out, for the checkpoint decides")
    return {**published, **found, **given}


@contextmanager
def _random_weights(seed: int | None) -> Iterator[None]:
    """Seed the random weights made inside, and leave torch's own state as it was; nothing without a seed.

    What a run draws before depends on what it found done, such as features in a cache: a training that starts anew
    would start from other weights.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _assemble(clip: CLIP, head: Head, sigma: float) -> MRAD:
    device = next(clip.image_encoder.parameters()).device
    return MRAD(clip.image_encoder, head, sigma=sigma).to(device).eval()
