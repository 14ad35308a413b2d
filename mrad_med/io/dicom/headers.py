"""DICOM headers: the tags that an image needs and its geometry, without the tags that identify a patient."""

from __future__ import annotations

import logging
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom import config
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from mrad_med.errors import ImageFileError
from mrad_med.io.geometry import Planes, plane_normal
from mrad_med.io.limits import MAX_VOXELS
from mrad_med.io.refusals import refusing

__all__ = [
    "IDENTIFIERS",
    "KEPT_IDENTIFIERS",
    "count_frames",
    "frame_group",
    "pixel_spacing",
    "planes_of",
    "quiet",
    "read_dataset",
    "read_header",
    "silent",
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
# All attributes that identify the patient. They are read to hide their values in names of cases.
IDENTIFIERS = (*KEPT_IDENTIFIERS, "OtherPatientIDs", "SeriesDate", "AcquisitionDate", "ContentDate")

# All tags that an image needs. Other tags, such as those of the patient, are read only on request.
_TAGS = [
    "BitsAllocated",
    "BitsStored",
    "BluePaletteColorLookupTableData",
    "BluePaletteColorLookupTableDescriptor",
    "Columns",
    "DetectorInformationSequence",
    "GreenPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableDescriptor",
    "HighBit",
    "ImageOrientationPatient",
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

_MAX_INFLATED = 4 * MAX_VOXELS  # bytes
_META_GROUP = 2  # group number of the file meta information
_META_START = 144  # bytes before the part of the meta information whose length is stated (PS3.10, 7.1)
_QUIET = threading.RLock()  # pydicom's settings are global to the process


@contextmanager
def silent() -> Iterator[None]:
    """Suppress warnings and logs of pydicom and libraries built on it, because they may quote a header."""
    log = logging.getLogger("pydicom")
    with _QUIET, config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)  # applies to child loggers too, unlike disabling the logger
        try:
            yield
        finally:
            log.setLevel(level)


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
        return _converted(_read_header(stream, [*_TAGS, *more]))


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
        header = _converted(_read_header(stream, [*_TAGS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]))
        check(header)
        if header.file_meta.TransferSyntaxUID.is_deflated:  # the stream is past its end
            stream.seek(0)
            header.update(pydicom.dcmread(stream, specific_tags=[*_PIXEL_TAGS]))
        else:
            is_implicit, is_little_endian = (bool(value) for value in header.original_encoding)
            tags: list[Any] = [Tag(keyword) for keyword in _PIXEL_TAGS]
            header.update(pydicom.filereader.read_dataset(stream, is_implicit, is_little_endian, specific_tags=tags))
        return _converted(header)


def _read_header(stream: BinaryIO, keywords: list[str]) -> pydicom.Dataset:
    """Return the tags of an open file. The stream is left at the pixels, or at the end of a deflated file."""
    tags: list[Any] = [*keywords]
    _check_inflated_size(stream)
    stream.seek(0)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags)
    except InvalidDicomError:
        stream.seek(0)
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags, force=True)
        if not str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008."):
            raise
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        dataset.file_meta.TransferSyntaxUID = _guess_syntax(dataset)
    return dataset


