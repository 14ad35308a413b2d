"""Compare time and results of an evaluation, from JPEG files to metrics, with those of the published method.

Usage:
    python benchmarks/evaluate.py
    python benchmarks/evaluate.py --images 4 --layers 4
    python benchmarks/evaluate.py --images 8 --layers 2 --size 224

"published" is the evaluation of the literature. Pillow and the plain encoder of `benchmarks/encoder.py` in fp32 process
one image at a time (materialized attention, all rows of the last block). The softmax covers all 3000 keys at both
levels. Maps are upsampled bilinearly, blurred by scipy's Gaussian at full size, and all kept. scikit-learn computes the
areas over all pixels, and PRO labels the regions of every mask again at each of 200 thresholds.

"ours" is `mrad_med.Evaluation` of MRAD-TF on the same files, and also in bf16 if the CPU supports it. Its time includes
steps that the published method lacks: records on disk, PRO over all thresholds, lesions. Intervals are not computed.
Metrics are computed in a second thread while the next batch is encoded. The times of the parts therefore overlap, each
includes waiting for the other, and only the total is wall time. CPU time is also printed, because other jobs on the
machine may slow down one method more than the other.

The images are phantoms of the size of Kvasir-SEG's images, every second one without a lesion. The ViT-L/14 and the bank
are random: times equal those of real weights, and metrics are only used for the comparison. The exit status is 1 if
fp32 and the published method disagree.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from encoder import plain_average, plain_features, print_machine, random_clip
from numpy.typing import NDArray
from PIL import Image
from retrieval import make_features
from scipy.ndimage import gaussian_filter
from skimage.measure import label, regionprops
from sklearn.metrics import auc, average_precision_score, roc_auc_score
from torch import Tensor

from mrad_med import CLIP, Evaluation, ImageFeatures, ImageView, MemoryBank, build_mrad_tf, make_phantom
from mrad_med.evaluation import SetMeasurement
from mrad_med.types import BackboneCard, BankCard

FILE_SIZE = (529, 622)  # rows and columns of many files of Kvasir-SEG
KEYS = 3000  # number of keys at each level; the published bank has 2162 and 3093
THRESHOLDS, PRO_LIMIT = 200, 0.3
PARTS = ("read and resize", "encode", "retrieve", "map and score", "metrics", "records")
# Tolerances for fp32. In maps with a small range, rounding moves pixels across thresholds.
SCORE_TOLERANCE, METRIC_TOLERANCE = 1e-6, 1e-3

Case = dict[str, Any]
Floats = NDArray[np.float32]


@dataclass
class Outcome:
    """Times and results of one method, case by case in the order of the datalist."""

    name: str
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by part, and in total
    maps: list[Floats] = field(default_factory=list)  # (H, W)
    masks: list[NDArray[np.bool_]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        start, worked = time.perf_counter(), time.process_time()
        yield
        self.seconds[part] += time.perf_counter() - start
        self.seconds[f"{part}, CPU"] += (
            time.process_time() - worked
        )  # CPU time of all threads, printed only for the total

    def timing(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that adds its time to a part at every call."""

        @wraps(function, updated=())
        def call(*values: Any, **options: Any) -> Any:
            with self.timed(part):
                return function(*values, **options)

        return call


def write_images(folder: Path, count: int) -> list[Case]:
    """Write phantoms and masks as JPEG files and return their datalist; every second phantom has no lesion."""
    cases = []
    for index in range(count):
        anomalous = index % 2 == 0
        phantom, mask = make_phantom(FILE_SIZE, lesion_radius=0.05 + 0.05 * (index % 5) if anomalous else 0, seed=index)
        paths = {"image": folder / f"{index:04d}.jpg", "mask": folder / f"{index:04d}_mask.jpg"}
        Image.fromarray(phantom).save(paths["image"], quality=95)
        Image.fromarray(mask).save(paths["mask"], quality=95)
        case = {"image": str(paths["image"]), "mask": str(paths["mask"]) if anomalous else None}
        cases.append({**case, "case_id": f"{index:04d}", "label": int(anomalous), "class": "phantom"})
    return cases


def random_bank(card: BackboneCard) -> MemoryBank:
    """Return a bank of 3000 random keys at each level; a third of them is anomalous and shifted."""
    anomalous = torch.arange(KEYS) % 3 == 0
    levels: list[Tensor] = []
    for seed, width in enumerate((card.embed_dim, card.width)):
        levels += [make_features(KEYS, width, anomalous=anomalous, seed=seed), anomalous.long()]
    return MemoryBank(*levels, BankCard(card.name, card.sha256, None))


