"""Make the memory bank of the embedded backbone, and choose its temperature on held-out industrial sets.

Usage:
    python scripts/make_procedural_defects.py INDUSTRIAL_FOLDER/procedural
    python scripts/make_embedded_bank.py INDUSTRIAL_FOLDER --out bundles/memory_banks/embedded_industrial.safetensors

INDUSTRIAL_FOLDER holds the folders ``magnetic_tile``, ``deep_pcb`` and ``procedural``, each with ``normal/``,
``defect/`` and ``mask/``. A seeded sample of each is encoded once. Then each set in turn is held out: a bank of the
other sets scores it at every candidate temperature. The temperature with the best mean pixel AUROC over the held-out
sets is written into the card together with the whole table; the bank that is saved holds all sets. No medical image
takes part.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import mrad_med
from mrad_med.heads import TrainFreeHead
from mrad_med.networks import MRAD
from mrad_med.types import ImageFeatures

TEMPERATURES = (1.0, 0.3, 0.1, 0.07, 0.04, 0.02, 0.01)
SOURCES = {
    "magnetic_tile": {
        "name": "Magnetic-tile-defect-datasets",
        "reference": "Huang et al., Surface defect saliency of magnetic tile, The Visual Computer 2018",
        "license": "welcomed to use, with citation",
    },
    "deep_pcb": {
        "name": "DeepPCB",
        "reference": "Tang et al., Online PCB defect detector on a new PCB defect dataset, 2019",
        "license": "MIT",
    },
    "procedural": {
        "name": "procedural surfaces with painted defects, scripts/make_procedural_defects.py --seed 0",
        "license": "Apache-2.0",
    },
}

logger = logging.getLogger("make_embedded_bank")


class RecordingEncoder(nn.Module):
    """The image encoder, keeping the features of everything it encodes (fp16, one image an entry)."""

    def __init__(self, encoder: mrad_med.CLIPImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.recorded: list[ImageFeatures] = []

    def forward(self, images: Tensor) -> ImageFeatures:
        """Return the features and remember them."""
        features: ImageFeatures = self.encoder(images)
        for image, patches in zip(features.image, features.patches, strict=True):
            # The projection of the embedded backbone is the identity: nothing more to keep.
            self.recorded.append(
                ImageFeatures(image[None], patches[None].half(), patches[None, :0], features.grid_size)
            )
        return features


@dataclass
class EncodedSet:
    """One industrial set: its bank, and what is needed to score it with another bank."""

    bank: mrad_med.MemoryBank
    features: list[ImageFeatures]
    masks: list[Tensor]
    labels: Tensor


def encode_set(clip: mrad_med.CLIP, folder: Path, *, per_label: int, seed: int) -> EncodedSet:
    """Return a seeded sample of a set, encoded once."""
    random = np.random.RandomState(seed)
    everything = mrad_med.load_labelled_folder(folder)
    sample = []
    for label in (0, 1):
        cases = [case for case in everything if case["label"] == label]
        chosen = random.permutation(len(cases))[:per_label]
        sample += [cases[i] for i in sorted(chosen)]
    steps = mrad_med.build_preprocessing(clip.card, with_mask=True)
    loader = mrad_med.CaseLoader(mrad_med.CaseDataset(sample, steps))
    masks: list[Tensor] = []

    def batches() -> Iterator[dict[str, Any]]:
        for batch in loader:
            masks.extend(mask[None] > 0.5 for mask in batch["mask"].as_tensor())
            yield batch

    encoder = RecordingEncoder(clip.image_encoder)
    counts = {"normal": sum(case["label"] == 0 for case in sample), "anomalous": sum(case["label"] for case in sample)}
    source = {**SOURCES.get(folder.name, {"name": folder.name}), **counts, "sample_seed": seed}
    bank = mrad_med.build_memory_bank(replace(clip, image_encoder=encoder), batches(), sources=[source], progress=False)
    loader.raise_for_failures()
    return EncodedSet(bank, encoder.recorded, masks, bank.image_labels)


def score_set(
    clip: mrad_med.CLIP, bank: mrad_med.MemoryBank, held_out: EncodedSet, temperature: float
) -> dict[str, float]:
    """Return the metrics of a held-out set under a bank."""
    network = MRAD(clip.image_encoder, TrainFreeHead(bank, temperature=temperature))
    pixel, scores = mrad_med.PixelMetrics(), []
    for stored, mask in zip(held_out.features, held_out.masks, strict=True):
        features = replace(stored, patches=stored.patches.float())
        anomaly_map = network.anomaly_map(features, tuple(mask.shape[-2:]))
        # Every second row and column: a quarter of the pixels of a map blurred with sigma 4.
        pixel.update(anomaly_map[..., ::2, ::2], mask[..., ::2, ::2].float())
        scores.append(mrad_med.fuse_scores(network.image_probability(features), anomaly_map))
    measured, image = pixel.compute(), mrad_med.image_metrics(torch.cat(scores), held_out.labels)
    return {
        "pixel_auroc": measured["auroc"],
        "pixel_ap": measured["ap"],
        "pro": measured["pro"],
        "image_auroc": image["auroc"],
        "images": len(held_out.masks),
    }


def main() -> None:
    """Encode, choose, build, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-label", type=int, default=160, help="images of each label and set, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.time()
    clip = mrad_med.load_clip("embedded")
    sets = {
        name: encode_set(clip, options.folder / name, per_label=options.per_label, seed=options.seed)
        for name in SOURCES
    }
    table: list[dict[str, float | str]] = []
    for temperature in tqdm(TEMPERATURES, desc="temperatures"):
        for name, held_out in sets.items():
            others = mrad_med.merge_memory_banks([item.bank for other, item in sets.items() if other != name])
            table.append(
                {"held_out": name, "temperature": temperature, **score_set(clip, others, held_out, temperature)}
            )
            logger.info("%s", {key: round(v, 4) if isinstance(v, float) else v for key, v in table[-1].items()})
    mean = {t: float(np.mean([row["pixel_auroc"] for row in table if row["temperature"] == t])) for t in TEMPERATURES}
    best = max(mean, key=lambda t: mean[t])
    logger.info("mean pixel AUROC by temperature: %s; chosen: %s", json.dumps(mean), best)
    merged = mrad_med.merge_memory_banks([item.bank for item in sets.values()])
    notes = {
        "temperature": best,
        "how_chosen": "best mean pixel AUROC over industrial sets held out one at a time; no medical image took part",
        "measured_on": "every second row and column of maps and masks at 518 x 518",
        "held_out_results": [row for row in table if row["temperature"] == best],
        "mean_pixel_auroc_by_temperature": {str(t): round(value, 5) for t, value in mean.items()},
        "seconds": round(time.time() - started),
    }
    bank = replace(merged, card=replace(merged.card, notes=notes))
    bank.save(options.out)
    logger.info("%s: %s", options.out, bank)


if __name__ == "__main__":
    main()
