"""The command ``mrad-med bank``: build, extend, merge and show memory banks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import mrad_med
from mrad_med.cli.console import ALL_WELL, say
from mrad_med.cli.overrides import set_command
from mrad_med.files import prepare_output_file
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.types import IMAGE_SIZE

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    bank = commands.add_parser("bank", help="build, extend, merge or show memory banks")
    actions = bank.add_subparsers(required=True, metavar="ACTION")

    build = actions.add_parser("build", help="from a folder with normal/, defect/ and mask/")
    build.add_argument("folder", type=Path)
    set_command(build, _build, takes_overrides=False)

    extend = actions.add_parser("extend", help="add the cases of such a folder to a bank")
    extend.add_argument("bank", type=Path)
    extend.add_argument("folder", type=Path)
    extend.add_argument(
        "--share", type=float, default=0.0, help="repeat the new cases until they are this share (default: %(default)s)"
    )
    set_command(extend, _extend, takes_overrides=False)

    merge = actions.add_parser("merge", help="join banks of one backbone")
    merge.add_argument("banks", type=Path, nargs="+")
    set_command(merge, _merge, takes_overrides=False)

    for action in (build, extend, merge):
        action.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    for action in (build, extend):
        action.add_argument("--backbone", default="embedded", help="as load_clip takes it (default: %(default)s)")
        action.add_argument("--image_size", type=int, help=f"default: the bank's own, or {IMAGE_SIZE}")
        action.add_argument("--batch_size", type=int, default=4, help="default: %(default)s")
        action.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="default: %(default)s")
        action.add_argument("--device", default="cpu", help="for example cuda:0 (default: %(default)s)")
        action.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16 (default: %(default)s)")

    show = actions.add_parser("show", help="print the card of a bank")
    show.add_argument("bank", type=Path)
    set_command(show, _show, takes_overrides=False)


def _build(options: argparse.Namespace) -> int:
    prepare_output_file(options.out)
    clip = _backbone(options)
    loader = _labeled_loader(options, clip, IMAGE_SIZE)
    try:
        bank = mrad_med.build_memory_bank(clip, loader, sources=[{"name": options.folder.name}], progress=False)
        return _save(bank, options.out)
    finally:
        loader.raise_for_failures()


def _extend(options: argparse.Namespace) -> int:
    prepare_output_file(options.out)
    clip = _backbone(options)
    bank = mrad_med.load_memory_bank(options.bank)
    bank.check(clip.card)
    loader = _labeled_loader(options, clip, (bank.card.image_size or (IMAGE_SIZE,))[0])
    try:
        sources = [{"name": options.folder.name}]
        extended = bank.extend(clip, loader, share=options.share, sources=sources, progress=False)
        return _save(extended, options.out)
    finally:
        loader.raise_for_failures()


def _merge(options: argparse.Namespace) -> int:
    prepare_output_file(options.out)
    banks = [mrad_med.load_memory_bank(path) for path in options.banks]
    return _save(mrad_med.merge_memory_banks(banks), options.out)


def _show(options: argparse.Namespace) -> int:
    bank = mrad_med.load_memory_bank(options.bank)
    say(json.dumps({"sha256": bank.sha256, **bank.card.to_dict()}, indent=2))
    return ALL_WELL


def _backbone(options: argparse.Namespace) -> mrad_med.CLIP:
    return mrad_med.load_clip(options.backbone, precision=options.precision, device=options.device)


def _labeled_loader(options: argparse.Namespace, clip: mrad_med.CLIP, image_size: int) -> mrad_med.CaseLoader:
    view = mrad_med.ImageView(image_size=options.image_size or image_size, max_pixels=options.max_pixels)
    steps = mrad_med.build_preprocessing(clip.card, view, with_mask=True)
    cases = mrad_med.load_labeled_folder(options.folder)
    return mrad_med.CaseLoader(mrad_med.CaseDataset(cases, steps), batch_size=options.batch_size)


def _save(bank: mrad_med.MemoryBank, path: Path) -> int:
    bank.save(path)
    say(f"{path}: {bank}")
    return ALL_WELL
