"""Reader for NIfTI and NRRD volumes from untrusted files."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, optional_import
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.file_types import VOLUME_SUFFIXES
from mrad_med.io.geometry import LPS_TO_RAS, plane_normal
from mrad_med.io.limits import MAX_VOXELS, check_voxels
from mrad_med.io.refusals import refusing

__all__ = ["VOLUME_SUFFIXES", "VolumeReader"]

_UNREADABLE = "the file cannot be read ({kind}); copy or export it again"
_NO_AFFINE = "the affine in its header does not define independent axes; export it again"
_CHUNK = 2**20  # bytes decoded at a time; memory grows with the data, not with the size that a header announces
_MAX_HEADER = 2**26  # bytes before the voxels: lines of NRRD or extensions of NIfTI; real headers are far below 64 MB
_FLAT = 1e-3  # smallest volume spanned by the unit vectors of independent axes; a tilted gantry gives 0.8

# Fields read from an NRRD header. Its free text and key/value pairs may name a patient and are dropped.
_FIELD_NAMES = (
    *("type", "endian", "encoding", "dimension", "sizes", "kinds", "centerings", "spacings", "axis mins"),
    *("space", "space directions", "space origin", "data file", "byte skip", "line skip"),
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
_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)  # nibabel quotes header values that it corrects


class _Volume(NamedTuple):
    values: NDArray[Any]
    affine: NDArray[np.float64]


class VolumeReader(ImageReader):
    """Read the values and the affine of one NIfTI or NRRD file; the rest of its header is ignored.

    The format is detected from the first bytes. No other file is opened. The data are decompressed only up to the size
    that the header announces and the limit allows.

    - NIfTI is read as in nibabel, with the scaling applied. Without sform and qform the axes are assumed to point left,
      anterior and superior, with the world's origin in the center of the volume. Voxel sizes of 0 become 1.
    - NRRD is read as in ITK and 3D Slicer. The spaces LPS, RAS and LAS are supported; any other space, or none, is
      treated as LPS. Without ``space directions`` the axes are those of LPS, with the ``spacings``, or else 1 mm. The
      default origin is then the center of the first voxel from ``axis mins``, or else 0. RAS or LAS without directions
      are refused, because programs disagree. Measurement frames are ignored, and units are treated as mm.

    Args:
        max_voxels: largest number of voxels; larger volumes are refused before they are decoded.
    """

    def __init__(self, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__()
        self.max_voxels = max_voxels

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Return whether the name, or every name of a list, has the suffix of a volume."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(VOLUME_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> _Volume:
        """Return the values and the affine of one file.

        Raises:
            ImageFileError: the file is not NIfTI or NRRD, is damaged, too large, or not readable by this user; it
                holds no real numbers on a grid of two or three axes, or no valid affine; it is split over several
                files; or it is NRRD and pynrrd is not installed.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file is one case, got {len(names)} files; list them as separate cases")
        with refusing(_UNREADABLE), Path(names[0]).open("rb") as stream:
            start = stream.peek(4)
            if start.startswith(b"NRRD"):
                return _read_nrrd(stream, self.max_voxels)
            if start.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    return _read_nifti(unpacked, self.max_voxels)
            return _read_nifti(stream, self.max_voxels)

    def get_data(self, img: _Volume) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (X, Y[, Z]) array, in the file's own units, and the metadata that MONAI needs."""
        meta = {
            MetaKeys.AFFINE: img.affine,
            MetaKeys.ORIGINAL_AFFINE: img.affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.values.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        }
        return img.values, meta


def _unreadable(why: str) -> ImageFileError:
    return ImageFileError(_UNREADABLE.replace("{kind}", why))


def _read_nifti(stream: io.BufferedIOBase, max_voxels: int) -> _Volume:
    """Return a NIfTI volume; header extensions are skipped, because they may hold a DICOM header."""
    start = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    kind = next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)
    if kind is None:
        raise _unreadable("neither a NIfTI nor an NRRD header")
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    header.check_fix(logger=_SILENT)
    if header["magic"].item().startswith(b"ni"):
        raise ImageFileError("its voxels are in another file (.hdr and .img); save both as one .nii.gz")
    shape = _without_last_ones(header.get_data_shape())
    _check_grid(shape, max_voxels)
    dtype = header.get_data_dtype()
    _check_values(dtype)
    affine = _nifti_affine(header)
    offset = header.get_data_offset()
    if not header.sizeof_hdr <= offset <= _MAX_HEADER:
        raise _unreadable("its header states an invalid voxel offset")
    stream.seek(offset)
    values = apply_read_scaling(_read_voxels(stream, dtype, shape), *header.get_slope_inter())
    return _Volume(
        values if values.dtype.itemsize <= 8 else values.astype(np.float64), affine
    )  # PyTorch's largest type


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _nifti_affine(header: Any) -> NDArray[np.float64]:
    """Return nibabel's affine: the sform, or else the qform, or else one from the voxel sizes.

    MONAI would replace a sform that contradicts the voxel sizes. It might use a qform without code, which may swap left
    and right.
    """
    with refusing(_NO_AFFINE), np.errstate(all="ignore"):  # rotations and sizes may be NaN
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    _check_affine(affine)
    return affine


