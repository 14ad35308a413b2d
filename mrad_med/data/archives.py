"""Archives of the public datasets as they are distributed: the layout of each, and the names of its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrad_med.data.datalist import Datalist, Report, reporter, shorten
from mrad_med.data.folders import load_labeled_folder, visa_cases
from mrad_med.data.layouts import BesideLayout, ClassLayout, FolderLayout, Group, Layout
from mrad_med.data.paths import list_folders, list_images, stem_of
from mrad_med.data.tables import cases_of_rows, read_table
from mrad_med.errors import DatasetError

__all__ = ["ARCHIVES", "Archive", "TableLayout", "VisaLayout", "find_archive", "load_archive", "load_folder"]

DEPTH = 3  # an archive may be nested in this many folders: TestDataset/TestDataset/<dataset>


@dataclass(frozen=True)
class Archive:
    """An unpacked archive of a public dataset, original or a common re-pack.

    Attributes:
        layout: arrangement of its files on disk.
        folders: possible names of its top folder; case is ignored.
        distinctive: whether the files identify the dataset. If False, only the name of the folder does.
    """

    layout: Layout
    folders: tuple[str, ...]
    distinctive: bool = True


@dataclass(frozen=True)
class TableLayout:
    """A table of labels, and images whose file names are the numbers in the table, with leading zeros.

    Attributes:
        table: name of a CSV file in the top folder.
        number: name of the column of image numbers.
        label: name of the column of labels.
        images: possible names of the folder of images; the first one with images is used.
        splits: names of the splits.
    """

    table: str
    number: str
    label: str
    images: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)

    @property
    def expects(self) -> str:
        """Return the files and folders that are expected in the top folder."""
        return f"{self.table} and {self.images[0]}/"

    def fits(self, root: Path) -> bool:
        """Return whether the table and a folder of images exist."""
        return (root / self.table).is_file() and any((root / name).is_dir() for name in self.images)

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:  # noqa: ARG002 - one split
        """Return the cases of the table; see `Layout.load`."""
        rows = read_table(root / self.table, [self.number, self.label])
        folders = [folder for folder in (root / name for name in self.images) if folder.is_dir()]
        images = next((found for found in map(list_images, folders) if found), [])
        paths = {_number_in(path): path.relative_to(root).as_posix() for path in images}
        numbers = [_number_in(Path(row.get(self.number, ""))) for row in rows]
        stray = sorted(path for number, path in paths.items() if number not in numbers)
        if stray:
            report(f"{len(stray)} image(s) of {class_name} are not in {self.table} and are left out: {shorten(stray)}")
        named: list[dict[str, Any]] = [
            {"image": paths.get(number, f"{self.images[0]}/{row.get(self.number)}"), "label": row.get(self.label)}
            for number, row in zip(numbers, rows, strict=True)
        ]
        return cases_of_rows(named, root, where=root / self.table, class_name=class_name, report=report)


def _number_in(path: Path) -> int | str:
    """Return the number in a file name without leading zeros, or the stem if it is not a number."""
    stem = stem_of(path.name)
    return int(stem) if stem.isascii() and stem.isdigit() else stem


@dataclass(frozen=True)
class VisaLayout:
    """The layout of VisA; see `mrad_med.data.load_visa`."""

    splits: tuple[str, ...] = ("test", "train")
    expects: str = "split_csv/1cls.csv"

    def fits(self, root: Path) -> bool:
        """Return whether the table exists."""
        return (root / self.expects).is_file()

    def load(self, root: Path, split: str, *, class_name: str, report: Report) -> Datalist:  # noqa: ARG002 - VisA names its classes
        """Return the cases of a split; see `Layout.load`."""
        return visa_cases(root, split, report=report)


MVTEC_CLASSES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
DTD_CLASSES = (
    *("Blotchy_099", "Fibrous_183", "Marbled_078", "Matted_069", "Mesh_114", "Perforated_037", "Stratified_154"),
    *("Woven_001", "Woven_068", "Woven_104", "Woven_125", "Woven_127"),
)
MPDD_CLASSES = ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes")

POLYPS = FolderLayout(
    {"test": (Group(1, ("images", "image", "Original"), ("masks", "mask", "Ground Truth", "GroundTruth")),)}
)
YES_NO = FolderLayout({"test": (Group(0, ("no",)), Group(1, ("yes",)))})


def _bmad(*, masks: bool, patient: str | None = None) -> FolderLayout:
    """Return the layout of one BMAD dataset; the two releases of BMAD use different names for the mask folders."""

    def anomalous(split: str) -> Group:
        folder = f"{split}/Ungood"
        return Group(1, (f"{folder}/img", folder), (f"{folder}/label", f"{folder}/anomaly_mask") if masks else ())

    def normal(split: str) -> Group:
        return Group(0, (f"{split}/good/img", f"{split}/good"))

    return FolderLayout(
        {"test": (normal("test"), anomalous("test")), "valid": (normal("valid"), anomalous("valid"))}
        | {"train": (normal("train"),)},
        patient=patient,
    )


ARCHIVES: Mapping[str, Archive] = {
    "mvtec-ad": Archive(ClassLayout(MVTEC_CLASSES), ("mvtec_anomaly_detection", "mvtec_ad", "mvtec-ad", "mvtec")),
    "visa": Archive(VisaLayout(), ("VisA_20220922", "VisA")),
    "btad": Archive(ClassLayout(("01", "02", "03"), normal="ok"), ("BTech_Dataset_transformed", "BTAD")),
    "mpdd": Archive(ClassLayout(MPDD_CLASSES), ("MPDD",)),
    "dtd-synthetic": Archive(ClassLayout(DTD_CLASSES), ("DTD-Synthetic", "DTD_Synthetic", "DTD")),
    "dagm": Archive(
        BesideLayout(
            {
                split: {f"Class{number}/{folder}": f"Class{number}" for number in range(1, 11)}
                for split, folder in (("test", "Test"), ("train", "Train"))
            },
            "_label",
            below="Label",
            table="Labels.txt",
        ),
        ("DAGM_KaggleUpload", "DAGM2007", "DAGM_2007", "DAGM"),
    ),
    "ksdd": Archive(
        BesideLayout({"test": {f"kos{number:02d}": None for number in range(1, 51)}}, "_label", sequences=True),
        ("KolektorSDD", "KSDD", "SDD"),
    ),
    "ksdd2": Archive(
        BesideLayout({"test": {"test": None}, "train": {"train": None}}, "_GT"), ("KolektorSDD2", "KSDD2")
    ),
    "kvasir": Archive(POLYPS, ("Kvasir-SEG", "Kvasir"), distinctive=False),
    "cvc-colondb": Archive(POLYPS, ("CVC-ColonDB", "ColonDB"), distinctive=False),
    "cvc-clinicdb": Archive(POLYPS, ("CVC-ClinicDB", "ClinicDB"), distinctive=False),
    "cvc-300": Archive(POLYPS, ("CVC-300",), distinctive=False),
    "etis": Archive(POLYPS, ("ETIS-LaribPolypDB", "ETIS"), distinctive=False),
    "endo": Archive(
        POLYPS,
        ("endotect_2020_segmentation_test_dataset", "EndoTect_2020_Segmentation_Test_Dataset", "EndoTect", "Endo"),
        distinctive=False,
    ),
    "isic2016": Archive(
        FolderLayout(
            {
                split: (Group(1, (f"ISBI2016_ISIC_Part1_{part}_Data",), (f"ISBI2016_ISIC_Part1_{part}_GroundTruth",)),)
                for split, part in (("test", "Test"), ("train", "Training"))
            }
        ),
        ("ISIC2016", "ISIC-2016", "ISIC_2016", "ISIC"),
    ),
    "tn3k": Archive(
        FolderLayout(
            {
                split: (Group(1, (f"{part}-image",), (f"{part}-mask",)),)
                for split, part in (("test", "test"), ("train", "trainval"))
            }
        ),
        ("TN3K",),
    ),
    "headct": Archive(
        TableLayout("labels.csv", "id", "hemorrhage", ("head_ct/head_ct", "head_ct")),
        ("head-ct-hemorrhage", "HeadCT", "head_ct"),
    ),
    "brainmri": Archive(
        YES_NO,
        ("brain-mri-images-for-brain-tumor-detection", "BrainMRI", "brain_tumor_dataset"),
        distinctive=False,
    ),
    "br35h": Archive(YES_NO, ("Br35H", "brain-tumor-detection"), distinctive=False),
    # A slice of BraTS 2021 is named <subject>_<slice>. The other datasets do not document how they name patients.
    "bmad-brain": Archive(
        _bmad(masks=True, patient=r"(\d+)_\d+$"), ("Brain", "Brain_AD", "BraTS2021_slice"), distinctive=False
    ),
    "bmad-liver": Archive(_bmad(masks=True), ("Liver", "Liver_AD"), distinctive=False),
    "bmad-resc": Archive(
        _bmad(masks=True), ("Retina_RESC", "Retina_RESC_AD", "RetinaRESC_AD", "RESC"), distinctive=False
    ),
    "bmad-chest": Archive(_bmad(masks=False), ("Chest", "Chest_AD", "RSNA"), distinctive=False),
    "bmad-histopathology": Archive(
        _bmad(masks=False), ("Histopathology", "Histopathology_AD", "camelyon16"), distinctive=False
    ),
    "bmad-oct2017": Archive(
        _bmad(masks=False),
        ("Retina_OCT2017", "Retina_OCT2017_AD", "RetinaOCT2017_AD", "OCT2017"),
        distinctive=False,
    ),
}
_SET_OF_FOLDER = {folder.lower(): name for name, archive in ARCHIVES.items() for folder in (name, *archive.folders)}


def find_archive(name: str, root: Path, *, by_name: bool = False) -> Path | None:
    """Return the top folder of a dataset: the root or a folder up to three levels below, or None if not found.

    A folder below the root must have a name of the dataset. Any other name is accepted only if the folder is the only
    one on its level and the name does not belong to another dataset.

    Args:
        name: name of the dataset.
        root: folder to search.
        by_name: whether a dataset without distinctive files must be in a folder with one of its names. This applies
            to the root too.

    Raises:
        DatasetError: the root cannot be listed.
    """
    archive = ARCHIVES[name]
    level = [root]
    for depth in range(DEPTH + 1):
        of_set = [_SET_OF_FOLDER.get(folder.resolve().name.lower(), "") for folder in level]
        for folder, known in zip(level, of_set, strict=True):
            alone = len(level) == 1 and not known and (archive.distinctive or not by_name)
            if (known == name or alone or (depth == 0 and not by_name)) and archive.layout.fits(folder):
                return folder
        level = [
            child
            for folder, known in zip(level, of_set, strict=True)
            if depth == 0 or known in ("", name)
            for child in _folders_in(folder, root)
        ]
    return None


def _folders_in(folder: Path, root: Path) -> list[Path]:
    try:
        return list_folders(folder)
    except DatasetError:
        if folder == root:
            raise
        return []  # it may belong to someone else; the search continues with the other folders


def load_archive(name: str, root: str | os.PathLike[str], *, split: str, report: Report) -> tuple[Path, Datalist]:
    """Return the top folder of a dataset and the cases of one of its splits.

    Raises:
        DatasetError: the dataset is not found, has no such split, or has no usable case.
    """
    archive, root = ARCHIVES[name], Path(root)
    if split not in archive.layout.splits:
        raise DatasetError(f"{name} has no split {split!r}; it has {', '.join(archive.layout.splits)}")
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give the folder that {name} was unpacked to")
    top = find_archive(name, root)
    if top is None:
        folders = shorten(dict.fromkeys(archive.folders))
        raise DatasetError(
            f"{name} was not found in {root} or in folders named {folders} up to {DEPTH} levels below. Expected "
            f"{archive.layout.expects}: unpack the whole archive and give its folder"
        )
    cases = archive.layout.load(top, split, class_name=name, report=report)
    if not cases:
        raise DatasetError(f"{top} has no case of split {split} of {name}; unpack the whole archive")
    return top, cases


IMAGES_AND_MASKS = FolderLayout({"": (Group(None, ("images", "image"), ("masks", "mask")),)})


def load_folder(root: str | os.PathLike[str], *, strict: bool = False) -> Datalist:
    """Return the datalist of a labeled folder: ``normal/``, ``defect/``, ``mask/``, or ``images/`` and ``masks/``.

    `load_labeled_folder` reads the first layout. In the second layout every image has a mask of the same name. The
    image is anomalous if its mask has an anomalous pixel.

    Args:
        root: path of the folder.
        strict: whether an image without mask, or a mask without image, is an error instead of a warning.

    Raises:
        DatasetError: the folder has neither layout, or no usable case.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}")
    if not IMAGES_AND_MASKS.fits(root):
        return load_labeled_folder(root, strict=strict)
    name = root.resolve().name
    cases = IMAGES_AND_MASKS.load(root, "", class_name=name, report=reporter(strict=strict))
    if not cases:
        raise DatasetError(f"no image in {root} has a mask of the same name in masks/; rename the masks")
    return cases
