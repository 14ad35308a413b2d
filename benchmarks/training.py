"""Compare time and losses of a training of MRAD-CLIP on cached features with those of the published method.

Usage:
    python benchmarks/training.py
    python benchmarks/training.py --images 32
    python benchmarks/training.py --images 8 --blocks 2 --image-size 224

"published" is a direct implementation of the formulas. The plain encoder of `benchmarks/encoder.py` encodes all images
twice for the memory bank and once in each of the six epochs. Each step projects the keys and computes thresholds with
`torch.quantile`. Prompts have 77 tokens. "ours" is this package: images are encoded once, and the bank and both stages
read the cached features.

Both methods use the same images in the same order, and start from the same weights. The backbone has random weights
and, by default, a quarter of the blocks of ViT-L. With all blocks the encoder takes a larger part of the time, and the
ratio is larger. Time is proportional to the number of images; `--images 32` halves it. The exit status is 1 if losses
differ by more than the rounding of fp16.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from encoder import MODEL, plain_average, plain_features, print_machine, random_clip
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, Trainer
from open_clip import get_model_config, tokenize
from open_clip.model import CLIPTextCfg, _build_text_tower
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mrad_med import (
    CLIP,
    CaseDataset,
    FeatureCache,
    FineTuneTrainer,
    ImageFeatures,
    ImageView,
    PromptTrainer,
    build_memory_bank,
    build_mrad_clip,
    build_mrad_ft,
    build_preprocessing,
    collate_features,
    feature_loader,
    load_labeled_folder,
    write_surface_dataset,
)
from mrad_med.data import SURFACES
from mrad_med.networks import CLIPTextEncoder
from mrad_med.training import FeatureDataset

EPOCHS = {"stage 1": 1, "stage 2": 5}
LEARNING_RATE, BETAS = 4e-4, (0.5, 0.999)
PATCH_QUANTILE, IMAGE_QUANTILE, TEMPERATURE, CONTEXT_LENGTH = 0.8, 0.95, 0.07, 12
PARTS = ("reading", "forward", "loss", "backward", "update")  # parts of a step of ours
TOLERANCE = 2**-11  # half a step of fp16 at 1: the largest rounding of a cache in fp16

Seconds = defaultdict[tuple[str, str], float]  # by phase and part
Weights = dict[str, Tensor]


@dataclass
class Record:
    """Times and losses of one method."""

    seconds: Seconds = field(default_factory=lambda: defaultdict(float))
    losses: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in EPOCHS})

    @contextmanager
    def timed(self, phase: str, part: str = "all") -> Iterator[None]:
        """Add the time of the block to a phase and part."""
        start = time.perf_counter()
        yield
        self.seconds[phase, part] += time.perf_counter() - start


def random_backbone(blocks: int, precision: str) -> CLIP:
    """Return OpenAI's ViT-L/14@336 with random weights and the given number of image blocks."""
    clip = random_clip(blocks, precision)
    config = get_model_config(MODEL)
    text = _build_text_tower(config["embed_dim"], CLIPTextCfg(**config["text_cfg"]), config["quick_gelu"])
    return replace(clip, text_encoder=CLIPTextEncoder(text))


