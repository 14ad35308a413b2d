"""DICOM images with a known geometry and invented patients, for tests of DICOM output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    generate_uid,
)

SLICES, ROWS, COLUMNS = 5, 20, 24

# Everything that identifies the patient: no value may appear in results.
PRIVATE = {
    "PatientName": "Fingal^Olive",
    "PatientID": "PID-73519",
    "IssuerOfPatientID": "HOSPITAL-17",
    "OtherPatientIDs": "ALIAS-4411",
    "PatientBirthDate": "19520314",
    "PatientSex": "F",
    "PatientAge": "073Y",
    "PatientAddress": "14 Larch Lane",
    "PatientComments": "walks with a cane",
    "EthnicGroup": "Elf",
    "StudyDate": "20250917",
    "StudyTime": "081522",
    "SeriesDate": "20250918",
    "AcquisitionDate": "20250919",
    "ContentDate": "20250920",
    "ContentTime": "093011",
    "AccessionNumber": "ACC-9912",
    "StudyID": "STUDY-551",
    "StudyDescription": "follow-up of Olive",
    "SeriesDescription": "series of Olive",
    "ReferringPhysicianName": "Quill^Peter",
    "PerformingPhysicianName": "Rook^Ada",
    "OperatorsName": "Sedge^Tom",
    "InstitutionName": "Larch Clinic",
    "InstitutionAddress": "1 Clinic Road",
    "StationName": "STATION-3",
    "DeviceSerialNumber": "SERIAL-808",
    "ProtocolName": "protocol of Olive",
    "ImageComments": "seen by Quill",
    "PositionReferenceIndicator": "NASION-1",
}

OBLIQUE = np.array([[0.8, 0.6, 0.0], [-0.48, 0.64, 0.6]])  # unit, orthogonal: right, down (LPS)
AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
CORONAL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
FLIPPED = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _header(sop_class: str, modality: str, name: str, private: dict[str, str] | None) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = sop_class
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", name])
    header.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    header.SeriesInstanceUID = generate_uid(entropy_srcs=["series", modality])
    header.Modality = modality
    header.Rows, header.Columns = ROWS, COLUMNS
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    for keyword, value in (PRIVATE if private is None else private).items():
        setattr(header, keyword, value)
    header.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", "secret of Olive")
    return header


def _save(header: Dataset, path: Path) -> Path:
    shape = (int(header.get("NumberOfFrames", 1)), ROWS, COLUMNS)
    header.PixelData = np.broadcast_to(np.arange(COLUMNS, dtype="<u2"), shape).tobytes()  # a ramp along the rows
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def positions(axes: np.ndarray, step: float = 2.5, shear: float = 0.0) -> np.ndarray:
    """Return (SLICES, 3): along the normal, sheared along the columns as a tilted gantry does."""
    normal = np.cross(*axes)
    return np.array([[-31.5, 12.25, 7.75] + k * (step * normal + shear * axes[1]) for k in range(SLICES)])


def write_series(folder: Path, *, axes: np.ndarray = AXIAL, origins: np.ndarray | None = None, **changes) -> list[Path]:
    """Write a CT series; a change of None removes the attribute."""
    paths = []
    for index, origin in enumerate(positions(axes) if origins is None else origins):
        header = _header(CTImageStorage, "CT", f"{index}", None)
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=["space"])
        header.ImagePositionPatient = [f"{value:.6f}" for value in origin]
        header.ImageOrientationPatient = [f"{value:.6f}" for value in axes.ravel()]
        header.PixelSpacing, header.SliceThickness = [0.5, 0.75], 2.5
        header.RescaleIntercept, header.RescaleSlope = 0, 1
        header.InstanceNumber = index + 1
        for keyword, value in changes.items():
            if value is None:
                header.pop(keyword, None)
            else:
                setattr(header, keyword, value)
        paths.append(_save(header, folder / f"{index:03d}.dcm"))
    return paths


def write_multiframe(path: Path, *, axes: np.ndarray = OBLIQUE, own_measures: bool = False) -> Path:
    """Write an enhanced MR whose functional groups contain dates; pixel measures are shared or per frame."""
    header = _header(EnhancedMRImageStorage, "MR", "enhanced", None)
    header.FrameOfReferenceUID = generate_uid(entropy_srcs=["space"])
    header.NumberOfFrames = SLICES
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = axes.ravel().tolist()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.5
    shared.PlaneOrientationSequence = [orientation]
    if not own_measures:
        shared.PixelMeasuresSequence = [measures]
    groups = []
    for origin in positions(axes):
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = origin.tolist()
        content.FrameAcquisitionDateTime, content.FrameComments = "20250919101112", "frame of Olive"
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        if own_measures:
            group.PixelMeasuresSequence = [measures]
        groups.append(group)
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], groups
    return _save(header, path)


def write_ultrasound(path: Path, **changes) -> Path:
    """Write a single image without a position in space."""
    header = _header(UltrasoundImageStorage, "US", "picture", None)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    return _save(header, path)


def affine_of(axes: np.ndarray, origins: np.ndarray | None = None) -> np.ndarray:
    """Return the voxel to world matrix (RAS) of an array (column, row, slice) of such a series."""
    origins = positions(axes) if origins is None else origins
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = 0.75 * axes[0], 0.5 * axes[1]
    affine[:3, 2], affine[:3, 3] = (origins[-1] - origins[0]) / (len(origins) - 1), origins[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
