"""The list of finished cases in a results folder. An interrupted run resumes from it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mrad_med.files import atomic_path, safe_relative_path
from mrad_med.io.dicom.frames import DicomStack, source_paths
from mrad_med.io.frames import Frame
from mrad_med.networks.provenance import package_versions
from mrad_med.store import make_key

__all__ = ["Entry", "Journal", "files_of", "what_matters"]

logger = logging.getLogger(__name__)

_FORMAT = 2  # version of a line; cases in lines of another version are not finished
_CHECK = ', "check": "{}"}}'  # end of each line: first digits of the sha256 of the text before it
_CHECK_DIGITS = 16
_CHECK_LENGTH = len(_CHECK.format("0" * _CHECK_DIGITS))
# Recorded settings that do not enter the key: they change no result, or the hashes of the parts cover their effect.
_NO_MATTER = ("overrides", "profiles")


@dataclass(frozen=True)
class Entry:
    """A finished case in the journal.

    Attributes:
        key: key of the case, see `Journal.key`; empty for an image in memory and for an unfinished case.
        row: row of the case in ``scores.csv``.
        files: written files, relative to the output folder.
        slices: rows of the case in ``slices.csv``.
        video: overlay video that contains the frame, relative to the output folder; empty if there is none.
        shortfalls: outputs that could not be written, as (name of the case or video, reason).
        settings: key of the settings with which the case was scored.
    """

    key: str
    row: dict[str, str]
    files: tuple[str, ...] = ()
    slices: list[dict[str, Any]] = field(default_factory=list)
    video: str = ""
    shortfalls: tuple[tuple[str, str], ...] = ()
    settings: str = ""


def files_of(source: Any) -> Sequence[str | os.PathLike[str]]:
    """Return the files from which a source is read; empty for an image in memory."""
    return source_paths(source)


def what_matters(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's provenance on which results depend, with the versions of packages."""
    settings = {name: value for name, value in provenance.get("settings", {}).items() if name not in _NO_MATTER}
    return {**provenance, "settings": settings, "versions": package_versions()}


class Journal:
    """A file beside the results with one line of JSON for each finished case.

    A case is finished if its line has the same key and all its files exist. The key covers the name of the case, the
    content of its files, and the settings. A case is not finished if its line is damaged or of an older version.

    Args:
        path: path of the file; created with the first case.
        settings: settings on which results depend, as plain values.
        resume: whether cases in an existing file count as finished.

    Attributes:
        entries: finished cases by name.
        files: files of each case in its last line, also of unfinished cases, by the name of the case.
        damaged: number of lines that cannot be read.
        outdated: number of lines of an older version.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.settings = make_key(settings)
        self.entries: dict[str, Entry] = {}
        self.files: dict[str, tuple[str, ...]] = {}
        self.damaged = self.outdated = 0
        self._frames: dict[str, set[str]] = defaultdict(set)  # names of cases by their video
        self._is_torn = False
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._is_torn = bool(text) and not text.endswith("\n")
            for line in filter(None, text.split("\n")):
                self._read(line)
        if not resume and self.files:  # no case is finished, but its old files may have to be removed
            lines = [_line(Entry("", {"case_id": case_id}, files)) for case_id, files in self.files.items()]
            self._is_torn = False
            with atomic_path(path) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
            self.entries.clear()
            self._frames.clear()

    def _read(self, line: str) -> None:
        try:
            values = json.loads(line)
            is_known = values.get("format") == _FORMAT
            if is_known and line[-_CHECK_LENGTH:] != _check_of(line[:-_CHECK_LENGTH]):
                raise ValueError("the line does not match its checksum")
            files = tuple(safe_relative_path(str(name)) for name in values["files"])
            shortfalls = tuple((str(name), str(reason)) for name, reason in values["shortfalls"])
            texts = {name: str(values.get(name, "")) for name in ("key", "video", "settings")}
            if not is_known:
                texts["key"] = ""
            self._keep(Entry(row=values["row"], files=files, slices=values["slices"], shortfalls=shortfalls, **texts))
            self.outdated += not is_known
        except (ValueError, KeyError, TypeError, AttributeError):  # for example the last line of a killed run
            self.damaged += 1

    def _keep(self, entry: Entry) -> None:
        case_id = str(entry.row["case_id"])
        self.files[case_id] = entry.files
        earlier = self.entries.pop(case_id, None)
        if earlier is not None:
            self._frames[earlier.video].discard(case_id)
        if entry.key:
            self.entries[case_id] = entry
            self._frames[entry.video].add(case_id)

    def forget(self, case_id: str) -> None:
        """Mark a case as unfinished. Its files stay known."""
        self.add(replace(self.entries[case_id], key=""))

    def frames_of(self, video: str) -> set[str]:
        """Return the names of the finished cases that are frames of a video."""
        return set(self._frames.get(video, ()))

    def key(self, case_id: str, source: Any, contents: Sequence[str]) -> str:
        """Return the key of a case; empty for an image in memory.

        Args:
            case_id: name of the case.
            source: image that is scored, in a form that `read_image` accepts.
            contents: hashes of its files, in the order of the files.
        """
        if not contents:
            return ""
        frame: list[Any] | None = [source.index, source.time] if isinstance(source, Frame) else None
        frame = list(source.frames) if isinstance(source, DicomStack) else frame
        return make_key(self.settings, case_id, list(contents), frame)

    def may_be_finished(self, case_id: str) -> bool:
        """Return whether a case has the same settings and its written files exist. Its source is not read."""
        entry = self.entries.get(case_id)
        return (
            entry is not None
            and entry.settings == self.settings
            and all(_is_there(self.path.parent / name) for name in entry.files)
        )

    def is_finished(self, case_id: str, source: Any, contents: Sequence[str]) -> bool:
        """Return whether a case is finished. The arguments are those of `key`."""
        key = self.key(case_id, source, contents)
        return bool(key) and self.may_be_finished(case_id) and self.entries[case_id].key == key

    def report(self, names: Iterable[str]) -> None:
        """Log why cases of an earlier run are scored again, one line for each reason.

        Args:
            names: names of the cases that are scored in this run.
        """
        known = [self.entries[case_id] for case_id in names if case_id in self.entries]
        others = sum(entry.settings != self.settings for entry in known)
        for count, reason in (
            (self.outdated, "result(s) of an older version of mrad_med are not treated as finished"),
            (self.damaged, f"line(s) of {self.path.name} are damaged; their cases are scored again"),
            (others, "case(s) were finished with other settings or versions and are scored again"),
        ):
            if count:
                logger.warning("%d %s", count, reason)  # without the folder, which may be that of a patient

    def add(self, entry: Entry) -> None:
        """Append a case to the file.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        entry = replace(entry, settings=self.settings)
        self._keep(entry)
        start, self._is_torn = "\n" * self._is_torn, True
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(start + _line(entry))
        self._is_torn = False


def _is_there(path: Path) -> bool:
    """Return whether a file exists and is not empty. A power failure may leave empty files."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _line(entry: Entry) -> str:
    text = json.dumps({"format": _FORMAT, **asdict(entry)}).removesuffix("}")
    return f"{text}{_check_of(text)}\n"


def _check_of(text: str) -> str:
    return _CHECK.format(hashlib.sha256(text.encode()).hexdigest()[:_CHECK_DIGITS])
