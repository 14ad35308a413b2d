"""Evaluation of networks on a labeled set: images are encoded once, and an interrupted run can be resumed."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose

from mrad_med.data.catalog import DATASETS, PUBLISHED_MEANS
from mrad_med.data.duplicates import find_duplicates
from mrad_med.data.loader import raise_for_failures
from mrad_med.data.privacy import hide_labeled
from mrad_med.distributed import gather_parts, rank_and_world
from mrad_med.errors import OutputError
from mrad_med.evaluation.measurement import SetMeasurement, undefined_metrics
from mrad_med.evaluation.records import CaseRecord, MapMaker, RecordStore, unpack_mask, with_packed_mask
from mrad_med.evaluation.scoring import score_cases
from mrad_med.evaluation.summary import as_json, describe_command, write_summary
from mrad_med.files import atomic_path, prepare_output
from mrad_med.metrics.intervals_bootstrap import RESAMPLES
from mrad_med.networks.inferers import AnomalyInferer
from mrad_med.networks.mrad import MRAD
from mrad_med.networks.provenance import fingerprint, package_versions
from mrad_med.networks.sliding_window import SlidingWindowAnomalyInferer
from mrad_med.store import FolderLock
from mrad_med.transforms.preprocessing import ImageView, build_preprocessing
from mrad_med.types import AnomalyKeys, BackboneCard, FailedCase, ImageFeatures, check_threshold

__all__ = ["Evaluation", "evaluate_together"]

logger = logging.getLogger(__name__)

_AHEAD = 32  # cases that may wait for their measurement: records are read faster than they are measured

Case = Mapping[str, Any]


class Evaluation:
    """Evaluation of one network on one set; use `run`, or `evaluate_together` for networks that share an encoder.

    The output folder gets these files:

    - ``cases.csv``: a row per case;
    - ``metrics.json``: counts, metrics, intervals, hashes and the command;
    - ``metrics.md``: a table, with published numbers of the same variant where the catalog has them;
    - ``records/``: the network's output for each case, from which an interrupted evaluation resumes. A record is reused
      while network, preprocessing, package versions and files stay the same;
    - ``run.json``: whether the run is complete.

    Only one process at a time may write to a folder; processes of one torch.distributed run count as one.

    Args:
        network: any variant of MRAD.
        cases: cases from `load_datalist`.
        card: card of the backbone.
        output_dir: output folder; created if absent.
        provenance: cards, hashes and configuration of the network (`describe_run`), written to ``metrics.json``.
        inferer: source of the weights of image and map in the score; nothing else of it is used, because images are
            scored whole.
        view: values of the preprocessing; `ImageView` with its defaults if None.
        preprocessing: transforms from a case to the network's input and mask; those of the view if None.
        file_size: whether to compare maps with masks at the size of the files. False compares at the network's input
            size, as in the literature.
        batch_size: number of images that are encoded together.
        num_workers: number of processes that read images ahead; 0 reads in this process.
        dataset_name: name of the set in the catalog, for its published numbers; any other name is only recorded. The
            numbers are those of the variant in ``provenance["settings"]["variant"]``.
        dice_threshold: anomaly value at or above which a pixel counts for Dice and IoU; None leaves both out.
        resamples: number of bootstrap draws for the intervals; 0 leaves all intervals out.
        seed: seed of the draws.
        progress: whether to show a progress bar.
        take_over: whether to write to the folder although a process of another host has locked it.
        keep_identifiers: whether cases keep their names even if an image or mask is DICOM. If False, names of cases,
            classes and patients are then codes (`hide_labeled`), and the recorded command has no path.

    Attributes:
        origins: files that the codes stand for; empty if names are kept. See `mrad_med.data.write_key`.
        summary: content of ``metrics.json`` after a run; empty before.
        failures: cases that could not be scored.
        nothing_to_score: cases in which all pixels have one value; metrics leave them out.
        shared: values that must be equal for evaluations that run together.

    Raises:
        ValueError: there are no cases, two cases have the same case id, ``dice_threshold`` is not in [0, 1], or an
            argument does not fit the backbone or the masks.
        OutputError: the output folder cannot be written to.
    """

    def __init__(
        self,
        network: MRAD,
        cases: Sequence[Case],
        *,
        card: BackboneCard,
        output_dir: str | os.PathLike[str],
        provenance: Mapping[str, Any],
        view: ImageView | None = None,
        preprocessing: Compose | None = None,
        inferer: AnomalyInferer | None = None,
        file_size: bool = False,
        batch_size: int = 4,
        num_workers: int = 0,
        dataset_name: str = "",
        dice_threshold: float | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
        progress: bool = True,
        take_over: bool = False,
        keep_identifiers: bool = False,
    ) -> None:
        self.take_over = take_over
        check_threshold(dice_threshold, name="dice_threshold")
        if not cases:
            raise ValueError("there are no cases to evaluate")
        if len({case[AnomalyKeys.CASE_ID] for case in cases}) < len(cases):
            raise ValueError("two cases have the same case_id: give each its own")
        self.network = network
        self.cases, self.origins = ([dict(case) for case in cases], []) if keep_identifiers else hide_labeled(cases)
        self.output_dir = prepare_output(output_dir)
        self.provenance = dict(provenance)
        view = view or ImageView()
        steps = preprocessing or build_preprocessing(card, view, with_mask=True, resize_mask=not file_size)
        self.preprocessing = Compose([steps, with_packed_mask])
        self.batch_size, self.num_workers, self.progress = batch_size, num_workers, progress
        self.dataset_name, self.resamples, self.seed = dataset_name, resamples, seed
        self.compared_at = "size of the files" if file_size else f"{view.image_size} x {view.image_size}"
        self.dice_threshold = dice_threshold
        inferer = inferer or AnomalyInferer()
        if isinstance(getattr(inferer, "slice_inferer", inferer), SlidingWindowAnomalyInferer):
            raise ValueError("images are evaluated whole: do not use a sliding inferer or the profile sliding")
        size = (view.image_size, view.image_size)
        self.make_map = MapMaker(size, network.sigma, inferer.image_weight, inferer.top_fraction)
        seen = fingerprint(steps)
        self.shared = (network.image_encoder, self.cases, card, seen, file_size)
        self._store = RecordStore(
            self.output_dir / "records",
            {
                "backbone": card.sha256,
                "precision": network.image_encoder.precision,
                "head": fingerprint(network.get_submodule("head")),
                "preprocessing": seen,
                "file_size": file_size,
            },
        )
        self.summary: dict[str, Any] = {}
        self.failures: list[FailedCase] = []
        self.nothing_to_score: list[FailedCase] = []
        self._paths: dict[str, Path] = {}
        self._started = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Score the cases without a record, compute and write the metrics, and return the content of ``metrics.json``.

        Under ``torchrun`` every process scores a share. All return the same summary, and the first writes it.

        Raises:
            FailedCasesError: some cases failed; all others are measured and written. Only the first process raises it.
            OutputError: the output cannot be written.
        """
        evaluate_together([self])
        return self.summary

    def open(self, contents: Mapping[str, str]) -> None:
        """Start with cases; ``contents`` maps their names to the keys of `contents_of`."""
        self._paths = {name: self._store.path(content) for name, content in contents.items()}
        self.failures, self.nothing_to_score = [], []
        self._store.report_outdated()

    def replace(self, contents: Mapping[str, str]) -> None:
        """Replace the content keys of cases whose files changed."""
        self._paths |= {name: self._store.path(content) for name, content in contents.items()}

    def kept(self, case_id: str) -> CaseRecord | None:
        """Return the stored record of a case, or None."""
        return self._store.load(self._paths[case_id])

    def fail(self, failures: Sequence[FailedCase]) -> None:
        """Leave out cases that failed or have nothing to score."""
        self.failures += [item for item in failures if item.is_failure]
        self.nothing_to_score += [item for item in failures if not item.is_failure]
        for failure in failures:
            self._paths.pop(failure.case_id, None)

    @torch.no_grad()
    def score(self, features: ImageFeatures, masks: Sequence[bytes]) -> list[CaseRecord]:
        """Return the records of a batch.

        Args:
            features: features of B images.
            masks: B packed masks (`pack_mask`).

        Raises:
            ValueError: the network returns NaN or infinite values.
        """
        patches = self.network.patch_probability(features).reshape(-1, *features.grid_size).cpu()
        images = self.network.image_probability(features).flatten().cpu()
        if not (torch.isfinite(patches).all() and torch.isfinite(images).all()):
            raise ValueError("the network returns NaN: use precision='fp32', or check the weights and the bank")
        return [
            CaseRecord(patch.numpy(), float(image), unpack_mask(mask))
            for patch, image, mask in zip(patches, images, masks, strict=True)
        ]

    def keep(self, case_id: str, record: CaseRecord) -> None:
        """Store the record of a case."""
        self._store.save(self._paths[case_id], record)

    def records(self, cases: Sequence[Case]) -> Iterator[tuple[Case, CaseRecord]]:
        """Yield the cases that did not fail, with their records.

        Raises:
            OSError: a record is missing or damaged.
        """
        for case in cases:
            if case[AnomalyKeys.CASE_ID] in self._paths:
                record = self.kept(case[AnomalyKeys.CASE_ID])
                if record is None:
                    raise OSError(f"the record of {case[AnomalyKeys.CASE_ID]} is missing in the output: run again")
                yield case, record

    def write_record(self, reached: Collection[str], *, is_whole: bool) -> None:
        """Write ``run.json``: whether the run is complete, and which cases were not reached.

        Args:
            reached: names of the cases that this process has measured.
            is_whole: whether the run has ended without an error.

        Raises:
            OutputError: the folder cannot be written to.
        """
        if rank_and_world()[0] > 0:
            return
        names = [case[AnomalyKeys.CASE_ID] for case in self.cases]
        unscored = {item.case_id for item in (*self.failures, *self.nothing_to_score)}
        missing = [] if is_whole else [name for name in names if name not in reached and name not in unscored]
        record = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "complete": is_whole,
            "cases": {
                "total": len(names),
                "failed": len(self.failures),
                "nothing_to_score": len(self.nothing_to_score),
            },
            "not_reached": {"count": len(missing), "cases": missing},
        }
        try:
            with atomic_path(self.output_dir / "run.json") as partial:
                partial.write_text(as_json(record), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write to {self.output_dir} ({error.strerror}); free some space") from error

    def finish(self, measured: SetMeasurement, share: Sequence[Case]) -> None:
        """Merge the measurements of all processes, make the summary, and write it.

        Args:
            measured: measurement of this process.
            share: cases of this process.

        Raises:
            OutputError: the output cannot be written.
        """
        joined = SetMeasurement(self.make_map, threshold=self.dice_threshold)
        for part in gather_parts(measured):
            joined.merge(part)
        joined.refine(lambda: self.records(share))
        measurements = {**joined.summary(), "intervals": self._intervals(joined, share)}
        self.failures = [failure for part in gather_parts(self.failures) for failure in part]
        self.nothing_to_score = [item for part in gather_parts(self.nothing_to_score) for item in part]
        self.summary = self._described(measurements)
        if rank_and_world()[0] == 0:
            write_summary(self.output_dir, self.summary, joined.rows, [*self.nothing_to_score, *self.failures])

    def _intervals(self, joined: SetMeasurement, share: Sequence[Case]) -> dict[str, Any]:
        if self.resamples == 0:
            return {}
        edges = joined.interval_edges()
        counts = {}
        if edges is not None:
            counts = {
                case[AnomalyKeys.CASE_ID]: joined.case_counts(record, edges) for case, record in self.records(share)
            }
        together = {name: values for part in gather_parts(counts) for name, values in part.items()}
        return joined.intervals(together, resamples=self.resamples, seed=self.seed)

    def _described(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        known = DATASETS.get(self.dataset_name.lower().replace("_", "-"))
        variant = str(self.provenance.get("settings", {}).get("variant", ""))
        published = known.published_of(variant) if known else {}
        return {
            "dataset": {
                "name": self.dataset_name,
                "title": known.title if known else self.dataset_name,
                "cases": len(self.cases),
            },
            "compared_at": self.compared_at,
            **summary,
            "published": dict(published),
            "published_mean": dict(PUBLISHED_MEANS.get(variant, {})) if known and not published else {},
            **self.provenance,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 1),
            "processes": rank_and_world()[1],
            "command": describe_command(sys.argv, with_paths=not self.origins),
            "versions": package_versions(),
            "failures": [asdict(failure) for failure in self.failures],
            "nothing_to_score": [asdict(item) for item in self.nothing_to_score],
        }


def evaluate_together(evaluations: Sequence[Evaluation]) -> None:
    """Run evaluations of several networks on the same cases, with each image read and encoded once.

    Each evaluation has its ``summary`` afterwards.

    Args:
        evaluations: evaluations that share encoder, cases and preprocessing, each with its own output folder.

    Raises:
        ValueError: encoder, cases, preprocessing or ``file_size`` differ, or two evaluations share an output folder.
        FailedCasesError: some cases failed; all others are measured and written. Only the first process raises it.
        OutputError: the output cannot be written.
    """
    first = evaluations[0]
    if any(item.shared != first.shared for item in evaluations):
        raise ValueError("evaluations that run together must have the same encoder, cases, preprocessing and file_size")
    if len({item.output_dir.resolve() for item in evaluations}) < len(evaluations):
        raise ValueError("evaluations that run together must have different output folders (output_dir)")
    for level, reason in undefined_metrics(first.cases).items():
        logger.warning("%s metrics will be undefined: %s", level, reason)
    with ExitStack() as folders:
        for item in evaluations:
            folders.enter_context(FolderLock(item.output_dir, take_over=item.take_over))
        reached: set[str] = set()
        try:
            for item in evaluations:
                item.write_record(reached, is_whole=False)  # stays if the process is killed
            _measure(evaluations, reached)
        except BaseException:
            for item in evaluations:
                item.write_record(reached, is_whole=False)
            raise
        for item in evaluations:
            item.write_record(reached, is_whole=True)
    if rank_and_world()[0] == 0:  # the process that wrote the output; an error in another one would end this one too
        raise_for_failures(first.failures, len(first.cases))


def _measure(evaluations: Sequence[Evaluation], reached: set[str]) -> None:
    """Score and measure the share of this process, then finish the evaluations.

    Args:
        evaluations: evaluations that share an encoder.
        reached: set to which the name of each case is added when it is measured.
    """
    first = evaluations[0]
    rank, world = rank_and_world()
    share = first.cases[rank::world]
    copies = find_duplicates([case for case in first.cases if Path(case[AnomalyKeys.IMAGE]).is_file()])
    measured = [SetMeasurement(item.make_map, threshold=item.dice_threshold) for item in evaluations]
    with ThreadPoolExecutor(1) as background:  # measures a batch while the next one is encoded
        jobs: deque[Future[None]] = deque()
        for case, records in score_cases(evaluations, share):
            copy_of = copies.get(case[AnomalyKeys.CASE_ID])
            jobs.append(background.submit(_measure_case, measured, case, records, copy_of, reached))
            while jobs and (jobs[0].done() or len(jobs) > _AHEAD):
                jobs.popleft().result()  # raises an error early and not after all cases
        for job in jobs:
            job.result()
    for item, meter in zip(evaluations, measured, strict=True):
        item.finish(meter, share)


def _measure_case(
    meters: Sequence[SetMeasurement],
    case: Case,
    records: Sequence[CaseRecord],
    copy_of: str | None,
    reached: set[str],
) -> None:
    """Add a case to the measurement of each evaluation, then its name to ``reached``."""
    for meter, record in zip(meters, records, strict=True):
        meter.add(case, record, duplicate_of=copy_of)
    reached.add(case[AnomalyKeys.CASE_ID])
