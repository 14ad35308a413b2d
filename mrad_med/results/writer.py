"""Writing of results during a run: the files of each case, the tables, and ``run.json``."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from mrad_med.errors import OutputError
from mrad_med.files import prepare_output, safe_relative_path
from mrad_med.io.dicom.source import burned_in_warning
from mrad_med.io.frames import Frame
from mrad_med.networks.provenance import package_versions
from mrad_med.results.case_result import CaseResult
from mrad_med.results.changes import ChangeWatch
from mrad_med.results.journal import Entry, Journal, what_matters
from mrad_med.results.output_names import DEFAULT_OUTPUTS
from mrad_med.results.outputs import OUTPUTS, Output, OutputSettings, check_outputs, is_dicom
from mrad_med.results.overlay_video import VideoCollector
from mrad_med.results.shortfalls import attempt, pairs_of
from mrad_med.results.tables import (
    SCORE_COLUMNS,
    SLICE_COLUMNS,
    STUDY_COLUMNS,
    describe_cases,
    score_row,
    slices_of,
    study_rows,
    write_or_remove,
    write_record,
    write_table,
)
from mrad_med.store import FolderLock
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["ResultWriter"]

logger = logging.getLogger(__name__)

_PIXEL_OUTPUTS = ("overlay", "montage", "capture")  # outputs that show the pixels of the source


class ResultWriter:
    """Write the results of each case when they are ready. Each file is written completely or not at all.

    Outputs are chosen by name: those of `OUTPUTS`, and ``"video"`` for the frames of a video. `finish` writes
    ``scores.csv`` (a row for each case), ``slices.csv`` (for each slice of a volume), ``studies.csv`` (for each study)
    and ``run.json``, which states whether the run is complete. ``finished.jsonl`` lists the finished cases for a later
    run. Until `finish`, no other process can write to the folder.

    Args:
        output_dir: output folder; created if absent.
        provenance: values to record in ``run.json``: cards, hashes, settings.
        write: names of outputs. The default is `DEFAULT_OUTPUTS`: the float32 map and an overlay of an image, the same
            and a montage of a volume, and the overlay video of a video. Outputs that do not suit a case are left out.
        threshold: lowest anomaly value that masks and segmentations mark; None if no output needs it.
        view: how images are shown (window, plane); `ImageView()` if None.
        keep_identifiers: whether DICOM outputs keep the patient's identifiers of their source.
        resume: whether to keep the results of cases that an earlier run finished with the same settings, see `pending`.
        take_over: whether to write to the folder although a process of another host has locked it.

    Attributes:
        shortfalls: outputs of scored cases that could not be written, with the reason.
        failures: cases that could not be scored; known after `finish`.
        nothing_to_score: cases in which all pixels have one value; known after `finish`.

    Raises:
        OutputError: the folder cannot be written to, or another process writes to it.
        ValueError: see `check_outputs`, which raises further errors if a package is missing.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        provenance: Mapping[str, Any] | None = None,
        write: Sequence[str] | None = None,
        threshold: float | None = None,
        view: ImageView | None = None,
        keep_identifiers: bool = False,
        resume: bool = False,
        take_over: bool = False,
    ) -> None:
        check_outputs(write or (), threshold)
        self.output_dir = prepare_output(output_dir)
        self._lock = FolderLock(self.output_dir, take_over=take_over)
        self.provenance = dict(provenance or {})
        self.view = view or ImageView()
        self.shortfalls: list[FailedCase] = []
        self.failures: list[FailedCase] = []
        self.nothing_to_score: list[FailedCase] = []
        self._warned: set[str] = set()
        self._chosen = None if write is None else tuple(write)
        suffix = ".nrrd" if write and "nrrd" in write and "nifti" not in write else ".nii.gz"
        self._settings = OutputSettings(self.output_dir, threshold, self.view, keep_identifiers, suffix)
        matters = {"write": write, "threshold": threshold, "keep_identifiers": keep_identifiers}
        matters |= what_matters(self.provenance)
        self._journal = Journal(self.output_dir / "finished.jsonl", matters, resume=resume)
        self._watch = ChangeWatch()
        self._cases: dict[str, dict[str, Any]] = {}  # all cases of the run by name, set by `pending`
        self._frames_of: dict[str, set[str]] = {}  # names of cases by their video
        self._done: dict[str, Entry] = {}
        self._failed: dict[str, FailedCase] = {}
        self._video: VideoCollector | None = None
        self._written: set[str] = set()  # files that this run wrote
        self._frames: list[Entry] = []  # frames of the video that is not written yet
        self._started = time.monotonic()

    @property
    def rows(self) -> list[dict[str, str]]:
        """Rows of ``scores.csv`` for the cases that are done, in the order of the cases."""
        return [entry.row for entry in self._entries()]

    def _entries(self) -> list[Entry]:
        return [self._done[case_id] for case_id in self._cases or self._done if case_id in self._done]

    def pending(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the cases that must still be scored. The tables keep the rows of the finished cases.

        If an overlay video is written, all its frames are finished or none is. A later run can skip only cases that
        were given here.

        Args:
            cases: datalist of the run.

        Raises:
            OutputError: the folder cannot be written to.
        """
        self._cases = {case[AnomalyKeys.CASE_ID]: case for case in cases}
        self._watch = ChangeWatch(cases)
        self._frames_of = defaultdict(set)
        for case_id in self._cases:
            self._frames_of[self._video_of_case(case_id)].add(case_id)
        finished: set[str] = set()
        for video, names in self._frames_of.items():
            done = {name for name in names if self._is_finished(name)}
            if not video or done == names == self._journal.frames_of(video):
                finished |= done
        for case_id in self._cases:
            if case_id in finished:
                self._take_over(case_id)
        self._journal.report(set(self._cases) - finished)
        try:
            self._write_record(is_whole=False)  # correct in case the run is killed
        except OSError as error:
            raise OutputError(f"cannot write to {self.output_dir} ({error.strerror}); free some space") from error
        return [case for case in cases if case[AnomalyKeys.CASE_ID] not in finished]

    def changed(self, failures: Sequence[FailedCase] = ()) -> list[dict[str, Any]]:
        """Return the cases whose files changed while they were scored.

        Their results are removed. Score these cases once more, then call `finish` (again). Otherwise they are failures.

        Args:
            failures: cases without a score. Those whose files changed meanwhile are returned too.
        """
        self._finish_video()
        changed = self._watch.take_changed(failures)
        for case in changed:
            self._failed.pop(case[AnomalyKeys.CASE_ID], None)
        return changed

    def _is_finished(self, case_id: str) -> bool:
        if not self._journal.may_be_finished(case_id):  # the usual case; no file is read
            return False
        contents = self._watch.contents(case_id)
        return contents is not None and self._journal.is_finished(case_id, self._source_of(case_id), contents)

    def _source_of(self, case_id: str) -> Any:
        return self._cases[case_id][AnomalyKeys.IMAGE]

    def _take_over(self, case_id: str) -> None:
        """Add the rows of a case that an earlier run finished to the tables."""
        entry, study = self._journal.entries[case_id], _study(self._cases[case_id])
        self.shortfalls += [FailedCase(*shortfall) for shortfall in entry.shortfalls]
        if entry.row["status"] == "ok":
            self._done[case_id] = replace(entry, row={**entry.row, "study": study})
        else:
            self._failed[case_id] = FailedCase(case_id, entry.row["reason"], study, entry.row["status"])

    def _names_for(self, kind: str) -> Sequence[str]:
        return DEFAULT_OUTPUTS[kind] if self._chosen is None else self._chosen

    def _video_of_case(self, case_id: str) -> str:
        return self._video_of(case_id, self._source_of(case_id), _study(self._cases[case_id]))

    def _video_of(self, case_id: str, source: Any, study: str) -> str:
        """Return the overlay video of a frame, relative to the output folder; empty for other cases."""
        if not isinstance(source, Frame) or "video" not in self._names_for("frame"):
            return ""
        return f"videos/{safe_relative_path(study or case_id)}.mp4"

    def write(self, result: CaseResult) -> None:
        """Write the outputs of one case.

        Raises:
            OutputError: the disk is full, or the folder is gone.
            ValueError: the case id is a path outside the output folder.
        """
        if not self._lock.is_held:  # after `finish`, or after an error
            self._lock = FolderLock(self.output_dir)
        try:
            self._write(result)
        except BaseException:
            self._lock.release()
            raise

    def _write(self, result: CaseResult) -> None:
        relative = safe_relative_path(result.case_id)
        video = self._video_of(result.case_id, result.source, result.study)
        if self._video is not None and video != self._video.name:
            self._finish_video()
        self._remove(result.case_id)
        known = len(self.shortfalls)
        files = {
            name: self._try(name, result.case_id, partial(self._write_output, OUTPUTS[name], result, relative))
            for name in self._names_for(result.kind)
            if name != "video" and OUTPUTS[name].suits(result)
        }
        if is_dicom(result) and any(files.get(name) for name in _PIXEL_OUTPUTS):
            self._warn_of_texts(result)
        paths = tuple(path for written in files.values() for path in written)
        if (contents := self._watch.contents(result.case_id)) is None:
            self._discard([result.case_id], paths)
            del self.shortfalls[known:]
            return
        entry = Entry(
            self._journal.key(result.case_id, result.source, contents),
            score_row(result, files),
            paths,
            slices_of(result),
            video,
            pairs_of(self.shortfalls[known:]),
        )
        self._done[result.case_id] = entry
        if video:
            self._try("video", result.study or result.case_id, partial(self._collect, result, video))
            self._frames.append(entry)
        else:
            self._note(entry)

    def _collect(self, result: CaseResult, video: str) -> None:
        if self._video is None:  # the output folder has space for the maps; the temporary folder may not
            self._video = VideoCollector(self.output_dir, self.view)
        self._video.add(result, video)

    def _discard(self, names: Iterable[str], files: Iterable[str]) -> None:
        """Remove the results of cases whose files changed meanwhile."""
        for name in names:
            self._done.pop(name, None)
        for file in files:
            (self.output_dir / file).unlink(missing_ok=True)
        self._watch.note(names)

    def _note(self, entry: Entry) -> None:
        self._written.update(entry.files)
        self._try("line of finished.jsonl", entry.row["case_id"], partial(self._journal.add, entry))

    def _write_output(self, output: Output, result: CaseResult, relative: str) -> list[str]:
        path = self.output_dir / output.subfolder / f"{relative}{output.suffix}"
        return [file.relative_to(self.output_dir).as_posix() for file in output.write(result, path, self._settings)]

    def _try(self, name: str, case_id: str, write: Callable[[], Any]) -> Any:
        """Call a function that writes an output; see `attempt`."""
        return attempt(write, what=name, case_id=case_id, output_dir=self.output_dir, shortfalls=self.shortfalls)

    def _finish_video(self) -> None:
        """Write the video of the collected frames, and record the frames as finished."""
        frames, self._frames = self._frames, []
        collected, self._video = self._video, None
        if not frames or collected is None:
            return
        known, name = len(self.shortfalls), collected.name
        video = self._try("video", name.removeprefix("videos/").removesuffix(".mp4"), partial(self._draw, collected))
        written = (name,) if video else ()
        together = self._frames_of.get(name, set())
        if self._watch.has_changed(together):
            self._discard(together, [*written, *(file for entry in frames for file in entry.files)])
            del self.shortfalls[known:]
            return
        shortfalls = pairs_of(self.shortfalls[known:])  # stored once, with the first frame
        for case_id in self._journal.frames_of(name) - {entry.row["case_id"] for entry in frames}:
            self._journal.forget(case_id)  # a frame of an earlier video of this name
        for number, entry in enumerate(frames):
            listed = "; ".join(filter(None, (entry.row["files"], *written)))
            finished = replace(
                entry,
                row={**entry.row, "files": listed},
                files=(*entry.files, *written),
                shortfalls=(*entry.shortfalls, *(() if number else shortfalls)),
            )
            self._done[entry.row["case_id"]] = finished
            self._note(finished)

    def _draw(self, video: VideoCollector) -> list[Path]:
        return video.write(self.output_dir / video.name)

    def _warn_of_texts(self, result: CaseResult) -> None:
        warning = burned_in_warning(result.files[0])
        if warning and warning not in self._warned:
            self._warned.add(warning)
            logger.warning("%s (and maybe others): %s", result.case_id, warning)

    def finish(self, failures: Sequence[FailedCase] = (), *, is_whole: bool = True) -> None:
        """Write the tables and ``run.json`` with the cases that have no score, and release the folder.

        Args:
            failures: cases that could not be scored, or have nothing to score (`FailedCase.status`).
            is_whole: whether the run reached its end. If not, an unfinished video is left to the next run.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        try:
            if is_whole:
                self._finish_video()
            latest = {item.case_id: item for item in (*failures, *self._watch.failures())}
            for failure in latest.values():
                self._note_failure(failure)
            self._failed |= latest
            unscored = [item for name, item in self._failed.items() if name not in self._done]
            self.failures = [item for item in unscored if item.is_failure]
            self.nothing_to_score = [item for item in unscored if not item.is_failure]
            self._write_tables()
            self._write_record(is_whole=is_whole)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write the tables to {self.output_dir}: {error}") from error
        finally:
            self._lock.release()
        logger.info("%d case(s) written, %d failed", len(self._done), len(self.failures))

    def _note_failure(self, failure: FailedCase) -> None:
        """Remove a case's old files. Record a case with nothing to score, or a failed frame of a finished video."""
        self._remove(failure.case_id)
        if failure.case_id not in self._cases:
            return
        video, contents = self._video_of_case(failure.case_id), self._watch.contents(failure.case_id)
        if contents and (not failure.is_failure or (video and self._journal.frames_of(video))):
            row = {"case_id": failure.case_id, "status": failure.status, "reason": failure.reason}
            key = self._journal.key(failure.case_id, self._source_of(failure.case_id), contents)
            self._note(Entry(key, row, video=video))

    def _write_tables(self) -> None:
        rows, folder, others = self.rows, self.output_dir, [*self.nothing_to_score, *self.failures]
        unscored = [{"case_id": item.case_id, "status": item.status, "reason": item.reason} for item in others]
        write_table(folder / "scores.csv", SCORE_COLUMNS, [*rows, *unscored])
        slices = [row for entry in self._entries() for row in entry.slices]
        write_or_remove(folder / "slices.csv", SLICE_COLUMNS, slices)
        write_or_remove(folder / "studies.csv", STUDY_COLUMNS, study_rows(rows, others))

    def _write_record(self, *, is_whole: bool) -> None:
        unscored = [*self.failures, *self.nothing_to_score]
        reached = {*self._done, *(item.case_id for item in unscored)}
        not_reached = [case_id for case_id in self._cases if case_id not in reached]
        record = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "complete": is_whole and not not_reached,
            "seconds": round(time.monotonic() - self._started, 3),
            "versions": package_versions(),
            **self.provenance,
            **describe_cases(len(self._done), unscored, not_reached, self.shortfalls),
        }
        write_record(self.output_dir / "run.json", record)

    def _remove(self, case_id: str) -> None:
        """Remove the files that an earlier run wrote for a case."""
        for name in set(self._journal.files.pop(case_id, ())) - self._written:
            (self.output_dir / safe_relative_path(name)).unlink(missing_ok=True)


def _study(case: Mapping[str, Any]) -> str:
    return str(case.get(AnomalyKeys.STUDY, ""))
