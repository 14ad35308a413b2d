"""Read labeled folders as MONAI datalists: dictionaries with image, case id, label, mask and class."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrad_med.data.datalist import Datalist, Report, reporter, shorten
from mrad_med.data.names import printable
from mrad_med.data.paths import find_files, name_cases, refuse_listing
from mrad_med.data.tables import cases_of_rows, read_table
from mrad_med.errors import DatasetError
from mrad_med.types import AnomalyKeys

__all__ = ["DatasetError", "choose_held_out", "load_labeled_folder", "load_training_set", "load_visa"]


def load_labeled_folder(root: str | os.PathLike[str], *, strict: bool = True) -> Datalist:
    """Return the datalist of a folder with ``normal/``, ``defect/`` and ``mask/``, or of one such folder per class.

    A mask has the same stem as its defect image. Normal images need no mask. Hidden folders are skipped.

    Args:
        root: path of the folder. ``mask/`` may be absent if there are labels only; ``normal/`` or ``defect/`` may be
            absent too.
        strict: whether a defect image without its mask is an error. If False, the image is kept without mask and a
            warning is logged.

    Returns:
        ``{"image", "case_id", "label", "mask", "class"}`` for each image. The mask is None for normal images, and for
        all images if there is no ``mask/``. The class is the path below the root, or the root's name if the root
        itself has ``normal/`` or ``defect/``.

    Raises:
        DatasetError: there is no ``normal/`` and no ``defect/``, or a defect image lacks its mask.
    """
    root, report = Path(root), reporter(strict=strict)
    if _is_labeled(root):
        return _load_class(root, root.resolve().name, "", report)
    datalist: Datalist = []
    for folder, subfolders, _ in os.walk(root, onerror=refuse_listing, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in list(subfolders):
            path = Path(folder) / name
            if _is_labeled(path):
                subfolders.remove(name)
                class_name = printable(path.relative_to(root).as_posix())
                datalist += _load_class(path, class_name, class_name + "/", report)
    if not datalist:
        raise DatasetError(f"neither {root} nor a folder below it has normal/ or defect/; put the labeled images there")
    return datalist


def _is_labeled(folder: Path) -> bool:
    return (folder / "normal").is_dir() or (folder / "defect").is_dir()


def _load_class(root: Path, class_name: str, prefix: str, report: Report) -> Datalist:
    """Return the datalist of one folder with ``normal/``, ``defect/`` and ``mask/``."""
    masks: dict[str, str] = {}
    if (root / "mask").is_dir():
        masks = {case_id: path for path, case_id in _named(root / "mask")}
    datalist: Datalist = []
    for label, name in enumerate(("normal", "defect")):
        if not (root / name).is_dir():
            continue
        for path, case_id in _named(root / name):
            datalist.append(
                {
                    "image": path,
                    "case_id": f"{prefix}{name}/{case_id}",
                    "label": label,
                    "mask": masks.get(case_id) if label else None,
                    "class": class_name,
                }
            )
    lacking = [item["case_id"] for item in datalist if masks and item["label"] and item["mask"] is None]
    if lacking:
        report(
            f"{len(lacking)} image(s) in {root / 'defect'} have no mask of the same name in {root / 'mask'}: "
            f"{shorten(lacking)}"
        )
    return datalist


def _named(folder: Path) -> list[tuple[str, str]]:
    """Return the path and the case id of each image below a folder."""
    files = find_files(folder)
    return list(zip(map(str, files), name_cases(files, folder), strict=True))


def load_visa(root: str | os.PathLike[str], *, split: str = "test", strict: bool = True) -> Datalist:
    """Return the datalist of the VisA download: ``<class>/Data/{Images,Masks}`` and ``split_csv/1cls.csv``.

    Args:
        root: folder of the unpacked archive.
        split: ``"train"`` (normal images only) or ``"test"``. The 2162 test images are the published training set of
            MRAD.
        strict: whether a missing file of the table is an error. If False, a case without image is left out and a case
            without mask is kept, with a warning.

    Returns:
        Cases as in `load_labeled_folder`, with mask threshold 0: masks hold class numbers, so any value above 0 is
        anomalous.

    Raises:
        DatasetError: the table is missing or has another layout, or names a file that is missing or outside the root.

    Reference:
        Zou et al., SPot-the-Difference self-supervised pre-training for anomaly detection and segmentation, ECCV 2022.
    """
    return visa_cases(Path(root), split, report=reporter(strict=strict))


def visa_cases(root: Path, split: str, *, report: Report) -> Datalist:
    """Return the datalist of `load_visa`; ``report`` receives each problem with the rows."""
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DatasetError(f"{root} has no split_csv/1cls.csv: unpack the whole archive of VisA there")
    named = read_table(table, ["object", "split", "label", "image", "mask"])
    rows = [
        {**row, "class": row.get("object"), AnomalyKeys.MASK_THRESHOLD.value: 0}
        for row in named
        if row.get("split") == split
    ]
    if not rows:
        raise DatasetError(f"{table} has no split {split!r}; 'train' and 'test' are expected")
    return cases_of_rows(rows, root, where=table, class_name="", report=report)


def load_training_set(root: str | os.PathLike[str]) -> Datalist:
    """Return the datalist of a labeled dataset: the VisA download, or a folder for `load_labeled_folder`.

    Raises:
        DatasetError: the folder has neither layout.
    """
    return load_visa(root) if (Path(root) / "split_csv").is_dir() else load_labeled_folder(root)


def choose_held_out(
    cases: Sequence[Mapping[str, Any]], held_out: int | str | Sequence[str], *, seed: int = 0
) -> list[str]:
    """Return the sorted names of the classes that are held out for validation.

    Args:
        cases: a datalist with classes.
        held_out: name or names of classes, or the number of classes to draw at random. 0 trains on all, as published.
        seed: seed of the random draw.

    Raises:
        DatasetError: a class is unknown, no class is left to train on, or the number is negative.
    """
    classes = sorted({str(case.get("class", "")) for case in cases})
    if isinstance(held_out, int):
        if held_out < 0:
            raise DatasetError(f"the number of held-out classes must not be negative, got {held_out}")
        held_out = random.Random(seed).sample(classes, min(held_out, len(classes)))  # noqa: S311 - no secret
    chosen = {held_out} if isinstance(held_out, str) else set(held_out)
    unknown = sorted(chosen - set(classes))
    if unknown:
        raise DatasetError(f"there is no class {', '.join(unknown)} to hold out; the set has {', '.join(classes)}")
    if chosen == set(classes):
        raise DatasetError(
            f"no class is left to train on: {', '.join(classes)} would be held out; hold out fewer, or 0 to train "
            "without validation"
        )
    return sorted(chosen)
