"""The `mrad-med` command: a thin layer over the package, one file for each command.

Nothing here imports torch or MONAI before a command needs them. This keeps ``--help`` fast.
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

    The status is 0 if everything succeeded, 1 if some cases failed or standard output could not be written, and 2 if
    nothing was done. It is 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP; files that are already written are
    complete. The command continues if the reader of its output closes the pipe.

    Args:
        arguments: command line without the name of the program; None uses the arguments of this process.
    """
    with sturdy_streams() as problems, stopping_in_order() as signals:
        status = _run(arguments, signals)
    for problem in problems:
        with suppress(OSError):
            say(f"mrad-med: standard output cannot be written ({problem}); results are not affected", to_error=True)
        status = status or SOME_FAILED
    return status


def _run(arguments: Sequence[str] | None, signals: Sequence[int]) -> int:
    """Return the exit status of the command; report any error in one line on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options, words = _parser().parse_known_args(arguments)
    try:
        options.overrides = read_overrides(words)
        if words and not options.takes_overrides:
            raise ValueError(f"unknown arguments: {' '.join(words)}; see {options.program} --help")
        status: int = options.command(options)
    except FailedCasesError as error:
        say(f"mrad-med: {error}", to_error=True)
        return SOME_FAILED
    except KeyboardInterrupt:
        return _stopped(signals)
    except Exception as error:
        if signals:  # the signal also ended a worker process, whose end was noticed first
            return _stopped(signals)
        logger.debug("", exc_info=True)
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        known = message and isinstance(error, (ValueError, OSError, KeyError))
        say(f"mrad-med: {message if known else f'{type(error).__name__}: {message}'}", to_error=True)
        return NOTHING_DONE
    return status


def _stopped(signals: Sequence[int]) -> int:
    say("mrad-med: stopped; files that are already written are complete", to_error=True)
    return SIGNALED + signals[0] if signals else STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrad-med",
        description="Zero-shot anomaly detection for medical images: images are scored without labels and without "
        "training on them. A bundle is a folder with a model and its configs. The bundles mrad_tf, mrad_ft and "
        "mrad_clip are included.",
        epilog="detect, run, train, evaluate, benchmark and export accept every value of the bundle's config as an "
        "option, for example --device cuda:0 or --image_size 518 (pixels).",
    )
    parser.add_argument("--version", action="version", version=f"mrad-med {mrad_med.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser
