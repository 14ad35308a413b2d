"""Find the cases below a path: photographs, frames of videos, DICOM images and series, volumes."""

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
from mrad_med.data.dicom_series import (
    describe_case,
    describe_frame,
    group_series,
    instance_key,
    may_be_volume,
    part_name,
)
from mrad_med.data.names import DistinctNames, code_of
from mrad_med.data.paths import find_files, name_cases
from mrad_med.data.privacy import HIDDEN, Identifiers
from mrad_med.errors import DatasetError, ImageFileError, NotAnImageError
from mrad_med.io.dicom.frames import DicomFrame, DicomStack, frames_of, source_paths
from mrad_med.io.dicom.headers import quiet, read_header
from mrad_med.io.dicom.series import IDENTIFIERS, DicomSeries, Slice, read_slice
from mrad_med.io.file_types import DICOM, PHOTOGRAPH, VIDEO, detect_file_type, may_have_pages
from mrad_med.io.frames import Frame, as_frames, find_sequences, list_frames, thin_frames
from mrad_med.store import content_key, make_key
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["FoundCases", "find_cases", "survey"]

logger = logging.getLogger(__name__)

_FRAMED = (VIDEO, PHOTOGRAPH)
_COPY = "another case has the same content and the same hidden name; only that case is kept"
_ELSEWHERE = 5  # UTF-8 bytes of the shortest word that is hidden in names of files without that identifier


