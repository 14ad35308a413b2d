"""Find images that occur more than once in a dataset and would be counted more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mrad_med.store import hash_of_file
from mrad_med.types import AnomalyKeys

__all__ = ["find_duplicates"]


def find_duplicates(cases: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the cases whose image file is byte-identical to that of an earlier case.

    Files are compared by size, and by sha256 only if sizes are equal. Most datasets are therefore read only in part.
    An image that was saved again with other compression is not found.

    Args:
        cases: a datalist with ``image`` (a path) and ``case_id``; its order defines which copy is the first.

    Returns:
        ``{case_id of a later copy: case_id of the first}``, in the order of the datalist.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    paths = {str(case[AnomalyKeys.CASE_ID.value]): Path(case[AnomalyKeys.IMAGE.value]) for case in cases}
    of_size: dict[int, list[str]] = defaultdict(list)
    for case_id, path in paths.items():
        of_size[path.stat().st_size].append(case_id)
    candidates = {case_id for group in of_size.values() if len(group) > 1 for case_id in group}
    first: dict[str, str] = {}
    duplicates = {}
    for case_id, path in paths.items():
        if case_id not in candidates:
            continue
        original = first.setdefault(hash_of_file(path), case_id)
        if original != case_id:
            duplicates[case_id] = original
    return duplicates
