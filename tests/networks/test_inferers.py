"""Inferers against the parts of the network, sliding windows and MONAI's metadata."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Flip
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from mrad_med import MRAD, AnomalyInferer, MemoryBank, SliceAnomalyInferer, build_mrad_tf
from mrad_med.networks.maps import fuse_scores
from tests.conftest import make_tiny_clip

SHARES = {"image_weight": 0.4, "top_fraction": 0.2}


def make_images(batch: int = 2, height: int = 42, width: int = 70) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(17))


def make_volumes(batch: int = 2, height: int = 42, width: int = 70, depth: int = 5) -> Tensor:
    return torch.randn(batch, 3, height, width, depth, generator=torch.Generator().manual_seed(19))


@pytest.fixture(scope="module")
def network(tiny_bank: MemoryBank) -> MRAD:
    return build_mrad_tf(make_tiny_clip(), tiny_bank)  # a separate encoder, because hooks count its passes


@pytest.fixture
def passes(network: MRAD) -> Iterator[list[int]]:
    """Return the batch sizes of the encoder's passes so far."""
    sizes: list[int] = []
    handle = network.image_encoder.register_forward_pre_hook(lambda *call: sizes.append(len(call[1][0])))
    yield sizes
    handle.remove()


@pytest.mark.parametrize("make_inferer", [AnomalyInferer, SliceAnomalyInferer])
def test_map_and_score_are_those_of_the_parts(network: MRAD, make_inferer: type[AnomalyInferer]):
    images = make_images()
    result = make_inferer()(images, network)
    features = network.encode(images)
    score = 0.7 * network.image_probability(features) + 0.3 * network(images).flatten(1).topk(29).values.mean(1, True)
    assert result.keys() == {"anomaly_map", "anomaly_score"}
    assert result["anomaly_map"].shape == (2, 1, 42, 70)
    assert result["anomaly_score"].shape == (2, 1)
    torch.testing.assert_close(result["anomaly_map"], network(images), atol=1e-6, rtol=0)
    torch.testing.assert_close(result["anomaly_score"], score, atol=1e-6, rtol=0)


def test_keys_of_the_result_are_plain_strings(network: MRAD):
    assert {type(key) for key in AnomalyInferer()(make_images(1), network)} == {str}
    assert {type(key) for key in SliceAnomalyInferer()(make_volumes(1, depth=1), network)} == {str}


@pytest.mark.parametrize("make_inferer", [AnomalyInferer, SliceAnomalyInferer])
def test_shares_of_the_score_can_be_chosen(network: MRAD, make_inferer: type[AnomalyInferer]):
    images = make_images()
    score = make_inferer(**SHARES)(images, network)["anomaly_score"]
    expected = fuse_scores(
        network.image_probability(network.encode(images)), network(images), image_weight=0.4, fraction=0.2
    )
    torch.testing.assert_close(score, expected, atol=1e-6, rtol=0)
    assert (score - AnomalyInferer()(images, network)["anomaly_score"]).abs().max() > 1e-5


def test_images_are_encoded_exactly_once(network: MRAD, passes: list[int]):
    AnomalyInferer()(make_images(3), network)
    assert passes == [3]


def test_batch_equals_its_elements(network: MRAD):
    images = make_images(3)
    together = AnomalyInferer()(images, network)
    for index, image in enumerate(images.split(1)):
        alone = AnomalyInferer()(image, network)
        for key, value in alone.items():
            torch.testing.assert_close(value, together[key][index : index + 1], atol=1e-6, rtol=0)


def test_nothing_is_recorded_for_gradients(network: MRAD):
    images = make_images(1).requires_grad_()
    assert not any(value.requires_grad for value in AnomalyInferer()(images, network).values())
    volumes = make_volumes(1, depth=2).requires_grad_()
    assert not any(value.requires_grad for value in SliceAnomalyInferer()(volumes, network).values())


def test_images_are_not_changed(network: MRAD):
    images, volumes = make_images(1), make_volumes(1, depth=2)
    copies = images.clone(), volumes.clone()
    AnomalyInferer()(images, network)
    SliceAnomalyInferer()(volumes, network)
    assert torch.equal(images, copies[0])
    assert torch.equal(volumes, copies[1])


