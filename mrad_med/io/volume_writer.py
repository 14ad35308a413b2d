"""Writer for anomaly maps and masks of volumes, and positions of their slices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.utils import optional_import
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mrad_med.files import atomic_path
from mrad_med.io.geometry import LPS_TO_RAS, plane_normal
from mrad_med.io.volume_header import VolumeHeader

__all__ = ["require_nrrd", "slice_positions", "write_volume"]


def write_volume(
    path: str | os.PathLike[str],
    values: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    source: VolumeHeader | None = None,
    has_position: bool = True,
) -> None:
    """Write a map or a mask as NIfTI-1 (``.nii``, ``.nii.gz``) or NRRD (``.nrrd``).

    The file is written completely or not at all. Values are stored unchanged. The grid may be oblique, flipped or
    anisotropic. NIfTI stores the affine as float32, NRRD as float64. NRRD files state the time of writing.

    A NIfTI file on the grid of a NIfTI source gets its geometry: unit, voxel sizes, sform and qform with their codes.
    Every program then shows both at the same place, whichever form it uses. Other files are in mm.

    Args:
        path: file to write; its suffix determines the format.
        values: (X, Y, Z) map of float32, or mask of bool or uint8; a mask is stored as uint8.
        affine: (4, 4) voxel to world matrix (RAS, mm), as in MONAI and nibabel.
        source: header of the file that the values belong to, see `read_volume_header`. It is ignored if its grid is not
            that of the values.
        has_position: whether the affine is that of the patient. If False, only the spacing is written: both codes of a
            NIfTI file are 0 (unknown), and an NRRD file states no space.

    Raises:
        ValueError: ``values`` or ``affine`` do not have this form, or the suffix is unknown.
        ImportError: the suffix is ``.nrrd`` and pynrrd is not installed.
        OSError: the file cannot be written.
    """
    affine = np.asarray(affine, dtype=np.float64)
    _check(values, affine)
    stored = values.view(np.uint8) if values.dtype == np.bool_ else values
    name = Path(path).name.lower()
    if name.endswith((".nii", ".nii.gz")):
        with atomic_path(path) as partial:
            nibabel.save(_nifti(stored, affine, source, has_position=has_position), partial)
    elif name.endswith(".nrrd"):
        _write_nrrd(path, stored, affine, has_position=has_position)
    else:
        raise ValueError(f"volumes are written as .nii, .nii.gz or .nrrd, got {''.join(Path(path).suffixes[-2:])!r}")


def _check(values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    if values.ndim != 3 or values.dtype not in (np.float32, np.bool_, np.uint8):
        raise ValueError(f"a volume must be (X, Y, Z) of float32, uint8 or bool, got {values.shape} of {values.dtype}")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise ValueError("the affine must be a finite (4, 4) voxel to world matrix whose last row is 0, 0, 0, 1")
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError("the affine does not define three independent axes")


def _nifti(
    values: NDArray[Any], affine: NDArray[np.float64], source: VolumeHeader | None, *, has_position: bool
) -> Any:
    if source is not None and source.fields and source.fits(values.shape, affine):
        image = nibabel.Nifti1Image(values, None)  # without an affine nibabel leaves the forms as they are
        for name, value in source.fields.items():
            image.header[name] = value
        return image
    image = nibabel.Nifti1Image(values, affine if has_position else None)
    image.header.set_xyzt_units("mm")
    if not has_position:
        image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        return image
    image.set_sform(affine, code="scanner")
    try:
        image.set_qform(affine, code="scanner", strip_shears=False)
    except HeaderDataError:  # a quaternion cannot represent the shear of a tilted gantry; readers then use the sform
        image.set_qform(None, code="unknown")
    return image


def require_nrrd() -> Any:
    """Return pynrrd.

    Raises:
        ImportError: pynrrd is not installed.
    """
    nrrd, is_installed = optional_import("nrrd")
    if not is_installed:
        raise ImportError('NRRD files need pynrrd: pip install "mrad-med[nrrd]", or write .nii.gz')
    return nrrd


def _write_nrrd(
    path: str | os.PathLike[str], values: NDArray[Any], affine: NDArray[np.float64], *, has_position: bool
) -> None:
    nrrd = require_nrrd()
    lps = (LPS_TO_RAS @ affine)[:3]  # LPS_TO_RAS is its own inverse
    place: dict[str, Any] = {"spacings": np.linalg.norm(affine[:3, :3], axis=0)}
    if has_position:
        place = {
            "space": "left-posterior-superior",
            "space directions": lps[:, :3].T,
            "space origin": lps[:, 3],
        }
    header = {**place, "kinds": ["domain", "domain", "domain"], "encoding": "gzip"}
    with atomic_path(path) as partial:
        nrrd.write(str(partial), values, header)


def slice_positions(affine: NDArray[np.float64], count: int, *, axis: int = 2) -> NDArray[np.float64]:
    """Return the positions of slices along their normal, in mm, increasing to the right, anterior or superior.

    For axial slices this is the world's z coordinate. For a sheared or oblique volume it is the signed distance of the
    plane of each slice from the world's origin.

    Args:
        affine: (4, 4) voxel to world matrix (RAS, mm).
        count: number of slices.
        axis: axis of the array along which the slices are counted: 0, 1 or 2.

    Returns:
        (count,) positions.

    Raises:
        ValueError: ``axis`` is not 0, 1 or 2.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f"the axis must be 0, 1 or 2, got {axis}")
    normal = plane_normal(affine[:3, [other for other in range(3) if other != axis]].T)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    index = np.arange(count)
    centers: NDArray[np.float64] = affine[:3, 3] @ normal + index * (affine[:3, axis] @ normal)
    return centers
