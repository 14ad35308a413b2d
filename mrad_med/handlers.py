"""Ignite handlers that join MONAI's evaluators to results and metrics."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import ImageMetaKey, convert_to_tensor

from mrad_med.files import atomic_path
from mrad_med.metrics import PixelMetrics, image_metrics
from mrad_med.results import CaseResult, OutputError, ResultWriter, prepare_output
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["MetricsSaver", "ResultCollector", "ResultSaver"]

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


class MetricsSaver:
    """Measure an evaluator's maps and scores against masks and labels, and write ``metrics.json`` at its end.

    Maps and masks are compared at the size of the network's input, as the literature does.

    Args:
        output_dir: made if absent.
        provenance: what should be recorded of the run.
        failures: the failed cases of the loader (`CaseLoader.failures`), read at the end.

    Raises:
        OutputError: the folder cannot be written to.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        provenance: Mapping[str, Any] | None = None,
        failures: Sequence[FailedCase] = (),
    ) -> None:
        self.output_dir = prepare_output(output_dir)
        self.provenance = dict(provenance or {})
        self.failures = failures
        self._pixel_metrics = PixelMetrics()
        self._scores: list[float] = []
        self._labels: list[int] = []

    def attach(self, engine: Engine) -> None:
        """Listen to the engine's iterations and its end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self)

    def update(self, engine: Engine) -> None:
        """Take in one decollated batch."""
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            anomaly_map = convert_to_tensor(output[AnomalyKeys.ANOMALY_MAP], track_meta=False)
            mask = convert_to_tensor(case[AnomalyKeys.MASK], track_meta=False)
            if not mask.isnan().any():  # what is anomalous is not known: this case counts at image level only
                self._pixel_metrics.update(anomaly_map[None], mask[None])
            self._scores.append(float(output[AnomalyKeys.ANOMALY_SCORE]))
            self._labels.append(int(case[AnomalyKeys.LABEL]))

    def __call__(self, _: Engine) -> None:
        """Write the metrics; those that are undefined for this set say why instead of a number."""
        scores, labels = torch.tensor(self._scores), torch.tensor(self._labels, dtype=torch.int64)
        record = {
            "images": {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())},
            "pixel": _defined(self._pixel_metrics.compute),
            "image": _defined(lambda: image_metrics(scores, labels)),
            **self.provenance,
            "failures": [asdict(failure) for failure in self.failures],
        }
        try:
            with atomic_path(self.output_dir / "metrics.json") as partial:
                partial.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the metrics to {self.output_dir}: {error}") from error
        logger.info("images %s, pixel %s, image %s", record["images"], record["pixel"], record["image"])


def _defined(compute: Callable[[], dict[str, float]]) -> dict[str, float] | dict[str, str]:
    try:
        return compute()
    except ValueError as error:
        return {"undefined": str(error)}


def _results(engine: Engine) -> Iterator[CaseResult]:
    """Yield the results of the decollated batch in the engine's state."""
    for case, output in zip(engine.state.batch, engine.state.output, strict=True):
        path = case[AnomalyKeys.IMAGE].meta[ImageMetaKey.FILENAME_OR_OBJ]
        yield CaseResult.from_output({AnomalyKeys.CASE_ID: case[AnomalyKeys.CASE_ID], **output}, path)
