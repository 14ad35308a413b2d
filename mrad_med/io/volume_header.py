"""The header of a volume: its grid, the unit of its lengths, and the fields that a map on its grid keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError

__all__ = ["MAX_HEADER", "NO_AFFINE", "UNREADABLE", "VolumeHeader", "check_affine", "check_shape", "unreadable"]

UNREADABLE = "the file cannot be read ({kind}); copy or export it again"
NO_AFFINE = "the affine in its header does not define independent axes; export it again"
MAX_HEADER = 2**26  # bytes before the voxels: lines of NRRD or extensions of NIfTI; real headers are far below 64 MB

_FLAT = 1e-3  # smallest volume spanned by the unit vectors of independent axes; a tilted gantry gives 0.8
SAME_PLACE = 1e-3  # largest distance between two equal grids, in voxels; NIfTI stores float32


@dataclass(frozen=True)
class VolumeHeader:
    """Header of a NIfTI or NRRD file, without free text.

    Attributes:
        file_format: "NIfTI" or "NRRD".
        shape: number of voxels along each axis, (X, Y) or (X, Y, Z).
        dtype: type of the stored values.
        affine: (4, 4) voxel to world matrix (RAS, mm), whatever unit the file has.
        unit: name of the unit of the lengths in the file: "mm", "micron" or "meter".
        mm: length of that unit in mm.
        fields: stored fields of the geometry of NIfTI, by name; empty for NRRD.
        remarks: unusual facts about the geometry, each a clause.
    """

    file_format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    unit: str = "mm"
    mm: float = 1.0
    fields: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def fits(self, shape: tuple[int, ...], affine: NDArray[np.float64], *, tolerance: float = SAME_PLACE) -> bool:
        """Return whether a grid is that of the file.

        Args:
            shape: number of voxels along each axis.
            affine: (4, 4) voxel to world matrix (RAS, mm).
            tolerance: largest distance between the corners of the two grids, as a fraction of the smallest voxel side.
        """
        if self.shape != shape or affine.shape != (4, 4):
            return False
        corners = np.stack(np.meshgrid(*([0, side - 1] for side in shape), indexing="ij"), -1).reshape(-1, len(shape))
        shifts = corners @ (affine - self.affine)[:3, : len(shape)].T + (affine - self.affine)[:3, 3]
        smallest = np.linalg.norm(self.affine[:3, :3], axis=0).min()
        return bool(np.linalg.norm(shifts, axis=1).max() <= tolerance * smallest)


def unreadable(why: str) -> ImageFileError:
    """Return the error of a damaged file, with the reason."""
    return ImageFileError(UNREADABLE.replace("{kind}", why))


def check_affine(affine: NDArray[np.float64]) -> None:
    """Raise an `ImageFileError` if an affine is not finite or its axes are not independent."""
    with np.errstate(all="ignore"):
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < _FLAT:
        raise ImageFileError(NO_AFFINE)


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise an `ImageFileError` if a shape is not that of an image or a volume."""
    if len(shape) not in (2, 3):
        how = ", for example with nibabel.four_to_three or fslsplit" if len(shape) == 4 else ""
        raise ImageFileError(f"{len(shape)}-D data cannot be scored; split it into 2-D images or 3-D volumes{how}")
    if min(shape) < 1:
        size = " x ".join(map(str, shape))
        raise ImageFileError(f"its size of {size} voxels has an empty axis; export it again")
