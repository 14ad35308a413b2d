"""Items of a dataset, loaded ahead by other processes that send them through pipes.

PyTorch's `DataLoader` hands tensors over in shared memory, of which a Docker container has 64 MB by default: a process
that finds no room there is killed, or the reader waits forever. Pipes need no shared memory. Threads need none either,
but pydicom's switches, Pillow's limit and Python's filters of warnings are common to all threads of a process: a thread
that leaves `quiet` would let the warnings of another one through, which may quote a patient.
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

TIME_LIMIT = 900.0  # seconds; the largest volumes take a tenth of it
_ITEMS_AHEAD = 2  # for each process
_SECONDS_BETWEEN_CHECKS = 1.0
_SIGKILL = 9  # Windows has no name for it


@dataclass(frozen=True)
class LostItem:
    """Stands for an item whose process ended or was stopped while it loaded the item.

    Attributes:
        index: number of the item in the dataset.
        reason: what happened and what to do.
    """

    index: int
    reason: str


def load_ahead(dataset: Any, *, num_workers: int, time_limit: float = TIME_LIMIT) -> Iterator[Any]:
    """Yield the items of a dataset in order; other processes load the next ones meanwhile.

    A process that ends, or that is stopped because an item takes too long, costs this item alone: another process takes
    its place.

    Args:
        dataset: has a length and items by number; the processes are forks where the system has them.
        num_workers: number of processes, at least 1.
        time_limit: seconds that an item may take.

    Yields:
        The item, or a `LostItem`.

    Raises:
        OSError: no process can be started.
        Exception: loading an item raised it.
    """
    crew = _Crew(dataset, min(num_workers, len(dataset)), time_limit)
    pending: deque[Future[Any]] = deque()
    # A thread waits for each process: it empties the pipe while the caller is busy, so that the process can continue.
    with ThreadPoolExecutor(num_workers, thread_name_prefix="mrad_med-loader") as threads:
        try:
            for index in range(len(dataset)):
                crew.fill_up()
                pending.append(threads.submit(crew.load, index))
                if len(pending) > _ITEMS_AHEAD * num_workers:
                    yield crew.wait_for(pending.popleft())
            while pending:
                yield crew.wait_for(pending.popleft())
        finally:
            for future in pending:
                future.cancel()
            crew.dismiss()


@dataclass(frozen=True)
class _Raised:
    error: BaseException


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class _Crew:
    """Processes that load items, each one item at a time.

    Processes are started by the caller's thread alone: a fork copies the locks that other threads hold at that moment.
    """

    def __init__(self, dataset: Any, size: int, time_limit: float) -> None:
        self.dataset = dataset
        self.size = size
        self.time_limit = time_limit
        # MONAI matches a transform with its inverse by id, which only forks keep; it allows for "spawn".
        self._context: Any = get_context("fork" if sys.platform == "linux" else None)
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        torch.get_num_threads()  # fixes the number for this thread before a worker sets its own

    def fill_up(self) -> None:
        """Start processes in place of those that ended.

        Raises:
            OSError: none can be started, and none is left.
        """
        self._workers = [worker for worker in self._workers if not worker.connection.closed]
        try:
            while len(self._workers) < self.size:
                self._start()
        except OSError as error:
            if not self._workers:
                raise OSError(
                    f"no process that reads ahead can be started ({error.strerror}): use fewer --jobs (num_workers), "
                    "or 0"
                ) from error

    def wait_for(self, future: Future[Any]) -> Any:
        """Return what `load` returned in another thread, and keep the crew complete meanwhile.

        Raises:
            Exception: loading the item raised it.
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
            theirs.close()  # so that the end of the process is the end of what can be read
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._idle.put(worker)

    def load(self, index: int) -> Any:
        """Return an item, a `LostItem`, or what loading it raised; called by several threads."""
        worker = self._idle.get()
        if worker is None:
            return LostItem(index, "the loading was stopped")
        reason = ""
        try:
            worker.connection.send(index)
            if worker.connection.poll(self.time_limit):
                content = worker.connection.recv_bytes()
                self._idle.put(worker)
                return pickle.loads(content)  # noqa: S301 - written by a process that this one started
            reason = f"loading it took more than {self.time_limit:g} s: can its disk or network folder be reached?"
            worker.process.kill()
        except (EOFError, OSError):  # the process ended
            pass
        worker.process.join()
        worker.connection.close()
        return LostItem(index, reason or _explain(worker.process.exitcode))

    def dismiss(self) -> None:
        """Stop all processes; threads that wait for one return."""
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
        return f"the process that loaded it crashed ({name}); is the file damaged? Leave it out and report it"
    return f"the process that loaded it ended with status {exitcode}; please report it"


def _serve(dataset: Any, connection: Connection, other_end: Connection) -> None:
    """Load items and send them, until the other side closes the pipe."""
    other_end.close()  # else this process would keep its own pipe open after the other side has ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the other side decides
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
    except Exception:  # an error may hold anything
        return _pack(_Raised(RuntimeError(f"loading an item raised {type(error).__name__}")))


def _pack(item: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(item)
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    """Pickles the values of tensors as they are, once; torch's own way makes three copies."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) not in (Tensor, MetaTensor) or value.device.type != "cpu" or value.requires_grad:
            return NotImplemented
        state = value.__dict__ if isinstance(value, MetaTensor) else None
        try:
            return _unpack_tensor, (value.as_subclass(Tensor).contiguous().numpy(), state)
        except TypeError:  # NumPy lacks bfloat16 and others
            return NotImplemented


def _unpack_tensor(values: Any, state: dict[str, Any] | None) -> Tensor:
    tensor = torch.from_numpy(values)
    if state is not None:
        tensor = tensor.as_subclass(MetaTensor)
        tensor.__dict__.update(state)
    return tensor
