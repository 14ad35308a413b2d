"""Print peak memory and time for a large photograph scored in tiles, and for a CT scored slice by slice.

Usage:
    python benchmarks/sliding_window.py
    python benchmarks/sliding_window.py --small
    python benchmarks/sliding_window.py --cases tiny tiny-quarter --windows-per-batch 16
    python benchmarks/sliding_window.py --cases windows --overlap 0.5 --scales 1 0.5

The photograph has 4000 x 3000 pixels, the CT 512 x 512 x 120 voxels; both are noise. The network is MRAD-TF with the
embedded backbone and a bank of the published size. "tiny" is a random backbone of two narrow blocks, for which the
memory is mainly that of the images. Every row is measured in a separate process, because a peak cannot be reset. Memory
is the peak resident size of the process (VmHWM), including libraries, weights and the input. "input" is the size of the
photograph or CT alone, in float32.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from encoder import print_machine
from memory import random_bank
from open_clip.transformer import VisionTransformer
from retrieval import resident_peak
from torch import Tensor

from mrad_med import CLIP, AnomalyInferer, SliceAnomalyInferer, build_mrad_tf, load_clip
from mrad_med.networks import CLIPImageEncoder
from mrad_med.networks.sliding_window import SlidingWindowAnomalyInferer
from mrad_med.types import BackboneCard

PHOTOGRAPH, CT = (3000, 4000), (512, 512, 120)  # rows, columns, and slices
SMALL_PHOTOGRAPH, SMALL_CT = (750, 1000), (512, 512, 6)
SIDE = 518  # side length of the network's input in pixels
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Case:
    """One row of the table: its title, the backbone, the input, and the inferer."""

    text: str
    make_clip: Callable[[], CLIP]
    make_input: Callable[[argparse.Namespace], Tensor]
    make_inferer: Callable[[argparse.Namespace], AnomalyInferer | None]


def tiny_clip() -> CLIP:
    """Return a random backbone that takes little memory."""
    torch.manual_seed(0)
    tower = VisionTransformer(image_size=SIDE, patch_size=14, width=32, layers=2, heads=1, mlp_ratio=2, output_dim=32)
    card = BackboneCard("tiny", "0", 32, 32, 14, SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return CLIP(CLIPImageEncoder(tower), card)


def photograph(arguments: argparse.Namespace) -> Tensor:
    """Return a photograph, shape (1, 3, H, W)."""
    return torch.rand(1, 3, *(SMALL_PHOTOGRAPH if arguments.small else PHOTOGRAPH))


def quarter(arguments: argparse.Namespace) -> Tensor:
    """Return a photograph with a quarter of the pixels."""
    return photograph(arguments)[..., ::2, ::2].contiguous()


def resized(_: argparse.Namespace) -> Tensor:
    """Return a photograph of the size of the network's input."""
    return torch.rand(1, 3, SIDE, SIDE)


def ct(arguments: argparse.Namespace) -> Tensor:
    """Return a CT, shape (1, 3, H, W, D), whose size is not a multiple of the patch size."""
    return torch.rand(1, 1, *(SMALL_CT if arguments.small else CT)).expand(-1, 3, -1, -1, -1)


def windows(arguments: argparse.Namespace) -> SlidingWindowAnomalyInferer:
    """Return the inferer for large images, which scores tiles."""
    return SlidingWindowAnomalyInferer(
        sw_batch_size=arguments.windows_per_batch, overlap=arguments.overlap, scales=arguments.scales
    )


def right_half(arguments: argparse.Namespace) -> SlidingWindowAnomalyInferer:
    """Return the same inferer for a photograph whose left half is empty."""
    inferer = windows(arguments)
    inferer.foreground = lambda images: torch.arange(images.shape[3]).expand_as(images[:, :1]) >= images.shape[3] // 2
    return inferer


def slices(arguments: argparse.Namespace) -> SliceAnomalyInferer:
    """Return the inferer for volumes; each slice is scored in tiles."""
    inner = SlidingWindowAnomalyInferer(sw_batch_size=arguments.windows_per_batch)
    return SliceAnomalyInferer(slices_per_batch=arguments.windows_per_batch, smooth=1.0, slice_inferer=inner)


def embedded() -> CLIP:
    """Return the embedded backbone of the package."""
    return load_clip("embedded")


CASES = {
    "none": Case("photograph, nothing run", embedded, photograph, lambda _: None),
    "whole": Case("photograph resized to 518, one pass", embedded, resized, lambda _: AnomalyInferer()),
    "windows": Case("photograph, tiles", embedded, photograph, windows),
    "foreground": Case("photograph, half of it empty", embedded, photograph, right_half),
    "tiny-none": Case("photograph, tiny, nothing run", tiny_clip, photograph, lambda _: None),
    "tiny": Case("photograph, tiny, tiles", tiny_clip, photograph, windows),
    "tiny-quarter": Case("a quarter of it, tiny, tiles", tiny_clip, quarter, windows),
    "ct-none": Case("CT, nothing run", embedded, ct, lambda _: None),
    "ct": Case("CT, slice by slice", embedded, ct, slices),
}


def measure(arguments: argparse.Namespace) -> None:
    """Run one case in this process; print the bytes of the input, the peak in bytes, and the time in seconds."""
    torch.manual_seed(0)
    case = CASES[arguments.case]
    clip = case.make_clip()
    network = build_mrad_tf(clip, random_bank(clip))
    images = case.make_input(arguments)
    inferer = case.make_inferer(arguments)
    start = time.perf_counter()
    if inferer is not None:
        inferer(images, network)
    print(images.untyped_storage().nbytes(), resident_peak(), time.perf_counter() - start)


def compare(arguments: argparse.Namespace) -> None:
    """Measure every case in a separate process, and print the table."""
    print_machine()
    sizes = (SMALL_PHOTOGRAPH, SMALL_CT) if arguments.small else (PHOTOGRAPH, CT)
    photograph_size, ct_size = (" x ".join(map(str, size)) for size in sizes)
    print(
        f"photograph {photograph_size} (rows x columns), CT {ct_size}; tiles of {SIDE}, {arguments.windows_per_batch}"
    )
    print(f"in a batch, overlap {arguments.overlap}, scales {' '.join(map(str, arguments.scales))}\n")
    print(f"{'':38}{'input':>12}{'peak memory':>14}{'seconds':>10}")
    given = ["--windows-per-batch", str(arguments.windows_per_batch), "--overlap", str(arguments.overlap)]
    given += ["--scales", *map(str, arguments.scales), *["--small"] * arguments.small]
    for name in arguments.cases:
        command = [sys.executable, str(Path(__file__)), "--case", name, *given]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        size, peak, seconds = (float(value) for value in result.stdout.split())
        row = f"{CASES[name].text:38}{size / MEBIBYTE:8.0f} MiB{peak / MEBIBYTE:10.0f} MiB{seconds:10.1f}"
        print(row, flush=True)


def main() -> None:
    """Measure one case in this process if it is given, otherwise all cases in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="use a photograph of 1000 x 750 and a CT of six slices")
    parser.add_argument(
        "--windows-per-batch", type=int, default=4, help="tiles or slices in a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.25,
        help="overlap of tiles as a fraction of their side length (default: %(default)s)",
    )
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="scale factors of the photograph (default: 1)"
    )
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
