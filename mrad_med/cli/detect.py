"""The command ``mrad-med detect``: a path in, files and tables out."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, SOME_FAILED, say, say_table
from mrad_med.cli.overrides import set_command
from mrad_med.errors import FailedCasesError
from mrad_med.results.output_names import DEFAULT_OUTPUTS, OUTPUT_DESCRIPTIONS
from mrad_med.types import AnomalyKeys

if TYPE_CHECKING:
    from mrad_med.data import FoundCases

__all__ = ["add_to"]

_SUMMARY_ROWS = 20
# Options that are values of the bundle's config.
_VALUES = ("write", "threshold", "frames_per_second", "sequence_rate", "num_workers", "keep_identifiers")
_OUTPUTS = "; ".join(f"{name}: {description}" for name, description in OUTPUT_DESCRIPTIONS.items())
_DEFAULT = ", ".join(f"{kind}: {' '.join(names)}" for kind, names in DEFAULT_OUTPUTS.items())


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    detect = commands.add_parser(
        "detect",
        help="score an image, a series, a video, or everything below a folder",
        epilog="Any value of the bundle's config can be given too: --window lung, --plane coronal, --device cuda:0, "
        "--batch_size 8, --smooth 1, ...",
    )
    detect.add_argument(
        "path", type=Path, help="photograph, video, DICOM file or DICOMDIR, NIfTI or NRRD volume, or a folder of them"
    )
    detect.add_argument("--out", type=Path, help="folder for results; needed unless --dry-run")
    detect.add_argument("--bundle", default="mrad_clip", help="bundle directory or name (default: %(default)s)")
    detect.add_argument(
        "--profile", action="append", default=[], help="settings for a kind of images: endoscopy, volume, sliding"
    )
    detect.add_argument(
        "--write", nargs="+", metavar="OUTPUT", help=f"what is written of each case. {_OUTPUTS}. Default: {_DEFAULT}"
    )
    detect.add_argument("--threshold", type=float, help="from which on mask and seg mark a pixel")
    detect.add_argument("--frames_per_second", type=float, help="of videos, that are scored (default: all)")
    detect.add_argument(
        "--sequence_rate", type=float, help="take numbered photographs of a folder for a video of so many a second"
    )
    detect.add_argument("--jobs", type=int, dest="num_workers", help="processes that read ahead (default: none)")
    detect.add_argument("--dry-run", action="store_true", help="list what is found, and score nothing")
    detect.add_argument(
        "--take-over", action="store_true", help="write to a folder that a process of another host has locked"
    )
    detect.add_argument("--restart", action="store_true", help="score finished cases of an earlier run again")
    detect.add_argument(
        "--keep-identifiers",
        action="store_true",
        default=None,
        help="let names of patients and dates travel into names and DICOM",
    )
    set_command(detect, _detect, takes_overrides=True)


def _detect(options: argparse.Namespace) -> int:
    if options.out is None and not options.dry_run:
        raise ValueError("give a folder for results with --out, or --dry-run to see what is found")
    given = {name: getattr(options, name) for name in _VALUES if getattr(options, name) is not None}
    values = {**options.overrides, **given}
    if options.dry_run:
        parser = mrad_med.bundle.read_bundle(options.bundle, profiles=options.profile, overrides=values)
        return _list(mrad_med.data.survey(options.path, exclude=options.out, **parser.get_parsed_content("search")))
    if options.take_over:  # which configs of one's own may lack
        values["take_over"] = True
    workflow = mrad_med.BundleWorkflow(
        options.bundle,
        profiles=options.profile,
        logging_file=False,  # messages go where this command sends them
        dataset_dir=options.path,  # paths and no strings, which MONAI would evaluate
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
    with suppress(FailedCasesError):  # the summary names them
        workflow.run()
    workflow.finalize()
    return _summarize(writer, found, options.out)


def _list(found: FoundCases) -> int:
    rows = [("case", "study", "what", "remarks")]
    for case in found.cases:
        name = case[AnomalyKeys.CASE_ID]
        rows.append((name, case[AnomalyKeys.STUDY], found.descriptions[name], found.remarks.get(name, "")))
    rows += [(item.case_id, "", "passed over", item.reason) for item in found.skipped]
    say_table(rows)
    say(f"{len(found.cases)} case(s) would be scored, {len(found.skipped)} file(s) passed over")
    return ALL_WELL


def _summarize(writer: mrad_med.ResultWriter, found: FoundCases, out: Path) -> int:
    ranked = sorted(writer.rows, key=lambda row: -float(row["anomaly_score"]))
    shown = [(row["case_id"], f"{float(row['anomaly_score']):.4f}") for row in ranked[:_SUMMARY_ROWS]]
    say_table([("case", "score"), *shown])
    if len(ranked) > _SUMMARY_ROWS:
        say(f"... and {len(ranked) - _SUMMARY_ROWS} more in scores.csv")
    say(f"{len(ranked)} of {len(found.cases)} case(s) scored, results in {out}")
    for failure in writer.failures:
        say(f"left out {failure.case_id}: {failure.reason}", to_error=True)
    for shortfall in writer.shortfalls:
        say(f"{shortfall.case_id}: {shortfall.reason}", to_error=True)
    return SOME_FAILED if writer.failures or writer.shortfalls else ALL_WELL
