"""Sample images, and phantoms with a lesion, for trials and tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat
from scipy.ndimage import gaussian_filter

from mrad_med.files import atomic_path
from mrad_med.io.geometry import LPS_TO_RAS
from mrad_med.io.volume_writer import write_volume

__all__ = [
    "make_chest_phantom",
    "make_phantom",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_series",
    "write_sample_study",
]

_PHANTOM_SEED = 20260202


AIR, LUNG, TISSUE, LIVER, BONE, NODULE = -1000, -850, 40, 60, 700, 30  # Hounsfield units
SPACING = (2.0, 2.0, 5.0)  # mm
_OFFSET = 1024  # added to stored values: CT values start at -1024 Hounsfield units
_NOISE = 12.0  # standard deviation in Hounsfield units
# Centers and half axes as fractions of the volume, along the DICOM axes: right-left, front-back, feet-head.
_ORGANS = (
    (TISSUE, (0.50, 0.50, 0.50), (0.44, 0.36, 9.0)),  # the body, as a cylinder
    (LUNG, (0.30, 0.47, 0.62), (0.15, 0.24, 0.50)),
    (LUNG, (0.70, 0.47, 0.66), (0.14, 0.23, 0.46)),
    (LIVER, (0.33, 0.46, 0.06), (0.20, 0.22, 0.22)),  # on the right
    (TISSUE, (0.58, 0.38, 0.45), (0.12, 0.12, 0.25)),  # the heart, on the left
    (BONE, (0.50, 0.76, 0.50), (0.05, 0.05, 9.0)),  # the spine
)
_LESION = (NODULE, (0.69, 0.55, 0.70), (0.055, 0.055, 0.11))  # in the left lung


def make_phantom(
    size: tuple[int, int] = (360, 480), *, lesion_radius: float = 0.11, seed: int = _PHANTOM_SEED
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image of tissue-like texture with one raised lesion, and the mask of the lesion.

    Args:
        size: number of rows and columns.
        lesion_radius: radius of the lesion as a fraction of the rows; 0 gives no lesion.
        seed: seed of the texture and of the position of the lesion.

    Returns:
        The image, uint8 (H, W, 3), and the mask, uint8 (H, W) with values 0 and 255.
    """
    state = np.random.RandomState(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    noise = [gaussian_filter(state.standard_normal(size), sigma) * sigma for sigma in (1.5, 6.0, 30.0)]
    light = 1 - 0.45 * np.hypot(rows / size[0] - 0.5, columns / size[1] - 0.5)
    tissue = (0.62 + 0.05 * noise[0] + 0.05 * noise[1] + 0.08 * noise[2]) * light
    center_row, center_column = state.uniform(0.3, 0.7, 2) * size
    radius = max(lesion_radius * size[0], 1e-3)
    distance = np.hypot(rows - center_row, (columns - center_column) / 1.25) / radius + 0.12 * noise[1]
    if lesion_radius == 0:
        distance = np.full(size, 2.0)
    bump = 1 / (1 + np.exp(12 * (distance - 1)))
    shading = np.clip((rows - center_row + columns - center_column) / (2 * radius), -1, 1)
    red = tissue * (1 + bump * (0.25 - 0.25 * shading))
    green = tissue * (0.55 + 0.32 * bump)
    blue = tissue * (0.50 + 0.05 * bump)
    image = np.clip(255 * np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)
    return image, np.where(distance < 1, 255, 0).astype(np.uint8)


def write_sample_images(folder: str | os.PathLike[str]) -> str:
    """Write sample images to a folder and return its path.

    The images are a CT and an MR slice (DICOM, from pydicom), a retina photograph, a close-up of a retina and an
    immunohistochemistry image (from scikit-image), and the phantom with its lesion.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {
        "ct_slice.dcm": get_testdata_file("CT_small.dcm"),
        "mr_slice.dcm": get_testdata_file("MR_small.dcm"),
        "retina.jpg": Path(skimage.data.__file__).parent / "retina.jpg",
        "retina_closeup.png": Path(skimage.data.__file__).parent / "microaneurysms.png",
        "histology.png": Path(skimage.data.__file__).parent / "ihc.png",
    }
    for name, source in sources.items():
        with atomic_path(folder / name) as partial:
            shutil.copyfile(str(source), partial)
    _save_png(folder / "phantom.png", make_phantom()[0])
    return str(folder)


def write_sample_dataset(folder: str | os.PathLike[str], *, count: int = 3) -> str:
    """Write a labeled dataset of phantoms (``normal/``, ``defect/``, ``mask/``) to a folder and return its path.

    Use it to try the evaluation and the building of memory banks. Its numbers have no medical meaning.

    Args:
        folder: output folder, created if absent.
        count: number of phantoms with a lesion, and of phantoms without.
    """
    folder = Path(folder)
    for index in range(count):
        name = f"phantom_{index}.png"
        image, mask = make_phantom(seed=index)
        _save_png(folder / "defect" / name, image)
        _save_png(folder / "mask" / name, mask)
        _save_png(folder / "normal" / name, make_phantom(seed=count + index, lesion_radius=0)[0])
    return str(folder)


def _save_png(path: Path, image: NDArray[np.uint8]) -> None:
    with atomic_path(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def make_chest_phantom(
    size: tuple[int, int, int] = (128, 112, 24), *, with_lesion: bool = True, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]:
    """Return a chest CT volume in Hounsfield units, the mask of its lesion, and its affine.

    Right and left, front and back, feet and head differ, so a rotated or mirrored image is visible.

    Args:
        size: number of columns, rows and axial slices; the spacing is 2 x 2 x 5 mm.
        with_lesion: whether there is a nodule in the left lung.
        seed: seed of the noise.

    Returns:
        The volume, float32 (X, Y, Z), the mask, uint8 (X, Y, Z) with values 0 and 1, and the (4, 4) affine (RAS, mm).
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
    affine[:3, 3] = -affine[:3, :3] @ (np.asarray(size) - 1) / 2  # the origin is the center of the volume
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
    """Write a volume as a DICOM series of CT images, one file per slice, and return the folder.

    As in many exports, file names and numbers do not follow the order of the slices. Patient attributes are empty.

    Args:
        folder: output folder, created if absent.
        volume: (X, Y, Z) values in Hounsfield units.
        affine: (4, 4) voxel to world matrix (RAS, mm) with perpendicular axes.
        modality: modality in the DICOM header.
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
    return [DSfloat(float(value), auto_format=True) for value in values]  # DICOM allows 16 characters


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
        setattr(header, keyword, None)  # type 2 attributes: present but empty
    header.PatientPosition = "HFS"  # head first, supine
    header.Modality, header.SeriesNumber, header.ImageType = modality, 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.WindowCenter, header.WindowWidth = -600, 1500
    return header


def write_sample_study(folder: str | os.PathLike[str]) -> str:
    """Write the chest phantom to a folder and return its path.

    ``ct/`` is a DICOM series. ``chest.nii.gz`` has the same voxels with axes in another order and direction.
    """
    folder = Path(folder)
    volume, _, affine = make_chest_phantom()
    write_sample_series(folder / "ct", volume, affine)
    # Axes of the NIfTI file: from back to front, then from right to left.
    turned = affine @ np.array([[0, 1, 0, 0], [-1, 0, 0, volume.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_volume(folder / "chest.nii.gz", np.ascontiguousarray(volume[:, ::-1].transpose(1, 0, 2)), turned)
    return str(folder)
