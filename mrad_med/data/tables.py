"""Read datasets from lists of files: CSV tables, ``meta.json`` of the AnomalyCLIP family, MONAI datalists."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrad_med.data.datalist import Datalist, Report, reporter, shorten
from mrad_med.data.names import printable
from mrad_med.data.paths import name_cases, path_below
from mrad_med.errors import DatasetError
from mrad_med.types import AnomalyKeys

__all__ = ["cases_of_rows", "load_csv", "load_datalist_json", "load_meta_json", "read_table"]

LABELS = {
    **dict.fromkeys(("0", "0.0", "false", "normal", "good", "ok"), 0),
    **dict.fromkeys(("1", "1.0", "true", "anomaly", "anomalous", "abnormal", "defect"), 1),
}
OPTIONAL = ("patient", "sequence", AnomalyKeys.MASK_THRESHOLD.value)  # copied to the case if present

PROBLEMS = {
    "image": "name no image and are left out; fill in the image",
    "absent": "name an image that does not exist and are left out; unpack or copy the images again",
    "twice": "repeat an image or case_id of an earlier row and are left out; remove them",
    "label": "have no label of 0 or 1 (or normal, anomaly) and are left out; fill in the label",
    "columns": "have more cells than the table has columns and are left out; quote texts with commas",
    "mask": "name a mask that does not exist and are kept without it; unpack or copy the masks again",
    "unmasked": "are labeled anomalous but have no mask, unlike other rows, and are kept without it; fill in the mask",
}


def cases_of_rows(
    rows: Iterable[Mapping[str, Any]], root: Path, *, where: object, class_name: str, report: Report
) -> Datalist:
    """Return the cases of table rows after checking that their files exist.

    Args:
        rows: mappings with ``image`` and optionally ``mask`` (paths below the root), ``label``, ``class``, ``case_id``,
            ``patient``, ``sequence``, ``mask_threshold``. Without label, a row with a mask is anomalous.
        root: folder that paths are relative to.
        where: name of the table, for messages.
        class_name: class of rows that do not state one.
        report: function that receives the problems, one message per type of problem.

    Raises:
        DatasetError: a path leads out of the folder, or no row is usable.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    cases: Datalist = []
    taken: set[str] = set()
    for number, row in enumerate(rows, 1):
        case = _case_of_row(row, root, class_name)
        name = str(row.get("image") or f"row {number}")
        reason = _why_left_out(row, case, taken)
        if reason:
            problems[reason].append(name)
            continue
        taken.update((case["image"], case["case_id"] or case["image"]))
        if case["mask"] and not Path(case["mask"]).is_file():
            problems["mask"].append(name)
            case["mask"] = None
        elif case["label"] and not case["mask"]:
            problems["unmasked"].append(name)
        cases.append(case)
    if not any(case["mask"] for case in cases):
        problems.pop("unmasked", None)  # the dataset has labels only
    for problem, names in problems.items():
        report(f"{len(names)} row(s) of {where} {PROBLEMS[problem]}: {shorten(names)}")
    if not cases:
        raise DatasetError(
            f"{where} names no usable image; check that it is the right table and in the folder of its images"
        )
    return _with_case_ids(cases, root)


def _case_of_row(row: Mapping[str, Any], root: Path, class_name: str) -> dict[str, Any]:
    image, mask = str(row.get("image") or ""), str(row.get("mask") or "")
    label = row.get("label")
    known = LABELS.get(str(label).strip().lower())
    case_id = str(row.get("case_id") or "")
    if case_id:  # output files get this name
        path_below(root, case_id)
    return {
        "image": str(path_below(root, image)),
        "case_id": printable(case_id),
        "label": 1 if mask and label in (None, "") else known,
        "mask": str(path_below(root, mask)) if mask else None,
        "class": str(row.get("class") or class_name),
        **{key: row[key] for key in OPTIONAL if row.get(key) not in (None, "")},
    }


