"""Which DICOM objects are images, and what the others are."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.uid import UID, MediaStorageDirectoryStorage

from mrad_med.errors import ImageFileError, NotAnImageError

__all__ = ["check_is_image"]

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
