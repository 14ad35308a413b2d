"""DICOM headers: the tags that an image needs, without the tags that identify a patient."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom import config
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import Tag

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.streams import (
    BoundedStream,
    Inflated,
    check_counts,
    drop_groups,
    pixel_bytes,
    read_meta,
)
from mrad_med.io.refusals import refusing

__all__ = [
    "KEPT_IDENTIFIERS",
    "quiet",
    "read_dataset",
    "read_header",
    "silent",
    "without_stderr",
]

# Identifiers that written results keep on request; all are of type 2 in the patient and study modules.
KEPT_IDENTIFIERS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
)

# All tags that an image needs. Other tags, such as those of the patient, are read only on request.
_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "BluePaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor",
    "Columns",
    "DetectorInformationSequence",
    "FrameTime",
    "FrameTimeVector",
    "GreenPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor",
    "HighBit",
    "ImageOrientationPatient",
    "ImageType",
    "ImagePositionPatient",
    "ImagerPixelSpacing",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PixelSpacing",
    "PlanarConfiguration",
    "RedPaletteColorLookupTableData",
    "RedPaletteColorLookupTableDescriptor",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SegmentedBluePaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence",
    "SliceThickness",
    "SpacingBetweenSlices",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
]
_PIXEL_TAGS = [
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "FloatPixelData",
    "PixelData",
]

_FIRST_INFLATED, _MAX_INFLATED_HEADER = 2**20, 2**26  # bytes
_GROUPS_GROUP = 0x5200  # group number of the functional groups
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # tags of the pixels
_STDERR = 2  # file descriptor
_LIBRARIES = ("pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg", "rle")  # names of their loggers
_QUIET = threading.RLock()  # pydicom's settings are global to the process


@contextmanager
def silent() -> Iterator[None]:
    """Suppress warnings and logs of pydicom and libraries built on it, because they may quote a header."""
    logs = [logging.getLogger(name) for name in _LIBRARIES]
    with _QUIET, config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [log.level for log in logs]
        for log in logs:
            log.setLevel(logging.CRITICAL + 1)  # applies to child loggers too, unlike disabling the logger
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Discard what decoders in C and Rust write to the standard error of the process, such as a backtrace.

    What other threads write meanwhile is discarded too.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(_STDERR)
    except OSError:  # the process has none
        yield
        return
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Suppress warnings, logs and errors of pydicom, because they may quote a header.

    Args:
        what: name of the item that is read, for the message.

    Raises:
        ImageFileError: pydicom raised an error, which this error replaces.
    """
    with silent(), refusing(f"{what} cannot be read; copy or export the file again"):
        yield


def read_header(path: str | os.PathLike[str], *, more: Sequence[str] = ()) -> pydicom.Dataset:
    """Return the tags of a DICOM file that an image needs, without its pixels.

    A file without preamble is treated as DICOM if it states a SOP class.

    Args:
        path: path of the file.
        more: keywords of further tags to read.

    Raises:
        ImageFileError: the file is not DICOM, or is damaged.
    """
    with quiet("the DICOM header"), Path(path).open("rb") as stream:
        return _converted(_Source(stream).header([*_TAGS, *more]))


def read_dataset(path: str | os.PathLike[str], check: Callable[[pydicom.Dataset], None]) -> pydicom.Dataset:
    """Return the tags of a DICOM file that an image needs, and its encoded pixels.

    The file is opened and parsed once.

    Args:
        path: path of the file.
        check: function called with the header before pixels are read; it raises an `ImageFileError` to refuse the file.

    Raises:
        ImageFileError: the file is not DICOM, or is damaged.
    """
    with quiet("the DICOM header"), Path(path).open("rb") as stream:
        source = _Source(stream)
        header = _converted(source.header([*_TAGS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]))
        check(header)
        check_counts(header, os.fstat(stream.fileno()).st_size)
        header.update(source.pixels(pixel_bytes(header)))
        return _converted(header)


class _Source:
    """The data set of an open file, parsed in the order of its tags: header, functional groups, pixels.

    The counts are known before the functional groups are parsed, because their tags are lower.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._meta = read_meta(stream)
        is_deflated = self._meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian
        self._inflated = Inflated(stream, self._meta) if is_deflated else None
        self._stream: BinaryIO = stream
        self._encoding = (False, True)  # implicit, little-endian

    def header(self, keywords: Sequence[str]) -> pydicom.Dataset:
        """Return the tags before the pixels. The position is then at the pixels."""
        tags: list[Any] = [Tag(keyword) for keyword in keywords]
        if self._inflated is None:
            return self._plain_header(tags)
        size = _FIRST_INFLATED
        while True:
            self._stream = self._inflated.first(size)
            header = self._parse(_before_pixels, tags, BoundedStream(self._stream, most=4))
            if self._inflated.is_whole or _position(self._stream) < size or size >= _MAX_INFLATED_HEADER:
                break
            size *= 4
        header.file_meta = FileMetaDataset(self._meta)
        drop_groups(header)
        return header

    def _plain_header(self, tags: list[Any]) -> pydicom.Dataset:
        self._stream.seek(0)
        bounded: Any = BoundedStream(self._stream)
        try:
            header: pydicom.Dataset = read_partial(bounded, _before_groups, specific_tags=tags)
        except InvalidDicomError:
            self._stream.seek(0)
            header = read_partial(bounded, _before_groups, specific_tags=tags, force=True)
            if not str(header.get("SOPClassUID", "")).startswith("1.2.840.10008."):
                raise
        implicit, little_endian = header.original_encoding
        self._encoding = bool(implicit), bool(little_endian)
        bounded.allow(header)
        header.update(self._parse(_before_pixels, tags, bounded))
        drop_groups(header)
        if header.file_meta.get("TransferSyntaxUID") is None:
            header.file_meta.TransferSyntaxUID = _guess_syntax(header)
        return header

    def _parse(self, stop_when: Any, tags: Sequence[Any], stream: Any) -> pydicom.Dataset:
        return pydicom.filereader.read_dataset(stream, *self._encoding, stop_when=stop_when, specific_tags=[*tags])

    def pixels(self, size: int) -> pydicom.Dataset:
        """Return the tags of the pixels. A deflated file is inflated only as far as pixels of this size reach.

        Args:
            size: number of bytes of the decoded pixels.
        """
        if self._inflated is not None:
            start = _position(self._stream)
            most = start + size + _FIRST_INFLATED
            self._stream = self._inflated.first(most)
            self._stream.seek(start)
            if not self._inflated.is_whole:
                raise ImageFileError(
                    f"its inflated size is above the {most} bytes that its header describes; export it uncompressed"
                )
        return self._parse(None, [Tag(keyword) for keyword in _PIXEL_TAGS], self._stream)


def _position(stream: BinaryIO) -> int:
    return stream.seek(0, os.SEEK_CUR)


def _before_groups(tag: int, *_: Any) -> bool:
    return tag >> 16 >= _GROUPS_GROUP


def _before_pixels(tag: int, *_: Any) -> bool:
    return tag in _PIXELS


def _converted(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Convert all values of a data set now, while warnings of pydicom are suppressed, and return it."""
    for tag in list(dataset.keys()):
        dataset[tag]
    return dataset


def _guess_syntax(dataset: pydicom.Dataset) -> pydicom.uid.UID:
    implicit, little_endian = dataset.original_encoding
    if not little_endian:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
