"""DICOM series: slices scattered over files, found, put in order by position, and read as one volume."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from numpy.typing import NDArray

from mrad_med.data.names import UniqueNames, printable
from mrad_med.errors import DatasetError, ImageFileError
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.slices import (
    Slice,
    common_planes,
    have_one_spacing,
    read_slice,
    split_into_volumes,
    stack_slices,
)
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.file_types import DICOM, kind_of
from mrad_med.io.geometry import Stack, plane_name, stack_planes
from mrad_med.io.limits import MAX_PIXELS, MAX_VOXELS, check_voxels

__all__ = ["DicomSeries", "find_series", "group_series", "read_series"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DicomSeries:
    """Slices that make one volume, or one file with several frames.

    Attributes:
        case_id: path of the folder below the root, and the number of the series; unique, and no identifier or name
            out of a header.
        files: in the order in which the slices lie along their normal; as their names are sorted where that is open.
        modality: such as ``"CT"``; empty where it is not told.
        plane: ``"axial"``, ``"coronal"``, ``"sagittal"``, ``"oblique"`` or ``"unknown"``.
        spacing: mm between columns, rows and slices; None where the headers do not tell.
        problems: what is unusual about the stack, in words. None is fatal to others of the list.
        is_volume: whether `read_series` makes one volume of it: grey slices, evenly spaced, or frames of one file.
    """

    case_id: str
    files: tuple[Path, ...]
    modality: str
    plane: str
    spacing: tuple[float, float, float] | None
    problems: tuple[str, ...] = ()
    is_volume: bool = True


def find_series(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[DicomSeries]:
    """Return the series in a folder and below it, or among files, by their headers alone.

    Files are known as DICOM by their content, whatever their name. Objects that are no images and files that cannot
    be read are passed over. Hidden files and folders are passed over too, links to folders are not followed. A series
    is split where its pictures differ in direction or size, and where several volumes lie at the same positions
    (echoes, times).

    Args:
        source: a folder, a file, or several files.

    Raises:
        DatasetError: the folder does not exist or cannot be listed, or there is no DICOM image.
    """
    files, root = _list_files(source)
    slices = [item for item in map(_try_slice, files) if item is not None]
    if len(slices) < len(files):
        logger.warning("%d of %d file(s) passed over: no images, or damaged", len(files) - len(slices), len(files))
    if not slices:
        raise DatasetError(f"no DICOM image in {root}: slices are looked for by their content, whatever their names")
    return group_series(slices, root)


def group_series(slices: Iterable[Slice], root: Path) -> list[DicomSeries]:
    """Return the series that slices make, named after their folders below ``root``."""
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        by_series[item.series].append(item)
    groups = [(group, notes) for members in by_series.values() for group, notes in split_into_volumes(members)]
    groups.sort(key=lambda item: (item[0][0].path.parent, item[0][0].number or 0, item[0][0].path))
    return _name([_describe(group, notes) for group, notes in groups], [group[0] for group, _ in groups], root)


def read_series(
    series: DicomSeries | Iterable[str | os.PathLike[str]],
    *,
    strict: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_voxels: int = MAX_VOXELS,
) -> MetaTensor:
    """Return a series as one volume (1, X, Y, Z), float32 in the units of its modality, such as Hounsfield units.

    Slices are ordered by their positions, never by names or numbers. The columns of the affine (RAS, mm) are the true
    directions of the axes: an oblique stack stays oblique, and the tilt of a gantry is a shear in the affine. The
    stored windows of the first slice travel in the metadata (`VOIKeys`).

    Args:
        series: one of `find_series`, or the files of one, in any order.
        strict: refuse a stack with gaps, repeated or uneven positions, for which no affine is true everywhere; else
            it is read with a warning, with even distances between its ends, and the first slice of each position.
        max_pixels: larger slices are refused.
        max_voxels: larger volumes are refused.

    Raises:
        ImageFileError: the files make no single volume, or one of them cannot be read.
    """
    files = series.files if isinstance(series, DicomSeries) else tuple(Path(path) for path in series)
    if not files:
        raise ImageFileError("a series without files; give at least one slice")
    reader = DicomReader(max_pixels, max_voxels)
    slices = [read_slice(path) for path in files]
    if len(slices) == 1 and slices[0].frames > 1:
        array, meta = reader.get_data(reader.read(files[0]))
        if array.ndim == 4:
            raise ImageFileError("a film in colors is no volume of grey values; read it as an image")
        return _as_volume(array, meta, files[0])
    planes = common_planes(slices)
    stack = stack_planes(planes)
    _report(stack.faults, strict=strict)
    order = [index for index in stack.order if index not in set(stack.repeated)]
    (columns, rows), depth = slices[0].size, len(order)
    check_voxels(columns, rows, depth, limit=max_voxels)
    volume = np.empty((columns, rows, depth), np.float32)
    windows: dict[str, Any] = {}
    for place, index in enumerate(order):
        array, meta = reader.get_data(reader.read(files[index]))
        if array.ndim != 2:
            raise ImageFileError("its slices have colors: no volume of grey values; read them as images")
        volume[..., place] = array
        windows = windows or {key: meta[key] for key in VOIKeys.ALL if key in meta}
    return _as_volume(volume, {MetaKeys.AFFINE: stack.affine, **windows}, files[order[0]])


def _as_volume(array: NDArray[Any], meta: dict[str, Any], path: Path) -> MetaTensor:
    affine = np.asarray(meta[MetaKeys.AFFINE], np.float64)
    kept = {key: meta[key] for key in VOIKeys.ALL if key in meta}
    values = torch.from_numpy(array.astype(np.float32, copy=False))[None]
    volume = MetaTensor(values, affine=torch.from_numpy(affine), meta=kept)
    volume.meta[MetaKeys.ORIGINAL_AFFINE] = affine.copy()
    volume.meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(array.shape)
    volume.meta[MetaKeys.SPACE] = SpaceKeys.RAS
    volume.meta[ImageMetaKey.FILENAME_OR_OBJ] = str(path)
    return volume


def _report(faults: Sequence[str], *, strict: bool) -> None:
    if faults and strict:
        raise ImageFileError(
            f"the slices make no even stack: {'; '.join(faults)}; complete or export the series again (or "
            "strict=False, and measure nothing in it)"
        )
    if faults:
        logger.warning("a series is read although its slices make no even stack: %s", "; ".join(faults))


def _try_slice(path: Path) -> Slice | None:
    try:
        return read_slice(path)
    except ImageFileError:
        return None


def _list_files(source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[list[Path], Path]:
    """Return the DICOM files that are meant, sorted, and the folder that their names are told from."""
    if not isinstance(source, (str, os.PathLike)):
        files = sorted(Path(path).absolute() for path in source)
        return files, Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    root = Path(source)
    if root.is_file():
        return [root], root.parent
    if not root.is_dir():
        raise DatasetError(f"there is no file or folder {root}")
    files = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        candidates = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        files += [path for path in candidates if kind_of(path) == DICOM]
    return files, root


def _refuse(error: OSError) -> None:
    raise DatasetError(f"cannot list {error.filename} ({error.strerror}); grant access or leave it out") from error


def _describe(group: list[Slice], notes: list[str]) -> DicomSeries:
    """Return a series, not yet named."""
    group, stack, notes = _without_copies(group, stack_slices(group), notes)
    first = group[0]
    problems = [*notes, *dict.fromkeys(item.problem for item in group if item.problem is not None)]
    files, spacing, plane = [item.path for item in group], None, "unknown"
    is_volume = first.is_grey and stack is not None and not stack.faults and have_one_spacing(group)
    if stack is None or first.planes is None:
        if len(group) > 1:
            problems.append(f"{len(group)} slice(s) do not tell their position")
    else:
        files = files if first.frames > 1 else [files[index] for index in stack.order]
        problems += [*stack.faults, *stack.remarks]
        lengths = np.linalg.norm(stack.affine[:3, :3], axis=0)
        spacing, plane = (float(lengths[0]), float(lengths[1]), float(lengths[2])), plane_name(first.planes.orientation)
        if not have_one_spacing(group):
            problems.append("different pixel spacings in one series")
    return DicomSeries("", tuple(files), first.modality, plane, spacing, tuple(problems), is_volume)


def _without_copies(
    group: list[Slice], stack: Stack | None, notes: list[str]
) -> tuple[list[Slice], Stack | None, list[str]]:
    """Return a group without files that hold the same slice again, where nothing else keeps it from being a volume."""
    if stack is None or not stack.repeated:
        return group, stack, notes
    originals = list({item.instance: item for item in reversed(group)}.values())[::-1]
    reduced = stack_slices(originals)
    if reduced is None or reduced.faults or len(originals) < 2:
        return group, stack, notes
    return originals, reduced, [*notes, f"{len(group) - len(originals)} copies of slices passed over"]


def _name(found: list[DicomSeries], firsts: list[Slice], root: Path) -> list[DicomSeries]:
    """Return the series with their names: folder, number, and a count where these are the same."""
    unique = UniqueNames()
    named = []
    for series, first in zip(found, firsts, strict=True):
        number = "" if first.number is None else f"_{first.number}"
        name = printable((first.path.parent.relative_to(root) / f"series{number}").as_posix())
        named.append(replace(series, case_id=unique(name)))
    return named
