"""Transforms: upright images, bytes, sizes equal to Pillow's, and maps on the grid of the file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image

from mrad_med import build_preprocessing
from mrad_med.errors import ImageFileError
from mrad_med.transforms.intensity import ScaleToBytes, ScaleToBytesd, ToRGB, ToRGBd
from mrad_med.transforms.load import LoadMaskd, LoadMedicalImage, LoadMedicalImaged
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.transforms.spatial import (
    ResizeBicubic,
    ResizeBicubicd,
    ResizeMask,
    ResizeMaskd,
    ToDisplayOrientation,
    ToDisplayOrientationd,
)
from mrad_med.types import BackboneCard

ROWS, COLUMNS, SLICES = 40, 60, 7
CARD = BackboneCard(
    name="test",
    sha256="0" * 64,
    width=32,
    embed_dim=24,
    patch_size=14,
    native_size=56,
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.2, 0.1),
)
TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])  # about 16 degrees


def corner_pixels() -> np.ndarray:
    """A dark image, not square, with a different color in each of three corners."""
    pixels = np.random.RandomState(0).randint(0, 60, (ROWS, COLUMNS, 3)).astype(np.uint8)
    pixels[:8, :12] = (250, 20, 20)
    pixels[:8, -12:] = (20, 250, 20)
    pixels[-8:, :12] = (20, 20, 250)
    return pixels


def channels_first(pixels: np.ndarray) -> MetaTensor:
    """(H, W[, 3]) as (C, H, W)."""
    return MetaTensor(torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy()))


def write_picture(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def write_volume(path: Path, values: np.ndarray, *, codes: str, spacing=(1.0, 1.0, 1.0), turn=None) -> np.ndarray:
    """Store RAS+ values with another order of axes, and return them as stored."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
    affine[:3, 3] = (-30, 20, 5)
    volume = nibabel.Nifti1Image(values, affine)
    stored = volume.as_reoriented(ornt_transform(nibabel.io_orientation(affine), axcodes2ornt(codes)))
    nibabel.save(stored, path)
    assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == codes
    return np.asarray(stored.dataobj)


def center_of_mass(values: np.ndarray) -> np.ndarray:
    weights = np.clip(values - np.median(values), 0, None)
    return np.array([(weights * grid).sum() / weights.sum() for grid in np.indices(values.shape)])


# orientation


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_photograph_stands_upright(tmp_path, name):
    path = write_picture(tmp_path / name, corner_pixels())
    upright = ToDisplayOrientation()(LoadMedicalImage()(path))
    with Image.open(path) as shown:
        np.testing.assert_array_equal(upright.numpy().transpose(1, 2, 0), np.asarray(shown))


def test_upright_photograph_turns_back_into_the_file_order(tmp_path):
    loaded = LoadMedicalImage()(write_picture(tmp_path / "a.png", corner_pixels()))
    step = ToDisplayOrientation()
    restored = step.inverse(step(loaded))
    assert torch.equal(restored, loaded)
    assert restored.applied_operations == []


def test_input_of_a_transform_is_left_alone(tmp_path):
    loaded = LoadMedicalImage()(write_picture(tmp_path / "a.png", corner_pixels()))
    before = loaded.clone()
    for step in (ToDisplayOrientation(), ScaleToBytes(), ToRGB(), ResizeBicubic(28)):
        step(loaded)
        assert torch.equal(loaded, before)
        assert loaded.applied_operations == []


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "ASR", "PIL", "SAR", "IRP"])
def test_axial_slice_has_the_radiological_orientation(tmp_path, codes):
    quadrants = np.zeros((32, 40, 18), np.float32)  # x to the right, y to the front, z up
    quadrants[16:, 20:] = 30  # patient's right, anterior
    quadrants[:16, 20:] = 20  # left, anterior
    quadrants[16:, :20] = 10  # right, posterior
    quadrants[:, :, -1] = 15  # the slice on top
    write_volume(tmp_path / "volume.nii.gz", quadrants, codes=codes)
    shown = ImageView().show(tmp_path / "volume.nii.gz")
    assert shown.shape == (40, 32, 18, 3)
    for index in range(17):
        axial = shown[:, :, index, 0]
        assert [np.unique(part).tolist() for part in (axial[:20, :16], axial[:20, 16:])] == [[255], [170]]
        assert [np.unique(part).tolist() for part in (axial[20:, :16], axial[20:, 16:])] == [[85], [0]]
    assert np.unique(shown[:, :, -1]).tolist() == [128]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "SAR"])
