"""Layouts of labeled datasets on disk after unpacking."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from mrad_med.data.datalist import Datalist, Report, make_cases, shorten
from mrad_med.data.masks import cases_by_masks, pair_masks
from mrad_med.data.names import printable
from mrad_med.data.paths import list_folders, list_images, stem_of

__all__ = ["BesideLayout", "ClassLayout", "FolderLayout", "Group", "Layout"]

MASK_ENDINGS = ("_mask", "_segmentation", "_Segmentation", "_gt", "_GT", "_label")


class Layout(Protocol):
    """Layout of a dataset on disk. Paths are relative to the top folder of the dataset.

    Attributes:
        splits: names of the splits that can be loaded.
        expects: expected contents of the top folder, for messages.
    """

    @property
    def splits(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def expects(self) -> str: ...  # noqa: D102

    def fits(self, root: Path) -> bool:
        """Return whether a folder looks like the top folder of this layout."""
        ...

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:
        """Return the cases of one split.

        ``report`` receives each problem. A case with a problem is left out, or kept without its mask.

        Raises:
            DatasetError: a table cannot be read or names a file outside the root, or ``report`` raises the error.
        """
        ...


def _subfolder(root: Path, name: str) -> Path | None:
    """Return a folder below the root by its name with slashes; case is ignored if the exact name does not exist."""
    folder = root
    for part in name.split("/"):
        exact = folder / part
        if not exact.is_dir():
            alike = [child for child in list_folders(folder) if child.name.lower() == part.lower()]
            if not alike:
                return None
            exact = alike[0]
        folder = exact
    return folder


def _first_subfolder(root: Path, names: Iterable[str]) -> Path | None:
    return next((folder for folder in map(partial(_subfolder, root), names) if folder), None)


def _images_in(folder: Path, report: Report) -> list[Path]:
    images = list_images(folder)
    if not images:
        report(f"no image in {folder}; unpack the archive again")
    return images


@dataclass(frozen=True)
class Group:
    """A folder of images that share a label, and the folder of their masks.

    Attributes:
        label: 0 for normal, 1 for anomalous, None if each mask decides whether its image is anomalous.
        images: possible names of the image folder; the first that exists is used.
        masks: possible names of the mask folder; empty if the images have no masks.
    """

    label: int | None
    images: tuple[str, ...]
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderLayout:
    """One image folder for each label and one mask folder; images and masks are paired by name.

    Attributes:
        groups: folders of each split.
        endings: suffixes that the stem of a mask may add to the stem of its image.
        patient: regular expression for the image stem; its first group is the patient.
    """

    groups: Mapping[str, tuple[Group, ...]]
    endings: tuple[str, ...] = MASK_ENDINGS
    patient: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(self.groups)

    @property
    def expects(self) -> str:
        """Return the expected folders."""
        groups = [group for split in self.groups.values() for group in split]
        return ", ".join(
            dict.fromkeys(f"{name[0]}/" for group in groups for name in (group.images, group.masks) if name)
        )

    def fits(self, root: Path) -> bool:
        """Return whether one of the image folders exists."""
        return any(_first_subfolder(root, group.images) for split in self.groups.values() for group in split)

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:
        """Return the cases of a split; see `Layout.load`."""
        cases: Datalist = []
        for group in self.groups[split]:
            folder = _first_subfolder(root, group.images)
            if folder is None:
                report(f"{root} has no folder {' or '.join(group.images)}; unpack the whole archive")
                continue
            images = _images_in(folder, report)
            masks = self._masks_of(group, images, root, report)
            if group.label is None:
                cases += cases_by_masks(root, images, masks, class_name, report)
            else:
                cases += make_cases(root, images, group.label, masks, class_name)
        for case in cases if self.patient else ():
            found = re.match(str(self.patient), stem_of(Path(case["image"]).name))
            case.update({"patient": found[1]} if found else {})
        return cases

    def _masks_of(self, group: Group, images: list[Path], root: Path, report: Report) -> dict[Path, Path]:
        if not group.masks or not images:
            return {}
        folder = _first_subfolder(root, group.masks)
        if folder is None:
            report(f"{root} has no folder {' or '.join(group.masks)} with masks; unpack the whole archive")
            return {}
        return pair_masks(images, list_images(folder), endings=self.endings, report=report)


@dataclass(frozen=True)
class ClassLayout:
    """A folder for each class as in MVTec AD: ``<class>/{train,test}/<type>`` and ``<class>/ground_truth/<type>``.

    Attributes:
        classes: names of the classes.
        normal: type of the normal images; all other types are anomalous.
        masks: name of the mask folder.
    """

    classes: tuple[str, ...]
    normal: str = "good"
    masks: str = "ground_truth"
    splits: tuple[str, ...] = ("test", "train")

    @property
    def expects(self) -> str:
        """Return the expected contents of the top folder."""
        return f"folders of classes ({shorten(self.classes)}) with test/{self.normal}/ and {self.masks}/"

    def fits(self, root: Path) -> bool:
        """Return whether a folder of a class exists in ``root``."""
        return any((root / name / split).is_dir() for name in self.classes for split in self.splits)

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:
        """Return the cases of a split, class by class; see `Layout.load`."""
        found = [folder.name for folder in list_folders(root) if any((folder / name).is_dir() for name in self.splits)]
        unexpected = [name for name in found if name not in self.classes]
        if unexpected:
            report(
                f"{root} has folders that are not classes of {class_name}, left out: {shorten(unexpected)}; move them"
            )
        missing = [name for name in self.classes if not (root / name / split).is_dir()]
        if missing:
            report(
                f"{root} lacks {split}/ for {len(missing)} of {len(self.classes)} classes: {shorten(missing)}; unpack "
                "the whole archive"
            )
        present = [name for name in self.classes if name not in missing]
        return [case for name in present for case in self._load_class(root, name, split, report)]

    def _load_class(self, root: Path, name: str, split: str, report: Report) -> Datalist:
        types = {folder.name: folder for folder in list_folders(root / name / split)}
        if self.normal not in types:
            report(f"{root / name / split} has no folder {self.normal}/ of normal images; unpack the archive again")
        ground_truth = root / name / self.masks
        masked = {folder.name: folder for folder in list_folders(ground_truth)} if ground_truth.is_dir() else {}
        if split == "test":
            stray = sorted(masked.keys() - types.keys())
            if stray:
                report(f"{ground_truth} has masks of {shorten(stray)} but no images of them; unpack again")
        cases: Datalist = []
        for type_name, folder in types.items():
            images = _images_in(folder, report)
            masks: dict[Path, Path] = {}
            if type_name != self.normal and images:
                of_type = list_images(masked[type_name]) if type_name in masked else []
                masks = pair_masks(images, of_type, endings=MASK_ENDINGS, report=report)
            cases += make_cases(root, images, int(type_name != self.normal), masks, printable(name))
        return cases


@dataclass(frozen=True)
class BesideLayout:
    """Masks in the folder of their images or in a subfolder, identified by the ending of their names.

    Attributes:
        folders: image folders of each split, each with its class. None means the class name of the dataset.
        ending: text that the stem of a mask adds to the stem of its image.
        below: name of the subfolder with the masks; if empty, masks are next to the images.
        table: name of a text file in ``below`` that lists all masks. With a table, an image without mask is normal.
            Without a table, every image has a mask, and an image is normal if its mask has no anomalous pixel.
        sequences: whether each folder shows a single object, so its images are not independent cases.
    """

    folders: Mapping[str, Mapping[str, str | None]]
    ending: str
    below: str = ""
    table: str = ""
    sequences: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(self.folders)

    @property
    def expects(self) -> str:
        """Return the expected contents of the top folder."""
        names = [name for folders in self.folders.values() for name in folders]
        return f"{shorten(names)} with masks named <image>{self.ending}"

    def fits(self, root: Path) -> bool:
        """Return whether a folder with a mask exists."""
        return any(
            self._is_mask(path)
            for folders in self.folders.values()
            for folder in (root / name / self.below for name in folders)
            if folder.is_dir()
            for path in list_images(folder)
        )

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:
        """Return the cases of a split; see `Layout.load`."""
        folders = self.folders[split]
        missing = [name for name in folders if not (root / name).is_dir()]
        if missing:
            report(
                f"{root} lacks {len(missing)} of {len(folders)} folders: {shorten(missing)}; unpack the whole archive"
            )
        cases: Datalist = []
        for name in (name for name in folders if name not in missing):
            sequence = {"sequence": name} if self.sequences else {}
            found = self._load_in(root, root / name, folders[name] or class_name, report)
            cases += [{**case, **sequence} for case in found]
        return cases

    def _is_mask(self, path: Path) -> bool:
        return stem_of(path.name).endswith(self.ending)

    def _load_in(self, root: Path, folder: Path, class_name: str, report: Report) -> Datalist:
        images = [path for path in _images_in(folder, report) if not self._is_mask(path)]
        holder = folder / self.below
        masks = [path for path in list_images(holder) if self._is_mask(path)] if holder.is_dir() else []
        if self.table:
            return self._cases_of_table(root, images, masks, holder, class_name, report)
        pairs = pair_masks(images, masks, endings=(self.ending,), report=report)
        return cases_by_masks(root, images, pairs, class_name, report)

    def _cases_of_table(
        self, root: Path, images: list[Path], masks: list[Path], holder: Path, class_name: str, report: Report
    ) -> Datalist:
        """Return the cases if only anomalous images have a mask; the table reveals missing masks."""
        table = holder / self.table
        named = set()
        if table.is_file():
            text = table.read_text(encoding="utf-8", errors="replace")
            named = set(re.findall(rf"(\S+){re.escape(self.ending)}\.\w+", text))
        else:
            report(f"{table} is missing, so an image with a lost mask counts as normal; unpack the archive again")
        named |= {stem_of(mask.name).removesuffix(self.ending) for mask in masks}
        anomalous = [image for image in images if stem_of(image.name) in named]
        pairs = pair_masks(anomalous, masks, endings=(self.ending,), report=report) if anomalous or masks else {}
        cases = make_cases(root, images, 0, pairs, class_name)
        return [{**case, "label": int(stem_of(Path(case["image"]).name) in named)} for case in cases]
