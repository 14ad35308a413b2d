"""Learned prompts for the normal and the anomalous state, as in MRAD-CLIP (arXiv 2602.00522)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrad_med.networks.clip import CLIPTextEncoder

__all__ = ["RegionPrompts"]

CONTEXT_LENGTH, DEEP_LENGTH, DEPTH = 12, 4, 9  # as published
STATES = ("object.", "damaged object.")  # normal, anomalous
_INIT_STD = 0.02


class RegionPrompts(nn.Module):
    """Compute text features of two prompts for each image, "X ... X object." and "X ... X damaged object.".

    Each X is a learned context vector. Each region token of an image, normal or anomalous, is projected by a linear
    layer and added to all context vectors of its prompt. Before the next text blocks, learned tokens replace the first
    ones after the start token.

    Args:
        text_encoder: frozen text tower.
        embed_dim: width E of the region tokens.
        context_length: number of context vectors before each state.
        depth: number of text blocks with learned tokens, including the first, which has the context vectors.
        deep_length: number of learned tokens before each further block.
        fp16_deep_prompts: whether to round these tokens to fp16 in the forward pass, as in the published code.

    Raises:
        ValueError: the text tower has fewer blocks than ``depth``, or too few positions.
    """

    embedded: Tensor
    ends: Tensor

    def __init__(
        self,
        text_encoder: CLIPTextEncoder,
        embed_dim: int,
        *,
        context_length: int = CONTEXT_LENGTH,
        depth: int = DEPTH,
        deep_length: int = DEEP_LENGTH,
        fp16_deep_prompts: bool = False,
    ) -> None:
        super().__init__()
        from open_clip import tokenize

        words = tokenize(list(STATES)).argmax(-1)  # the end token has the highest id
        ends = words + context_length
        blocks, positions = len(text_encoder.tower.transformer.resblocks), len(text_encoder.tower.positional_embedding)
        if not 1 <= depth <= blocks:
            raise ValueError(f"this text tower has {blocks} blocks: depth must be 1 to {blocks}, got {depth}")
        if not 1 <= deep_length <= context_length < positions - int(words.max()):
            raise ValueError(
                f"this text tower has {positions} positions: context_length must be 1 to "
                f"{positions - int(words.max()) - 1} and deep_length 1 to context_length, got {context_length} and "
                f"{deep_length}"
            )
        width = text_encoder.width
        self.text_encoder = text_encoder
        self.context_length = context_length
        self.fp16_deep_prompts = fp16_deep_prompts
        self.context_normal = nn.Parameter(torch.randn(context_length, width) * _INIT_STD)
        self.context_anomaly = nn.Parameter(torch.randn(context_length, width) * _INIT_STD)
        self.bias_normal = nn.Linear(embed_dim, width)
        self.bias_anomaly = nn.Linear(embed_dim, width)
        self.deep_prompts = nn.ParameterList(
            nn.Parameter(torch.randn(deep_length, width) * _INIT_STD) for _ in range(depth - 1)
        )
        tokens = tokenize([" ".join(["X"] * context_length) + " " + state for state in STATES], positions)
        tokens = tokens[:, : int(ends.max()) + 1].to(text_encoder.tower.token_embedding.weight.device)
        self.register_buffer("embedded", text_encoder.embed(tokens), persistent=False)  # (2, T, W)
        self.register_buffer("ends", ends, persistent=False)

    def forward(self, region_tokens: Tensor) -> Tensor:
        """Return (B, 2, E) L2-normalized text features for (B, 2, E) region tokens, normal first."""
        biases = torch.stack([self.bias_normal(region_tokens[:, 0]), self.bias_anomaly(region_tokens[:, 1])], dim=1)
        contexts = torch.stack([self.context_normal, self.context_anomaly]) + biases[:, :, None]  # (B, 2, C, W)
        prefix, suffix = self.embedded[:, :1], self.embedded[:, 1 + self.context_length :]
        batch = region_tokens.shape[0]  # not len(), which a tracer makes constant
        prompts = torch.cat(
            [prefix.expand(batch, -1, -1, -1), contexts, suffix.expand(batch, -1, -1, -1)], dim=2
        )  # (B, 2, T, W)
        deep = [prompt.half().to(prompt) if self.fp16_deep_prompts else prompt for prompt in self.deep_prompts]
        features: Tensor = self.text_encoder(prompts.flatten(0, 1), self.ends.repeat(batch), deep)
        return features.reshape(batch, 2, -1)
