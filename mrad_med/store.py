"""Reuse of finished work: keys computed from contents and settings, and locks for one process per folder.

Stored work on a case (features, a record, a result) is found by a key. The key depends on the bytes of the case's files
and on everything else that affects the result. It never depends on a time, a count, or the order of a listing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from mrad_med.distributed import rank_and_world
from mrad_med.errors import OutputError
from mrad_med.files import remove_partial, sha256_of_file
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["LOCK_NAME", "FolderLock", "Snapshot", "content_key", "contents_of", "hash_of_file", "make_key", "paths_of"]

LOCK_NAME = ".mrad-med.lock"
_FORMAT = 2  # part of every key; a new number invalidates all finished work
_REMEMBERED = 2**18  # number of file hashes that are kept in memory
_SETTLED_NS = 2_000_000_000  # coarsest step of file times (FAT): a newer file can change without a change of its times

State = tuple[str, int, int, int, int, int]  # path, device, inode, size, mtime and ctime in ns


def make_key(*values: Any) -> str:
    """Return the key of plain values: 64 hexadecimal digits that are the same in every process and on every machine.

    Args:
        *values: numbers, strings, None, paths, and sequences and mappings of these. The order of a mapping's items
            does not matter. Other objects are converted with ``str``.
    """
    text = json.dumps([_FORMAT, *values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_of_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes.

    Each process hashes an unchanged file only once, unless it was written in the last two seconds.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    state = _state_of(path)
    return _hash_of(state) if _is_settled(state) else sha256_of_file(path)


@lru_cache(maxsize=_REMEMBERED)
def _hash_of(state: State) -> str:
    return sha256_of_file(state[0])


def _state_of(path: str | os.PathLike[str]) -> State:
    stat = os.stat(path)  # noqa: PTH116 - faster than Path.stat, and called for every slice
    return os.fspath(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _is_settled(state: State) -> bool:
    # Programs can set mtime, but not ctime. On Windows, ctime is the time of creation: the latest time counts there.
    changed = state[5] if os.name == "posix" else max(state[4:])
    return time.time_ns() - changed > _SETTLED_NS


def content_key(path: str | os.PathLike[str]) -> str:
    """Return the hash of a file's content, or a key that no other file has if the file cannot be read."""
    try:
        return hash_of_file(path)
    except OSError:
        with suppress(OSError):
            stat = os.stat(path)  # noqa: PTH116
            return make_key("cannot be read", stat.st_dev, stat.st_ino)
        return make_key("is gone", os.fspath(path))


class Snapshot:
    """State of files before they are read, to detect changes afterwards.

    A snapshot takes the size and times of each file. It also hashes files that were written in the last two seconds,
    because they could change again without a change of their times.

    Args:
        paths: paths of the files; if one is missing, `contents` returns None.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._hashes: dict[str, str] = {}
        try:
            self._states: list[State] | None = [_state_of(path) for path in paths]
            for state in self._states:
                if not _is_settled(state):
                    self._hashes[state[0]] = sha256_of_file(state[0])
        except OSError:
            self._states = None

    @property
    def is_whole(self) -> bool:
        """Whether all files existed when the snapshot was taken."""
        return self._states is not None

    def contents(self) -> tuple[str, ...] | None:
        """Return the hashes of the files, or None if a file is missing or has changed since the snapshot was taken."""
        if self._states is None:
            return None
        try:
            hashes = tuple(hash_of_file(state[0]) for state in self._states)
            now = [_state_of(state[0]) for state in self._states]
        except OSError:
            return None
        same = all(self._hashes.get(state[0], digest) == digest for state, digest in zip(now, hashes, strict=True))
        return hashes if same and now == self._states else None


def contents_of(cases: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], list[FailedCase]]:
    """Return a key of the content of each labeled case by its case id, and the cases that cannot be read.

    The key depends on image, mask, label and mask threshold. It does not depend on names or paths of the files.

    Args:
        cases: datalist; each case has ``image``, ``label``, ``case_id`` and may have ``mask``, ``mask_threshold``.
    """
    contents, failures = {}, []
    for case in cases:
        case_id, hashes = case[AnomalyKeys.CASE_ID], []
        try:
            for name in (AnomalyKeys.IMAGE, AnomalyKeys.MASK):
                hashes.append(hash_of_file(case[name]) if case.get(name) else None)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            failures.append(FailedCase(case_id, f"its {name} cannot be read ({reason}); look at the path"))
            continue
        threshold = case.get(AnomalyKeys.MASK_THRESHOLD)
        contents[case_id] = make_key(
            hashes, int(case[AnomalyKeys.LABEL]), None if threshold is None else float(threshold)
        )
    return contents, failures


class FolderLock:
    """Lock that lets only one process write to a folder: a file in the folder names the process.

    The lock of a process that has ended is replaced, and the incomplete files of such processes are removed. All locks
    of one process on a folder share the lock file. With torch.distributed, only the process of rank 0 takes the lock.

    Args:
        folder: existing folder.
        take_over: whether to replace a lock of another host. Whether its process still runs cannot be checked.

    Attributes:
        is_held: whether the lock has not been released.

    Raises:
        OutputError: another process holds the lock, or the lock cannot be written.
    """

    _holders: ClassVar[Counter[Path]] = Counter()  # number of locks of this process by folder

    def __init__(self, folder: str | os.PathLike[str], *, take_over: bool = False) -> None:
        self._finalizer: weakref.finalize[[Path, int], FolderLock] | None = None
        self.is_held = True
        if rank_and_world()[0] > 0:
            return
        resolved = Path(folder).resolve()
        try:
            with _alone_in(resolved):
                _acquire(resolved, take_over=take_over)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {folder} ({error.strerror}); choose another folder") from error
        if not self._holders[resolved]:
            _remove_partials(resolved)
        self._holders[resolved] += 1
        self._finalizer = weakref.finalize(self, FolderLock._release, resolved, os.getpid())

    def release(self) -> None:
        """Release the lock; the lock file is removed when the last lock of this process is released."""
        self.is_held = False
        if self._finalizer is not None:
            self._finalizer()

    @staticmethod
    def _release(folder: Path, process: int) -> None:
        if os.getpid() != process:  # a forked child does not own the locks of its parent
            return
        FolderLock._holders[folder] -= 1
        if FolderLock._holders[folder] <= 0:
            del FolderLock._holders[folder]
            with suppress(OSError):
                if _read_lock(folder / LOCK_NAME) == _this_process():
                    (folder / LOCK_NAME).unlink()

    def __enter__(self) -> FolderLock:
        """Return the lock, which is already held."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self.release()


