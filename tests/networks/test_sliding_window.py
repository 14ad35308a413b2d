"""Sliding windows against the inferer of whole images, tiles cut by hand, and networks with known results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Flip
from PIL import Image
from scipy.ndimage import center_of_mass
from torch import Tensor, nn

from mrad_med import MRAD, AnomalyInferer, ImageFeatures, MemoryBank, SliceAnomalyInferer, build_mrad_tf
from mrad_med.networks.sliding_window import NonBlack, SlidingWindowAnomalyInferer
from tests.conftest import make_tiny_clip

ROI = 56  # pixels: the tiny backbone's own size
LEVEL = 0.3


class BrightnessEncoder(nn.Module):
    """Probabilities of patches and image are their mean brightness; every call is recorded."""

    def __init__(self, patch_size: int = 14) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> ImageFeatures:
        self.seen.append(images.clone())
        patches = F.avg_pool2d(images.mean(1, keepdim=True), self.patch_size)
        flat = patches.flatten(2).mT
        return ImageFeatures(flat.mean(1), flat, flat, (patches.shape[2], patches.shape[3]))


class BrightnessHead(nn.Module):
    """The brighter, the more anomalous."""

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        return features.patches[..., 0]

    def image_probability(self, features: ImageFeatures) -> Tensor:
        return features.image


class ConstantHead(nn.Module):
    """The same everywhere."""

    def patch_probability(self, features: ImageFeatures) -> Tensor:
        return torch.full(features.patches.shape[:2], LEVEL)

    def image_probability(self, features: ImageFeatures) -> Tensor:
        return torch.full((len(features.image), 1), LEVEL)


def make_images(batch: int, height: int, width: int, *, seed: int = 23) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def everything(images: Tensor) -> Tensor:
    return torch.ones_like(images[:, :1])


def sliding(**settings) -> SlidingWindowAnomalyInferer:
    return SlidingWindowAnomalyInferer(**{"roi_size": ROI, **settings})


@pytest.fixture(scope="module")
def network(tiny_bank: MemoryBank) -> MRAD:
    return build_mrad_tf(make_tiny_clip(), tiny_bank, temperature=0.07)  # sharp enough for tiles to differ


@pytest.fixture
def brightness() -> MRAD:
    return MRAD(BrightnessEncoder(), BrightnessHead(), sigma=1.0)


@pytest.mark.parametrize("overlap", [0, 0.25, (0.1, 0.8)])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("size", [(56, 56), (57, 131), (15, 200), (14, 14)])
def test_constant_network_gives_a_constant_map(overlap, mode: str, size: tuple[int, int]):
    network = MRAD(BrightnessEncoder(), ConstantHead())
    inferer = sliding(overlap=overlap, mode=mode, scales=(1, 0.6, 1.3))
    result = inferer(make_images(2, *size), network)
    expected = {"anomaly_map": torch.full((2, 1, *size), LEVEL), "anomaly_score": torch.full((2, 1), LEVEL)}
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("foreground", [None, everything], ids=["shortcut", "tiles"])
@pytest.mark.parametrize(("roi_size", "size"), [(56, (56, 56)), (518, (42, 70)), ((56, 84), (42, 84))])
def test_one_tile_that_covers_the_image_equals_the_inferer_of_whole_images(network: MRAD, roi_size, size, foreground):
    images = make_images(3, *size)
    shares = {"image_weight": 0.4, "top_fraction": 0.2}
    result = sliding(roi_size=roi_size, foreground=foreground, **shares)(images, network)
    for key, value in AnomalyInferer(**shares)(images, network).items():
        torch.testing.assert_close(result[key], value, atol=1e-6, rtol=0)


def test_tiles_side_by_side_are_those_cut_by_hand(network: MRAD):
    images = make_images(2, 56, 112)
    maps = sliding(overlap=0, mode="constant")(images, network)["anomaly_map"]
    expected = torch.cat([network(images[..., :56]), network(images[..., 56:])], dim=3)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)


def test_the_last_tile_ends_with_the_image_and_overlaps_are_averaged(network: MRAD):
    images = make_images(1, 56, 85)  # tiles at 0 and 29
    maps = sliding(overlap=0, mode="constant")(images, network)["anomaly_map"]
    left, right = network(images[..., :56]), network(images[..., 29:])
    expected = torch.cat([left[..., :29], (left[..., 29:] + right[..., :27]) / 2, right[..., 27:]], dim=3)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)


def test_gaussian_weights_are_higher_in_the_middle_of_tiles(network: MRAD):
    images = make_images(1, 56, 84)  # tiles at 0 and 28
    maps = sliding(overlap=0.5, mode="gaussian")(images, network)["anomaly_map"]
    left, right = network(images[..., :56]), network(images[..., 28:])
    offsets = torch.arange(56) - 27.5
    weights = torch.exp(-0.5 * (offsets / (0.125 * 56)) ** 2)  # along the rows of the middle line
    row, column = 28, 30  # pixel 30 of the left tile, 2 of the right one
    expected = (left[..., row, 30] * weights[30] + right[..., row, 2] * 1e-3) / (weights[30] + 1e-3)  # MONAI's floor
    assert (left[..., row, 30] - right[..., row, 2]).abs() > 1e-3
    torch.testing.assert_close(maps[..., row, column], expected, atol=1e-5, rtol=0)


def test_sides_shorter_than_a_tile_are_mirrored_to_the_next_patch(brightness: MRAD):
    images = make_images(1, 17, 60)
    sliding(overlap=0)(images, brightness)
    whole, tiles = brightness.image_encoder.seen
    assert whole.shape == (1, 3, 28, 56)
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (5, 6), (0, 0)), mode="reflect")
    assert np.array_equal(tiles.numpy(), np.concatenate([expected[..., :56], expected[..., 4:]]))


def test_tiles_in_batches_of_any_size_give_the_same(network: MRAD):
    images = make_images(2, 70, 131)
    single, several = (sliding(sw_batch_size=size)(images, network) for size in (1, 8))
    for key, value in single.items():
        torch.testing.assert_close(several[key], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("sw_batch_size", "sizes"), [(4, [2, 4, 2]), (1, [2, *[1] * 6]), (100, [2, 6])])
def test_the_image_passes_once_and_tiles_in_batches(brightness: MRAD, sw_batch_size: int, sizes: list[int]):
    sliding(sw_batch_size=sw_batch_size, overlap=0)(make_images(2, 56, 168), brightness)
    assert [len(images) for images in brightness.image_encoder.seen] == sizes


def test_an_image_of_one_tile_passes_once(brightness: MRAD):
    sliding()(make_images(2, 56, 42), brightness)
    assert [tuple(images.shape) for images in brightness.image_encoder.seen] == [(2, 3, 56, 42)]


def test_batch_equals_its_elements(network: MRAD):
    images = make_images(3, 60, 99)
    inferer = sliding(foreground=lambda images: images.mean(1, keepdim=True) > 0.5)
    together = inferer(images, network)
    for index, image in enumerate(images.split(1)):
        for key, value in inferer(image, network).items():
            torch.testing.assert_close(value, together[key][index : index + 1], atol=1e-6, rtol=0)


def test_score_is_of_the_whole_image_and_of_the_stitched_map(network: MRAD):
    images = make_images(2, 84, 140)
    result = sliding(image_weight=0.6, top_fraction=0.01)(images, network)
    whole = F.interpolate(images, size=(56, 56), mode="bicubic", antialias=True)
    highest = result["anomaly_map"].flatten(1).topk(117).values.mean(1, True)  # 1 % of 84 * 140
    expected = 0.6 * network.image_probability(network.encode(whole)) + 0.4 * highest
    torch.testing.assert_close(result["anomaly_score"], expected, atol=1e-5, rtol=0)


def test_whole_image_is_resized_as_pillow_does(brightness: MRAD):
    pixels = np.random.RandomState(3).randint(50, 200, (97, 150, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    sliding()(images, brightness)
    seen = brightness.image_encoder.seen[0][0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(Image.fromarray(pixels).resize((56, 56), Image.Resampling.BICUBIC))
    assert np.abs(seen.round() - expected).max() <= 1  # Pillow rounds twice


def test_resized_images_do_not_overshoot_at_edges(brightness: MRAD):
    images = torch.zeros(1, 3, 97, 150)
    images[..., 30:60, 40:90] = 1
    sliding(scales=(0.7, 1.6))(images, brightness)
    sizes = {tuple(seen.shape[-2:]) for seen in brightness.image_encoder.seen}
    assert sizes == {(56, 56)}
    values = torch.cat([seen.flatten() for seen in brightness.image_encoder.seen])
    assert (values.min(), values.max()) == (0, 1)


@pytest.mark.parametrize("size", [(101, 173), (233, 75), (57, 58)])
@pytest.mark.parametrize("settings", [{}, {"overlap": 0.5, "scales": (1, 1.5)}, {"mode": "constant", "overlap": 0.75}])
def test_a_blob_comes_back_where_it_is(size: tuple[int, int], settings):
    network = MRAD(BrightnessEncoder(patch_size=7), BrightnessHead(), sigma=1.0)
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.0 for side in size), indexing="ij")
    for place in ((28.0, 29.0), (size[0] - 24.0, size[1] - 31.0)):
        blob = torch.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / (2 * 10.0**2))
        maps = sliding(**settings)(blob.expand(1, 3, -1, -1), network)["anomaly_map"][0, 0].numpy()
        found = center_of_mass(np.where(maps > 0.3, maps, 0))
        assert np.abs(np.subtract(found, place)).max() < 1


def test_scales_are_averaged(network: MRAD):
    images = make_images(2, 70, 131)
    single = [sliding(scales=(scale,))(images, network)["anomaly_map"] for scale in (1, 0.5, 1.25)]
    together = sliding(scales=(1, 0.5, 1.25))(images, network)["anomaly_map"]
    assert (single[0] - single[1]).abs().max() > 1e-3
    torch.testing.assert_close(together, sum(single) / 3, atol=1e-6, rtol=0)


def test_another_scale_is_the_resized_image_and_its_map_resized_back(network: MRAD):
    images = make_images(1, 112, 84)
    maps = sliding(scales=(0.5,))(images, network)["anomaly_map"]
    small = network(F.interpolate(images, size=(56, 42), mode="bicubic", antialias=True))
    expected = F.interpolate(small, size=(112, 84), mode="bilinear")
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=0)


def test_scales_below_one_patch_are_those_of_one_patch(network: MRAD):
    images = make_images(1, 56, 70)
    smallest, patch = (sliding(scales=(scale,))(images, network)["anomaly_map"] for scale in (1e-3, 0.2))
    assert torch.equal(smallest, patch)


def test_tiles_without_foreground_are_not_scored_and_give_0(brightness: MRAD):
    images = torch.full((2, 3, 56, 168), 0.4)
    foreground = torch.zeros(2, 1, 56, 168)
    foreground[0, :, 10, 60] = 1  # in the second tile of the first image
    maps = sliding(overlap=0, sw_batch_size=6, foreground=foreground)(images, brightness)["anomaly_map"]
    expected = torch.zeros(2, 1, 56, 168)
    expected[0, ..., 56:112] = 0.4
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=0)
    assert [len(images) for images in brightness.image_encoder.seen] == [2, 1]


def test_values_next_to_skipped_tiles_do_not_fade():
    network = MRAD(BrightnessEncoder(), ConstantHead())
    foreground = torch.zeros(1, 1, 101, 203)
    foreground[..., :3, :3] = 1
    inferer = sliding(overlap=0.6, scales=(1, 0.7, 1.4), foreground=foreground)
    values = inferer(make_images(2, 101, 203), network)["anomaly_map"]
    left_out = values == 0
    assert left_out.any(dim=-1).any()
    assert not left_out[..., :40, :40].any()  # the first tile at the largest scale covers these
    torch.testing.assert_close(values[~left_out], torch.full_like(values[~left_out], LEVEL), atol=1e-6, rtol=0)


def test_an_image_without_foreground_has_an_empty_map_and_a_finite_score(brightness: MRAD):
    images = torch.full((1, 3, 60, 100), 0.5)
    inferer = sliding(foreground=lambda images: torch.zeros_like(images[:, :1]), scales=(1, 0.5))
    result = inferer(images, brightness)
    assert torch.equal(result["anomaly_map"], torch.zeros(1, 1, 60, 100))
    torch.testing.assert_close(result["anomaly_score"], torch.full((1, 1), 0.7 * 0.5), atol=1e-6, rtol=0)


def test_one_foreground_pixel_is_enough_at_every_scale(brightness: MRAD):
    foreground = torch.zeros(1, 1, 112, 112)
    foreground[..., 77, 77] = 1
    maps = sliding(foreground=foreground, scales=(0.25,))(torch.full((1, 3, 112, 112), 0.5), brightness)["anomaly_map"]
    torch.testing.assert_close(maps, torch.full((1, 1, 112, 112), 0.5), atol=1e-6, rtol=0)


def test_non_black_finds_the_field_of_view():
    card = make_tiny_clip().card
    pixels = torch.zeros(2, 3, 4, 5)
    pixels[0, 1, 2, 3] = 11  # one channel is enough
    pixels[1, :, 0, 0] = 10  # the threshold itself is black
    pixels[1, :, 3, 4] = 200
    images = (pixels / 255 - 0.5) / 0.25
    expected = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    expected[0, 0, 2, 3] = expected[1, 0, 3, 4] = True
    assert torch.equal(NonBlack(card, threshold=10.5 / 255)(images), expected)
    assert NonBlack(card, threshold=0.9)(images).sum() == 0
    assert not NonBlack(card)((torch.zeros(1, 3, 2, 2) - 0.5) / 0.25).any()


def test_map_is_put_together_on_the_chosen_device(brightness: MRAD):
    parts = sliding(device="meta").examine(make_images(1, 60, 99), brightness)
    assert [part.device.type for part in parts] == ["meta", "meta"]
    assert {seen.device.type for seen in brightness.image_encoder.seen} == {"cpu"}


def test_tiles_go_to_the_device_of_the_network_or_to_the_chosen_one(brightness: MRAD, monkeypatch):
    asked = []

    def record(inputs: Tensor, *, sw_device, device, **_) -> Tensor:
        asked.append((str(sw_device), device))
        return torch.ones(len(inputs), 2, *inputs.shape[2:], device=device)

    monkeypatch.setattr(
        "mrad_med.networks.sliding_window.sliding_window_inference", record
    )  # there is but one device with values
    images = make_images(1, 60, 99)
    sliding(device="meta").examine(images, brightness)
    sliding(device="meta", sw_device="meta").examine(images, brightness)
    sliding(device="meta").examine(images, brightness.to("meta"))
    assert asked == [("cpu", "meta"), ("meta", "meta"), ("meta", "meta")]
    assert [seen.device.type for seen in brightness.image_encoder.seen] == ["cpu", "meta", "meta"]


def test_map_carries_metadata_and_can_be_inverted(network: MRAD):
    flip = Flip(spatial_axis=1)
    image = flip(MetaTensor(make_images(1, 60, 99)[0], meta={"filename_or_obj": "case.png"}))
    batch = MetaTensor(image[None], meta=image.meta, applied_operations=image.applied_operations)
    result = sliding()(batch, network)
    maps = result["anomaly_map"]
    assert isinstance(maps, MetaTensor)
    assert maps.meta["filename_or_obj"] == "case.png"
    assert not isinstance(result["anomaly_score"], MetaTensor)
    plain = sliding()(batch.as_tensor(), network)["anomaly_map"]
    assert type(plain) is Tensor
    assert torch.equal(flip.inverse(maps[0]).as_tensor(), plain[0].flip(2))


def test_images_are_not_changed_and_nothing_is_recorded_for_gradients(network: MRAD):
    images = make_images(1, 60, 99)
    copy = images.clone()
    result = sliding(scales=(1, 0.5), foreground=everything)(images.requires_grad_(), network)
    assert torch.equal(images, copy)
    assert not any(value.requires_grad for value in result.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_result_is_float32_whatever_the_images_are(network: MRAD, dtype: torch.dtype):
    images = make_images(1, 60, 99).half()
    expected = sliding()(images.float(), network)
    for key, value in sliding()(images.to(dtype), network).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[key])


def test_result_is_exact_inside_autocast_too(network: MRAD):
    images = make_images(1, 60, 99)
    expected = sliding(scales=(1, 0.5))(images, network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sliding(scales=(1, 0.5))(images, network)
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value, atol=1e-6, rtol=0)


def test_slices_of_any_size_pass_through_tiles(network: MRAD):
    volumes = make_images(1, 60, 99 * 3).unflatten(3, (99, 3))
    result = SliceAnomalyInferer(axis=-1, slice_inferer=sliding())(volumes, network)
    slices = [sliding()(volumes[..., index], network) for index in range(3)]
    expected = torch.stack([item["anomaly_map"] for item in slices], dim=-1)
    torch.testing.assert_close(result["anomaly_map"], expected, atol=1e-6, rtol=0)
    scores = torch.cat([item["anomaly_score"] for item in slices], dim=1)
    torch.testing.assert_close(result["slice_scores"], scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 1}, r"overlap must be in \[0, 1\), got \(1, 1\)"),
        ({"overlap": -0.1}, r"overlap must be in \[0, 1\), got"),
        ({"overlap": (0, float("nan"))}, r"overlap must be in \[0, 1\), got"),
        ({"roi_size": 0}, r"roi_size must be positive, got \(0, 0\)"),
        ({"roi_size": (56, -14)}, r"roi_size must be positive, got \(56, -14\)"),
        ({"roi_size": (56, 56, 56)}, "length 2"),
        ({"mode": "linear"}, "mode must be one of constant, gaussian; got 'linear'"),
        ({"sw_batch_size": 0}, "sw_batch_size must be at least 1, got 0"),
        ({"scales": ()}, r"scales must be one or more positive numbers, got \(\)"),
        ({"scales": (1, 0)}, r"scales must be one or more positive numbers, got \(1, 0\)"),
        ({"scales": (float("inf"),)}, r"scales must be one or more positive numbers, got \(inf,\)"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message: str):
    with pytest.raises(ValueError, match=message):
        sliding(**settings)


def test_tiles_that_are_not_multiples_of_the_patch_size_are_refused(network: MRAD):
    with pytest.raises(ValueError, match=r"roi_size must be multiples of the patch size 14, got \(56, 60\)"):
        sliding(roi_size=(56, 60))(make_images(1, 56, 60), network)


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 1, 56, 56), (1, 3, 13, 56), (1, 3, 56, 56, 2)])
def test_inputs_of_other_shapes_are_refused(network: MRAD, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\) with H, W >= 14"):
        sliding()(torch.zeros(shape), network)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(network: MRAD, value: float):
    images = make_images(2, 60, 99)
    images[1, 2, -1, -1] = value
    with pytest.raises(ValueError, match="images must be finite, got NaN or infinite values"):
        sliding()(images, network)


@pytest.mark.parametrize("shape", [(60, 99), (2, 1, 60, 98), (3, 1, 60, 99), (2, 3, 60, 99)])
def test_foreground_of_another_shape_is_refused(network: MRAD, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected a foreground of shape \(B or 1, 1, H, W\) for images of shape"):
        sliding(foreground=torch.ones(shape))(make_images(2, 60, 99), network)
