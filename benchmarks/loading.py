"""Measure how fast cases are loaded with and without processes that load in advance.

Usage:
    python benchmarks/loading.py
    python benchmarks/loading.py --count 40 --repeats 1

The photographs are JPEG files of 2000 x 1500. The slices are those of the chest phantom as DICOM files of 512 x 512;
each slice is a case. Cases are loaded and prepared for an input of 518 x 518; no network runs. The shortest time of the
repeats is printed, and the ratio of the time without processes to the time with processes. Every case must be equal
with and without processes.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from encoder import print_machine
from PIL import Image

from mrad_med import CaseDataset, CaseLoader, build_preprocessing
from mrad_med.data.phantoms import make_chest_phantom, write_sample_series
from mrad_med.types import BackboneCard

PHOTOGRAPH, SLICE = (2000, 1500), (512, 512)  # columns and rows
CARD = BackboneCard("none", "0" * 64, 384, 384, 14, 518, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def write_photographs(folder: Path, count: int) -> None:
    """Write smooth noise, shifted from one photograph to the next."""
    folder.mkdir()
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (150, 200, 3)).astype(np.uint8))
    pixels = np.asarray(noise.resize(PHOTOGRAPH, Image.Resampling.BICUBIC))
    for index in range(count):
        Image.fromarray(np.roll(pixels, 7 * index, 1)).save(folder / f"{index:04d}.jpg", quality=90)


def load_all(folder: Path, num_workers: int) -> tuple[float, str]:
    """Load the files of a folder; return the time in seconds and the hash of the loaded cases."""
    cases = [{"case_id": path.name, "image": str(path)} for path in sorted(folder.iterdir())]
    loader = CaseLoader(CaseDataset(cases, build_preprocessing(CARD)), num_workers=num_workers, progress=False)
    seconds, digest = 0.0, hashlib.sha256()
    batches = iter(loader)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        seconds += time.perf_counter() - start
        if batch is None:
            break
        digest.update("\n".join(batch["case_id"]).encode())
        digest.update(batch["image"].as_tensor().numpy().tobytes())
    loader.raise_for_failures()
    return seconds, digest.hexdigest()


def main() -> None:
    """Write the inputs, and print a row for each type of file and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=200, help="number of photographs and of slices (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[2], help="numbers of processes to compare (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="number of repeats (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="number of threads of torch in the main process (default: torch's)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print_machine()
    with TemporaryDirectory() as name:
        write_photographs(Path(name, "photographs"), arguments.count)
        volume, _, affine = make_chest_phantom((*SLICE, arguments.count))
        write_sample_series(Path(name, "slices"), volume, affine)
        print(f"\n{'':16}{'jobs':>6}{'seconds':>10}{'ratio':>8}")
        for kind in ("photographs", "slices"):
            best: dict[int, float] = {}
            hashes = set()
            for _ in range(arguments.repeats):
                for jobs in (0, *arguments.jobs):
                    seconds, digest = load_all(Path(name, kind), jobs)
                    best[jobs] = min(seconds, best.get(jobs, seconds))
                    hashes.add(digest)
            for jobs, seconds in best.items():
                print(f"{kind:16}{jobs:6}{seconds:10.1f}{best[0] / seconds:8.2f}", flush=True)
            if len(hashes) > 1:
                raise RuntimeError(f"{kind} differ with and without processes that load in advance")


if __name__ == "__main__":
    main()
