"""Load the items of a dataset ahead in other processes, which send them through pipes.

PyTorch's `DataLoader` passes tensors through shared memory, and a Docker container has 64 MB of it by default. When it
is full, the process is killed or the reader waits forever. Pipes need no shared memory. Threads need none either, but
all threads of a process share pydicom's settings, Pillow's limit and Python's warning filters. A thread that leaves
`quiet` would reveal the warnings of another thread, which may quote patient data.
"""

from __future__ import annotations

import io
import pickle
import queue
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

__all__ = ["TIME_LIMIT", "LostItem", "load_ahead"]

TIME_LIMIT = 900.0  # seconds; the largest volumes need a tenth of it
_ITEMS_AHEAD = 2  # per process
_SECONDS_BETWEEN_CHECKS = 1.0
_SIGKILL = 9  # Windows has no signal.SIGKILL


@dataclass(frozen=True)
class LostItem:
    """Placeholder for an item whose process ended or was stopped while it loaded the item.

    Attributes:
        index: number of the item in the dataset.
        reason: cause of the loss and what to do.
    """

    index: int
    reason: str


def load_ahead(dataset: Any, *, num_workers: int, time_limit: float = TIME_LIMIT) -> Iterator[Any]:
    """Yield the items of a dataset in order while other processes load the next ones.

    If a process ends, or is stopped because an item takes too long, only this item is lost. A new process replaces it.

    Args:
        dataset: sequence with a length and items by number. It is copied by fork on Linux, else sent to the processes.
        num_workers: number of processes, at least 1.
        time_limit: seconds that an item may take.

    Yields:
        The item, or a `LostItem`.

    Raises:
        OSError: no process can be started.
        Exception: any error that loading an item raised.
    """
    pool = _Pool(dataset, min(num_workers, len(dataset)), time_limit)
    pending: deque[Future[Any]] = deque()
    # One thread per process empties its pipe while the caller is busy, so the process can continue.
    with ThreadPoolExecutor(num_workers, thread_name_prefix="mrad_med-loader") as threads:
        try:
            for index in range(len(dataset)):
                pool.fill_up()
                pending.append(threads.submit(pool.load, index))
                if len(pending) > _ITEMS_AHEAD * num_workers:
                    yield pool.wait_for(pending.popleft())
            while pending:
                yield pool.wait_for(pending.popleft())
        finally:
            for future in pending:
                future.cancel()
            pool.stop()


@dataclass(frozen=True)
class _Raised:
    error: BaseException


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class _Pool:
    """Processes that load items, each one item at a time.

    Only the caller's thread starts processes, because a fork copies the locks that other threads hold at that moment.
    """

    def __init__(self, dataset: Any, size: int, time_limit: float) -> None:
        self.dataset = dataset
        self.size = size
        self.time_limit = time_limit
        # MONAI matches a transform with its inverse by id. Only forks keep the id; for "spawn" MONAI compares names.
        self._context: Any = get_context("fork" if sys.platform == "linux" else None)
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        torch.get_num_threads()  # fixes the number for this thread before a worker sets its own

    def fill_up(self) -> None:
        """Replace the processes that ended.

        Raises:
            OSError: no process can be started and none is left.
        """
        self._workers = [worker for worker in self._workers if not worker.connection.closed]
        try:
            while len(self._workers) < self.size:
                self._start()
        except OSError as error:
            if not self._workers:
                raise OSError(
                    f"cannot start a process to read ahead ({error.strerror}): use fewer --jobs (num_workers), or 0"
                ) from error

    def wait_for(self, future: Future[Any]) -> Any:
        """Return the result of `load` from another thread, and replace ended processes meanwhile.

        Raises:
            Exception: any error that loading the item raised.
        """
        while not future.done():
            self.fill_up()
            wait([future], timeout=_SECONDS_BETWEEN_CHECKS)
        item = future.result()
        if isinstance(item, _Raised):
            raise item.error
        return item

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self.dataset, theirs, ours), daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # so reading ends when the process ends
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._idle.put(worker)

    def load(self, index: int) -> Any:
        """Return an item, a `LostItem`, or the error of loading it (`_Raised`); called by several threads."""
        worker = self._idle.get()
        if worker is None:
            return LostItem(index, "the loading was stopped")
        reason = ""
        try:
            worker.connection.send(index)
            if worker.connection.poll(self.time_limit):
                content = worker.connection.recv_bytes()
                self._idle.put(worker)
                return pickle.loads(content)  # noqa: S301 - from a process that this one started
            reason = (
                f"loading it took more than {self.time_limit:g} s; check that its disk or network folder can be reached"
            )
            worker.process.kill()
        except (EOFError, OSError):  # the process ended
            pass
        worker.process.join()
        worker.connection.close()
        return LostItem(index, reason or _explain(worker.process.exitcode))

    def stop(self) -> None:
        """Stop all processes, and release the threads that wait for one."""
        for worker in self._workers:
            worker.process.kill()
        for _ in range(self.size):
            self._idle.put(None)
        for worker in self._workers:
            worker.process.join()


def _explain(exitcode: int | None) -> str:
    """Return why a process ended while it loaded an item."""
    if exitcode == -_SIGKILL:
        return "the process that loaded it was killed, probably out of memory: use fewer --jobs (num_workers)"
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        return f"the process that loaded it crashed ({name}); the file may be damaged: leave it out and report it"
    return f"the process that loaded it ended with status {exitcode}; please report it"


def _serve(dataset: Any, connection: Connection, other_end: Connection) -> None:
    """Load items and send them until the other side closes the pipe."""
    other_end.close()  # else this process would keep the pipe open after the other side has ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the main process handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            index = connection.recv()
            try:
                content = _pack(dataset[index])
            except BaseException as error:
                content = _pack_error(error)
            connection.send_bytes(content)


def _pack_error(error: BaseException) -> bytes:
    try:
        return _pack(_Raised(error))
    except Exception:  # an error may contain objects that cannot be pickled
        return _pack(_Raised(RuntimeError(f"loading an item raised {type(error).__name__}")))


def _pack(item: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(item)
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    """Pickler that copies the values of a tensor once; torch's own pickling makes three copies."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) not in (Tensor, MetaTensor) or value.device.type != "cpu" or value.requires_grad:
            return NotImplemented
        state = value.__dict__ if isinstance(value, MetaTensor) else None
        try:
            return _unpack_tensor, (value.as_subclass(Tensor).contiguous().numpy(), state)
        except TypeError:  # NumPy has no bfloat16 and some other types
            return NotImplemented


def _unpack_tensor(values: Any, state: dict[str, Any] | None) -> Tensor:
    tensor = torch.from_numpy(values)
    if state is not None:
        tensor = tensor.as_subclass(MetaTensor)
        tensor.__dict__.update(state)
    return tensor
