"""From folders to MONAI datalists: dictionaries with an image, a case name and, where known, mask and label."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from mrad_med.readers import IMAGE_SUFFIXES, is_supported_image
from mrad_med.types import AnomalyKeys

__all__ = ["DatasetError", "find_cases", "load_labelled_folder"]

Datalist = list[dict[str, Any]]


class DatasetError(ValueError):
    """A folder that does not hold what is expected of it."""


def find_cases(root: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None) -> Datalist:
    """Return every image below a folder, or the one file given, sorted by name.

    Hidden files and folders are passed over, links to folders are not followed.

    Args:
        root: a folder, searched recursively, or a file.
        exclude: a folder that is passed over, such as the one results are written to.

    Returns:
        ``{"image": path, "case_id": path below the root without suffix}`` for each file.

    Raises:
        DatasetError: the path does not exist, cannot be listed, holds no image, or is itself the excluded folder.
    """
    root = Path(root)
    if root.is_file():
        return [{AnomalyKeys.IMAGE.value: str(root), AnomalyKeys.CASE_ID.value: _stem(_printable(root.name))}]
    if not root.is_dir():
        raise DatasetError(f"there is no file or folder {root}")
    excluded = None if exclude is None else Path(exclude).resolve()
    if excluded == root.resolve():
        raise DatasetError(f"{root} would hold both images and results; choose another output folder")
    files: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and (Path(folder) / name).resolve() != excluded
        )
        candidates = (Path(folder) / name for name in sorted(names) if not name.startswith("."))
        files.extend(path for path in candidates if is_supported_image(path))
    if not files:
        raise DatasetError(
            f"no image below {root}: photographs (png, jpg, tif, ...), DICOM files and NIfTI volumes are looked for"
        )
    return [
        {AnomalyKeys.IMAGE.value: str(path), AnomalyKeys.CASE_ID.value: case_id}
        for path, case_id in zip(files, _case_ids(files, root), strict=True)
    ]


def _refuse(error: OSError) -> None:
    raise DatasetError(f"cannot list {error.filename} ({error.strerror}); grant access or leave it out") from error


def _case_ids(files: list[Path], root: Path) -> list[str]:
    """Return unique names: the path below the root without suffix, or with it where two files differ only there."""
    names = [_printable(path.relative_to(root).as_posix()) for path in files]
    stems = [_stem(name) for name in names]
    count = Counter(stems)
    taken: set[str] = {stem for stem in stems if count[stem] == 1}
    case_ids = []
    for stem, name in zip(stems, names, strict=True):
        case_id = stem if count[stem] == 1 else name.replace(".", "_")
        while count[stem] > 1 and case_id in taken:
            case_id += "_"
        taken.add(case_id)
        case_ids.append(case_id)
    return case_ids


def _printable(name: str) -> str:
    """Return a name that can be printed, tabulated and made a file of: no bytes outside Unicode, no backslash."""
    return name.encode("utf-8", "replace").decode("utf-8").replace("\\", "_")


def _stem(name: str) -> str:
    """Return a name without the suffix of an image; the last number of a DICOM file's name is none."""
    longest_first = sorted(IMAGE_SUFFIXES, key=len, reverse=True)
    suffix = next((suffix for suffix in longest_first if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def load_labelled_folder(root: str | os.PathLike[str]) -> Datalist:
    """Return the datalist of a folder ``normal/``, ``defect/`` and ``mask/``, paired by name.

    A mask has the stem of its defect image. Images in ``normal/`` need none.

    Args:
        root: the folder; ``mask/`` may be absent (then there are labels only), and one of the others too.

    Returns:
        ``{"image", "case_id", "label", "mask"}`` for each image; the mask is None for a normal image, and for
        all without ``mask/``.

    Raises:
        DatasetError: neither ``normal/`` nor ``defect/`` is there, or a defect image lacks its mask.
    """
    root = Path(root)
    folders = {name: root / name for name in ("normal", "defect", "mask")}
    if not folders["normal"].is_dir() and not folders["defect"].is_dir():
        raise DatasetError(f"{root} has neither normal/ nor defect/: labelled images are expected in these folders")
    masks: dict[str, str] = {}
    if folders["mask"].is_dir():
        masks = {case["case_id"]: case["image"] for case in find_cases(folders["mask"])}
    datalist: Datalist = []
    for label, name in enumerate(("normal", "defect")):
        if not folders[name].is_dir():
            continue
        for case in find_cases(folders[name]):
            mask = masks.get(case["case_id"]) if label else None
            datalist.append(
                {"image": case["image"], "case_id": f"{name}/{case['case_id']}", "label": label, "mask": mask}
            )
    lacking = [item["case_id"] for item in datalist if masks and item["label"] and item["mask"] is None]
    if lacking:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise DatasetError(
            f"{len(lacking)} image(s) in {root / 'defect'} have no mask of the same name in {root / 'mask'}: {shown}"
        )
    return datalist
