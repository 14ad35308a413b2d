"""The command ``mrad-med export``: write the network of a bundle to one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import VALUES_AS_OPTIONS, set_command
from mrad_med.files import prepare_output_file

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    export = commands.add_parser(
        "export",
        help="write a bundle's network to one file for ONNX, torch.export or TorchScript",
        description="Write a bundle's network to one file, and compare the outputs of the file and of the network.",
        epilog=VALUES_AS_OPTIONS,
    )
    export.add_argument("bundle", help="bundle directory or name, such as mrad_clip")
    export.add_argument(
        "--out",
        type=Path,
        required=True,
        help="file to write; its suffix sets the format: .onnx, .pt2 (torch.export) or .ts (TorchScript)",
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
