"""Group DICOM files into series by their headers."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mrad_med.data.names import DistinctNames, code_of, printable
from mrad_med.data.paths import refuse_listing
from mrad_med.errors import DatasetError, ImageFileError
from mrad_med.io.dicom.frame_groups import FrameGroup
from mrad_med.io.dicom.series import (
    VOLUME_TAGS,
    DicomSeries,
    Slice,
    are_parallel,
    have_one_spacing,
    read_slice,
    stack_slices,
)
from mrad_med.io.file_types import DICOM, detect_file_type
from mrad_med.io.geometry import Stack, plane_name, stack_planes
from mrad_med.store import content_key, make_key

__all__ = [
    "describe_case",
    "describe_frame",
    "find_series",
    "group_series",
    "instance_key",
    "may_be_volume",
    "part_name",
    "split_into_volumes",
]

logger = logging.getLogger(__name__)


def find_series(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[DicomSeries]:
    """Return the series in a folder and below it, or among files; only headers are read.

    DICOM files are recognized by their content, not by their name. Objects that are not images and files that cannot
    be read are skipped. Hidden files and folders are skipped too, and links to folders are not followed. A series is
    split if its images differ in direction or size, or if several volumes share the same positions (echoes, times).

    Args:
        source: a folder, a file, or several files.

    Raises:
        DatasetError: the folder does not exist or cannot be listed, or there is no DICOM image.
    """
    files, root = _list_files(source)
    slices = [item for item in map(_try_slice, files) if item is not None]
    if len(slices) < len(files):
        logger.warning("%d of %d file(s) skipped: not images, or damaged", len(files) - len(slices), len(files))
    if not slices:
        raise DatasetError(f"no DICOM image in {root}; files are recognized by their content, not by their names")
    return group_series(slices, root)


def group_series(slices: Iterable[Slice], root: Path) -> list[DicomSeries]:
    """Return the series of the slices. A name consists of folder below ``root``, series number and first slice."""
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        by_series[item.series].append(item)
    groups = [(group, notes) for members in by_series.values() for group, notes in split_into_volumes(members)]
    groups.sort(key=lambda item: (item[0][0].path.parent, item[0][0].number or 0, item[0][0].path))
    return _name([(series, group) for group, notes in groups for series in _describe_all(group, notes)], root)


def _try_slice(path: Path) -> Slice | None:
    try:
        return read_slice(path)
    except ImageFileError:
        return None


def _list_files(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[list[Path], Path]:
    """Return the files to read, sorted, and the folder that series names are relative to."""
    if not isinstance(source, (str, os.PathLike)):
        files = sorted(Path(path).absolute() for path in source)
        return files, Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    root = Path(source)
    if root.is_file():
        return [root], root.parent
    if not root.is_dir():
        raise DatasetError(f"there is no file or folder {root}")
    files = []
    for folder, subfolders, names in os.walk(root, onerror=refuse_listing):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        candidates = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        files += [path for path in candidates if detect_file_type(path) == DICOM]
    return files, root


def _describe_all(group: list[Slice], notes: list[str]) -> list[DicomSeries]:
    """Return the series of a group of slices; several of one file whose frames form several volumes."""
    first = group[0]
    if first.frames == 1 or not first.groups:
        return [_describe(group, notes)]
    if len(first.groups) > 1:
        notes = [*notes, f"one of {len(first.groups)} volumes or images of one file"]
    return [_describe_frames(first, part, notes) for part in first.groups]


def _describe_frames(item: Slice, part: FrameGroup, notes: list[str]) -> DicomSeries:
    """Return a series, without a name, of frames of one file."""
    alone, files, modality = len(item.groups) == 1, (item.path,), item.modality
    if part.is_sequence:
        notes = [*notes, "frames without positions or at one position are scored one by one"]
        times = tuple(item.times[frame] for frame in part.frames)
        return DicomSeries("", files, modality, "unknown", None, tuple(notes), False, part.frames, times)
    frames = () if alone else part.frames
    if part.planes is None:
        notes = [*notes, "its place and direction are unknown; only the distance between slices is stated"]
        return DicomSeries("", files, modality, "unknown", None, tuple(notes), item.is_gray, frames)
    stack = stack_planes(part.planes)
    problems = (*notes, *stack.faults, *stack.remarks)
    plane, is_volume = plane_name(part.planes.orientation), item.is_gray and not stack.faults
    return DicomSeries("", files, modality, plane, _lengths(stack), problems, is_volume, frames)


def _lengths(stack: Stack) -> tuple[float, float, float]:
    columns, rows, slices = np.linalg.norm(stack.affine[:3, :3], axis=0).tolist()
    return columns, rows, slices


def _describe(group: list[Slice], notes: list[str]) -> DicomSeries:
    """Return a series, without a name, of files with one frame each."""
    group, stack, notes = _without_copies(group, stack_slices(group), notes)
    first = group[0]
    problems = [*notes, *dict.fromkeys(item.problem for item in group if item.problem is not None)]
    files, spacing, plane = [item.path for item in group], None, "unknown"
    is_volume = first.is_gray and stack is not None and not stack.faults and have_one_spacing(group)
    if stack is None or first.planes is None:
        unplaced = sum(item.problem is None for item in group)
        if len(group) > 1 and unplaced:
            problems.append(f"{unplaced} slice(s) do not state their position")
    else:
        files = [files[index] for index in stack.order]
        problems += [*stack.faults, *stack.remarks]
        spacing, plane = _lengths(stack), plane_name(first.planes.orientation)
        if not have_one_spacing(group):
            problems.append("different pixel spacings in one series")
    return DicomSeries("", tuple(files), first.modality, plane, spacing, tuple(problems), is_volume)


def _without_copies(
    group: list[Slice], stack: Stack | None, notes: list[str]
) -> tuple[list[Slice], Stack | None, list[str]]:
    """Return a group without copies of the same slice, if the other slices then form a stack without faults."""
    if stack is None or not stack.repeated:
        return group, stack, notes
    originals = list({item.instance: item for item in reversed(group)}.values())[::-1]
    reduced = stack_slices(originals)
    if reduced is None or reduced.faults or len(originals) < 2:
        return group, stack, notes
    return originals, reduced, [*notes, f"{len(group) - len(originals)} copies of slices skipped"]


def _name(found: list[tuple[DicomSeries, list[Slice]]], root: Path) -> list[DicomSeries]:
    """Return the series with their names: folder, series number, and code of the first slice."""
    distinct = DistinctNames()
    named = []
    for series, group in found:
        first = next(item for item in group if item.path == series.files[0])
        contents = partial(_key_of_files, series.files, series.frames)
        place = "-".join(filter(None, (_place_of(group[0], root), part_name(first, series.frames))))
        case_id = distinct(f"{place}-{code_of(instance_key(first))}", contents)
        if case_id is not None:  # None if the same files were given twice
            named.append(replace(series, case_id=case_id))
    return named


def part_name(item: Slice, frames: tuple[int, ...]) -> str:
    """Return the name of a volume among those of one file; empty if the file holds no other."""
    if len(item.groups) < 2:
        return ""
    number = [group.frames for group in item.groups].index(frames) + 1
    return f"part_{number:0{len(str(len(item.groups)))}d}"


def _key_of_files(files: Iterable[Path], frames: tuple[int, ...]) -> str:
    return make_key([content_key(file) for file in files], *frames)


def _place_of(first: Slice, root: Path) -> str:
    """Return the folder of a series below the root and its number; several series may share both."""
    number = "" if first.number is None else f"_{first.number}"
    return printable((first.path.parent.relative_to(root) / f"series{number}").as_posix())


def instance_key(item: Slice) -> str:
    """Return a key of the SOP instance UID of a DICOM file, or of its content if it has no UID."""
    return content_key(item.path) if item.instance == str(item.path) else make_key(item.instance)


def split_into_volumes(members: list[Slice]) -> list[tuple[list[Slice], list[str]]]:
    """Return the volumes of one series, each with notes about the split."""
    sizes = {item.size for item in members}
    notes = [f"images of {len(sizes)} sizes in one series, split by size"] if len(sizes) > 1 else []
    groups: list[list[Slice]] = []
    for item in members:
        group = next((group for group in groups if _belongs(item, group[0])), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return [(volume, notes) for group in groups for volume in _split_repeated(group)]


def _belongs(item: Slice, first: Slice) -> bool:
    if item.size != first.size or item.frames > 1 or first.frames > 1:
        return False
    if item.planes is None or first.planes is None:
        return item.planes is first.planes
    return are_parallel(item.planes, first.planes)


def _split_repeated(group: list[Slice]) -> list[list[Slice]]:
    """Split a group with repeated positions by the first tags that leave none repeated; else return it whole."""
    if not _repeats(group):
        return [group]
    for tags in VOLUME_TAGS:
        volumes: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
        for item in group:
            volumes[tuple(item.volume[tag] for tag in tags)].append(item)
        if not any(_repeats(volume) for volume in volumes.values()):
            return list(volumes.values())
    return [group]


def _repeats(group: list[Slice]) -> bool:
    stack = stack_slices(group) if group[0].frames == 1 else None
    return stack is not None and bool(stack.repeated)


def may_be_volume(members: list[Slice]) -> bool:
    """Return whether slices can be read as a volume if their spacing need not be even."""
    is_stack = len(members) > 1 and all(item.is_gray and item.planes is not None for item in members)
    return is_stack and have_one_spacing(members)


def describe_case(series: DicomSeries, files: Sequence[Path], first: Slice) -> str:
    """Return file type and dimensions of a case as text.

    Args:
        series: series that the case is, or is a part of.
        files: files of the case.
        first: header values of the first file.
    """
    count = len(files) if len(files) > 1 else len(series.frames) or first.frames
    what = f"{count} slices" if len(files) > 1 else "image" if count == 1 else f"{count} frames"
    size = " x ".join(map(str, first.size))
    spacing = "" if series.spacing is None else f", {' x '.join(f'{step:.3g}' for step in series.spacing)} mm"
    return f"{' '.join(filter(None, (DICOM, first.modality, what)))} of {size}, {series.plane}{spacing}"


def describe_frame(item: Slice) -> str:
    """Return file type and size of one frame of a file as text."""
    return f"{' '.join(filter(None, (DICOM, item.modality, 'frame')))} of {item.size[0]} x {item.size[1]}"
