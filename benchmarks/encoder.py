"""Compare speed, features and scores of MRAD-TF with a direct implementation of its formulas.

Usage:
    python benchmarks/encoder.py --embedded
    python benchmarks/encoder.py --layers 2 --images 1 --repeats 1 --precision fp32

"plain" computes every N x N attention matrix, all rows of the last block, two final projections, three poolings of both
patch tensors, the whole softmax over the keys, and upsampling before a Gaussian of the full image. "ours" is this
package. The ViT-L/14 has random weights, so nothing is downloaded. Its times equal those of real weights, but its
agreement may differ. The embedded backbone has real weights.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, get_model_config
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mrad_med import CLIP, MRAD, MemoryBank, build_memory_bank, build_mrad_tf, load_clip
from mrad_med.networks import CLIPImageEncoder
from mrad_med.networks.maps import fuse_scores
from mrad_med.types import BackboneCard, ImageFeatures

MODEL = "ViT-L-14-336-quickgelu"
BANK_IMAGES, BANK_SIZE = 64, 112


@dataclass
class Contender:
    """One implementation of features and scores, its input, and its measurements."""

    name: str
    images: Tensor
    encode: Callable[[Tensor], ImageFeatures]
    score: Callable[[ImageFeatures], Tensor]
    passes: list[tuple[float, float]] = field(default_factory=list)  # seconds of encoding, and of the other steps
    features: list[ImageFeatures] = field(default_factory=list)  # last pass, one item for each batch
    scores: list[Tensor] = field(default_factory=list)

    def run(self, batch_size: int) -> None:
        """Encode and score all images once."""
        self.features, self.scores, encoding, rest = [], [], 0.0, 0.0
        for batch in self.images.split(batch_size):
            start = time.perf_counter()
            self.features.append(self.encode(batch))
            middle = time.perf_counter()
            self.scores.append(self.score(self.features[-1]))
            encoding, rest = encoding + middle - start, rest + time.perf_counter() - middle
        self.passes.append((encoding, rest))


def plain_features(tower: VisionTransformer, images: Tensor) -> ImageFeatures:
    """Return the class feature of CLIP and the V-V patch tokens; every attention matrix is materialized."""
    side = images.shape[-1] // tower.patch_size[0]
    table = tower.positional_embedding
    grid = table[1:].T.unflatten(-1, tower.grid_size)[None]
    grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    positions = torch.cat([table[:1], grid[0].flatten(1).T])
    tokens = tower.conv1(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([tower.class_embedding.expand(len(tokens), 1, -1), tokens], dim=1)
    hidden = tower.ln_pre(tokens + positions)
    blocks = tower.transformer.resblocks
    hidden, _ = plain_block(blocks[0], hidden, with_vv=False)
    vv_tokens = hidden
    for block in blocks[1:]:
        hidden, update = plain_block(block, hidden, with_vv=True)
        vv_tokens = vv_tokens + update
    image = (hidden @ tower.proj)[:, 0]
    normed = tower.ln_post(vv_tokens)
    return ImageFeatures(image, normed[:, 1:], (normed @ tower.proj)[:, 1:], (side, side))


def plain_block(block: ResidualAttentionBlock, hidden: Tensor, *, with_vv: bool) -> tuple[Tensor, Tensor]:
    """Return the output of the block, and the output of the attention of the values over themselves."""
    attention = block.attn
    projected = F.linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
    )
    scale = 1 / math.sqrt(query.shape[-1])
    weights = torch.softmax(query @ key.mT * scale, dim=-1)  # (B, heads, 1 + N, 1 + N)
    hidden = hidden + attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
    hidden = hidden + block.mlp(block.ln_2(hidden))
    if not with_vv:
        return hidden, torch.empty(0)
    weights = torch.softmax(value @ value.mT * scale, dim=-1)
    return hidden, attention.out_proj((weights @ value).transpose(1, 2).flatten(2))


def plain_average(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Return patches averaged with their neighbors by three poolings, shape (B, N, D)."""
    grid = patches.mT.unflatten(-1, grid_size)
    pooled = [F.avg_pool2d(grid, kernel, stride=1, padding=kernel // 2) for kernel in (1, 3, 5)]
    return torch.stack(pooled).mean(0).flatten(2).mT


def plain_scores(bank: MemoryBank, size: int, features: ImageFeatures) -> Tensor:
    """Return scores (B, 1): poolings, softmax over all keys, upsampling, Gaussian, mean of the highest pixels."""
    averaged = [
        plain_average(patches, features.grid_size) for patches in (features.patches, features.projected_patches)
    ]
    queries = F.normalize(averaged[0], dim=-1)
    patch = torch.softmax(queries @ bank.patch_keys.T, dim=-1) @ F.one_hot(bank.patch_labels, 2).float()
    similarity = F.normalize(features.image, dim=-1) @ bank.image_keys.T
    image = torch.softmax(similarity, dim=-1) @ F.one_hot(bank.image_labels, 2).float()
    grid = patch[..., 1].unflatten(-1, features.grid_size)[:, None]
    maps = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    maps = torch.stack([torch.from_numpy(gaussian_filter(item.numpy(), sigma=4)) for item in maps[:, 0]])
    highest = maps.flatten(1).sort(dim=1, descending=True).values[:, : max(1, int(0.01 * size * size))]
    return 0.7 * image[:, 1:] + 0.3 * highest.mean(1, keepdim=True)


def our_scores(network: MRAD, size: int, features: ImageFeatures) -> Tensor:
    """Return the scores of this package, shape (B, 1)."""
    return fuse_scores(network.image_probability(features), network.anomaly_map(features, (size, size)))


def smooth_images(count: int, size: int, card: BackboneCard, *, seed: int) -> dict[str, Tensor]:
    """Return a normalized batch of smooth noise at several scales; every second image has a square of another color."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, size, size)
    for cells in (3, 6, 12, 24):
        noise = torch.randn(count, 3, cells, cells, generator=generator) / cells**0.5
        images += F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)
    labels, masks = torch.arange(count) % 2, torch.zeros(count, 1, size, size)
    masks[labels == 1, :, size // 4 : size // 2, size // 4 : size // 2] = 1
    images = (images + 1.5 * masks * torch.randn(count, 3, 1, 1, generator=generator)).sigmoid()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean, card.std))
    return {"image": (images - mean) / std, "label": labels, "mask": masks}


def random_clip(layers: int, precision: str) -> CLIP:
    """Return OpenAI's ViT-L/14@336 with random weights, which are the same at every call."""
    torch.manual_seed(0)
    config = get_model_config(MODEL)
    vision = CLIPVisionCfg(**config["vision_cfg"] | {"layers": layers})
    tower = _build_vision_tower(config["embed_dim"], vision, config["quick_gelu"])
    sizes = (vision.width, config["embed_dim"], vision.patch_size, vision.image_size)
    card = BackboneCard(f"{MODEL}, random", "random", *sizes, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    return CLIP(CLIPImageEncoder(tower, precision=precision), card)


def build_contenders(build: Callable[[str], CLIP], arguments: argparse.Namespace) -> list[Contender]:
    """Return "plain", then this package at each precision, with one bank of 64 image keys and 96 patch keys."""
    clip, size = build("fp32"), arguments.size
    images = smooth_images(arguments.images, size, clip.card, seed=1)["image"]
    batches = [smooth_images(8, BANK_SIZE, clip.card, seed=100 + index) for index in range(BANK_IMAGES // 8)]
    bank = build_memory_bank(clip, batches, progress=False)
    encode, score = partial(plain_features, clip.image_encoder.tower), partial(plain_scores, bank, size)
    contenders = [Contender("plain fp32", images, encode, score)]
    for precision in arguments.precision:
        network = build_mrad_tf(clip if precision == "fp32" else build(precision), bank)
        contenders.append(Contender(f"ours {precision}", images, network.encode, partial(our_scores, network, size)))
    return contenders


def print_machine() -> None:
    """Print the processor, its load and its instruction sets, and the version of torch."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    known = ", ".join(f"{name} {'yes' if name in flags else 'no'}" for name in names) if flags else "flags unknown"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{facts.get('model name') or platform.processor() or platform.machine()}, {os.cpu_count()} cores{load}")
    print(f"{known}; torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.system()}")


def print_table(contenders: Sequence[Contender], count: int) -> None:
    """Print the best pass of each contender, and compare its speed, features and scores with those of the first."""
    titles = ("encoding", "other", "images/s", "ratio", "patch min", "mean", "image min", "mean", "score")
    print(" " * 10 + "".join(f"{title:>11}" for title in titles))
    plain = contenders[0]
    expected_scores = torch.cat(plain.scores)
    for contender in contenders:
        encoding, rest = min(contender.passes, key=sum)
        ratio = min(map(sum, plain.passes)) / (encoding + rest)
        row = f"{encoding / count:11.3f}{rest / count:11.3f}{count / (encoding + rest):11.3f}{ratio:11.2f}"
        for name in ("patches", "image"):
            given, expected = (torch.cat([getattr(part, name) for part in c.features]) for c in (contender, plain))
            cosine = F.cosine_similarity(given.double(), expected.double(), dim=-1)
            row += f"{cosine.min():11.7f}{cosine.mean():11.7f}"
        print(f"{contender.name:10}{row}{(torch.cat(contender.scores) - expected_scores).abs().max():11.1e}")
    print(f"Scores of plain: {expected_scores.min():.6f} to {expected_scores.max():.6f}.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("--images", 2, "number of images"),
        ("--layers", 24, "number of blocks of the random ViT-L/14"),
        ("--size", 518, "side length of the images in pixels, a multiple of 14"),
        ("--repeats", 3, "number of passes of each contender"),
        ("--batch-size", 1, "number of images in a batch"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "fp16"], default=["fp32", "bf16"])
    parser.add_argument("--embedded", action="store_true", help="time the embedded backbone too")
    arguments = parser.parse_args()
    with torch.inference_mode():
        print_machine()
        builders: dict[str, Callable[[str], CLIP]] = {
            f"ViT-L/14@336, {arguments.layers} blocks, random weights": partial(random_clip, arguments.layers)
        }
        if arguments.embedded:
            builders["embedded backbone"] = lambda precision: load_clip(
                "embedded", precision=precision, patch_source="v-v"
            )
        groups = {title: build_contenders(build, arguments) for title, build in builders.items()}
        contenders = [contender for group in groups.values() for contender in group]
        for _ in range(arguments.repeats):
            for contender in contenders:  # interleaved, because a change of load then affects all
                contender.run(arguments.batch_size)
    print(f"{arguments.images} image(s) of {arguments.size} x {arguments.size} in batches of {arguments.batch_size}.")
    print("Seconds per image of encoding and of other steps (retrieval, map, score): interleaved contenders, best of")
    print(f"{arguments.repeats} passes. Cosine similarity to the features of plain. Largest difference of a score.")
    for title, group in groups.items():
        print(f"\n{title}")
        print_table(group, arguments.images)


if __name__ == "__main__":
    main()
