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
from mrad_med.cli.console import ALL_WELL, NOTHING_DONE, SOME_FAILED, STOPPED, say, say_table
from mrad_med.cli.detect import add_detect
from mrad_med.data.loader import CaseDataset, CaseLoader
from mrad_med.errors import FailedCasesError
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.types import IMAGE_SIZE

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 well, 1 some cases failed, 2 nothing done, 130 stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    try:
        options.overrides = _overrides(overrides)
        if overrides and not options.takes_overrides:
            raise ValueError(f"unknown: {' '.join(overrides)}; see mrad-med bank --help")
        status: int = options.command(options)
    except FailedCasesError as error:
        say(f"mrad-med: {error}", to_error=True)
        return SOME_FAILED
    except KeyboardInterrupt:
        say("mrad-med: stopped; what is already written is whole", to_error=True)
        return STOPPED
    except Exception as error:  # whatever goes wrong, a person at a terminal is told in one line
        logger.debug("", exc_info=True)
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        known = message and isinstance(error, (ValueError, OSError, KeyError))
        say(f"mrad-med: {message if known else f'{type(error).__name__}: {message}'}", to_error=True)
        return NOTHING_DONE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrad-med",
        description="Zero-shot anomaly detection for medical images.",
        epilog="detect, run, train, evaluate, benchmark and export take any value of the bundle's config: "
        "--device cpu --image_size 518 ...",
    )
    parser.add_argument("--version", action="version", version=f"mrad-med {mrad_med.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_detect(commands)

    run = commands.add_parser("run", help="run a bundle directory, as python -m monai.bundle run does")
    run.add_argument("bundle", help="bundle directory, name, or config file")
    run.set_defaults(command=_run, takes_overrides=True)

    train = commands.add_parser("train", help="train a bundle's head on a folder of labelled images")
    train.add_argument("bundle", help="bundle directory or name, such as mrad_ft")
    train.add_argument("--dataset_dir", required=True, help="VisA as downloaded, or folders of classes")
    train.add_argument("--output_dir", help="folder for features, bank, checkpoints and head (default: the bundle's)")
    train.set_defaults(command=_train, takes_overrides=True)

    _add_evaluation(commands)

    export = commands.add_parser("export", help="write a bundle's network as one file, checked against it")
    export.add_argument("bundle", help="bundle directory or name")
    export.add_argument(
        "--out", type=Path, required=True, help="file ending in .onnx, .pt2 (torch.export) or .ts (TorchScript)"
    )
    export.set_defaults(command=_export, takes_overrides=True)

    bank = commands.add_parser("bank", help="build, extend, merge or show memory banks").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = bank.add_parser("build", help="from a folder with normal/, defect/ and mask/")
    build.add_argument("folder", type=Path)
    build.set_defaults(command=_bank_build, takes_overrides=False)
    extend = bank.add_parser("extend", help="add the cases of such a folder to a bank")
    extend.add_argument("bank", type=Path)
    extend.add_argument("folder", type=Path)
    extend.add_argument(
        "--share", type=float, default=0.0, help="repeat the new cases until they are this share (default: %(default)s)"
    )
    extend.set_defaults(command=_bank_extend, takes_overrides=False)
    merge = bank.add_parser("merge", help="join banks of one backbone")
    merge.add_argument("banks", type=Path, nargs="+")
    merge.set_defaults(command=_bank_merge, takes_overrides=False)
    for action in (build, extend, merge):
        action.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    for action in (build, extend):
        action.add_argument("--backbone", default="embedded", help="as load_clip takes it (default: %(default)s)")
        action.add_argument("--image_size", type=int, help=f"default: the bank's own, or {IMAGE_SIZE}")
        action.add_argument("--batch_size", type=int, default=4, help="default: %(default)s")
        action.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="default: %(default)s")
        action.add_argument("--device", default="cpu", help="for example cuda:0 (default: %(default)s)")
        action.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16 (default: %(default)s)")
    show = bank.add_parser("show", help="print the card of a bank")
    show.add_argument("bank", type=Path)
    show.set_defaults(command=_bank_show, takes_overrides=False)
    return parser


def _add_evaluation(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a bundle on a labelled set")
    evaluate.add_argument("bundle", help="bundle directory or name")
    evaluate.add_argument("--dataset", required=True, help="a set (see mrad-med datasets), or a layout: folder")
    evaluate.add_argument("--dataset_dir", required=True, help="where the set is unpacked")
    evaluate.add_argument("--output_dir", help="folder for results (default: the bundle's)")
    evaluate.set_defaults(command=_evaluate, takes_overrides=True)

    benchmark = commands.add_parser("benchmark", help="measure several bundles on several sets, in one table")
    benchmark.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="name of a set and where it is unpacked")
    benchmark.add_argument("--bundles", nargs="+", default=["mrad_tf", "mrad_ft", "mrad_clip"], help="default: all")
    benchmark.add_argument("--out", type=Path, required=True, help="folder for tables and results")
    benchmark.add_argument("--medical", nargs="*", default=[], help="bundles that saw medical images in training")
    benchmark.set_defaults(command=_benchmark, takes_overrides=True)

    datasets = commands.add_parser("datasets", help="list the public sets, and what of them is on disk")
    datasets.add_argument("--root", type=Path, help="folder the sets are unpacked in")
    datasets.set_defaults(command=_datasets, takes_overrides=False)


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


