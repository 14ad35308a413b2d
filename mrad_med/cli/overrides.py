"""Values of a bundle's config that are given on the command line."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["TAKE_OVER", "VALUES_AS_OPTIONS", "read_overrides", "set_command"]

# Help texts that several commands share.
TAKE_OVER = (
    "write to a folder that a process on another host has locked. Use it only if that process has ended "
    "(default: refuse the folder)"
)
VALUES_AS_OPTIONS = (
    "Every value of the bundle's config (its configs/*.json) can be given as an option, "
    "for example --device cuda:0 or --image_size 518 (pixels)."
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
    """Return the values of ``--name value`` and ``--name=value`` pairs by name; Python literals are evaluated.

    Raises:
        ValueError: a word does not begin with ``--``, or a name has no value.
    """
    pairs: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        name, has_value, value = remaining.pop(0).partition("=")
        if not name.startswith("--") or not (has_value or remaining):
            raise ValueError(f"cannot understand {name!r}; write config values as --name value")
        pairs[name[2:]] = _literal(value if has_value else remaining.pop(0))
    return pairs


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
