"""Interruptions of a run: signals are handled like Ctrl-C, and standard streams may be closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

__all__ = ["Stopped", "stopping_in_order", "sturdy_streams"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_FIRST_AFTER_STREAMS = 3  # descriptors 0, 1 and 2 are the standard streams


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks this process to end; it is handled like Ctrl-C."""


@contextmanager
def stopping_in_order() -> Iterator[list[int]]:
    """Raise `Stopped` in the main thread on the first SIGTERM or SIGHUP; later ones are ignored while the run ends.

    Yields a list that receives the number of the signal. Does nothing outside the main thread. A signal that was
    ignored before, for example by nohup, stays ignored. Forked processes still end at once.
    """
    received: list[int] = []
    process = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not received:
            received.append(number)
            raise Stopped(f"stopped by {signal.Signals(number).name}")

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, stop)
        yield received
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


class _SturdyStream:
    """A text stream that drops text instead of failing when it cannot be written, so the run continues.

    Attributes:
        problem: error message of the system if writing failed; empty if the reader closed the pipe.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.problem = ""

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write the buffered text."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.problem = self.problem or error.strerror or type(error).__name__
        with suppress(OSError, ValueError):  # discard buffered text, or Python reports an error when it exits
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def sturdy_streams() -> Iterator[list[str]]:
    """Keep a closed or full standard stream from ending the run; yield a list of the problems of standard output.

    Streams that are closed at the start are connected to the null device. Otherwise a result file could receive their
    file descriptor and the text written to them.
    """
    while True:  # open() returns the lowest free descriptor, which may belong to a closed stream
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor >= _FIRST_AFTER_STREAMS:
            os.close(descriptor)
            break
    problems: list[str] = []
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        output, errors = (_SturdyStream(stream or nowhere) for stream in before)
        sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", errors)
        try:
            yield problems
        finally:
            for stream in (output, errors):
                stream.flush()
            if output.problem:
                problems.append(output.problem)
            sys.stdout, sys.stderr = before
