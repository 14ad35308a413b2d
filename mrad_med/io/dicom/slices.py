"""Slices by their headers: where each lies, and which of them make one volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.headers import check_is_image, count_frames, planes_of, quiet, read_header
from mrad_med.io.geometry import Planes, Stack, stack_planes

__all__ = [
    "IDENTIFIERS",
    "Slice",
    "common_planes",
    "have_one_spacing",
    "read_slice",
    "split_into_volumes",
    "stack_slices",
]

_TONES = "PhotometricInterpretation"

PARALLEL = 1e-3  # largest difference between the directions of slices of one stack

# What tells the volumes of one series apart whose slices lie at the same positions: the first that does is taken.
_VOLUME_TAGS = (
    ("EchoTime",),
    ("TemporalPositionIdentifier",),
    ("DiffusionBValue",),
    ("TriggerTime",),
    ("AcquisitionNumber",),
    ("EchoTime", "TemporalPositionIdentifier"),
    ("DiffusionBValue", "AcquisitionNumber"),
)
# What tells who the patient is, and names of cases are freed of.
IDENTIFIERS = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TAGS = (*_UIDS, "SeriesNumber", *IDENTIFIERS, *sorted({tag for tags in _VOLUME_TAGS for tag in tags}))


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
    is_grey: bool
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
    header = read_header(path, more=_TAGS)
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
            is_grey=int(header.get("SamplesPerPixel") or 1) == 1 and "PALETTE" not in str(header.get(_TONES)),
            number=None if number is None else int(number),
            modality=str(header.get("Modality") or ""),
            size=(int(header.Columns), int(header.Rows)),
            frames=count_frames(header),
            planes=planes,
            problem=problem,
            volume={tag: str(header.get(tag, "")) for tags in _VOLUME_TAGS for tag in tags},
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
    if any(not _are_parallel(first, other) for other in planes):
        raise ImageFileError("slices of different directions; read each by itself, as find_series tells them apart")
    if not have_one_spacing(slices):
        raise ImageFileError("slices of different pixel spacings make no single volume; read each by itself")
    return replace(first, positions=np.concatenate([item.positions for item in planes]))


def have_one_spacing(slices: Sequence[Slice]) -> bool:
    """Tell whether the pixels of slices are as far apart in all that tell it."""
    spacings = [item.planes.spacing for item in slices if item.planes is not None]
    return not spacings or np.allclose(spacings, spacings[0], rtol=1e-3)


def _are_parallel(first: Planes, second: Planes) -> bool:
    return bool(np.abs(first.orientation - second.orientation).max() < PARALLEL)


def split_into_volumes(members: list[Slice]) -> list[tuple[list[Slice], list[str]]]:
    """Return the volumes of one series, each with what is to be told of the split."""
    sizes = {item.size for item in members}
    notes = [f"pictures of {len(sizes)} sizes in one series, told apart"] if len(sizes) > 1 else []
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
    return _are_parallel(item.planes, first.planes)


def _split_repeated(group: list[Slice]) -> list[list[Slice]]:
    """Return the volumes of a group whose positions repeat, by the first tags that leave none repeated."""
    if not _repeats(group):
        return [group]
    for tags in _VOLUME_TAGS:
        volumes: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
        for item in group:
            volumes[tuple(item.volume[tag] for tag in tags)].append(item)
        if not any(_repeats(volume) for volume in volumes.values()):
            return list(volumes.values())
    return [group]


def _repeats(group: list[Slice]) -> bool:
    stack = stack_slices(group) if group[0].frames == 1 else None
    return stack is not None and bool(stack.repeated)


def stack_slices(group: Sequence[Slice]) -> Stack | None:
    """Return the stack of parallel slices, or of the frames of one file; None where they do not tell their position."""
    first = group[0].planes
    if first is None:
        return None
    positions = [item.planes.positions for item in group if item.planes is not None]
    return stack_planes(replace(first, positions=np.concatenate(positions)))
