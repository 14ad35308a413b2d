"""Compare time and values of the pixel metrics with those of scikit-learn and of the usual PRO loop.

Usage:
    python benchmarks/metrics.py
    python benchmarks/metrics.py --images 200 --subset 10 --exact 1

"ours" is `PixelMetrics`: all metrics in one pass over all maps. Maps are generated during the pass and not kept. The
other methods use only the first maps, and the time for one map is compared:

- the two areas of scikit-learn,
- PRO with 200 thresholds, with regions labeled again at each threshold, as in published code,
- PRO with a threshold for each distinct score, on few maps.

Maps are blurred grids of random patches, with values between 0.36 and 0.37, as retrieval returns them, and between 0
and 1. Each range is measured in a separate process, because a peak cannot be reset. The memory is the difference of the
peaks of a pass with metrics and of a pass that only generates maps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from encoder import print_machine
from numpy.typing import NDArray
from retrieval import MEBIBYTE, resident_peak
from scipy.ndimage import label as label_regions
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from mrad_med import PixelMetrics
from mrad_med.networks.maps import upsample_and_blur

PATCH = 14
RANGES = {"retrieval": (0.36, 0.37), "unit": (0.0, 1.0)}
LIMIT, THRESHOLDS = 0.3, 200
EIGHT_CONNECTED = np.ones((3, 3), int)

Case = tuple[Tensor, Tensor]


def make_cases(count: int, size: int, scores: tuple[float, float]) -> Iterator[Case]:
    """Yield maps and masks (1, 1, size, size) of one to three ellipses; maps are higher inside on average."""
    generator, random = torch.Generator().manual_seed(0), np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    side = size // PATCH
    for _ in range(count):
        mask = np.zeros((size, size), bool)
        for _ in range(random.integers(1, 4)):
            (row, column), radii = random.uniform(0, size, 2), random.uniform(size / 40, size / 8, 2)
            mask |= ((rows - row) / radii[0]) ** 2 + ((columns - column) / radii[1]) ** 2 < 1
        masks = torch.from_numpy(mask)[None, None].float()
        coverage = torch.nn.functional.interpolate(masks, size=(side, side), mode="area")
        patches = (torch.randn(1, 1, side, side, generator=generator) + 1.5 * coverage - 2).sigmoid()
        low, high = scores
        yield low + (high - low) * upsample_and_blur(patches, (size, size)), masks


def take(arguments: argparse.Namespace, count: int) -> Iterator[Case]:
    """Yield the first maps and masks of the range."""
    return make_cases(count, arguments.size, RANGES[arguments.range])


def count_peak(action: Callable[[], None]) -> int:
    """Call a function and return the peak resident size in bytes."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")  # Linux: resets the peak to the current size
    action()
    return resident_peak()


def measure_ours(arguments: argparse.Namespace) -> tuple[float, int, dict[str, float]]:
    """Return the time of our metrics in seconds, their additional memory in bytes, and their values."""
    metrics, seconds, values = PixelMetrics(), 0.0, {}

    def only_make() -> None:
        for _ in take(arguments, min(arguments.images, 16)):
            pass

    def count() -> None:
        nonlocal seconds
        for maps, masks in take(arguments, arguments.images):
            start = time.perf_counter()
            metrics.update(maps, masks)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        values.update(metrics.compute())
        seconds += time.perf_counter() - start

    peaks = [count_peak(action) for action in (only_make, count)]
    return seconds, peaks[1] - peaks[0], values


