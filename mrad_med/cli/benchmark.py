"""The command ``mrad-med benchmark``: measure several bundles on several datasets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import VALUES_AS_OPTIONS, set_command
from mrad_med.errors import FailedCasesError

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    benchmark = commands.add_parser(
        "benchmark",
        help="measure several bundles on several datasets, and write one table for each metric",
        description="Measure several bundles on several labeled datasets, and write one table for each metric.",
        epilog=VALUES_AS_OPTIONS,
    )
    benchmark.add_argument(
        "sets",
        nargs="+",
        metavar="NAME=FOLDER",
        help="name of a dataset (see mrad-med datasets) and the folder it is unpacked in",
    )
    benchmark.add_argument(
        "--bundles",
        nargs="+",
        default=["mrad_tf", "mrad_ft", "mrad_clip"],
        metavar="BUNDLE",
        help="bundles to measure, directories or names (default: mrad_tf mrad_ft mrad_clip)",
    )
    benchmark.add_argument(
        "--out", type=Path, required=True, help="folder for the tables and the results of each bundle"
    )
    benchmark.add_argument(
        "--medical",
        nargs="*",
        default=[],
        metavar="BUNDLE",
        help="names of bundles that were trained on medical images; they get tables of their own. "
        "Bundles whose cards name a medical dataset are found without this option (default: none)",
    )
    set_command(benchmark, _benchmark, takes_overrides=True)


def _benchmark(options: argparse.Namespace) -> int:
    datasets = dict(word.partition("=")[::2] for word in options.sets)
    if not all([*datasets, *datasets.values()]) or len(datasets) < len(options.sets):
        raise ValueError("write each dataset once as NAME=FOLDER, for example kvasir=data/Kvasir-SEG")
    page = options.out / "benchmark.md"
    try:
        mrad_med.run_benchmark(options.bundles, datasets, options.out, medical=options.medical, **options.overrides)
    except FailedCasesError:  # the tables are written before the error is raised
        say(page.read_text(encoding="utf-8"))
        raise
    say(page.read_text(encoding="utf-8"))
    return ALL_WELL