@torch.inference_mode()
def evaluate_published(clip: CLIP, bank: MemoryBank, cases: list[Case], size: int) -> Outcome:
    """Return the outcome of the published method."""
    outcome = Outcome("published fp32")
    with outcome.timed("whole"):
        for case in cases:
            with outcome.timed("read and resize"):
                image, mask = read_plainly(case, clip.card, size)
            with outcome.timed("encode"):
                features = plain_features(clip.image_encoder.tower, image)
            with outcome.timed("retrieve"):
                patches, probability = retrieve_plainly(features, bank)
            with outcome.timed("map and score"):
                anomaly_map = map_plainly(patches, features.grid_size, size)
                highest = np.sort(anomaly_map, axis=None)[::-1][: max(1, int(0.01 * size * size))]
                outcome.scores.append(0.7 * probability + 0.3 * float(highest.mean()))
            outcome.maps.append(anomaly_map)
            outcome.masks.append(mask)
        with outcome.timed("metrics"):
            labels = np.array([case["label"] for case in cases])
            outcome.metrics = measure_plainly(outcome, labels)
    return outcome


def read_plainly(case: Case, card: BackboneCard, size: int) -> tuple[Tensor, NDArray[np.bool_]]:
    """Return a normalized image (1, 3, size, size) and its mask (size, size)."""
    image = Image.open(case["image"]).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean, card.std))
    mask = np.zeros((size, size), bool)
    if case["mask"]:
        binary = Image.fromarray(
            np.where(np.array(Image.open(case["mask"]).convert("L")) > 127, 255, 0).astype("uint8")
        )
        mask = np.array(binary.resize((size, size), Image.Resampling.BILINEAR)) > 127
    return ((pixels - mean) / std)[None], mask


def retrieve_plainly(features: ImageFeatures, bank: MemoryBank) -> tuple[Tensor, float]:
    """Return probabilities of the patches (1, N) and of the image, with the softmax over all keys."""
    # The published code averages both patch tensors, although MRAD-TF uses only one.
    averaged = [
        plain_average(patches, features.grid_size) for patches in (features.patches, features.projected_patches)
    ]
    patch, image = (
        torch.softmax(F.normalize(queries, dim=-1) @ keys.T, dim=-1) @ F.one_hot(labels, 2).float()
        for queries, keys, labels in (
            (averaged[0], bank.patch_keys, bank.patch_labels),
            (features.image, bank.image_keys, bank.image_labels),
        )
    )
    return patch[..., 1], float(image[0, 1])


def map_plainly(patches: Tensor, grid_size: tuple[int, int], size: int) -> Floats:
    """Return the map (size, size) of patch probabilities (1, N)."""
    grid = patches.unflatten(-1, grid_size)[:, None]
    upsampled = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    blurred: Floats = gaussian_filter(upsampled[0, 0].numpy(), sigma=4)
    return blurred


