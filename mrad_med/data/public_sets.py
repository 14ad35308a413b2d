"""Load labeled datasets by name, check them against the catalog, and list the datasets on disk."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mrad_med.data.archives import ARCHIVES, find_archive, load_archive, load_folder
from mrad_med.data.catalog import DATASETS, Counts, PublicDataset
from mrad_med.data.datalist import Datalist, Report, reporter, withheld_names
from mrad_med.data.tables import load_csv, load_datalist_json, load_meta_json
from mrad_med.errors import DatasetError

__all__ = ["InventoryRow", "list_datasets", "load_datalist"]


def load_datalist(
    name: str,
    root: str | os.PathLike[str],
    *,
    split: str = "test",
    strict: bool = False,
    keep_identifiers: bool = False,
) -> Datalist:
    """Return the MONAI datalist of a labeled dataset on disk.

    Args:
        name: name in `DATASETS`, ignoring case and treating ``_`` as ``-``, or a general layout. The general layouts
            are ``"folder"`` (``normal/``, ``defect/``, ``mask/``, or ``images/`` and ``masks/``; no splits),
            ``"meta.json"`` of the AnomalyCLIP family, ``"csv"``, and ``"datalist"`` of MONAI.
        root: folder of the unpacked archive; the dataset may be up to three levels below. For the last three general
            layouts, the file or its folder.
        split: name of the split, such as ``"test"`` or ``"train"``.
        strict: whether a problem of the dataset is an error. If False, it is a warning: the case is left out, or kept
            without its mask if its label is known.
        keep_identifiers: whether warnings and errors about a dataset that holds DICOM name its files.

    Returns:
        Dictionaries with ``image`` (path), ``case_id`` (unique), ``label`` (0 normal, 1 anomalous), ``mask`` (path or
        None) and ``class``. The keys ``mask_threshold``, ``patient`` and ``sequence`` exist if the dataset states them.

    Raises:
        DatasetError: the name or split is unknown, the dataset is not found, a table names a file outside its folder,
            or no case is usable; if strict, any problem of the dataset.
    """
    with withheld_names(root, keep_identifiers=keep_identifiers):
        return _load(name, root, split=split, strict=strict)


def _load(name: str, root: str | os.PathLike[str], *, split: str, strict: bool) -> Datalist:
    known = name.strip().lower().replace("_", "-").replace(" ", "-")
    if known == "folder":
        return load_folder(root, strict=strict)
    if known in _LISTINGS:
        return _LISTINGS[known](root, split=split, strict=strict)
    if known not in DATASETS:
        close = difflib.get_close_matches(known, [*DATASETS, *GENERAL], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"there is no dataset {name!r}; {hint}Public datasets: {', '.join(DATASETS)}. "
            f"General layouts: {', '.join(GENERAL)}"
        )
    report = reporter(strict=strict)
    cases = load_archive(known, root, split=split, report=report)[1]
    _check_counts(DATASETS[known], cases, split, report)
    return cases


_LISTINGS: Mapping[str, Callable[..., Datalist]] = {
    "meta.json": load_meta_json,
    "csv": load_csv,
    "datalist": load_datalist_json,
}
GENERAL = ("folder", *_LISTINGS)


def _check_counts(dataset: PublicDataset, cases: Datalist, split: str, report: Report) -> None:
    """Report numbers of images that differ from the published numbers."""
    found, published = _count(cases), dataset.counts.get(split)
    if published is None or found == published:
        return
    if split == "test" and found in dataset.parts:
        whose = dataset.parts[found]
        report(
            f"{dataset.name} has {sum(found)} of {sum(published)} images, as in {whose}: results are not "
            f"comparable with the whole dataset; get it from {dataset.home}"
        )
        return
    classes = Counter(case["class"] for case in cases)
    by_class = f" ({', '.join(f'{name}: {count}' for name, count in classes.items())})" if len(classes) > 1 else ""
    report(
        f"{dataset.name}, split {split}: found {found[0]} of {published[0]} normal and {found[1]} of {published[1]} "
        f"anomalous images{by_class}; unpack the whole archive from {dataset.home}, without files of your own"
    )


def _count(cases: Datalist) -> Counts:
    anomalous = sum(case["label"] for case in cases)
    return len(cases) - anomalous, anomalous


@dataclass(frozen=True)
class InventoryRow:
    """A dataset of the catalog, and the part of it that was found on disk.

    Attributes:
        dataset: catalog data of the dataset.
        root: top folder of the dataset, or None if it was not found.
        found: numbers of normal and anomalous images of each split that can be loaded.
        problems: problems of the dataset, and what to do about them.
    """

    dataset: PublicDataset
    root: Path | None = None
    found: Mapping[str, Counts] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the row as a few lines of text."""
        known = self.dataset
        lines = [
            f"{known.name}: {known.title} ({known.domain}; {known.modality}), license: {known.license}",
            f"  home: {known.home}",
            f"  published: {_describe(known.counts) or 'numbers of images not verified'}",
        ]
        if self.root:
            lines.append(f"  found in {self.root}: {_describe(self.found) or 'no usable images'}")
        return "\n".join([*lines, *(f"  problem: {problem}" for problem in self.problems)])


def _describe(counts: Mapping[str, Counts]) -> str:
    return "; ".join(f"{split} {normal} normal, {anomalous} anomalous" for split, (normal, anomalous) in counts.items())


def list_datasets(root: str | os.PathLike[str] | None = None) -> list[InventoryRow]:
    """Return a row for each dataset of the catalog, with the images found in a folder.

    Each dataset is searched in the folder with its name, in folders with the names of its archive, and in the root.
    Datasets without distinctive files, such as the polyp datasets, are found only in folders with their names. If a
    dataset cannot be read, its row states the reason and the others are listed.

    Args:
        root: path of the folder to search; None searches nothing.
    """
    if root is None:
        return [InventoryRow(dataset) for dataset in DATASETS.values()]
    return [_inspect(dataset, Path(root)) for dataset in DATASETS.values()]


def _inspect(dataset: PublicDataset, root: Path) -> InventoryRow:
    try:
        inside = root / dataset.name
        top = find_archive(dataset.name, inside) if inside.is_dir() else None
        top = top or find_archive(dataset.name, root, by_name=True)
    except DatasetError as error:
        return InventoryRow(dataset, problems=(str(error),))
    if top is None:
        return InventoryRow(dataset)
    found: dict[str, Counts] = {}
    problems: list[str] = []
    for split in ARCHIVES[dataset.name].layout.splits:
        of_split: list[str] = []
        try:
            cases = load_archive(dataset.name, top, split=split, report=of_split.append)[1]
        except (DatasetError, OSError) as error:
            of_split = [str(error)] if split == "test" else []  # often only the test split is on disk
        else:
            found[split] = _count(cases)
            _check_counts(dataset, cases, split, of_split.append)
        problems += of_split
    return InventoryRow(dataset, top, found, tuple(problems))
