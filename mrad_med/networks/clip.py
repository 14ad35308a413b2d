"""Frozen encoders: open_clip's vision tower with the V-V branch, and its text tower with deep prompts.

The method is MRAD, arXiv 2602.00522.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrad_med.types import BackboneCard, ImageFeatures

if TYPE_CHECKING:  # open_clip is slow to import: it is imported only when a backbone is built
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer

__all__ = ["CLIP", "CLIPImageEncoder", "CLIPTextEncoder"]

PATCH_SOURCES = ("v-v", "standard")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CLIPImageEncoder(nn.Module):
    """Encode normalized images into a class feature and patch tokens.

    The standard path is CLIP's own. The V-V path starts after the first block. Each further block adds the attention
    of its values over themselves. Both paths share one computation of the values. Weights are not copied.

    Args:
        tower: open_clip's vision transformer with weights. It is frozen and set to evaluation mode; its attention and
            MLP weights are converted to ``precision`` in place.
        precision: data type of the matrix products inside the blocks: ``"fp32"``, ``"bf16"`` or ``"fp16"``. Residual
            streams, layer norms, the final projection and the returned features are always float32.
        patch_source: source of the patch tokens: ``"v-v"``, the branch of the paper, for CLIP, whose own patch tokens
            carry little information; or ``"standard"``, the tower's own output, for towers trained on patches.

    Raises:
        ValueError: the tower has no V-V branch, or ``precision`` or ``patch_source`` is unknown.
    """

    def __init__(self, tower: VisionTransformer, *, precision: str = "fp32", patch_source: str = "v-v") -> None:
        super().__init__()
        _check_tower(tower)
        if patch_source not in PATCH_SOURCES:
            raise ValueError(f"patch_source must be one of {', '.join(PATCH_SOURCES)}; got {patch_source!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        self.tower = tower.eval().requires_grad_(False)
        self.precision = precision
        self.patch_source = patch_source
        for block in tower.transformer.resblocks:
            block.attn.to(PRECISIONS[precision])
            block.mlp.to(PRECISIONS[precision])

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.tower.patch_size[0])

    def forward(self, images: Tensor) -> ImageFeatures:
        """Return the features of a batch of any size.

        Args:
            images: (B, 3, H, W) images normalized with the card's constants; H and W are multiples of the patch size.

        Returns:
            Float32 features before the neighbor average.

        Raises:
            ValueError: the images have another shape.
        """
        _check_images(images, self.patch_size)
        with torch.autocast(images.device.type, enabled=False):  # only `precision` sets the data type
            return self._encode(images)

    def _encode(self, images: Tensor) -> ImageFeatures:
        grid_size = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        hidden = self._embed(images, grid_size)  # (B, 1 + N, D)
        vv_tokens = hidden
        blocks = self.tower.transformer.resblocks
        has_branch = self.patch_source == "v-v"
        for index, block in enumerate(blocks):
            in_branch = has_branch and index > 0
            class_only = in_branch and index == len(blocks) - 1
            hidden, vv_update = _run_block(block, hidden, class_only=class_only, with_vv=in_branch)
            vv_tokens = hidden if vv_update is None else vv_tokens + vv_update
        patches = self.tower.ln_post(vv_tokens)[:, 1:]  # (B, N, D)
        image = hidden[:, 0] @ self.tower.proj  # no ln_post on the class token, as in the published code
        return ImageFeatures(image, patches, self.project(patches), grid_size)

    def project(self, patches: Tensor) -> Tensor:
        """Return (B, N, D) patch tokens projected to the joint image-text space, (B, N, E)."""
        return patches @ self.tower.proj  # type: ignore[no-any-return]

    def _embed(self, images: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Return (B, 1 + N, D) tokens after the first layer norm, with positions resized to this grid."""
        tokens = self.tower.conv1(images.float()).flatten(2).transpose(1, 2)  # (B, N, D)
        classes = self.tower.class_embedding.expand(tokens.shape[0], 1, -1)  # not len(), which a tracer makes constant
        tokens = torch.cat([classes, tokens], dim=1) + self._positions(grid_size)
        return self.tower.ln_pre(tokens)  # type: ignore[no-any-return]

    def _positions(self, grid_size: tuple[int, int]) -> Tensor:
        """Return the (1 + N, D) position table; its patch part is resized bilinearly from the native grid."""
        table: Tensor = self.tower.positional_embedding
        native: tuple[int, int] = self.tower.grid_size
        if native == grid_size:
            return table
        grid = table[1:].T.reshape(1, -1, *native)
        resized = F.interpolate(grid, size=grid_size, mode="bilinear", align_corners=False)
        return torch.cat([table[:1], resized[0].flatten(1).T])


