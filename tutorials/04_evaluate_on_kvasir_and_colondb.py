"""Evaluate all three variants on Kvasir-SEG and CVC-ColonDB in one pass of the encoder, and list the worst cases.

Set both KVASIR_DIR and COLONDB_DIR to the folders of the unpacked archives. Otherwise phantoms in the same layout are
used, and their numbers mean nothing.

Usage:
    export KVASIR_DIR=data/Kvasir-SEG COLONDB_DIR=data/CVC-ColonDB
    python tutorials/04_evaluate_on_kvasir_and_colondb.py [OUTPUT]
"""

import csv
import os
import sys
from pathlib import Path

from PIL import Image

import mrad_med

output = Path(sys.argv[1] if len(sys.argv) > 1 else "tutorial_evaluation")
bundles = ["mrad_tf", "mrad_ft", "mrad_clip"]


def write_polyp_set(folder, *, suffix, seed):
    """Write phantoms in the layout of a polyp set and return the folder."""
    for index in range(3):
        image, mask = mrad_med.make_phantom(lesion_radius=0.06 + 0.04 * index, seed=seed + index)
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"phantom_{index}.{suffix}")
    return folder


folders = {"kvasir": os.environ.get("KVASIR_DIR"), "cvc-colondb": os.environ.get("COLONDB_DIR")}
image_size = 518  # pixels, as published
if not all(folders.values()):
    print("PHANTOMS are used: the numbers mean nothing")
    image_size = 252  # faster, with coarser maps
    folders = {
        "kvasir": write_polyp_set(output / "data" / "Kvasir-SEG", suffix="jpg", seed=100),
        "cvc-colondb": write_polyp_set(output / "data" / "CVC-ColonDB", suffix="png", seed=200),
    }
for folder in dict.fromkeys(folders.values()):
    for row in mrad_med.list_datasets(folder):
        if row.root is not None:
            print(row.dataset.title, row.found, *row.problems, sep="\n  ")

# Scored images are not scored again: the same command resumes a stopped run.
mrad_med.run_benchmark(bundles, folders, output, image_size=image_size, resamples=1000, progress=False)
print((output / "benchmark.md").read_text(encoding="utf-8"))
for name in folders:
    print((output / name / "mrad_clip" / "metrics.md").read_text(encoding="utf-8"))
    with (output / name / "mrad_clip" / "cases.csv").open(encoding="utf-8", newline="") as stream:
        cases = sorted(csv.DictReader(stream), key=lambda case: float(case["anomaly_score"]))
    print("lowest scores; all images are anomalous:")
    for case in cases[:3]:
        print(f"  {case['case_id']:<24} {float(case['anomaly_score']):.4f}")
