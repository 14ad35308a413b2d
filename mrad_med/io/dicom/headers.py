"""DICOM headers: where pixels lie, which objects are images, and none of the tags that name a patient."""

from __future__ import annotations

import logging
import os
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset, config
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, MediaStorageDirectoryStorage

from mrad_med.errors import ImageFileError, NotAnImageError
from mrad_med.io.geometry import Planes, plane_normal
from mrad_med.io.limits import MAX_VOXELS

__all__ = [
    "IDENTIFIERS",
    "KEPT_IDENTIFIERS",
    "check_is_image",
    "count_frames",
    "frame_group",
    "pixel_spacing",
    "planes_of",
    "quiet",
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
_META_START = 144  # bytes before the file meta information whose length a DICOM file tells (PS3.10, 7.1)
_QUIET = threading.RLock()  # pydicom's switches are one for the whole process


_STORAGE = "1.2.840.10008.5.1.4.1.1."  # what SOP classes of stored objects begin with (DICOM PS3.6, table A-1)
_KINDS = {  # how the classes of objects that are no images go on, the longer before the shorter
    "88.59": "a selection of key images",
    "88.": "a structured report",
    "11.": "a presentation state",
    "66.4": "a segmentation",
    "66.5": "a segmentation",
    "66.7": "a segmentation",
    "66": "a registration, fiducials or raw data",
    "67": "a map of real world values",
    "4.2": "a spectrum",
    "9.": "a waveform",
    "104.": "a document",
    "77.1.6": "a whole slide in tiles",
    "77.1.1.1": "a video",
    "77.1.2.1": "a video",
    "77.1.4.1": "a video",
}
_RADIOTHERAPY = {  # how its classes end that are no plan and no record; those of images have no kind
    "481.1": "",
    "481.2": "a radiotherapy dose",
    "481.3": "a radiotherapy structure set",
    "481.23": "",
    "481.24": "",
}
_MODALITIES = {  # for objects of no known class
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a selection of key images",
    "SEG": "a segmentation",
    "REG": "a registration",
    "DOC": "a document",
    "RTSTRUCT": "a radiotherapy structure set",
    "RTPLAN": "a radiotherapy plan",
    "RTDOSE": "a radiotherapy dose",
    "RTRECORD": "a radiotherapy record",
    "ECG": "a waveform",
}


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
    with silent():
        try:
            yield
        except (ImageFileError, MemoryError):
            raise
        except PermissionError:
            raise ImageFileError("there is no permission to read the file; grant it") from None
        except Exception:  # pydicom raises nearly everything; its messages quote values, so they are cut off
            raise ImageFileError(f"{what} cannot be read; copy or export the file again") from None


def read_header(
    path: str | os.PathLike[str], *, more: Sequence[str] = (), with_pixels: bool = False
) -> pydicom.Dataset:
    """Return the tags of a DICOM file that an image needs; its pixels too, if asked for.

    A file without preamble is taken for DICOM where it tells its SOP class.

    Args:
        path: of the file.
        more: keywords of further tags.
        with_pixels: also read the pixel data, still encoded.

    Raises:
        ImageFileError: no DICOM, or damaged.
    """
    tags: list[Any] = [*_TAGS, *more, *(_PIXEL_TAGS if with_pixels else [])]
    with quiet("the DICOM header"):
        _check_inflated_size(path)
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=not with_pixels, specific_tags=tags)
        except InvalidDicomError:
            dataset = pydicom.dcmread(path, stop_before_pixels=not with_pixels, specific_tags=tags, force=True)
            if not str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008."):
                raise
        if dataset.file_meta.get("TransferSyntaxUID") is None:
            dataset.file_meta.TransferSyntaxUID = _guess_syntax(dataset)
        for tag in list(dataset.keys()):
            dataset[tag]  # converts it, while pydicom is quiet
        return dataset


def _check_inflated_size(path: str | os.PathLike[str]) -> None:
    """Refuse a deflated file that would fill the memory: pydicom inflates all of it, even for the header."""
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except InvalidDicomError:  # without such information nothing is deflated
        return
    if meta.get("TransferSyntaxUID") != pydicom.uid.DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with Path(path).open("rb") as stream:
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


def check_is_image(header: Dataset) -> None:
    """Refuse DICOM objects that are no images, by their kind.

    Raises:
        NotAnImageError: a report, plan, document, segmentation, ...; or an object of unknown class without picture.
        ImageFileError: an image of which the size is missing, as where a file is cut off.
    """
    kind = _kind(header)
    if kind:
        raise NotAnImageError(f"this DICOM object is {kind}, not an image; leave it out")
    if "Rows" in header and "Columns" in header:
        return
    if _class_of(header).name.endswith("Image Storage"):
        raise ImageFileError("its header does not tell the size of its image: cut off, or stripped; export it again")
    raise NotAnImageError("this DICOM object holds no image; leave it out")


def _class_of(header: Dataset) -> UID:
    return UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""))


def _kind(header: Dataset) -> str:
    """Return what an object that is no image is, in plain words; nothing for an image."""
    uid = _class_of(header)
    if uid == MediaStorageDirectoryStorage:
        return "the index of an export disk (DICOMDIR)"
    ending = uid.removeprefix(_STORAGE)
    if ending.startswith("481."):
        return _RADIOTHERAPY.get(ending, "a radiotherapy plan or record")
    otherwise = _MODALITIES.get(str(header.get("Modality")), "") if ending == uid or "Rows" not in header else ""
    return next((kind for start, kind in _KINDS.items() if ending.startswith(start)), otherwise)
