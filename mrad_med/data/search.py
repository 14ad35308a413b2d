"""What there is to score below a path: photographs, frames of videos, DICOM images and series, volumes."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mrad_med.data.datalist import Datalist
from mrad_med.data.dicom_series import group_series
from mrad_med.data.names import UniqueNames
from mrad_med.data.paths import find_files, name_cases
from mrad_med.data.privacy import Identifiers
from mrad_med.errors import DatasetError, ImageFileError, NotAnImageError
from mrad_med.io.dicom.headers import quiet, read_header
from mrad_med.io.dicom.series import IDENTIFIERS, DicomSeries, Slice, have_one_spacing, read_slice
from mrad_med.io.file_types import DICOM, PHOTOGRAPH, VIDEO, kind_of, may_have_pages
from mrad_med.io.frames import Frame, as_frames, find_sequences, list_frames, thin_frames
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["FoundCases", "find_cases", "survey"]

logger = logging.getLogger(__name__)

_FRAMED = (VIDEO, PHOTOGRAPH)
_ELSEWHERE = 5  # bytes of the shortest word that is hidden where the file itself does not tell whose it is


@dataclass(frozen=True)
class FoundCases:
    """What `survey` found.

    Attributes:
        cases: a datalist, see `find_cases`.
        kinds: what each case is, in words, by its name.
        remarks: what is unusual about a case, in words, by its name.
        skipped: DICOM objects that are no images, and what they are.
    """

    cases: Datalist = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    skipped: list[FailedCase] = field(default_factory=list)
    unique_name: UniqueNames = field(default_factory=UniqueNames, repr=False)
    unique_video: UniqueNames = field(default_factory=UniqueNames, repr=False)

    def add(self, image: Any, name: str, kind: str, study: str = "") -> str:
        """Add a case; return its name, with a count where another has it already."""
        case_id = self.unique_name(name)
        self.kinds[case_id] = kind
        self.cases.append(
            {AnomalyKeys.IMAGE.value: image, AnomalyKeys.CASE_ID.value: case_id, AnomalyKeys.STUDY.value: study}
        )
        return case_id

    def warn(self) -> None:
        """Log the remarks, each once, and what was skipped."""
        by_remark: dict[str, list[str]] = defaultdict(list)
        for case_id, remark in self.remarks.items():
            by_remark[remark].append(case_id)
        for item in self.skipped:
            by_remark[f"passed over: {item.reason}"].append(item.case_id)
        for remark, names in by_remark.items():
            logger.warning("%s%s: %s", names[0], f" and {len(names) - 1} more" if len(names) > 1 else "", remark)


def find_cases(
    root: str | os.PathLike[str],
    *,
    exclude: str | os.PathLike[str] | None = None,
    strict: bool = True,
    keep_identifiers: bool = False,
    frames_per_second: float | None = None,
    sequence_rate: float | None = None,
) -> Datalist:
    """Return what there is to score below a folder, or in the one file given, sorted by name.

    What a file is, its content tells before its name. Hidden files and folders are passed over, links to folders are
    not followed. A DICOMDIR stands for its folder. DICOM files of one series make one case, a volume, where they are
    evenly spaced slices of grey values; where they are not, each is a case of its own. DICOM objects that are no images
    (reports, plans, segmentations, ...) are passed over with a warning.

    Args:
        root: a folder, searched recursively, or a file.
        exclude: a folder that is passed over, such as the one results are written to.
        strict: False makes a volume of a series also where slices are missing, repeated or unevenly spaced.
        keep_identifiers: names of cases are made of paths. Unless True, what in them is a name, number or date of a
            patient, as the DICOM files that are found tell them, is replaced by "anonymous".
        frames_per_second: of videos, how many are scored; None is all of them.
        sequence_rate: take the photographs of a folder whose names differ only in their last number for a video of so
            many a second; None takes each for itself.

    Returns:
        ``{"image", "case_id", "study"}`` for each. The image is what `read_image` takes: a path, the list of paths of a
        series, or a `Frame`. The name is the path below the root without suffix, and unique. The study is what belongs
        together: ``study_1`` and so on for DICOM, the video's name for frames, else empty.

    Raises:
        DatasetError: the path does not exist, cannot be listed, holds no image, or is itself the excluded folder.
    """
    found = survey(
        root,
        exclude=exclude,
        strict=strict,
        keep_identifiers=keep_identifiers,
        frames_per_second=frames_per_second,
        sequence_rate=sequence_rate,
    )
    found.warn()
    return found.cases


def survey(
    root: str | os.PathLike[str],
    *,
    exclude: str | os.PathLike[str] | None = None,
    strict: bool = True,
    keep_identifiers: bool = False,
    frames_per_second: float | None = None,
    sequence_rate: float | None = None,
) -> FoundCases:
    """Return what `find_cases` finds, and what is to be said of it; of DICOM and volumes no pixels are read."""
    path = Path(root)
    if path.name.upper() == "DICOMDIR" and path.is_file():
        path = path.parent
    files = find_files(path, exclude=exclude)
    base = path.parent if path.is_file() else path
    kinds = {file: kind_of(file) for file in files}
    read = {file: _try_slice(file) for file, kind in kinds.items() if kind == DICOM}
    slices = {file: item for file, item in read.items() if isinstance(item, Slice)}
    errors = {file: item for file, item in read.items() if isinstance(item, ImageFileError)}
    names = _Names(files, base, None if keep_identifiers else _identifiers(slices.values()))
    order = {str(file): place for place, file in enumerate(files)}
    found = FoundCases()
    films = {file: _try_frames(file, kind, frames_per_second) for file, kind in kinds.items() if kind in _FRAMED}
    if sequence_rate is not None:
        single = [file for file, kind in kinds.items() if kind == PHOTOGRAPH and not films[file]]
        for members in find_sequences(single):
            frames = as_frames(members, rate=sequence_rate, frames_per_second=frames_per_second)
            _add_sequence(frames, names, found)
            order |= dict.fromkeys(map(str, members), min(order[str(file)] for file in members))
            for file in members:
                del kinds[file]
    for file, kind in kinds.items():
        if films.get(file):
            _add_frames(films[file], names.of(file), found)
        elif kind != DICOM:
            found.add(str(file), names.of(file), kind or "image")
    _add_dicom(slices, names, base, found, strict=strict)
    _add_rest(errors, names, found)
    if not found.cases:
        raise DatasetError(f"{root} holds DICOM objects but no image: {found.skipped[0].reason}")
    found.cases.sort(key=lambda case: min(order[path] for path in _paths(case[AnomalyKeys.IMAGE.value])))
    return found


class _Names:
    """Names of cases, made of paths.

    Args:
        files: all there are.
        base: that names are relative to.
        identifiers: of all patients, hidden wherever they are found, for a photograph tells nobody whose it is; None
            hides nothing.
    """

    def __init__(self, files: Sequence[Path], base: Path, identifiers: set[str] | None) -> None:
        self._names = dict(zip(files, name_cases(files, base), strict=True))
        self._known = None if identifiers is None else Identifiers(identifiers, shortest=_ELSEWHERE)

    def of(self, file: Path, own: Iterable[str] = ()) -> str:
        """Return the name of a file, free of everybody's identifiers, and of shorter ones that are its own."""
        return self.hide(self._names[file], own)

    def hide(self, name: str, own: Iterable[str] = ()) -> str:
        """Return another name, freed likewise."""
        return name if self._known is None else _hidden_by(frozenset(own)).hide(self._known.hide(name))


