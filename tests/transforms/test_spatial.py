"""Upright slices of volumes in any storage order; nibabel is the reference of directions."""

from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.series import read_series
from mrad_med.transforms.spatial import PLANES, ToDisplayOrientation, ToDisplayOrientationd, slice_layout
from tests.small_dicom import write_series

SHAPE = (17, 18, 19)  # to the right, front and head
CODES = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]  # all 48
WORLD = {"sagittal": "RL", "coronal": "AP", "axial": "SI"}  # which directions the slices of a plane may follow
COUNTED = {"sagittal": "L", "coronal": "A", "axial": "S"}  # and which they do in upright slices


def stored(values: np.ndarray, codes: str, affine: np.ndarray | None = None) -> MetaTensor:
    """A volume (X, Y, Z), which runs to the right, front and head, stored along other axes."""
    volume = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    volume = volume.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(codes))))
    return MetaTensor(np.ascontiguousarray(volume.dataobj)[None], affine=torch.from_numpy(volume.affine))


def numbered(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def upright(canonical: np.ndarray, plane: str) -> np.ndarray:
    """(rows, columns, slices) of a volume in nibabel's canonical axes: right, front and head."""
    if plane == "axial":  # rows to the back, columns to the left, slices to the head
        return np.transpose(canonical[::-1, ::-1], (1, 0, 2))
    if plane == "coronal":  # rows to the feet, columns to the left, slices to the front
        return np.transpose(canonical[::-1, :, ::-1], (2, 0, 1))
    return np.transpose(canonical[::-1, ::-1, ::-1], (2, 1, 0))  # rows to the feet, columns to the back, slices left


def turned(degrees: float, about: int) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    first, second = [axis for axis in range(3) if axis != about]
    matrix[[first, second], [first, second]] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def test_there_are_48_ways_to_store_a_volume():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("codes", CODES)
def test_slices_are_upright_however_the_volume_is_stored(codes, plane):
    image = stored(numbered(), codes)
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.numpy()[0], image.affine.numpy()))
    step = ToDisplayOrientation(plane)
    shown = step(image)
    np.testing.assert_array_equal(shown.numpy()[0], upright(np.asarray(canonical.dataobj), plane))
    restored = step.inverse(shown)
    np.testing.assert_array_equal(restored.numpy(), image.numpy())
    np.testing.assert_allclose(restored.affine, image.affine, atol=1e-6)
    assert nibabel.aff2axcodes(restored.affine.numpy()) == tuple(codes)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("codes", CODES)
def test_layout_states_where_slices_are_in_the_stored_array(codes, plane):
    image = stored(numbered(), codes)
    layout = slice_layout(image.affine.numpy(), plane)
    (axis,) = [index for index, code in enumerate(codes) if code in WORLD[plane]]
    assert layout == (plane, axis, codes[axis] != COUNTED[plane])
    shown = ToDisplayOrientation(plane)(image).numpy()[0]
    slices = np.moveaxis(image.numpy()[0], layout.axis, -1)
    first = slices[..., -1 if layout.is_flipped else 0]
    assert set(shown[..., 0].ravel()) == set(first.ravel())


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("about", range(3))
@pytest.mark.parametrize("degrees", [-40, 20])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_oblique_volume_is_cut_along_its_own_nearest_axes(codes, degrees, about, plane):
    image = stored(numbered(), codes, turned(degrees, about))
    step = ToDisplayOrientation(plane)
    shown = step(image)
    np.testing.assert_array_equal(shown.numpy()[0], upright(numbered(), plane))
    restored = step.inverse(shown)
    np.testing.assert_array_equal(restored.numpy(), image.numpy())
    np.testing.assert_allclose(restored.affine, image.affine, atol=1e-6)


def test_directions_are_those_of_radiologists():
    """Spots at known sides of a patient: where each is seen, in which slice."""
    volume = np.zeros((30, 40, 50), np.float32)
    spots = {"right": (27, 20, 25), "left": (2, 20, 25), "front": (15, 37, 25), "back": (15, 2, 25)}
    spots |= {"head": (15, 20, 47), "feet": (15, 20, 2)}
    for value, place in enumerate(spots.values(), 1):
        volume[place] = value
    image = stored(volume, "PIR")

    def seen(plane: str) -> dict[str, tuple[int, ...]]:
        shown = ToDisplayOrientation(plane)(image).numpy()[0]
        return {name: tuple(np.argwhere(shown == value)[0].tolist()) for value, name in enumerate(spots, 1)}

    assert seen("axial") == {  # (row, column, slice) of (40, 30, 50)
        "right": (19, 2, 25),
        "left": (19, 27, 25),
        "front": (2, 14, 25),
        "back": (37, 14, 25),
        "head": (19, 14, 47),
        "feet": (19, 14, 2),
    }
    assert seen("coronal") == {  # of (50, 30, 40)
        "right": (24, 2, 20),
        "left": (24, 27, 20),
        "front": (24, 14, 37),
        "back": (24, 14, 2),
        "head": (2, 14, 20),
        "feet": (47, 14, 20),
    }
    assert seen("sagittal") == {  # of (50, 40, 30)
        "right": (24, 19, 2),
        "left": (24, 19, 27),
        "front": (24, 2, 14),
        "back": (24, 37, 14),
        "head": (2, 19, 14),
        "feet": (47, 19, 14),
    }


