"""Bounded access to the bytes of a DICOM file, so that a damaged or hostile header costs little time and memory."""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import InvalidDicomError

from mrad_med.errors import ImageFileError

__all__ = [
    "BoundedStream",
    "Inflated",
    "check_counts",
    "check_groups",
    "count_frames",
    "drop_groups",
    "pixel_bytes",
    "read_meta",
]

MAX_FRAMES = 10_000  # 5 minutes of a cine at 30 frames per second; their groups are listed in 4 seconds
_READS = 50_000  # reads of a header without the groups of its frames; they take 2 seconds
_READS_PER_FRAME = 300
_GROUP_BYTES = 2**16  # encoded functional groups of one frame

_ITEM = 8  # bytes before the content of each fragment of encoded pixels (PS3.5, A.4)
_MAX_RATIO = 20_000  # decoded to encoded size; a black image of JPEG 2000 has about 4,000
_MAX_RLE_RATIO = 64  # two bytes encode at most 128
_MAX_DEFLATE_RATIO = 1032  # of the algorithm; zlib's documentation

_GROUPS = "PerFrameFunctionalGroupsSequence"
_META_GROUP = 2  # group number of the file meta information
_META_START = 144  # bytes before the part of the meta information whose length is stated (PS3.10, 7.1)


class BoundedStream:
    """A file that refuses to be read in more parts than a header needs; pydicom reads each tag in a few parts.

    Args:
        stream: the open file.
        most: largest number of reads, as a multiple of those that a header without functional groups may need.
    """

    def __init__(self, stream: BinaryIO, *, most: int = 1) -> None:
        self._stream = stream
        self._left = most * _READS

    def allow(self, header: pydicom.Dataset) -> None:
        """Allow the reads that the functional groups of all frames of a header need."""
        self._left = _READS + _READS_PER_FRAME * _stated_frames(header)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            ImageFileError: the header has too many parts.
        """
        self._left -= 1
        if self._left < 0:
            raise ImageFileError("its header has more items than an image needs; export the DICOM file again")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        """Return another method of the file, such as the one that moves the position."""
        return getattr(self._stream, name)


def read_meta(stream: BinaryIO) -> pydicom.Dataset:
    """Return the file meta information; an empty data set if the file has none. The position changes."""
    stream.seek(0)
    try:
        pydicom.filereader.read_preamble(stream, force=False)
    except InvalidDicomError:
        return pydicom.Dataset()
    bounded: Any = BoundedStream(stream)
    return pydicom.filereader.read_dataset(
        bounded, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != _META_GROUP
    )


class Inflated:
    """The data set of a deflated file, inflated only as far as it is needed.

    Args:
        stream: the open file.
        meta: its file meta information.
    """

    def __init__(self, stream: BinaryIO, meta: pydicom.Dataset) -> None:
        self._stream = stream
        self._start = _META_START + int(meta.FileMetaInformationGroupLength)
        self.is_whole = False

    def first(self, limit: int) -> io.BytesIO:
        """Return the first bytes. `is_whole` then states whether these are all.

        Args:
            limit: largest number of bytes.
        """
        inflater, parts, left = zlib.decompressobj(-zlib.MAX_WBITS), [], limit
        self._stream.seek(self._start)
        while left > 0 and not inflater.eof and (data := inflater.unconsumed_tail or self._stream.read(1 << 16)):
            parts.append(inflater.decompress(data, left))
            left -= len(parts[-1])
        self.is_whole = inflater.eof or left > 0
        return io.BytesIO(b"".join(parts))


def check_counts(header: pydicom.Dataset, file_size: int) -> None:
    """Check the counts of a header against the size of the file, before they are used.

    Uncompressed pixels need an exact number of bytes. Of encoded pixels each frame needs at least one fragment, and
    the decoded size is bounded by the largest ratio of compression.

    Args:
        header: header with its transfer syntax.
        file_size: size of the file in bytes.

    Raises:
        ImageFileError: a count is below 1, or the file is too small for the frames that its header states.
    """
    frames, least = count_frames(header), pixel_bytes(header)
    syntax, room, most = header.file_meta.TransferSyntaxUID, file_size, file_size
    if syntax.is_deflated:
        room = file_size * _MAX_DEFLATE_RATIO
    elif syntax.is_encapsulated:
        room = file_size * (_MAX_RLE_RATIO if syntax == pydicom.uid.RLELossless else _MAX_RATIO)
        most = file_size // _ITEM
    if least > room or frames > max(most, 1):
        raise ImageFileError(
            f"its header states {frames} frame(s) of {header.get('Columns')} x {header.get('Rows')} pixels, which its "
            f"{file_size} bytes cannot hold: it is truncated or damaged; copy or export the file again"
        )


def pixel_bytes(header: pydicom.Dataset) -> int:
    """Return the number of bytes of the decoded pixels that a header states.

    Raises:
        ImageFileError: the number of frames is below 1, or above the limit.
    """
    rows, columns = (int(header.get(name) or 0) for name in ("Rows", "Columns"))
    bits = int(header.get("BitsAllocated") or 0) * int(header.get("SamplesPerPixel") or 1)
    if header.get("PhotometricInterpretation") == "YBR_FULL_422":  # two pixels share their colors
        bits = bits * 2 // 3
    return count_frames(header) * rows * columns * bits // 8


def count_frames(header: pydicom.Dataset) -> int:
    """Return the number of frames; 1 where the header does not state it.

    Raises:
        ImageFileError: the number is below 1, or above the limit.
    """
    frames = int(header.get("NumberOfFrames") or 1)
    if frames < 1:
        raise ImageFileError("its number of frames is below 1; export the DICOM file again")
    if frames > MAX_FRAMES:
        raise ImageFileError(f"it states {frames} frames, more than the limit of {MAX_FRAMES}; export it in parts")
    return frames


def drop_groups(header: pydicom.Dataset) -> None:
    """Replace functional groups that are larger than those of the stated frames can be by none, before they are parsed.

    `check_groups` then refuses the header. Its other tags can still be used, for example to hide names.
    """
    raw: Any = header.get_item(_GROUPS) if _GROUPS in header else None
    if isinstance(getattr(raw, "value", None), bytes) and len(raw.value) > _GROUP_BYTES * (_stated_frames(header) + 4):
        del header[_GROUPS]  # an assignment alone would parse them
        header.PerFrameFunctionalGroupsSequence = []


def check_groups(header: pydicom.Dataset) -> None:
    """Check that a header with functional groups has those of each frame.

    Raises:
        ImageFileError: it has more or fewer.
    """
    frames, groups = count_frames(header), header.get(_GROUPS)
    if groups is not None and len(groups) != frames:
        raise ImageFileError(f"its header describes {len(groups)} frame(s) but states {frames}; export it again")


def _stated_frames(header: pydicom.Dataset) -> int:
    """Return the number of frames whose functional groups may be parsed: 0 for a header that is refused."""
    try:
        frames = int(header.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        return 0
    return frames if 0 < frames <= MAX_FRAMES else 0
