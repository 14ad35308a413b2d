"""Anomaly maps and scores: scipy's Gaussian, torch's interpolation and numpy's sort as referees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mrad_med.networks.maps import fuse_scores, top_fraction_mean, upsample_and_blur


def make_patch_maps(batch: int, rows: int, columns: int) -> Tensor:
    return torch.rand(batch, 1, rows, columns, generator=torch.Generator().manual_seed(0))


def interpolate_then_scipy(patch_maps: Tensor, image_size: tuple[int, int], sigma: float) -> Tensor:
    upsampled = F.interpolate(patch_maps.double(), size=image_size, mode="bilinear", align_corners=False)
    blurred = [gaussian_filter(item, sigma, mode="reflect", truncate=4) for item in upsampled[:, 0].numpy()]
    return torch.from_numpy(np.stack(blurred))[:, None]


@pytest.mark.parametrize(
    ("grid_size", "image_size", "sigma"),
    [
        ((37, 37), (518, 518), 4.0),
        ((4, 4), (56, 56), 4.0),
        ((3, 5), (42, 70), 4.0),  # not square
        ((6, 2), (90, 20), 2.5),  # another factor per axis
        ((5, 5), (70, 70), 1.2),  # a radius that is rounded up
        ((2, 2), (9, 9), 4.0),  # smaller than the radius of 16
        ((1, 3), (5, 12), 4.0),  # mirrored more than once
        ((1, 1), (1, 1), 4.0),
        ((4, 4), (56, 56), 0.1),  # a kernel of one pixel
        ((4, 4), (56, 56), 0.0),
    ],
)
def test_map_agrees_with_interpolate_and_scipy(grid_size: tuple[int, int], image_size: tuple[int, int], sigma: float):
    patch_maps = make_patch_maps(2, *grid_size)
    maps = upsample_and_blur(patch_maps, image_size, sigma=sigma)
    assert maps.shape == (2, 1, *image_size)
    torch.testing.assert_close(maps.double(), interpolate_then_scipy(patch_maps, image_size, sigma), atol=2e-6, rtol=0)


def test_default_sigma_is_the_published_one():
    patch_maps = make_patch_maps(1, 4, 4)
    assert torch.equal(upsample_and_blur(patch_maps, (56, 56)), upsample_and_blur(patch_maps, (56, 56), sigma=4.0))


@pytest.mark.parametrize("sigma", [0.0, 4.0, 30.0])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_map_stays_constant(value: float, sigma: float):
    maps = upsample_and_blur(torch.full((2, 1, 3, 5), value), (42, 70), sigma=sigma)
    torch.testing.assert_close(maps, torch.full((2, 1, 42, 70), value), atol=1e-6, rtol=0)


def test_values_stay_between_the_smallest_and_the_largest_of_the_patches():
    patch_maps = make_patch_maps(3, 8, 8).round()  # only 0 and 1: the sharpest edges there are
    maps = upsample_and_blur(patch_maps, (112, 112))
    assert maps.min() >= 0
    assert maps.max() <= 1 + 1e-6
    assert maps.max() > 0.5


def test_blur_keeps_the_sum_because_edges_are_mirrored():
    patch_maps = make_patch_maps(1, 3, 5)
    sharp, blurred = (upsample_and_blur(patch_maps, (42, 70), sigma=sigma) for sigma in (0.0, 4.0))
    assert blurred.sum().item() == pytest.approx(sharp.sum().item(), rel=1e-5)
    assert blurred.std() < sharp.std()


def test_map_is_linear_in_the_probabilities():
    first, second = make_patch_maps(2, 4, 4).split(1)
    together = upsample_and_blur(0.25 * first + 0.75 * second, (56, 56))
    apart = 0.25 * upsample_and_blur(first, (56, 56)) + 0.75 * upsample_and_blur(second, (56, 56))
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)


def test_transposing_the_patches_transposes_the_map():
    patch_maps = make_patch_maps(2, 3, 5)
    transposed = upsample_and_blur(patch_maps.mT, (70, 42))
    torch.testing.assert_close(transposed, upsample_and_blur(patch_maps, (42, 70)).mT, atol=1e-6, rtol=0)


def test_batch_of_maps_equals_its_elements():
    patch_maps = make_patch_maps(3, 4, 4)
    alone = torch.cat([upsample_and_blur(item, (56, 56)) for item in patch_maps.split(1)])
    torch.testing.assert_close(upsample_and_blur(patch_maps, (56, 56)), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_map_has_the_type_of_the_probabilities(dtype: torch.dtype):
    assert upsample_and_blur(make_patch_maps(1, 4, 4).to(dtype), (56, 56)).dtype == dtype


def test_map_is_float32_inside_autocast_too():
    patch_maps = make_patch_maps(1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = upsample_and_blur(patch_maps, (56, 56))
    torch.testing.assert_close(maps, upsample_and_blur(patch_maps, (56, 56)), atol=1e-6, rtol=0)


def test_map_can_be_trained_through_after_one_made_in_inference_mode():
    patch_maps = make_patch_maps(1, 3, 7).double()
    with torch.inference_mode():
        upsample_and_blur(patch_maps, (33, 77))  # a size of no other test: the matrices are computed and cached here
    patch_maps.requires_grad_()
    upsample_and_blur(patch_maps, (33, 77)).sum().backward()
    assert patch_maps.grad.sum().item() == pytest.approx(33 * 77)  # the weights of every pixel sum to one


def test_patch_maps_are_not_changed():
    patch_maps = make_patch_maps(1, 4, 4)
    copy = patch_maps.clone()
    upsample_and_blur(patch_maps, (56, 56))
    assert torch.equal(patch_maps, copy)


def test_negative_sigma_is_refused():
    with pytest.raises(ValueError, match=r"sigma must not be negative, got -1\.0"):
        upsample_and_blur(make_patch_maps(1, 4, 4), (56, 56), sigma=-1.0)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 1.0])
def test_mean_of_the_highest_pixels_agrees_with_a_sort(fraction: float):
    maps = make_patch_maps(3, 30, 20)
    count = int(fraction * 600)
    expected = np.sort(maps.numpy().reshape(3, -1), axis=1)[:, -count:].mean(1, keepdims=True)
    means = top_fraction_mean(maps, fraction=fraction)
    assert means.shape == (3, 1)
    np.testing.assert_allclose(means.numpy(), expected, atol=1e-6)


def test_default_fraction_is_one_percent_rounded_down():
    maps = torch.zeros(1, 1, 19, 21)  # 399 pixels, of which 3.99 are one percent
    maps[0, 0, 0, :4] = torch.tensor([0.9, 0.6, 0.3, 0.1])
    assert top_fraction_mean(maps).item() == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (9, 11)])
def test_at_least_one_pixel_is_taken(size: tuple[int, int]):
    maps = make_patch_maps(2, *size)
    assert torch.equal(top_fraction_mean(maps), maps.amax((2, 3)))


def test_whole_map_gives_its_mean():
    maps = make_patch_maps(2, 7, 5)
    torch.testing.assert_close(top_fraction_mean(maps, fraction=1), maps.mean((2, 3)), atol=1e-6, rtol=0)


def test_maps_of_volumes_are_taken_whole():
    volumes = torch.rand(2, 1, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    expected = top_fraction_mean(volumes.reshape(2, 1, 120), fraction=0.1)
    assert torch.equal(top_fraction_mean(volumes, fraction=0.1), expected)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_fraction_outside_the_unit_interval_is_refused(fraction: float):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        top_fraction_mean(make_patch_maps(1, 4, 4), fraction=fraction)


def test_score_is_the_published_mixture_by_hand():
    maps = torch.zeros(2, 1, 10, 20)  # one percent of 200 pixels is two
    maps[0, 0, 0, :3] = torch.tensor([0.9, 0.7, 0.6])
    maps[1, 0, 9, 19] = 0.4
    scores = fuse_scores(torch.tensor([[0.5], [0.2]]), maps)
    expected = torch.tensor([[0.7 * 0.5 + 0.3 * 0.8], [0.7 * 0.2 + 0.3 * 0.2]])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("image_weight", "fraction", "expected"), [(1.0, 0.01, 0.5), (0.0, 0.01, 0.9), (0.0, 1.0, 0.3), (0.5, 1.0, 0.4)]
)
def test_weight_and_fraction_of_the_score_can_be_chosen(image_weight: float, fraction: float, expected: float):
    maps = torch.tensor([0.9, 0.0, 0.3, 0.0]).reshape(1, 1, 2, 2)
    score = fuse_scores(torch.tensor([[0.5]]), maps, image_weight=image_weight, fraction=fraction)
    assert score.shape == (1, 1)
    assert score.item() == pytest.approx(expected, abs=1e-6)


def test_fraction_of_the_score_is_checked():
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        fuse_scores(torch.tensor([[0.5]]), make_patch_maps(1, 4, 4), fraction=0)
