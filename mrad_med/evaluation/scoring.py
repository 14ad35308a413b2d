"""Scoring of the cases of an evaluation: images are encoded once for all networks, and earlier records are reused."""

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

_CHANGED = "its image or mask changed twice while it was read; wait until nothing writes to it, and run again"

Case = Mapping[str, Any]


class Scorer(Protocol):
    """Interface of an `Evaluation`: scores cases and stores their records."""

    network: MRAD
    preprocessing: Compose
    batch_size: int
    num_workers: int
    progress: bool

    def open(self, contents: Mapping[str, str]) -> None:
        """Start with cases; ``contents`` maps their names to the keys of `contents_of`."""

    def replace(self, contents: Mapping[str, str]) -> None:
        """Replace the content keys of cases whose files changed."""

    def kept(self, case_id: str) -> CaseRecord | None:
        """Return the stored record of a case, or None."""

    def fail(self, failures: Sequence[FailedCase]) -> None:
        """Leave out cases that failed or have nothing to score."""

    def score(self, features: ImageFeatures, masks: Sequence[bytes]) -> list[CaseRecord]:
        """Return the records of a batch of features and packed masks."""

    def keep(self, case_id: str, record: CaseRecord) -> None:
        """Store the record of a case."""


def score_cases(evaluations: Sequence[Scorer], share: Sequence[Case]) -> Iterator[tuple[Case, list[CaseRecord]]]:
    """Yield each case with its record of every evaluation: first the cases with stored records, then new ones.

    Cases that fail or have nothing to score are not yielded. They are passed to `Scorer.fail`. A case whose files
    change while they are read is scored once more.

    Args:
        evaluations: evaluations that share an encoder.
        share: cases of this process.
    """
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
    """Score cases, store their records, and yield each name with its records of every evaluation.

    Args:
        evaluations: evaluations that share an encoder.
        todo: cases by name.
        contents: content key of each case before it is read (`contents_of`).
        failures: list to which failed cases are added.
        changed: dictionary to which cases are added whose files changed meanwhile; their records are not stored.
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
        scored = [item.score(features, batch[AnomalyKeys.MASK]) for item in evaluations]
        now, _ = contents_of(todo[name] for name in batch[AnomalyKeys.CASE_ID])
        for name, *records in zip(batch[AnomalyKeys.CASE_ID], *scored, strict=True):
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
