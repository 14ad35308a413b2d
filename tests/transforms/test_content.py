"""Images with one value have nothing to score, and images with few values look like masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mrad_med.errors import NothingToScoreError
from mrad_med.transforms import CheckValues, CheckVisible
from mrad_med.transforms.content import LIKE_MASK, count_values

RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize(
    ("pixels", "count"),
    [
        (np.full((1, 4, 5), 7, np.uint8), 1),
        (np.full((1, 4, 5), -1000.5, np.float32), 1),
        (np.array([[[np.nan, 3.0], [3.0, np.inf]]]), 1),
        (np.full((1, 2, 2), np.nan), 0),
        (np.arange(16, dtype=np.float32).reshape(1, 4, 4), 16),
        (np.arange(17, dtype=np.float32).reshape(1, 1, 17), 17),
        (np.array([[[0.0, 0.5]]]), 17),  # not integers: no labels
        (np.repeat(np.array([[[9]], [[8]], [[7]]], np.uint8), 5, axis=2), 1),
        (np.array([[[0, 0, 255, 255]], [[0, 255, 0, 255]], [[0, 0, 0, 0]]], np.uint8), 4),
        (RANDOM.randint(0, 256, (3, 40, 50)).astype(np.uint8), 17),
    ],
)
def test_distinct_values_are_counted_up_to_one_more_than_a_mask_has(pixels: np.ndarray, count: int):
    assert count_values(pixels) == count


@pytest.mark.parametrize("position", [0, 2**18 - 1, 2**18, 3 * 2**18 - 1])
def test_a_single_pixel_at_any_place_is_a_second_value(position: int):
    pixels = np.zeros((1, 3, 2**18), np.int16)
    pixels.reshape(-1)[position] = 1
    assert count_values(pixels) == 2


@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 9), (1, 8, 9, 4)])
def test_a_constant_image_is_refused_and_any_other_passes_unchanged(shape: tuple[int, ...]):
    values = torch.full(shape, 40.0)
    with pytest.raises(NothingToScoreError, match="all its pixels have one value; check the file"):
        CheckValues()(MetaTensor(values))
    values[0, 3, 3] = 41
    checked = CheckValues()(MetaTensor(values))
    assert torch.equal(checked.as_tensor(), values)
    assert checked.meta[LIKE_MASK]
    assert not CheckValues()(MetaTensor(torch.rand(shape))).meta[LIKE_MASK]


def test_what_the_network_sees_as_one_value_is_refused():
    flat, red = torch.full((3, 6, 6), 0.5), torch.zeros(3, 6, 6)
    red[0] = 1
    for image in (flat, red):
        with pytest.raises(NothingToScoreError, match=r"^it shows one gray value or color in this window"):
            CheckVisible()(MetaTensor(image))
    image = flat.clone()
    image[2, 5, 0] = 0.6
    assert CheckVisible()(image) is image


def test_a_volume_is_refused_only_if_each_slice_has_one_value():
    volume = torch.arange(5.0).expand(3, 6, 6, 5).clone()  # a ramp across slices
    with pytest.raises(NothingToScoreError, match=r"^each of its slices shows one gray value or color"):
        CheckVisible()(volume)
    volume[0, 0, 0, 2] = 9
    assert CheckVisible()(volume) is volume