def _read_nrrd(stream: io.BufferedIOBase, max_voxels: int) -> _Volume:
    """Return an NRRD volume. pynrrd reads the header; decompression is done here, because its size must be limited."""
    nrrd, is_installed = optional_import("nrrd")
    if not is_installed:
        raise ImageFileError('NRRD files need pynrrd; pip install "mrad-med[nrrd]"')
    header = nrrd.read_header(_nrrd_lines(stream))
    if header.get("line skip", 0) or header.get("byte skip", 0):
        raise ImageFileError("its voxels do not directly follow the header; save it as one plain .nrrd")
    encoding = header["encoding"].lower()
    endian = "little" if encoding in _TEXT else header.get("endian", "").lower()
    value = {
        "dimension": 1,
        "sizes": np.array([1]),
        "type": header["type"].lower(),
        "encoding": "raw",
        "endian": endian,
    }
    if value["type"] == "block":
        raise ImageFileError("its values are blocks of bytes; export plain numbers")
    dtype = nrrd.read_data(value, io.BytesIO(bytes(8))).dtype
    axes = _grid_axes(header)
    shape = tuple(int(header["sizes"][axis]) for axis in axes)
    _check_grid(shape, max_voxels)
    affine = _nrrd_affine(header, axes)
    if encoding in _TEXT:
        return _Volume(_read_text(stream, dtype, shape), affine)
    if encoding in ("gzip", "gz"):
        stream = gzip.GzipFile(fileobj=stream)
    elif encoding in ("bzip2", "bz2"):
        stream = bz2.BZ2File(stream)
    elif encoding != "raw":
        raise ImageFileError("its encoding is not raw, gzip, bzip2 or ascii; save it as .nrrd with gzip")
    return _Volume(_read_voxels(stream, dtype, shape), affine)


def _nrrd_lines(stream: io.BufferedIOBase) -> list[bytes]:
    """Return the header lines of the grid and the encoding, and leave the stream at the start of the data.

    Field names are converted to lower case and spaces are removed from vectors, because pynrrd requires both.
    """
    room = _MAX_HEADER
    lines = [stream.readline(room)]
    while (line := stream.readline(room)).strip():
        room -= len(line)
        if room <= 0:
            raise _unreadable("its header does not end")
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
        raise _unreadable("its dimension does not match the number of its sizes")
    kinds = header.get("kinds", ["domain"] * len(sizes))
    if directions is None:
        on_grid = [kind.lower() in _GRID_KINDS for kind in kinds]
    else:
        on_grid = [row is not None and not np.isnan(row).all() for row in directions]
    axes = [axis for axis, is_space in zip(range(len(sizes)), on_grid, strict=True) if is_space]
    while len(axes) > 3 and sizes[axes[-1]] == 1:
        axes.pop()
    if any(sizes[axis] != 1 for axis in set(range(len(sizes))) - set(axes)):
        raise ImageFileError(
            f"{len(sizes)}-D data has an axis that is not spatial (colors, vectors or times); split it first"
        )
    return axes


def _nrrd_affine(header: dict[str, Any], axes: list[int]) -> NDArray[np.float64]:
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
        raise ImageFileError(_NO_AFFINE)
    affine[: len(origin), : len(axes)] = directions.T
    affine[: len(origin), 3] = origin
    with np.errstate(all="ignore"):
        if len(axes) == 2:
            affine[:3, 2] = plane_normal(affine[:3, :2].T)
        affine = LPS_TO_RAS @ np.diag([*_MIRRORED.get(space, (1.0, 1.0, 1.0)), 1.0]) @ affine
    _check_affine(affine)
    return affine


def _corner(header: dict[str, Any], axes: list[int]) -> NDArray[np.float64]:
    """Return the center of the first voxel from the axis mins: half a voxel inside, except for node-centered axes."""
    if "axis mins" not in header or "spacings" not in header:
        return np.zeros(len(axes))
    nodes = np.array([name.lower() == "node" for name in header.get("centerings", ["cell"] * len(header["sizes"]))])
    corner: NDArray[np.float64] = (header["axis mins"] + np.where(nodes, 0.0, header["spacings"] / 2))[axes]
    return corner


def _check_affine(affine: NDArray[np.float64]) -> None:
    with np.errstate(all="ignore"):
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < _FLAT:
        raise ImageFileError(_NO_AFFINE)


def _check_grid(shape: tuple[int, ...], max_voxels: int) -> None:
    size = " x ".join(map(str, shape))
    if len(shape) not in (2, 3):
        raise ImageFileError(f"{len(shape)}-D data cannot be scored; split it into 2-D images or 3-D volumes")
    if min(shape) < 1:
        raise ImageFileError(f"its size of {size} voxels has an empty axis; export it again")
    check_voxels(*shape, limit=max_voxels)


def _check_values(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        kind = "complex" if dtype.kind == "c" else "RGB or structured"
        raise ImageFileError(f"its values are {kind}; export plain numbers (for a complex image, its magnitude)")


def _read_voxels(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the next values of a stream in native byte order; the first axis varies fastest."""
    size = int(np.prod(shape)) * dtype.itemsize
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(_CHUNK, size - len(content)))
        if not chunk:
            raise _unreadable("it ends before its last voxel")
        content += chunk
    stream.read(1)  # at the end of compressed data this verifies the checksum
    values = np.frombuffer(content, dtype)
    if not dtype.isnative:
        values = values.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return values.reshape(shape, order="F")


def _read_text(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return values stored as text; values outside the range of the type are refused, because NumPy would wrap them."""
    numbers = np.fromfile(stream, sep=" ")[: int(np.prod(shape))]
    with np.errstate(all="ignore"):
        values = numbers.astype(dtype)
    if numbers.size < np.prod(shape) or (dtype.kind != "f" and not np.array_equal(values, numbers)):
        raise _unreadable("its text has too few numbers, or numbers outside the range of their type")
    return values.reshape(shape, order="F")
