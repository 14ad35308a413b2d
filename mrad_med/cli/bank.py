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
from mrad_med.types import IMAGE_SIZE, LOCAL_SHARE

__all__ = ["add_to"]

_FOLDER = "folder with normal/, defect/ and mask/, or a folder with one such folder for each class"


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of a parser."""
    bank = commands.add_parser(
        "bank",
        help="build, extend, merge or show memory banks",
        description="Work with memory banks. A memory bank is a file with features of labeled images. New images are "
        "scored by their similarity to these features.",
    )
    actions = bank.add_subparsers(required=True, metavar="ACTION")

    build = _add_action(actions, "build", "build a memory bank from a folder of labeled images")
    build.add_argument("folder", type=Path, help=_FOLDER)
    set_command(build, _build, takes_overrides=False)

    extend = _add_action(actions, "extend", "add the labeled images of a folder to a memory bank")
    extend.add_argument("bank", type=Path, help="memory bank to extend, a .safetensors file")
    extend.add_argument("folder", type=Path, help=_FOLDER)
    extend.add_argument(
        "--share",
        type=float,
        default=LOCAL_SHARE,
        help="smallest fraction of the bank's patch entries that come from the new images, in [0, 1). New entries "
        "are repeated until they reach it; 0 repeats none (default: %(default)s)",
    )
    set_command(extend, _extend, takes_overrides=False)

    merge = _add_action(actions, "merge", "join memory banks of the same backbone")
    merge.add_argument("banks", type=Path, nargs="+", help="memory banks to join, .safetensors files")
    set_command(merge, _merge, takes_overrides=False)

    for action in (build, extend, merge):
        action.add_argument("--out", type=Path, required=True, help="memory bank to write, a .safetensors file")
    for action, size in ((build, f"{IMAGE_SIZE}"), (extend, f"that of the bank, or {IMAGE_SIZE} if it is unknown")):
        _add_encoder_options(action, default_size=size)

    show = _add_action(actions, "show", "print where the entries of a memory bank come from, as JSON")
    show.add_argument("bank", type=Path, help="memory bank, a .safetensors file")
    set_command(show, _show, takes_overrides=False)


def _add_action(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser


def _add_encoder_options(action: argparse.ArgumentParser, *, default_size: str) -> None:
    action.add_argument(
        "--backbone",
        default="embedded",
        help="image encoder: embedded (included), openai (the encoder of the paper, downloaded), MODEL:TAG of "
        "open_clip, or a weights file (default: %(default)s)",
    )
    action.add_argument(
        "--clip#model",
        dest="model",
        metavar="NAME",
        help="open_clip model of the weights file, such as ViT-B-16; required for a file that does not state it "
        "(default: the one that the file or a JSON file beside it states)",
    )
    action.add_argument(
        "--image_size",
        type=int,
        help="side length in pixels that images are resized to, a multiple of the patch size "
        f"(default: {default_size})",
    )
    action.add_argument(
        "--batch_size", type=int, default=4, help="number of images encoded together (default: %(default)s)"
    )
    action.add_argument(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        help="number of pixels above which an image is refused (default: %(default)s)",
    )
    action.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda:0 (default: %(default)s)")
    action.add_argument(
        "--precision",
        default="fp32",
        help="number format of the encoder's matrix products: fp32, bf16 or fp16 (default: %(default)s)",
    )


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
    return mrad_med.load_clip(options.backbone, model=options.model, precision=options.precision, device=options.device)


def _labeled_loader(options: argparse.Namespace, clip: mrad_med.CLIP, image_size: int) -> mrad_med.CaseLoader:
    view = mrad_med.ImageView(image_size=options.image_size or image_size, max_pixels=options.max_pixels)
    steps = mrad_med.build_preprocessing(clip.card, view, with_mask=True)
    cases = mrad_med.load_labeled_folder(options.folder)
    return mrad_med.CaseLoader(mrad_med.CaseDataset(cases, steps), batch_size=options.batch_size)


def _save(bank: mrad_med.MemoryBank, path: Path) -> int:
    bank.save(path)
    say(f"{path}: {bank}")
    return ALL_WELL
