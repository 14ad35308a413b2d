"""Names of cases that do not identify a patient, and the key from these names to the files.

Folders and files of exports are named after patients, and no list of identifiers is complete. If a run holds any DICOM
file, no part of a path is therefore shown. Cases are named after their contents or UIDs.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mrad_med.data.cells import write_csv
from mrad_med.data.names import code_of, without_controls
from mrad_med.data.paths import name_cases
from mrad_med.errors import ImageFileError, OutputError
from mrad_med.files import prepare_output_file
from mrad_med.io.dicom.series import read_slice
from mrad_med.io.file_types import DICOM, detect_file_type
from mrad_med.store import content_key
from mrad_med.types import AnomalyKeys

__all__ = ["KEY_COLUMNS", "CaseNames", "Origin", "check_key", "hide_labeled", "series_uids", "write_key"]

KEY_COLUMNS = ("case_id", "study", "path", "files", "study_uid", "series_uid")
_LONG_NUMBER = re.compile(r"_-?\d{6,}(?=-)")  # of a series: it may be a date or the number of a patient


@dataclass(frozen=True)
class Origin:
    """The files that a name stands for.

    Attributes:
        case_id: name of a case, of a video, or of a file that was skipped.
        study: name of the study; empty if there is none.
        paths: files of the case.
        study_uid: study instance UID; empty if unknown.
        series_uid: series instance UID; empty if unknown.
    """

    case_id: str
    study: str
    paths: tuple[str, ...]
    study_uid: str = ""
    series_uid: str = ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the key: one for a file, or one for each folder with files of a series."""
        places: dict[str, int] = defaultdict(int)
        for path in self.paths:
            place = Path(path) if len(self.paths) == 1 else Path(path).parent
            places[str(place.absolute())] += 1
        for shown, count in places.items():
            values = (self.case_id, self.study, _exact(shown), count, self.study_uid, self.series_uid)
            yield dict(zip(KEY_COLUMNS, values, strict=True))


class CaseNames:
    """Names of cases: their paths, or codes that reveal nothing of the paths.

    Args:
        files: all files of the run.
        base: folder that paths are relative to.
        are_hidden: whether names are codes.
    """

    def __init__(self, files: Sequence[Path], base: Path, *, are_hidden: bool) -> None:
        self._paths = {} if are_hidden else dict(zip(files, name_cases(files, base), strict=True))
        self.are_hidden = are_hidden

    def path_of(self, file: Path) -> str:
        """Return the path of a file below the base, without its suffix; names must not be hidden."""
        return self._paths[file]

    def of(self, file: Path, word: str, key: Callable[[], str] | None = None, *, study: str = "") -> str:
        """Return the name of a case.

        Args:
            file: first file of the case.
            word: word that a hidden name begins with, such as a file type.
            key: function that returns the key of a hidden name; by default the key of the content of the file.
            study: name of the study, the folder of a hidden name.
        """
        if not self.are_hidden:
            return self._paths[file]
        code = code_of(content_key(file) if key is None else key())
        return str(PurePosixPath(study, f"{word.lower()}-{code}"))

    def of_series(self, case_id: str, *, study: str) -> str:
        """Return the name of a series.

        Args:
            case_id: folder of the series, word with the number of the series, and code.
            study: name of the study, the folder of a hidden name.
        """
        if not self.are_hidden:
            return case_id
        return str(PurePosixPath(study, _LONG_NUMBER.sub("", PurePosixPath(case_id).name)))


def write_key(
    path: str | os.PathLike[str], origins: Iterable[Origin], *, outside: str | os.PathLike[str] | None = None
) -> Path:
    r"""Write the key from names to files as CSV. Only the owner of the file can read it.

    A row has ``case_id``, ``study``, ``path`` (of the file, or of the folder of a series), ``files`` (number of files),
    ``study_uid`` and ``series_uid``. Characters of a path that a spreadsheet would not show as they are, are written as
    escape sequences such as ``\u202e``.

    Args:
        path: path of the file. An older key is replaced.
        origins: names and their files.
        outside: folder that must not hold the key, such as the output folder, which is passed on without it.

    Raises:
        OutputError: the file would be in that folder, exists and is not a key, or cannot be written.
    """
    file = check_key(path, outside=outside)
    try:
        write_csv(file, KEY_COLUMNS, (row for origin in origins for row in origin.rows()), is_private=True)
    except OSError as error:
        raise OutputError(f"the key cannot be written ({error.strerror}); choose another file") from None
    return file


def check_key(path: str | os.PathLike[str], *, outside: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a file for a key, and check that `write_key` can write it.

    Args:
        path: path of the file.
        outside: folder that must not hold the key.

    Raises:
        OutputError: the file would be in that folder, exists and is not a key, or cannot be written.
    """
    file = Path(path)
    if outside is not None and file.resolve().is_relative_to(Path(outside).resolve()):
        raise OutputError("the key would be in the folder of the results, which must not name patients; move it")
    if os.path.lexists(file) and not _is_key(file):
        raise OutputError("the file for the key exists and is not a key; choose another name")
    try:
        prepare_output_file(file)
    except OutputError as error:
        reason = getattr(error.__cause__, "strerror", None) or type(error).__name__
        raise OutputError(f"the key cannot be written ({reason}); choose another file") from None
    return file


def _is_key(file: Path) -> bool:
    try:
        with file.open(newline="", encoding="utf-8", errors="replace") as stream:
            return next(csv.reader(stream), []) == list(KEY_COLUMNS)
    except (OSError, csv.Error):
        return False


def _exact(path: str) -> str:
    """Return a path whose characters are shown as they are; others become escape sequences."""
    return "".join(
        character if without_controls(character) == character else f"\\u{ord(character):04x}" for character in path
    )


def series_uids(file: Path) -> tuple[str, str]:
    """Return the UIDs of the study and of the series of a DICOM file; empty where unknown."""
    with suppress(ImageFileError):
        found = read_slice(file)
        return found.study, "" if found.series == str(file) else found.series
    return "", ""


def hide_labeled(cases: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Origin]]:
    """Return labeled cases without names if any of them is DICOM, and what the names stand for.

    Names are made of the file type and a code of the content, such as ``dicom-0123456789``; a repeated content gets a
    number. Classes and patients are numbered in the order of the cases.

    Args:
        cases: a datalist with ``image``, ``case_id`` and optionally ``mask``, ``class`` and ``patient``.

    Returns:
        Cases and origins. Cases without DICOM are returned unchanged, and without origins.
    """
    files = [Path(case[name]) for case in cases for name in (AnomalyKeys.IMAGE, AnomalyKeys.MASK) if case.get(name)]
    if not any(detect_file_type(file) == DICOM for file in files):
        return [dict(case) for case in cases], []
    counts: dict[str, int] = defaultdict(int)
    numbers: dict[str, dict[Any, str]] = {"class": {}, "patient": {}}
    hidden, origins = [], []
    for case in cases:
        file = Path(case[AnomalyKeys.IMAGE])
        name = f"{(detect_file_type(file) or 'image').lower()}-{code_of(content_key(file))}"
        counts[name] += 1
        name += f"_{counts[name]}" if counts[name] > 1 else ""
        coded = {
            key: known.setdefault(case[key], f"{key}_{len(known) + 1}")
            for key, known in numbers.items()
            if case.get(key) not in (None, "")
        }
        hidden.append({**case, **coded, AnomalyKeys.CASE_ID.value: name})
        origins.append(Origin(name, "", (str(file),), *series_uids(file)))
    return hidden, origins