@pytest.mark.parametrize("turn", [None, TURN])
def test_upright_volume_turns_back_into_the_file_order(tmp_path, codes, turn):
    values = np.random.RandomState(1).rand(20, 24, 18).astype(np.float32)
    stored = write_volume(tmp_path / "volume.nii", values, codes=codes, turn=turn)
    loaded = LoadMedicalImage()(tmp_path / "volume.nii")
    step = ToDisplayOrientation()
    upright = step(loaded)
    assert upright.shape == (1, 24, 20, 18)
    restored = step.inverse(upright)
    np.testing.assert_array_equal(restored.numpy()[0], stored)
    np.testing.assert_allclose(restored.affine, loaded.affine, atol=1e-6)


# intensities


def test_bytes_stay_as_they_are():
    image = channels_first(corner_pixels())
    assert torch.equal(ScaleToBytes()(image), image)


def test_deep_image_spans_its_percentiles():
    ramp = MetaTensor(torch.arange(1001.0).reshape(1, 7, 143))  # percentiles 0.5 and 99.5 are 5 and 995
    scaled = ScaleToBytes()(ramp).flatten()
    assert scaled.dtype == torch.uint8
    expected = {0: 0, 5: 0, 203: 51, 401: 102, 599: 153, 797: 204, 995: 255, 1000: 255}  # (v - 5) / 990 * 255
    assert {value: int(scaled[value]) for value in expected} == expected


def test_other_percentiles_can_be_given():
    image = MetaTensor(torch.tensor([[[-10.0, 0.0, 41.0, 92.0]]]))
    assert ScaleToBytes(percentiles=(0, 100))(image).flatten().tolist() == [0, 25, 128, 255]


@pytest.mark.parametrize("shift", [-5000.0, 1e6])
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_units_of_a_deep_image_do_not_matter(shift, factor):
    values = torch.arange(1001.0).reshape(1, 7, 143)
    assert torch.equal(ScaleToBytes()(MetaTensor(values * factor + shift)), ScaleToBytes()(MetaTensor(values)))


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 3e9])
def test_constant_deep_image_becomes_black(value):
    scaled = ScaleToBytes()(MetaTensor(torch.full((1, 20, 30), value)))
    assert scaled.dtype == torch.uint8
    assert scaled.unique().tolist() == [0]


def test_values_that_are_not_finite_become_black_or_white():
    image = torch.arange(1001.0).reshape(1, 7, 143)
    image[0, 3, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    scaled = ScaleToBytes()(MetaTensor(image))
    assert scaled[0, 3, :3].tolist() == [0, 255, 0]
    assert 120 < int(scaled[0, 3, 71]) < 135  # value 500


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_image_without_finite_value_is_refused(value):
    with pytest.raises(ImageFileError, match=r"no finite value .*; export it again"):
        ScaleToBytes()(MetaTensor(torch.full((1, 20, 30), value)))


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 4, 5, 6)])
def test_gray_is_repeated_in_three_channels(shape):
    image = MetaTensor(torch.rand(shape))
    rgb = ToRGB()(image)
    assert rgb.shape == (3, *shape[1:])
    assert all(torch.equal(channel, image[0]) for channel in rgb)


def test_colors_stay():
    image = channels_first(corner_pixels())
    assert torch.equal(ToRGB()(image), image)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused(channels):
    with pytest.raises(ImageFileError, match=rf"{channels} channels; gray \(1\) and RGB \(3\)"):
        ToRGB()(MetaTensor(torch.zeros(channels, 4, 5)))


# sizes

SIZES = [(28, 28), (20, 84), (56, 42), (120, 200), (ROWS, COLUMNS)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [corner_pixels(), corner_pixels()[..., 0]], ids=["color", "gray"])
def test_resized_image_equals_pillows(size, pixels):
    resized = ResizeBicubic(size)(channels_first(pixels))
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resized.numpy(), channels_first(expected).numpy())


def test_one_number_makes_a_square():
    assert ResizeBicubic(28)(channels_first(corner_pixels())).shape == (3, 28, 28)
    assert ResizeMask(28)(MetaTensor(torch.zeros(1, 40, 60))).shape == (1, 28, 28)


