"""Measure time and additional memory of retrieval from large memory banks.

Usage:
    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --keys 3000 20000 --width 384 --temperature 0.07

"streamed" is `mrad_med.networks.retrieval.retrieve`. "plain" is ``softmax(q k^T) @ onehot(labels)`` with the whole
matrix of scores. Every row is measured in a separate process, because a peak cannot be reset. The memory is that beyond
keys and queries.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mrad_med.networks.retrieval import retrieve

MEBIBYTE = 2**20
STATUS = Path("/proc/self/status")


def plain(queries: Tensor, keys: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return the result of `retrieve`, computed with the matrix of all scores."""
    return (torch.softmax(queries @ keys.T / temperature, dim=-1) @ F.one_hot(labels, 2).float())[:, 1]


METHODS = {"streamed": retrieve, "plain": plain}


def make_features(count: int, width: int, *, anomalous: Tensor, seed: int) -> Tensor:
    """Return unit vectors (count, width) with a common direction, like features of one encoder.

    They are computed in chunks, because only the result may take memory in proportion to ``count``.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.empty(count, width)
    for chunk, labels in zip(features.split(4096), anomalous.split(4096), strict=True):
        chunk.normal_(generator=generator)
        chunk[:, 0] += 0.7 * width**0.5
        chunk[:, 1] += 0.3 * width**0.5 * labels
        chunk /= torch.linalg.vector_norm(chunk, dim=-1, keepdim=True)
    return features


def resident_peak() -> int:
    """Return the peak resident size of this process in bytes, or 0 if the system does not report it."""
    if STATUS.is_file():
        lines = [line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(arguments: argparse.Namespace) -> None:
    """Measure one method with one number of keys: print seconds and bytes, and save the probabilities."""
    method = METHODS[arguments.method]
    labels = torch.arange(arguments.keys[0]) % 3 == 0
    keys = make_features(len(labels), arguments.width, anomalous=labels, seed=0)
    queries = make_features(arguments.queries, arguments.width, anomalous=torch.arange(arguments.queries) % 2, seed=1)
    labels = labels.long()
    method(
        queries[:8], keys[:64], labels[:64], temperature=arguments.temperature
    )  # loads the libraries before the measurement
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")  # Linux: resets the peak to the current size
    before, seconds = resident_peak(), []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        probabilities = method(queries, keys, labels, temperature=arguments.temperature)
        seconds.append(time.perf_counter() - start)
    torch.save(probabilities, arguments.output)
    print(min(seconds), resident_peak() - before)


def measure_apart(arguments: argparse.Namespace, method: str, count: int) -> tuple[float, int, Tensor]:
    """Return seconds, bytes and probabilities of one measurement in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "probabilities.pt"
        options = {
            "--method": method,
            "--output": output,
            "--keys": count,
            "--width": arguments.width,
            "--queries": arguments.queries,
            "--temperature": arguments.temperature,
            "--repeats": arguments.repeats,
        }
        command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds, peak = result.stdout.split()
        return float(seconds), int(peak), torch.load(output, weights_only=True)


def compare(arguments: argparse.Namespace) -> None:
    """Measure every number of keys, and print the table."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{machine}{load}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{arguments.queries} queries of width {arguments.width}, temperature {arguments.temperature:g};")
    print(f"best of {arguments.repeats} passes; memory beyond keys and queries\n")
    print(f"{'keys':>9}{'size of keys':>14}  {'method':10}{'seconds':>9}{'peak memory':>13}{'largest difference':>20}")
    for count in arguments.keys:
        found: dict[str, Tensor] = {}
        for method in ("streamed", "plain"):
            size = count * arguments.width * 4 / MEBIBYTE
            row = f"{count:9d}{size:10.0f} MiB  {method:10}"
            if method == "plain" and count > arguments.plain_up_to:
                print(f"{row}{'-':>9}{'-':>13}{'-':>20}")
                continue
            seconds, peak, found[method] = measure_apart(arguments, method, count)
            row += f"{seconds:9.3f}{peak / MEBIBYTE:9.0f} MiB"
            if len(found) > 1:
                row += f"{(found['streamed'] - found['plain']).abs().max():20.1e}"
            print(row, flush=True)


def main() -> None:
    """Measure one method in this process if it is given, otherwise all methods in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keys", type=int, nargs="+", default=[3_000, 100_000, 1_000_000], help="numbers of keys to compare"
    )
    parser.add_argument("--width", type=int, default=1024, help="width of keys and queries (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1369, help="number of queries (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="temperature of the softmax (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of passes of each method (default: %(default)s)")
    parser.add_argument(
        "--plain-up-to", type=int, default=100_000, help="largest number of keys for plain (default: %(default)s)"
    )
    parser.add_argument(
        "--method", choices=METHODS, help="measure only this method, in this process, with one number of keys"
    )
    parser.add_argument("--output", type=Path, default=os.devnull, help="with --method: file for the probabilities")
    arguments = parser.parse_args()
    with torch.inference_mode():
        if arguments.method:
            measure(arguments)
        else:
            compare(arguments)


if __name__ == "__main__":
    main()