def regions_of(masks: NDArray[np.bool_]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Return the index of the image and the pixels of each region."""
    regions = []
    for index, mask in enumerate(masks):
        numbers, count = label_regions(mask, EIGHT_CONNECTED)
        regions += [(index, numbers == number) for number in range(1, count + 1)]
    return regions


def pro_by_relabeling(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> float:
    """Return the PRO of 200 equally spaced thresholds; regions are labeled again at each threshold."""
    low, high = maps.min(), maps.max()
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / THRESHOLDS):
        above = maps > threshold
        overlaps.append(np.mean([above[index][region].mean() for index, region in regions_of(masks)]))
        rates.append((above & ~masks).sum() / (~masks).sum())
    x, y = np.array(rates), np.array(overlaps)
    x, y = x[x < LIMIT], y[x < LIMIT]
    return float(-np.trapezoid(y, (x - x.min()) / (x.max() - x.min())))


def pro_by_every_score(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> float:
    """Return the exact PRO, with a threshold for each distinct score up to the limit."""
    negatives = np.sort(maps[~masks])
    regions = [np.sort(maps[index][region]) for index, region in regions_of(masks)]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        rates.append(1 - np.searchsorted(negatives, threshold) / len(negatives))
        overlaps.append(float(np.mean([1 - np.searchsorted(region, threshold) / len(region) for region in regions])))
        if rates[-1] >= LIMIT:
            break
    x, y = np.array(rates), np.array(overlaps)
    end = np.interp(LIMIT, x, y)
    return float(np.trapezoid(np.append(y[x < LIMIT], end), np.append(x[x < LIMIT], LIMIT)) / LIMIT)


OTHERS: dict[str, tuple[str, Callable[[NDArray[np.float32], NDArray[np.bool_]], float]]] = {
    "roc_auc_score": ("auroc", lambda maps, masks: float(roc_auc_score(masks.ravel(), maps.ravel()))),
    "average_precision_score": ("ap", lambda maps, masks: float(average_precision_score(masks.ravel(), maps.ravel()))),
    "PRO, 200 thresholds, relabeled": ("pro_200", pro_by_relabeling),
    "PRO, every distinct score": ("pro", pro_by_every_score),
}


def measure_others(arguments: argparse.Namespace) -> list[tuple[str, int, float, float, float]]:
    """Return name, number of maps, seconds for each map, value, and our value of each other method."""
    rows = []
    for name, (metric, compute) in OTHERS.items():
        count = arguments.exact if metric == "pro" else arguments.subset
        cases, ours = list(take(arguments, count)), PixelMetrics()
        for maps, masks in cases:
            ours.update(maps, masks)
        maps, masks = (torch.cat(items)[:, 0].numpy() for items in zip(*cases, strict=True))
        start = time.perf_counter()
        value = compute(maps, masks > 0.5)
        rows.append((name, count, (time.perf_counter() - start) / count, value, ours.compute()[metric]))
    return rows


def measure(arguments: argparse.Namespace) -> None:
    """Print the measurements of one range as JSON."""
    seconds, peak, values = measure_ours(arguments)
    print(json.dumps({"seconds": seconds, "peak": peak, "values": values, "others": measure_others(arguments)}))


def compare(arguments: argparse.Namespace) -> None:
    """Measure each range in a separate process, and print the tables."""
    print_machine()
    options = {"--images": arguments.images, "--size": arguments.size, "--subset": arguments.subset}
    options |= {"--exact": arguments.exact}
    for name, (low, high) in RANGES.items():
        command = [sys.executable, __file__, "--range", name]
        command += [str(part) for option in options.items() for part in option]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        each = found["seconds"] / arguments.images
        print(f"\n{arguments.images} maps of {arguments.size} x {arguments.size}, scores between {low:g} and {high:g}")
        print(f"ours: {found['seconds']:.1f} s, {1000 * each:.1f} ms per map, {found['peak'] / MEBIBYTE:.0f} MiB")
        print("   " + ", ".join(f"{metric} {value:.6g}" for metric, value in found["values"].items()))
        print(f"{'':34}{'maps':>5}{'ms per map':>11}{'ours x':>9}{'value':>11}{'ours':>11}{'difference':>12}")
        total = 0.0
        for row, count, seconds, value, ours in found["others"]:
            total += seconds if row != "PRO, every distinct score" else 0.0
            line = f"{row:34}{count:5d}{1000 * seconds:11.1f}{seconds / each:9.1f}{value:11.6f}{ours:11.6f}"
            print(f"{line}{abs(value - ours):12.1e}")
        print(f"the first three together take {total / each:.0f} times as long for a map as all of our metrics")


def main() -> None:
    """Measure one range in this process if it is given, otherwise both in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="number of maps for ours (default: %(default)s)")
    parser.add_argument(
        "--subset",
        type=int,
        default=20,
        help="number of maps for scikit-learn and for PRO with 200 thresholds (default: 20)",
    )
    parser.add_argument(
        "--exact", type=int, default=2, help="number of maps for PRO with every distinct score (default: 2)"
    )
    parser.add_argument("--size", type=int, default=518, help="side length of a map in pixels (default: %(default)s)")
    parser.add_argument("--range", choices=RANGES, help="measure only this range, and print JSON")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    if arguments.range:
        measure(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
