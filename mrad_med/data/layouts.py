"""The few ways in which labeled sets lie on disk once their archives are unpacked."""

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
    """How a set lies on disk. Paths are below the set's own top folder.

    Attributes:
        splits: names of the parts that can be loaded.
        expects: what must be in the top folder, for messages.
    """

    @property
    def splits(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def expects(self) -> str: ...  # noqa: D102

    def fits(self, root: Path) -> bool:
        """Tell whether a folder looks like the top of such a set."""
        ...

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:
        """Return the cases of one split; what is wrong with it is reported, and the case left out or kept without mask.

        Raises:
            DatasetError: a table cannot be read or names a file outside; or whatever ``report`` raises.
        """
        ...


def _subfolder(root: Path, name: str) -> Path | None:
    """Return the folder of a name with slashes below the root, upper and lower case alike where the exact is absent."""
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
        label: 0 normal, 1 anomalous, None where each mask tells: it has an anomalous pixel or none.
        images: names of the folder, of which the first that exists is taken.
        masks: the same for masks; none where the set has none, or the images are normal.
    """

    label: int | None
    images: tuple[str, ...]
    masks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderLayout:
    """Images in one folder for each label, masks in another, paired by name.

    Attributes:
        groups: the folders of each split.
        endings: what the name of a mask may add to its image's.
        patient: regular expression whose first group, in an image's stem, is the patient.
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
        """Return the folders that are looked for."""
        groups = [group for split in self.groups.values() for group in split]
        return ", ".join(
            dict.fromkeys(f"{name[0]}/" for group in groups for name in (group.images, group.masks) if name)
        )

    def fits(self, root: Path) -> bool:
        """Tell whether one of the folders of images is there."""
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
        classes: that the set has.
        normal: the type of normal images; all others are anomalous.
        masks: names of the folder of masks.
    """

    classes: tuple[str, ...]
    normal: str = "good"
    masks: str = "ground_truth"
    splits: tuple[str, ...] = ("test", "train")

    @property
    def expects(self) -> str:
        """Return what is looked for in the top folder."""
        return f"folders of classes ({shorten(self.classes)}) with test/{self.normal}/ and {self.masks}/"

    def fits(self, root: Path) -> bool:
        """Tell whether a class of the set is there."""
        return any((root / name / split).is_dir() for name in self.classes for split in self.splits)

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:
        """Return the cases of a split, class by class; see `Layout.load`."""
        found = [folder.name for folder in list_folders(root) if any((folder / name).is_dir() for name in self.splits)]
        unexpected = [name for name in found if name not in self.classes]
        if unexpected:
            report(f"{root} has folders that are no class of {class_name}, left out: {shorten(unexpected)}; move them")
        missing = [name for name in self.classes if not (root / name / split).is_dir()]
        if missing:
            report(
                f"{root} lacks {split}/ of {len(missing)} of {len(self.classes)} classes: {shorten(missing)}; unpack "
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
                report(f"{ground_truth} has masks of {shorten(stray)}, of which there is no image; unpack again")
        cases: Datalist = []
        for kind, folder in types.items():
            images = _images_in(folder, report)
            masks: dict[Path, Path] = {}
            if kind != self.normal and images:
                of_kind = list_images(masked[kind]) if kind in masked else []
                masks = pair_masks(images, of_kind, endings=MASK_ENDINGS, report=report)
            cases += make_cases(root, images, int(kind != self.normal), masks, printable(name))
        return cases


@dataclass(frozen=True)
class BesideLayout:
    """Masks in the folders of their images or right below, told from them by the ending of their names.

    Attributes:
        folders: of each split, with the class of each, or with None for the class of the set.
        ending: of a mask's stem, after its image's.
        below: name of the folder in each of ``folders`` that holds the masks; else they lie among the images.
        table: a text in ``below`` that names all masks. With one, an image without mask is normal. Without, every
            image has a mask, and one without an anomalous pixel makes it normal.
        sequences: whether each folder holds views of one thing, which are then no independent cases.
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
        """Return what is looked for in the top folder."""
        names = [name for folders in self.folders.values() for name in folders]
        return f"{shorten(names)} with masks named <image>{self.ending}"

    def fits(self, root: Path) -> bool:
        """Tell whether a folder with a mask is there."""
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
        """Return the cases where only anomalous images have a mask; the table tells of masks that got lost."""
        table = holder / self.table
        named = set()
        if table.is_file():
            text = table.read_text(encoding="utf-8", errors="replace")
            named = set(re.findall(rf"(\S+){re.escape(self.ending)}\.\w+", text))
        else:
            report(f"{table} is missing, so lost masks cannot be told from normal images; unpack the archive again")
        named |= {stem_of(mask.name).removesuffix(self.ending) for mask in masks}
        anomalous = [image for image in images if stem_of(image.name) in named]
        pairs = pair_masks(anomalous, masks, endings=(self.ending,), report=report) if anomalous or masks else {}
        cases = make_cases(root, images, 0, pairs, class_name)
        return [{**case, "label": int(stem_of(Path(case["image"]).name) in named)} for case in cases]
