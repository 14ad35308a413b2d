"""Weights of the reference network, rebuilt from their seed: CLIP ViT-L/14@336 widths with four vision blocks.

The golden numbers in ``tests/golden`` were measured with the published implementation on exactly these weights. The
order of the draws is part of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WIDTH, EMBED_DIM, PATCH_SIZE, NATIVE_GRID, LAYERS, SEED = 1024, 768, 14, 24, 4, 7
TEXT_WIDTH, TEXT_LAYERS, CONTEXT, VOCABULARY = 768, 12, 77, 49408
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class _Draws:
    """Normal draws in a fixed order, as a rule rounded to the fp16 values that OpenAI's files hold."""

    def __init__(self, seed: int, *, rounded: bool = True) -> None:
        self.random = np.random.RandomState(seed)
        self.rounded = rounded

    def __call__(self, *shape: int, std: float, mean: float = 0.0) -> Tensor:
        values = (self.random.standard_normal(shape) * std).astype(np.float32)
        tensor = mean + torch.from_numpy(values)
        return tensor.half().float() if self.rounded else tensor


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
        state |= _block(draw, f"visual.transformer.resblocks.{index}.", WIDTH)
    state |= {
        "positional_embedding": draw(CONTEXT, TEXT_WIDTH, std=0.01),
        "text_projection": draw(TEXT_WIDTH, EMBED_DIM, std=TEXT_WIDTH**-0.5),
        "logit_scale": torch.tensor(4.6052).half().float(),
    }
    for index in range(TEXT_LAYERS):
        state |= _block(draw, f"transformer.resblocks.{index}.", TEXT_WIDTH)
    state |= {
        "token_embedding.weight": draw(VOCABULARY, TEXT_WIDTH, std=0.02),
        "ln_final.weight": draw(TEXT_WIDTH, std=0.1, mean=1),
        "ln_final.bias": draw(TEXT_WIDTH, std=0.05),
        "input_resolution": torch.tensor(NATIVE_GRID * PATCH_SIZE),
        "context_length": torch.tensor(CONTEXT),
        "vocab_size": torch.tensor(VOCABULARY),
    }
    return state


def head_state() -> dict[str, Tensor]:
    """Return the weights of the fine-tuned head and of the prompts, named as this project names them."""
    draw = _Draws(SEED + 4, rounded=False)
    state: dict[str, Tensor] = {}
    inputs = {"patch_query": WIDTH, "patch_key": WIDTH}
    for name in ("patch_query", "patch_key", "image_query", "image_key", "bias_normal", "bias_anomaly"):
        width = inputs.get(name, EMBED_DIM)
        state |= {f"{name}.weight": draw(EMBED_DIM, width, std=width**-0.5), f"{name}.bias": draw(EMBED_DIM, std=0.02)}
    for name in ("context_normal", "context_anomaly"):
        state[name] = draw(12, TEXT_WIDTH, std=0.02)
    return state | {f"deep_prompts.{index}": draw(4, TEXT_WIDTH, std=0.02) for index in range(8)}


def _block(draw: _Draws, prefix: str, width: int) -> dict[str, Tensor]:
    weights = {
        "attn.in_proj_weight": draw(3 * width, width, std=width**-0.5),
        "attn.in_proj_bias": draw(3 * width, std=0.02),
        "attn.out_proj.weight": draw(width, width, std=width**-0.5),
        "attn.out_proj.bias": draw(width, std=0.02),
    }
    for name in ("ln_1", "ln_2"):
        weights |= {f"{name}.weight": draw(width, std=0.1, mean=1), f"{name}.bias": draw(width, std=0.05)}
    weights |= {
        "mlp.c_fc.weight": draw(4 * width, width, std=(2 * width) ** -0.5),
        "mlp.c_fc.bias": draw(4 * width, std=0.02),
        "mlp.c_proj.weight": draw(width, 4 * width, std=(4 * width) ** -0.5),
        "mlp.c_proj.bias": draw(width, std=0.02),
    }
    return {prefix + name: tensor for name, tensor in weights.items()}


def normalize(images: np.ndarray) -> Tensor:
    """Return uint8 images (N, H, W, 3) as CLIP's input (N, 3, H, W)."""
    scaled = (images.astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())
