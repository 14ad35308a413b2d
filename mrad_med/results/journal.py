"""Which cases of a folder of results are finished, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mrad_med.files import atomic_path
from mrad_med.io.frames import Frame

__all__ = ["Entry", "Journal"]


@dataclass(frozen=True)
class Entry:
    """What is kept of a finished case.

    Attributes:
        key: of its source and of the settings it was scored with; empty for an image in memory and what is unfinished.
        row: of the table of cases.
        files: that were written, below the output folder.
        slices: rows of the table of slices.
        video: that it is a frame of, below the output folder; empty where none was asked for.
        shortfalls: outputs that could not be made: what of, and why.
    """

    key: str
    row: dict[str, str]
    files: tuple[str, ...] = ()
    slices: list[dict[str, Any]] = field(default_factory=list)
    video: str = ""
    shortfalls: tuple[tuple[str, str], ...] = ()


class Journal:
    """One line of JSON for each case as it is finished, in a file beside the results.

    A case is finished if it is there with the same settings, the same source files (by name, size and time of change)
    and all that was written of it.

    Args:
        path: of the file; made with the first case.
        settings: whatever results depend on, as plain values.
        resume: keep what is there; else the file is begun anew.

    Attributes:
        entries: finished cases by their names.
        files: what was ever written of a case into this folder, by its name.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._settings = json.dumps(settings, sort_keys=True, default=str)
        self.entries: dict[str, Entry] = {}
        self.files: dict[str, tuple[str, ...]] = {}
        self._frames: dict[str, set[str]] = defaultdict(set)  # names of cases by their video
        self._is_torn = False
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._is_torn = bool(text) and not text.endswith("\n")
            for line in text.split("\n"):
                self._read(line)
        if not resume and self.entries:  # nothing is finished any more, but what was written may have to be removed
            lines = [_line(Entry("", {"case_id": case_id}, files)) for case_id, files in self.files.items()]
            self._is_torn = False
            with atomic_path(path) as partial:
                partial.write_text("".join(lines), encoding="utf-8")
            self.entries.clear()
            self._frames.clear()

    def _read(self, line: str) -> None:
        try:
            values = json.loads(line)
            shortfalls = tuple((str(name), str(reason)) for name, reason in values["shortfalls"])
            files = tuple(map(str, values["files"]))
            entry = Entry(str(values["key"]), values["row"], files, values["slices"], str(values["video"]), shortfalls)
            self._keep(entry)
        except (ValueError, KeyError, TypeError):  # the line that was being written when the run was stopped
            return

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
        """Take a case for unfinished from now on; what was written of it stays known."""
        self.add(replace(self.entries[case_id], key=""))

    def frames_of(self, video: str) -> set[str]:
        """Return the names of the finished cases that are frames of a video."""
        return set(self._frames.get(video, ()))

    def is_finished(self, case_id: str, source: Any) -> bool:
        """Tell whether there is nothing left to do for a case."""
        entry, key = self.entries.get(case_id), self.key(source)
        if entry is None or not key or entry.key != key:
            return False
        return all((self.path.parent / name).exists() for name in entry.files)

    def key(self, source: Any) -> str:
        """Return what tells whether a source or the settings changed; empty for an image in memory."""
        if isinstance(source, Frame):
            files: Sequence[Any] = [source.path]
        elif isinstance(source, (str, os.PathLike)):
            files = [source]
        elif isinstance(source, (list, tuple)):
            files = source
        else:
            return ""
        digest = hashlib.sha256(self._settings.encode())
        digest.update(f"{source.index} {source.time}".encode() if isinstance(source, Frame) else b"")
        for file in map(Path, files):
            try:
                state = file.stat()
            except OSError:
                return ""
            digest.update(f"{file.name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def add(self, entry: Entry) -> None:
        """Note a finished case."""
        self._keep(entry)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("\n" * self._is_torn + _line(entry))
        self._is_torn = False


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry)) + "\n"
