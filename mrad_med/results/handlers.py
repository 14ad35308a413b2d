"""Ignite handlers that join MONAI's evaluators to results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.utils import ImageMetaKey

from mrad_med.data.loader import CaseLoader
from mrad_med.io.frames import close_frames
from mrad_med.results.case_result import CaseResult
from mrad_med.results.writer import ResultWriter
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["ResultCollector", "ResultSaver", "run_evaluator"]

logger = logging.getLogger(__name__)


class ResultCollector:
    """Hand every case of an evaluator to a function, as it comes.

    What a case was read from, the datalist of a `CaseLoader` tells, or of any other loader the metadata of its image.

    Args:
        receive: called with each `CaseResult`.
        view: how images are seen; `ImageView` with its defaults if None.
    """

    def __init__(self, receive: Callable[[CaseResult], None], view: ImageView | None = None) -> None:
        self.receive = receive
        self.view = view
        self._known: Mapping[str, Mapping[Any, Any]] = {}

    def attach(self, engine: Engine) -> None:
        """Listen to the engine's start and its iterations."""
        engine.add_event_handler(Events.STARTED, self._look_up)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _look_up(self, engine: Engine) -> None:
        self._known = getattr(engine.state.dataloader, "cases", {})

    def __call__(self, engine: Engine) -> None:
        """Pass on the results of one batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            path = item[AnomalyKeys.IMAGE].meta.get(ImageMetaKey.FILENAME_OR_OBJ)
            read = {AnomalyKeys.CASE_ID: item[AnomalyKeys.CASE_ID], AnomalyKeys.IMAGE: path}
            self.receive(CaseResult.from_output(self._known.get(item[AnomalyKeys.CASE_ID], read), output, self.view))


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
        ResultCollector(self.writer.write, self.writer.view).attach(engine)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, _: Engine) -> None:
        """Write the tables."""
        self.writer.finish(self.failures)


def run_evaluator(evaluator: Evaluator, writer: ResultWriter) -> None:
    """Run an evaluator to its end, and leave a whole folder of results also where it is stopped.

    Args:
        evaluator: its handlers write the results (`ResultSaver`). With no case left to score it is not run. Cases whose
            files change while they are scored are scored once more.
        writer: the writer of the results.

    Raises:
        BaseException: whatever stopped the evaluator; the cases that were scored before are in the tables.
    """
    try:
        if len(evaluator.data_loader.dataset):
            evaluator.run()
            _repeat(evaluator, writer)
        else:
            writer.finish()
    except BaseException:
        writer.finish(is_whole=False)
        raise
    finally:
        close_frames()  # a video that was scored can now be moved or deleted


def _repeat(evaluator: Evaluator, writer: ResultWriter) -> None:
    """Score the cases once more whose files changed, and leave the failures of both times in the loader."""
    loader = evaluator.data_loader
    if not isinstance(loader, CaseLoader):
        return
    changed = writer.changed(loader.failures)
    if changed:
        cases, loader.dataset.data = loader.dataset.data, changed
        evaluator.run()
        loader.dataset.data = cases
    names = {case[AnomalyKeys.CASE_ID] for case in loader.dataset.data}
    loader.failures[:] = [failure for failure in writer.failures if failure.case_id in names]
