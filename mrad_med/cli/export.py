"""The command ``mrad-med export``: write the network of a bundle as one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import set_command
from mrad_med.files import prepare_output_file

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    export = commands.add_parser("export", help="write a bundle's network as one file, checked against it")
    export.add_argument("bundle", help="bundle directory or name")
    export.add_argument(
        "--out", type=Path, required=True, help="file ending in .onnx, .pt2 (torch.export) or .ts (TorchScript)"
    )
    set_command(export, _export, takes_overrides=True)


def _export(options: argparse.Namespace) -> int:
    prepare_output_file(options.out)
    detector = mrad_med.AnomalyDetector.from_bundle(options.bundle, **options.overrides)
    differences = mrad_med.export_network(
        detector.network,
        options.out,
        provenance=detector.provenance,
        image_size=detector.view.image_size,
        inferer=detector.inferer,
    )
    say(f"{options.out}: differs from the network by at most {max(differences.values()):.1e}")
    return ALL_WELL