@pytest.mark.parametrize("channels", [1, 3])
def test_slices_of_a_volume_are_resized_one_by_one(channels):
    volume = MetaTensor(torch.randint(0, 256, (channels, ROWS, COLUMNS, SLICES), dtype=torch.uint8))
    step = ResizeBicubic((28, 42))
    resized = step(volume)
    assert resized.shape == (channels, 28, 42, SLICES)
    assert all(torch.equal(resized[..., i], step(volume[..., i].contiguous())) for i in range(SLICES))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(3, ROWS, COLUMNS), (3, ROWS, COLUMNS, SLICES)], ids=["image", "volume"])
def test_map_returns_to_the_size_before(size, shape):
    step = ResizeBicubic(size)
    resized = step(MetaTensor(torch.zeros(shape, dtype=torch.uint8)))
    anomaly_map = MetaTensor(torch.full((1, *resized.shape[1:]), 0.25)).copy_meta_from(resized)
    restored = step.inverse(anomaly_map)
    assert restored.shape == (1, *shape[1:])
    np.testing.assert_allclose(restored, 0.25, rtol=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (20, 84), (56, 56), (120, 200)])
@pytest.mark.parametrize("place", [(8, 11), (30, 14), (12, 50), (31, 47)])
def test_bright_spot_comes_back_where_it_was(size, place):
    row, column = place
    pixels = np.zeros((ROWS, COLUMNS), np.uint8)
    pixels[row - 2 : row + 3, column - 2 : column + 3] = 255
    step = ResizeBicubic(size)
    resized = step(channels_first(pixels))
    restored = step.inverse(resized.float())
    np.testing.assert_allclose(center_of_mass(restored.numpy()[0]), place, atol=1)
    np.testing.assert_allclose(np.unravel_index(int(restored.argmax()), pixels.shape), place, atol=2.5)


@pytest.mark.parametrize("size", SIZES)
def test_resized_mask_is_pillows(size):
    mask = (corner_pixels()[..., 1] > 100) | (np.indices((ROWS, COLUMNS)).sum(0) % 37 < 9)
    expected = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BILINEAR)
    resized = ResizeMask(size)(channels_first(mask.astype(np.float32)))
    assert resized.dtype == torch.float32
    np.testing.assert_array_equal(resized.numpy()[0], np.asarray(expected) > 127)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_mask_stays_constant(value):
    resized = ResizeMask((28, 42))(MetaTensor(torch.full((1, ROWS, COLUMNS, SLICES), value)))
    assert resized.shape == (1, 28, 42, SLICES)
    assert resized.unique().tolist() == [value]


# array and dictionary versions


@pytest.mark.parametrize(
    ("array_version", "dictionary_version"),
    [
        (ToDisplayOrientation(), ToDisplayOrientationd("image")),
        (ScaleToBytes((10, 90)), ScaleToBytesd("image", percentiles=(10, 90))),
        (ToRGB(), ToRGBd("image")),
    ],
    ids=lambda step: type(step).__name__,
)
@pytest.mark.parametrize("shape", [(1, 18, 20), (1, 18, 20, 5)], ids=["image", "volume"])
def test_dictionary_version_does_what_the_array_version_does(array_version, dictionary_version, shape):
    image = MetaTensor(torch.rand(shape))
    result = dictionary_version({"image": image, "case_id": "a"})
    assert torch.equal(result["image"], array_version(image))
    assert result["case_id"] == "a"


@pytest.mark.parametrize(
    ("array_version", "dictionary_version"),
    [(ResizeBicubic((28, 42)), ResizeBicubicd("image", (28, 42))), (ResizeMask(28), ResizeMaskd("image", 28))],
    ids=lambda step: type(step).__name__,
)
def test_dictionary_version_resizes_as_the_array_version_does(array_version, dictionary_version):
    image = channels_first((corner_pixels()[..., 0] > 100).astype(np.uint8))
    assert torch.equal(dictionary_version({"image": image})["image"], array_version(image))


@pytest.mark.parametrize(
    "step", [ToDisplayOrientationd(["image", "mask"]), ResizeBicubicd(["image", "mask"], (28, 42))]
)
def test_dictionary_version_is_undone_for_every_key(step):
    data = {"image": channels_first(corner_pixels()), "mask": channels_first(corner_pixels()[..., 0])}
    restored = step.inverse(step(data))
    assert {key: value.shape for key, value in restored.items()} == {
        "image": (3, ROWS, COLUMNS),
        "mask": (1, ROWS, COLUMNS),
    }


