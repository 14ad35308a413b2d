"""The `mrad-med` command: a thin layer over the package."""

from __future__ import annotations

import argparse
import ast
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.backbones import BackboneError
from mrad_med.datasets import DatasetError
from mrad_med.loaders import CaseDataset, CaseLoader, FailedCasesError
from mrad_med.memory import MemoryBankError
from mrad_med.results import OutputError, ResultWriter

__all__ = ["main"]

ALL_WELL, SOME_FAILED, NOTHING_DONE = 0, 1, 2
_SUMMARY_ROWS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 all well, 1 some cases failed, 2 nothing could be done."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    try:
        options.overrides = _overrides(overrides)
        status: int = options.command(options)
    except FailedCasesError as error:
        _say(f"mrad-med: {error}", to_error=True)
        return SOME_FAILED
    except (
        BackboneError,
        DatasetError,
        MemoryBankError,
        OutputError,
        FileNotFoundError,
        KeyError,
        ValueError,
    ) as error:
        _say(f"mrad-med: {error.args[0] if isinstance(error, KeyError) else error}", to_error=True)
        return NOTHING_DONE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrad-med",
        description="Zero-shot anomaly detection for medical images.",
        epilog="Any value of a bundle's configs/inference.json can be overridden: --temperature 1 --device cpu ...",
    )
    parser.add_argument("--version", action="version", version=f"mrad-med {mrad_med.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    detect = commands.add_parser("detect", help="score an image, or every image below a folder")
    detect.add_argument("path", type=Path, help="a photograph, DICOM file or NIfTI volume, or a folder of them")
    detect.add_argument("--out", type=Path, required=True, help="folder for maps, overlays, scores.csv and run.json")
    detect.add_argument("--bundle", default="mrad_tf", help="bundle directory or name (default: %(default)s)")
    detect.add_argument("--no-overlays", action="store_true", help="write maps and tables only")
    detect.set_defaults(command=_detect)

    run = commands.add_parser("run", help="run a bundle directory, as python -m monai.bundle run does")
    run.add_argument("bundle", help="bundle directory, name, or config file")
    run.set_defaults(command=_run)

    bank = commands.add_parser("bank", help="build, extend, merge or show memory banks").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = bank.add_parser("build", help="from a folder with normal/, defect/ and mask/")
    build.add_argument("folder", type=Path)
    build.set_defaults(command=_bank_build)
    extend = bank.add_parser("extend", help="add the cases of such a folder to a bank")
    extend.add_argument("bank", type=Path)
    extend.add_argument("folder", type=Path)
    extend.set_defaults(command=_bank_extend)
    merge = bank.add_parser("merge", help="join banks of one backbone")
    merge.add_argument("banks", type=Path, nargs="+")
    merge.set_defaults(command=_bank_merge)
    for action in (build, extend, merge):
        action.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    for action in (build, extend):
        action.add_argument("--backbone", default="embedded", help="as load_clip takes it (default: %(default)s)")
        action.add_argument("--image-size", type=int, default=518, help="default: %(default)s")
    show = bank.add_parser("show", help="print the card of a bank")
    show.add_argument("bank", type=Path)
    show.set_defaults(command=_bank_show)
    return parser


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return ``--name value`` and ``--name=value`` pairs; values are read as Python literals where they are."""
    pairs: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        name, has_value, value = remaining.pop(0).partition("=")
        if not name.startswith("--") or not (has_value or remaining):
            raise ValueError(f"cannot understand {name!r}; overrides are written --name value")
        pairs[name[2:]] = _literal(value if has_value else remaining.pop(0))
    return pairs


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


def _detect(options: argparse.Namespace) -> int:
    cases = mrad_med.find_cases(options.path, exclude=options.out)
    detector = mrad_med.AnomalyDetector.from_bundle(options.bundle, **options.overrides)
    writer = ResultWriter(options.out, provenance=detector.provenance, overlays=not options.no_overlays)
    failures = detector.stream(cases, writer.write)
    writer.finish(failures)
    ranked = sorted(writer.rows, key=lambda row: -float(row["anomaly_score"]))
    width = max([len("case"), *(len(row["case_id"]) for row in ranked[:_SUMMARY_ROWS])])
    _say(f"{'case':<{width}}  score")
    for row in ranked[:_SUMMARY_ROWS]:
        _say(f"{row['case_id']:<{width}}  {float(row['anomaly_score']):.4f}")
    if len(ranked) > _SUMMARY_ROWS:
        _say(f"... and {len(ranked) - _SUMMARY_ROWS} more in scores.csv")
    _say(f"{len(ranked)} of {len(cases)} case(s) scored, results in {options.out}")
    for failure in failures:
        _say(f"left out {failure.case_id}: {failure.reason}", to_error=True)
    return SOME_FAILED if failures else ALL_WELL


def _run(options: argparse.Namespace) -> int:
    workflow = mrad_med.BundleWorkflow(options.bundle, **options.overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return ALL_WELL


def _labelled_loader(options: argparse.Namespace, clip: mrad_med.CLIP) -> CaseLoader:
    steps = mrad_med.build_preprocessing(clip.card, image_size=options.image_size, with_mask=True)
    return CaseLoader(CaseDataset(mrad_med.load_labelled_folder(options.folder), steps))


def _bank_build(options: argparse.Namespace) -> int:
    clip = mrad_med.load_clip(options.backbone)
    loader = _labelled_loader(options, clip)
    bank = mrad_med.build_memory_bank(clip, loader, sources=[{"name": options.folder.name}], progress=False)
    return _save_bank(bank, options.out, loader)


def _bank_extend(options: argparse.Namespace) -> int:
    clip = mrad_med.load_clip(options.backbone)
    bank = mrad_med.load_memory_bank(options.bank)
    bank.check(clip.card)
    loader = _labelled_loader(options, clip)
    extended = bank.extend(clip, loader, sources=[{"name": options.folder.name}], progress=False)
    return _save_bank(extended, options.out, loader)


def _bank_merge(options: argparse.Namespace) -> int:
    banks = [mrad_med.load_memory_bank(path) for path in options.banks]
    return _save_bank(mrad_med.merge_memory_banks(banks), options.out)


def _bank_show(options: argparse.Namespace) -> int:
    bank = mrad_med.load_memory_bank(options.bank)
    _say(json.dumps({"sha256": bank.sha256, **bank.card.to_dict()}, indent=2))
    return ALL_WELL


def _save_bank(bank: mrad_med.MemoryBank, path: Path, loader: CaseLoader | None = None) -> int:
    bank.save(path)
    _say(f"{path}: {bank}")
    if loader is not None:
        loader.raise_for_failures()
    return ALL_WELL


def _say(text: str, *, to_error: bool = False) -> None:
    (sys.stderr if to_error else sys.stdout).write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
