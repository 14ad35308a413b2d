"""The header of an NRRD file."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.geometry import LPS_TO_RAS, plane_normal
from mrad_med.io.volume_header import MAX_HEADER, NO_AFFINE, VolumeHeader, check_affine, check_shape, unreadable

__all__ = ["NrrdHeader", "parse_nrrd"]

# Fields read from an NRRD header. Its free text and key/value pairs may name a patient and are dropped.
_FIELD_NAMES = (
    *("type", "endian", "encoding", "dimension", "sizes", "kinds", "centerings", "spacings", "axis mins"),
    *("space", "space directions", "space origin", "data file", "byte skip", "line skip", "units", "space units"),
)
_FIELDS = {name.replace(" ", "").encode(): name.encode() for name in _FIELD_NAMES}  # spaces are optional
_GRID_KINDS = ("domain", "space", "none", "???")  # kinds of axes of the voxel grid; the last two are unknown kinds
_MIRRORED = {  # supported spaces other than LPS: signs of their axes relative to LPS
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
_WITH_TIME = ("-time", "rast", "last", "lpst")
_TEXT = ("ascii", "text", "txt")
_PACKED = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "raw": "raw"} | dict.fromkeys(_TEXT, "text")
_MILLIMETERS = re.compile(r"(mm|millimet(er|re)s?)?")
_OTHER_UNIT = (
    "its header states lengths in another unit than mm: they are treated as mm, as in 3D Slicer and ITK, and the "
    "positions in mm are wrong"
)
_TIMES = ("s", "sec", "second", "seconds", "ms", "msec", "millisecond", "milliseconds", "us", "usec", "ns", "min", "hz")


@dataclass(frozen=True)
class NrrdHeader(VolumeHeader):
    """Header of an NRRD file, and how its values are stored.

    Attributes:
        encoding: "raw", "gzip", "bzip2" or "text".
    """

    encoding: str = "raw"


def parse_nrrd(stream: io.BufferedIOBase) -> NrrdHeader:
    """Return the header at the start of a stream, and leave the stream at its values.

    Raises:
        ImageFileError: the values are in another file, the header is damaged or does not describe plain numbers on a
            grid of two or three axes of space, or pynrrd is not installed.
        Exception: any error that pynrrd raises on damaged headers.
    """
    nrrd, is_installed = optional_import("nrrd")
    if not is_installed:
        raise ImageFileError('NRRD files need pynrrd; pip install "mrad-med[nrrd]"')
    with np.errstate(all="ignore"):  # sizes may be NaN
        header = nrrd.read_header(_lines_of(stream))
    if header.get("line skip", 0) or header.get("byte skip", 0):
        raise ImageFileError("its voxels do not directly follow the header; save it as one plain .nrrd")
    encoding = header["encoding"].lower()
    dtype = _dtype_of(nrrd, header, encoding)
    axes = _grid_axes(header)
    shape = tuple(int(header["sizes"][axis]) for axis in axes)
    check_shape(shape)
    affine = _affine_of(header, axes)
    check_affine(affine)
    if encoding not in _PACKED:
        raise ImageFileError("its encoding is not raw, gzip, bzip2 or ascii; save it as .nrrd with gzip")
    remarks = (_OTHER_UNIT,) if _has_other_unit(header, axes) else ()
    return NrrdHeader("NRRD", shape, dtype, affine, remarks=remarks, encoding=_PACKED[encoding])


def _dtype_of(nrrd: Any, header: dict[str, Any], encoding: str) -> np.dtype[Any]:
    value = {
        "dimension": 1,
        "sizes": np.array([1]),
        "type": header["type"].lower(),
        "encoding": "raw",
        "endian": "little" if encoding in _TEXT else header.get("endian", "").lower(),
    }
    if value["type"] == "block":
        raise ImageFileError("its values are blocks of bytes; export plain numbers")
    dtype: np.dtype[Any] = nrrd.read_data(value, io.BytesIO(bytes(8))).dtype
    return dtype


def _lines_of(stream: io.BufferedIOBase) -> list[bytes]:
    """Return the header lines of the grid and the encoding, and leave the stream at the start of the data.

    Field names are converted to lower case and spaces are removed from vectors, because pynrrd requires both.
    """
    room = MAX_HEADER
    lines = [stream.readline(room)]
    while (line := stream.readline(room)).strip():
        room -= len(line)
        if room <= 0:
            raise unreadable("its header does not end")
        name, _, value = line.partition(b":")
        field = _FIELDS.get(name.replace(b" ", b"").lower())
        if field == b"data file" and not value.startswith(b"="):
            raise ImageFileError("its voxels are in another file; save both as one .nrrd")
        if field is not None and not value.startswith(b"="):  # := marks a key/value pair, not a field
            lines.append(field + b": " + re.sub(rb"(?<=[(,])\s+|\s+(?=[,)])", b"", value.strip()))
    return lines


def _grid_axes(header: dict[str, Any]) -> list[int]:
    """Return the indices of the spatial axes; other axes, such as colors or times, must have the length 1."""
    sizes, directions = header["sizes"], header.get("space directions")
    if header["dimension"] != len(sizes):
        raise unreadable("its dimension does not match the number of its sizes")
    kinds = header.get("kinds", ["domain"] * len(sizes))
    units = header.get("units", [""] * len(sizes))
    if directions is None:
        directions = [np.zeros(3)] * len(sizes)
    on_grid = [
        kind.lower() in _GRID_KINDS and unit.lower() not in _TIMES and row is not None and not np.isnan(row).all()
        for kind, unit, row in zip(kinds, units, directions, strict=True)
    ]
    axes = [axis for axis, is_space in zip(range(len(sizes)), on_grid, strict=True) if is_space]
    while len(axes) > 3 and sizes[axes[-1]] == 1:
        axes.pop()
    if any(sizes[axis] != 1 for axis in set(range(len(sizes))) - set(axes)):
        raise ImageFileError(
            f"{len(sizes)}-D data has an axis that is not spatial (colors, vectors or times); split it first"
        )
    return axes


def _has_other_unit(header: dict[str, Any], axes: list[int]) -> bool:
    """Return whether the header states lengths in another unit than mm."""
    stated = header.get("space units") or [header["units"][axis] for axis in axes if "units" in header]
    return not all(_MILLIMETERS.fullmatch(unit.lower()) for unit in stated)


def _affine_of(header: dict[str, Any], axes: list[int]) -> NDArray[np.float64]:
    """Return the RAS affine of an NRRD header, as in ITK."""
    space = header.get("space", "").lower()
    if space.endswith(_WITH_TIME):
        raise ImageFileError("its space has a time axis; split it into 2-D images or 3-D volumes")
    affine = np.eye(4)
    if "space directions" in header:
        directions = np.array([header["space directions"][axis] for axis in axes])
        origin = header.get("space origin", np.zeros(directions.shape[1]))
    elif space in _MIRRORED:
        raise ImageFileError("its space is not LPS and has no directions of the axes; save it with space directions")
    else:
        spacings = header.get("spacings", np.ones(len(header["sizes"])))[axes]
        directions, origin = np.diag(spacings), header.get("space origin", _corner(header, axes))
    if not len(axes) <= directions.shape[1] <= 3 or len(origin) != directions.shape[1]:
        raise ImageFileError(NO_AFFINE)
    affine[: len(origin), : len(axes)] = directions.T
    affine[: len(origin), 3] = origin
    with np.errstate(all="ignore"):
        if len(axes) == 2:
            affine[:3, 2] = plane_normal(affine[:3, :2].T)
        return LPS_TO_RAS @ np.diag([*_MIRRORED.get(space, (1.0, 1.0, 1.0)), 1.0]) @ affine


def _corner(header: dict[str, Any], axes: list[int]) -> NDArray[np.float64]:
    """Return the center of the first voxel from the axis mins: half a voxel inside, except for node-centered axes."""
    if "axis mins" not in header or "spacings" not in header:
        return np.zeros(len(axes))
    nodes = np.array([name.lower() == "node" for name in header.get("centerings", ["cell"] * len(header["sizes"]))])
    corner: NDArray[np.float64] = (header["axis mins"] + np.where(nodes, 0.0, header["spacings"] / 2))[axes]
    return corner