def _converted(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Convert all values of a data set now, while warnings of pydicom are suppressed, and return it."""
    for tag in list(dataset.keys()):
        dataset[tag]
    return dataset


def _check_inflated_size(stream: BinaryIO) -> None:
    """Refuse a deflated file above the size limit, because pydicom inflates the whole file even for the header."""
    try:
        pydicom.filereader.read_preamble(stream, force=False)
    except InvalidDicomError:  # a file without meta information is not deflated
        return
    meta = pydicom.filereader.read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != _META_GROUP
    )
    if meta.get("TransferSyntaxUID") != pydicom.uid.DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    stream.seek(_META_START + int(meta.FileMetaInformationGroupLength))
    while size <= _MAX_INFLATED and (data := inflater.unconsumed_tail or stream.read(1 << 16)):
        size += len(inflater.decompress(data, 1 << 20))
    if size > _MAX_INFLATED:
        raise ImageFileError(f"its inflated size is above the limit of {_MAX_INFLATED} bytes; export it uncompressed")


def _guess_syntax(dataset: pydicom.Dataset) -> pydicom.uid.UID:
    implicit, little_endian = dataset.original_encoding
    if not little_endian:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian


def count_frames(header: pydicom.Dataset) -> int:
    """Return the number of frames; 1 where the header does not state it.

    Raises:
        ImageFileError: the number is below 1.
    """
    frames = int(header.get("NumberOfFrames") or 1)
    if frames < 1:
        raise ImageFileError("its number of frames is below 1; export the DICOM file again")
    return frames


def frame_group(header: pydicom.Dataset, frame: int, group: str) -> pydicom.Dataset | None:
    """Return a functional group of a frame, or None. A per-frame group takes precedence over a shared one.

    Args:
        header: header of any DICOM object; only enhanced objects have functional groups.
        frame: number of the frame, from 0.
        group: keyword of the sequence of the group.

    Reference:
        DICOM PS3.3, C.7.6.16.
    """
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in ([own[frame]] if own else []) + ([shared[0]] if shared else []):
        if groups.get(group):
            item: pydicom.Dataset = groups[group][0]
            return item
    return None


def pixel_spacing(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Return the distances between columns and between rows in mm, in the patient or else at the detector, or None."""
    source = frame_group(header, 0, "PixelMeasuresSequence") or header
    stored = source.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not stored:
        return None
    rows, columns = (float(value) for value in stored)
    return columns, rows


def planes_of(header: pydicom.Dataset) -> Planes | None:
    """Return the positions of the frames of a DICOM object, in stored order; None where the header has no positions.

    Raises:
        ImageFileError: the geometry is contradictory, or the frames are not parallel.
    """
    frames = count_frames(header)
    _check_groups(header, frames)
    spacing = pixel_spacing(header)
    geometry = [_frame_geometry(header, frame) for frame in range(frames)]
    if spacing is None or any(numbers is None for numbers in geometry):
        return None
    stored = np.asarray(geometry, np.float64)  # (frames, 9)
    orientation, thickness = stored[0, 3:].reshape(2, 3), _thickness(header)
    if np.abs(stored[:, 3:] - stored[0, 3:]).max() > 1e-3:
        raise ImageFileError("its frames are not parallel; export each direction as a separate file")
    positions, step = stored[:, :3], header.get("SpacingBetweenSlices")
    if frames > 1 and "DetectorInformationSequence" in header and step:  # nuclear medicine: PS3.3, C.8.4.15
        positions = positions + np.arange(frames)[:, None] * float(step) * plane_normal(orientation)
    planes = Planes(positions, orientation, spacing, thickness)
    problem = planes.problem()
    if problem is not None:
        raise ImageFileError(f"its header holds {problem}; export the DICOM file again")
    return planes


def _check_groups(header: pydicom.Dataset, frames: int) -> None:
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != frames:
        raise ImageFileError(f"its header describes {len(groups)} frame(s) but states {frames}; export it again")


def _frame_geometry(header: pydicom.Dataset, frame: int) -> list[float] | None:
    """Return position and orientation of a frame as nine numbers, or None where the header does not state them."""
    detector = header.get("DetectorInformationSequence")
    position = frame_group(header, frame, "PlanePositionSequence") or (detector[0] if detector else header)
    orientation = frame_group(header, frame, "PlaneOrientationSequence") or (detector[0] if detector else header)
    stored = [*(position.get("ImagePositionPatient") or []), *(orientation.get("ImageOrientationPatient") or [])]
    if len(stored) != 9:
        return None
    return [float(value) for value in stored]


def _thickness(header: pydicom.Dataset) -> float:
    """Return the stated distance between slices, or else the slice thickness, in mm; 1 where neither is stated."""
    source = frame_group(header, 0, "PixelMeasuresSequence") or header
    return abs(float(source.get("SpacingBetweenSlices") or source.get("SliceThickness") or 1.0))
