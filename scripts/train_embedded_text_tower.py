"""Train the text tower of the embedded backbone with its frozen image tower (locked-image tuning).

Usage:
    python scripts/train_embedded_text_tower.py --cache CACHE_FOLDER

Procedural surfaces (`mrad_med.write_surface_dataset`) get captions from their known surface, color and defect. A
contrastive loss compares each caption with the patches of its region, in the space in which MRAD-CLIP compares patches
with text. A first tower is trained without two surfaces, for the numbers on the card. ``--trial-file`` saves this tower
for heads that are measured on these surfaces. The shipped tower is then trained on all surfaces. No medical image and
no real industrial image is used: datasets of both stay held out for all models that use the tower.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import tokenize
from open_clip.model import CLIPTextCfg, _build_text_tower
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

import mrad_med
from mrad_med.files import atomic_path
from mrad_med.networks.clip import CLIPTextEncoder
from mrad_med.networks.retrieval import average_neighbors

TEXT_CONFIG = {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 6}
HELD_OUT = ("leather", "marble")
PATCHES = 96  # largest number of patches of a region, drawn at random
BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 1e-3, 0.01
COLORS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
STATES = {
    0: ("intact", "flawless", "normal", "undamaged", "perfect", ""),
    1: ("damaged", "defective", "broken", "abnormal", "flawed"),
}
WORDS = {
    "bump": ("a bump", "a dent", "a raised spot"),
    "foreign": ("a foreign patch", "contamination", "a wrong texture"),
    "shade": ("a dark spot", "a scratch", "a crack"),
    "smear": ("a distorted texture", "a deformation"),
    "stain": ("a stain", "a discoloration", "a colored line"),
}

logger = logging.getLogger("train_embedded_text_tower")


@dataclass
class Region:
    """Patches of one region of one image, and the words that describe it."""

    patches: Tensor  # (at most PATCHES, E), averaged with their neighbors, L2-normalized
    surface: str
    color: str
    defect: str | None


def color_name(pixels: np.ndarray) -> str:
    """Return the name of the mean color of an image; pixels are (H, W, 3), uint8."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixels.reshape(-1, 3).mean(0) / 255))
    if saturation < 0.15:
        # The spelling is data: the shipped tower was trained on captions with this word.
        return "grey" if value < 0.75 else "white"  # codespell:ignore grey
    return COLORS[int(((hue + 1 / 32) % 1) * len(COLORS))]


def load_regions(clip: mrad_med.CLIP, folder: Path, cache: Path, seed: int) -> list[Region]:
    """Return the regions of all images: the patches without a defect, and those of a defect."""
    dataset = mrad_med.FeatureCache(clip, cache).fill(mrad_med.load_labeled_folder(folder))
    generator = torch.Generator().manual_seed(seed)
    regions = []
    for index, case in enumerate(tqdm(dataset.cases, desc="regions")):
        item = dataset[index]
        features = item["features"]
        projected = clip.image_encoder.project(features.patches)[None]
        patches = F.normalize(average_neighbors(projected, features.grid_size), dim=-1)[0]
        share = F.interpolate(item["mask"][None], size=features.grid_size, mode="bilinear").flatten()
        with Image.open(case["image"]) as image:
            color = color_name(np.asarray(image))
        defect = Path(case["image"]).stem.split("_")[0]
        for name, inside in ((None, share == 0), (defect, share > 0.5)):
            chosen = inside.nonzero().flatten()
            if len(chosen):
                chosen = chosen[torch.randperm(len(chosen), generator=generator)[:PATCHES]]
                regions.append(Region(patches[chosen], case["class"].replace("_", " "), color, name))
    return regions


def caption(region: Region, random: np.random.RandomState) -> str:
    """Return a random sentence about a region."""
    state = random.choice(STATES[int(region.defect is not None)])
    thing = random.choice(["object", region.surface, f"{region.color} {region.surface}", f"{region.surface} surface"])
    if region.defect is not None and random.uniform() < 0.5:
        return f"{thing} with {random.choice(WORDS[region.defect])}."
    prefix = random.choice(["", "a photo of a ", "a close-up of a "])
    return " ".join(f"{prefix}{state} {thing}.".split())


