"""Ignite handlers that join MONAI's evaluators to results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from ignite.engine import Engine, Events
from monai.utils import ImageMetaKey

from mrad_med.results import CaseResult, ResultWriter
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["ResultCollector", "ResultSaver"]

logger = logging.getLogger(__name__)


class ResultCollector:
    """Hand every case of an evaluator to a function, as it comes.

    Args:
        receive: called with each `CaseResult`.
    """

    def __init__(self, receive: Callable[[CaseResult], None]) -> None:
        self.receive = receive

    def attach(self, engine: Engine) -> None:
        """Listen to the engine's iterations."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Pass on the results of one batch."""
        for result in _results(engine):
            self.receive(result)


class ResultSaver:
    """Write the results of an evaluator as they come, and the tables at its end.

    Args:
        writer: where to.
        failures: the failed cases of the loader (`CaseLoader.failures`), read at the end.
    """

    def __init__(self, writer: ResultWriter, failures: Sequence[FailedCase] = ()) -> None:
        self.writer = writer
        self.failures = failures

    def attach(self, engine: Engine) -> None:
        """Listen to the engine's iterations and its end."""
        ResultCollector(self.writer.write).attach(engine)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, _: Engine) -> None:
        """Write the tables."""
        self.writer.finish(self.failures)


def _results(engine: Engine) -> Iterator[CaseResult]:
    """Yield the results of the decollated batch in the engine's state."""
    for case, output in zip(engine.state.batch, engine.state.output, strict=True):
        path = case[AnomalyKeys.IMAGE].meta[ImageMetaKey.FILENAME_OR_OBJ]
        yield CaseResult.from_output({AnomalyKeys.CASE_ID: case[AnomalyKeys.CASE_ID], **output}, path)