def _run_block(
    block: ResidualAttentionBlock, hidden: Tensor, *, class_only: bool, with_vv: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the block's output on the standard path, and its update of the V-V path (None without ``with_vv``).

    ``class_only`` computes the standard path for the class token only, which is enough in the last block.
    """
    attention = block.attn
    heads, dtype = attention.num_heads, attention.in_proj_weight.dtype
    width = hidden.shape[-1]
    normed = block.ln_1(hidden).to(dtype)
    hidden = hidden[:, :1] if class_only else hidden
    query_rows = normed[:, :1] if class_only else normed
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = _split_heads(F.linear(query_rows, weight[:width], bias[:width]), heads)
    key, value = (_split_heads(part, heads) for part in F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1))
    hidden = hidden + block.ls_1(_attend(attention.out_proj, query, key, value))
    hidden = hidden + block.ls_2(block.mlp(block.ln_2(hidden).to(dtype)).float())
    return hidden, block.ls_1(_attend(attention.out_proj, value, value, value)) if with_vv else None


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.reshape(*tokens.shape[:-1], heads, -1).transpose(1, 2)  # (B, heads, T, D / heads)


def _attend(out_projection: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention with heads joined and projected, (B, T, D) float32."""
    joined = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return out_projection(joined).float()  # type: ignore[no-any-return]


def _check_tower(tower: nn.Module) -> None:
    """Raise if the V-V branch is not defined for the tower's blocks or pooling."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    reason = ""
    if not isinstance(tower, VisionTransformer):
        reason = f"this tower is a {type(tower).__name__}"
    elif not all(isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks):
        reason = "this tower has custom attention blocks"
    elif tower.attn_pool is not None:
        reason = "this tower pools by attention"
    elif tower.pool_type != "tok":
        reason = f"this tower pools by {tower.pool_type!r}"
    elif tower.patch_size[0] != tower.patch_size[1]:
        reason = "the patches of this tower are not square"
    if reason:
        raise ValueError(
            f"the V-V branch needs open_clip's own vision transformer with a class token, but {reason}; "
            "choose a model such as ViT-L-14-336-quickgelu, ViT-B-16 or ViT-H-14"
        )


def _check_images(images: Tensor, patch_size: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] < patch_size or images.shape[3] < patch_size:
        raise ValueError(f"expected images of shape (B, 3, H, W) with H, W >= {patch_size}, got {tuple(images.shape)}")
    if images.shape[2] % patch_size or images.shape[3] % patch_size:
        raise ValueError(
            f"height and width must be multiples of the patch size {patch_size}, got {images.shape[2]} x "
            f"{images.shape[3]}; resize, for example to {37 * patch_size} x {37 * patch_size}"
        )


class CLIPTextEncoder(nn.Module):
    """Encode prompts that are given as token embeddings, with learned tokens in the first blocks.

    Args:
        tower: open_clip's text transformer with weights. It is frozen and set to evaluation mode.

    Raises:
        ValueError: the tower has no causal mask, no projection matrix, or a class embedding.
    """

    def __init__(self, tower: TextTransformer) -> None:
        super().__init__()
        if tower.attn_mask is None or not isinstance(tower.text_projection, Tensor) or tower.cls_emb is not None:
            raise ValueError("learned prompts need a causal text tower with a projection matrix, as in CLIP")
        self.tower = tower.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Width of the token embeddings."""
        return int(self.tower.width)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the (P, T, W) embeddings of (P, T) tokens, without positions."""
        return self.tower.token_embedding(tokens)  # type: ignore[no-any-return]

    def forward(self, prompts: Tensor, ends: Tensor, deep_prompts: Sequence[Tensor] = ()) -> Tensor:
        """Return L2-normalized text features.

        Args:
            prompts: (P, T, W) token embeddings, cut after the last end token: later tokens have no effect through the
                causal mask.
            ends: (P,) position of each prompt's end token.
            deep_prompts: (M, W) sets of learned tokens. Before block i = 1, 2, ..., set i - 1 replaces tokens 1 to M.

        Returns:
            (P, E) features.

        Reference:
            MRAD, arXiv 2602.00522: deep prompts as in its published code.
        """
        length = prompts.shape[1]
        hidden = prompts + self.tower.positional_embedding[:length]
        mask = self.tower.attn_mask[:length, :length].to(hidden)
        for index, block in enumerate(self.tower.transformer.resblocks):
            if 0 < index <= len(deep_prompts):
                deep = deep_prompts[index - 1].expand(hidden.shape[0], -1, -1)
                hidden = torch.cat([hidden[:, :1], deep, hidden[:, 1 + deep.shape[1] :]], dim=1)
            hidden = block(hidden, attn_mask=mask)
        last = self.tower.ln_final(hidden[torch.arange(hidden.shape[0], device=hidden.device), ends])
        return F.normalize(last @ self.tower.text_projection, dim=-1)


@dataclass(frozen=True)
class CLIP:
    """A frozen backbone: its encoders and its card.

    Attributes:
        image_encoder: encoder of (B, 3, H, W) normalized images, which returns `ImageFeatures`.
        card: name, widths, sizes, normalization constants and the hash of the image tower.
        text_encoder: encoder of prompt embeddings; None for a backbone without a text tower.
    """

    image_encoder: CLIPImageEncoder
    card: BackboneCard
    text_encoder: CLIPTextEncoder | None = None
