"""Cases of an evaluation through the encoder, once for all networks; records of earlier runs are used again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from mrad_med.data.loader import CaseDataset, CaseLoader
from mrad_med.distributed import rank_and_world
from mrad_med.evaluation.records import CaseRecord
from mrad_med.networks.mrad import MRAD
from mrad_med.store import contents_of
from mrad_med.types import AnomalyKeys, FailedCase, ImageFeatures

__all__ = ["Scorer", "score_cases"]

logger = logging.getLogger(__name__)

_CHANGED = "its image or mask changed while it was read, twice; wait until nothing writes to it, and run again"

Case = Mapping[str, Any]


class Scorer(Protocol):
    """What scores cases and keeps their records: an `Evaluation`."""

    network: MRAD
    preprocessing: Compose
    batch_size: int
    num_workers: int
    progress: bool

    def open(self, contents: Mapping[str, str]) -> None:
        """Start with the cases of these names, whose `contents_of` are known."""

    def replace(self, contents: Mapping[str, str]) -> None:
        """Replace what is known of the contents of cases."""

    def kept(self, case_id: str) -> CaseRecord | None:
        """Return the record of a case, None where there is none yet."""

    def fail(self, failures: Sequence[FailedCase]) -> None:
        """Leave cases out."""

    def score(self, features: ImageFeatures, masks: Sequence[bytes]) -> list[CaseRecord]:
        """Return the records of a batch."""

    def keep(self, case_id: str, record: CaseRecord) -> None:
        """Write the record of a case."""


def score_cases(evaluations: Sequence[Scorer], share: Sequence[Case]) -> Iterator[tuple[Case, list[CaseRecord]]]:
    """Yield each case with its record of every evaluation: those that were kept first, then those scored now."""
    contents, unreadable = contents_of(share)
    for item in evaluations:
        item.open(contents)
        item.fail(unreadable)
    todo = {}
    for case in share:
        name = case[AnomalyKeys.CASE_ID]
        if name in contents:
            kept = [record for item in evaluations if (record := item.kept(name)) is not None]
            if len(kept) == len(evaluations):
                yield case, kept
            else:
                todo[name] = case
    logger.info("%d of %d case(s) need to be scored", len(todo), len(share))
    failures: list[FailedCase] = []
    changed: dict[str, Case] = {}
    for name, records in _scored_now(evaluations, todo, contents, failures, changed):
        yield todo[name], records
    latest, unreadable = contents_of(changed.values())
    for item in evaluations:
        item.replace(latest)
    again = {name: changed[name] for name in latest}
    twice: dict[str, Case] = {}
    for name, records in _scored_now(evaluations, again, latest, failures, twice):
        yield todo[name], records
    failures += [*unreadable, *(FailedCase(name, _CHANGED) for name in twice)]
    for item in evaluations:
        item.fail(failures)


def _scored_now(
    evaluations: Sequence[Scorer],
    todo: Mapping[str, Case],
    contents: Mapping[str, str],
    failures: list[FailedCase],
    changed: dict[str, Case],
) -> Iterator[tuple[str, list[CaseRecord]]]:
    """Yield the names of cases with their records of every evaluation, which are kept.

    Args:
        evaluations: evaluations that share an encoder.
        todo: the cases by their names.
        contents: what each was before it was read (`contents_of`).
        failures: takes the cases that could not be scored.
        changed: takes the cases whose files changed meanwhile, of which nothing is kept.
    """
    first = evaluations[0]
    dataset = CaseDataset([{"mask": None, **case} for case in todo.values()], first.preprocessing)
    progress = first.progress and rank_and_world()[0] == 0
    loader = CaseLoader(dataset, batch_size=first.batch_size, num_workers=first.num_workers, progress=progress)
    device = next(first.network.parameters()).device
    for batch in loader if todo else ():
        images = convert_to_tensor(batch[AnomalyKeys.IMAGE], track_meta=False).to(device)
        with torch.no_grad():
            features = first.network.encode(images)
        answers = [item.score(features, batch[AnomalyKeys.MASK]) for item in evaluations]
        now, _ = contents_of(todo[name] for name in batch[AnomalyKeys.CASE_ID])
        for name, *records in zip(batch[AnomalyKeys.CASE_ID], *answers, strict=True):
            if now.get(name) != contents[name]:
                changed[name] = todo[name]
                continue
            for item, record in zip(evaluations, records, strict=True):
                item.keep(name, record)
            yield name, list(records)
    failed = {failure.case_id: failure for failure in loader.failures}
    now, _ = contents_of(todo[name] for name in failed)
    changed |= {name: todo[name] for name in failed if now.get(name) != contents[name]}
    failures += [failure for name, failure in failed.items() if name not in changed]
