"""NIfTI and NRRD volumes as numbers and their place in the patient, out of files that nobody vouches for."""

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
_NO_AFFINE = "the affine in its header gives no directions to its axes; export it again"
_CHUNK = 2**20  # bytes decoded at a time, so that memory grows with what is there, not with what is announced
_MAX_HEADER = 2**26  # bytes before the voxels, a line of NRRD or the extensions of NIfTI; 64 MB are more than any has
_FLAT = 1e-3  # volume spanned by the unit directions of the axes, below which they are no three; a gantry's tilt is 0.8

# What is read of an NRRD header: its free text and key/value pairs, which may name a patient, never enter the process.
_FIELD_NAMES = (
    *("type", "endian", "encoding", "dimension", "sizes", "kinds", "centerings", "spacings", "axis mins"),
    *("space", "space directions", "space origin", "data file", "byte skip", "line skip"),
)
_FIELDS = {name.replace(" ", "").encode(): name.encode() for name in _FIELD_NAMES}  # both spellings are in use
_GRID_KINDS = ("domain", "space", "none", "???")  # of axes along which voxels lie; the last two are unknown kinds
_MIRRORED = {  # spaces that are not LPS, or what is taken for it: which of its axes go the other way
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
_WITH_TIME = ("-time", "rast", "last", "lpst")
_TEXT = ("ascii", "text", "txt")
_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)  # nibabel quotes what it mends in a header


class _Volume(NamedTuple):
    values: NDArray[Any]
    affine: NDArray[np.float64]


class VolumeReader(ImageReader):
    """Read one NIfTI or NRRD file: its values, where they lie, and nothing else of its header.

    The first bytes tell which format it is. No other file than the named one is opened, and no more is unpacked than
    the header announces and the limit allows.

    - NIfTI is as nibabel has it, with the scaling applied. Without sform and qform the axes are taken for left,
      anterior and superior, with the world's origin in the middle of the volume. Voxel sizes of 0 in the header
      become 1.
    - NRRD is as ITK and 3D Slicer have it: of the spaces LPS, RAS and LAS, and any other space, or none, is taken for
      LPS. Without ``space directions`` the axes are those of LPS, with the ``spacings``, or else 1 mm; the origin is
      then the center of the first voxel by ``axis mins``, or else 0. RAS or LAS without directions are refused, since
      programs disagree. Measurement frames are of vectors, and units are taken for mm.

    Args:
        max_voxels: larger volumes are refused before they are decoded.
    """

    def __init__(self, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__()
        self.max_voxels = max_voxels

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Tell whether the name, or every name of a list, ends as a volume's."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(VOLUME_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> _Volume:
        """Return the values and the affine of one file; of damage of any kind only `ImageFileError` comes out.

        Raises:
            ImageFileError: neither NIfTI nor NRRD, damaged, too large, no plain numbers on a grid of two or three
                axes, without a place in space, split over several files, NRRD while pynrrd is missing, or closed to
                this user.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file makes one case, got {len(names)} files; list them as separate cases")
        with refusing(_UNREADABLE), Path(names[0]).open("rb") as stream:
            start = stream.peek(4)
            if start.startswith(b"NRRD"):
                return _read_nrrd(stream, self.max_voxels)
            if start.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=stream) as unpacked:
                    return _read_nifti(unpacked, self.max_voxels)
            return _read_nifti(stream, self.max_voxels)

    def get_data(self, img: _Volume) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (X, Y[, Z]) array, in the file's own units, and the metadata MONAI needs."""
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
    """Return a NIfTI volume; its header extensions, which may hold a whole DICOM header, are skipped."""
    start = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    kind = next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)
    if kind is None:
        raise _unreadable("neither a NIfTI nor an NRRD header")
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    header.check_fix(logger=_SILENT)
    if header["magic"].item().startswith(b"ni"):
        raise ImageFileError("a header whose voxels lie in another file (.hdr and .img); save both as one .nii.gz")
    shape = _without_last_ones(header.get_data_shape())
    _check_grid(shape, max_voxels)
    dtype = header.get_data_dtype()
    _check_values(dtype)
    affine = _nifti_affine(header)
    offset = header.get_data_offset()
    if not header.sizeof_hdr <= offset <= _MAX_HEADER:
        raise _unreadable("the voxels cannot begin where its header says")
    stream.seek(offset)
    values = apply_read_scaling(_read_voxels(stream, dtype, shape), *header.get_slope_inter())
    return _Volume(values if values.dtype.itemsize <= 8 else values.astype(np.float64), affine)  # PyTorch has no more


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _nifti_affine(header: Any) -> NDArray[np.float64]:
    """Return nibabel's affine: the sform, or else the qform, or else one made of the voxel sizes.

    MONAI would replace a sform that contradicts the voxel sizes, if need be by a qform without code, which may mirror
    left and right.
    """
    with refusing(_NO_AFFINE), np.errstate(all="ignore"):  # there may be no numbers in rotations or sizes
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    _check_affine(affine)
    return affine


