"""Work that is shared among the processes of torch.distributed; a run of one process needs no case of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["gather_parts", "rank_and_world", "share_work"]


Item = TypeVar("Item")
Result = TypeVar("Result")


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process from 0, and how many processes there are: (0, 1) where there is only one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_parts(part: Any) -> list[Any]:
    """Return what every process has, in the order of the processes.

    Args:
        part: what this process has; any object that can be pickled.
    """
    if not dist.is_initialized():
        return [part]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def share_work(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
    """Do the share of this process and return the results of all processes, in the order of the processes.

    Args:
        work: called once with the items of this process.
        items: all items; every process gives the same ones in the same order.

    Raises:
        Exception: the error of this process as it was raised.
        RuntimeError: another process failed. All processes stop, so that none waits for one that has ended.
    """
    rank, world = rank_and_world()
    if world == 1:
        return [work(items)]
    result: Result | None = None
    problem: Exception | None = None
    try:
        result = work(items[rank::world])
    except Exception as error:
        problem = error
    gathered = gather_parts((result, problem and f"{type(problem).__name__}: {problem}"))
    if problem is not None:
        raise problem
    for number, (_, message) in enumerate(gathered):
        if message:
            raise RuntimeError(f"process {number} of {world} failed: {message}")
    return [result for result, _ in gathered]
