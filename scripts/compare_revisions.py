"""Compare the results of two revisions of the project. A refactoring must not change a pixel, a score or a metric.

Usage:
    python scripts/compare_revisions.py OLD NEW
    python scripts/compare_revisions.py HEAD~20 HEAD --image_size 126

Both revisions are checked out into a temporary folder and run on the same inputs. The new revision writes these inputs:
sample images, a sample study (DICOM series and NIfTI), a folder of video frames, an animation, and a labeled dataset.
All three bundles score the sample images; MRAD-TF processes the other inputs. Every result file is compared: maps,
masks and tables by value, images by pixel, JSON and DICOM without dates, versions and generated UIDs. The exit status
is 1 if a file differs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Keys that differ between runs, and keys that describe the run rather than its results.
VARYING = {"created", "date", "version", "versions", "packages", "seconds", "images_per_second", "started", "finished"}
VARYING |= {"parts", "settings", "command", "complete", "not_reached"}
CODE = re.compile(r"-[0-9a-f]{10}\b")  # codes in case ids
DICOM_VARYING = {"SOPInstanceUID", "SeriesInstanceUID", "DimensionOrganizationUID", "SoftwareVersions"}
DICOM_VARYING |= {f"{event}{what}" for event in ("InstanceCreation", "Content", "Series") for what in ("Date", "Time")}
INPUTS = """
import mrad_med
from pathlib import Path
from PIL import Image
mrad_med.write_sample_images("images")
mrad_med.write_sample_study("study")
mrad_med.write_surface_dataset("set", surfaces=["fabric", "tiles"], count=2)
Path("frames").mkdir()
frames = [Image.effect_mandelbrot((96, 80), (-2 + i / 9, -1, 1, 1), 40).convert("RGB") for i in range(4)]
for i, frame in enumerate(frames):
    frame.save(f"frames/frame_{i:03}.png")
frames[0].save("frames.gif", save_all=True, append_images=frames[1:], duration=100)
"""
OUTPUTS = ("nifti", "nrrd", "mask", "overlay", "montage", "seg", "parametric-map", "capture")
DICOM = ["--threshold", "0.4", "--write", *OUTPUTS]


def commands(size: int) -> dict[str, list[str]]:
    """Return the arguments of each command by its title."""
    small = ["--image_size", str(size), "--device", "cpu"]
    detect = {bundle: ["detect", "images", "--bundle", bundle] for bundle in ("mrad_tf", "mrad_ft", "mrad_clip")}
    tf = ["--bundle", "mrad_tf", *small]
    return {
        **{bundle: [*words, "--out", bundle, *small] for bundle, words in detect.items()},
        "study": ["detect", "study", "--out", "study_out", "--profile", "volume", *tf, *DICOM],
        "frames": ["detect", "frames", "--out", "frames_out", "--sequence_rate", "10", "--profile", "endoscopy", *tf],
        "pages": ["detect", "frames.gif", "--out", "pages_out", *tf],
        "set": [
            "evaluate",
            "mrad_tf",
            "--dataset",
            "folder",
            "--dataset_dir",
            "set",
            "--output_dir",
            "set_out",
            *small,
        ],
        "benchmark": ["benchmark", "folder=set", "--bundles", "mrad_tf", "mrad_ft", "--out", "benchmark_out", *small],
    }


def plain(value: Any) -> Any:
    """Return JSON without the keys that differ between runs."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in VARYING}
    return [plain(item) for item in value] if isinstance(value, list) else value


def without_generated(dataset: pydicom.Dataset) -> list[Any]:
    """Return the values of a DICOM dataset, including nested ones, without values that are generated in each run."""
    return [
        (item.keyword, list(map(without_generated, item.value)) if item.VR == "SQ" else item.value)
        for item in dataset
        if item.keyword not in DICOM_VARYING
    ]


def content(path: Path) -> Any:
    """Return the content of a file in a form that can be compared; None for files that are not compared."""
    match path.suffix:
        case ".tiff":
            return tifffile.imread(path).tolist()
        case ".png":
            return np.asarray(Image.open(path)).tolist()
        case ".gz":
            image = nibabel.load(path)
            return [image.affine.tolist(), np.asanyarray(image.dataobj).tolist()]
        case ".json":
            return plain(json.loads(CODE.sub("", path.read_text(encoding="utf-8"))))
        case ".dcm":
            return without_generated(pydicom.dcmread(path))
        case ".csv" | ".md" | ".tex":
            return re.sub(
                r"[ :-]+", " ", CODE.sub("", path.read_text(encoding="utf-8"))
            )  # ignores the layout of columns
        case _:
            return None  # videos, journals and records repeat the content of other files


def written(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their names without codes; records are left out, because hashes name them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "records")
    return {CODE.sub("", path.relative_to(folder).as_posix()): path for path in files}


def run(source: Path, folder: Path, words: list[str]) -> None:
    """Run a program of one revision in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(source), "SOURCE_DATE_EPOCH": "0"}
    finished = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(words[:4])} ended with {finished.returncode}: {finished.stderr[-2000:]}")


def main() -> int:
    """Check out and run both revisions, compare the results, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="git revision to compare with")
    parser.add_argument("new", help="git revision to check")
    parser.add_argument(
        "--image_size",
        type=int,
        default=518,
        help="side length of the network's input in pixels (default: %(default)s)",
    )
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folders = {}
        for side in ("old", "new"):
            source, folder = Path(name, side, "source"), Path(name, side, "work")
            folder.mkdir(parents=True)
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
            subprocess.run(["git", "checkout", "--quiet", getattr(options, side)], cwd=source, check=True)
            folders[side] = (source, folder)
        source, folder = folders["new"]
        run(source, folder, ["-c", INPUTS])
        shutil.copytree(folder, folders["old"][1], dirs_exist_ok=True)
        compared = different = 0
        for title, words in commands(options.image_size).items():
            for source, folder in folders.values():
                run(source, folder, ["-m", "mrad_med", *words])
            print(f"{title}: done", flush=True)
        old, new = (written(folder) for _, folder in folders.values())
        for file in sorted(old.keys() | new.keys()):
            if not (file in old and file in new):
                different += 1
                print(f"only one revision wrote {file}")
                continue
            before, after = content(old[file]), content(new[file])
            compared += before is not None
            if before != after:
                different += 1
                print(f"{file} differs")
    print(f"{compared} file(s) compared, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
