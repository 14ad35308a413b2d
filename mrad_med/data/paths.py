"""Paths of a dataset: its image files and folders, and the case ids made from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from mrad_med.data.names import printable
from mrad_med.errors import DatasetError
from mrad_med.io.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES, detect_file_type

__all__ = ["find_files", "list_folders", "list_images", "name_cases", "path_below", "refuse_listing", "stem_of"]


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
        raise DatasetError(f"cannot list {folder} ({error.strerror}); grant access or leave it out") from error
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
    """Return every image or video file below a folder, or the one file given, sorted by name.

    Hidden files and folders are skipped. Links to folders are not followed.

    Args:
        root: path of a folder, searched recursively, or of a file.
        exclude: path of a folder to skip, such as the output folder.

    Raises:
        DatasetError: the path does not exist, cannot be listed, has no image, or is the excluded folder.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DatasetError(f"there is no file or folder {root}")
    excluded = None if exclude is None else Path(exclude).resolve()
    if excluded == root.resolve():
        raise DatasetError(f"{root} would hold both images and results; choose another output folder")
    files: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=refuse_listing):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and (Path(folder) / name).resolve() != excluded
        )
        candidates = (Path(folder) / name for name in sorted(names) if not name.startswith("."))
        files.extend(path for path in candidates if path.is_file() and detect_file_type(path) is not None)
    if not files:
        raise DatasetError(
            f"no image below {root}; supported are photographs (png, jpg, tif, ...), DICOM files, NIfTI and NRRD "
            "volumes, and videos"
        )
    return files


def refuse_listing(error: OSError) -> None:
    """Raise a `DatasetError` for a folder that `os.walk` cannot list."""
    raise DatasetError(f"cannot list {error.filename} ({error.strerror}); grant access or leave it out") from error
