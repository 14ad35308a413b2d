"""The `mrad-med` command: a thin layer over the package, one file a command.

Nothing here imports torch or MONAI before a command needs them, so that help is there at once.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import mrad_med
from mrad_med.cli import bank, benchmark, datasets, detect, evaluate, export, run, train
from mrad_med.cli.console import NOTHING_DONE, SOME_FAILED, STOPPED, say
from mrad_med.cli.overrides import read_overrides
from mrad_med.errors import FailedCasesError

__all__ = ["main"]

logger = logging.getLogger(__name__)

_COMMANDS = (detect, run, train, evaluate, benchmark, datasets, export, bank)  # in the order of the help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 well, 1 some cases failed, 2 nothing done, 130 stopped.

    Args:
        arguments: words of the command line without the name of the program; None takes those of this process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options, words = _parser().parse_known_args(arguments)
    try:
        options.overrides = read_overrides(words)
        if words and not options.takes_overrides:
            raise ValueError(f"unknown: {' '.join(words)}; see {options.program} --help")
        status: int = options.command(options)
    except FailedCasesError as error:
        say(f"mrad-med: {error}", to_error=True)
        return SOME_FAILED
    except KeyboardInterrupt:
        say("mrad-med: stopped; what is already written is whole", to_error=True)
        return STOPPED
    except Exception as error:  # whatever goes wrong, a person at a terminal gets one line
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
    for command in _COMMANDS:
        command.add_to(commands)
    return parser
