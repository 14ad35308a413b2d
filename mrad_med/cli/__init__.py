"""The `mrad-med` command: a thin layer over the package, one file a command.

Nothing here imports torch or MONAI before a command needs them, so that help is there at once.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from contextlib import suppress

import mrad_med
from mrad_med.cli import bank, benchmark, datasets, detect, evaluate, export, run, train
from mrad_med.cli.console import NOTHING_DONE, SIGNALED, SOME_FAILED, STOPPED, say
from mrad_med.cli.interruptions import stopping_in_order, sturdy_streams
from mrad_med.cli.overrides import read_overrides
from mrad_med.errors import FailedCasesError

__all__ = ["main"]

logger = logging.getLogger(__name__)

_COMMANDS = (detect, run, train, evaluate, benchmark, datasets, export, bank)  # in the order of the help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: all went well. 1: some cases failed, or the output could not be shown. 2: nothing was done. 130, 143, 129:
    stopped by Ctrl-C, SIGTERM, SIGHUP; what is written is whole. A reader of the output that goes away stops nothing.

    Args:
        arguments: words of the command line without the name of the program; None takes those of this process.
    """
    with sturdy_streams() as problems, stopping_in_order() as signals:
        status = _run(arguments, signals)
    for problem in problems:
        with suppress(OSError):
            say(f"mrad-med: standard output cannot be written ({problem}); results are not affected", to_error=True)
        status = status or SOME_FAILED
    return status


def _run(arguments: Sequence[str] | None, signals: Sequence[int]) -> int:
    """Return the exit status of the command; a person at a terminal gets one line, whatever goes wrong."""
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
        return _stopped(signals)
    except Exception as error:
        if signals:  # the signal ended a worker too, and its end was noticed first
            return _stopped(signals)
        logger.debug("", exc_info=True)
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        known = message and isinstance(error, (ValueError, OSError, KeyError))
        say(f"mrad-med: {message if known else f'{type(error).__name__}: {message}'}", to_error=True)
        return NOTHING_DONE
    return status


def _stopped(signals: Sequence[int]) -> int:
    say("mrad-med: stopped; what is already written is whole", to_error=True)
    return SIGNALED + signals[0] if signals else STOPPED


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
