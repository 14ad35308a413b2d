"""Refusal of DICOM objects that are not images."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.uid import UID, MediaStorageDirectoryStorage

from mrad_med.errors import ImageFileError, NotAnImageError

__all__ = ["check_is_image", "check_is_no_mosaic"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."  # prefix of the SOP classes of stored objects (DICOM PS3.6, table A-1)
_KINDS = {  # continuations of the classes of objects that are not images; longer ones precede their prefixes
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
_RADIOTHERAPY = {  # endings of its classes except plans and records; images have an empty text
    "481.1": "",
    "481.2": "a radiotherapy dose",
    "481.3": "a radiotherapy structure set",
    "481.23": "",
    "481.24": "",
}
_MODALITIES = {  # for objects of an unknown class
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


def check_is_image(header: Dataset) -> None:
    """Refuse a DICOM object that is not an image.

    Raises:
        NotAnImageError: the object is a report, plan, document, segmentation or similar, or is of another class and
            states no image size.
        ImageFileError: the object is of an image class, but its header states no image size (truncated file).
    """
    kind = _kind(header)
    if kind:
        raise NotAnImageError(f"this DICOM object is {kind}, not an image; leave it out")
    if "Rows" in header and "Columns" in header:
        return
    if _class_of(header).name.endswith("Image Storage"):
        raise ImageFileError("its header does not state the image size and may be truncated; export it again")
    raise NotAnImageError("this DICOM object holds no image; leave it out")


def check_is_no_mosaic(header: Dataset) -> None:
    """Refuse a mosaic of Siemens: a volume whose slices are tiles of one image. Its positions are in private tags.

    Raises:
        ImageFileError: the object is a mosaic.
    """
    stored = header.get("ImageType") or ()
    if "MOSAIC" in ([stored] if isinstance(stored, str) else [str(value) for value in stored]):
        raise ImageFileError(
            "it is a Siemens mosaic, an image whose tiles are the slices of a volume; convert it to NIfTI with "
            "dcm2niix, or export single slices"
        )


def _class_of(header: Dataset) -> UID:
    return UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""))


def _kind(header: Dataset) -> str:
    """Return the kind of an object that is not an image, in words; an empty text for an image."""
    uid = _class_of(header)
    if uid == MediaStorageDirectoryStorage:
        return "the index of an export disk (DICOMDIR)"
    ending = uid.removeprefix(_STORAGE)
    if ending.startswith("481."):
        return _RADIOTHERAPY.get(ending, "a radiotherapy plan or record")
    otherwise = _MODALITIES.get(str(header.get("Modality")), "") if ending == uid or "Rows" not in header else ""
    return next((kind for start, kind in _KINDS.items() if ending.startswith(start)), otherwise)
