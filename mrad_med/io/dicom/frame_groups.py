"""Frames of one DICOM file, divided into volumes, single images, and sequences that follow each other in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.streams import check_groups, count_frames
from mrad_med.io.geometry import Planes, plane_normal, stack_planes

__all__ = ["FrameGroup", "frame_group", "frame_times", "group_frames", "pixel_spacing"]

_PARALLEL = 1e-3  # largest difference between direction cosines of frames of one stack
_SPACING = 1e-3  # largest relative difference of spacings of frames of one stack
# Attributes that differ between frames at the same position: sequence of the functional group, and keyword in it.
_LABELS = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("CTXRayDetailsSequence", "KVP"),
    ("PixelValueTransformationSequence", "RescaleType"),
)
_DIRECTION = ("MRDiffusionSequence", "DiffusionGradientDirectionSequence", "DiffusionGradientOrientation")


@dataclass(frozen=True)
class FrameGroup:
    """Frames of one file that form one volume, one image, or a sequence.

    Attributes:
        frames: numbers of the frames in the file, from 0, in stored order.
        planes: their positions, in the same order; None if the header does not state them.
        step: distance between slices in mm that the header states although it states no positions; None otherwise.
    """

    frames: tuple[int, ...]
    planes: Planes | None
    step: float | None = None

    @property
    def is_sequence(self) -> bool:
        """Whether several frames follow each other in time, or state neither a position nor a distance."""
        if len(self.frames) == 1:
            return False
        if self.planes is None:
            return self.step is None
        return len(stack_planes(self.planes).repeated) == len(self.frames) - 1

    def frame(self, number: int) -> FrameGroup:
        """Return a group of only one frame of this group."""
        return _part(self, [self.frames.index(number)])


def frame_group(header: pydicom.Dataset, frame: int, group: str) -> pydicom.Dataset | None:
    """Return a functional group of a frame, or None. A per-frame group takes precedence over a shared one.

    Args:
        header: header of any DICOM object; only enhanced objects have functional groups.
        frame: number of the frame, from 0.
        group: keyword of the sequence of the group.

    Reference:
        DICOM PS3.3, C.7.6.16.
    """
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in ([own[frame]] if own else []) + ([shared[0]] if shared else []):
        if groups.get(group):
            item: pydicom.Dataset = groups[group][0]
            return item
    return None


def pixel_spacing(header: pydicom.Dataset, frame: int = 0) -> tuple[float, float] | None:
    """Return the distances between columns and between rows in mm, in the patient or else at the detector, or None."""
    source = frame_group(header, frame, "PixelMeasuresSequence") or header
    stored = source.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not stored:
        return None
    rows, columns = (float(value) for value in stored)
    return columns, rows


def frame_times(header: pydicom.Dataset) -> list[float] | list[None]:
    """Return the time of each frame in seconds after the first; None for each if the header does not state them.

    Reference:
        DICOM PS3.3, C.7.6.5.
    """
    frames, steps = count_frames(header), header.get("FrameTimeVector")
    times: NDArray[np.floating[Any]] = np.arange(frames) * float(header.get("FrameTime") or np.nan)
    if steps is not None and np.size(steps) == frames:  # milliseconds since the frame before
        times = np.cumsum(np.ravel(np.asarray(steps, np.float64)))
        times = times - times[0]
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        return [None] * frames
    return [float(time) / 1000 for time in times]


def group_frames(header: pydicom.Dataset) -> list[FrameGroup]:
    """Return the groups of frames of a DICOM image; an image of one frame is one group.

    Frames belong to one group if they have the same direction, spacing, thickness and stack. Frames at the same
    positions are divided further by an attribute that leaves no position repeated, such as echo or time.

    Raises:
        ImageFileError: the geometry is contradictory.
    """
    check_groups(header)
    frames = tuple(range(count_frames(header)))
    geometry = _geometry(header)
    if geometry is None:
        return [FrameGroup(frames, None, _stated_step(header))]
    groups: list[list[int]] = []
    for frame in frames:
        group = next((group for group in groups if _belong(geometry[frame], geometry[group[0]])), None)
        if group is None:
            groups.append([frame])
        else:
            group.append(frame)
    parts = [FrameGroup(tuple(group), _planes(header, geometry, group)) for group in groups]
    return [part for group in parts for part in _split_repeated(header, group)]


@dataclass(frozen=True)
class _Geometry:
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]  # (6,)
    measures: NDArray[np.float64]  # distance between columns, between rows, thickness
    stack: str


def _geometry(header: pydicom.Dataset) -> list[_Geometry] | None:
    """Return the geometry of each frame, or None if a frame does not state it."""
    is_shared = not header.get("PerFrameFunctionalGroupsSequence")
    if is_shared:
        first = _frame_geometry(header, 0)
        return None if first is None else [first] * count_frames(header)
    found = [_frame_geometry(header, frame) for frame in range(count_frames(header))]
    geometry = [item for item in found if item is not None]
    return geometry if len(geometry) == len(found) else None


def _frame_geometry(header: pydicom.Dataset, frame: int) -> _Geometry | None:
    detector = header.get("DetectorInformationSequence")
    position = frame_group(header, frame, "PlanePositionSequence") or (detector[0] if detector else header)
    orientation = frame_group(header, frame, "PlaneOrientationSequence") or (detector[0] if detector else header)
    stored = [*(position.get("ImagePositionPatient") or []), *(orientation.get("ImageOrientationPatient") or [])]
    spacing = pixel_spacing(header, frame)
    if len(stored) != 9 or spacing is None:
        return None
    numbers = np.asarray(stored, np.float64)
    content = frame_group(header, frame, "FrameContentSequence") or pydicom.Dataset()
    measures = np.asarray([*spacing, _thickness(header, frame)])
    return _Geometry(numbers[:3], numbers[3:], measures, str(content.get("StackID", "")))


def _thickness(header: pydicom.Dataset, frame: int) -> float:
    """Return the stated distance between slices, or else the slice thickness, in mm; 1 where neither is stated."""
    source = frame_group(header, frame, "PixelMeasuresSequence") or header
    return abs(float(source.get("SpacingBetweenSlices") or source.get("SliceThickness") or 1.0))


def _stated_step(header: pydicom.Dataset) -> float | None:
    """Return the distance between slices of frames without positions; None if it is not stated, or they are a cine.

    A thickness is not used, because slices may overlap or be apart.
    """
    source = frame_group(header, 0, "PixelMeasuresSequence") or header
    step, spacing = source.get("SpacingBetweenSlices"), pixel_spacing(header)
    is_cine = header.get("FrameTime") is not None or header.get("FrameTimeVector") is not None
    if not step or spacing is None or is_cine or not np.isfinite([float(step), *spacing]).all() or min(spacing) <= 0:
        return None
    return abs(float(step))


def _belong(item: _Geometry, first: _Geometry) -> bool:
    return bool(
        item.stack == first.stack
        and np.abs(item.orientation - first.orientation).max() < _PARALLEL
        and np.allclose(item.measures, first.measures, rtol=_SPACING)
    )


def _planes(header: pydicom.Dataset, geometry: Sequence[_Geometry], group: Sequence[int]) -> Planes:
    first = geometry[group[0]]
    orientation, step = first.orientation.reshape(2, 3), header.get("SpacingBetweenSlices")
    positions = np.stack([geometry[frame].position for frame in group])
    if len(group) > 1 and "DetectorInformationSequence" in header and step:  # nuclear medicine: PS3.3, C.8.4.15
        positions = positions + np.arange(len(group))[:, None] * float(step) * plane_normal(orientation)
    between_columns, between_rows, thickness = first.measures.tolist()
    planes = Planes(positions, orientation, (between_columns, between_rows), thickness)
    problem = planes.problem()
    if problem is not None:
        raise ImageFileError(f"its header holds {problem}; export the DICOM file again")
    return planes


def _split_repeated(header: pydicom.Dataset, group: FrameGroup) -> list[FrameGroup]:
    """Return the volumes of frames that share positions; the group itself if no attribute separates them."""
    if group.planes is None or group.is_sequence:
        return [group]
    stack = stack_planes(group.planes)
    if not stack.repeated:
        return [group]
    places = len(group.frames) - len(stack.repeated)
    labels = [column for column in _labels(header, group.frames) if len(set(column)) > 1]
    several = [labels[i : i + 1] for i in range(len(labels))] + [list(pair) for pair in combinations(labels, 2)]
    for columns in [*several, labels] if labels else []:
        volumes: dict[tuple[Hashable, ...], list[int]] = defaultdict(list)
        for index, label in enumerate(zip(*columns, strict=True)):
            volumes[label].append(index)
        parts = [_part(group, indices) for indices in volumes.values()]
        if all(len(part.frames) == places and _is_distinct(part) for part in parts):
            return parts
    return [group]


def _part(group: FrameGroup, indices: Sequence[int]) -> FrameGroup:
    planes = None if group.planes is None else replace(group.planes, positions=group.planes.positions[list(indices)])
    return replace(group, frames=tuple(group.frames[index] for index in indices), planes=planes)


def _is_distinct(group: FrameGroup) -> bool:
    return group.planes is not None and not stack_planes(group.planes).repeated


def _labels(header: pydicom.Dataset, frames: Sequence[int]) -> list[tuple[Hashable, ...]]:
    """Return the values, for each frame, of the attributes that may separate volumes."""
    columns: list[tuple[Hashable, ...]] = [
        tuple(_label(header, frame, *label) for frame in frames) for label in _LABELS
    ]
    columns.append(tuple(_gradient(header, frame) for frame in frames))
    contents = [frame_group(header, frame, "FrameContentSequence") or pydicom.Dataset() for frame in frames]
    indices = [content.get("DimensionIndexValues") for content in contents]
    rows = [tuple(np.ravel([] if values is None else values).tolist()) for values in indices]
    if len({len(row) for row in rows}) == 1:
        columns += list(zip(*rows, strict=True))
    return columns


def _label(header: pydicom.Dataset, frame: int, group: str, keyword: str) -> str:
    return str((frame_group(header, frame, group) or pydicom.Dataset()).get(keyword, ""))


def _gradient(header: pydicom.Dataset, frame: int) -> str:
    group, sequence, keyword = _DIRECTION
    items: Any = (frame_group(header, frame, group) or pydicom.Dataset()).get(sequence)
    return str(items[0].get(keyword, "")) if items else ""