def _why_left_out(row: Mapping[str, Any], case: Mapping[str, Any], taken: set[str]) -> str | None:
    reasons = {
        "columns": None in row,
        "image": not row.get("image"),
        "absent": not Path(case["image"]).is_file(),
        "twice": case["image"] in taken or case["case_id"] in taken,
        "label": case["label"] is None,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _with_case_ids(cases: Datalist, root: Path) -> Datalist:
    """Fill in missing case ids from image paths, distinct from all others, and return the cases."""
    taken = {case["case_id"] for case in cases}
    for case, derived in zip(cases, name_cases([Path(case["image"]) for case in cases], root), strict=True):
        if not case["case_id"]:
            while derived in taken:
                derived += "_"
            case["case_id"] = derived
            taken.add(derived)
    return cases


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file with a header. Cells are stripped; column names are also made lower case.

    Raises:
        DatasetError: the file cannot be read as a table, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({type(error).__name__}); save it as CSV in UTF-8") from error
    header = [name.strip().lower() for name in lines[0]] if lines else []
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise DatasetError(f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(header) or 'none'}")
    rows: list[dict[Any, Any]] = []
    for line in lines[1:]:
        if any(cell.strip() for cell in line):
            row: dict[Any, Any] = dict.fromkeys(header, "")
            row.update(zip(header, (cell.strip() for cell in line), strict=False))
            rows.append({**row, None: line[len(header) :]} if len(line) > len(header) else row)
    return rows


def load_csv(root: str | os.PathLike[str], *, split: str = "test", strict: bool = False) -> Datalist:
    """Return the datalist of a table with the columns ``image`` and ``label`` or ``mask`` (or both).

    Optional columns are ``class``, ``case_id``, ``patient``, ``sequence``, ``mask_threshold`` and ``split``. With
    ``split``, only the rows of the split are read. Without ``label``, images with a mask are anomalous.

    Args:
        root: path of the table, or of a folder with a single table; file names are relative to its folder.
        split: name of the split to read, if the table has a column ``split``.
        strict: whether a problem with a row is an error instead of a warning.

    Raises:
        DatasetError: the table is missing, lacks columns or the split, names a file outside its folder, or names no
            usable image.
    """
    table = _find_listing(Path(root), ".csv", ())
    rows = read_table(table, ["image"])
    columns = {name for row in rows for name in row}
    if rows and not columns & {"label", "mask"}:
        raise DatasetError(f"{table} lacks the columns label and mask; one of them must mark the anomalous images")
    if "split" in columns:
        rows = _rows_of_split(rows, split, table)
    if "label" not in columns:
        rows = [{**row, "label": int(bool(row.get("mask")))} for row in rows]
    for row in rows:
        threshold = row.get(AnomalyKeys.MASK_THRESHOLD.value)
        if threshold:
            row[AnomalyKeys.MASK_THRESHOLD.value] = _number(threshold, table)
    report = reporter(strict=strict)
    return cases_of_rows(rows, table.parent, where=table, class_name=table.parent.resolve().name, report=report)


def _number(text: str, table: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DatasetError(f"{table} has a mask_threshold that is not a number: {text!r}") from error


def _rows_of_split(rows: list[dict[str, Any]], split: str, table: Path) -> list[dict[str, Any]]:
    splits = {str(row.get("split") or "") for row in rows}
    if split not in splits:
        raise DatasetError(f"{table} has no split {split!r}; it has {', '.join(sorted(splits)) or 'no rows'}")
    return [row for row in rows if row.get("split") == split]


def _find_listing(root: Path, suffix: str, preferred: Sequence[str]) -> Path:
    """Return the given file, or from a folder the file with a preferred name or the only file with the suffix."""
    if root.is_file():
        return root
    if not root.is_dir():
        raise DatasetError(f"there is no file or folder {root}")
    found = sorted(path for path in root.glob(f"*{suffix}") if path.is_file() and not path.name.startswith("."))
    for name in preferred:
        if root / name in found:
            return root / name
    if len(found) != 1:
        seen = f"{len(found)} ({shorten(path.name for path in found)})" if found else "none"
        raise DatasetError(f"expected one {suffix} file in {root}, found {seen}; give its path")
    return found[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({type(error).__name__}); save it again") from error


def load_meta_json(root: str | os.PathLike[str], *, split: str = "test", strict: bool = False) -> Datalist:
    """Return the datalist of a ``meta.json`` of the AnomalyCLIP family.

    Its layout is ``{split: {class: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}``.

    Args:
        root: path of the file, or of its folder; file names are relative to this folder.
        split: ``"train"`` or ``"test"``.
        strict: whether a problem with a case is an error instead of a warning.

    Raises:
        DatasetError: the file is missing or has another layout, names a file outside its folder, or names no usable
            image.
    """
    path = _find_listing(Path(root), "meta.json", ())
    content = _read_json(path)
    classes = content.get(split) if isinstance(content, dict) else None
    if isinstance(content, dict) and split not in content:
        raise DatasetError(f"{path} has no split {split!r}; it has {', '.join(map(str, content)) or 'none'}")
    if not isinstance(classes, dict) or not all(_is_list_of_mappings(items) for items in classes.values()):
        raise DatasetError(f"{path} has an unexpected layout; expected {{split: {{class: [cases]}}}}")
    rows = [
        {"image": item.get("img_path"), "mask": item.get("mask_path"), "label": item.get("anomaly"), "class": name}
        for name, items in classes.items()
        for item in items
    ]
    report = reporter(strict=strict)
    return cases_of_rows(rows, path.parent, where=path, class_name=path.parent.resolve().name, report=report)


def load_datalist_json(root: str | os.PathLike[str], *, split: str = "test", strict: bool = False) -> Datalist:
    """Return a MONAI datalist saved as JSON: ``{split: [cases]}``, or one list that is used for every split.

    A case is ``{"image", "label" and / or "mask", ...}``. As in MONAI's segmentation lists, a ``label`` that is the
    path of a file is the mask. The optional keys are the optional columns of `load_csv`, except ``split``.

    Args:
        root: path of the file, or of a folder with ``datalist.json``, ``dataset.json`` or a single JSON file.
        split: name of the split, such as ``"training"``, ``"validation"``, ``"test"``.
        strict: whether a problem with a case is an error instead of a warning.

    Raises:
        DatasetError: the file is missing or has another layout, names a file outside its folder, or names no usable
            image.
    """
    path = _find_listing(Path(root), ".json", ("datalist.json", "dataset.json"))
    content = _read_json(path)
    if isinstance(content, dict) and split not in content:
        raise DatasetError(f"{path} has no split {split!r}; it has {', '.join(map(str, content)) or 'none'}")
    items = content[split] if isinstance(content, dict) else content
    if not _is_list_of_mappings(items):
        raise DatasetError(f"{path} has an unexpected layout; expected [cases] or {{split: [cases]}}")
    report = reporter(strict=strict)
    rows = [_row_of_item(item) for item in items]
    return cases_of_rows(rows, path.parent, where=path, class_name=path.parent.resolve().name, report=report)


def _is_list_of_mappings(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) for item in items)


def _row_of_item(item: Mapping[str, Any]) -> dict[str, Any]:
    label = item.get("label")
    if isinstance(label, str) and label.strip().lower() not in LABELS and not item.get("mask"):
        return {**item, "mask": label, "label": None}
    return dict(item)