@dataclass(frozen=True)
class FoundCases:
    """Cases found by `survey`.

    Attributes:
        cases: a datalist; see `find_cases`.
        descriptions: file format and dimensions of each case as text, by case id.
        remarks: unusual facts about a case as text, by case id.
        skipped: DICOM objects that are not images, and copies of images with hidden names, each with the reason.
        distinct_name: registry of the case ids in use.
        distinct_video: registry of the video names in use.
    """

    cases: Datalist = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    skipped: list[FailedCase] = field(default_factory=list)
    distinct_name: DistinctNames = field(default_factory=DistinctNames, repr=False)
    distinct_video: DistinctNames = field(default_factory=DistinctNames, repr=False)

    def add(self, image: Any, name: str, kind: str, study: str = "") -> str | None:
        """Add a case and return its id, or None if the same content already has this name."""
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
        """Return the name of a video, or None if the same content already has this name.

        Args:
            name: wanted name.
            paths: file of the video, or files of the sequence.
            frames: names of the frames, if they do not contain the name of the video. The same files with other frame
                names are another video.
        """
        study = self.distinct_video(name, lambda: make_key(_key_of(list(paths)), *frames))
        if study is None:
            self.skipped.append(FailedCase(name, _COPY))
        return study

    def warn(self) -> None:
        """Log each distinct remark once, and the skipped files."""
        by_remark: dict[str, list[str]] = defaultdict(list)
        for case_id, remark in self.remarks.items():
            by_remark[remark].append(case_id)
        for item in self.skipped:
            by_remark[f"skipped: {item.reason}"].append(item.case_id)
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
    """Return the cases below a folder, or in the one file given, sorted by path.

    The file type is detected from the content first, then from the name. Hidden files and folders are skipped. Links
    to folders are not followed. For a DICOMDIR, its folder is searched. The DICOM files of a series form one case, a
    volume, if they are evenly spaced slices of gray values. Otherwise each file is a case. DICOM objects that are not
    images (reports, plans, segmentations, ...) are skipped with a warning.

    Args:
        root: path of a folder, searched recursively, or of a file.
        exclude: path of a folder to skip, such as the output folder.
        strict: whether only evenly spaced slices form a volume. If False, slices may be missing, repeated or unevenly
            spaced.
        keep_identifiers: whether case ids, which are made from paths, keep patient identifiers. If False, each part of
            a path with a patient's name, number or date is replaced by "anonymous" and a code. The identifiers are
            those in the DICOM files found.
        frames_per_second: number of frames per second of a video to keep; None keeps all frames.
        sequence_rate: frames per second of numbered photographs. Photographs of one folder whose names differ only in
            their last number are then treated as one video. None treats each photograph as a separate case.

    Returns:
        ``{"image", "case_id", "study"}`` for each case. The image is an input of `read_image`: a path, the list of
        paths of a series, or a `Frame`. The case id is unique: the path below the root without suffix, or the folder,
        number and code of a series. The study is ``study-`` and a code for DICOM, the name of the video for frames,
        else empty. Codes are computed from UIDs (DICOM) or contents, so they do not depend on other cases.

    Raises:
        DatasetError: the path does not exist, cannot be listed, has no image, or is the excluded folder.
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
    """Return the cases of `find_cases` with descriptions and remarks; no pixels of DICOM files and volumes are read."""
    path = Path(root)
    if path.name.upper() == "DICOMDIR" and path.is_file():
        path = path.parent
    files = find_files(path, exclude=exclude)
    base = path.parent if path.is_file() else path
    file_types = {file: detect_file_type(file) for file in files}
    read = {file: _try_slice(file) for file, file_type in file_types.items() if file_type == DICOM}
    slices = {file: item for file, item in read.items() if isinstance(item, Slice)}
    errors = {file: item for file, item in read.items() if isinstance(item, ImageFileError)}
    names = _Names(files, base, None if keep_identifiers else _identifiers(slices.values()))
    order = {str(file): place for place, file in enumerate(files)}
    found = FoundCases()
    pages_of = {
        file: _try_frames(file, file_type, frames_per_second)
        for file, file_type in file_types.items()
        if file_type in _FRAMED
    }
    if sequence_rate is not None:
        single = [file for file, file_type in file_types.items() if file_type == PHOTOGRAPH and not pages_of[file]]
        for members in find_sequences(single):
            frames = as_frames(members, rate=sequence_rate, frames_per_second=frames_per_second)
            _add_sequence(frames, names, found)
            order |= dict.fromkeys(map(str, members), min(order[str(file)] for file in members))
            for file in members:
                del file_types[file]
    for file, file_type in file_types.items():
        if pages_of.get(file):
            _add_frames(pages_of[file], names.of(file), found)
        elif file_type != DICOM:
            found.add(str(file), names.of(file), file_type or "image")
    _add_dicom(slices, names, base, found, strict=strict, frames_per_second=frames_per_second)
    _add_rest(errors, names, found)
    if not found.cases:
        raise DatasetError(f"{root} has DICOM objects but no image: {found.skipped[0].reason}")
    found.cases.sort(key=lambda case: min(order[str(path)] for path in source_paths(case[AnomalyKeys.IMAGE.value])))
    return found


Codes = Callable[[], tuple[str, str]]


class _Names:
    """Names of cases, made from paths.

    Args:
        files: all files that were found.
        base: folder that names are relative to.
        identifiers: identifiers of all patients, to be hidden in every name: a photograph does not state its patient.
            None hides nothing.
    """

    def __init__(self, files: Sequence[Path], base: Path, identifiers: set[str] | None) -> None:
        self._names = dict(zip(files, name_cases(files, base), strict=True))
        self._known = None if identifiers is None else Identifiers(identifiers, shortest=_ELSEWHERE)

    def plain(self, file: Path) -> str:
        """Return the name of a file without hiding anything."""
        return self._names[file]

    def of(self, file: Path, own: Iterable[str] = (), codes: Codes | None = None) -> str:
        """Return the name of a file without the identifiers of any patient.

        Args:
            file: one of the files.
            own: identifiers in the header of the file; these are hidden even if they are short.
            codes: function that returns the keys for hidden parts, see `hide`; by default the key of the content.
        """
        return self.hide(self._names[file], own, codes or partial(_same_for_both, partial(content_key, file)))

    def hide(self, name: str, own: Iterable[str], codes: Codes) -> str:
        """Return a name in which each part with an identifier is replaced by ``anonymous-`` and a code.

        Args:
            name: name with parts separated by ``/``.
            own: identifiers of the case.
            codes: function that returns two keys; called only if a part is hidden. The first key is for folders and may
                be shared by related cases. The second is unique to the case, for the last part. If the keys differ, a
                last part that is not hidden gets the second code appended.
        """
        if self._known is None:
            return name
        parts, of_case = name.split("/"), _hidden_by(frozenset(own))
        hidden = [self._known.found_in(part) or of_case.found_in(part) for part in parts]
        if not any(hidden):
            return name
        folder, case = map(code_of, codes())
        *folders, last = parts
        shown = [f"{HIDDEN}-{folder}" if is_hidden else part for part, is_hidden in zip(folders, hidden, strict=False)]
        visible = last if folder == case else f"{last}-{case}"
        return "/".join([*shown, f"{HIDDEN}-{case}" if hidden[-1] else visible])


def _same_for_both(key: Callable[[], str]) -> tuple[str, str]:
    value = key()
    return value, value


def _key_of(image: Any) -> str:
    """Return the key of the content of a case."""
    if isinstance(image, Frame):
        return make_key(content_key(image.path), image.index, image.time)
    return make_key([content_key(path) for path in source_paths(image)], *(frames_of(image) or ()))


@lru_cache(maxsize=64)
def _hidden_by(identifiers: frozenset[str]) -> Identifiers:
    return Identifiers(identifiers)


def _try_slice(file: Path) -> Slice | ImageFileError:
    """Return the slice that a DICOM header describes, or the error if there is none."""
    try:
        return read_slice(file)
    except ImageFileError as error:
        return error


def _add_rest(errors: Mapping[Path, ImageFileError], names: _Names, found: FoundCases) -> None:
    """Record DICOM objects that are not images as skipped. A damaged image is a case and fails when it is read."""
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
    """Return the patient identifiers in the header of a file; empty if it cannot be read."""
    with suppress(ImageFileError):
        header = read_header(path, more=IDENTIFIERS)
        with quiet("the DICOM header"):
            return {str(header.get(tag) or "") for tag in IDENTIFIERS}
    return set()


def _try_frames(path: Path, file_type: str | None, frames_per_second: float | None) -> list[Frame]:
    """Return the frames of a video or of a multi-page image; empty for any other or unreadable file."""
    if file_type == PHOTOGRAPH and not may_have_pages(path):
        return []
    try:
        frames = list_frames(path)
    except ImageFileError:  # the case fails later with this error, when it is read
        return []
    if file_type == PHOTOGRAPH and len(frames) == 1:
        return []
    return frames if frames_per_second is None else thin_frames(frames, frames_per_second)


def _add_frames(
    frames: Sequence[Frame], name: str, found: FoundCases, *, what: str = "frame", remark: str = ""
) -> None:
    """Add the frames of a video, of a multi-page image or of a DICOM file."""
    study, digits = found.add_video(name, [frames[0].path]), len(str(frames[-1].index))
    for frame in frames if study else ():
        when = "" if frame.time is None else f" at {frame.time:.3f} s"
        case_id = found.add(frame, f"{study}/frame_{frame.index:0{digits}d}", f"{what}{when}", str(study))
        if remark and case_id is not None:
            found.remarks[case_id] = remark


def _add_sequence(frames: Sequence[Frame], names: _Names, found: FoundCases) -> None:
    """Add numbered photographs as the frames of one video, named after the common part of their names."""
    paths = [frame.path for frame in frames]
    plain, codes = [names.plain(Path(path)) for path in paths], partial(_same_for_both, cache(partial(_key_of, paths)))
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


def _add_dicom(
    slices: Mapping[Path, Slice],
    names: _Names,
    base: Path,
    found: FoundCases,
    *,
    strict: bool,
    frames_per_second: float | None,
) -> None:
    """Add the cases of DICOM files."""
    for series in group_series(slices.values(), base):
        if series.times:
            _add_cine(series, slices[series.files[0]], names, found, frames_per_second)
            continue
        is_volume = series.is_volume or (not strict and may_be_volume([slices[file] for file in series.files]))
        parts = [series.files] if is_volume else [(file,) for file in series.files]
        remarks = list(series.problems)
        if len(parts) > 1:  # images without a position are not expected to form a volume
            remarks = [f"one of {len(parts)} slices that cannot form a volume and are scored separately", *remarks]
            remarks = [] if series.spacing is None else remarks
        for files in parts:
            first, own = slices[files[0]], _identifiers(slices[file] for file in files)
            codes = partial(_dicom_codes, first)
            name = names.of(files[0], own, codes)
            name = "/".join(filter(None, (name, part_name(first, series.frames))))
            if len(files) > 1:
                name = _hidden_series(series.case_id, names, own, codes)
            whole = str(files[0]) if len(files) == 1 else [str(file) for file in files]
            image = DicomStack(str(files[0]), series.frames) if series.frames else whole
            study = f"study-{code_of(make_key(first.study))}" if first.study else ""
            case_id = found.add(image, name, describe_case(series, files, first), study)
            if remarks and case_id is not None:
                found.remarks[case_id] = "; ".join(remarks)


def _add_cine(series: DicomSeries, first: Slice, names: _Names, found: FoundCases, rate: float | None) -> None:
    """Add the frames of a DICOM file that follow each other in time, like those of a video."""
    parts = names.of(first.path, first.identifiers, partial(_dicom_codes, first)), part_name(first, series.frames)
    frames: list[Frame] = [DicomFrame(str(first.path), *pair) for pair in zip(series.frames, series.times, strict=True)]
    frames = frames if rate is None else thin_frames(frames, rate)
    name, remark = "/".join(filter(None, parts)), "; ".join(series.problems)
    _add_frames(frames, name, found, what=describe_frame(first), remark=remark)


def _dicom_codes(first: Slice) -> tuple[str, str]:
    """Return the key of the study of a DICOM file (of the file if it has no study) and the key of the file."""
    own = instance_key(first)
    return make_key(first.study) if first.study else own, own


def _hidden_series(case_id: str, names: _Names, own: Iterable[str], codes: Codes) -> str:
    """Return the name of a series with hidden identifiers and its code at the end."""
    place, code = case_id.rsplit("-", 1)
    hidden = names.hide(place, own, codes)
    return hidden if hidden.endswith(f"-{code}") else f"{hidden}-{code}"