@pytest.mark.parametrize(
    ("plane", "orientation", "step"),
    [
        ("axial", (1, 0, 0, 0, 1, 0), (0, 0, 3)),
        ("coronal", (1, 0, 0, 0, 0, -1), (0, -3, 0)),
        ("sagittal", (0, 1, 0, 0, 0, -1), (3, 0, 0)),
    ],
)
def test_slices_that_a_scanner_stores_upright_are_shown_as_they_are(tmp_path, plane, orientation, step):
    values = np.random.RandomState(0).randint(0, 1000, (20, 24, 5))
    paths = write_series(tmp_path, values, orientation=orientation, step=step, RescaleIntercept="0")
    shown = ToDisplayOrientation()(read_series(paths))
    np.testing.assert_array_equal(shown.numpy()[0], values)
    assert slice_layout(read_series(paths).affine.numpy()).plane == plane


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "ILP"])
@pytest.mark.parametrize(
    ("spacing", "plane"),  # to the right, front and head
    [
        ((1, 1, 1), "axial"),
        ((0.5, 0.5, 5), "axial"),
        ((5, 0.5, 0.5), "sagittal"),
        ((0.5, 5, 0.5), "coronal"),
        ((0.5, 1.5, 1.0), "coronal"),  # 1.5 times the next
        ((0.5, 1.49, 1.0), "axial"),
        ((3, 3, 1), "axial"),  # two are wide: of neither plane
        ((1.4, 1, 1), "axial"),
    ],
)
def test_plane_is_that_of_the_acquisition_where_the_spacing_shows_it(codes, spacing, plane):
    image = stored(numbered(), codes, turned(10, 0) @ np.diag([*spacing, 1.0]))
    assert slice_layout(image.affine.numpy()) == slice_layout(image.affine.numpy(), plane)
    np.testing.assert_array_equal(ToDisplayOrientation()(image).numpy()[0], upright(numbered(), plane))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_is_turned_without_regard_to_its_affine(channels):
    values = torch.arange(channels * 20 * 30.0).reshape(channels, 20, 30)
    image = MetaTensor(values, affine=torch.diag(torch.tensor([-1.0, 2, 3, 1])))
    step = ToDisplayOrientation("sagittal")
    shown = step(image)
    assert torch.equal(shown.as_tensor(), values.transpose(1, 2))
    assert shown.is_contiguous()
    restored = step.inverse(shown)
    assert torch.equal(restored.as_tensor(), values)
    assert torch.equal(restored.affine, image.affine)


@pytest.mark.parametrize(("plane", "size"), [("axial", "40 x 5"), ("coronal", ""), ("sagittal", "5 x 30")])
def test_planes_whose_slices_have_too_few_pixels_are_refused(plane, size):
    image = stored(numbered((40, 5, 30)), "SAR")
    if not size:
        assert ToDisplayOrientation(plane)(image).shape == (1, 30, 40, 5)
        return
    with pytest.raises(
        ImageFileError,
        match=f"its {plane} slices have {size} pixels, but at least 16 x 16 are needed: choose another plane",
    ):
        ToDisplayOrientation(plane)(image)


def test_least_slices_are_shown():
    assert ToDisplayOrientation("axial")(stored(numbered((16, 16, 1)), "RAS")).shape == (1, 16, 16, 1)


@pytest.mark.parametrize("plane", ["", "Axial", "transverse", "LPS"])
def test_unknown_plane_is_refused(plane):
    with pytest.raises(ValueError, match=f"plane must be one of auto, axial, coronal, sagittal; got '{plane}'"):
        ToDisplayOrientation(plane)


@pytest.mark.parametrize(
    "affine",
    [
        np.full((4, 4), np.nan),
        np.diag([1.0, np.inf, 1.0, 1.0]),
        np.diag([0.0, 0.0, 0.0, 1.0]),
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.where(np.eye(4) > 0, 1.0, [[0, 0, 0, np.nan]] * 4),
    ],
)
def test_affine_without_directions_is_refused(affine):
    message = "the affine in its header does not define independent axes; export it again"
    with pytest.raises(ImageFileError, match=message):
        slice_layout(affine)
    with pytest.raises(ImageFileError, match=message):
        ToDisplayOrientation()(MetaTensor(torch.zeros(1, 20, 20, 20), affine=torch.from_numpy(affine)))


def test_dictionary_version_turns_each_key_and_back():
    image = stored(numbered(), "ASR")
    step = ToDisplayOrientationd(["image", "mask"], plane="coronal")
    shown = step({"image": image, "mask": image * 2, "case_id": "a"})
    assert torch.equal(shown["image"], ToDisplayOrientation("coronal")(image))
    assert torch.equal(shown["mask"], shown["image"] * 2)
    restored = step.inverse(shown)
    assert torch.equal(restored["image"], image)
    np.testing.assert_array_equal(io_orientation(restored["mask"].affine.numpy()), io_orientation(image.affine.numpy()))