class TextTower(nn.Module):
    """Text transformer of open_clip, and a learned temperature that only the training needs."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        tower = _build_text_tower(embed_dim, CLIPTextCfg(**TEXT_CONFIG), quick_gelu=False)
        self.encoder = CLIPTextEncoder(tower).requires_grad_(True)
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())

    def encode(self, texts: list[str]) -> Tensor:
        """Return L2-normalized features, shape (T, E)."""
        tokens = tokenize(texts)
        ends = tokens.argmax(-1)  # the end token has the highest number
        return self.encoder(self.encoder.embed(tokens[:, : int(ends.max()) + 1]), ends)


def train(regions: list[Region], embed_dim: int, *, steps: int, seed: int) -> TextTower:
    """Return a tower that is trained for a high cosine similarity of captions and the patches of their regions."""
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)
    model = TextTower(embed_dim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    anomalous = [region for region in regions if region.defect]
    normal = [region for region in regions if not region.defect]
    for step in tqdm(range(steps), desc="steps"):
        batch = [pool[random.randint(len(pool))] for pool in (normal, anomalous) for _ in range(BATCH // 2)]
        texts = [caption(region, random) for region in batch]
        # One patch, eight, or up to all of a region, because MRAD-CLIP compares single patches.
        counts = [int(random.choice([1, 8, PATCHES])) for _ in batch]
        images = F.normalize(
            torch.stack(
                [
                    region.patches[random.randint(0, len(region.patches), count)].mean(0)
                    for region, count in zip(batch, counts, strict=True)
                ]
            ),
            dim=-1,
        )
        unique = sorted(set(texts))
        logits = model.log_scale.exp() * images @ model.encode(unique).T  # (BATCH, unique)
        target = torch.tensor([unique.index(text) for text in texts])
        one_hot = F.one_hot(target, len(unique)).float()
        to_image = -(one_hot / one_hot.sum(0)).mul(logits.log_softmax(0)).sum(0).mean()
        loss = (F.cross_entropy(logits, target) + to_image) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info("step %d: loss %.3f", step, loss.item())
    return model.eval()


@torch.no_grad()
def measure(model: TextTower, regions: list[Region]) -> dict[str, float]:
    """Return the AUROC of regions with and without a defect, scored with text only."""
    state = model.encode(["intact object.", "damaged object."])
    means = F.normalize(torch.stack([region.patches.mean(0) for region in regions]), dim=-1)
    scores = means @ (state[1] - state[0])
    labels = torch.tensor([int(region.defect is not None) for region in regions])
    return {
        "damaged_against_intact_auroc": mrad_med.metrics.image_metrics(scores, labels)["auroc"],
        "regions": len(regions),
    }


def main() -> None:
    """Write the surfaces, train and measure both towers, and save the shipped one."""
    default = Path(__file__).resolve().parents[1] / "mrad_med" / "networks" / "weights"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for cached features")
    parser.add_argument(
        "--surfaces", type=Path, help="folder of write_surface_dataset, filled if empty (default: a temporary one)"
    )
    parser.add_argument("--count", type=int, default=40, help="images of each label and surface (default: 40)")
    parser.add_argument("--steps", type=int, default=500, help="steps of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of surfaces and training (default: %(default)s)")
    parser.add_argument(
        "--precision",
        default="fp32",
        help="number format of the image tower: fp32, or bf16 if the hardware supports it (default: %(default)s)",
    )
    parser.add_argument(
        "--trial-file", type=Path, help="safetensors file for the tower of the first training (default: none)"
    )
    parser.add_argument(
        "--output-directory",
        type=Path,
        default=default,
        help="folder for tower and card (default: mrad_med/networks/weights)",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.time()
    clip = mrad_med.load_clip("embedded", precision=options.precision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.surfaces or Path(temporary)
        if not any(folder.glob("*/normal")):
            mrad_med.write_surface_dataset(folder, count=options.count, seed=options.seed)
        regions = load_regions(clip, folder, options.cache, options.seed)
    held_out = [region for region in regions if region.surface in HELD_OUT]
    seen = [region for region in regions if region.surface not in HELD_OUT]
    trial = train(seen, clip.card.embed_dim, steps=options.steps, seed=options.seed)
    results = {"held_out_surfaces": measure(trial, held_out), "seen_surfaces": measure(trial, seen)}
    logger.info("%s", results)
    if options.trial_file:
        with atomic_path(options.trial_file) as partial:
            partial.write_bytes(serialize(trial))
    model = train(regions, clip.card.embed_dim, steps=options.steps, seed=options.seed)
    content = serialize(model)
    card = {
        "text_cfg": TEXT_CONFIG,
        "card": {
            "weights_file": "embedded_text.safetensors",
            "sha256": hashlib.sha256(content).hexdigest(),
            "trained_on": f"{len(regions)} regions of procedural surfaces, {options.count} whole and as many with "
            f"defects of each of {len(mrad_med.data.SURFACES)}; captions of surface, color, state and defect; "
            f"seed {options.seed}",
            "against": "patches of the frozen embedded image tower, single and averaged",
            "vocabulary": len(vocabulary()),
            "held_out": list(HELD_OUT),
            "held_out_results": results,
            "held_out_note": "of a tower trained in the same way without the held-out surfaces",
            "license": "Apache-2.0",
            "steps": options.steps,
            "precision": options.precision,
            "seconds": round(time.time() - started),
        },
    }
    with atomic_path(options.output_directory / "embedded_text.safetensors") as partial:
        partial.write_bytes(content)
    with atomic_path(options.output_directory / "embedded_text.json") as partial:
        partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def serialize(model: TextTower) -> bytes:
    """Return the tower as the bytes of a safetensors file."""
    state = {f"text.{name}": tensor.detach() for name, tensor in model.encoder.tower.state_dict().items()}
    # Embeddings of tokens outside the vocabulary were not trained. Zeros make the compressed file small.
    used = torch.zeros(TEXT_CONFIG["vocab_size"], dtype=torch.bool)
    used[vocabulary()] = True
    state["text.token_embedding.weight"] = state["text.token_embedding.weight"] * used[:, None]
    state.pop("text.attn_mask", None)
    return save({name: tensor.half().contiguous() for name, tensor in state.items()}, metadata={"format": "pt"})


def vocabulary() -> Tensor:
    """Return the tokens of all captions, and those of the prompts of MRAD-CLIP."""
    # The spelling is data of the shipped tower, as in color_name.
    sentences = ["a photo of a close-up of a surface object with . X damaged object.", *COLORS]
    sentences.append("grey white")  # codespell:ignore grey
    sentences += [" ".join(words) for group in (STATES, WORDS) for words in group.values()]
    sentences += [name.replace("_", " ") for name in mrad_med.data.SURFACES]
    return tokenize(sentences).flatten().unique()


if __name__ == "__main__":
    main()
