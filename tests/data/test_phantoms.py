"""Sample images: a phantom whose lesion is known, a folder that every reader can read, and a labeled set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from mrad_med import find_cases, load_labeled_folder, make_phantom, write_sample_images
from mrad_med.data.phantoms import write_sample_dataset
from mrad_med.io.image import read_image_file

CHANNELS = {
    "ct_slice.dcm": 1,
    "histology.png": 3,
    "mr_slice.dcm": 1,
    "phantom.png": 3,
    "retina.jpg": 3,
    "retina_closeup.png": 1,
}


def paleness_of(image: np.ndarray) -> np.ndarray:
    """Green against red: tissue is reddish, the lesion is not."""
    return image[..., 1] / np.maximum(image[..., 0], 1)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# the phantom


@pytest.mark.parametrize("size", [(360, 480), (120, 90), (64, 64)])
def test_phantom_has_the_size_asked_for(size):
    image, mask = make_phantom(size)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == (size, np.uint8)
    assert np.unique(mask).tolist() == [0, 255]


def test_phantom_is_the_same_every_time():
    for first, second in zip(make_phantom((90, 120)), make_phantom((90, 120)), strict=True):
        np.testing.assert_array_equal(first, second)


def test_phantom_does_not_touch_the_global_generator():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    make_phantom((64, 64))
    assert np.random.rand() == expected  # noqa: NPY002


def test_seed_changes_the_texture_and_the_place_of_the_lesion():
    (first, first_mask), (second, second_mask) = (make_phantom((90, 120), seed=seed) for seed in (1, 2))
    assert (first != second).mean() > 0.5
    assert not np.array_equal(first_mask, second_mask)


@pytest.mark.parametrize("size", [(360, 480), (180, 240), (240, 180)])
@pytest.mark.parametrize("seed", [20260202, 1, 2])
def test_lesion_is_where_its_mask_is(size, seed):
    image, mask = make_phantom(size, seed=seed)
    inside = mask > 0
    paleness = paleness_of(image)
    assert paleness[inside].mean() > paleness[~inside].mean() + 0.08
    threshold = (paleness[inside].mean() + paleness[~inside].mean()) / 2
    found = paleness > threshold
    assert (found & inside).sum() / (found | inside).sum() > 0.8


@pytest.mark.parametrize("radius", [0.05, 0.11, 0.2])
def test_lesion_is_one_blob_of_the_radius_asked_for(radius):
    _, mask = make_phantom((200, 300), lesion_radius=radius)
    assert label(mask)[1] == 1
    assert (mask > 0).sum() == pytest.approx(np.pi * 1.25 * (radius * 200) ** 2, rel=0.25)  # 1.25 times as wide as high
    assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()


def test_phantom_without_a_lesion_is_the_same_tissue():
    with_lesion, mask = make_phantom((200, 300))
    without, empty = make_phantom((200, 300), lesion_radius=0)
    assert empty.max() == 0
    far = ~np.asarray(Image.fromarray(mask).reduce(10).resize((300, 200))).astype(bool)
    assert far.mean() > 0.8
    assert np.abs(with_lesion[far].astype(int) - without[far]).mean() < 2
    assert np.ptp(np.percentile(paleness_of(without), (1, 99))) < 0.05


def test_tissue_is_neither_black_nor_white():
    image, mask = make_phantom()
    tissue = image[mask == 0].mean(-1)
    assert 40 < tissue.mean() < 215
    assert tissue.std() > 5
    assert (image == 255).mean() < 0.05


# the folders


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "not" / "made yet"
    assert write_sample_images(folder) == str(folder)
    return folder


def test_folder_holds_the_samples_and_nothing_else(sample_folder):
    assert sorted(digests(sample_folder)) == sorted(CHANNELS)
    cases = find_cases(sample_folder, keep_identifiers=True)  # two samples are DICOM, which hides all names
    assert [case["case_id"] for case in cases] == [Path(name).stem for name in sorted(CHANNELS)]


@pytest.mark.parametrize("name", CHANNELS)
def test_every_sample_can_be_read(sample_folder, name):
    image = read_image_file(sample_folder / name)
    assert image.shape[0] == CHANNELS[name]
    assert min(image.shape[1:]) >= 64
    assert float(image.float().std()) > 1


def test_phantom_of_the_folder_is_the_phantom(sample_folder):
    with Image.open(sample_folder / "phantom.png") as image:
        np.testing.assert_array_equal(np.asarray(image), make_phantom()[0])


def test_writing_the_samples_again_changes_nothing(sample_folder):
    before = digests(sample_folder)
    (sample_folder / "phantom.png").write_bytes(b"damaged")
    write_sample_images(str(sample_folder))
    assert digests(sample_folder) == before


def test_sample_dataset_is_a_labeled_folder(tmp_path):
    assert write_sample_dataset(tmp_path / "set", count=2) == str(tmp_path / "set")
    items = load_labeled_folder(tmp_path / "set")
    assert [(item["label"], item["mask"] is None) for item in items] == [(0, True), (0, True), (1, False), (1, False)]
    pictures = digests(tmp_path / "set")
    assert len(pictures) == len(set(pictures.values())) == 6  # no phantom twice
    for item in items[2:]:
        image, mask = (np.asarray(Image.open(item[key])) for key in ("image", "mask"))
        assert paleness_of(image)[mask > 0].mean() > paleness_of(image)[mask == 0].mean() + 0.08
