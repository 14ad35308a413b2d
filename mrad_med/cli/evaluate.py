"""The command ``mrad-med evaluate``: measure a bundle on a set."""

from __future__ import annotations

import argparse
from typing import Any

from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import set_command
from mrad_med.cli.workflows import build_workflow

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    evaluate = commands.add_parser("evaluate", help="measure a bundle on a labeled set")
    evaluate.add_argument("bundle", help="bundle directory or name")
    evaluate.add_argument("--dataset", required=True, help="a set (see mrad-med datasets), or a layout: folder")
    evaluate.add_argument("--dataset_dir", required=True, help="where the set is unpacked")
    evaluate.add_argument("--output_dir", help="folder for results (default: the bundle's)")
    evaluate.add_argument(
        "--take-over", action="store_true", help="write to a folder that a process of another host has locked"
    )
    set_command(evaluate, _evaluate, takes_overrides=True)


def _evaluate(options: argparse.Namespace) -> int:
    values = {"dataset_name": options.dataset, "dataset_dir": options.dataset_dir}
    if options.take_over:
        values["take_over"] = True
    workflow = build_workflow(options, "evaluate", **values)
    workflow.initialize()
    evaluation = workflow.parser.get_parsed_content("evaluation")
    try:
        workflow.run()
    finally:
        if evaluation.summary:  # written for the cases that were measured, also where others failed
            say((evaluation.output_dir / "metrics.md").read_text(encoding="utf-8"))
    return ALL_WELL
