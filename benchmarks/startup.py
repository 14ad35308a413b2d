"""Print the startup time of commands, and whether they load torch or MONAI.

Usage:
    python benchmarks/startup.py
    python benchmarks/startup.py --repeats 5

Each command runs in its own process; the table contains the median of the repeats. The dry run on one photograph reads
the bundle's config, which needs MONAI. It is therefore compared with `import monai.bundle` alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from encoder import print_machine
from PIL import Image

COMMANDS = {
    "import mrad_med": ("-c", "import mrad_med"),
    "mrad-med --version": ("-m", "mrad_med", "--version"),
    "mrad-med --help": ("-m", "mrad_med", "--help"),
    "mrad-med detect --help": ("-m", "mrad_med", "detect", "--help"),
    "mrad-med bank build --help": ("-m", "mrad_med", "bank", "build", "--help"),
    "mrad-med datasets": ("-m", "mrad_med", "datasets"),
    "import monai.bundle": ("-c", "import monai.bundle"),
    "mrad-med detect PHOTO --dry-run": ("-m", "mrad_med", "detect", "photo.png", "--dry-run"),
}


def seconds(words: tuple[str, ...], folder: Path) -> float:
    """Return the time of one process in seconds; it must succeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


def loaded(words: tuple[str, ...], folder: Path) -> list[str]:
    """Return the names of torch and MONAI, if a process loads them."""
    command = [sys.executable, "-X", "importtime", *words]
    imports = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr
    modules = {line.rpartition("|")[2].strip() for line in imports.splitlines()}
    return [name for name in ("torch", "monai") if name in modules]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of processes for each command (default: %(default)s)"
    )
    repeats = parser.parse_args().repeats
    print_machine()
    with TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (640, 480), "gray").save(folder / "photo.png")
        times: dict[str, list[float]] = {command: [] for command in COMMANDS}
        for command, words in COMMANDS.items():
            seconds(words, folder)  # the first run of a command also reads its files from disk
            print(f"{command}: loads {', '.join(loaded(words, folder)) or 'neither torch nor MONAI'}")
        for _ in range(repeats):
            for command, words in COMMANDS.items():
                times[command].append(seconds(words, folder))
    print(f"\n| command | seconds, median of {repeats} |\n|---|---|")
    for command, values in times.items():
        print(f"| {command} | {median(values):.2f} |")
    beyond = median(times["mrad-med detect PHOTO --dry-run"]) - median(times["import monai.bundle"])
    print(f"\nThe dry run takes {beyond:.2f} s more than `import monai.bundle`.")


if __name__ == "__main__":
    main()
