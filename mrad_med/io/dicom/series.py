"""DICOM series: slices sorted by the positions in their headers and read as one volume."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.frame_groups import FrameGroup, frame_times, group_frames
from mrad_med.io.dicom.headers import quiet, read_header
from mrad_med.io.dicom.object_kinds import check_is_image, check_is_no_mosaic
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.streams import check_counts, count_frames
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.geometry import HAS_POSITION, Planes, Stack, stack_planes
from mrad_med.io.limits import MAX_PIXELS, MAX_VOXELS, check_voxels

__all__ = [
    "VOLUME_TAGS",
    "are_parallel",
    "DicomSeries",
    "Slice",
    "common_planes",
    "have_one_spacing",
    "read_series",
    "read_slice",
    "stack_slices",
]

logger = logging.getLogger(__name__)

_PHOTOMETRIC = "PhotometricInterpretation"
PARALLEL = 1e-3  # largest difference between direction cosines of slices of one stack
# Tags that separate volumes of one series at the same positions; the first that leaves no position repeated is used.
VOLUME_TAGS = (
    ("EchoTime",),
    ("TemporalPositionIdentifier",),
    ("DiffusionBValue",),
    ("TriggerTime",),
    ("AcquisitionNumber",),
    ("EchoTime", "TemporalPositionIdentifier"),
    ("DiffusionBValue", "AcquisitionNumber"),
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TAGS = (*_UIDS, "SeriesNumber", *sorted({tag for tags in VOLUME_TAGS for tag in tags}))


@dataclass(frozen=True)
class DicomSeries:
    """Slices that form one volume, or one file with several frames.

    Attributes:
        case_id: path of the folder below the root, series number, and a code derived from the UID of the first slice.
            It is unique and contains no identifiers or names of a header.
        files: files of the slices, sorted by position along the normal, or by name where positions are unknown.
        modality: modality such as ``"CT"``; empty where the header does not state it.
        plane: ``"axial"``, ``"coronal"``, ``"sagittal"``, ``"oblique"`` or ``"unknown"``.
        spacing: distances between columns, rows and slices in mm; None where the headers do not state them.
        problems: unusual properties of the stack, in words; they do not affect other series.
        is_volume: whether `read_series` can read it as one volume: evenly spaced gray slices, or frames of one file.
        frames: numbers, from 0, of the frames of one file that belong to the series; empty for all frames of the files.
        times: times, in seconds after the first, of the frames of one file that do not form a volume but follow each
            other; None for each if the file does not state them. Otherwise empty.
    """

    case_id: str
    files: tuple[Path, ...]
    modality: str
    plane: str
    spacing: tuple[float, float, float] | None
    problems: tuple[str, ...] = ()
    is_volume: bool = True
    frames: tuple[int, ...] = ()
    times: tuple[float | None, ...] = ()


def read_series(
    series: DicomSeries | Iterable[str | os.PathLike[str]],
    *,
    strict: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_voxels: int = MAX_VOXELS,
) -> MetaTensor:
    """Return a series as one volume (1, X, Y, Z), float32 in the units of its modality, such as Hounsfield units.

    Slices are sorted by position, never by name or number. The columns of the affine (RAS, mm) are the true directions
    of the axes. An oblique stack stays oblique, and a gantry tilt is a shear in the affine. The metadata contains the
    windows of the first slice that has any (`VOIKeys`).

    Args:
        series: series found by `find_series`, or the files of one series in any order.
        strict: whether a stack with gaps, repeated or uneven positions is refused, because no affine is correct for all
            its slices. Otherwise it is read with a warning, as if evenly spaced between its ends, with the first slice
            of each position.
        max_pixels: largest number of pixels of a slice; larger ones are refused.
        max_voxels: largest number of voxels of the volume; larger ones are refused.

    Raises:
        ImageFileError: the files cannot form one volume, or one of them cannot be read.
    """
    files = series.files if isinstance(series, DicomSeries) else tuple(Path(path) for path in series)
    if not files:
        raise ImageFileError("the series has no files; give at least one slice")
    frames = series.frames if isinstance(series, DicomSeries) else ()
    reader = DicomReader(max_pixels, max_voxels, frames or None)
    first = _read(reader, files[0])
    if len(files) == 1 and count_frames(first) > 1:
        array, meta = reader.get_data(first)
        if array.ndim == 4:
            raise ImageFileError("a multi-frame file in colors is not a volume of gray values; read it as an image")
        array = array if array.ndim == 3 else array[..., None]
        return _as_volume(array, meta, files[0])
    slices, volume, windows = _read_slices(reader, files, first)
    stack = stack_planes(common_planes(slices))
    _check_faults(stack.faults, strict=strict)
    order = [index for index in stack.order if index not in set(stack.repeated)]
    if order != list(range(len(files))):  # a series found by a search is sorted already; skipping this avoids a copy
        volume = volume[..., order]
    shown: dict[str, Any] = next((windows[index] for index in order if windows[index]), {})
    return _as_volume(volume, {MetaKeys.AFFINE: stack.affine, **shown}, files[order[0]])


def _read(reader: DicomReader, path: Path) -> pydicom.Dataset:
    if not path.is_file():
        raise ImageFileError("there is no such file")
    return reader.read(path)


def _read_slices(
    reader: DicomReader, files: Sequence[Path], first: pydicom.Dataset
) -> tuple[list[Slice], NDArray[np.float32], list[dict[str, Any]]]:
    """Return headers, pixels (columns, rows, slices) and windows of slices, in the order of their files.

    Each file is opened once.

    Args:
        reader: reader of one slice.
        files: files of the slices.
        first: data set of the first file, which is already read.

    Raises:
        ImageFileError: a file cannot be read, or is not a slice like the first.
    """
    slices, windows = [_describe(files[0], first)], list[dict[str, Any]]()
    columns, rows = slices[0].size
    check_voxels(columns, rows, len(files), limit=reader.max_voxels)
    volume = np.empty((columns, rows, len(files)), np.float32)
    for index, path in enumerate(files):
        dataset = _read(reader, path) if index else first
        slices += [_describe(path, dataset)] if index else []
        if slices[index].size != slices[0].size or slices[index].frames > 1:
            common_planes(slices)  # raises
        array, meta = reader.get_data(dataset)
        if array.ndim != 2:
            raise ImageFileError("color slices cannot form a volume; read them as separate images")
        volume[..., index] = array
        windows.append({key: meta[key] for key in VOIKeys.ALL if key in meta})
    return slices, volume, windows


def _as_volume(array: NDArray[Any], meta: dict[str, Any], path: Path) -> MetaTensor:
    affine = np.asarray(meta[MetaKeys.AFFINE], np.float64)
    kept = {key: meta[key] for key in (*VOIKeys.ALL, HAS_POSITION) if key in meta}
    values = torch.from_numpy(array.astype(np.float32, copy=False))[None]
    volume = MetaTensor(values, affine=torch.from_numpy(affine), meta=kept)
    volume.meta[MetaKeys.ORIGINAL_AFFINE] = affine.copy()
    volume.meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(array.shape)
    volume.meta[MetaKeys.SPACE] = SpaceKeys.RAS
    volume.meta[ImageMetaKey.FILENAME_OR_OBJ] = str(path)
    return volume


def _check_faults(faults: Sequence[str], *, strict: bool) -> None:
    if faults and strict:
        raise ImageFileError(
            f"the slices are not evenly spaced: {'; '.join(faults)}; complete or export the series again (or use "
            "strict=False, but do not measure distances)"
        )
    if faults:
        logger.warning("a series is read although its slices are not evenly spaced: %s", "; ".join(faults))


@dataclass(frozen=True)
class Slice:
    """Header values that determine the position of one file in a series.

    UIDs are only compared. They do not appear in names, messages or the ``repr`` of the object.
    """

    path: Path
    study: str = field(repr=False)
    series: str = field(repr=False)
    instance: str = field(repr=False)
    is_gray: bool
    number: int | None
    modality: str
    size: tuple[int, int]
    frames: int
    planes: Planes | None
    problem: str | None
    volume: dict[str, str]
    groups: tuple[FrameGroup, ...] = ()
    times: tuple[float | None, ...] = ()


def read_slice(path: Path) -> Slice:
    """Return the header values of a file.

    Raises:
        ImageFileError: the file is missing, damaged or not a DICOM image.
    """
    if not path.is_file():
        raise ImageFileError("there is no such file")
    return _describe(path, read_header(path, more=_TAGS))


def _describe(path: Path, header: pydicom.Dataset) -> Slice:
    """Return the values of a header; missing tags become empty values.

    Raises:
        ImageFileError: the file is damaged or not an image.
    """
    with quiet("the DICOM header"):
        check_is_image(header)
        check_counts(header, path.stat().st_size)
        groups, problem = _try_groups(header)
        number = header.get("SeriesNumber")
        return Slice(
            path=path,
            study=str(header.get("StudyInstanceUID") or ""),
            series=str(header.get("SeriesInstanceUID") or path),
            instance=str(header.get("SOPInstanceUID") or path),
            is_gray=int(header.get("SamplesPerPixel") or 1) == 1 and "PALETTE" not in str(header.get(_PHOTOMETRIC)),
            number=None if number is None else int(number),
            modality=str(header.get("Modality") or ""),
            size=(int(header.Columns), int(header.Rows)),
            frames=count_frames(header),
            planes=groups[0].planes if len(groups) == 1 else None,
            problem=problem,
            volume={tag: str(header.get(tag, "")) for tags in VOLUME_TAGS for tag in tags},
            groups=groups,
            times=tuple(frame_times(header)),
        )


def _try_groups(header: pydicom.Dataset) -> tuple[tuple[FrameGroup, ...], str | None]:
    """Return the groups of the frames of a file and None, or no group and the reason why it cannot be used."""
    try:
        check_is_no_mosaic(header)
        return tuple(group_frames(header)), None
    except ImageFileError as error:
        return (), str(error)


def common_planes(slices: Sequence[Slice]) -> Planes:
    """Return the planes of slices that form one stack.

    Raises:
        ImageFileError: the slices cannot form one stack.
    """
    for item in slices:
        if item.problem is not None:
            raise ImageFileError(item.problem)
        if item.frames > 1:
            raise ImageFileError("a file with several frames is among the slices; read it separately")
    planes = [item.planes for item in slices if item.planes is not None]
    if len(planes) < len(slices):
        raise ImageFileError(f"{len(slices) - len(planes)} slice(s) do not state their position; read them as images")
    if len({item.size for item in slices}) > 1:
        raise ImageFileError("slices have different sizes; read each size separately, as found by find_series")
    first = planes[0]
    if any(not are_parallel(first, other) for other in planes):
        raise ImageFileError("slices have different directions; read each separately, as found by find_series")
    if not have_one_spacing(slices):
        raise ImageFileError("slices cannot form one volume: pixel spacings differ; read each spacing separately")
    return replace(first, positions=np.concatenate([item.positions for item in planes]))


def have_one_spacing(slices: Sequence[Slice]) -> bool:
    """Return whether all slices that state a pixel spacing state the same one."""
    spacings = [item.planes.spacing for item in slices if item.planes is not None]
    return not spacings or np.allclose(spacings, spacings[0], rtol=1e-3)


def are_parallel(first: Planes, second: Planes) -> bool:
    """Return whether planes have the same directions of rows and columns."""
    return bool(np.abs(first.orientation - second.orientation).max() < PARALLEL)


def stack_slices(group: Sequence[Slice]) -> Stack | None:
    """Return the stack of parallel slices or of the frames of one file; None if the first slice states no position."""
    first = group[0].planes
    if first is None:
        return None
    positions = [item.planes.positions for item in group if item.planes is not None]
    return stack_planes(replace(first, positions=np.concatenate(positions)))
