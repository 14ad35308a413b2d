"""DICOM headers: where pixels lie, and none of the tags that name a patient."""

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

# Identifiers that written results keep if the user asks for it: all are of type 2 in patient and study modules.
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
# All attributes that tell who the patient is. They are read to be hidden in names of cases.
IDENTIFIERS = (*KEPT_IDENTIFIERS, "OtherPatientIDs", "SeriesDate", "AcquisitionDate", "ContentDate")

# All that an image needs of a DICOM file: with these, patient tags never enter the process.
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
_META_GROUP = 2  # of the file meta information
_META_START = 144  # bytes before the file meta information whose length a DICOM file tells (PS3.10, 7.1)
_QUIET = threading.RLock()  # pydicom's switches are one for the whole process


@contextmanager
def silent() -> Iterator[None]:
    """Keep pydicom, and what is built on it, from quoting a header in warnings and logs."""
    log = logging.getLogger("pydicom")
    with _QUIET, config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)  # for its children too, which disabling it would not be
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def quiet(what: str) -> Iterator[None]:
    """Keep pydicom from quoting a header in warnings, logs or errors.

    Args:
        what: is being read, for the message.

    Raises:
        ImageFileError: in place of whatever pydicom raises on damaged files.
    """
    with silent(), refusing(f"{what} cannot be read; copy or export the file again"):
        yield


def read_header(path: str | os.PathLike[str], *, more: Sequence[str] = ()) -> pydicom.Dataset:
    """Return the tags of a DICOM file that an image needs, without its pixels.

    A file without preamble is taken for DICOM where it tells its SOP class.

    Args:
        path: of the file.
        more: keywords of further tags.

    Raises:
        ImageFileError: no DICOM, or damaged.
    """
    with quiet("the DICOM header"), Path(path).open("rb") as stream:
        return _converted(_read_header(stream, [*_TAGS, *more]))


def read_dataset(path: str | os.PathLike[str], check: Callable[[pydicom.Dataset], None]) -> pydicom.Dataset:
    """Return the tags of a DICOM file that an image needs, and its pixels, still encoded.

    The file is opened and parsed once.

    Args:
        path: the file.
        check: called with the header before pixels are read; it raises an `ImageFileError` where they are of no use.

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
    """Return the tags of an open file, and leave the stream at its pixels; of a deflated file, at its end."""
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
    """Return a data set whose values are converted while pydicom is quiet."""
    for tag in list(dataset.keys()):
        dataset[tag]
    return dataset


def _check_inflated_size(stream: BinaryIO) -> None:
    """Refuse a deflated file that would fill the memory: pydicom inflates all of it, even for the header."""
    try:
        pydicom.filereader.read_preamble(stream, force=False)
    except InvalidDicomError:  # without such information nothing is deflated
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
        raise ImageFileError(
            f"it would inflate to more than the limit of {_MAX_INFLATED} bytes; export it uncompressed"
        )


def _guess_syntax(dataset: pydicom.Dataset) -> pydicom.uid.UID:
    implicit, little_endian = dataset.original_encoding
    if not little_endian:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian


def count_frames(header: pydicom.Dataset) -> int:
    """Return the number of pictures; 1 where it is not told.

    Raises:
        ImageFileError: less than one.
    """
    frames = int(header.get("NumberOfFrames") or 1)
    if frames < 1:
        raise ImageFileError("its number of frames is below 1; export the DICOM file again")
    return frames


def frame_group(header: pydicom.Dataset, frame: int, group: str) -> pydicom.Dataset | None:
    """Return the functional group of a frame, its own before the shared one, or None.

    Args:
        header: of an enhanced object; others have none.
        frame: number from 0.
        group: keyword of the group's sequence.

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
    """Return the distance in mm between columns and between rows, in the patient or else at the detector, or None."""
    source = frame_group(header, 0, "PixelMeasuresSequence") or header
    stored = source.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not stored:
        return None
    rows, columns = (float(value) for value in stored)
    return columns, rows


def planes_of(header: pydicom.Dataset) -> Planes | None:
    """Return where the pictures of a DICOM object lie, in the order of its frames; None where it does not tell.

    Raises:
        ImageFileError: what it tells is contradictory, or its frames are not parallel.
    """
    frames = count_frames(header)
    _check_groups(header, frames)
    spacing = pixel_spacing(header)
    places = [_place(header, frame) for frame in range(frames)]
    if spacing is None or any(place is None for place in places):
        return None
    stored = np.asarray(places, np.float64)  # (frames, 9)
    orientation, thickness = stored[0, 3:].reshape(2, 3), _thickness(header)
    if np.abs(stored[:, 3:] - stored[0, 3:]).max() > 1e-3:
        raise ImageFileError("its frames are not parallel; export each direction as a file of its own")
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
        raise ImageFileError(f"it describes {len(groups)} frame(s) and holds {frames}; export the DICOM file again")


def _place(header: pydicom.Dataset, frame: int) -> list[float] | None:
    """Return position and orientation of a frame, nine numbers."""
    detector = header.get("DetectorInformationSequence")
    position = frame_group(header, frame, "PlanePositionSequence") or (detector[0] if detector else header)
    orientation = frame_group(header, frame, "PlaneOrientationSequence") or (detector[0] if detector else header)
    stored = [*(position.get("ImagePositionPatient") or []), *(orientation.get("ImageOrientationPatient") or [])]
    if len(stored) != 9:
        return None
    return [float(value) for value in stored]


def _thickness(header: pydicom.Dataset) -> float:
    """Return the step from a slice to the next in mm, for where no next one tells; 1 where nothing does."""
    source = frame_group(header, 0, "PixelMeasuresSequence") or header
    return abs(float(source.get("SpacingBetweenSlices") or source.get("SliceThickness") or 1.0))
