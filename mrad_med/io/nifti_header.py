"""The header of a NIfTI file."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.refusals import refusing
from mrad_med.io.volume_header import MAX_HEADER, NO_AFFINE, VolumeHeader, check_affine, check_shape, unreadable

__all__ = ["NiftiHeader", "parse_nifti"]

_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)  # nibabel quotes header values that it corrects
_UNITS = {1: ("meter", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}  # by code: name in nibabel, length in mm
_UNIT_BITS, _TIME_BITS = 0b111, 0b111000  # of xyzt_units
_TIME_SERIES = 2001  # intent code
_DIFFERING = 0.1  # voxels; a smaller distance between sform and qform is rounding
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_GEOMETRY = ("pixdim", "xyzt_units", "qform_code", "sform_code", *_QUATERNION, "srow_x", "srow_y", "srow_z")

_NO_CODES = (
    "its header has no valid orientation (sform_code and qform_code are 0): as in nibabel, its axes are assumed to "
    "point left, anterior and superior; other programs may show it turned, so check left and right"
)


@dataclass(frozen=True)
class NiftiHeader(VolumeHeader):
    """Header of a NIfTI file, and how its values are stored.

    Attributes:
        offset: position of the first value in the file, in bytes; None if the header states an invalid one.
        slope: factor of the stored values; None if they are not scaled.
        intercept: value added to the scaled values; None if they are not scaled.
    """

    offset: int | None = None
    slope: float | None = None
    intercept: float | None = None


def parse_nifti(stream: io.BufferedIOBase) -> NiftiHeader:
    """Return the header at the start of a stream; header extensions are skipped, because they may hold a DICOM header.

    Raises:
        ImageFileError: the stream is not NIfTI, its voxels are in another file, or its header is damaged or does not
            describe plain numbers on a grid of two or three axes of space.
    """
    start = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    kind = next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)
    if kind is None:
        raise unreadable("neither a NIfTI nor an NRRD header")
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    fields = {name: np.array(header[name]) for name in _GEOMETRY}  # before nibabel corrects them
    header.check_fix(logger=_SILENT)
    if header["magic"].item().startswith(b"ni"):
        raise ImageFileError("its voxels are in another file (.hdr and .img); save both as one .nii.gz")
    shape = _without_last_ones(header.get_data_shape())
    check_shape(shape)
    _check_time(header, shape)
    dtype = header.get_data_dtype()
    _check_values(dtype)
    offset = header.get_data_offset()
    offset = offset if header.sizeof_hdr <= offset <= MAX_HEADER else None
    slope, intercept = header.get_slope_inter()
    unit, mm = _UNITS.get(int(header["xyzt_units"]) & _UNIT_BITS, ("mm", 1.0))
    affine = _affine_of(header, mm)
    remarks = tuple(_remarks(header, shape, unit))
    return NiftiHeader("NIfTI", shape, dtype, affine, unit, mm, fields, remarks, offset, slope, intercept)


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _check_time(header: Any, shape: tuple[int, ...]) -> None:
    """Refuse three axes of which the last is time: it has the only unit, or the file states a time series."""
    units = int(header["xyzt_units"])
    only_time = bool(units & _TIME_BITS) and not units & _UNIT_BITS
    if len(shape) == 3 and shape[2] > 1 and (only_time or int(header["intent_code"]) == _TIME_SERIES):
        raise ImageFileError("its third axis is time and not space; split it into 2-D images")


def _check_values(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        kind = "complex" if dtype.kind == "c" else "RGB or structured"
        raise ImageFileError(f"its values are {kind}; export plain numbers (for a complex image, its magnitude)")


def _affine_of(header: Any, mm: float) -> NDArray[np.float64]:
    """Return nibabel's affine in mm: the sform, or else the qform, or else one from the voxel sizes.

    MONAI would replace a sform that contradicts the voxel sizes. It might use a qform without code, which may swap left
    and right.
    """
    with refusing(NO_AFFINE), np.errstate(all="ignore"):  # rotations and sizes may be NaN
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= mm
    check_affine(affine)
    return affine


def _remarks(header: Any, shape: tuple[int, ...], unit: str) -> list[str]:
    """Return unusual facts about the geometry: no code, two forms that differ, another unit than mm."""
    remarks = []
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) == 0:
        remarks.append(_NO_CODES)
    elif min(codes) > 0 and _forms_differ(header, shape):
        remarks.append("its sform and its qform differ: the sform is used, and other programs may use the qform")
    if unit != "mm":
        remarks.append(f"its lengths are stored in {unit}; tables state mm, NIfTI maps keep the unit")
    return remarks


def _forms_differ(header: Any, shape: tuple[int, ...]) -> bool:
    try:
        with np.errstate(all="ignore"):
            qform = header.get_qform()
    except (HeaderDataError, ValueError):  # a damaged quaternion
        return True
    sform = VolumeHeader("NIfTI", shape, np.dtype(float), header.get_sform())
    return not sform.fits(shape, qform, tolerance=_DIFFERING)