@lru_cache(maxsize=64)
def _hidden_by(identifiers: frozenset[str]) -> Identifiers:
    return Identifiers(identifiers)


def _try_slice(file: Path) -> Slice | ImageFileError:
    """Return what the header of a DICOM file tells, or why it makes no slice."""
    try:
        return read_slice(file)
    except ImageFileError as error:
        return error


def _paths(image: Any) -> list[str]:
    if isinstance(image, list):
        return image
    return [image.path if isinstance(image, Frame) else image]


def _add_rest(errors: Mapping[Path, ImageFileError], names: _Names, found: FoundCases) -> None:
    """Pass over DICOM objects that are no images; a damaged one is a case, which fails when it is read."""
    for file, error in errors.items():
        name = names.of(file, _try_identifiers(file))
        if isinstance(error, NotAnImageError):
            found.skipped.append(FailedCase(name, str(error)))
        else:
            found.remarks[found.add(str(file), name, "DICOM, damaged")] = str(error)


def _identifiers(slices: Iterable[Slice]) -> set[str]:
    return {word for item in slices for word in item.identifiers}


def _try_identifiers(path: Path) -> set[str]:
    """Return what the header of a file tells of who the patient is, if it can be read."""
    with suppress(ImageFileError):
        header = read_header(path, more=IDENTIFIERS)
        with quiet("the DICOM header"):
            return {str(header.get(tag) or "") for tag in IDENTIFIERS}
    return set()


