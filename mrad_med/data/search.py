"""What there is to score below a path: photographs, frames of videos, DICOM images and series, volumes."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from mrad_med.data.datalist import Datalist
from mrad_med.data.dicom_series import group_series, instance_key
from mrad_med.data.names import DistinctNames, code_of
from mrad_med.data.paths import find_files, name_cases
from mrad_med.data.privacy import HIDDEN, Identifiers
from mrad_med.errors import DatasetError, ImageFileError, NotAnImageError
from mrad_med.io.dicom.headers import quiet, read_header
from mrad_med.io.dicom.series import IDENTIFIERS, DicomSeries, Slice, have_one_spacing, read_slice
from mrad_med.io.file_types import DICOM, PHOTOGRAPH, VIDEO, detect_file_type, may_have_pages
from mrad_med.io.frames import Frame, as_frames, find_sequences, list_frames, thin_frames
from mrad_med.store import content_key, make_key, paths_of
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["FoundCases", "find_cases", "survey"]

logger = logging.getLogger(__name__)

_FRAMED = (VIDEO, PHOTOGRAPH)
_COPY = "its content is that of another case whose hidden name is the same; that case stands for both"
_ELSEWHERE = 5  # bytes of the shortest word that is hidden where the file itself does not tell whose it is


@dataclass(frozen=True)
class FoundCases:
    """What `survey` found.

    Attributes:
        cases: a datalist, see `find_cases`.
        descriptions: file format and dimensions of each case in words, by case id.
        remarks: what is unusual about a case, in words, by its name.
        skipped: DICOM objects that are no images, and copies of images whose names were hidden, with the reason.
    """

    cases: Datalist = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    skipped: list[FailedCase] = field(default_factory=list)
    distinct_name: DistinctNames = field(default_factory=DistinctNames, repr=False)
    distinct_video: DistinctNames = field(default_factory=DistinctNames, repr=False)

    def add(self, image: Any, name: str, kind: str, study: str = "") -> str | None:
        """Add a case; return its name, None where the same content has this name already."""
        case_id = self.distinct_name(name, partial(_key_of, image))
        if case_id is None:
            self.skipped.append(FailedCase(name, _COPY))
            return None
        self.descriptions[case_id] = kind
        self.cases.append(
            {AnomalyKeys.IMAGE.value: image, AnomalyKeys.CASE_ID.value: case_id, AnomalyKeys.STUDY.value: study}
        )
        return case_id

    def add_video(self, name: str, paths: Sequence[str], frames: Sequence[str] = ()) -> str | None:
        """Return the name of a video, None where the same content has this name already.

        Args:
            name: the wanted name.
            paths: its file, or the files of a sequence.
            frames: names of frames that are named apart from the video; others of other names are another video.
        """
        study = self.distinct_video(name, lambda: make_key(_key_of(list(paths)), *frames))
        if study is None:
            self.skipped.append(FailedCase(name, _COPY))
        return study

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
    evenly spaced slices of gray values; where they are not, each is a case of its own. DICOM objects that are no images
    (reports, plans, segmentations, ...) are passed over with a warning.

    Args:
        root: a folder, searched recursively, or a file.
        exclude: a folder that is passed over, such as the one results are written to.
        strict: False makes a volume of a series also where slices are missing, repeated or unevenly spaced.
        keep_identifiers: names of cases are made of paths. Unless True, what in them is a name, number or date of a
            patient, as the DICOM files that are found state them, is replaced by "anonymous" and a code.
        frames_per_second: of videos, how many are scored; None is all of them.
        sequence_rate: take the photographs of a folder whose names differ only in their last number for a video of so
            many a second; None takes each for itself.

    Returns:
        ``{"image", "case_id", "study"}`` for each. The image is what `read_image` takes: a path, the list of paths of a
        series, or a `Frame`. The name is unique: the path below the root without suffix, or the folder, number and code
        of a series. The study is what belongs together: ``study-`` and a code for DICOM, the video's name for frames,
        else empty. Codes are made of contents (of DICOM, of UIDs), so other cases do not change a name.

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
    kinds = {file: detect_file_type(file) for file in files}
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


Codes = Callable[[], tuple[str, str]]


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

    def plain(self, file: Path) -> str:
        """Return the name of a file as it is."""
        return self._names[file]

    def of(self, file: Path, own: Iterable[str] = (), codes: Codes | None = None) -> str:
        """Return the name of a file, free of everybody's identifiers, and of shorter ones that are its own.

        Args:
            file: one of the files.
            own: identifiers in its header.
            codes: returns the keys that stand for hidden parts, see `hide`; by default the key of its content.
        """
        return self.hide(self._names[file], own, codes or partial(_twice, partial(content_key, file)))

    def hide(self, name: str, own: Iterable[str], codes: Codes) -> str:
        """Return a name with ``anonymous-`` and a code for each part that has an identifier.

        Args:
            name: parts separated by ``/``.
            own: identifiers of the case.
            codes: returns two keys, called only where something is hidden: one for folders, which may be shared by what
                belongs together, and one that is the case's own, for the last part. A last part that is not hidden is
                followed by its code where the two differ.
        """
        if self._known is None:
            return name
        parts, mine = name.split("/"), _hidden_by(frozenset(own))
        hidden = [self._known.found_in(part) or mine.found_in(part) for part in parts]
        if not any(hidden):
            return name
        folder, case = map(code_of, codes())
        *folders, last = parts
        shown = [f"{HIDDEN}-{folder}" if is_hidden else part for part, is_hidden in zip(folders, hidden, strict=False)]
        visible = last if folder == case else f"{last}-{case}"
        return "/".join([*shown, f"{HIDDEN}-{case}" if hidden[-1] else visible])


def _twice(key: Callable[[], str]) -> tuple[str, str]:
    value = key()
    return value, value


def _key_of(image: Any) -> str:
    """Return the key of what a case shows."""
    if isinstance(image, Frame):
        return make_key(content_key(image.path), image.index, image.time)
    return make_key([content_key(path) for path in paths_of(image)])


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
            case_id = found.add(str(file), name, "DICOM, damaged")
            if case_id is not None:
                found.remarks[case_id] = str(error)


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
    study, digits = found.add_video(name, [frames[0].path]), len(str(frames[-1].index))
    for frame in frames if study else ():
        when = "" if frame.time is None else f" at {frame.time:.3f} s"
        found.add(frame, f"{study}/frame_{frame.index:0{digits}d}", f"frame{when}", str(study))


def _add_sequence(frames: Sequence[Frame], names: _Names, found: FoundCases) -> None:
    """Add numbered photographs as the frames of one video, named after what their names have in common."""
    paths = [frame.path for frame in frames]
    plain, codes = [names.plain(Path(path)) for path in paths], partial(_twice, cache(partial(_key_of, paths)))
    common = re.sub(r"[^\w/]*_?\d+\D*$", "", plain[0])
    common = common if common and not common.endswith("/") else f"{common}sequence"
    hidden = names.hide(common, (), codes)
    study = found.add_video(hidden, paths, plain if hidden == common else ())
    shown = [names.hide(name, (), codes) for name in plain]
    if any(Path(hidden).name != Path(name).name for hidden, name in zip(shown, plain, strict=True)):
        digits = len(str(len(frames) - 1))
        shown = [f"{study}/frame_{number:0{digits}d}" for number in range(len(frames))]
    for frame, name in zip(frames, shown, strict=True) if study else ():
        found.add(frame, name, f"frame at {frame.time:.3f} s", str(study))


def _add_dicom(slices: Mapping[Path, Slice], names: _Names, base: Path, found: FoundCases, *, strict: bool) -> None:
    """Add the cases that DICOM files make."""
    for series in group_series(slices.values(), base):
        is_volume = series.is_volume or (not strict and _may_be_volume(series, slices))
        parts = [series.files] if is_volume else [(file,) for file in series.files]
        remarks = list(series.problems)
        if len(parts) > 1:  # pictures that do not tell their position are none that should make a volume
            remarks = [f"one of {len(parts)} slices that make no volume, each scored by itself", *remarks]
            remarks = [] if series.spacing is None else remarks
        for files in parts:
            first, own = slices[files[0]], _identifiers(slices[file] for file in files)
            codes = partial(_dicom_codes, first)
            name = names.of(files[0], own, codes)
            if len(files) > 1:
                name = _hidden_series(series.case_id, names, own, codes)
            image = str(files[0]) if len(files) == 1 else [str(file) for file in files]
            study = f"study-{code_of(make_key(first.study))}" if first.study else ""
            case_id = found.add(image, name, _describe(series, files, first), study)
            if remarks and case_id is not None:
                found.remarks[case_id] = "; ".join(remarks)


def _dicom_codes(first: Slice) -> tuple[str, str]:
    """Return the key of what a DICOM file belongs to, its study as far as it is known, and its own."""
    own = instance_key(first)
    return make_key(first.study) if first.study else own, own


def _hidden_series(case_id: str, names: _Names, own: Iterable[str], codes: Codes) -> str:
    """Return the name of a series with hidden identifiers; its own code stands at the end already."""
    place, code = case_id.rsplit("-", 1)
    hidden = names.hide(place, own, codes)
    return hidden if hidden.endswith(f"-{code}") else f"{hidden}-{code}"


def _may_be_volume(series: DicomSeries, slices: Mapping[Path, Slice]) -> bool:
    members = [slices[file] for file in series.files]
    is_stack = len(members) > 1 and series.spacing is not None and all(item.is_gray for item in members)
    return is_stack and have_one_spacing(members)


def _describe(series: DicomSeries, files: Sequence[Path], first: Slice) -> str:
    count = len(files) if len(files) > 1 else first.frames
    what = f"{count} slices" if len(files) > 1 else "image" if count == 1 else f"{count} frames"
    size = " x ".join(map(str, first.size))
    spacing = "" if series.spacing is None else f", {' x '.join(f'{step:.3g}' for step in series.spacing)} mm"
    return f"{' '.join(filter(None, (DICOM, first.modality, what)))} of {size}, {series.plane}{spacing}"