def measure_plainly(outcome: Outcome, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of published tables."""
    maps, masks = np.stack(outcome.maps), np.stack(outcome.masks)
    return {
        "image auroc": float(roc_auc_score(labels, outcome.scores)),
        "image ap": float(average_precision_score(labels, outcome.scores)),
        "pixel auroc": float(roc_auc_score(masks.ravel(), maps.ravel())),
        "pixel ap": float(average_precision_score(masks.ravel(), maps.ravel())),
        "pixel pro_200": pro_plainly(maps, masks),
    }


def pro_plainly(maps: Floats, masks: NDArray[np.bool_]) -> float:
    """Return the PRO of maps (B, H, W) with 200 thresholds; all regions are labeled again at each threshold."""
    rates, overlaps = [], []
    for threshold in np.arange(maps.min(), maps.max(), (maps.max() - maps.min()) / THRESHOLDS):
        above = maps > threshold
        shares = [
            found[tuple(region.coords.T)].sum() / region.area
            for found, mask in zip(above, masks, strict=True)
            for region in regionprops(label(mask))
        ]
        overlaps.append(np.mean(shares))
        rates.append((above & ~masks).sum() / (~masks).sum())
    kept = np.array(rates) < PRO_LIMIT
    inside, overlap = np.array(rates)[kept], np.array(overlaps)[kept]
    return float(auc((inside - inside.min()) / (inside.max() - inside.min()), overlap))


def evaluate_ours(
    clip: CLIP, bank: MemoryBank, cases: list[Case], output_dir: Path, arguments: argparse.Namespace
) -> Outcome:
    """Return the outcome of `Evaluation`."""
    outcome = Outcome(f"ours {clip.image_encoder.precision}")
    network = build_mrad_tf(clip, bank)
    evaluation = Evaluation(
        network,
        cases,
        card=clip.card,
        output_dir=output_dir,
        provenance={},
        view=ImageView(image_size=arguments.size),
        batch_size=arguments.batch_size,
        resamples=0,
        progress=False,
    )
    make_map = evaluation.make_map
    for part, owner, name in (
        ("read and resize", evaluation, "preprocessing"),
        ("encode", network, "encode"),
        ("retrieve", evaluation, "score"),
        ("map and score", evaluation, "make_map"),
        ("records", evaluation, "keep"),
        ("metrics", evaluation, "finish"),
    ):
        setattr(owner, name, outcome.timing(part, getattr(owner, name)))
    with (
        patch.object(SetMeasurement, "add", outcome.timing("metrics", SetMeasurement.add)),
        outcome.timed("whole"),
    ):
        summary = evaluation.run()
    outcome.seconds["metrics"] -= outcome.seconds["map and score"]  # the time of the metrics includes that of the maps
    for _, record in evaluation.records(cases):
        anomaly_map, score = make_map(record)
        outcome.maps.append(anomaly_map[0, 0].numpy())
        outcome.masks.append(record.mask)
        outcome.scores.append(score)
    names = {"image": ("auroc", "ap"), "pixel": ("auroc", "ap", "pro_200", "pro")}
    outcome.metrics = {f"{level} {name}": summary[level][name] for level in names for name in names[level]}
    return outcome


def print_times(outcomes: list[Outcome], count: int) -> None:
    """Print the time of each part and method, and the ratio of the first method to the others."""
    print(
        f"\n{'seconds':16}"
        + "".join(f"{outcome.name:>16}" for outcome in outcomes)
        + f"{'ratio':>9}" * len(outcomes[1:])
    )
    for part in (*PARTS, "whole", "whole, CPU"):
        seconds = [outcome.seconds[part] for outcome in outcomes]
        ratios = "".join(f"{seconds[0] / mine:9.2f}" if seconds[0] and mine else f"{'':9}" for mine in seconds[1:])
        print(f"{part:16}" + "".join(f"{value:16.3f}" for value in seconds) + ratios)
    print(f"{'for an image':16}" + "".join(f"{outcome.seconds['whole'] / count:16.3f}" for outcome in outcomes))
    print("The parts of ours overlap. The whole is wall time, followed by the CPU time of all threads.")


def print_differences(outcomes: list[Outcome]) -> bool:
    """Print the differences to the published method, and return whether the second outcome (fp32) agrees with it."""
    published = outcomes[0]
    low, high = (np.array([extreme(item) for item in published.maps]) for extreme in (np.min, np.max))
    print(f"\nMaps of the published method: {low.min():.6f} to {high.max():.6f}; scores: ", end="")
    print(f"{min(published.scores):.6f} to {max(published.scores):.6f}.")
    print(f"{'':16}{'pixels of masks':>16}{'maps':>11}{'scores':>11}   differ by at most")
    gaps = []
    for outcome in outcomes[1:]:
        pixels = sum(int((a != b).sum()) for a, b in zip(outcome.masks, published.masks, strict=True))
        in_maps = max(float(np.abs(a - b).max()) for a, b in zip(outcome.maps, published.maps, strict=True))
        in_scores = float(np.abs(np.subtract(outcome.scores, published.scores)).max())
        print(f"{outcome.name:16}{pixels:16d}{in_maps:11.1e}{in_scores:11.1e}")
        gaps.append((pixels, in_scores))
    print(f"\n{'metric':16}" + "".join(f"{outcome.name:>16}" for outcome in outcomes) + f"{'difference':>12}")
    differences = []
    for name in outcomes[1].metrics:
        values = [outcome.metrics.get(name) for outcome in outcomes]
        row = "".join(f"{'-':>16}" if value is None else f"{value:16.6f}" for value in values)
        if values[0] is not None:
            differences.append(abs(values[1] - values[0]))
            row += f"{differences[-1]:12.1e}"
        print(f"{name:16}{row}")
    # Comparisons with NaN are false.
    return gaps[0][0] == 0 and gaps[0][1] <= SCORE_TOLERANCE and all(item <= METRIC_TOLERANCE for item in differences)


def has_bf16() -> bool:
    """Return whether the CPU multiplies matrices in bf16; otherwise bf16 is slower than fp32."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    return bool(words & {"amx_bf16", "avx512_bf16"})


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("--images", 100, "number of images, at least 2"),
        ("--layers", 24, "number of blocks of the random ViT-L/14"),
        ("--size", 518, "side length of the input in pixels, a multiple of 14"),
        ("--batch-size", 4, "number of images that ours encodes together"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: {default})")
    arguments = parser.parse_args()
    if arguments.images < 2:
        parser.error("--images must be at least 2: metrics need a normal and an anomalous image")
    logging.disable(logging.WARNING)
    print_machine()
    print(
        f"{arguments.images} JPEG files of {FILE_SIZE[1]} x {FILE_SIZE[0]}; ViT-L/14 with {arguments.layers} blocks ",
        end="",
    )
    print(f"at {arguments.size}, random weights; {KEYS} keys.", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = write_images(folder, arguments.images)
        clip = random_clip(arguments.layers, "fp32")
        bank = random_bank(clip.card)
        with torch.inference_mode():  # loads the kernels of the libraries before the measurement
            plain_features(clip.image_encoder.tower, torch.zeros(1, 3, arguments.size, arguments.size))
        outcomes = [
            evaluate_published(clip, bank, cases, arguments.size),
            evaluate_ours(clip, bank, cases, folder / "fp32", arguments),
        ]
        if has_bf16():
            clip = random_clip(arguments.layers, "bf16")
            outcomes.append(evaluate_ours(clip, bank, cases, folder / "bf16", arguments))
        else:
            print("bf16 is not measured: this CPU has no hardware for it.")
    print_times(outcomes, arguments.images)
    agree = print_differences(outcomes)
    bounds = f"{SCORE_TOLERANCE:.0e} in scores and {METRIC_TOLERANCE:.0e} in metrics"
    print(f"\nfp32 and the published method {'agree' if agree else 'DO NOT agree'}: equal masks, within {bounds}.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
