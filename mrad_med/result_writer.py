"""Results written as they come: files of each case, tables and a record of the run."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from mrad_med.dicom_sources import burned_in_warning
from mrad_med.files import OutputError, UnfitSourceError, atomic_path
from mrad_med.frames import Frame
from mrad_med.journal import Entry, Journal
from mrad_med.limits import ImageFileError
from mrad_med.outputs import DEFAULT_OUTPUTS, MASK_SUFFIXES, OUTPUTS, Output, OutputSettings, check_outputs, is_dicom
from mrad_med.preprocessing import PictureLoader
from mrad_med.result_tables import (
    SCORE_COLUMNS,
    SLICE_COLUMNS,
    STUDY_COLUMNS,
    score_row,
    slices_of,
    study_rows,
    write_table,
)
from mrad_med.results import CaseResult, package_versions, prepare_output
from mrad_med.types import AnomalyKeys, FailedCase
from mrad_med.video_output import VideoCollector

__all__ = ["ResultWriter", "Results"]

logger = logging.getLogger(__name__)

_PICTURES = ("overlay", "montage", "capture")  # outputs that show the pixels of the source
# Settings that leave the results of a case as they are, or that are recorded by themselves.
_NO_MATTER = ("batch_size", "device", "num_workers", "frames_per_second", "write", "threshold", "keep_identifiers")


class ResultWriter:
    """Write the results of a run as they come; nothing is ever half-written.

    What is written of each case is chosen by name (`OUTPUTS`, and ``"video"`` for the frames of a video). `finish`
    writes ``scores.csv`` (a row per case), ``slices.csv`` (per slice of volumes), ``studies.csv`` (per study) and
    ``run.json``. ``finished.jsonl`` tells a later run what is done.

    Args:
        output_dir: made if absent.
        provenance: what should be recorded of the run: cards, hashes, settings.
        write: names of outputs; by default the map in float32 and an overlay of an image, of a volume a montage too,
            and of a video its overlay video. Outputs that a case cannot have are left out.
        threshold: from which on masks and segmentations mark a pixel.
        pictures: how sources are shown; by default as `build_preprocessing` does.
        keep_identifiers: lets DICOM results name the patient as their source does.
        resume: keep the results of finished cases of an earlier run with the same settings, see `pending`.

    Attributes:
        shortfalls: outputs of scored cases that could not be made, and why.

    Raises:
        OutputError: the folder cannot be written to, or a package is missing.
        ValueError: there is no such output, or a threshold is missing.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        provenance: Mapping[str, Any] | None = None,
        write: Sequence[str] | None = None,
        threshold: float | None = None,
        pictures: PictureLoader | None = None,
        keep_identifiers: bool = False,
        resume: bool = False,
    ) -> None:
        check_outputs(write or (), threshold)
        self.output_dir = prepare_output(output_dir)
        self.provenance = dict(provenance or {})
        self.pictures = pictures or PictureLoader()
        self.shortfalls: list[FailedCase] = []
        self._warned: set[str] = set()
        self._chosen = None if write is None else tuple(write)
        suffix = ".nrrd" if write and "nrrd" in write and "nifti" not in write else ".nii.gz"
        self._settings = OutputSettings(self.output_dir, threshold, self.pictures, keep_identifiers, suffix)
        written = {"write": write, "threshold": threshold, "keep_identifiers": keep_identifiers}
        self._journal = Journal(
            self.output_dir / "finished.jsonl", {**_what_matters(self.provenance), **written}, resume=resume
        )
        self._studies: dict[str, str] = {}  # by the names of all cases, in their order, once they are known
        self._done: dict[str, Entry] = {}
        self._video = VideoCollector()
        self._started = time.time()

    @property
    def rows(self) -> list[dict[str, str]]:
        """Rows of the table of cases that are done, in the order of the cases."""
        return [entry.row for entry in self._entries()]

    def _entries(self) -> list[Entry]:
        order = self._studies or self._done
        return [self._done[case_id] for case_id in order if case_id in self._done]

    def pending(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the cases that are still to be scored; what an earlier run finished goes into the tables as it is.

        The frames of a video are finished together or not at all, for they make one overlay video.
        """
        self._studies = {case[AnomalyKeys.CASE_ID]: case.get(AnomalyKeys.STUDY, "") for case in cases}
        finished = {case[AnomalyKeys.CASE_ID] for case in cases if self._is_finished(case)}
        open_units = {_unit(case) for case in cases if case[AnomalyKeys.CASE_ID] not in finished}
        pending = [case for case in cases if _unit(case) in open_units]
        for case_id in self._studies.keys() - {case[AnomalyKeys.CASE_ID] for case in pending}:
            entry = self._journal.entries[case_id]
            self._done[case_id] = replace(entry, row={**entry.row, "study": self._studies[case_id]})
        return pending

    def _is_finished(self, case: Mapping[str, Any]) -> bool:
        return self._journal.is_finished(case[AnomalyKeys.CASE_ID], case[AnomalyKeys.IMAGE])

    def write(self, result: CaseResult) -> None:
        """Write the outputs of one case.

        Raises:
            OutputError: the disk is full, or the folder went away.
            ValueError: the case name would lead out of the output folder.
        """
        relative = safe_relative_path(result.case_id)
        names = DEFAULT_OUTPUTS[result.kind] if self._chosen is None else self._chosen
        files = {
            name: self._try(name, result.case_id, partial(self._write_output, OUTPUTS[name], result, relative))
            for name in names
            if name != "video" and OUTPUTS[name].suits(result)
        }
        if "video" in names and result.kind == "frame":
            files["video"] = [self._collect(result)]
        if is_dicom(result) and any(files.get(name) for name in _PICTURES):
            self._warn_of_texts(result)
        paths = tuple(path for paths in files.values() for path in paths)
        entry = Entry(self._journal.key(result.source), score_row(result, files), paths, slices_of(result))
        self._done[result.case_id] = entry
        self._try("", result.case_id, lambda: self._journal.add(entry))

    def _write_output(self, output: Output, result: CaseResult, relative: str) -> list[str]:
        path = self.output_dir / output.subfolder / f"{relative}{output.suffix}"
        return [file.relative_to(self.output_dir).as_posix() for file in output.write(result, path, self._settings)]

    def _try(self, name: str, case_id: str, write: Callable[[], Any]) -> Any:
        """Return what a function that writes an output returns; one that cannot be made costs only itself.

        Raises:
            OutputError: the disk is full, or the folder went away.
        """
        try:
            return write()
        except UnfitSourceError as error:
            reason = str(error)
        except OSError as error:
            raise OutputError(f"cannot write the results of {case_id} to {self.output_dir}: {error}") from error
        except Exception as error:  # of a library that draws or encodes; its message may quote the source
            reason = str(error) if isinstance(error, ImageFileError) else f"unforeseen {type(error).__name__}"
        logger.warning("%s: no %s could be written: %s", case_id, name, reason)
        self.shortfalls.append(FailedCase(case_id, f"no {name} could be written: {reason}"))
        return []

    def _collect(self, result: CaseResult) -> str:
        """Keep the map of a frame, and return the video it goes into."""
        if self._video.study != result.study:
            self._finish_video()
        self._video.add(result)
        return _video_file(result.study)

    def _finish_video(self) -> None:
        study = self._video.study
        if study:
            self._try("video", study, partial(self._video.write, self.output_dir / _video_file(study)))
            self._video = VideoCollector()

    def _warn_of_texts(self, result: CaseResult) -> None:
        warning = burned_in_warning(result.files[0])
        if warning and warning not in self._warned:
            self._warned.add(warning)
            logger.warning("%s (and maybe others): %s", result.case_id, warning)

    def finish(self, failures: Sequence[FailedCase] = ()) -> None:
        """Write the tables and ``run.json``, with the failed cases in both.

        Raises:
            OutputError: the disk is full, or the folder went away.
        """
        self._finish_video()
        rows, failed = self.rows, [{"case_id": f.case_id, "status": "failed", "reason": f.reason} for f in failures]
        slices = [row for entry in self._entries() for row in entry.slices]
        record = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self._started, 3),
            "versions": package_versions(),
            **self.provenance,
            "cases": {"total": len(rows) + len(failed), "ok": len(rows), "failed": len(failed)},
            "failures": [asdict(failure) for failure in failures],
            "not_written": [asdict(shortfall) for shortfall in self.shortfalls],
        }
        try:
            for failure in failures:  # what an earlier run left of a case that fails now would mislead
                self._remove(failure.case_id)
            write_table(self.output_dir / "scores.csv", SCORE_COLUMNS, [*rows, *failed])
            self._write_or_remove("slices.csv", SLICE_COLUMNS, slices)
            self._write_or_remove("studies.csv", STUDY_COLUMNS, study_rows(rows, failures, self._studies))
            with atomic_path(self.output_dir / "run.json") as path:
                path.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the tables to {self.output_dir}: {error}") from error
        logger.info("%d case(s) written to %s, %d failed", len(rows), self.output_dir, len(failed))

    def _write_or_remove(self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a table that has rows, and leave none of an earlier run that has none now."""
        if rows:
            write_table(self.output_dir / name, columns, rows)
        else:
            (self.output_dir / name).unlink(missing_ok=True)

    def _remove(self, case_id: str) -> None:
        relative = safe_relative_path(case_id)
        for output in OUTPUTS.values():
            for suffix in (output.suffix,) if output.suffix else MASK_SUFFIXES:
                (self.output_dir / output.subfolder / f"{relative}{suffix}").unlink(missing_ok=True)


def _unit(case: Mapping[str, Any]) -> str:
    """Return what is finished as a whole: the video of a frame, or else the case."""
    is_frame = isinstance(case[AnomalyKeys.IMAGE], Frame)
    return str(case[AnomalyKeys.STUDY] if is_frame else case[AnomalyKeys.CASE_ID])


def _video_file(study: str) -> str:
    return f"videos/{safe_relative_path(study)}.mp4"


def _what_matters(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what results depend on of a run's provenance."""
    settings = dict(provenance.get("settings", {}))
    overrides = {name: value for name, value in settings.pop("overrides", {}).items() if name not in _NO_MATTER}
    return {**provenance, "settings": {**settings, "overrides": overrides}, "versions": package_versions()}


def safe_relative_path(case_id: str) -> str:
    """Return the path below the output folder that a name stands for.

    Raises:
        ValueError: it would lead out of it.
    """
    path = PurePosixPath(case_id)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in case_id:
        raise ValueError(f"case name {case_id!r} cannot become a file below the output folder; rename the case")
    return str(path)


@dataclass
class Results:
    """The results of a detection, in the order of the cases.

    Attributes:
        cases: one `CaseResult` per case that could be scored.
        failures: one `FailedCase` per case that could not.
        provenance: cards, hashes and settings of the run.
        pictures: how sources are shown; by default as `build_preprocessing` does.
    """

    cases: list[CaseResult] = field(default_factory=list)
    failures: list[FailedCase] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    pictures: PictureLoader | None = None

    def __iter__(self) -> Iterator[CaseResult]:
        """Iterate over the cases that could be scored."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Return the number of cases that could be scored."""
        return len(self.cases)

    @property
    def scores(self) -> dict[str, float]:
        """Anomaly score by case name."""
        return {case.case_id: case.anomaly_score for case in self.cases}

    def save(self, output_dir: str | os.PathLike[str], **options: Any) -> None:
        """Write files, tables and ``run.json``; the options (``write``, ``threshold``, ...) are of `ResultWriter`."""
        writer = ResultWriter(output_dir, **{"provenance": self.provenance, "pictures": self.pictures, **options})
        for case in self.cases:
            writer.write(case)
        writer.finish(self.failures)
