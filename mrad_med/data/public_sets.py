"""Labeled sets by name, checked against the catalog, and what of it is on disk."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mrad_med.data.archives import ARCHIVES, find_archive, load_archive, load_folder
from mrad_med.data.catalog import DATASETS, Counts, PublicDataset
from mrad_med.data.datalist import Datalist, Report, reporter
from mrad_med.data.tables import load_csv, load_datalist_json, load_meta_json
from mrad_med.errors import DatasetError

__all__ = ["InventoryRow", "list_datasets", "load_datalist"]


def load_datalist(name: str, root: str | os.PathLike[str], *, split: str = "test", strict: bool = False) -> Datalist:
    """Return the MONAI datalist of a labeled set on disk.

    Args:
        name: of `DATASETS`, upper and lower case and ``_`` and ``-`` alike, or a general layout: ``"folder"``
            (``normal/``, ``defect/``, ``mask/``, or ``images/`` and ``masks/``; it has no splits), ``"meta.json"`` of
            the AnomalyCLIP family, ``"csv"``, ``"datalist"`` of MONAI; the last three take the file or its folder.
        root: folder that the archive was unpacked to; the set may lie up to three levels below.
        split: such as ``"test"`` or ``"train"``.
        strict: a problem of the set is an error; else a warning, and the case is left out, or kept without its mask
            where its label is known all the same.

    Returns:
        Dictionaries with ``image`` (path), ``case_id`` (unique), ``label`` (0 normal, 1 anomalous), ``mask`` (path or
        None), ``class``, and where the set tells ``mask_threshold``, ``patient``, ``sequence``.

    Raises:
        DatasetError: the name or split is unknown, the set is not there, a table names a file outside its folder, or
            no case can be used; where strict, for any problem.
    """
    known = name.strip().lower().replace("_", "-").replace(" ", "-")
    if known == "folder":
        return load_folder(root, strict=strict)
    if known in _LISTINGS:
        return _LISTINGS[known](root, split=split, strict=strict)
    if known not in DATASETS:
        close = difflib.get_close_matches(known, [*DATASETS, *GENERAL], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"there is no set {name!r}; {hint}Public sets: {', '.join(DATASETS)}. General layouts: {', '.join(GENERAL)}"
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
    """Report numbers of images that are not the published ones."""
    found, published = _count(cases), dataset.counts.get(split)
    if published is None or found == published:
        return
    if split == "test" and found in dataset.parts:
        whose = dataset.parts[found]
        report(
            f"{dataset.name} has {sum(found)} of {sum(published)} images, as in {whose}: results are not those of the "
            f"whole set; get it from {dataset.home}"
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
    """A set of the catalog, and what of it was found.

    Attributes:
        dataset: what is known about it.
        root: its top folder, or None where it was not found.
        found: of each split that can be loaded, the numbers of normal and anomalous images.
        problems: what is wrong with it, and what to do.
    """

    dataset: PublicDataset
    root: Path | None = None
    found: Mapping[str, Counts] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the row as a few lines for people."""
        known = self.dataset
        lines = [
            f"{known.name}: {known.title} ({known.domain}; {known.modality}), license: {known.license}",
            f"  home: {known.home}",
            f"  published: {_describe(known.counts) or 'numbers of images not verified'}",
        ]
        if self.root:
            lines.append(f"  found in {self.root}: {_describe(self.found) or 'nothing that can be used'}")
        return "\n".join([*lines, *(f"  problem: {problem}" for problem in self.problems)])


def _describe(counts: Mapping[str, Counts]) -> str:
    return "; ".join(f"{split} {normal} normal, {anomalous} anomalous" for split, (normal, anomalous) in counts.items())


def list_datasets(root: str | os.PathLike[str] | None = None) -> list[InventoryRow]:
    """Return all sets of the catalog, and which of them are in a folder.

    Each is looked for in the folder of its name, in folders called like its archive's, and in the root itself. Sets
    that files do not tell from others, such as those of polyps, are found in folders of their names only. A set that
    cannot be read does not stop the others: its row tells why.

    Args:
        root: the folder; without one nothing is looked for.
    """
    if root is None:
        return [InventoryRow(dataset) for dataset in DATASETS.values()]
    return [_take_stock(dataset, Path(root)) for dataset in DATASETS.values()]


def _take_stock(dataset: PublicDataset, root: Path) -> InventoryRow:
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
            of_split = [str(error)] if split == "test" else []  # many keep the test split only
        else:
            found[split] = _count(cases)
            _check_counts(dataset, cases, split, of_split.append)
        problems += of_split
    return InventoryRow(dataset, top, found, tuple(problems))
