"""The command ``mrad-med run``: run a bundle."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import mrad_med
from mrad_med.cli import hidden_names
from mrad_med.cli.console import ALL_WELL
from mrad_med.cli.overrides import VALUES_AS_OPTIONS, set_command
from mrad_med.cli.workflows import run_workflow

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    run = commands.add_parser(
        "run",
        help="run a bundle as python -m monai.bundle run does",
        description="Run a bundle: its configs/inference.json, or another config file.",
        epilog=VALUES_AS_OPTIONS,
    )
    run.add_argument("bundle", help="bundle directory or name, or a config file")
    run.add_argument(
        "--profile",
        action="append",
        default=[],
        help="config for a kind of images: endoscopy, volume, or sliding (large images, scored in tiles). "
        "Can be repeated (default: none)",
    )
    set_command(run, _run, takes_overrides=True)


def _run(options: argparse.Namespace) -> int:
    values = options.overrides
    places = [values.get(name) for name in ("dataset_dir", "output_dir")]
    keeps = bool(values.get("keep_identifiers"))
    hidden = nullcontext() if places[0] is None else hidden_names.without_paths(*places, keep_identifiers=keeps)
    with hidden:
        run_workflow(mrad_med.BundleWorkflow(options.bundle, profiles=options.profile, values=values))
    return ALL_WELL
