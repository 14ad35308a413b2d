"""Values of a bundle's config that are given on the command line."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["read_overrides", "set_command"]


def set_command(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int], *, takes_overrides: bool
) -> None:
    """Let a parser run a command.

    Args:
        parser: the parser of the command's options.
        command: called with the options; returns the exit status.
        takes_overrides: whether options that the parser does not know are values of a bundle's config.
    """
    parser.set_defaults(command=command, takes_overrides=takes_overrides, program=parser.prog)


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return ``--name value`` and ``--name=value`` pairs; a value that is a Python literal is read as one.

    Raises:
        ValueError: a word is not the name of a value, or a name has no value.
    """
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