class PublishedTraining:
    """Direct implementation of the published method.

    Args:
        clip: backbone in float32.
        cases: preprocessed images with masks and labels.
        weights: initial weights by their names in a `PromptedHead`.
        batch_size: number of images in a batch.
    """

    def __init__(self, clip: CLIP, cases: CaseDataset, weights: Weights, batch_size: int) -> None:
        self.clip = clip
        self.cases = cases
        self.weights = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        self.record = Record()
        tokens = tokenize([" ".join(["X"] * CONTEXT_LENGTH) + state for state in (" object.", " damaged object.")])
        self.ends = tokens.argmax(-1)
        self.embedded = clip.text_encoder.tower.token_embedding(tokens)  # (2, 77, W)
        in_order = [list(part) for part in torch.arange(len(cases)).split(batch_size)]
        with self.record.timed("memory bank"):
            self.image_keys, self.image_labels = self.image_level(in_order)
            self.patch_keys, self.patch_labels = self.patch_level(in_order)

    def encoded(self, phase: str, order: Sequence[Sequence[int]]) -> Iterator[tuple[ImageFeatures, Tensor, Tensor]]:
        """Read and encode each batch; yield features, masks and labels."""
        for indices in order:
            cases = [self.cases[int(index)] for index in indices]
            images = torch.stack([case["image"].as_tensor() for case in cases])
            with self.record.timed(phase, "encoding"), torch.no_grad():
                features = plain_features(self.clip.image_encoder.tower, images)
            masks = torch.stack([case["mask"].as_tensor() for case in cases])
            yield features, (masks > 0.5).float(), torch.tensor([case["label"] for case in cases])

    def image_level(self, order: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return keys and labels of the image level, computed in a separate pass."""
        batches = [(features.image, labels) for features, _, labels in self.encoded("memory bank", order)]
        keys, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return F.normalize(keys, dim=-1), labels

    def patch_level(self, order: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return keys and labels of the patch level, computed in a second pass."""
        keys, labels = [], []
        for features, masks, _ in self.encoded("memory bank", order):
            patches = plain_average(features.patches, features.grid_size)
            coverage = F.interpolate(masks, size=features.grid_size, mode="bilinear", align_corners=False).flatten(1)
            for tokens, share in zip(patches, coverage, strict=True):
                for label in (1, 0):
                    if (share == label).any():
                        keys.append(F.normalize(tokens[share == label].mean(0), dim=0))
                        labels.append(label)
        return torch.stack(keys), torch.tensor(labels)

    def train(self, order: dict[str, list[list[int]]]) -> None:
        """Run both stages over the given batches."""
        for stage, compute_loss in (("stage 1", self.fine_tune_loss), ("stage 2", self.prompt_loss)):
            prefix = "fine_tuned." if stage == "stage 1" else "prompts."
            learned = [weight for name, weight in self.weights.items() if name.startswith(prefix)]
            optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE, betas=BETAS)
            with self.record.timed(stage):
                for features, masks, labels in self.encoded(stage, order[stage]):
                    loss = compute_loss(features, masks, labels)
                    self.record.losses[stage].append(loss.item())
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            for weight in learned:
                weight.requires_grad_(False)

    def fine_tune_loss(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of stage 1."""
        maps = upsample(self.patch_probabilities(features), features.grid_size, masks)
        queries = F.normalize(features.image, dim=-1)[:, None]
        image = self.retrieve("image", queries, self.image_keys, self.image_labels, IMAGE_QUANTILE)[:, 0]
        total = plain_focal(maps, masks) + plain_dice(maps[:, 1:], masks)
        return total + F.cross_entropy(image / TEMPERATURE, labels)

    def prompt_loss(self, features: ImageFeatures, masks: Tensor, _: Tensor) -> Tensor:
        """Return the loss of stage 2."""
        projected = F.normalize(plain_average(features.projected_patches, features.grid_size), dim=-1)
        text = self.text_features(projected, self.patch_probabilities(features)[..., 1] > 0.5)
        probabilities = torch.softmax(projected @ text.mT / TEMPERATURE, dim=-1)  # (B, N, 2)
        maps = upsample(probabilities, features.grid_size, masks)
        total = plain_focal(maps, masks) + plain_dice(maps[:, 1:], masks)
        return total + plain_dice(maps[:, :1], 1 - masks)

    def patch_probabilities(self, features: ImageFeatures) -> Tensor:
        """Return the retrieval probabilities of the patches, shape (B, N, 2)."""
        queries = F.normalize(plain_average(features.patches, features.grid_size), dim=-1)
        return self.retrieve("patch", queries, self.patch_keys, self.patch_labels, PATCH_QUANTILE)

    def retrieve(self, level: str, queries: Tensor, keys: Tensor, labels: Tensor, quantile: float) -> Tensor:
        """Return probabilities (B, N, 2); the keys with the highest raw cosine to a query are excluded."""
        cosines = queries @ keys.T
        thresholds = torch.quantile(cosines, quantile, dim=-1, keepdim=True)
        query, key = (
            self.linear(f"fine_tuned.{level}_{name}", tokens) for name, tokens in (("query", queries), ("key", keys))
        )
        scores = (query @ key.T).masked_fill(cosines > thresholds, float("-inf"))
        return torch.softmax(scores, dim=-1) @ F.one_hot(labels, 2).float()

    def text_features(self, projected: Tensor, anomalous: Tensor) -> Tensor:
        """Return text features (B, 2, E) of prompts of 77 tokens, biased by the two regions of each image."""
        tower, batch = self.clip.text_encoder.tower, len(projected)
        contexts = []
        for state, region in (("normal", ~anomalous), ("anomaly", anomalous)):
            token = region.float()[:, None] @ projected / region.sum(1).clamp(min=1)[:, None, None]  # (B, 1, E)
            contexts.append(self.weights[f"prompts.context_{state}"] + self.linear(f"prompts.bias_{state}", token))
        embedded = self.embedded.expand(batch, -1, -1, -1)
        parts = (embedded[:, :, :1], torch.stack(contexts, dim=1), embedded[:, :, 1 + CONTEXT_LENGTH :])
        hidden = torch.cat(parts, dim=2).flatten(0, 1) + tower.positional_embedding  # (2 B, 77, W)
        for index, block in enumerate(tower.transformer.resblocks):
            deep = self.weights.get(f"prompts.deep_prompts.{index - 1}")
            if deep is not None:
                deep = deep.half().float().expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :1], deep, hidden[:, 1 + deep.shape[1] :]], dim=1)
            hidden = block(hidden, attn_mask=tower.attn_mask)
        last = tower.ln_final(hidden)[torch.arange(2 * batch), self.ends.repeat(batch)]
        return F.normalize(last @ tower.text_projection, dim=-1).unflatten(0, (batch, 2))

    def linear(self, name: str, tokens: Tensor) -> Tensor:
        """Return the tokens after one of the linear layers."""
        return F.linear(tokens, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def upsample(probabilities: Tensor, grid_size: tuple[int, int], masks: Tensor) -> Tensor:
    """Return maps (B, 2, H, W) of patch probabilities (B, N, 2)."""
    grid = probabilities.mT.unflatten(-1, grid_size)
    return F.interpolate(grid, size=masks.shape[-2:], mode="bilinear", align_corners=False)


def plain_focal(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the focal loss of probabilities (B, 2, H, W)."""
    target = F.one_hot(masks[:, 0].long(), 2).permute(0, 3, 1, 2).float().clamp(1e-5, 1 - 1e-5)
    likelihood = (target * maps).sum(1) + 1e-5
    return (-((1 - likelihood) ** 2) * likelihood.log()).mean()


def plain_dice(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the Dice loss of one channel."""
    maps, masks = maps.flatten(1), masks.flatten(1)
    return 1 - ((2 * (maps * masks).sum(1) + 1) / (maps.sum(1) + masks.sum(1) + 1)).mean()


class StepRecorder:
    """Record time, loss and images of each step of a trainer."""

    def __init__(self, record: Record, stage: str, order: list[list[int]]) -> None:
        self.record, self.stage, self.order, self.last = record, stage, order, 0.0

    def attach(self, engine: Trainer) -> None:
        """Register the handlers of the trainer."""
        events = (
            Events.GET_BATCH_COMPLETED,
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.LOSS_COMPLETED,
            IterationEvents.BACKWARD_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        )
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.start)
        for event, part in zip(events, PARTS, strict=True):
            engine.add_event_handler(event, self.mark, part)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.note)

    def start(self, _: Engine) -> None:
        """Start the time of a step."""
        self.last = time.perf_counter()

    def mark(self, _: Engine, part: str) -> None:
        """Add the time since the last mark to a part."""
        now = time.perf_counter()
        self.record.seconds[self.stage, part] += now - self.last
        self.last = now

    def note(self, engine: Engine) -> None:
        """Record the loss and the images of the batch."""
        self.record.losses[self.stage].append(engine.state.output["loss"].item())
        self.order.append(engine.state.batch["index"].tolist())


def train_ours(
    clip: CLIP, cases: list[dict[str, Any]], folder: str, arguments: argparse.Namespace
) -> tuple[Record, Weights, dict[str, list[list[int]]]]:
    """Train as the bundle does; return times and losses, the initial weights, and the order of the images."""
    record, order = Record(), {stage: list[list[int]]() for stage in EPOCHS}
    cache = FeatureCache(clip, folder, image_size=arguments.image_size, dtype=arguments.cache_dtype)
    time_encoder(clip.image_encoder, record)
    with record.timed("features"):
        features = cache.fill(cases, batch_size=arguments.batch_size, progress=False)
    with record.timed("memory bank"):
        loader = DataLoader(features, batch_size=arguments.batch_size, collate_fn=collate_features)
        bank = build_memory_bank(clip, loader, progress=False)
    torch.manual_seed(0)
    fine_tuned = build_mrad_ft(clip, bank).head
    head = build_mrad_clip(clip, bank, fp16_deep_prompts=True).head
    head.fine_tuned.load_state_dict(fine_tuned.state_dict())
    initial = {name: weight.clone() for name, weight in head.learned_state().items()}

    def common(stage: str, network: nn.Module, dataset: FeatureDataset) -> dict[str, Any]:
        learned = [weight for weight in network.parameters() if weight.requires_grad]
        return {
            "device": "cpu",
            "max_epochs": EPOCHS[stage],
            "train_data_loader": feature_loader(dataset, batch_size=arguments.batch_size, shuffle=True),
            "network": network,
            "optimizer": torch.optim.Adam(learned, lr=LEARNING_RATE, betas=BETAS),
            "train_handlers": [StepRecorder(record, stage, order[stage])],
        }

    with record.timed("stage 1"):
        FineTuneTrainer(**common("stage 1", fine_tuned, features)).run()
    with record.timed("stage 2"):
        stage = common("stage 2", head, features)
        PromptTrainer(**stage, image_encoder=clip.image_encoder, fine_tuned=fine_tuned).run()
    return record, initial, order


def time_encoder(encoder: nn.Module, record: Record) -> None:
    """Replace the encoder's forward method by one that records its time."""
    forward = encoder.forward

    def timed(images: Tensor) -> ImageFeatures:
        with record.timed("features", "encoding"):
            return forward(images)

    encoder.forward = timed


def print_times(published: Record, ours: Record) -> None:
    """Print the time of each phase and of its encoding, and the parts of our steps."""
    phases = ("features", "memory bank", *EPOCHS)
    names = ("published", "encoding", "other", "ours", "encoding", "other")
    print(f"\n{'seconds':14}" + "".join(f"{name:>11}" for name in names))
    for phase in (*phases, "whole"):
        row = f"{phase:14}"
        for record in (published, ours):
            parts = phases if phase == "whole" else (phase,)
            whole, encoding = (sum(record.seconds[item, part] for item in parts) for part in ("all", "encoding"))
            row += f"{whole:11.2f}{encoding:11.2f}{whole - encoding:11.2f}"
        print(row)
    whole = [sum(record.seconds[phase, "all"] for phase in phases) for record in (published, ours)]
    print(f"\npublished / ours: {whole[0] / whole[1]:.2f} in wall time. Our steps:")
    print(f"{'seconds':14}" + "".join(f"{part:>11}" for part in (*PARTS, "between")))
    for stage in EPOCHS:
        parts = [ours.seconds[stage, part] for part in PARTS]
        parts.append(ours.seconds[stage, "all"] - sum(parts))
        print(f"{stage:14}" + "".join(f"{part:11.2f}" for part in parts))


def print_losses(published: Record, ours: Record) -> float:
    """Print the differences of the losses, and return the largest difference."""
    print(f"\n{'losses':14}{'steps':>6}{'first':>11}{'last':>11}{'largest difference':>20}{'of the first step':>19}")
    largest = []
    for stage in EPOCHS:
        expected, given = (torch.tensor(record.losses[stage]) for record in (published, ours))
        gaps = (given - expected).abs()
        row = f"{stage:14}{len(expected):6d}{expected[0]:11.6f}{expected[-1]:11.6f}"
        print(f"{row}{gaps.max():20.1e}{gaps[0]:19.1e}")
        largest.append(gaps.max())
    return torch.stack(largest).max().item()  # NaN stays NaN


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("--images", 64, "number of images, half of them with a defect; above 16 a multiple of 16"),
        ("--blocks", 6, "number of blocks of the random ViT-L/14, at most 24"),
        ("--image-size", 518, "side length of the input in pixels, a multiple of 14"),
        ("--batch-size", 8, "number of images in a batch"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--cache-dtype",
        choices=["fp16", "fp32"],
        default="fp16",
        help="number format of our cache (default: %(default)s)",
    )
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # hides the messages of the trainers
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        surfaces = list(SURFACES)[: max(1, arguments.images // 2)]
        count = max(1, arguments.images // 2 // len(surfaces))
        cases = load_labeled_folder(write_surface_dataset(Path(folder) / "images", surfaces=surfaces, count=count))
        size = f"{arguments.image_size} x {arguments.image_size}"
        print(f"ViT-L/14 with {arguments.blocks} blocks, random weights, fp32; cache in {arguments.cache_dtype};")
        print(f"{len(cases)} images of {size} in batches of {arguments.batch_size}.", flush=True)
        clip = random_backbone(arguments.blocks, "fp32")
        ours, initial, order = train_ours(clip, cases, str(Path(folder) / "features"), arguments)
        preprocessing = build_preprocessing(clip.card, ImageView(image_size=arguments.image_size), with_mask=True)
        published = PublishedTraining(clip, CaseDataset(cases, preprocessing), initial, arguments.batch_size)
        published.train(order)
    print_times(published.record, ours)
    agree = print_losses(published.record, ours) <= TOLERANCE
    print(f"\nThe losses {'agree' if agree else 'DO NOT agree'} within {TOLERANCE:.1e}, the rounding of fp16.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
