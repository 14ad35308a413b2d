"""DICOM series: slices described by their headers, put in order by position, and read as one volume."""

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
from mrad_med.io.dicom.headers import IDENTIFIERS, count_frames, planes_of, quiet, read_header
from mrad_med.io.dicom.object_kinds import check_is_image
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.geometry import Planes, Stack, stack_planes
from mrad_med.io.limits import MAX_PIXELS, MAX_VOXELS, check_voxels

__all__ = [
    "IDENTIFIERS",
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

_TONES = "PhotometricInterpretation"
PARALLEL = 1e-3  # largest difference between the directions of slices of one stack
# What tells the volumes of one series apart whose slices lie at the same positions: the first that does is taken.
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
_TAGS = (*_UIDS, "SeriesNumber", *IDENTIFIERS, *sorted({tag for tags in VOLUME_TAGS for tag in tags}))


@dataclass(frozen=True)
class DicomSeries:
    """Slices that make one volume, or one file with several frames.

    Attributes:
        case_id: path of the folder below the root, number of the series, and a code made of the first slice's UID;
            unique, and without identifiers or names of a header.
        files: in the order in which the slices lie along their normal; as their names are sorted where that is open.
        modality: such as ``"CT"``; empty where it is not told.
        plane: ``"axial"``, ``"coronal"``, ``"sagittal"``, ``"oblique"`` or ``"unknown"``.
        spacing: mm between columns, rows and slices; None where the headers do not tell.
        problems: what is unusual about the stack, in words. None is fatal to others of the list.
        is_volume: whether `read_series` makes one volume of it: gray slices, evenly spaced, or frames of one file.
    """

    case_id: str
    files: tuple[Path, ...]
    modality: str
    plane: str
    spacing: tuple[float, float, float] | None
    problems: tuple[str, ...] = ()
    is_volume: bool = True


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
    first = _read(reader, files[0])
    if len(files) == 1 and count_frames(first) > 1:
        array, meta = reader.get_data(first)
        if array.ndim == 4:
            raise ImageFileError("a film in colors is no volume of gray values; read it as an image")
        return _as_volume(array, meta, files[0])
    slices, volume, windows = _read_slices(reader, files, first)
    stack = stack_planes(common_planes(slices))
    _report(stack.faults, strict=strict)
    order = [index for index in stack.order if index not in set(stack.repeated)]
    if order != list(range(len(files))):  # files that a search found are in order, and are not copied
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
    """Return slices in the order of their files, each opened once: what their headers tell, pixels, and windows.

    Args:
        reader: the reader of one slice.
        files: the files of the slices.
        first: the data set of the first file, which is already read.

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
            raise ImageFileError("its slices have colors: no volume of gray values; read them as images")
        volume[..., index] = array
        windows.append({key: meta[key] for key in VOIKeys.ALL if key in meta})
    return slices, volume, windows


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


@dataclass(frozen=True)
class Slice:
    """What the header of one file tells about its place in a series.

    UIDs and identifiers are there to be compared; they are in no name, message or picture of the object.
    """

    path: Path
    study: str = field(repr=False)
    series: str = field(repr=False)
    instance: str = field(repr=False)
    identifiers: frozenset[str] = field(repr=False)
    is_gray: bool
    number: int | None
    modality: str
    size: tuple[int, int]
    frames: int
    planes: Planes | None
    problem: str | None
    volume: dict[str, str]


def read_slice(path: Path) -> Slice:
    """Return what the header of a file tells.

    Raises:
        ImageFileError: no DICOM image, or damaged.
    """
    if not path.is_file():
        raise ImageFileError("there is no such file")
    return _describe(path, read_header(path, more=_TAGS))


def _describe(path: Path, header: pydicom.Dataset) -> Slice:
    """Return what a header tells; without those of ``_TAGS`` that it lacks.

    Raises:
        ImageFileError: not an image, or damaged.
    """
    with quiet("the DICOM header"):
        check_is_image(header)
        planes, problem = _try_planes(header)
        number = header.get("SeriesNumber")
        return Slice(
            path=path,
            study=str(header.get("StudyInstanceUID") or ""),
            series=str(header.get("SeriesInstanceUID") or path),
            instance=str(header.get("SOPInstanceUID") or path),
            identifiers=frozenset(str(header.get(tag) or "") for tag in IDENTIFIERS) - {""},
            is_gray=int(header.get("SamplesPerPixel") or 1) == 1 and "PALETTE" not in str(header.get(_TONES)),
            number=None if number is None else int(number),
            modality=str(header.get("Modality") or ""),
            size=(int(header.Columns), int(header.Rows)),
            frames=count_frames(header),
            planes=planes,
            problem=problem,
            volume={tag: str(header.get(tag, "")) for tags in VOLUME_TAGS for tag in tags},
        )


def _try_planes(header: pydicom.Dataset) -> tuple[Planes | None, str | None]:
    try:
        return planes_of(header), None
    except ImageFileError as error:
        return None, str(error)


def common_planes(slices: Sequence[Slice]) -> Planes:
    """Return the planes of slices that make one stack.

    Raises:
        ImageFileError: they do not.
    """
    for item in slices:
        if item.problem is not None:
            raise ImageFileError(item.problem)
        if item.frames > 1:
            raise ImageFileError("a file of several frames among slices; read it by itself")
    planes = [item.planes for item in slices if item.planes is not None]
    if len(planes) < len(slices):
        raise ImageFileError(f"{len(slices) - len(planes)} slice(s) do not tell their position; read them as images")
    if len({item.size for item in slices}) > 1:
        raise ImageFileError("slices of different sizes; read each size by itself, as find_series tells them apart")
    first = planes[0]
    if any(not are_parallel(first, other) for other in planes):
        raise ImageFileError("slices of different directions; read each by itself, as find_series tells them apart")
    if not have_one_spacing(slices):
        raise ImageFileError("slices of different pixel spacings make no single volume; read each by itself")
    return replace(first, positions=np.concatenate([item.positions for item in planes]))


def have_one_spacing(slices: Sequence[Slice]) -> bool:
    """Tell whether the pixels of slices are as far apart in all that tell it."""
    spacings = [item.planes.spacing for item in slices if item.planes is not None]
    return not spacings or np.allclose(spacings, spacings[0], rtol=1e-3)


def are_parallel(first: Planes, second: Planes) -> bool:
    """Return whether planes have the same directions of rows and columns."""
    return bool(np.abs(first.orientation - second.orientation).max() < PARALLEL)


def stack_slices(group: Sequence[Slice]) -> Stack | None:
    """Return the stack of parallel slices, or of the frames of one file; None where they do not tell their position."""
    first = group[0].planes
    if first is None:
        return None
    positions = [item.planes.positions for item in group if item.planes is not None]
    return stack_planes(replace(first, positions=np.concatenate(positions)))
