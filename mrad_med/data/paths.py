"""Paths of a dataset: its image files and folders, and the case ids made from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NoReturn

from mrad_med.data.names import printable
from mrad_med.errors import DatasetError
from mrad_med.io.file_types import DICOM, IMAGE_SUFFIXES, VIDEO_SUFFIXES, detect_file_type

__all__ = [
    "find_files",
    "holds_dicom",
    "list_folders",
    "list_images",
    "name_cases",
    "path_below",
    "refuse_listing",
    "search_files",
    "stem_of",
]

_INDEX = "DICOMDIR"  # the index of an export disk; it is DICOM, but not an image


def path_below(root: Path, name: str) -> Path:
    r"""Return the path below the root for a name in a table; ``\`` is treated as ``/``, as in tables from Windows.

    Raises:
        DatasetError: the name is absolute, names a drive, or has ``..``, and would lead out of the folder.
    """
    portable = PurePosixPath(name.replace("\\", "/"))
    if portable.is_absolute() or ".." in portable.parts or PureWindowsPath(name).drive or "\0" in name:
        raise DatasetError(f"a table names a file outside its folder {root}: {name!r}; use paths below it")
    return root / portable


def list_images(folder: Path) -> list[Path]:
    """Return the images of one folder by their suffixes, sorted by name; hidden files are skipped.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    return [path for path in _children(folder, folders=False) if path.name.lower().endswith(IMAGE_SUFFIXES)]


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name; hidden folders and macOS metadata (``__MACOSX``) are skipped.

    Raises:
        DatasetError: the folder cannot be listed.
    """
    return [path for path in _children(folder, folders=True) if path.name != "__MACOSX"]


def _children(folder: Path, *, folders: bool) -> list[Path]:
    """Return the folders or the files in a folder; links count as their targets."""
    try:
        with os.scandir(folder) as entries:  # separates folders from files without a system call for each
            names = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and (entry.is_dir() if folders else entry.is_file())
            ]
    except OSError as error:
        refuse_listing(error)
    return [folder / name for name in sorted(names)]


def name_cases(files: Sequence[Path], root: Path) -> list[str]:
    """Return unique case ids: the path below the root without suffix, or with it if files differ only in the suffix."""
    names = [printable(path.relative_to(root).as_posix()) for path in files]
    stems = [stem_of(name) for name in names]
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


def stem_of(name: str) -> str:
    """Return a name without the suffix of an image or video. A number at the end, as in DICOM file names, is kept."""
    longest_first = sorted(IMAGE_SUFFIXES + VIDEO_SUFFIXES, key=len, reverse=True)
    suffix = next((suffix for suffix in longest_first if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def find_files(root: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return every image or video file below a folder, or the one file given, sorted by name; see `search_files`.

    Raises:
        DatasetError: the path does not exist, cannot be listed, has no image, or is the excluded folder.
    """
    return search_files(root, exclude=exclude)[0]


def search_files(
    root: str | os.PathLike[str], *, exclude: str | os.PathLike[str] | None = None, name_folders: bool = False
) -> tuple[list[Path], bool]:
    """Return every image or video file below a folder, or the one file given, sorted by name, and whether any is DICOM.

    Hidden files and folders are skipped. Links to folders are not followed. An index of DICOM files (``DICOMDIR``)
    counts as DICOM, but is not returned.

    Args:
        root: path of a folder, searched recursively, or of a file.
        exclude: path of a folder to skip, such as the output folder.
        name_folders: whether errors name a folder that cannot be listed. Its name may be that of a patient.

    Raises:
        DatasetError: the path does not exist, cannot be listed, has no image, or is the excluded folder.
    """
    root = Path(root)
    try:
        is_file, is_folder = root.is_file(), root.is_dir()
    except OSError as error:
        refuse_listing(error, name_folder=name_folders)
    if is_file:
        return [root], detect_file_type(root) == DICOM
    if not is_folder:
        raise DatasetError(f"there is no file or folder {root}")
    excluded = None if exclude is None else Path(exclude).resolve()
    if excluded == root.resolve():
        raise DatasetError("the same folder would hold both images and results; choose another output folder")
    files: list[Path] = []
    is_dicom = False
    for path in _walk(root, excluded, name_folders=name_folders):
        file_type = detect_file_type(path)
        is_dicom |= file_type == DICOM or path.name.upper() == _INDEX
        if file_type is not None:
            files.append(path)
    if not files:
        raise DatasetError(
            f"no image below {'the given path' if is_dicom else root}; supported are photographs (png, jpg, tif, "
            "...), DICOM files, NIfTI and NRRD volumes, and videos"
        )
    return files, is_dicom


def _walk(root: Path, excluded: Path | None, *, name_folders: bool) -> Iterator[Path]:
    """Yield all files below a folder that are not hidden, sorted by name.

    Raises:
        DatasetError: a folder cannot be listed, or its files cannot be accessed.
    """

    def refuse(error: OSError) -> NoReturn:
        refuse_listing(error, name_folder=name_folders)

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and (Path(folder) / name).resolve() != excluded
        )
        for name in sorted(names):
            path = Path(folder) / name
            try:
                is_file = not name.startswith(".") and path.is_file()
            except OSError as error:  # the folder can be listed but not entered
                refuse(error)
            if is_file:
                yield path


def holds_dicom(root: str | os.PathLike[str]) -> bool:
    """Return whether a file, or any file below a folder, is DICOM; what cannot be read is skipped.

    Args:
        root: path of a folder, searched recursively, or of a file. A missing path holds nothing.
    """
    path = Path(root)
    if os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it returns False on errors
        return path.name.upper() == _INDEX or detect_file_type(path) == DICOM
    return any(
        name.upper() == _INDEX or detect_file_type(Path(folder, name)) == DICOM
        for folder, _, names in os.walk(path)
        for name in names
    )


def refuse_listing(error: OSError, *, name_folder: bool = False) -> NoReturn:
    """Raise a `DatasetError` for a folder that cannot be listed or entered.

    Args:
        error: error of the operating system.
        name_folder: whether the message names the folder. Its name may be that of a patient.
    """
    if name_folder:
        raise DatasetError(f"cannot list {error.filename} ({error.strerror}); grant access or leave it out") from error
    raise DatasetError(
        f"cannot list a folder below the given path ({error.strerror}); grant access to all folders, or leave it out"
    ) from None
