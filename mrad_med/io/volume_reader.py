"""Reader for NIfTI and NRRD volumes from untrusted files."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.file_types import VOLUME_SUFFIXES
from mrad_med.io.limits import MAX_EXPANSION, MAX_VOXELS, check_expansion, check_voxels
from mrad_med.io.nifti_header import NiftiHeader, parse_nifti
from mrad_med.io.nrrd_header import NrrdHeader, parse_nrrd
from mrad_med.io.refusals import refusing
from mrad_med.io.volume_header import UNREADABLE, VolumeHeader, unreadable

__all__ = ["VOLUME_SUFFIXES", "VolumeReader", "read_volume_header"]

_CHUNK = 2**20  # bytes decoded at a time; memory grows with the data, not with the size that a header announces


class _Volume(NamedTuple):
    values: NDArray[Any]
    affine: NDArray[np.float64]


class VolumeReader(ImageReader):
    """Read the values and the affine of one NIfTI or NRRD file; the rest of its header is ignored.

    The format is detected from the first bytes. No other file is opened. The data are decompressed only up to the size
    that the header announces and the limit allows.

    - NIfTI is read as in nibabel, with the scaling applied. Without sform and qform the axes are assumed to point left,
      anterior and superior, with the world's origin in the center of the volume. Voxel sizes of 0 become 1. Lengths in
      micron or meter are converted to mm.
    - NRRD is read as in ITK and 3D Slicer. The spaces LPS, RAS and LAS are supported; any other space, or none, is
      treated as LPS. Without ``space directions`` the axes are those of LPS, with the ``spacings``, or else 1 mm. The
      default origin is then the center of the first voxel from ``axis mins``, or else 0. RAS or LAS without directions
      are refused, because programs disagree. Measurement frames are ignored, and units are treated as mm.

    Args:
        max_voxels: largest number of voxels; larger volumes are refused before they are decoded.
        max_expansion: largest ratio of the size of the values to that of their compressed file; others are refused
            before they are decoded, unless their values are smaller than 10 MB.
    """

    def __init__(self, max_voxels: int = MAX_VOXELS, max_expansion: float = MAX_EXPANSION) -> None:
        super().__init__()
        self.max_voxels = max_voxels
        self.max_expansion = max_expansion

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Return whether the name, or every name of a list, has the suffix of a volume."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(VOLUME_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> _Volume:
        """Return the values and the affine of one file.

        Raises:
            ImageFileError: the file is not NIfTI or NRRD, is damaged, too large, or not readable by this user; it
                holds no real numbers on a grid of two or three axes of space, or no valid affine; it is split over
                several files; or it is NRRD and pynrrd is not installed.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file is one case, got {len(names)} files; list them as separate cases")
        with refusing(UNREADABLE), _open_header(names[0]) as (stream, header):
            check_voxels(*header.shape, limit=self.max_voxels)
            return _Volume(_read_values(stream, header, self.max_expansion), header.affine)

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


def read_volume_header(path: str | os.PathLike[str]) -> VolumeHeader:
    """Return the header of a NIfTI or NRRD file; no values are read.

    Raises:
        ImageFileError: see `VolumeReader.read`.
    """
    with refusing(UNREADABLE), _open_header(path) as (_, header):
        return header


@contextmanager
def _open_header(path: str | os.PathLike[str]) -> Iterator[tuple[io.BufferedIOBase, NiftiHeader | NrrdHeader]]:
    """Yield the open file, behind its header, and the header."""
    with Path(path).open("rb") as stream:
        start = stream.peek(4)
        if start.startswith(b"NRRD"):
            yield stream, parse_nrrd(stream)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked, parse_nifti(unpacked)
        else:
            yield stream, parse_nifti(stream)


def _read_values(stream: io.BufferedIOBase, header: NiftiHeader | NrrdHeader, max_expansion: float) -> NDArray[Any]:
    """Return the values of an open file, in its own units and in native byte order."""
    packed, size = os.fstat(stream.fileno()).st_size, math.prod(header.shape) * header.dtype.itemsize
    if isinstance(header, NiftiHeader):
        if isinstance(stream, gzip.GzipFile):
            check_expansion(size, packed, limit=max_expansion)
        if header.offset is None:
            raise unreadable("its header states an invalid voxel offset")
        stream.seek(header.offset)
        values = _read_voxels(stream, header.dtype, header.shape)
        values = np.asarray(apply_read_scaling(values, header.slope, header.intercept))
        return values if values.dtype.itemsize <= 8 else values.astype(np.float64)  # PyTorch's largest type
    if header.encoding == "text":
        return _read_text(stream, header.dtype, header.shape, most=packed)
    if header.encoding != "raw":
        check_expansion(size, packed, limit=max_expansion)
        stream = gzip.GzipFile(fileobj=stream) if header.encoding == "gzip" else bz2.BZ2File(stream)
    return _read_voxels(stream, header.dtype, header.shape)


def _read_voxels(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the next values of a stream in native byte order; the first axis varies fastest."""
    size = math.prod(shape) * dtype.itemsize
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(_CHUNK, size - len(content)))
        if not chunk:
            raise unreadable("it ends before its last voxel")
        content += chunk
    stream.read(1)  # at the end of compressed data this verifies the checksum
    values = np.frombuffer(content, dtype)
    if not dtype.isnative:
        values = values.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return values.reshape(shape, order="F")


def _read_text(stream: io.BufferedIOBase, dtype: np.dtype[Any], shape: tuple[int, ...], *, most: int) -> NDArray[Any]:
    """Return values stored as text; values outside the range of the type are refused, because NumPy would wrap them.

    Args:
        stream: stream at the first value.
        dtype: type of the values.
        shape: number of voxels along each axis.
        most: largest number of values that the file can hold; NumPy allocates memory for them first.
    """
    numbers = np.fromfile(stream, sep=" ", count=min(math.prod(shape), most))
    with np.errstate(all="ignore"):
        values = numbers.astype(dtype)
    if numbers.size < np.prod(shape) or (dtype.kind != "f" and not np.array_equal(values, numbers)):
        raise unreadable("its text has too few numbers, or numbers outside the range of their type")
    return values.reshape(shape, order="F")