@pytest.mark.parametrize("inputs", [make_images(), make_volumes(depth=2)], ids=["images", "volumes"])
def test_plain_tensors_give_plain_tensors(network: MRAD, inputs: Tensor):
    result = SliceAnomalyInferer()(inputs, network)
    assert {type(value) for value in result.values()} == {Tensor}


@pytest.mark.parametrize("inputs", [make_images(2)[1], make_volumes(2, depth=2)[1]], ids=["image", "volume"])
def test_map_carries_metadata_and_can_be_inverted(network: MRAD, inputs: Tensor):
    flip = Flip(spatial_axis=1)
    image = flip(MetaTensor(inputs, meta={"filename_or_obj": "case.png"}))
    batch = MetaTensor(image[None], meta=image.meta, applied_operations=image.applied_operations)
    result = SliceAnomalyInferer()(batch, network)
    maps = result["anomaly_map"]
    assert isinstance(maps, MetaTensor)
    assert maps.meta["filename_or_obj"] == "case.png"
    assert maps.applied_operations == batch.applied_operations
    assert maps.applied_operations
    assert not isinstance(result["anomaly_score"], MetaTensor)
    plain = SliceAnomalyInferer()(batch.as_tensor(), network)["anomaly_map"]
    assert torch.equal(maps.as_tensor(), plain)
    assert torch.equal(flip.inverse(maps[0]).as_tensor(), plain[0].flip(2))


def test_maps_of_a_collated_batch_come_apart_with_their_own_metadata(network: MRAD):
    images = [MetaTensor(image, meta={"filename_or_obj": f"{i}.png"}) for i, image in enumerate(make_images(2))]
    batch = MetaTensor.ensure_torch_and_prune_meta(torch.stack([image.as_tensor() for image in images]), {})
    batch.is_batch = True
    batch.meta["filename_or_obj"] = [image.meta["filename_or_obj"] for image in images]
    maps = decollate_batch(AnomalyInferer()(batch, network)["anomaly_map"])
    assert [item.meta["filename_or_obj"] for item in maps] == ["0.png", "1.png"]
    assert [tuple(item.shape) for item in maps] == [(1, 42, 70)] * 2


def test_network_works_under_the_sliding_windows_of_monai(network: MRAD):
    images = make_images(1, 56, 112)
    windows = SlidingWindowInferer(roi_size=(56, 56), sw_batch_size=2, overlap=0)(images, network)
    expected = torch.cat([network(images[..., :56]), network(images[..., 56:])], dim=3)
    torch.testing.assert_close(windows, expected, atol=1e-6, rtol=0)


