"""The command ``mrad-med detect``: score the images below a path, and write files and tables."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, SOME_FAILED, say, say_table
from mrad_med.cli.overrides import TAKE_OVER, set_command
from mrad_med.errors import FailedCasesError
from mrad_med.results.output_names import DEFAULT_OUTPUTS, OUTPUT_DESCRIPTIONS
from mrad_med.types import AnomalyKeys

if TYPE_CHECKING:
    from mrad_med.data import FoundCases

__all__ = ["add_to"]

_SUMMARY_ROWS = 20
# Options that set values of the bundle's config.
_VALUES = (
    "write",
    "threshold",
    "frames_per_second",
    "sequence_rate",
    "num_workers",
    "include_masks",
    "keep_identifiers",
)
_OUTPUTS = "; ".join(f"{name}: {description}" for name, description in OUTPUT_DESCRIPTIONS.items())
_DEFAULTS = "; ".join(f"{kind}: {' '.join(names)}" for kind, names in DEFAULT_OUTPUTS.items())


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    detect = commands.add_parser(
        "detect",
        help="score an image, a series, a video, or all files below a folder",
        description="Score images, DICOM series, volumes and videos. Each of these cases, and each frame of a video, "
        "gets an anomaly score and an anomaly map.",
        epilog="Every value of the bundle's config can be given as an option. Examples: --window lung (CT window), "
        "--plane coronal (slices of a volume), --device cuda:0, --batch_size 8 (images), --smooth 1 (slices).",
    )
    detect.add_argument(
        "path",
        type=Path,
        help="image, video, DICOM file or DICOMDIR, NIfTI or NRRD volume, or a folder that is searched for these",
    )
    detect.add_argument("--out", type=Path, help="folder for results; required unless --dry-run is given")
    detect.add_argument("--bundle", default="mrad_clip", help="bundle directory or name (default: %(default)s)")
    detect.add_argument(
        "--profile",
        action="append",
        default=[],
        help="config for a kind of images: endoscopy, volume, or sliding (large images, scored in tiles). "
        "Can be repeated (default: none)",
    )
    detect.add_argument(
        "--write", nargs="+", metavar="OUTPUT", help=f"files to write for each case. {_OUTPUTS}. Defaults: {_DEFAULTS}"
    )
    detect.add_argument(
        "--threshold",
        type=float,
        help="anomaly value at or above which mask and seg mark a pixel; required for these outputs. "
        "Anomaly values are between 0 and 1 (default: none)",
    )
    detect.add_argument(
        "--frames_per_second",
        type=float,
        help="frames of a video that are scored, per second (default: all; 5 with --profile endoscopy)",
    )
    detect.add_argument(
        "--sequence_rate",
        type=float,
        help="frames per second at which the numbered images of a folder are treated as one video "
        "(default: treat them as separate images)",
    )
    detect.add_argument(
        "--jobs",
        type=int,
        dest="num_workers",
        help="number of additional processes that load cases in advance (default: 0, load in the main process)",
    )
    detect.add_argument("--dry-run", action="store_true", help="list the cases that are found, and score nothing")
    detect.add_argument("--take-over", action="store_true", help=TAKE_OVER)
    detect.add_argument(
        "--restart", action="store_true", help="score all cases, including those that an earlier run has finished"
    )
    detect.add_argument(
        "--include-masks",
        action="store_true",
        default=None,
        help="score masks and label volumes too. Without it, a file is skipped if a word such as mask, label or seg is "
        "in its name or folder and it has at most 16 distinct values (default: skip them)",
    )
    detect.add_argument(
        "--keep-identifiers",
        action="store_true",
        default=None,
        help="keep names, numbers and dates of patients in case ids and DICOM outputs (default: remove them)",
    )
    set_command(detect, _detect, takes_overrides=True)


def _detect(options: argparse.Namespace) -> int:
    if options.out is None and not options.dry_run:
        raise ValueError("give a folder for results with --out, or list the cases with --dry-run")
    given = {name: getattr(options, name) for name in _VALUES if getattr(options, name) is not None}
    values = {**options.overrides, **given}
    if options.dry_run:
        parser = mrad_med.bundle.read_bundle(options.bundle, profiles=options.profile, overrides=values)
        return _list(mrad_med.data.survey(options.path, exclude=options.out, **parser.get_parsed_content("search")))
    if options.take_over:  # configs written by users may lack this value
        values["take_over"] = True
    workflow = mrad_med.BundleWorkflow(
        options.bundle,
        profiles=options.profile,
        logging_file=False,  # this command configures logging itself
        dataset_dir=options.path,  # a path, because MONAI evaluates strings that begin with $ or @
        output_dir=options.out,
        resume=not options.restart,
        **values,
    )
    workflow.initialize()
    with mrad_med.bundle.plain_errors():
        writer, found, cases = map(workflow.parser.get_parsed_content, ("writer", "found", "cases"))
    earlier = len(found.cases) - len(cases)
    if earlier:
        say(f"{earlier} of {len(found.cases)} case(s) are finished already; --restart scores them again")
    with suppress(FailedCasesError):  # the summary lists them
        workflow.run()
    workflow.finalize()
    return _summarize(writer, found, options.out)


def _list(found: FoundCases) -> int:
    rows = [("case", "study", "what", "remarks")]
    for case in found.cases:
        name = case[AnomalyKeys.CASE_ID]
        rows.append((name, case[AnomalyKeys.STUDY], found.descriptions[name], found.remarks.get(name, "")))
    rows += [(item.case_id, "", "skipped", item.reason) for item in found.skipped]
    say_table(rows)
    say(f"{len(found.cases)} case(s) would be scored, {len(found.skipped)} file(s) skipped")
    return ALL_WELL


def _summarize(writer: mrad_med.ResultWriter, found: FoundCases, out: Path) -> int:
    ranked = sorted(writer.rows, key=lambda row: -float(row["anomaly_score"]))
    shown = [(row["case_id"], f"{float(row['anomaly_score']):.4f}") for row in ranked[:_SUMMARY_ROWS]]
    say_table([("case", "score"), *shown])
    if len(ranked) > _SUMMARY_ROWS:
        say(f"... and {len(ranked) - _SUMMARY_ROWS} more in scores.csv")
    blank = f", {len(writer.nothing_to_score)} with nothing to score" if writer.nothing_to_score else ""
    say(f"{len(ranked)} of {len(found.cases)} case(s) scored{blank}, results in {out}")
    for item in writer.nothing_to_score:
        say(f"nothing to score in {item.case_id}: {item.reason}")
    for reason in dict.fromkeys(item.reason for item in found.skipped):
        names = [item.case_id for item in found.skipped if item.reason == reason]
        say(f"skipped {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}")
    for failure in writer.failures:
        say(f"left out {failure.case_id}: {failure.reason}", to_error=True)
    for shortfall in writer.shortfalls:
        say(f"{shortfall.case_id}: {shortfall.reason}", to_error=True)
    return SOME_FAILED if writer.failures or writer.shortfalls else ALL_WELL
