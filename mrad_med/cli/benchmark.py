"""The command ``mrad-med benchmark``: measure several bundles on several sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import set_command
from mrad_med.errors import FailedCasesError

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    benchmark = commands.add_parser("benchmark", help="measure several bundles on several sets, in one table")
    benchmark.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="name of a set and where it is unpacked")
    benchmark.add_argument("--bundles", nargs="+", default=["mrad_tf", "mrad_ft", "mrad_clip"], help="default: all")
    benchmark.add_argument("--out", type=Path, required=True, help="folder for tables and results")
    benchmark.add_argument("--medical", nargs="*", default=[], help="bundles that saw medical images in training")
    set_command(benchmark, _benchmark, takes_overrides=True)


def _benchmark(options: argparse.Namespace) -> int:
    datasets = dict(word.partition("=")[::2] for word in options.sets)
    if not all([*datasets, *datasets.values()]) or len(datasets) < len(options.sets):
        raise ValueError("sets are written NAME=FOLDER, each once, for example kvasir=data/Kvasir-SEG")
    page = options.out / "benchmark.md"
    try:
        mrad_med.run_benchmark(options.bundles, datasets, options.out, medical=options.medical, **options.overrides)
    except FailedCasesError:  # the tables are there all the same
        say(page.read_text(encoding="utf-8"))
        raise
    say(page.read_text(encoding="utf-8"))
    return ALL_WELL
