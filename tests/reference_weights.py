"""Weights of the reference network, rebuilt from their seed: CLIP ViT-L/14@336 widths with four vision blocks.

The golden numbers in ``tests/golden`` were measured with the published implementation on exactly these weights. The
order of the draws is part of them. Only the image tower is compared here, but OpenAI's files hold the text tower too,
and a loader has to cope with it, so a small stand-in for it is appended.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WIDTH, EMBED_DIM, PATCH_SIZE, NATIVE_GRID, LAYERS, SEED = 1024, 768, 14, 24, 4, 7
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class _Draws:
    """Normal draws in a fixed order, rounded to the fp16 values that OpenAI's files hold."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.RandomState(seed)

    def __call__(self, *shape: int, std: float, mean: float = 0.0) -> Tensor:
        values = (self.random.standard_normal(shape) * std).astype(np.float32)
        return (mean + torch.from_numpy(values)).half().float()


def openai_state_dict() -> dict[str, Tensor]:
    """Return the state dict in OpenAI's layout."""
    draw = _Draws(SEED)
    state = {
        "visual.class_embedding": draw(WIDTH, std=0.3),
        "visual.positional_embedding": draw(NATIVE_GRID**2 + 1, WIDTH, std=0.3),
        "visual.proj": draw(WIDTH, EMBED_DIM, std=WIDTH**-0.5),
        "visual.conv1.weight": draw(WIDTH, 3, PATCH_SIZE, PATCH_SIZE, std=0.05),
    }
    for name in ("visual.ln_pre", "visual.ln_post"):
        state |= {f"{name}.weight": draw(WIDTH, std=0.1, mean=1), f"{name}.bias": draw(WIDTH, std=0.05)}
    for index in range(LAYERS):
        state |= _block(draw, f"visual.transformer.resblocks.{index}.")
    text = torch.Generator().manual_seed(SEED)
    state |= {
        "positional_embedding": torch.randn(77, 64, generator=text),
        "text_projection": torch.randn(64, EMBED_DIM, generator=text),
        "token_embedding.weight": torch.randn(100, 64, generator=text),
        "logit_scale": torch.tensor(4.6052),
    }
    return state


def _block(draw: _Draws, prefix: str) -> dict[str, Tensor]:
    weights = {
        "attn.in_proj_weight": draw(3 * WIDTH, WIDTH, std=WIDTH**-0.5),
        "attn.in_proj_bias": draw(3 * WIDTH, std=0.02),
        "attn.out_proj.weight": draw(WIDTH, WIDTH, std=WIDTH**-0.5),
        "attn.out_proj.bias": draw(WIDTH, std=0.02),
    }
    for name in ("ln_1", "ln_2"):
        weights |= {f"{name}.weight": draw(WIDTH, std=0.1, mean=1), f"{name}.bias": draw(WIDTH, std=0.05)}
    weights |= {
        "mlp.c_fc.weight": draw(4 * WIDTH, WIDTH, std=(2 * WIDTH) ** -0.5),
        "mlp.c_fc.bias": draw(4 * WIDTH, std=0.02),
        "mlp.c_proj.weight": draw(WIDTH, 4 * WIDTH, std=(4 * WIDTH) ** -0.5),
        "mlp.c_proj.bias": draw(WIDTH, std=0.02),
    }
    return {prefix + name: tensor for name, tensor in weights.items()}


def normalize(images: np.ndarray) -> Tensor:
    """Return uint8 images (N, H, W, 3) as CLIP's input (N, 3, H, W)."""
    scaled = (images.astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())