def _run(options: argparse.Namespace) -> int:
    _work(mrad_med.BundleWorkflow(options.bundle, **options.overrides))
    return ALL_WELL


def _train(options: argparse.Namespace) -> int:
    workflow = _workflow(options, "train", dataset_dir=options.dataset_dir)
    _work(workflow)
    say(f"trained: {workflow.parser.get_parsed_content('checkpoint')}")
    return ALL_WELL


def _evaluate(options: argparse.Namespace) -> int:
    workflow = _workflow(options, "evaluate", dataset=options.dataset, dataset_dir=options.dataset_dir)
    workflow.initialize()
    evaluation = workflow.parser.get_parsed_content("evaluation")
    try:
        workflow.run()
    finally:
        if evaluation.summary:
            say((evaluation.output_dir / "metrics.md").read_text(encoding="utf-8"))
    return ALL_WELL


def _workflow(options: argparse.Namespace, name: str, **values: Any) -> mrad_med.BundleWorkflow:
    """Return the workflow of a config of a bundle, on top of that for inference unless it stands alone."""
    root = mrad_med.bundle.find_bundle(options.bundle)
    config = root / "configs" / f"{name}.json"
    if not config.is_file():
        raise FileNotFoundError(f"{root} has no configs/{name}.json: choose a bundle that has, such as mrad_ft")
    values |= {"bundle_root": str(root), **options.overrides}
    if options.output_dir:
        values["output_dir"] = options.output_dir
    if name == "train":
        return mrad_med.BundleWorkflow(str(config), workflow_type="train", **values)
    return mrad_med.BundleWorkflow([str(root / "configs" / "inference.json"), str(config)], **values)


def _benchmark(options: argparse.Namespace) -> int:
    datasets = dict(word.partition("=")[::2] for word in options.sets)
    if not all([*datasets, *datasets.values()]) or len(datasets) < len(options.sets):
        raise ValueError("sets are written NAME=FOLDER, each once, for example kvasir=data/Kvasir-SEG")
    page = options.out / "benchmark.md"
    try:
        mrad_med.run_benchmark(options.bundles, datasets, options.out, medical=options.medical, **options.overrides)
    except FailedCasesError:  # the tables are there all the same
        say(page.read_text(encoding="utf-8"))
        raise
    say(page.read_text(encoding="utf-8"))
    return ALL_WELL


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


def _work(workflow: mrad_med.BundleWorkflow) -> None:
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _export(options: argparse.Namespace) -> int:
    detector = mrad_med.AnomalyDetector.from_bundle(options.bundle, **options.overrides)
    differences = mrad_med.export_network(
        detector.network,
        options.out,
        provenance=detector.provenance,
        image_size=detector.image_size,
        inferer=detector.inferer,
    )
    say(f"{options.out}: differs from the network by at most {max(differences.values()):.1e}")
    return ALL_WELL


def _backbone(options: argparse.Namespace) -> mrad_med.CLIP:
    return mrad_med.load_clip(options.backbone, precision=options.precision, device=options.device)


def _labelled_loader(options: argparse.Namespace, clip: mrad_med.CLIP, image_size: int) -> CaseLoader:
    steps = mrad_med.build_preprocessing(
        clip.card, image_size=options.image_size or image_size, with_mask=True, max_pixels=options.max_pixels
    )
    return CaseLoader(CaseDataset(mrad_med.load_labelled_folder(options.folder), steps), batch_size=options.batch_size)


def _bank_build(options: argparse.Namespace) -> int:
    clip = _backbone(options)
    loader = _labelled_loader(options, clip, IMAGE_SIZE)
    try:
        bank = mrad_med.build_memory_bank(clip, loader, sources=[{"name": options.folder.name}], progress=False)
        return _save_bank(bank, options.out)
    finally:
        loader.raise_for_failures()


def _bank_extend(options: argparse.Namespace) -> int:
    clip = _backbone(options)
    bank = mrad_med.load_memory_bank(options.bank)
    bank.check(clip.card)
    loader = _labelled_loader(options, clip, (bank.card.image_size or (IMAGE_SIZE,))[0])
    try:
        sources = [{"name": options.folder.name}]
        extended = bank.extend(clip, loader, share=options.share, sources=sources, progress=False)
        return _save_bank(extended, options.out)
    finally:
        loader.raise_for_failures()


def _bank_merge(options: argparse.Namespace) -> int:
    banks = [mrad_med.load_memory_bank(path) for path in options.banks]
    return _save_bank(mrad_med.merge_memory_banks(banks), options.out)


def _bank_show(options: argparse.Namespace) -> int:
    bank = mrad_med.load_memory_bank(options.bank)
    say(json.dumps({"sha256": bank.sha256, **bank.card.to_dict()}, indent=2))
    return ALL_WELL


def _save_bank(bank: mrad_med.MemoryBank, path: Path) -> int:
    bank.save(path)
    say(f"{path}: {bank}")
    return ALL_WELL


if __name__ == "__main__":
    sys.exit(main())
