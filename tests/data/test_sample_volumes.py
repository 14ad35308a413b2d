"""The chest phantom in other programs: its position, its voxels, and no patient name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from scipy.ndimage import center_of_mass, label, map_coordinates

from mrad_med import make_chest_phantom, read_image, write_sample_study
from mrad_med.data import write_sample_series

SIZE = (40, 36, 8)
ROUNDED = 0.501  # to whole numbers, of float32
OBLIQUE = np.array([[0.8, -0.48, 0.36], [0.6, 0.64, -0.48], [0.0, 0.6, 0.8]])  # a rotation


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return Path(write_sample_study(tmp_path_factory.mktemp("phantom") / "study"))


def read_series(folder: Path) -> list[pydicom.Dataset]:
    """Return slices from feet to head."""
    slices = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(slices, key=lambda item: item.ImagePositionPatient[2])


def hounsfield(item: pydicom.Dataset) -> np.ndarray:
    return item.pixel_array * float(item.RescaleSlope) + float(item.RescaleIntercept)


def stored(volume: np.ndarray) -> np.ndarray:
    """Return a volume as stored in 12 bits that start at -1024."""
    return volume.clip(-1024, 4095 - 1024)


def world(affine: np.ndarray, index) -> np.ndarray:
    return (affine @ [*index, 1])[:3]


def in_the_left_lung(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the voxels of the patient's left that are connected with air inside of the body, without its wall."""
    x = affine[0, :3] @ np.indices(volume.shape).reshape(3, -1) + affine[0, 3]
    dark, _ = label(volume < -500)
    outside = {dark[0, 0, 0], dark[-1, -1, -1], 0}
    lungs = ~np.isin(dark, list(outside))
    return lungs & (x.reshape(volume.shape) < 0)


# the volume


def test_lesion_is_dense_tissue_in_the_left_lung():
    volume, mask, affine = make_chest_phantom()
    assert (volume.dtype, mask.dtype, volume.shape) == (np.float32, np.uint8, mask.shape)
    assert set(np.unique(mask)) == {0, 1}
    assert label(mask)[1] == 1
    lesion, lung = np.argwhere(mask), np.argwhere(in_the_left_lung(volume, affine))
    assert (lung.min(0) < lesion.min(0)).all()
    assert (lesion.max(0) < lung.max(0)).all()
    assert all(world(affine, index)[0] < 0 for index in lesion)  # RAS: the patient's left is negative
    # The edge of the nodule is as unsharp as a scanner's; a voxel within is nodule and noise (deviation 12).
    inside = np.zeros_like(mask)
    inside[2:-2, 2:-2] = np.min([np.roll(mask, step, axis)[2:-2, 2:-2] for step in (-2, 0, 2) for axis in (0, 1)], 0)
    assert inside.sum() > 50
    assert abs(volume[inside > 0].mean() - 30) < 5
    assert np.abs(volume[inside > 0] - 30).max() < 80
    assert (volume[mask > 0] > -600).all()


@pytest.mark.parametrize(
    ("place", "expected", "mirrored"),
    [
        ((43, 9, -52), 60, 40),  # the liver, and other tissue beside it
        ((-26, 27, -6), 40, -850),  # the heart, and the right lung
        ((-49, -11, 24), 30, -850),  # the lesion, and the right lung
        ((51, 7, 15), -850, -850),
        ((0, -58, 0), 700, 700),  # the spine
        ((0, 58, 0), 40, 40),  # the breast
        ((120, 105, 50), -1000, -1000),
    ],
    ids=["liver", "heart", "lesion", "lung", "spine", "front", "air"],
)
def test_organs_are_where_a_patient_has_them(place, expected, mirrored):
    """Positions are in mm to the patient's right, front and head; Hounsfield units are those of the organs."""
    volume, _, affine = make_chest_phantom()
    for sign, value in ((1, expected), (-1, mirrored)):
        x, y, z = np.round(world(np.linalg.inv(affine), np.multiply(place, (sign, 1, 1)))).astype(int)
        block = volume[x - 2 : x + 3, y - 2 : y + 3, z - 1 : z + 2]
        assert abs(block.mean() - value) < 8  # a mean of noise, whose deviation is 12


def test_world_begins_in_the_middle_and_steps_are_millimeters():
    _, _, affine = make_chest_phantom(SIZE)
    np.testing.assert_allclose(affine[:3, :3], np.diag([-2.0, -2.0, 5.0]))
    np.testing.assert_allclose(world(affine, (np.array(SIZE) - 1) / 2), 0, atol=1e-12)


def test_without_lesion_the_rest_is_the_same():
    ill, mask, affine = make_chest_phantom(SIZE)
    well, nothing, same = make_chest_phantom(SIZE, with_lesion=False)
    assert not nothing.any()
    np.testing.assert_array_equal(affine, same)
    changed = np.abs(ill - well) > 1e-3
    assert changed[mask > 0].all()
    assert (ill - well)[mask > 0].min() > 100
    assert changed.any(axis=(0, 1)).tolist() == mask.any(axis=(0, 1)).tolist()


