"""Print the peak memory of inference and training with ViT-L/14@336 and a bank of the published size.

Usage:
    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda --precision fp32 bf16
    python benchmarks/memory.py --blocks 2 --image-size 224 --cases tf stage2

Every row is measured in a separate process, because a peak cannot be reset. On the CPU it is the peak resident size of
the process, including libraries and weights. On a GPU it is the peak memory that torch allocated. Weights and bank are
random. "features" is the computation of features for the cache. Both stages then train on cached features while the
backbone is loaded, as in `train.json` of the bundles.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from encoder import print_machine
from retrieval import resident_peak
from torch import Tensor, nn
from training import BETAS, LEARNING_RATE, random_backbone

from mrad_med import (
    CLIP,
    MRAD,
    AnomalyInferer,
    FineTuneTrainer,
    ImageFeatures,
    MemoryBank,
    PromptTrainer,
    build_mrad_clip,
    build_mrad_ft,
    build_mrad_tf,
    feature_loader,
)
from mrad_med.training import FeatureDataset
from mrad_med.types import BankCard

IMAGE_KEYS, PATCH_KEYS = 2162, 3093  # numbers of keys of the published bank of VisA
STEPS = 2  # steps of training: the optimizer allocates its memory at the end of the first
GIBIBYTE = 2**30


class RandomFeatures(FeatureDataset):
    """Random features that replace cached features."""

    def __init__(self, clip: CLIP, *, count: int, image_size: int) -> None:
        side = image_size // clip.card.patch_size
        cases = [{"case_id": str(index), "label": index % 2} for index in range(count)]
        super().__init__(cases, [Path()] * count, (side, side))
        self.widths, self.image_size = (clip.card.embed_dim, clip.card.width), image_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item in the format of `FeatureDataset`."""
        embed_dim, width = self.widths
        patches = torch.randn(self.grid_size[0] * self.grid_size[1], width)
        features = ImageFeatures(torch.randn(embed_dim), patches, patches[:, :0], self.grid_size)
        mask = torch.zeros(1, self.image_size, self.image_size)
        mask[..., : self.image_size // 4] = index % 2
        return {"features": features, "mask": mask, "label": index % 2, "case_id": str(index), "index": index}


def random_bank(clip: CLIP) -> MemoryBank:
    """Return a bank of the published size."""
    levels: list[Tensor] = []
    for count, width in ((IMAGE_KEYS, clip.card.embed_dim), (PATCH_KEYS, clip.card.width)):
        levels += [F.normalize(torch.randn(count, width), dim=-1), torch.arange(count) % 2]
    return MemoryBank(*levels, BankCard(clip.card.name, clip.card.sha256, None))


def infer(build: Callable[[CLIP, MemoryBank], MRAD], clip: CLIP, arguments: argparse.Namespace) -> None:
    """Score a batch of images."""
    network = build(clip, random_bank(clip)).to(arguments.device)
    with torch.inference_mode():
        AnomalyInferer()(random_images(arguments), network)


def encode(clip: CLIP, arguments: argparse.Namespace) -> None:
    """Compute the features of a batch of images."""
    with torch.inference_mode():
        clip.image_encoder(random_images(arguments))


def random_images(arguments: argparse.Namespace) -> Tensor:
    """Return a batch of random images."""
    return torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size, device=arguments.device)


def fine_tune(clip: CLIP, arguments: argparse.Namespace) -> None:
    """Run steps of stage 1."""
    network = build_mrad_ft(clip, random_bank(clip)).head
    FineTuneTrainer(**trainer_arguments(network, clip, arguments)).run()


def learn_prompts(clip: CLIP, arguments: argparse.Namespace) -> None:
    """Run steps of stage 2."""
    network = build_mrad_clip(clip, random_bank(clip)).head
    PromptTrainer(**trainer_arguments(network, clip, arguments), image_encoder=clip.image_encoder).run()


def trainer_arguments(head: nn.Module, clip: CLIP, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that both trainers share."""
    dataset = RandomFeatures(clip, count=STEPS * arguments.batch_size, image_size=arguments.image_size)
    learned = [weight for weight in head.parameters() if weight.requires_grad]
    return {
        "device": arguments.device,
        "max_epochs": 1,
        "train_data_loader": feature_loader(dataset, batch_size=arguments.batch_size),
        "network": head,
        "optimizer": torch.optim.Adam(learned, lr=LEARNING_RATE, betas=BETAS),
    }


CASES: dict[str, tuple[str, Callable[[CLIP, argparse.Namespace], None]]] = {
    "none": ("backbone loaded, nothing run", lambda *_: None),
    "tf": ("inference of MRAD-TF", lambda *given: infer(build_mrad_tf, *given)),
    "ft": ("inference of MRAD-FT", lambda *given: infer(build_mrad_ft, *given)),
    "clip": ("inference of MRAD-CLIP", lambda *given: infer(build_mrad_clip, *given)),
    "features": ("training: features", encode),
    "stage1": ("training: stage 1", fine_tune),
    "stage2": ("training: stage 2", learn_prompts),
}


def measure(arguments: argparse.Namespace) -> None:
    """Run one case in this process; print its peak memory in bytes and its time in seconds."""
    logging.disable(logging.INFO)  # hides the messages of the trainers
    torch.manual_seed(0)
    clip = random_backbone(arguments.blocks, arguments.precision[0])
    for tower in (clip.image_encoder, clip.text_encoder):
        tower.to(arguments.device)
    start = time.perf_counter()
    CASES[arguments.case][1](clip, arguments)
    on_gpu = torch.device(arguments.device).type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_peak()
    print(peak, time.perf_counter() - start)


def compare(arguments: argparse.Namespace) -> None:
    """Measure every case at every precision in a separate process, and print the table."""
    print_machine()
    size = f"{arguments.image_size} x {arguments.image_size}"
    print(f"ViT-L/14@336, {arguments.blocks} blocks; batches of {arguments.batch_size}, {size}, on {arguments.device};")
    print(f"bank of {IMAGE_KEYS} image and {PATCH_KEYS} patch entries.\n")
    print(f"{'':30}{'precision':>10}{'peak memory':>15}{'seconds':>10}")
    options = ("blocks", "image_size", "batch_size", "device")
    given = [part for name in options for part in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    for precision in arguments.precision:
        for case in arguments.cases:
            command = [sys.executable, __file__, "--case", case, "--precision", precision, *given]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peak, seconds = result.stdout.split()
            row = f"{CASES[case][0]:30}{precision:>10}{int(peak) / GIBIBYTE:11.2f} GiB"
            print(f"{row}{float(seconds):10.1f}", flush=True)


def main() -> None:
    """Measure one case in this process if it is given, otherwise all cases in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("--blocks", 24, "number of blocks of the image tower"),
        ("--image-size", 518, "side length of the input in pixels, a multiple of 14"),
        ("--batch-size", 8, "number of images in a batch"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["fp32", "bf16", "fp16"],
        default=["fp32"],
        help="number formats of the backbone (default: fp32)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="cases to measure (default: all)"
    )
    parser.add_argument("--case", choices=CASES, help="measure only this case, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
