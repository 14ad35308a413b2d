"""Tables of a run: one row for each case, for each slice of a volume, and for each study."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrad_med.data.cells import write_csv
from mrad_med.files import atomic_path
from mrad_med.io.frames import Frame
from mrad_med.io.volume_writer import slice_positions
from mrad_med.results.case_result import CaseResult
from mrad_med.types import NOTHING_TO_SCORE, FailedCase

__all__ = [
    "SCORE_COLUMNS",
    "SLICE_COLUMNS",
    "STUDY_COLUMNS",
    "describe_cases",
    "score_row",
    "slice_rows",
    "slices_of",
    "study_rows",
    "write_or_remove",
    "write_record",
    "write_table",
]

SCORE_COLUMNS = (
    "case_id",
    "status",
    "anomaly_score",
    "map_minimum",
    "map_maximum",
    "peak",
    "kind",
    "study",
    "time_s",
    "map",
    "overlay",
    "files",
    "reason",
)
SLICE_COLUMNS = ("case_id", "slice", "position_mm", "score", "map_maximum", "peak", "status")
STUDY_COLUMNS = ("study", "cases", "failed", "nothing_to_score", "anomaly_score", "highest_case")


def score_row(result: CaseResult, files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the row of a case in ``scores.csv``.

    Args:
        result: result of the case.
        files: written files, by the name of the output.
    """
    first = {name: paths[0] for name, paths in files.items() if paths}
    map_file = next((first[name] for name in ("tiff", "nifti", "nrrd", "png") if name in first), "")
    overlay = first.get("overlay", "")
    others = [path for paths in files.values() for path in paths if path not in (map_file, overlay)]
    time = result.source.time if isinstance(result.source, Frame) else None
    return {
        "case_id": result.case_id,
        "status": "ok",
        "anomaly_score": f"{result.anomaly_score:.7g}",
        "map_minimum": f"{result.anomaly_map.min():.7g}",
        "map_maximum": f"{result.anomaly_map.max():.7g}",
        "peak": " ".join(map(str, result.peak)),
        "kind": result.kind,
        "study": result.study,
        "time_s": "" if time is None else f"{time:.3f}",
        "map": map_file,
        "overlay": overlay,
        "files": "; ".join(others),
    }


def slices_of(result: CaseResult) -> list[dict[str, Any]]:
    """Return the rows of a volume's slices; empty for an image, or if slices were not scored."""
    if result.affine is None or result.slice_scores is None:
        return []
    axis, scores = result.slice_axis, result.slice_scores
    rows = slice_rows(result.case_id, result.anomaly_map, result.affine, scores, axis=axis)
    return rows if result.has_position else [{**row, "position_mm": ""} for row in rows]


def study_rows(rows: Iterable[Mapping[str, str]], failures: Sequence[FailedCase]) -> list[dict[str, Any]]:
    """Return one row for each study: its number of cases, and the case with the highest score.

    Args:
        rows: rows of ``scores.csv``. Those without a study are left out.
        failures: cases without a score: those that failed, and those with nothing to score.
    """
    of_study: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        of_study[row["study"]].append(row)
    failed, blank = (
        Counter(failure.study for failure in failures if failure.is_failure == is_failure)
        for is_failure in (True, False)
    )
    table = []
    for study in dict.fromkeys([*of_study, *failed, *blank]):
        members = of_study[study]
        highest: Mapping[str, str] = max(members, key=lambda row: float(row["anomaly_score"]), default={})
        score, name = highest.get("anomaly_score", ""), highest.get("case_id", "")
        if study:
            values = (study, len(members), failed[study], blank[study], score, name)
            table.append(dict(zip(STUDY_COLUMNS, values, strict=True)))
    return table


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table as CSV, completely or not at all; see `mrad_med.data.cells.write_csv`."""
    write_csv(path, columns, rows)


def write_or_remove(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table if it has rows; without rows, remove the table of an earlier run."""
    if rows:
        write_table(path, columns, rows)
    else:
        path.unlink(missing_ok=True)


def describe_cases(
    done: int, failures: Sequence[FailedCase], not_reached: Sequence[str], shortfalls: Sequence[FailedCase]
) -> dict[str, Any]:
    """Return the part of ``run.json`` about cases.

    Args:
        done: number of cases that were scored.
        failures: cases without a score: those that failed, and those with nothing to score.
        not_reached: names of cases that the run did not reach.
        shortfalls: outputs of scored cases that could not be written.
    """
    total = done + len(failures) + len(not_reached)
    failed = [item for item in failures if item.is_failure]
    blank = [item for item in failures if not item.is_failure]
    lists = {
        name: [{"case_id": item.case_id, "reason": item.reason} for item in items]
        for name, items in (("failures", failed), ("nothing_to_score", blank), ("not_written", shortfalls))
    }
    return {
        "cases": {"total": total, "ok": done, "failed": len(failed), "nothing_to_score": len(blank)},
        "not_reached": {"count": len(not_reached), "cases": list(not_reached)},
        **lists,
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, completely or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def slice_rows(
    case_id: str,
    anomaly_map: NDArray[np.float32],
    affine: NDArray[np.float64],
    scores: NDArray[np.floating[Any]],
    *,
    axis: int = 2,
) -> list[dict[str, str | int | float]]:
    """Return one row for each slice of a volume, with plain values for CSV or JSON.

    Args:
        case_id: name of the volume.
        anomaly_map: (X, Y, Z) anomaly map.
        affine: (4, 4) voxel to world matrix (RAS, mm).
        scores: (D,) scores of the slices, NaN for slices with nothing to score.
        axis: array axis of the slices: 0, 1 or 2.

    Returns:
        Rows of ``case_id``, ``slice`` (index from 0), ``position_mm`` (see `slice_positions`), ``score``,
        ``map_maximum``, ``peak``, the index "x y z" of the slice's highest value, and ``status``. A slice with nothing
        to score has only its position and this status.

    Raises:
        ValueError: the map does not have three axes, the axis is not 0, 1 or 2, or the number of scores differs from
            the number of slices.
    """
    if anomaly_map.ndim != 3:
        raise ValueError(f"expected the map of a volume, (X, Y, Z), got shape {anomaly_map.shape}")
    positions = slice_positions(affine, len(scores), axis=axis)
    if np.shape(scores) != (anomaly_map.shape[axis],):
        raise ValueError(
            f"expected one score for each of {anomaly_map.shape[axis]} slices along axis {axis}, "
            f"got shape {np.shape(scores)}"
        )
    rows: list[dict[str, str | int | float]] = []
    for index, (slice_map, position) in enumerate(zip(np.moveaxis(anomaly_map, axis, 0), positions, strict=True)):
        peak = [int(i) for i in np.unravel_index(int(slice_map.argmax()), slice_map.shape)]
        peak.insert(axis, index)
        row: dict[str, str | int | float] = {
            "case_id": case_id,
            "slice": index,
            "position_mm": round(float(position), 4),
            "score": float(scores[index]),
            "map_maximum": float(slice_map.max()),
            "peak": " ".join(map(str, peak)),
            "status": "ok",
        }
        if np.isnan(scores[index]):
            row |= {"score": "", "map_maximum": "", "peak": "", "status": NOTHING_TO_SCORE}
        rows.append(row)
    return rows
