"""Build the memory bank and train the heads of the embedded backbone, and measure them on held-out industrial classes.

Usage:
    python scripts/train_embedded_heads.py INDUSTRIAL_FOLDER --cache CACHE_FOLDER --held-out-tower TOWER.safetensors
    python scripts/train_embedded_heads.py INDUSTRIAL_FOLDER --cache CACHE_FOLDER --only-measure --set prompt_epochs=2

INDUSTRIAL_FOLDER contains ``magnetic_tile`` and ``deep_pcb``, each with ``normal/``, ``defect/`` and ``mask/``. The
third dataset, ``procedural``, is written there if absent (`mrad_med.write_surface_dataset`). A seeded sample of each
class is encoded once. In each fold some classes are held out, and bank and heads of the other classes score them. The
shipped bank and heads are trained with the same settings on all classes; their cards contain the table of the held-out
results. The second command measures other settings and writes nothing. No medical image is used. TOWER is the file of
``train_embedded_text_tower.py --trial-file``: a text tower that was trained without leather and marble, for the fold
that holds them out.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.utils import set_determinism
from safetensors.torch import load_file
from torch import nn

import mrad_med

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "magnetic_tile": {
        "set": "Magnetic-tile-defect-datasets",
        "reference": "Huang et al., Surface defect saliency of magnetic tile, The Visual Computer 2018",
        "license": "welcomed to use, with citation",
    },
    "deep_pcb": {
        "set": "DeepPCB",
        "reference": "Tang et al., Online PCB defect detector on a new PCB defect dataset, 2019",
        "license": "MIT",
    },
    "procedural": {
        "set": "procedural surfaces with painted defects: mrad_med.write_surface_dataset, count 40, seed 0",
        "license": "Apache-2.0",
    },
}
PER_LABEL = {
    "magnetic_tile": 100,
    "deep_pcb": 100,
    "procedural": 25,
}  # images of each class and label; procedural has eight classes
PROCEDURAL = tuple(f"procedural/{name}" for name in mrad_med.data.SURFACES)
FOLDS = {
    "magnetic_tile": ("magnetic_tile",),
    "deep_pcb": ("deep_pcb",),
    "leather, marble": ("procedural/leather", "procedural/marble"),
}
STRIDE = 4  # every fourth row and column is measured; maps are blurred with a sigma of 4 pixels

logger = logging.getLogger("train_embedded_heads")


@dataclass(frozen=True)
class Settings:
    """Settings that were chosen on held-out industrial datasets."""

    temperature: float = 0.3  # temperature of MRAD-TF
    start_temperature: float | None = 0.07  # initial temperature of MRAD-FT; None starts from random weights
    fine_tune_epochs: int = 1
    fine_tune_rate: float = 4e-4
    prompt_epochs: int = 5
    prompt_rate: float = 4e-4
    batch_size: int = 8
    depth: int = 6  # the embedded text tower has six blocks
    seed: int = 0


def load_features(
    clip: mrad_med.CLIP, folder: Path, cache: Path, *, image_size: int, seed: int
) -> mrad_med.training.FeatureDataset:
    """Return the features of a seeded sample of each class; those that the cache lacks are encoded."""
    if not (folder / "procedural").is_dir():
        mrad_med.write_surface_dataset(folder / "procedural", count=40, seed=0)
    everything = mrad_med.load_labeled_folder(folder)
    sample = []
    for name in (*FOLDS["magnetic_tile"], *FOLDS["deep_pcb"], *PROCEDURAL):
        random = np.random.RandomState(seed)
        for label in (0, 1):
            cases = [case for case in everything if case["class"] == name and case["label"] == label]
            sample += [cases[i] for i in sorted(random.permutation(len(cases))[: PER_LABEL[set_of(name)]])]
    store = mrad_med.FeatureCache(clip, cache, image_size=image_size)
    features = store.fill(sample)
    store.raise_for_failures()
    return features


def set_of(class_name: str) -> str:
    """Return the name of the dataset that a class belongs to."""
    return class_name.split("/")[0]


def with_text_tower(clip: mrad_med.CLIP, path: Path) -> mrad_med.CLIP:
    """Return the backbone with another text tower of the same architecture."""
    text_encoder = copy.deepcopy(clip.text_encoder)
    state = {name.removeprefix("text."): tensor.float() for name, tensor in load_file(path).items()}
    text_encoder.tower.load_state_dict({**text_encoder.tower.state_dict(), **state})
    return replace(clip, text_encoder=text_encoder)


def build_bank(clip: mrad_med.CLIP, dataset: mrad_med.training.FeatureDataset) -> mrad_med.MemoryBank:
    """Return the memory bank of a dataset."""
    sources = [{**SOURCES[set_of(source["name"])], **source} for source in dataset.sources]
    return mrad_med.build_memory_bank(clip, mrad_med.feature_loader(dataset), sources=sources, progress=False)


def fine_tune(
    clip: mrad_med.CLIP, bank: mrad_med.MemoryBank, dataset: mrad_med.training.FeatureDataset, settings: Settings
) -> mrad_med.MRAD:
    """Return MRAD-FT after stage 1."""
    set_determinism(settings.seed)
    network = mrad_med.build_mrad_ft(clip, bank, start_temperature=settings.start_temperature)
    loader = mrad_med.feature_loader(dataset, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)
    optimizer = torch.optim.Adam(network.head.parameters(), lr=settings.fine_tune_rate, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.fine_tune_epochs * len(loader), eta_min=1e-6
    )
    trainer = mrad_med.FineTuneTrainer("cpu", settings.fine_tune_epochs, loader, network.head, optimizer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: schedule.step())
    trainer.run()
    return network.eval()


def learn_prompts(
    clip: mrad_med.CLIP,
    bank: mrad_med.MemoryBank,
    dataset: mrad_med.training.FeatureDataset,
    fine_tuned: nn.Module,
    settings: Settings,
) -> mrad_med.MRAD:
    """Return MRAD-CLIP after stage 2, with a head of stage 1."""
    set_determinism(settings.seed)
    network = mrad_med.build_mrad_clip(clip, bank, depth=settings.depth)
    learned = [weight for weight in network.head.parameters() if weight.requires_grad]
    trainer = mrad_med.PromptTrainer(
        "cpu",
        settings.prompt_epochs,
        mrad_med.feature_loader(dataset, batch_size=settings.batch_size, shuffle=True, seed=settings.seed),
        network.head,
        torch.optim.Adam(learned, lr=settings.prompt_rate, betas=(0.5, 0.999)),
        image_encoder=clip.image_encoder,
        fine_tuned=fine_tuned,
    )
    trainer.run()
    return network.eval()


@torch.no_grad()
def measure(clip: mrad_med.CLIP, network: mrad_med.MRAD, dataset: mrad_med.training.FeatureDataset) -> dict[str, float]:
    """Return the metrics of a network on a held-out dataset."""
    prepare, infer = mrad_med.PrepareFeatures(clip.image_encoder), mrad_med.FeatureInferer()
    pixels, scores, labels = mrad_med.PixelMetrics(), [], []
    for batch in mrad_med.feature_loader(dataset):
        features, target = prepare(batch, torch.device("cpu"))
        output = infer(features, network)
        pixels.update(output["anomaly_map"][..., ::STRIDE, ::STRIDE], target["mask"][..., ::STRIDE, ::STRIDE])
        scores.append(output["anomaly_score"])
        labels.append(target["label"])
    pixel, image = pixels.compute(), mrad_med.metrics.image_metrics(torch.cat(scores), torch.cat(labels))
    return {
        "pixel_auroc": pixel["auroc"],
        "pixel_ap": pixel["ap"],
        "pro": pixel["pro"],
        "image_auroc": image["auroc"],
        "images": len(dataset),
    }


def hold_out(
    clips: Mapping[str, mrad_med.CLIP], features: mrad_med.training.FeatureDataset, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each variant on the held-out classes, with bank and heads of the other classes."""
    for name, classes in FOLDS.items():
        clip = clips[name]
        others, held_out = features.split(classes)
        bank = build_bank(clip, others)
        training_set = mrad_med.select_trainable(others)
        fine_tuned = fine_tune(clip, bank, training_set, settings)
        networks = {
            "MRAD-TF": mrad_med.build_mrad_tf(clip, bank, temperature=settings.temperature),
            "MRAD-FT": fine_tuned,
            "MRAD-CLIP": learn_prompts(clip, bank, training_set, fine_tuned.head, settings),
        }
        for variant, network in networks.items():
            row = {"held_out": name, "variant": variant, **measure(clip, network, held_out)}
            logger.info("%s", {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
            yield row


def save_all(
    clip: mrad_med.CLIP,
    features: mrad_med.training.FeatureDataset,
    settings: Settings,
    table: Sequence[dict[str, Any]],
    bundles: Path,
) -> None:
    """Train on all classes; write bank, heads and cards into the bundles."""

    def notes(variant: str) -> dict[str, Any]:
        rows = [{key: v for key, v in row.items() if key != "variant"} for row in table if row["variant"] == variant]
        return {
            "held_out_results": rows,
            "how_chosen": "held-out industrial classes, scored with bank and head of the other classes; every "
            "fourth row and column of maps and masks; no medical image took part; where leather and marble are held "
            "out, the text tower has not seen them either",
        }

    bank = build_bank(clip, features)
    bank = replace(bank, card=replace(bank.card, notes={"temperature": settings.temperature, **notes("MRAD-TF")}))
    bank.save(bundles / "memory_banks" / "embedded_industrial.safetensors")
    training_set = mrad_med.select_trainable(features)
    started = time.time()
    fine_tuned = fine_tune(clip, bank, training_set, settings)
    prompted = learn_prompts(clip, bank, training_set, fine_tuned.head, settings)
    seconds = round(time.time() - started)
    train_free = mrad_med.build_mrad_tf(clip, bank, temperature=settings.temperature)
    for variant, network in (("MRAD-TF", train_free), ("MRAD-FT", fine_tuned), ("MRAD-CLIP", prompted)):
        card = mrad_med.describe_head(
            variant=variant,
            backbone=clip.card,
            bank=bank,
            training_set=training_set,
            configuration={
                **asdict(settings),
                "precision": clip.image_encoder.precision,
                "seconds_of_both_stages": seconds,
            },
            metrics=notes(variant),
        )
        mrad_med.save_head(network.head, bundles / variant.lower().replace("-", "_") / "models" / "model.pt", card)


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown, in percent."""
    lines = [
        "| held out | images | variant | pixel AUROC | pixel AP | PRO | image AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        values = " | ".join(f"{100 * row[name]:.1f}" for name in ("pixel_auroc", "pixel_ap", "pro", "image_auroc"))
        lines.append(f"| {row['held_out']} | {row['images']} | {row['variant']} | {values} |")
    return "\n".join(lines)


def main() -> None:
    """Encode the images, measure on held-out classes, train on all classes, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the industrial datasets")
    parser.add_argument("--cache", type=Path, required=True, help="folder for cached features")
    parser.add_argument(
        "--held-out-tower",
        type=Path,
        required=True,
        help="file of a text tower that was trained without leather and marble",
    )
    parser.add_argument(
        "--image-size", type=int, default=518, help="side length of the input in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="number format of the image tower: fp32, or bf16 if the hardware supports it (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sample and training (default: %(default)s)")
    parser.add_argument(
        "--bundles", type=Path, default=ROOT / "bundles", help="folder for bank and heads (default: bundles/)"
    )
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="fields of Settings to change, with values in JSON (default: none)",
    )
    parser.add_argument("--only-measure", action="store_true", help="measure on held-out classes, and write nothing")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.time()
    changed = {name: json.loads(value) for name, value in (word.split("=") for word in options.set)}
    settings = Settings(seed=options.seed, **changed)
    clip = mrad_med.load_clip("embedded", precision=options.precision)
    features = load_features(clip, options.folder, options.cache, image_size=options.image_size, seed=options.seed)
    clips = dict.fromkeys(FOLDS, clip) | {"leather, marble": with_text_tower(clip, options.held_out_tower)}
    table = list(hold_out(clips, features, settings))
    if not options.only_measure:
        save_all(clip, features, settings, table, options.bundles)
    logger.info("%s\n\n%s\n%.0f s", settings, markdown(table), time.time() - started)


if __name__ == "__main__":
    main()
