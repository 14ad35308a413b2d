"""Detection of cases whose files change while they are scored. They are scored again once, and then refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mrad_med.results.journal import files_of
from mrad_med.store import Snapshot
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["ChangeWatch"]

_CHANGED = (
    "its file changed while it was read, twice; wait until nothing writes to it, for example until it is copied, and "
    "run again"
)
_NOT_REPEATED = "its file changed while it was read; run again"


class ChangeWatch:
    """State of the files of all cases, taken before the cases are read.

    Args:
        cases: datalist of the run.
    """

    def __init__(self, cases: Iterable[dict[str, Any]] = ()) -> None:
        self._cases = {case[AnomalyKeys.CASE_ID]: case for case in cases}
        self._snapshots: dict[str, Snapshot] = {}
        self._changed: set[str] = set()
        self._repeated: set[str] = set()
        self._take(self._cases)

    def _take(self, names: Iterable[str]) -> None:
        shared: dict[tuple[str, ...], Snapshot] = {}  # all frames of a video have the same file
        for name in names:
            files = tuple(map(str, files_of(self._cases[name][AnomalyKeys.IMAGE])))
            if files not in shared:
                shared[files] = Snapshot(files)
            self._snapshots[name] = shared[files]

    def contents(self, case_id: str) -> tuple[str, ...] | None:
        """Return the hashes of the files of a case.

        Returns:
            None if a file has changed since its state was taken. An empty tuple for an image in memory, for a case that
            is not watched, and for files that were missing from the start.
        """
        snapshot = self._snapshots.get(case_id)
        return snapshot.contents() if snapshot is not None and snapshot.is_whole else ()

    def note(self, names: Iterable[str]) -> None:
        """Mark cases as changed."""
        self._changed.update(names)

    def has_changed(self, names: Iterable[str]) -> bool:
        """Return whether a file of any of the named cases has changed."""
        return any(name in self._changed or self.contents(name) is None for name in names)

    def take_changed(self, failures: Sequence[FailedCase]) -> list[dict[str, Any]]:
        """Return the changed cases that were not repeated yet, and take the state of their files again.

        Args:
            failures: cases that could not be scored. Those whose files have changed are returned too.
        """
        self.note(item.case_id for item in failures if self.contents(item.case_id) is None)
        names = [name for name in self._cases if name in self._changed - self._repeated]
        self._repeated.update(names)
        self._changed.difference_update(names)
        self._take(names)
        return [self._cases[name] for name in names]

    def failures(self) -> list[FailedCase]:
        """Return the changed cases that were not scored again, or that changed again."""
        return [
            FailedCase(
                name,
                _CHANGED if name in self._repeated else _NOT_REPEATED,
                str(self._cases[name].get(AnomalyKeys.STUDY, "")),
            )
            for name in self._cases
            if name in self._changed
        ]