def _remove_partials(folder: Path) -> None:
    """Remove incomplete files of killed processes, except in subfolders that have their own lock."""
    for place, folders, files in os.walk(folder):
        if Path(place) != folder and LOCK_NAME in files:
            folders.clear()
            continue
        for name in files:
            remove_partial(Path(place, name))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let only one process of this host at a time read and replace the lock, if the file system supports it."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _acquire(folder: Path, *, take_over: bool) -> None:
    path, mine = folder / LOCK_NAME, _this_process()
    holder = _read_lock(path)
    if holder == mine:
        return
    if holder is not None:
        is_here = holder and all(holder.get(name) == mine[name] for name in ("host", "namespace"))
        if (is_here and _is_running(holder)) or not (is_here or take_over):
            raise OutputError(_refusal(folder, holder, is_here=bool(is_here)))
        path.unlink()
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise OutputError(_refusal(folder, _read_lock(path) or {}, is_here=False)) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(mine, stream)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _refusal(folder: Path, holder: Mapping[str, Any], *, is_here: bool) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process (its lock cannot be read)"
    advice = "wait until it has finished, or choose another folder"
    if not is_here:
        advice += ". If that process has ended, take over the folder: --take-over, in Python take_over=True"
    return f"{folder} is being written to by {who}: {advice}"


def _read_lock(path: Path) -> dict[str, Any] | None:
    """Return the values of a lock; None if there is no lock, and an empty dict if it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {"host": str(values["host"]), "pid": int(values["pid"])}
        return known | {name: str(values.get(name, "")) for name in ("started", "namespace")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _this_process() -> dict[str, Any]:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())  # containers may share a host name but not process ids
    except OSError:
        namespace = ""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()) or "",
        "namespace": namespace,
    }


def _start_of(pid: int) -> str | None:
    """Return the start of a process of this host: the boot id and the clock ticks after boot.

    Returns:
        The start; None for a process that has ended, and an empty string if the system does not report it.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return None if words[0] in "ZX" else f"{boot} {words[19]}"  # fields 3 and 22 of proc(5)


def _is_running(holder: Mapping[str, Any]) -> bool:
    pid, recorded = holder["pid"], holder["started"]
    if pid < 1:
        return False
    if os.name == "posix":  # on Windows, signal 0 is Ctrl-C
        try:
            os.kill(pid, 0)
        except OSError as error:
            if error.errno != errno.EPERM:  # EPERM: it exists and belongs to another user
                return False
    started = _start_of(pid)
    if started is None:
        return False
    return not recorded or not started or started == recorded


def paths_of(source: Any) -> Sequence[str | os.PathLike[str]]:
    """Return the paths of a source: one path or a list of paths; empty for other sources, such as arrays."""
    if isinstance(source, (str, os.PathLike)):
        return [source]
    return list(source) if isinstance(source, (list, tuple)) else []
