"""Positions of slices in the patient: their order, the affine of a stack, and its faults."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HAS_POSITION",
    "LPS_TO_RAS",
    "Planes",
    "Stack",
    "plane_matrices",
    "plane_name",
    "plane_normal",
    "stack_planes",
    "upright_affine",
]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM axes point left and posterior; NIfTI and MONAI: right, anterior

HAS_POSITION = "has_position"  # metadata key: whether the source states the position of its voxels in the patient
SAME_POSITION = 0.01  # mm along the normal; less than any scanner's step, more than rounding in headers
SIDEWAYS = 0.1  # mm; largest distance from the line through the first and the last slice
UNEVEN = 0.05  # largest deviation, as a fraction of the usual distance between slices
GAP = 1.5  # multiple of the usual distance between slices
MIN_TILT = 0.1  # degrees between the stack and the normal of its slices; smaller angles are rounding
SQUARE = 0.01  # tolerance of the unit length and the right angle of two directions
PLANE_COSINE = 0.9  # smallest cosine to a patient axis; up to 26 degrees, as with a tilted gantry, is not oblique


@dataclass(frozen=True)
class Planes:
    """Parallel slices on one grid, in DICOM's patient coordinates (left, posterior, superior), in mm.

    Attributes:
        positions: (N, 3) center of the first pixel of each slice.
        orientation: (2, 3) unit vectors along a row and down a column, in which columns and rows are counted.
        spacing: distance between columns, and distance between rows.
        thickness: thickness of one slice; the step of a stack with a single slice.
    """

    positions: NDArray[np.float64]
    orientation: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float = 1.0

    def problem(self) -> str | None:
        """Return why these numbers do not define an affine, or None."""
        numbers = [self.positions, self.orientation, np.asarray(self.spacing), np.asarray(self.thickness)]
        if not all(np.isfinite(values).all() for values in numbers):
            return "a position, direction or spacing that is not a finite number"
        if min(self.spacing) <= 0 or self.thickness <= 0:
            return "a spacing that is not above 0"
        if np.abs(self.orientation @ self.orientation.T - np.eye(2)).max() > SQUARE:
            return "directions of rows and columns that are not perpendicular unit vectors"
        return None


@dataclass(frozen=True)
class Stack:
    """Slices sorted by their position in the patient.

    Attributes:
        order: indices of the slices, sorted by position along the normal of their plane. Slices at one position keep
            the given order.
        repeated: indices in ``order`` of slices at the position of an earlier one.
        affine: (4, 4) matrix from (column, row, slice) to RAS, in mm, for the slices of ``order`` without ``repeated``.
        faults: reasons why the affine is not correct for all slices.
        remarks: unusual properties that the affine represents correctly.
    """

    order: tuple[int, ...]
    repeated: tuple[int, ...]
    affine: NDArray[np.float64]
    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def plane_normal(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit normal (3,) of a plane, right-handed with its two directions."""
    normal: NDArray[np.float64] = np.cross(orientation[0], orientation[1])
    return normal / np.linalg.norm(normal)


def plane_name(orientation: NDArray[np.float64]) -> str:
    """Return ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"oblique"`` if no patient axis is near the normal."""
    cosines = np.abs(plane_normal(orientation))
    axis = int(cosines.argmax())
    return ("sagittal", "coronal", "axial")[axis] if cosines[axis] >= PLANE_COSINE else "oblique"


def plane_matrices(planes: Planes) -> NDArray[np.float64]:
    """Return the matrix of each slice that maps (column, row, 1) to patient coordinates (LPS, mm): (N, 4, 3).

    Args:
        planes: slices for which `Planes.problem` is None.

    Reference:
        DICOM PS3.3, C.7.6.2.1.1, equation C.7.6.2.1-1.
    """
    matrices = np.zeros((len(planes.positions), 4, 3))
    matrices[:, :3, :2] = planes.orientation.T * planes.spacing
    matrices[:, :3, 2] = planes.positions
    matrices[:, 3, 2] = 1
    return matrices


def upright_affine(spacing: tuple[float, float], step: float = 1.0) -> NDArray[np.float64]:
    """Return the (4, 4) RAS affine of images without a known position, treated as upright axial slices."""
    return LPS_TO_RAS @ np.diag([spacing[0], spacing[1], step, 1.0])


def stack_planes(planes: Planes) -> Stack:
    """Return the order, the affine and the faults of slices.

    The third column of the affine is the mean step from the first slice to the last. With a tilted gantry this step is
    not parallel to the normal of the slices, and the affine contains the correct shear.

    Args:
        planes: slices for which `Planes.problem` is None.
    """
    normal = plane_normal(planes.orientation)
    heights = planes.positions @ normal
    order = np.argsort(heights, kind="stable")
    again = np.concatenate([[False], np.diff(heights[order]) < SAME_POSITION])
    slices = planes.positions[order][~again]
    step = (slices[-1] - slices[0]) / (len(slices) - 1) if len(slices) > 1 else normal * planes.thickness
    affine = np.eye(4)
    affine[:, [0, 1, 3]] = plane_matrices(replace(planes, positions=slices[:1]))[0]
    affine[:3, 2] = step
    faults = [*_repetitions(again), *_distances(np.diff(heights[order][~again])), *_sideways(slices, normal)]
    return Stack(
        order=tuple(int(index) for index in order),
        repeated=tuple(int(index) for index in order[again]),
        affine=LPS_TO_RAS @ affine,
        faults=tuple(faults),
        remarks=tuple(_tilt(step, normal)),
    )


def _repetitions(again: NDArray[np.bool_]) -> list[str]:
    count = int(again.sum())
    return [f"{count} slice(s) at the position of another"] if count else []


def _distances(distances: NDArray[np.float64]) -> list[str]:
    """Return the faults of the distances (N - 1,) between neighboring slices along the normal."""
    if len(distances) < 2:
        return []
    usual = float(np.quantile(distances, 0.5, method="lower"))  # a median may average a usual distance and a gap
    wide = distances[distances > GAP * usual]
    if len(wide):
        missing = int(np.maximum(np.round(wide / usual) - 1, 1).sum())
        most = f"up to {wide.max():.4g} mm, usually {usual:.4g} mm"
        return [f"{len(wide)} gap(s) between slices ({most}), about {missing} slice(s) missing"]
    if np.abs(distances - usual).max() > max(UNEVEN * usual, SAME_POSITION):
        return [f"uneven distances between slices, from {distances.min():.4g} to {distances.max():.4g} mm"]
    return []


def _sideways(slices: NDArray[np.float64], normal: NDArray[np.float64]) -> list[str]:
    """Return the fault of slices whose positions are not on one line."""
    if len(slices) < 3:
        return []
    line = slices[-1] - slices[0]
    shares = (slices - slices[0]) @ normal / (line @ normal)
    off = float(np.linalg.norm(slices - slices[0] - shares[:, None] * line, axis=1).max())
    return [f"slices up to {off:.4g} mm off one line"] if off > SIDEWAYS else []


def _tilt(step: NDArray[np.float64], normal: NDArray[np.float64]) -> list[str]:
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    degrees = float(np.degrees(np.arctan2(sideways, step @ normal)))
    return [f"a gantry tilt of {degrees:.1f} degrees, included in the affine"] if degrees > MIN_TILT else []