def _try_frames(path: Path, kind: str | None, frames_per_second: float | None) -> list[Frame]:
    """Return the frames of a video or the pages of a picture with several; none of what cannot be read as such."""
    if kind == PHOTOGRAPH and not may_have_pages(path):
        return []
    try:
        frames = list_frames(path)
    except ImageFileError:  # it fails when it is read, and is told then
        return []
    if kind == PHOTOGRAPH and len(frames) == 1:
        return []
    return frames if frames_per_second is None else thin_frames(frames, frames_per_second)


def _add_frames(frames: Sequence[Frame], name: str, found: FoundCases) -> None:
    """Add the frames of a video or of a picture with several pages."""
    study, digits = found.unique_video(name), len(str(frames[-1].index))
    for frame in frames:
        when = "" if frame.time is None else f" at {frame.time:.3f} s"
        found.add(frame, f"{study}/frame_{frame.index:0{digits}d}", f"frame{when}", study)


def _add_sequence(frames: Sequence[Frame], names: _Names, found: FoundCases) -> None:
    """Add numbered photographs as the frames of one video, named after what their names have in common."""
    common = re.sub(r"[^\w/]*_?\d+\D*$", "", names.of(Path(frames[0].path)))
    study = found.unique_video(common if common and not common.endswith("/") else f"{common}sequence")
    for frame in frames:
        found.add(frame, names.of(Path(frame.path)), f"frame at {frame.time:.3f} s", study)


def _add_dicom(slices: Mapping[Path, Slice], names: _Names, base: Path, found: FoundCases, *, strict: bool) -> None:
    """Add the cases that DICOM files make."""
    known = dict.fromkeys(item.study for item in slices.values() if item.study)
    studies = {uid: f"study_{number}" for number, uid in enumerate(known, 1)}
    for series in group_series(slices.values(), base):
        is_volume = series.is_volume or (not strict and _may_be_volume(series, slices))
        parts = [series.files] if is_volume else [(file,) for file in series.files]
        remarks = list(series.problems)
        if len(parts) > 1:  # pictures that do not tell their position are none that should make a volume
            remarks = [f"one of {len(parts)} slices that make no volume, each scored by itself", *remarks]
            remarks = [] if series.spacing is None else remarks
        for files in parts:
            own = _identifiers(slices[file] for file in files)
            name = names.hide(series.case_id, own) if len(files) > 1 else names.of(files[0], own)
            image = str(files[0]) if len(files) == 1 else [str(file) for file in files]
            first = slices[files[0]]
            case_id = found.add(image, name, _describe(series, files, first), studies.get(first.study, ""))
            if remarks:
                found.remarks[case_id] = "; ".join(remarks)


def _may_be_volume(series: DicomSeries, slices: Mapping[Path, Slice]) -> bool:
    members = [slices[file] for file in series.files]
    is_stack = len(members) > 1 and series.spacing is not None and all(item.is_grey for item in members)
    return is_stack and have_one_spacing(members)


def _describe(series: DicomSeries, files: Sequence[Path], first: Slice) -> str:
    count = len(files) if len(files) > 1 else first.frames
    what = f"{count} slices" if len(files) > 1 else "image" if count == 1 else f"{count} frames"
    size = " x ".join(map(str, first.size))
    spacing = "" if series.spacing is None else f", {' x '.join(f'{step:.3g}' for step in series.spacing)} mm"
    return f"{' '.join(filter(None, (DICOM, first.modality, what)))} of {size}, {series.plane}{spacing}"