def _read_nrrd(stream: io.BufferedIOBase, max_voxels: int) -> _Volume:
    """Return an NRRD volume: pynrrd reads the header and tells the type; unpacking is bounded here."""
    nrrd, is_installed = optional_import("nrrd")
    if not is_installed:
        raise ImageFileError('NRRD files need pynrrd; pip install "mrad-med[nrrd]"')
    header = nrrd.read_header(_nrrd_lines(stream))
    if header.get("line skip", 0) or header.get("byte skip", 0):
        raise ImageFileError("voxels that do not follow the header at once; save it as one plain .nrrd")
    encoding = header["encoding"].lower()
    endian = "little" if encoding in _TEXT else header.get("endian", "").lower()
    one = {"dimension": 1, "sizes": np.array([1]), "type": header["type"].lower(), "encoding": "raw", "endian": endian}
    if one["type"] == "block":
        raise ImageFileError("blocks of bytes as voxel values; export plain numbers")
    dtype = nrrd.read_data(one, io.BytesIO(bytes(8))).dtype
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
        raise ImageFileError("an encoding other than raw, gzip, bzip2 and ascii; save it as .nrrd with gzip")
    return _Volume(_read_voxels(stream, dtype, shape), affine)


def _nrrd_lines(stream: io.BufferedIOBase) -> list[bytes]:
    """Return the lines of a header that tell grid and coding, and leave the stream where the data begin.

    Names of fields are in lower case, and vectors without spaces, as pynrrd must have them and other writers do not.
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
            raise ImageFileError("a header whose voxels lie in another file; save it as one .nrrd")
        if field is not None and not value.startswith(b"="):  # := is a key/value pair, whatever its name
            lines.append(field + b": " + re.sub(rb"(?<=[(,])\s+|\s+(?=[,)])", b"", value.strip()))
    return lines


def _grid_axes(header: dict[str, Any]) -> list[int]:
    """Return along which axes voxels lie; others, as of colors or times, may only have the length 1."""
    sizes, directions = header["sizes"], header.get("space directions")
    if header["dimension"] != len(sizes):
        raise _unreadable("its number of axes contradicts their sizes")
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
            f"{len(sizes)}-D data with an axis in no direction of space, as of colors, vectors or times: split it first"
        )
    return axes


def _nrrd_affine(header: dict[str, Any], axes: list[int]) -> NDArray[np.float64]:
    """Return the RAS affine of an NRRD header, as ITK takes it."""
    space = header.get("space", "").lower()
    if space.endswith(_WITH_TIME):
        raise ImageFileError("a space with a time axis; 2-D images and 3-D volumes can be scored: split it first")
    affine = np.eye(4)
    if "space directions" in header:
        directions = np.array([header["space directions"][axis] for axis in axes])
        origin = header.get("space origin", np.zeros(directions.shape[1]))
    elif space in _MIRRORED:
        raise ImageFileError("a space that is not LPS, but no directions of the axes in it; save it with directions")
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
    """Return the center of the first voxel without a space: half a voxel inside, unless samples are nodes."""
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
        raise ImageFileError(f"{len(shape)}-D data; 2-D images and 3-D volumes can be scored: split it first")
    if min(shape) < 1:
        raise ImageFileError(f"{size} voxels: an axis without any; export it again")
    check_voxels(*shape, limit=max_voxels)


def _check_values(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        kind = "complex" if dtype.kind == "c" else "colors or records as"
        raise ImageFileError(f"{kind} voxel values; export plain numbers (of a complex image, its magnitude)")


def _read_voxels(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the next values of a stream in the machine's byte order, the first axis running fastest."""
    size = int(np.prod(shape)) * dtype.itemsize
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(_CHUNK, size - len(content)))
        if not chunk:
            raise _unreadable("it ends before its last voxel")
        content += chunk
    stream.read(1)  # at the end of packed data, their checksum is verified
    values = np.frombuffer(content, dtype)
    if not dtype.isnative:
        values = values.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return values.reshape(shape, order="F")


def _read_text(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return values that are written as text; numpy alone would wrap those that the type cannot hold."""
    numbers = np.fromfile(stream, sep=" ")[: int(np.prod(shape))]
    with np.errstate(all="ignore"):
        values = numbers.astype(dtype)
    if numbers.size < np.prod(shape) or (dtype.kind != "f" and not np.array_equal(values, numbers)):
        raise _unreadable("its text has too few numbers, or some that their type cannot hold")
    return values.reshape(shape, order="F")
