"""Ignite handlers that turn the output of MONAI evaluators into results."""

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
from mrad_med.transforms.content import LIKE_MASK, MOST_LABELS
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["ResultCollector", "ResultSaver", "run_evaluator"]

logger = logging.getLogger(__name__)


class ResultCollector:
    """Call a function with the result of each case of an evaluator, batch by batch.

    The source of a case is taken from the datalist of a `CaseLoader`. With another loader it is taken from the metadata
    of the image. At the end, a warning names images that look like masks (`CheckValues`).

    Args:
        receive: function that is called with each `CaseResult`.
        view: how images are shown (window, plane); `ImageView()` if None.
    """

    def __init__(self, receive: Callable[[CaseResult], None], view: ImageView | None = None) -> None:
        self.receive = receive
        self.view = view
        self._known: Mapping[str, Mapping[Any, Any]] = {}
        self._like_masks: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register for the start of the engine, for its iterations, and for its end."""
        engine.add_event_handler(Events.STARTED, self._look_up)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._warn)

    def _look_up(self, engine: Engine) -> None:
        self._known = getattr(engine.state.dataloader, "cases", {})
        self._like_masks = []

    def _warn(self, _: Engine) -> None:
        if self._like_masks:
            others = f" and {len(self._like_masks) - 1} more" if len(self._like_masks) > 1 else ""
            logger.warning(
                "%s%s: at most %d distinct values, as in a mask; ignore the results if these are labels",
                self._like_masks[0],
                others,
                MOST_LABELS,
            )

    def __call__(self, engine: Engine) -> None:
        """Call ``receive`` with each result of one batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            meta = item[AnomalyKeys.IMAGE].meta
            if meta.get(LIKE_MASK, False):
                self._like_masks.append(item[AnomalyKeys.CASE_ID])
            path = meta.get(ImageMetaKey.FILENAME_OR_OBJ)
            read = {AnomalyKeys.CASE_ID: item[AnomalyKeys.CASE_ID], AnomalyKeys.IMAGE: path}
            self.receive(CaseResult.from_output(self._known.get(item[AnomalyKeys.CASE_ID], read), output, self.view))


class ResultSaver:
    """Write each result of an evaluator when it is ready, and the tables at the end.

    Args:
        writer: writer of the results.
        failures: cases of the loader without a score (`CaseLoader.failures`); the list is read at the end.
    """

    def __init__(self, writer: ResultWriter, failures: Sequence[FailedCase] = ()) -> None:
        self.writer = writer
        self.failures = failures

    def attach(self, engine: Engine) -> None:
        """Register for the iterations of the engine and for its end."""
        ResultCollector(self.writer.write, self.writer.view).attach(engine)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, _: Engine) -> None:
        """Write the tables."""
        self.writer.finish(self.failures)


def run_evaluator(evaluator: Evaluator, writer: ResultWriter) -> None:
    """Run an evaluator, and write the tables even if it is stopped.

    The evaluator is not run if no case is left. Cases whose files change while they are scored are scored again once.

    Args:
        evaluator: evaluator whose handlers write the results (`ResultSaver`).
        writer: writer of the results.

    Raises:
        BaseException: the exception that stopped the evaluator. The tables then have the cases scored so far.
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
        close_frames()  # scored videos can then be moved or deleted


def _repeat(evaluator: Evaluator, writer: ResultWriter) -> None:
    """Score cases again whose files changed, and store the failures of both passes in the loader."""
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
