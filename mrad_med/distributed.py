"""Work that is split among the processes of torch.distributed; all functions also work with a single process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["gather_parts", "rank_and_world", "share_work"]


Item = TypeVar("Item")
Result = TypeVar("Result")


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process, counted from 0, and the number of processes; (0, 1) without distribution."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_parts(part: Any) -> list[Any]:
    """Return the parts of all processes, in the order of their ranks.

    Args:
        part: object of this process; it must be picklable.
    """
    if not dist.is_initialized():
        return [part]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def share_work(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
    """Process the items of this process, and return the results of all processes in the order of their ranks.

    Args:
        work: function that is called once with the items of this process.
        items: all items, the same in the same order for every process.

    Raises:
        Exception: ``work`` failed in this process; the error is raised unchanged.
        RuntimeError: ``work`` failed in another process. All processes then stop instead of waiting for it.
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
