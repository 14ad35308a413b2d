"""The command ``mrad-med datasets``: list the public datasets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say, say_table
from mrad_med.cli.overrides import set_command

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    datasets = commands.add_parser(
        "datasets",
        help="list the supported public datasets, and those found on disk",
        description="List the supported public datasets: numbers of test images, masks, license and home page.",
    )
    datasets.add_argument(
        "--root",
        type=Path,
        help="folder that datasets are unpacked in; those found there are listed with their numbers of images "
        "(default: look for none)",
    )
    set_command(datasets, _datasets, takes_overrides=False)


def _datasets(options: argparse.Namespace) -> int:
    if options.root and not options.root.is_dir():
        raise FileNotFoundError(f"there is no folder {options.root}")
    table = [["name", "domain", "normal", "anomalous", "masks", "license", "home", "found" if options.root else ""]]
    for row in mrad_med.list_datasets(options.root):
        known, masks = row.dataset, "yes" if row.dataset.has_masks else "no"
        counts = map(str, known.counts.get("test", ("?", "?")))
        found = ", ".join(f"{split} {normal} + {anomalous}" for split, (normal, anomalous) in row.found.items())
        where = f"{found} in {row.root}" if row.root else ""
        table.append([known.name, known.domain, *counts, masks, known.license, known.home, where])
        for problem in row.problems:
            say(f"{known.name}: {problem}", to_error=True)
    say_table(table)
    return ALL_WELL
