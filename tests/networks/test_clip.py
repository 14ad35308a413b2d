"""The image encoder against a plain implementation of the method: loops, whole blocks, attention written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from mrad_med import CLIP, ImageFeatures
from mrad_med.networks import CLIPImageEncoder
from mrad_med.types import BackboneCard
from tests.conftest import make_tiny_clip

FEATURES = ("image", "patches", "projected_patches")


def make_tower(**changes: Any) -> VisionTransformer:
    torch.manual_seed(3)
    shape = {"image_size": 56, "patch_size": 14, "width": 32, "layers": 3, "heads": 2, "mlp_ratio": 2.0}
    tower = VisionTransformer(**shape | {"output_dim": 24} | changes)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.2)
    return tower


def make_images(batch: int = 2, height: int = 56, width: int = 56) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(11))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return attention of (T, D) tokens, one head and one row after the other."""
    width = query.shape[1] // heads
    joined = []
    for head in range(heads):
        q, k, v = (part[:, head * width : (head + 1) * width] for part in (query, key, value))
        joined.append(torch.stack([(row @ k.T / width**0.5).softmax(0) @ v for row in q]))
    return torch.cat(joined, dim=1)


def embed(tower: VisionTransformer, image: Tensor) -> Tensor:
    """Return (1 + N, D) tokens of one (3, H, W) image, patch by patch."""
    side = tower.patch_size[0]
    kernel = tower.conv1.weight.flatten(1)  # (D, 3 * side * side)
    rows, columns = image.shape[1] // side, image.shape[2] // side
    tokens = [tower.class_embedding]
    for row in range(rows):
        for column in range(columns):
            patch = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            tokens.append(kernel @ patch.flatten())
    table = tower.positional_embedding
    grid = table[1:].reshape(1, *tower.grid_size, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    positions = torch.cat([table[:1], grid[0].permute(1, 2, 0).reshape(rows * columns, -1)])
    return tower.ln_pre(torch.stack(tokens) + positions)


def encode_plainly(tower: VisionTransformer, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return class feature (E,), patches (N, D) and projected patches (N, E) of one image, as MRAD defines them."""
    standard = embed(tower, image)
    vv_path = standard
    for number, block in enumerate(tower.transformer.resblocks, start=1):
        heads = block.attn.num_heads
        projected = block.ln_1(standard) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        query, key, value = projected.chunk(3, dim=1)
        standard = standard + block.ls_1(block.attn.out_proj(attend(query, key, value, heads)))
        standard = standard + block.ls_2(block.mlp(block.ln_2(standard)))
        if number == 1:
            vv_path = standard
        else:
            vv_path = vv_path + block.ls_1(block.attn.out_proj(attend(value, value, value, heads)))
    patches = tower.ln_post(vv_path)[1:]
    return standard[0] @ tower.proj, patches, patches @ tower.proj


def assert_same_features(found: ImageFeatures, expected: ImageFeatures, atol: float) -> None:
    assert found.grid_size == expected.grid_size
    for name in FEATURES:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=atol, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": 1},  # the only block is first and last: no V-V update, the class row needs all rows
        {"layers": 2},
        {"heads": 1},
        {"no_ln_pre": True},
        {"ls_init_value": 0.1},
        {"act_layer": QuickGELU},
        {"patch_dropout": 0.5},  # of no effect in evaluation mode
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(56, 56), (42, 70)], ids=["native", "not square"])
def test_features_agree_with_the_plain_implementation(changes: dict[str, Any], size: tuple[int, int]):
    tower = make_tower(**changes)
    images = make_images(2, *size)
    features = CLIPImageEncoder(tower)(images)
    expected = [torch.stack(parts) for parts in zip(*(encode_plainly(tower, image) for image in images), strict=True)]
    assert features.grid_size == (size[0] // 14, size[1] // 14)
    for name, feature in zip(FEATURES, expected, strict=True):
        assert feature.std() > 0.1  # else any tolerance would do
        torch.testing.assert_close(getattr(features, name), feature, atol=2e-5, rtol=1e-5)


def test_standard_path_is_that_of_open_clip():
    tower = make_tower()
    images = make_images()
    tokens = tower.eval().forward_intermediates(
        images, indices=1, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    expected = tokens["image_intermediates_prefix"][0][:, 0] @ tower.proj
    torch.testing.assert_close(CLIPImageEncoder(tower)(images).image, expected, atol=2e-5, rtol=1e-5)


def test_patches_of_the_standard_path_are_those_of_open_clip():
    tower = make_tower(output_tokens=True)
    images = make_images(2, 56, 56)
    features = CLIPImageEncoder(tower, patch_source="standard")(images)
    tokens = tower(images)[1]
    torch.testing.assert_close(features.patches, tokens, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(features.projected_patches, tokens @ tower.proj, atol=2e-5, rtol=1e-5)
    branch = CLIPImageEncoder(tower)(images)
    assert_same_features(
        ImageFeatures(features.image, branch.patches, branch.projected_patches, (4, 4)), branch, atol=2e-5
    )
    assert not torch.allclose(features.patches, branch.patches, atol=0.1)


def test_shapes_are_those_of_batch_grid_and_widths(tiny_clip: CLIP):
    features = tiny_clip.image_encoder(make_images(3, 28, 70))
    assert features.image.shape == (3, 24)
    assert features.patches.shape == (3, 10, 32)
    assert features.projected_patches.shape == (3, 10, 24)
    assert features.grid_size == (2, 5)


@pytest.mark.parametrize("size", [(56, 56), (42, 70)])
def test_batch_equals_its_elements(tiny_clip: CLIP, size: tuple[int, int]):
    images = make_images(4, *size)
    together = tiny_clip.image_encoder(images)
    for index in range(4):
        alone = tiny_clip.image_encoder(images[index : index + 1])
        rows = ImageFeatures(*(getattr(together, name)[index : index + 1] for name in FEATURES), together.grid_size)
        assert_same_features(alone, rows, atol=1e-6)


def test_two_sizes_in_turn_do_not_influence_each_other(tiny_clip: CLIP):
    native, wide = make_images(1), make_images(1, 42, 70)
    first = tiny_clip.image_encoder(native)
    tiny_clip.image_encoder(wide)
    assert_same_features(tiny_clip.image_encoder(native), first, atol=0)


@pytest.mark.parametrize("grid_size", [(2, 2), (3, 5), (7, 7)])
def test_positions_are_the_table_resized_bilinearly(grid_size: tuple[int, int]):
    tower = make_tower(layers=1, no_ln_pre=True)
    native = tower.positional_embedding.detach().clone()
    images = make_images(1, 14 * grid_size[0], 14 * grid_size[1])
    features = CLIPImageEncoder(tower)(images)
    resized = F.interpolate(native[1:].T.reshape(1, 32, 4, 4), size=grid_size, mode="bilinear", align_corners=False)
    same = make_tower(layers=1, no_ln_pre=True, image_size=(images.shape[2], images.shape[3]))
    same.load_state_dict(
        tower.state_dict() | {"positional_embedding": torch.cat([native[:1], resized[0].flatten(1).T])}
    )
    assert_same_features(features, CLIPImageEncoder(same)(images), atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_forward_writes_no_parameter(precision: str):
    encoder = CLIPImageEncoder(make_tower(), precision=precision)
    before = copy.deepcopy(encoder.state_dict())
    encoder(make_images(2, 42, 70))
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert after["tower.positional_embedding"].shape == (17, 32)


def test_images_are_not_changed(tiny_clip: CLIP):
    images = make_images()
    before = images.clone()
    tiny_clip.image_encoder(images)
    assert torch.equal(images, before)


def test_encoder_is_frozen_and_in_evaluation_mode():
    encoder = CLIPImageEncoder(make_tower().train())
    features = encoder(make_images())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.tower.modules())
    assert not any(getattr(features, name).requires_grad for name in FEATURES)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_features_are_float32_and_close(precision: str):
    images = make_images()
    expected = make_tiny_clip().image_encoder(images)
    encoder = make_tiny_clip(precision=precision).image_encoder
    features = encoder(images)
    assert encoder.tower.transformer.resblocks[1].attn.in_proj_weight.dtype in {torch.bfloat16, torch.float16}
    for name in FEATURES:
        found, reference = getattr(features, name), getattr(expected, name)
        assert found.dtype == torch.float32
        assert not torch.equal(found, reference)
        assert F.cosine_similarity(found, reference, dim=-1).min() > 0.999


def test_features_are_float32_inside_autocast_too(tiny_clip: CLIP):
    images = make_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = tiny_clip.image_encoder(images)
    assert {getattr(features, name).dtype for name in FEATURES} == {torch.float32}
    assert_same_features(features, tiny_clip.image_encoder(images), atol=1e-6)


def test_half_precision_images_are_encoded_as_float32(tiny_clip: CLIP):
    images = make_images().half()
    assert_same_features(tiny_clip.image_encoder(images), tiny_clip.image_encoder(images.float()), atol=0)


def test_clip_keeps_encoder_and_card_together(tiny_clip: CLIP):
    assert isinstance(tiny_clip.card, BackboneCard)
    assert tiny_clip.image_encoder.patch_size == tiny_clip.card.patch_size == 14


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=4, image_size=32, width=8), "is a ModifiedResNet"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 14), nn.Flatten()),
            "is a Sequential",
        ),  # no resblocks, as in timm's towers
        (lambda: make_tower(attentional_pool=True, attn_pooler_heads=2), "pools by attention"),
        (lambda: make_tower(pool_type="avg"), "pools by 'avg'"),  # its class token was never trained
        (lambda: make_tower(block_type="custom"), "has custom attention blocks"),
        (lambda: make_tower(qk_norm=True), "has custom attention blocks"),
        (lambda: make_tower(patch_size=(14, 7)), "patches of this tower are not square"),
    ],
)
def test_towers_without_a_vv_branch_are_refused(make: Any, reason: str):
    with pytest.raises(ValueError, match=f"{reason}; choose a model such as ViT-L-14-336-quickgelu"):
        CLIPImageEncoder(make())


def test_unknown_precision_is_refused_with_the_alternatives():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16; got 'int8'"):
        CLIPImageEncoder(make_tower(), precision="int8")


def test_unknown_patch_source_is_refused_with_the_alternatives():
    with pytest.raises(ValueError, match="patch_source must be one of v-v, standard; got 'q-k'"):
        CLIPImageEncoder(make_tower(), patch_source="q-k")


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 1, 56, 56), (1, 4, 56, 56), (1, 3, 13, 56), (1, 3, 56, 0)])
def test_wrong_image_shapes_are_refused(tiny_clip: CLIP, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\) with H, W >= 14, got \(.*\)"):
        tiny_clip.image_encoder(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(57, 56), (56, 60)])
def test_sizes_that_are_not_multiples_of_the_patch_size_are_refused(tiny_clip: CLIP, height: int, width: int):
    message = f"multiples of the patch size 14, got {height} x {width}; resize, for example to 518 x 518"
    with pytest.raises(ValueError, match=message):
        tiny_clip.image_encoder(torch.zeros(1, 3, height, width))
