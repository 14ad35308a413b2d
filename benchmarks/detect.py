"""Print peak memory and time of `mrad-med detect` for large files; each run has its own process.

Usage:
    python benchmarks/detect.py
    python benchmarks/detect.py --small

The photograph has 4000 x 3000 pixels. It is scored resized, and in tiles at full resolution. The CT is the chest
phantom as a DICOM series of 512 x 512 x 120. It is scored slice by slice with a lung window, with the default outputs
and with all outputs for DICOM. The network is MRAD-TF with the embedded backbone. Memory is the peak resident size of
the process, including libraries, weights, images and results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from encoder import print_machine
from PIL import Image

from mrad_med.data.phantoms import make_chest_phantom, write_sample_series

PHOTOGRAPH, CT = (4000, 3000), (512, 512, 120)  # columns, rows and slices
SMALL_PHOTOGRAPH, SMALL_CT = (1000, 750), (512, 512, 6)
VOLUME = ("ct", "--profile", "volume", "--window", "lung")
DICOM_OUTPUTS = ("nifti", "mask", "seg", "parametric-map", "capture", "montage")
RUNS = {
    "photograph, resized to 518": ("photograph.jpg",),
    "photograph, tiles": ("photograph.jpg", "--profile", "sliding"),
    "CT, default outputs": VOLUME,
    "CT, all outputs for DICOM": (*VOLUME, "--write", *DICOM_OUTPUTS, "--threshold", "0.4"),
}


def write_inputs(folder: Path, *, small: bool) -> None:
    """Write the photograph, which is smooth noise, and the CT."""
    noise = np.random.RandomState(0).randint(0, 256, (150, 200, 3)).astype(np.uint8)
    photograph = Image.fromarray(noise).resize(SMALL_PHOTOGRAPH if small else PHOTOGRAPH, Image.Resampling.BICUBIC)
    photograph.save(folder / "photograph.jpg")
    volume, _, affine = make_chest_phantom(SMALL_CT if small else CT)
    write_sample_series(folder / "ct", volume, affine)


def measure(folder: Path, source: str, *options: str) -> tuple[float, float]:
    """Run one command, which must succeed; return its peak memory in MiB and its time in seconds."""
    command = [sys.executable, "-m", "mrad_med", "detect", source, "--bundle", "mrad_tf", *options]
    command += ["--out", f"results_{time.monotonic_ns()}"]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[3:])} ended with status {process.returncode}")
    return usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> None:
    """Write the inputs, and print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="use a photograph of 1000 x 750 and a CT of six slices")
    arguments = parser.parse_args()
    print_machine()
    with TemporaryDirectory() as name:
        # In a separate process, because the peak of a child process includes the memory of its parent before exec.
        writer = get_context("spawn").Process(
            target=write_inputs, args=(Path(name),), kwargs={"small": arguments.small}
        )
        writer.start()
        writer.join()
        print(f"\n{'':30}{'peak memory':>14}{'seconds':>10}")
        for text, command in RUNS.items():
            peak, seconds = measure(Path(name), *command)
            print(f"{text:30}{peak:10.0f} MiB{seconds:10.1f}", flush=True)


if __name__ == "__main__":
    main()
