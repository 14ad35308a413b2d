"""Find the cases below a path: photographs, frames of videos, DICOM images and series, volumes."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
from mrad_med.data.label_files import MASK_REASON, find_masks
from mrad_med.data.names import DistinctNames, code_of
from mrad_med.data.paths import search_files
from mrad_med.data.privacy import CaseNames, Origin
from mrad_med.errors import DatasetError, ImageFileError, NotAnImageError
from mrad_med.io.dicom.frames import DicomFrame, DicomStack, frames_of, source_paths
from mrad_med.io.dicom.series import DicomSeries, Slice, read_slice
from mrad_med.io.file_types import DICOM, PHOTOGRAPH, VIDEO, VOLUME, detect_file_type, may_have_pages
from mrad_med.io.frames import Frame, as_frames, find_sequences, list_frames, thin_frames
from mrad_med.io.volume_reader import read_volume_header
from mrad_med.store import content_key, make_key
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["FoundCases", "find_cases", "survey"]

logger = logging.getLogger(__name__)

_FRAMED = (VIDEO, PHOTOGRAPH)
_COPY = "another case has the same content and the same hidden name; only that case is kept"


@dataclass(frozen=True)
class FoundCases:
    """Cases found by `survey`.

    Attributes:
        cases: a datalist; see `find_cases`.
        descriptions: file format and dimensions of each case as text, by case id.
        remarks: unusual facts about a case as text, by case id.
        skipped: DICOM objects that are not images, masks, and copies of images with hidden names, with the reason.
        names_are_hidden: whether names are codes, see `find_cases`.
        origins: files that each name stands for; see `mrad_med.data.write_key`.
        distinct_name: registry of the case ids in use.
        distinct_video: registry of the video names in use.
    """

    cases: Datalist = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    skipped: list[FailedCase] = field(default_factory=list)
    names_are_hidden: bool = False
    origins: list[Origin] = field(default_factory=list, repr=False)
    distinct_name: DistinctNames = field(default_factory=DistinctNames, repr=False)
    distinct_video: DistinctNames = field(default_factory=DistinctNames, repr=False)

    def add(self, image: Any, name: str, kind: str, study: str = "", *, uids: tuple[str, str] = ("", "")) -> str | None:
        """Add a case and return its id, or None if the same content already has this name.

        Args:
            image: input of `read_image`.
            name: wanted name.
            kind: file format and dimensions as text.
            study: name of the study or video.
            uids: UIDs of the study and of the series.
        """
        case_id = self.distinct_name(name, partial(_key_of, image))
        if not isinstance(image, Frame):
            self.origins.append(Origin(case_id or name, study, tuple(map(str, source_paths(image))), *uids))
        if case_id is None:
            self.skipped.append(FailedCase(name, _COPY))
            return None
        self.descriptions[case_id] = kind
        self.cases.append(
            {AnomalyKeys.IMAGE.value: image, AnomalyKeys.CASE_ID.value: case_id, AnomalyKeys.STUDY.value: study}
        )
        return case_id

    def add_video(
        self, name: str, paths: Sequence[str], frames: Sequence[str] = (), *, uids: tuple[str, str] = ("", "")
    ) -> str | None:
        """Return the name of a video, or None if the same content already has this name.

        Args:
            name: wanted name.
            paths: file of the video, or files of the sequence.
            frames: names of the frames, if they do not contain the name of the video. The same files with other frame
                names are another video.
            uids: UIDs of the study and of the series of a DICOM file.
        """
        study = self.distinct_video(name, lambda: make_key(_key_of(list(paths)), *frames))
        self.origins.append(Origin(study or name, study or name, tuple(dict.fromkeys(paths)), *uids))
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
    include_masks: bool = False,
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
        keep_identifiers: whether case ids are made from paths even if a DICOM file is found. If False, case ids are
            then codes: paths of DICOM files, and of all files beside them, may identify patients. Errors name no folder
            below the root.
        frames_per_second: number of frames per second of a video to keep; None keeps all frames.
        sequence_rate: frames per second of numbered photographs. Photographs of one folder whose names differ only in
            their last number are then treated as one video. None treats each photograph as a separate case.
        include_masks: whether masks and label volumes are cases too (`find_masks`). If False, they are skipped.

    Returns:
        ``{"image", "case_id", "study"}`` for each case. The image is an input of `read_image`: a path, the list of
        paths of a series, or a `Frame`. The case id is unique: the path below the root without suffix, or the folder,
        number and code of a series. The study is ``study-`` and a code for DICOM, the name of the video for frames,
        else empty. Codes are computed from UIDs (DICOM) or contents, so they do not depend on other cases. Hidden names
        are those of the file type and a code, such as ``photograph-0123456789``, in the folder of the study if known.

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
        include_masks=include_masks,
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
    include_masks: bool = False,
) -> FoundCases:
    """Return the cases of `find_cases` with descriptions and remarks; no pixels of DICOM files and volumes are read."""
    path = Path(root)
    if path.name.upper() == "DICOMDIR" and os.path.isfile(path):  # noqa: PTH113 - Path.is_file may raise
        path = path.parent
    files, is_dicom = search_files(path, exclude=exclude, name_folders=keep_identifiers)
    are_hidden = (is_dicom or path != Path(root)) and not keep_identifiers
    base = path.parent if path.is_file() else path
    file_types = {file: detect_file_type(file) for file in files}
    masks = set() if include_masks else find_masks(file_types, base)
    file_types = {file: file_type for file, file_type in file_types.items() if file not in masks}
    read = {file: _try_slice(file) for file, file_type in file_types.items() if file_type == DICOM}
    slices = {file: item for file, item in read.items() if isinstance(item, Slice)}
    errors = {file: item for file, item in read.items() if isinstance(item, ImageFileError)}
    names = CaseNames(files, base, are_hidden=are_hidden)
    order = {str(file): place for place, file in enumerate(files)}
    found = FoundCases(
        skipped=[FailedCase(names.of(file, "mask"), MASK_REASON) for file in files if file in masks],
        names_are_hidden=are_hidden,
    )
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
        word = file_type or "image"
        if pages_of.get(file):
            _add_frames(pages_of[file], names.of(file, word), found)
        elif file_type != DICOM:
            case_id = found.add(str(file), names.of(file, word), word)
            remarks = _volume_remarks(file) if file_type == VOLUME and case_id is not None else ""
            if remarks:
                found.remarks[str(case_id)] = remarks
    _add_dicom(slices, names, base, found, strict=strict, frames_per_second=frames_per_second)
    _add_rest(errors, names, found)
    if not found.cases:
        place = "the given path" if are_hidden else root
        raise DatasetError(f"{place} has no image to score: {found.skipped[0].reason}")
    found.cases.sort(key=lambda case: min(order[str(path)] for path in source_paths(case[AnomalyKeys.IMAGE.value])))
    return found


def _key_of(image: Any) -> str:
    """Return the key of the content of a case."""
    if isinstance(image, Frame):
        return make_key(content_key(image.path), image.index, image.time)
    return make_key([content_key(path) for path in source_paths(image)], *(frames_of(image) or ()))


def _try_slice(file: Path) -> Slice | ImageFileError:
    """Return the slice that a DICOM header describes, or the error if there is none."""
    try:
        return read_slice(file)
    except ImageFileError as error:
        return error


def _add_rest(errors: Mapping[Path, ImageFileError], names: CaseNames, found: FoundCases) -> None:
    """Record DICOM objects that are not images as skipped. A damaged image is a case and fails when it is read."""
    for file, error in errors.items():
        name = names.of(file, DICOM)
        if isinstance(error, NotAnImageError):
            found.skipped.append(FailedCase(name, str(error)))
            found.origins.append(Origin(name, "", (str(file),)))
        else:
            case_id = found.add(str(file), name, "DICOM, damaged")
            if case_id is not None:
                found.remarks[case_id] = str(error)


def _try_frames(path: Path, file_type: str | None, frames_per_second: float | None) -> list[Frame]:
    """Return the frames of a video or of a multi-page image; empty for any other or unreadable file."""
    try:
        if file_type == PHOTOGRAPH and not may_have_pages(path):
            return []
        frames = list_frames(path)
    except (ImageFileError, OSError):  # the case fails later with this error, when it is read
        return []
    if file_type == PHOTOGRAPH and len(frames) == 1:
        return []
    return frames if frames_per_second is None else thin_frames(frames, frames_per_second)


def _volume_remarks(path: Path) -> str:
    """Return unusual facts about the geometry of a NIfTI or NRRD file; empty if there are none or it is unreadable."""
    with suppress(ImageFileError):  # the case fails later with this error, when it is read
        return "; ".join(read_volume_header(path).remarks)
    return ""


def _add_frames(
    frames: Sequence[Frame],
    name: str,
    found: FoundCases,
    *,
    what: str = "frame",
    remark: str = "",
    uids: tuple[str, str] = ("", ""),
) -> None:
    """Add the frames of a video, of a multi-page image or of a DICOM file."""
    study, digits = found.add_video(name, [frames[0].path], uids=uids), len(str(frames[-1].index))
    for frame in frames if study else ():
        when = "" if frame.time is None else f" at {frame.time:.3f} s"
        case_id = found.add(frame, f"{study}/frame_{frame.index:0{digits}d}", f"{what}{when}", str(study))
        if remark and case_id is not None:
            found.remarks[case_id] = remark


def _add_sequence(frames: Sequence[Frame], names: CaseNames, found: FoundCases) -> None:
    """Add numbered photographs as the frames of one video, named after the common part of their names."""
    paths = [frame.path for frame in frames]
    if names.are_hidden:
        study = found.add_video(names.of(Path(paths[0]), "sequence", partial(_key_of, paths)), paths)
        digits = len(str(len(frames) - 1))
        shown = [f"{study}/frame_{number:0{digits}d}" for number in range(len(frames))]
    else:
        shown = [names.path_of(Path(path)) for path in paths]
        common = re.sub(r"[^\w/]*_?\d+\D*$", "", shown[0])
        study = found.add_video(common if common and not common.endswith("/") else f"{common}sequence", paths, shown)
    for frame, name in zip(frames, shown, strict=True) if study else ():
        found.add(frame, name, f"frame at {frame.time:.3f} s", str(study))


def _add_dicom(
    slices: Mapping[Path, Slice],
    names: CaseNames,
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
            first = slices[files[0]]
            study = f"study-{code_of(make_key(first.study))}" if first.study else ""
            name = names.of(files[0], DICOM, partial(instance_key, first), study=study)
            name = "/".join(filter(None, (name, part_name(first, series.frames))))
            if len(files) > 1:
                name = names.of_series(series.case_id, study=study)
            whole = str(files[0]) if len(files) == 1 else [str(file) for file in files]
            image = DicomStack(str(files[0]), series.frames) if series.frames else whole
            uids = _uids_of(first)
            case_id = found.add(image, name, describe_case(series, files, first), study, uids=uids)
            if remarks and case_id is not None:
                found.remarks[case_id] = "; ".join(remarks)


def _uids_of(item: Slice) -> tuple[str, str]:
    """Return the UIDs of the study and of the series of a file; empty where its header states none."""
    return item.study, "" if item.series == str(item.path) else item.series


def _add_cine(series: DicomSeries, first: Slice, names: CaseNames, found: FoundCases, rate: float | None) -> None:
    """Add the frames of a DICOM file that follow each other in time, like those of a video."""
    study = f"study-{code_of(make_key(first.study))}" if first.study else ""
    own = names.of(first.path, DICOM, partial(instance_key, first), study=study)
    frames: list[Frame] = [DicomFrame(str(first.path), *pair) for pair in zip(series.frames, series.times, strict=True)]
    frames = frames if rate is None else thin_frames(frames, rate)
    name, remark = "/".join(filter(None, (own, part_name(first, series.frames)))), "; ".join(series.problems)
    _add_frames(frames, name, found, what=describe_frame(first), remark=remark, uids=_uids_of(first))
