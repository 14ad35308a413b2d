"""Fixtures: a tiny random backbone, a bank of it, and folders of small images. No network, no GPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIPTextCfg, _build_text_tower
from open_clip.transformer import VisionTransformer
from PIL import Image

from mrad_med import CLIP, MemoryBank, build_memory_bank
from mrad_med.networks import CLIPImageEncoder, CLIPTextEncoder
from mrad_med.types import BackboneCard

TINY_SIZE = 56  # four patches of 14 pixels a side


def make_tiny_clip(seed: int = 0, **keywords) -> CLIP:
    torch.manual_seed(seed)
    tower = VisionTransformer(
        image_size=TINY_SIZE, patch_size=14, width=32, layers=3, heads=2, mlp_ratio=2.0, output_dim=24
    )
    for parameter in tower.parameters():  # open_clip starts some at zero, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    card = BackboneCard(
        name=f"tiny {seed}",
        sha256=f"{seed:064d}",
        width=32,
        embed_dim=24,
        patch_size=14,
        native_size=TINY_SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return CLIP(CLIPImageEncoder(tower, **keywords), card, make_tiny_text_encoder(seed))


def make_tiny_text_encoder(seed: int = 0, *, layers: int = 3) -> CLIPTextEncoder:
    torch.manual_seed(seed)
    tower = _build_text_tower(24, CLIPTextCfg(width=16, heads=2, layers=layers))
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return CLIPTextEncoder(tower)


def make_labelled_batches(count: int = 6, batch_size: int = 2, size: int = TINY_SIZE, seed: int = 1) -> list[dict]:
    """Every second image is anomalous, in the left half."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.arange(count) % 2
    masks = torch.zeros(count, 1, size, size)
    masks[labels == 1, :, :, : size // 2] = 1
    return [
        {"image": images[i : i + batch_size], "mask": masks[i : i + batch_size], "label": labels[i : i + batch_size]}
        for i in range(0, count, batch_size)
    ]


@pytest.fixture(scope="session")
def tiny_clip() -> CLIP:
    return make_tiny_clip()


@pytest.fixture(scope="session")
def tiny_bank(tiny_clip: CLIP) -> MemoryBank:
    return build_memory_bank(tiny_clip, make_labelled_batches(), progress=False)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three photographs, not square, each with one corner of its own color, so that a wrong axis shows."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.RandomState(0)
    for name in ("a.png", "b.jpg", "c.bmp"):
        pixels = random.randint(0, 80, (40, 60, 3), np.uint8)
        pixels[:10, -20:] = (250, 120, 30)
        Image.fromarray(pixels).save(folder / name)
    return folder


_OPENED: list[str] = []  # what was opened since the fixture below was asked for
_WATCHED: list[bool] = []  # whether a hook was added: hooks cannot be removed, and one is enough


@pytest.fixture
def opened() -> Callable[[], Counter[str]]:
    """Return a function that returns how often each file was opened, by name, since its last call."""
    if not _WATCHED:
        _WATCHED.append(True)
        sys.addaudithook(lambda event, args: _OPENED.append(str(args[0])) if event == "open" else None)

    def count() -> Counter[str]:
        names = Counter(Path(name).name for name in _OPENED)
        _OPENED.clear()
        return names

    count()
    return count
