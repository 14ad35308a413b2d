"""The command ``mrad-med evaluate``: measure a bundle on a labeled dataset."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli import hidden_names
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import TAKE_OVER, VALUES_AS_OPTIONS, set_command
from mrad_med.cli.workflows import build_workflow

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a bundle on a labeled dataset",
        description="Score the images of a labeled dataset with a bundle, and write metrics with confidence intervals.",
        epilog=VALUES_AS_OPTIONS,
    )
    evaluate.add_argument("bundle", help="bundle directory or name, such as mrad_clip")
    evaluate.add_argument(
        "--dataset",
        required=True,
        help="name of a public dataset (see mrad-med datasets), or the layout of another one: "
        "folder, csv, meta.json or datalist",
    )
    evaluate.add_argument("--dataset_dir", required=True, help="folder that the dataset is unpacked in")
    evaluate.add_argument("--output_dir", help="folder for results (default: that of the bundle's config)")
    evaluate.add_argument("--take-over", action="store_true", help=TAKE_OVER)
    hidden_names.add_options(evaluate)
    set_command(evaluate, _evaluate, takes_overrides=True)


def _evaluate(options: argparse.Namespace) -> int:
    values = {"dataset_name": options.dataset, "dataset_dir": options.dataset_dir}
    if options.take_over:
        values["take_over"] = True
    if options.keep_identifiers:
        values["keep_identifiers"] = True
    keeps = bool(options.overrides.get("keep_identifiers", options.keep_identifiers))
    given = Path(options.dataset_dir)
    folder = given.parent if os.path.isfile(given) else given  # noqa: PTH113 - a table; Path.is_file may raise
    with hidden_names.without_paths(folder, options.output_dir, options.key, keep_identifiers=keeps):
        hidden_names.check_key(options, options.output_dir)
        return _measure(options, build_workflow(options, "evaluate", **values))


def _measure(options: argparse.Namespace, workflow: mrad_med.BundleWorkflow) -> int:
    workflow.initialize()
    evaluation = workflow.parser.get_parsed_content("evaluation")
    hidden_names.write_key(options, evaluation.origins, evaluation.output_dir)
    try:
        workflow.run()
    finally:
        if evaluation.summary:  # it covers the measured cases, even if others failed
            say((evaluation.output_dir / "metrics.md").read_text(encoding="utf-8"))
            hidden_names.say_hidden(options, evaluation.origins, "--key FILE")
    return ALL_WELL