def test_dictionary_version_loads_what_the_array_version_loads(tmp_path):
    path = write_picture(tmp_path / "a.png", corner_pixels())
    assert torch.equal(LoadMedicalImaged("image")({"image": path})["image"], LoadMedicalImage()(path))


@pytest.mark.parametrize("form", ["array", "dictionary"])
def test_both_versions_refuse_images_above_the_limit(tmp_path, form):
    path = write_picture(tmp_path / "a.png", corner_pixels())
    load, given = LoadMedicalImage(max_pixels=100), path
    if form == "dictionary":
        load, given = LoadMedicalImaged("image", max_pixels=100), {"image": path}
    with pytest.raises(ImageFileError, match="limit of 100"):
        load(given)


@pytest.mark.parametrize("make", [LoadMedicalImaged, ToDisplayOrientationd, ScaleToBytesd, ToRGBd, ResizeBicubicd])
def test_missing_key_is_an_error_unless_allowed(make):
    with pytest.raises(KeyError, match="image"):
        make("image")({"case_id": "a"})
    assert make("image", allow_missing_keys=True)({"case_id": "a"}) == {"case_id": "a"}


# masks


def blob() -> np.ndarray:
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[5:20, 30:50] = 255
    return mask


def load_mask(tmp_path: Path, mask: Path | None) -> torch.Tensor:
    image = LoadMedicalImage()(write_picture(tmp_path / "image.png", corner_pixels()))
    return LoadMaskd("mask")({"image": image, "mask": mask})["mask"]


def test_mask_is_cut_at_one_half_despite_jpeg(tmp_path):
    path = write_picture(tmp_path / "mask.jpg", blob(), quality=50)
    with Image.open(path) as shown:
        pixels = np.asarray(shown)
    assert len(np.unique(pixels)) > 2
    mask = load_mask(tmp_path, path)
    assert mask.dtype == torch.float32
    np.testing.assert_array_equal(mask.numpy()[0].T, pixels > 127)


@pytest.mark.parametrize(
    "pixels",
    [blob(), blob() // 255, np.dstack([blob()] * 3), np.where(blob() > 0, 65535, 0).astype(np.uint16), blob() > 0],
    ids=["bytes", "zeros and ones", "color", "16 bits", "1 bit"],
)
def test_mask_may_be_stored_in_many_ways(tmp_path, pixels):
    mask = load_mask(tmp_path, write_picture(tmp_path / "mask.png", pixels))
    assert mask.shape == (1, COLUMNS, ROWS)  # indexed like its image
    np.testing.assert_array_equal(mask.numpy()[0].T, blob() > 0)


def test_black_mask_is_empty(tmp_path):
    assert load_mask(tmp_path, write_picture(tmp_path / "mask.png", blob() * 0)).sum() == 0


@pytest.mark.parametrize("keys", [{}, {"mask": None}])
def test_no_mask_means_nothing_is_anomalous(tmp_path, keys):
    image = LoadMedicalImage()(write_picture(tmp_path / "image.png", corner_pixels()))
    mask = LoadMaskd("mask")({"image": image, **keys})["mask"]
    assert mask.shape == (1, COLUMNS, ROWS)
    assert mask.dtype == torch.float32
    assert mask.unique().tolist() == [0]


def test_threshold_of_masks_can_be_moved(tmp_path):
    image = LoadMedicalImage()(write_picture(tmp_path / "image.png", corner_pixels()))
    path = write_picture(tmp_path / "mask.png", np.where(blob() > 0, 100, 20).astype(np.uint8))
    areas = [LoadMaskd("mask", threshold=cut)({"image": image, "mask": path})["mask"].sum() for cut in (10, 50)]
    assert areas == [ROWS * COLUMNS, 15 * 20]
    with pytest.raises(ImageFileError, match=r"largest value of its mask is 100; .* convert class numbers"):
        LoadMaskd("mask")({"image": image, "mask": path})


def test_threshold_of_the_case_takes_precedence(tmp_path):
    image = LoadMedicalImage()(write_picture(tmp_path / "image.png", corner_pixels()))
    path = write_picture(tmp_path / "mask.png", np.where(blob() > 0, 7, 3).astype(np.uint8))  # class numbers
    areas = [
        LoadMaskd("mask", threshold=200)({"image": image, "mask": path, "mask_threshold": cut})["mask"].sum()
        for cut in (0, 5, 7)
    ]
    assert areas == [ROWS * COLUMNS, 15 * 20, 0]


def test_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"its mask is 40 x 60 and the image 60 x 40: .* same size"):
        load_mask(tmp_path, write_picture(tmp_path / "mask.png", blob().T))


