"""Results written as they come: files of each case, tables and a record of the run."""

from __future__ import annotations

import errno
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

from mrad_med.errors import ImageFileError, OutputError, UnfitSourceError
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

_PICTURES = ("overlay", "montage", "capture")  # outputs that show the pixels of the source


class ResultWriter:
    """Write the results of a run as they come; nothing is ever half-written.

    What is written of each case is chosen by name (`OUTPUTS`, and ``"video"`` for the frames of a video). `finish`
    writes ``scores.csv`` (a row per case), ``slices.csv`` (per slice of volumes), ``studies.csv`` (per study) and
    ``run.json``, which states whether the run is complete. ``finished.jsonl`` states for a later run what is done. Of
    several processes only one may write to a folder, until `finish`.

    Args:
        output_dir: made if absent.
        provenance: what should be recorded of the run: cards, hashes, settings.
        write: names of outputs; by default the map in float32 and an overlay of an image, of a volume a montage too,
            and of a video its overlay video. Outputs that a case cannot have are left out.
        threshold: from which on masks and segmentations mark a pixel.
        view: how images are seen; `ImageView` with its defaults if None.
        keep_identifiers: lets DICOM results name the patient as their source does.
        resume: keep the results of finished cases of an earlier run with the same settings, see `pending`.
        take_over: write to the folder although a process of another host has locked it.

    Attributes:
        shortfalls: outputs of scored cases that could not be made, and why.
        failures: cases that could not be scored, once they are known.

    Raises:
        OutputError: the folder cannot be written to, another process writes to it, or a package is missing.
        ValueError: there is no such output, or a threshold is missing.
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
        self._warned: set[str] = set()
        self._chosen = None if write is None else tuple(write)
        suffix = ".nrrd" if write and "nrrd" in write and "nifti" not in write else ".nii.gz"
        self._settings = OutputSettings(self.output_dir, threshold, self.view, keep_identifiers, suffix)
        matters = {"write": write, "threshold": threshold, "keep_identifiers": keep_identifiers}
        matters |= what_matters(self.provenance)
        self._journal = Journal(self.output_dir / "finished.jsonl", matters, resume=resume)
        self._watch = ChangeWatch()
        self._cases: dict[str, dict[str, Any]] = {}  # all of the run by their names, once they are known
        self._frames_of: dict[str, set[str]] = {}  # names of cases by their video
        self._done: dict[str, Entry] = {}
        self._failed: dict[str, FailedCase] = {}
        self._video: VideoCollector | None = None
        self._written: set[str] = set()  # files of this run
        self._frames: list[Entry] = []  # of the video that is not written yet
        self._started = time.monotonic()

    @property
    def rows(self) -> list[dict[str, str]]:
        """Rows of the table of cases that are done, in the order of the cases."""
        return [entry.row for entry in self._entries()]

    def _entries(self) -> list[Entry]:
        return [self._done[case_id] for case_id in self._cases or self._done if case_id in self._done]

    def pending(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the cases that are still to be scored; what an earlier run finished goes into the tables as it is.

        The frames of a video are finished together or not at all where they make an overlay video. Only cases that were
        given here are known as finished to a later run.

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
            self._write_record(is_whole=False)  # true until the run ends, however it ends
        except OSError as error:
            raise OutputError(f"cannot write to {self.output_dir} ({error.strerror}); free some space") from error
        return [case for case in cases if case[AnomalyKeys.CASE_ID] not in finished]

    def changed(self, failures: Sequence[FailedCase] = ()) -> list[dict[str, Any]]:
        """Return the cases whose files changed while they were scored, of which nothing is kept: score them once more.

        Then `finish`, also a second time. Those that are not scored again, or that change again, failed.

        Args:
            failures: the cases that could not be scored; those whose files changed meanwhile are returned too.
        """
        self._finish_video()
        changed = self._watch.take_changed(failures)
        for case in changed:
            self._failed.pop(case[AnomalyKeys.CASE_ID], None)
        return changed

    def _is_finished(self, case_id: str) -> bool:
        if not self._journal.may_be_finished(case_id):  # most often, and then no file is read
            return False
        contents = self._watch.contents(case_id)
        return contents is not None and self._journal.is_finished(case_id, self._source_of(case_id), contents)

    def _source_of(self, case_id: str) -> Any:
        return self._cases[case_id][AnomalyKeys.IMAGE]

    def _take_over(self, case_id: str) -> None:
        """Take what an earlier run finished into the tables."""
        entry, study = self._journal.entries[case_id], _study(self._cases[case_id])
        self.shortfalls += [FailedCase(*shortfall) for shortfall in entry.shortfalls]
        if entry.row["status"] == "ok":
            self._done[case_id] = replace(entry, row={**entry.row, "study": study})
        else:
            self._failed[case_id] = FailedCase(case_id, entry.row["reason"], study)

    def _names_for(self, kind: str) -> Sequence[str]:
        return DEFAULT_OUTPUTS[kind] if self._chosen is None else self._chosen

    def _video_of_case(self, case_id: str) -> str:
        return self._video_of(case_id, self._source_of(case_id), _study(self._cases[case_id]))

    def _video_of(self, case_id: str, source: Any, study: str) -> str:
        """Return the video that a case becomes a frame of, below the output folder; empty if none."""
        if not isinstance(source, Frame) or "video" not in self._names_for("frame"):
            return ""
        return f"videos/{safe_relative_path(study or case_id)}.mp4"

    def write(self, result: CaseResult) -> None:
        """Write the outputs of one case.

        Raises:
            OutputError: the disk is full, or the folder went away.
            ValueError: the case name would lead out of the output folder.
        """
        if not self._lock.is_held:  # after `finish`, or where the caller goes on after an error
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
        if is_dicom(result) and any(files.get(name) for name in _PICTURES):
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
            _told(self.shortfalls[known:]),
        )
        self._done[result.case_id] = entry
        if video:
            self._try("video", result.study or result.case_id, partial(self._collect, result, video))
            self._frames.append(entry)
        else:
            self._note(entry)

    def _collect(self, result: CaseResult, video: str) -> None:
        if self._video is None:  # its maps wait where results go: there is space, and maybe no other folder for them
            self._video = VideoCollector(self.output_dir)
        self._video.add(result, video)

    def _discard(self, names: Iterable[str], files: Iterable[str]) -> None:
        """Remove what was written of cases whose files changed meanwhile."""
        for name in names:
            self._done.pop(name, None)
        for file in files:
            (self.output_dir / file).unlink(missing_ok=True)
        self._watch.note(names)

    def _note(self, entry: Entry) -> None:
        self._written.update(entry.files)
        self._try("", entry.row["case_id"], partial(self._journal.add, entry))

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
            if error.errno != errno.ENAMETOOLONG:
                raise OutputError(f"cannot write the results of {case_id} to {self.output_dir}: {error}") from error
            reason = "the name of its file would be too long; rename the case"
        except Exception as error:  # of a library that draws or encodes; its message may quote the source
            reason = str(error) if isinstance(error, ImageFileError) else f"unforeseen {type(error).__name__}"
        logger.warning("%s: no %s could be written: %s", case_id, name, reason)
        self.shortfalls.append(FailedCase(case_id, f"no {name} could be written: {reason}"))
        return []

    def _finish_video(self) -> None:
        """Write the video of the frames so far, and note that they are finished."""
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
        shortfalls = _told(self.shortfalls[known:])  # once, with the first frame
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
        """Write the tables and ``run.json``, with the failed cases in both, and give the folder back.

        Args:
            failures: cases that could not be scored.
            is_whole: False for a run that was stopped: a video that was begun is left for the next run.

        Raises:
            OutputError: the disk is full, or the folder went away.
        """
        try:
            if is_whole:
                self._finish_video()
            latest = {item.case_id: item for item in (*failures, *self._watch.failures())}
            for failure in latest.values():
                self._note_failure(failure)
            self._failed |= latest
            self.failures = [item for name, item in self._failed.items() if name not in self._done]
            self._write_tables()
            self._write_record(is_whole=is_whole)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write the tables to {self.output_dir}: {error}") from error
        finally:
            self._lock.release()
        logger.info("%d case(s) written to %s, %d failed", len(self._done), self.output_dir, len(self.failures))

    def _note_failure(self, failure: FailedCase) -> None:
        """Remove what an earlier run left of a case, which would mislead; a frame is finished with its video."""
        self._remove(failure.case_id)
        if failure.case_id not in self._cases:
            return
        video, contents = self._video_of_case(failure.case_id), self._watch.contents(failure.case_id)
        if video and contents and self._journal.frames_of(video):
            row = {"case_id": failure.case_id, "status": "failed", "reason": failure.reason}
            key = self._journal.key(failure.case_id, self._source_of(failure.case_id), contents)
            self._note(Entry(key, row, video=video))

    def _write_tables(self) -> None:
        rows, folder = self.rows, self.output_dir
        failed = [{"case_id": item.case_id, "status": "failed", "reason": item.reason} for item in self.failures]
        write_table(folder / "scores.csv", SCORE_COLUMNS, [*rows, *failed])
        slices = [row for entry in self._entries() for row in entry.slices]
        write_or_remove(folder / "slices.csv", SLICE_COLUMNS, slices)
        write_or_remove(folder / "studies.csv", STUDY_COLUMNS, study_rows(rows, self.failures))

    def _write_record(self, *, is_whole: bool) -> None:
        reached = {*self._done, *(item.case_id for item in self.failures)}
        not_reached = [case_id for case_id in self._cases if case_id not in reached]
        record = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "complete": is_whole and not not_reached,
            "seconds": round(time.monotonic() - self._started, 3),
            "versions": package_versions(),
            **self.provenance,
            **describe_cases(len(self._done), self.failures, not_reached, self.shortfalls),
        }
        write_record(self.output_dir / "run.json", record)

    def _remove(self, case_id: str) -> None:
        """Remove what was written of a case by an earlier run."""
        for name in set(self._journal.files.pop(case_id, ())) - self._written:
            (self.output_dir / safe_relative_path(name)).unlink(missing_ok=True)


def _study(case: Mapping[str, Any]) -> str:
    return str(case.get(AnomalyKeys.STUDY, ""))


def _told(shortfalls: Sequence[FailedCase]) -> tuple[tuple[str, str], ...]:
    return tuple((item.case_id, item.reason) for item in shortfalls)
