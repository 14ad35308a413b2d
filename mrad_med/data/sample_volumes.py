"""A volume to try things on: a chest in Hounsfield units with one lesion, as DICOM series and as NIfTI."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat
from scipy.ndimage import gaussian_filter

from mrad_med.files import atomic_path
from mrad_med.io.geometry import LPS_TO_RAS
from mrad_med.io.volume_writer import write_volume

__all__ = ["make_chest_phantom", "write_sample_series", "write_sample_study"]

AIR, LUNG, TISSUE, LIVER, BONE, NODULE = -1000, -850, 40, 60, 700, 30  # Hounsfield units
SPACING = (2.0, 2.0, 5.0)  # mm
_OFFSET = 1024  # of what is stored: CT tells nothing below -1024 Hounsfield units
_NOISE = 12.0  # standard deviation in Hounsfield units

# Centers and half axes in shares of the volume: right to left, front to back, feet to head, as DICOM counts.
_ORGANS = (
    (TISSUE, (0.50, 0.50, 0.50), (0.44, 0.36, 9.0)),  # the body, as a cylinder
    (LUNG, (0.30, 0.47, 0.62), (0.15, 0.24, 0.50)),
    (LUNG, (0.70, 0.47, 0.66), (0.14, 0.23, 0.46)),
    (LIVER, (0.33, 0.46, 0.06), (0.20, 0.22, 0.22)),  # at the right
    (TISSUE, (0.58, 0.38, 0.45), (0.12, 0.12, 0.25)),  # the heart, at the left
    (BONE, (0.50, 0.76, 0.50), (0.05, 0.05, 9.0)),  # the spine, at the back
)
_LESION = (NODULE, (0.69, 0.55, 0.70), (0.055, 0.055, 0.11))  # in the left lung


def make_chest_phantom(
    size: tuple[int, int, int] = (128, 112, 24), *, with_lesion: bool = True, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]:
    """Return a chest in Hounsfield units, the mask of its lesion, and where it lies.

    Right and left, front and back, feet and head differ, so that a picture that is turned or mirrored is seen to be.

    Args:
        size: columns, rows and slices of 2 x 2 x 5 mm; axial.
        with_lesion: a nodule in the left lung.
        seed: of the noise.

    Returns:
        float32 (X, Y, Z), uint8 (X, Y, Z) of 0 and 1, and the (4, 4) voxel to world matrix (RAS, mm).
    """
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in size], indexing="ij"))
    chest = np.full(size, float(AIR))
    for value, center, axes in _ORGANS:
        chest[_inside(places, center, axes)] = value
    lesion = _inside(places, *_LESION[1:]) if with_lesion else np.zeros(size, bool)
    chest[lesion] = _LESION[0]
    noise = gaussian_filter(np.random.RandomState(seed).standard_normal(size), (0.7, 0.7, 0))
    chest = gaussian_filter(chest, (0.6, 0.6, 0)) + _NOISE * noise / noise.std()
    affine = LPS_TO_RAS @ np.diag([*SPACING, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.asarray(size) - 1) / 2  # the world's origin is in the middle
    return chest.clip(-_OFFSET).astype(np.float32), lesion.astype(np.uint8), affine


def _inside(
    places: NDArray[np.float64], center: tuple[float, float, float], axes: tuple[float, float, float]
) -> NDArray[np.bool_]:
    offsets = (places - np.reshape(center, (3, 1, 1, 1))) / np.reshape(axes, (3, 1, 1, 1))
    inside: NDArray[np.bool_] = np.square(offsets).sum(0) < 1
    return inside


def write_sample_series(
    folder: str | os.PathLike[str], volume: NDArray[np.float32], affine: NDArray[np.float64], *, modality: str = "CT"
) -> str:
    """Write a volume as a DICOM series of CT images, one file a slice, and return the folder.

    File names and numbers do not follow the order of the slices, as in many exports. There is no patient.

    Args:
        folder: made if absent.
        volume: (X, Y, Z) in Hounsfield units.
        affine: (4, 4) voxel to world matrix (RAS, mm), whose axes are perpendicular.
        modality: to be told.
    """
    folder, lps = Path(folder), LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    for number, index in enumerate(np.random.RandomState(0).permutation(volume.shape[2])):
        header = _header(modality, str(index))
        header.InstanceNumber = number + 1
        header.Columns, header.Rows = volume.shape[:2]
        header.PixelSpacing, (header.SliceThickness,) = _decimals(spacing[[1, 0]]), _decimals(spacing[2:])
        header.ImageOrientationPatient = _decimals(directions[:, :2].T.ravel())
        header.ImagePositionPatient = _decimals((lps @ [0, 0, index, 1])[:3])
        header.RescaleSlope, header.RescaleIntercept = 1, -_OFFSET
        stored = np.round(volume[..., index].T + _OFFSET).clip(0, 4095).astype("<u2")
        header.PixelData = stored.tobytes()
        with atomic_path(folder / f"IM{number + 1:04d}") as path:
            header.save_as(path, enforce_file_format=True)
    return str(folder)


def _decimals(values: NDArray[np.float64]) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]  # of 16 characters at most, as DICOM has them


def _header(modality: str, index: str) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    for keyword, words in (
        ("StudyInstanceUID", []),
        ("SeriesInstanceUID", ["series"]),
        ("FrameOfReferenceUID", ["space"]),
    ):
        setattr(header, keyword, generate_uid(entropy_srcs=["mrad_med chest phantom", *words]))
    header.SOPInstanceUID = generate_uid(entropy_srcs=["mrad_med chest phantom", "image", index])
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
        *("AccessionNumber", "ReferringPhysicianName", "Manufacturer", "PositionReferenceIndicator"),
        *("AcquisitionNumber", "KVP", "Laterality"),
    ):
        setattr(header, keyword, None)  # of type 2: present, and empty
    header.PatientPosition = "HFS"  # on the back, the head in front
    header.Modality, header.SeriesNumber, header.ImageType = modality, 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.WindowCenter, header.WindowWidth = -600, 1500
    return header


def write_sample_study(folder: str | os.PathLike[str]) -> str:
    """Fill a folder with the chest phantom and return it.

    ``ct/`` holds it as a DICOM series, ``chest.nii.gz`` the same voxels with axes in another order and direction.
    """
    folder = Path(folder)
    volume, _, affine = make_chest_phantom()
    write_sample_series(folder / "ct", volume, affine)
    # The same voxels, stored from the back to the front, then from left to right.
    turned = affine @ np.array([[0, 1, 0, 0], [-1, 0, 0, volume.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_volume(folder / "chest.nii.gz", np.ascontiguousarray(volume[:, ::-1].transpose(1, 0, 2)), turned)
    return str(folder)