def test_mask_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"not an image")
    with pytest.raises(ImageFileError, match="not an image"):
        load_mask(tmp_path, tmp_path / "mask.png")


# preprocessing


@pytest.mark.parametrize("pixels", [np.full((ROWS, COLUMNS, 3), (51, 102, 204)), np.full((ROWS, COLUMNS), 51)])
def test_values_are_normalized_as_the_card_says(tmp_path, pixels):
    left = COLUMNS // 2
    pixels = pixels.astype(np.uint8)
    pixels[:, :left] = 0  # an image of one value would have nothing to score
    path = write_picture(tmp_path / "halves.png", pixels)
    image = build_preprocessing(CARD, ImageView(image_size=56))({"image": path})["image"]
    assert image.shape == (3, 56, 56)
    assert image.dtype == torch.float32
    for column, color in ((0, pixels[0, 0]), (55, pixels[0, -1])):  # far from the edge in the middle
        expected = (np.broadcast_to(color, 3) / 255 - np.array(CARD.mean)) / np.array(CARD.std)
        expected = np.broadcast_to(expected[:, None], (3, 56))
        np.testing.assert_allclose(image[..., column].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("image_size", [28, 56])
def test_preprocessed_image_equals_pillows_resized_and_normalized(tmp_path, image_size):
    path = write_picture(tmp_path / "a.png", corner_pixels())
    image = build_preprocessing(CARD, ImageView(image_size=image_size))({"image": path})["image"]
    resized = Image.fromarray(corner_pixels()).resize((image_size, image_size), Image.Resampling.BICUBIC)
    expected = (np.asarray(resized) / 255 - np.array(CARD.mean)) / np.array(CARD.std)
    np.testing.assert_allclose(image.numpy().transpose(1, 2, 0), expected, atol=1e-5)


def test_image_and_mask_stay_on_top_of_each_other(tmp_path):
    case = {
        "image": write_picture(tmp_path / "a.png", np.dstack([blob()] * 3)),
        "mask": write_picture(tmp_path / "mask.png", blob()),
        "label": 1,
    }
    data = build_preprocessing(CARD, ImageView(image_size=56), with_mask=True)(case)
    assert (data["image"].shape, data["mask"].shape, data["label"]) == ((3, 56, 56), (1, 56, 56), 1)
    bright = data["image"][0] > (0.5 - CARD.mean[0]) / CARD.std[0]
    assert (bright == data["mask"][0].bool()).float().mean() > 0.99


@pytest.mark.parametrize("with_file", [True, False], ids=["mask", "no mask"])
def test_volumes_with_masks_are_refused(tmp_path, with_file):
    values = np.zeros((20, 30, 16), np.float32)
    write_volume(tmp_path / "volume.nii", values, codes="RAS")
    case = {
        "image": LoadMedicalImage()(tmp_path / "volume.nii"),
        "mask": tmp_path / "volume.nii" if with_file else None,
    }
    with pytest.raises(ImageFileError, match="volumes cannot enter a memory bank or be evaluated; export their slices"):
        LoadMaskd("mask")(case)


def test_mask_of_an_anomalous_case_without_a_file_is_not_known(tmp_path):
    path = write_picture(tmp_path / "a.png", corner_pixels())
    steps = build_preprocessing(CARD, ImageView(image_size=56), with_mask=True)
    assert steps({"image": path, "label": 1, "mask": None})["mask"].isnan().all()
    assert steps({"image": path, "label": 0, "mask": None})["mask"].max() == 0


@pytest.mark.parametrize("image_size", [0, -14, 13, 57])
def test_image_size_that_patches_do_not_fill_is_refused(image_size):
    with pytest.raises(ValueError, match=rf"multiple of the patch size 14, got {image_size}"):
        build_preprocessing(CARD, ImageView(image_size=image_size))


def test_preprocessing_refuses_images_above_the_limit(tmp_path):
    path = write_picture(tmp_path / "a.png", corner_pixels())
    with pytest.raises((ImageFileError, RuntimeError)) as refusal:  # MONAI's Compose wraps what a transform raises
        build_preprocessing(CARD, ImageView(image_size=56, max_pixels=100))({"image": path})
    assert "limit of 100" in f"{refusal.value} {refusal.value.__cause__}"


# there and back again


def invert(preprocessing, data: dict, anomaly_map: torch.Tensor, *, nearest_interp: bool = False) -> MetaTensor:
    carried = MetaTensor(anomaly_map).copy_meta_from(data["image"])
    step = Invertd("anomaly_map", preprocessing, orig_keys="image", nearest_interp=nearest_interp)
    return step({"image": data["image"], "anomaly_map": carried})["anomaly_map"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("place", [(9, 14), (30, 45)])
def test_map_of_a_photograph_matches_the_displayed_image(tmp_path, orientation, place):
    pixels = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    pixels[place[0] - 3 : place[0] + 4, place[1] - 3 : place[1] + 4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_picture(tmp_path / "a.png", pixels, exif=exif)
    shown = ImageView().show(path)
    preprocessing = build_preprocessing(CARD, ImageView(image_size=56))
    data = preprocessing({"image": path})
    restored = invert(preprocessing, data, data["image"][:1].as_tensor())
    assert restored.shape == (1, shown.shape[1], shown.shape[0])
    np.testing.assert_allclose(
        center_of_mass(restored.numpy()[0].T), center_of_mass(shown[..., 0].astype(float)), atol=1
    )


@pytest.mark.parametrize(
    ("codes", "spacing", "turn"),
    [
        ("RAS", (1.0, 1.0, 1.0), None),
        ("LPS", (1.0, 1.0, 1.0), None),
        ("ASR", (1.0, 1.0, 1.0), None),
        ("PIL", (1.0, 1.0, 1.0), None),
        ("SAR", (0.7, 0.7, 5.0), None),
        ("LAS", (0.5, 1.5, 3.0), TURN),
        ("RAS", (1.0, 1.0, 2.0), TURN),
    ],
)
def test_marked_voxel_of_a_volume_comes_back_to_its_place(tmp_path, codes, spacing, turn):
    values = np.zeros((24, 34, 18), np.float32)
    values[5:8, 22:25, 4] = 100
    stored = write_volume(tmp_path / "volume.nii.gz", values, codes=codes, spacing=spacing, turn=turn)
    preprocessing = build_preprocessing(CARD, ImageView(image_size=56))
    data = preprocessing({"image": tmp_path / "volume.nii.gz"})
    assert data["image"].shape == (3, 56, 56, 18)
    restored = invert(preprocessing, data, data["image"][:1].as_tensor())
    assert restored.shape[1:] == stored.shape
    np.testing.assert_allclose(center_of_mass(restored.numpy()[0]), center_of_mass(stored), atol=1)
    np.testing.assert_allclose(restored.affine, nibabel.load(tmp_path / "volume.nii.gz").affine, atol=1e-5)


def test_nearest_interpolation_invents_no_values(tmp_path):
    values = np.random.RandomState(2).rand(24, 34, 16).astype(np.float32)
    stored = write_volume(tmp_path / "volume.nii.gz", values, codes="ASR")
    preprocessing = build_preprocessing(CARD, ImageView(image_size=56))
    data = preprocessing({"image": tmp_path / "volume.nii.gz"})
    classes = torch.randint(0, 5, (1, *data["image"].shape[1:])).float()
    nearest = invert(preprocessing, data, classes, nearest_interp=True)
    assert nearest.shape[1:] == stored.shape
    assert nearest.unique().tolist() == [0, 1, 2, 3, 4]
    assert len(invert(preprocessing, data, classes).unique()) > 5


# display


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_displayed_image_equals_pillows(tmp_path, name):
    path = write_picture(tmp_path / name, corner_pixels())
    with Image.open(path) as shown:
        np.testing.assert_array_equal(ImageView().show(path), np.asarray(shown))


def test_displayed_gray_image_has_three_equal_channels(tmp_path):
    shown = ImageView().show(write_picture(tmp_path / "gray.png", blob()))
    np.testing.assert_array_equal(shown, np.dstack([blob()] * 3))


def test_display_has_no_pixel_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("mrad_med.io.image.MAX_PIXELS", 100)
    path = write_picture(tmp_path / "a.png", corner_pixels())
    assert ImageView().show(path).shape == (ROWS, COLUMNS, 3)
