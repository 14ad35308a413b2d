"""The command ``mrad-med train``: train the head of a bundle."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import TAKE_OVER, VALUES_AS_OPTIONS, set_command
from mrad_med.cli.workflows import build_workflow, run_workflow
from mrad_med.files import atomic_path, prepare_output, prepare_output_file

__all__ = ["add_to"]

# Values of the config that name folders and files to write.
_FOLDERS, _FILES = ("output_dir", "cache_dir", "ckpt_dir"), ("checkpoint", "memory_bank")


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    train = commands.add_parser(
        "train",
        help="train a bundle's head on a folder of labeled images",
        description="Build a memory bank from a folder of labeled images, and train a bundle's head with it. "
        "The image encoder is not trained.",
        epilog=VALUES_AS_OPTIONS,
    )
    train.add_argument("bundle", help="bundle directory or name, such as mrad_ft")
    train.add_argument(
        "--dataset_dir",
        required=True,
        help="labeled images: the unpacked VisA dataset, or a folder for each class with normal/, defect/ and mask/",
    )
    train.add_argument(
        "--output_dir",
        help="folder for features, memory bank, checkpoints and trained head (default: that of the bundle's config)",
    )
    train.add_argument(
        "--tracking",
        choices=("mlflow",),
        help="record losses and metrics with MLflow, which must be installed (default: only TensorBoard)",
    )
    train.add_argument("--take-over", action="store_true", help=TAKE_OVER)
    set_command(train, _train, takes_overrides=True)


def _train(options: argparse.Namespace) -> int:
    workflow = build_workflow(options, "train", tracking=options.tracking, dataset_dir=options.dataset_dir)
    folder = prepare_output(workflow.parser.get_parsed_content("output_dir"))
    with mrad_med.store.FolderLock(folder, take_over=options.take_over):
        for names, prepare in ((_FOLDERS, prepare_output), (_FILES, prepare_output_file)):
            for name in names:
                if name in workflow.parser:
                    prepare(workflow.parser.get_parsed_content(name))
        _write_record(folder, is_whole=False)  # stays so if the run does not finish
        run_workflow(workflow)
        _write_record(folder, is_whole=True)
    say(f"trained: {workflow.parser.get_parsed_content('checkpoint')}")
    return ALL_WELL


def _write_record(folder: Path, *, is_whole: bool) -> None:
    """Write ``run.json``, which states whether the training finished."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with atomic_path(folder / "run.json") as partial:
        partial.write_text(json.dumps({"created": created, "complete": is_whole}, indent=2) + "\n", encoding="utf-8")
