"""Values of a bundle's config that are given on the command line."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["TAKE_OVER", "VALUES_AS_OPTIONS", "read_overrides", "set_command"]

# Values of a config that are code, and values that name files and folders.
_CODE = ("imports", "initialize", "run", "finalize")
_PATHS = (
    *("bundle_root", "dataset_dir", "output_dir", "cache_dir", "ckpt_dir"),
    *("backbone", "memory_bank", "checkpoint", "clip#source", "bank#path"),
)
_WORDS_OF_JSON = {"true": True, "false": False, "null": None}

# Help texts that several commands share.
TAKE_OVER = (
    "write to a folder that a process on another host has locked. Use it only if that process has ended "
    "(default: refuse the folder)"
)
VALUES_AS_OPTIONS = (
    "Every value of the bundle's config (its configs/*.json) can be given as an option, "
    "for example --device cuda:0 or --image_size 518 (pixels). A value below another one is given with #, "
    "for example --clip#model ViT-B-16 (open_clip model of the weights file given as --backbone)."
)


def set_command(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int], *, takes_overrides: bool
) -> None:
    """Set the function that a parser runs.

    Args:
        parser: parser of the command's options.
        command: function that is called with the parsed options and returns the exit status.
        takes_overrides: whether options unknown to the parser set values of a bundle's config.
    """
    parser.set_defaults(command=command, takes_overrides=takes_overrides, program=parser.prog)


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``--name value`` and ``--name=value`` pairs by name.

    A value is a Python literal, or a text. Nothing in it is executed.

    Raises:
        ValueError: a word does not begin with ``--``, a name has no value, or the name decides what code is run.
    """
    pairs: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        name, has_value, value = remaining.pop(0).partition("=")
        if not name.startswith("--") or not (has_value or remaining):
            raise ValueError(f"cannot understand {name!r}; write config values as --name value")
        _check_name(name[2:])
        pairs[name[2:]] = _value(name[2:], value if has_value else remaining.pop(0))
    return pairs


def _check_name(name: str) -> None:
    """Raise if a name is one that decides what code a bundle runs. Parts of a name are separated by # or ::."""
    first, *others = re.split("::|#", name)
    if first in _CODE or any(re.fullmatch(r"_\w*_|[+~].*", part) for part in (first, *others)):
        raise ValueError(f"--{name} is not an option, because it decides what code is run: edit a copy of the bundle")


def _value(name: str, word: str) -> Any:
    """Return the value that a word means. A path is a text, even if its name is a number."""
    try:
        value = _WORDS_OF_JSON[word] if word in _WORDS_OF_JSON else ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word
    return word if name in _PATHS and value is not None else value