def test_noise_is_of_its_seed():
    first, again, other = (make_chest_phantom(SIZE, seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    difference = other - first
    assert abs(difference.std() - 12 * np.sqrt(2)) < 0.5  # of two independent volumes
    assert abs(difference.mean()) < 2


# as DICOM and NIfTI


def test_series_by_pydicom_is_the_volume(study):
    volume, _, affine = make_chest_phantom()
    slices = read_series(study / "ct")
    assert len(slices) == volume.shape[2]
    for index, item in enumerate(slices):
        np.testing.assert_allclose(hounsfield(item).T, stored(volume[..., index]), atol=ROUNDED)
        left, back, up = item.ImagePositionPatient  # DICOM counts to the left and to the back
        np.testing.assert_allclose([-left, -back, up], world(affine, (0, 0, index)), atol=1e-6)
        assert item.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
        assert item.PixelSpacing == [2, 2]
        assert item.SliceThickness == 5


def test_order_of_files_and_numbers_is_not_that_of_the_slices(study):
    slices = read_series(study / "ct")
    numbers = [item.InstanceNumber for item in slices]
    assert sorted(numbers) == list(range(1, len(slices) + 1))
    assert numbers not in (sorted(numbers), sorted(numbers, reverse=True))
    assert {Path(item.filename).name for item in slices} == {f"IM{number:04d}" for number in numbers}
    assert all(Path(item.filename).name == f"IM{item.InstanceNumber:04d}" for item in slices)


def test_slices_are_one_series_of_nobody(study):
    slices = read_series(study / "ct")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({item[keyword].value for item in slices}) == 1
    assert len({item.SOPInstanceUID for item in slices}) == len(slices)
    study_uid, series_uid, space = (
        slices[0][keyword].value for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    )
    assert len({study_uid, series_uid, space}) == 3
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber"):
        assert not slices[0][keyword].value


def test_another_modality_is_written(tmp_path):
    volume, _, affine = make_chest_phantom(SIZE)
    folder = Path(write_sample_series(tmp_path / "new" / "pt", volume, affine, modality="PT"))
    assert folder == tmp_path / "new" / "pt"
    assert {item.Modality for item in read_series(folder)} == {"PT"}


def test_values_beyond_twelve_bits_are_cut_and_not_wrapped(tmp_path):
    volume = np.zeros(SIZE, np.float32)
    volume[0], volume[1] = -2000, 5000
    write_sample_series(tmp_path, volume, np.diag([-2.0, -2.0, 5.0, 1.0]))
    values = hounsfield(read_series(tmp_path)[0]).T
    assert set(np.unique(values[0])) == {-1024}
    assert set(np.unique(values[1])) == {4095 - 1024}
    assert set(np.unique(values[2:])) == {0}


def test_oblique_volume_keeps_its_place(tmp_path):
    volume, _, _ = make_chest_phantom(SIZE)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = OBLIQUE @ np.diag([1.5, 2.0, 4.0]), (7, -30, 11)
    image = read_image(sorted(map(str, Path(write_sample_series(tmp_path, volume, affine)).iterdir())))
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image[0], stored(volume), atol=ROUNDED)


def test_nifti_by_nibabel_has_the_values_of_the_series_at_the_same_places(study):
    nifti = nibabel.load(study / "chest.nii.gz")
    slices = read_series(study / "ct")
    assert nibabel.aff2axcodes(nifti.affine) == ("A", "L", "S")  # other axes, so that a mixed up one shows
    random = np.random.RandomState(0)
    rows, columns = slices[0].Rows, slices[0].Columns
    for index, row, column in zip(*(random.randint(0, n, 300) for n in (len(slices), rows, columns)), strict=True):
        item = slices[index]
        along, down = np.reshape(item.ImageOrientationPatient, (2, 3))
        place = np.asarray(item.ImagePositionPatient) + column * item.PixelSpacing[1] * along
        place += row * item.PixelSpacing[0] * down
        voxel = world(np.linalg.inv(nifti.affine), place * [-1, -1, 1])
        (value,) = map_coordinates(nifti.get_fdata(), voxel[:, None], order=0)
        np.testing.assert_allclose(voxel, np.round(voxel), atol=1e-4)
        assert abs(stored(value) - hounsfield(item)[row, column]) <= ROUNDED


def test_series_and_nifti_hold_the_same_voxels(study):
    nifti = nibabel.load(study / "chest.nii.gz").get_fdata()
    assert min(hounsfield(item).min() for item in read_series(study / "ct")) == pytest.approx(nifti.min(), abs=ROUNDED)


def test_lesion_is_at_one_place_of_the_world_whichever_file_is_read(study):
    _, mask, affine = make_chest_phantom()
    centroid = world(affine, center_of_mass(mask))
    for source in (sorted(map(str, (study / "ct").iterdir())), study / "chest.nii.gz"):
        image = read_image(source)
        volume, own = image[0].numpy(), image.affine.numpy()
        places = np.einsum("ij,j...->i...", own[:3, :3], np.indices(volume.shape)) + own[:3, 3][:, None, None, None]
        near = np.linalg.norm(places - centroid[:, None, None, None], axis=0) < 40
        # Around the nodule there is lung alone; what is dense within two lengths of it is the nodule.
        found, _ = label(near & (volume > -500))
        own_index = np.round(np.linalg.inv(own) @ [*centroid, 1])[:3].astype(int)
        nodule = found == found[tuple(own_index)]
        assert found[tuple(own_index)] > 0
        assert abs(int(nodule.sum()) - int(mask.sum())) < 0.2 * mask.sum()
        np.testing.assert_allclose(world(own, center_of_mass(nodule)), centroid, atol=1.0)


# checks by another program

needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")


def errors_of(path: Path) -> list[str]:
    answer = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert "CTImage" in answer
    return [line for line in answer.splitlines() if line.startswith(("Error", "Abort"))]


@needs_dciodvfy
def test_dciodvfy_finds_no_error(study):
    assert errors_of(study / "ct" / "IM0001") == []


@needs_dciodvfy
def test_dciodvfy_finds_no_number_too_long(tmp_path):
    affine = np.diag([-1 / 3, -0.7, 10 / 3, 1])
    affine[:3, 3] = 100 / 3, 200 / 7, -1 / 9
    write_sample_series(tmp_path, make_chest_phantom(SIZE)[0], affine)
    assert [error for error in errors_of(tmp_path / "IM0001") if "Length invalid" in error] == []
