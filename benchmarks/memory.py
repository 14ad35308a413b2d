"""Print the largest memory that inference and training with ViT-L/14@336 take, with a bank of the published size.

Usage:
    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda --precision fp32 bf16
    python benchmarks/memory.py --blocks 2 --image-size 224 --cases tf stage2

Every row is measured in a process of its own, because a peak of memory cannot be taken back. On the CPU it is the
largest resident size of the process, libraries and weights included; on a GPU what torch allocated there. Weights and
bank are random. "features" is what fills a cache; both stages then train on cached features, with the backbone loaded,
as `train.json` of the bundles does.
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

IMAGE_KEYS, PATCH_KEYS = 2162, 3093  # of the published bank of VisA
STEPS = 2  # of training: the optimizer's memory is there from the second on
GIBIBYTE = 2**30


class RandomFeatures(FeatureDataset):
    """Random features in the place of cached ones."""

    def __init__(self, clip: CLIP, *, count: int, image_size: int) -> None:
        side = image_size // clip.card.patch_size
        cases = [{"case_id": str(index), "label": index % 2} for index in range(count)]
        super().__init__(cases, [Path()] * count, (side, side))
        self.widths, self.image_size = (clip.card.embed_dim, clip.card.width), image_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item as `FeatureDataset` does."""
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
    """Return a batch."""
    return torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size, device=arguments.device)


def fine_tune(clip: CLIP, arguments: argparse.Namespace) -> None:
    """Take steps of stage 1."""
    network = build_mrad_ft(clip, random_bank(clip)).head
    FineTuneTrainer(**trainer_arguments(network, clip, arguments)).run()


def learn_prompts(clip: CLIP, arguments: argparse.Namespace) -> None:
    """Take steps of stage 2."""
    network = build_mrad_clip(clip, random_bank(clip)).head
    PromptTrainer(**trainer_arguments(network, clip, arguments), image_encoder=clip.image_encoder).run()


def trainer_arguments(head: nn.Module, clip: CLIP, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what both trainers are built of."""
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
    """Print the peak in bytes of one case in this process, and the seconds it took."""
    logging.disable(logging.INFO)  # of the trainers
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
    """Measure every case at every precision in a process of its own, and print the table."""
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
    """Measure in this process if a case is given, otherwise all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("--blocks", 24, "blocks of the image tower"),
        ("--image-size", 518, "side in pixels, a multiple of 14"),
        ("--batch-size", 8, "images in a batch"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "fp16"], default=["fp32"])
    parser.add_argument("--device", default="cpu", help="where to run (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to measure")
    parser.add_argument("--case", choices=CASES, help="measure this alone, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