def test_result_is_float32_inside_autocast_too(network: MRAD):
    images = make_images(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = AnomalyInferer()(images, network)
    assert {value.dtype for value in result.values()} == {torch.float32}


@pytest.mark.parametrize("slices_per_batch", [1, 3, 4, 10, 100])
def test_volumes_are_scored_slice_by_slice_for_any_batch(network: MRAD, slices_per_batch: int):
    volumes = make_volumes(depth=5)
    result = SliceAnomalyInferer(slices_per_batch=slices_per_batch)(volumes, network)
    assert result["anomaly_map"].shape == (2, 1, 42, 70, 5)
    assert result["anomaly_score"].shape == (2, 1)
    slices = [AnomalyInferer()(volumes[..., depth], network) for depth in range(5)]
    expected = torch.stack([item["anomaly_map"] for item in slices], dim=4)
    torch.testing.assert_close(result["anomaly_map"], expected, atol=1e-6, rtol=0)
    scores = torch.cat([item["anomaly_score"] for item in slices], dim=1)
    assert scores.std(dim=1).min() > 1e-4  # else any slice would do
    torch.testing.assert_close(result["anomaly_score"], scores.amax(1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("slices_per_batch", "sizes"), [(4, [4, 4, 2]), (1, [1] * 10), (16, [10])])
def test_each_slice_is_encoded_once_in_batches_of_the_chosen_size(
    network: MRAD, passes: list[int], slices_per_batch: int, sizes: list[int]
):
    SliceAnomalyInferer(slices_per_batch=slices_per_batch)(make_volumes(2, depth=5), network)
    assert passes == sizes


def test_shares_of_the_score_reach_the_slices(network: MRAD):
    volumes = make_volumes(1, depth=3)
    score = SliceAnomalyInferer(**SHARES)(volumes, network)["anomaly_score"]
    scores = [AnomalyInferer(**SHARES)(volumes[..., depth], network)["anomaly_score"] for depth in range(3)]
    torch.testing.assert_close(score, torch.cat(scores, dim=1).amax(1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("slices_per_batch", [0, -1])
def test_no_slices_in_a_batch_are_refused(slices_per_batch: int):
    with pytest.raises(ValueError, match=f"slices_per_batch must be at least 1, got {slices_per_batch}"):
        SliceAnomalyInferer(slices_per_batch=slices_per_batch)


def test_volumes_are_refused_by_the_inferer_of_images(network: MRAD):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
        AnomalyInferer()(make_volumes(1), network)


@pytest.mark.parametrize("shape", [(3, 56, 56), (1, 1, 56, 56), (1, 1, 56, 56, 2)])
def test_inputs_of_other_shapes_are_refused(network: MRAD, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W"):
        SliceAnomalyInferer()(torch.zeros(shape), network)


def test_fraction_outside_the_unit_interval_is_refused(network: MRAD):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
        AnomalyInferer(top_fraction=0)(make_images(1), network)


@pytest.mark.parametrize("make_inferer", [AnomalyInferer, SliceAnomalyInferer])
def test_a_score_that_is_not_a_number_is_refused(tiny_bank: MemoryBank, make_inferer: type[AnomalyInferer]):
    network = build_mrad_tf(make_tiny_clip(), tiny_bank)
    with torch.no_grad():
        network.image_encoder.tower.proj[0, 0] = float("nan")  # damaged weights
    with pytest.raises(ValueError, match="the network returns NaN"):
        make_inferer()(make_images(1), network)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("inputs", [make_images(), make_volumes(depth=3)], ids=["images", "volumes"])
def test_values_that_are_not_finite_are_refused(network: MRAD, inputs: Tensor, value: float):
    inputs = inputs.clone()
    inputs[1, 2, -1, -1] = value
    with pytest.raises(ValueError, match="images must be finite, got NaN or infinite values"):
        SliceAnomalyInferer()(inputs, network)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_slices_along_another_axis_are_those_of_the_permuted_volume(network: MRAD, axis: int):
    volumes = make_volumes(depth=3)
    expected = SliceAnomalyInferer()(volumes, network)
    result = SliceAnomalyInferer(axis=axis)(volumes.movedim(-1, axis if axis < 0 else 2 + axis), network)
    assert torch.equal(result["anomaly_map"].movedim(axis if axis < 0 else 2 + axis, -1), expected["anomaly_map"])
    assert torch.equal(result["anomaly_score"], expected["anomaly_score"])
    assert torch.equal(result["slice_scores"], expected["slice_scores"])


def test_scores_of_slices_come_with_that_of_the_volume(network: MRAD):
    volumes = make_volumes(depth=5)
    result = SliceAnomalyInferer()(volumes, network)
    slices = [AnomalyInferer()(volumes[..., depth], network)["anomaly_score"] for depth in range(5)]
    assert result.keys() == {"anomaly_map", "anomaly_score", "slice_scores"}
    torch.testing.assert_close(result["slice_scores"], torch.cat(slices, dim=1), atol=1e-6, rtol=0)
    assert torch.equal(result["slice_scores"].amax(1, keepdim=True), result["anomaly_score"])


def test_a_volume_of_one_slice_is_an_image(network: MRAD):
    images = make_images()
    for smooth in (0, 2.5):
        result = SliceAnomalyInferer(smooth=smooth)(images[..., None], network)
        expected = AnomalyInferer()(images, network)
        torch.testing.assert_close(result["anomaly_map"][..., 0], expected["anomaly_map"], atol=1e-6, rtol=0)
        torch.testing.assert_close(result["anomaly_score"], expected["anomaly_score"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.7, 2.0, 30.0])
@pytest.mark.parametrize("axis", [0, 2])
def test_smoothing_across_slices_is_that_of_scipy(network: MRAD, sigma: float, axis: int):
    volumes = make_volumes(depth=6).movedim(-1, 2 + axis)
    sharp = SliceAnomalyInferer(axis=axis)(volumes, network)["anomaly_map"]
    smooth = SliceAnomalyInferer(axis=axis, smooth=sigma)(volumes, network)["anomaly_map"]
    expected = gaussian_filter1d(sharp.double().numpy(), sigma, axis=2 + axis, mode="reflect", truncate=4.0)
    assert (smooth - sharp).abs().max() > 1e-4
    torch.testing.assert_close(smooth.double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_smoothing_keeps_a_volume_whose_slices_are_alike(network: MRAD):
    volumes = make_images()[..., None].expand(-1, -1, -1, -1, 7)
    sharp, smooth = (SliceAnomalyInferer(smooth=sigma)(volumes, network) for sigma in (0, 1.5))
    for key, value in sharp.items():
        torch.testing.assert_close(smooth[key], value, atol=1e-6, rtol=0)


def test_smoothing_is_exact_inside_autocast_too(network: MRAD):
    volumes = make_volumes(1, depth=4)
    expected = SliceAnomalyInferer(smooth=1)(volumes, network)["anomaly_map"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = SliceAnomalyInferer(smooth=1)(volumes, network)["anomaly_map"]
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_scores_are_of_the_smoothed_map(network: MRAD):
    volumes = make_volumes(1, depth=4)
    result = SliceAnomalyInferer(smooth=1.5, image_weight=0.0, top_fraction=1.0)(volumes, network)
    means = result["anomaly_map"].mean((1, 2, 3))  # of each slice's whole map
    torch.testing.assert_close(result["slice_scores"], means, atol=1e-6, rtol=0)


def test_volumes_are_put_together_as_float32_on_the_chosen_device(network: MRAD):
    class Unfused(SliceAnomalyInferer):
        def fuse(self, *parts: Tensor) -> Tensor:
            return parts[0]  # tensors on the device "meta" have no values

    result = Unfused(device="meta")(make_volumes(1, depth=2).double(), network)
    assert {(value.dtype, value.device.type) for value in result.values()} == {(torch.float32, "meta")}


def test_slices_can_be_scored_by_another_inferer(network: MRAD):
    class Halves(AnomalyInferer):
        def examine(self, images: Tensor, network: MRAD) -> tuple[Tensor, Tensor]:
            probability, maps = super().examine(images, network)
            return probability / 2, maps / 2

    volumes, halves = make_volumes(1, depth=3), Halves(**SHARES)
    result = SliceAnomalyInferer(slice_inferer=halves)(volumes, network)
    expected = SliceAnomalyInferer(**SHARES)(volumes, network)
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value / 2, atol=1e-6, rtol=0)
    image = SliceAnomalyInferer(slice_inferer=halves)(volumes[..., 0], network)
    assert torch.equal(image["anomaly_score"], halves(volumes[..., 0], network)["anomaly_score"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axis": 3}, "axis must be 0, 1 or 2, or -3 to -1 counted from the last, got 3"),
        ({"axis": -4}, "axis must be 0, 1 or 2, or -3 to -1 counted from the last, got -4"),
        ({"smooth": -1}, "smooth must be a number of slices, 0 or more, got -1"),
        ({"smooth": float("nan")}, "smooth must be a number of slices, 0 or more, got nan"),
        ({"smooth": float("inf")}, "smooth must be a number of slices, 0 or more, got inf"),
    ],
)
def test_arguments_out_of_range_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        SliceAnomalyInferer(**settings)


def test_volumes_without_slices_are_refused(network: MRAD):
    with pytest.raises(ValueError, match=r"expected volumes with slices along axis 2, got shape \(1, 3, 42, 70, 0\)"):
        SliceAnomalyInferer()(make_volumes(1, depth=0), network)
