"""MRAD as one network: its steps, its output, and its bank."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mrad_med import CLIP, MRAD, MemoryBank, build_mrad_ft, build_mrad_tf
from mrad_med.errors import MemoryBankError
from mrad_med.networks.maps import upsample_and_blur
from tests.conftest import TINY_SIZE, make_labeled_batches, make_tiny_clip


def make_images(batch: int = 3, height: int = 56, width: int = 56) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(31))


@pytest.fixture(scope="module")
def network(tiny_clip: CLIP, tiny_bank: MemoryBank) -> MRAD:
    return build_mrad_tf(tiny_clip, tiny_bank)


@pytest.mark.parametrize("size", [(56, 56), (42, 70)])
def test_one_map_comes_out_for_each_image(network: MRAD, size: tuple[int, int]):
    maps = network(make_images(3, *size))
    assert maps.shape == (3, 1, *size)
    assert maps.dtype == torch.float32
    assert type(maps) is Tensor
    assert 0 <= maps.min() < maps.max() <= 1


@pytest.mark.parametrize("sigma", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("certainty", [0.0, 1.0])
def test_map_stays_in_the_unit_interval_where_probabilities_saturate(
    tiny_clip: CLIP, tiny_bank: MemoryBank, monkeypatch: pytest.MonkeyPatch, certainty: float, sigma: float
):
    network = build_mrad_tf(tiny_clip, tiny_bank, sigma=sigma)
    monkeypatch.setattr(network.head, "patch_probability", lambda _: torch.full((1, 25), certainty))
    maps = network(make_images(1, 70, 70))
    torch.testing.assert_close(maps, torch.full((1, 1, 70, 70), certainty), atol=1e-6, rtol=0)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_forward_is_encoding_and_mapping(network: MRAD):
    images = make_images(2, 42, 70)
    assert torch.equal(network(images), network.anomaly_map(network.encode(images), (42, 70)))


def test_map_is_the_blurred_patch_probability(network: MRAD):
    images = make_images(2, 42, 70)
    features = network.encode(images)
    probability = network.patch_probability(features)
    assert probability.shape == (2, 15)
    assert network.image_probability(features).shape == (2, 1)
    expected = upsample_and_blur(probability.reshape(2, 1, 3, 5), (42, 70), sigma=4.0)
    torch.testing.assert_close(network(images), expected, atol=1e-6, rtol=0)


def test_map_may_be_of_another_size_than_the_image(network: MRAD):
    features = network.encode(make_images(1))
    assert network.anomaly_map(features, (30, 50)).shape == (1, 1, 30, 50)


def test_sigma_and_temperature_reach_the_map(tiny_clip: CLIP, tiny_bank: MemoryBank, network: MRAD):
    images = make_images(1)
    sharp = build_mrad_tf(tiny_clip, tiny_bank, sigma=0.0)(images)
    cold = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.07)(images)
    blurred = network(images)
    assert sharp.std() > blurred.std()
    assert cold.std() > 10 * blurred.std()  # 1 / 0.07 is about 14


def test_batch_equals_its_elements(network: MRAD):
    images = make_images(3, 42, 70)
    alone = torch.cat([network(image) for image in images.split(1)])
    torch.testing.assert_close(network(images), alone, atol=1e-6, rtol=0)


def test_forward_changes_no_weight_and_no_image(network: MRAD):
    images = make_images(1, 42, 70)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()} | {"images": images.clone()}
    network(images)
    after = network.state_dict() | {"images": images}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_network_is_in_evaluation_mode_and_has_nothing_to_train(network: MRAD):
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network(make_images(1)).requires_grad


def test_state_dict_does_not_hold_the_bank(network: MRAD):
    names = network.state_dict().keys()
    assert names
    assert {name for name in names if not name.startswith("image_encoder.")} == {"head._extra_state"}  # temperature


def test_bank_moves_with_the_network(tiny_bank: MemoryBank):
    network = build_mrad_tf(make_tiny_clip(), tiny_bank).to("meta")
    devices = {tensor.device.type for tensor in (*network.buffers(), *network.parameters())}
    assert {name for name, _ in network.named_buffers()} == {
        f"head.{level}_{part}" for level in ("image", "patch") for part in ("keys", "labels")
    }
    assert devices == {"meta"}
    assert tiny_bank.image_keys.device.type == "cpu"


def test_bank_is_moved_to_the_device_of_the_encoder(tiny_bank: MemoryBank):
    clip = make_tiny_clip()
    clip.image_encoder.to("meta")
    network = build_mrad_tf(clip, tiny_bank)
    assert {buffer.device.type for buffer in network.buffers()} == {"meta"}
    assert {buffer.device.type for buffer in network.with_bank(tiny_bank).buffers()} == {"meta"}


def test_extended_bank_changes_maps_at_once_and_leaves_the_old_network_alone(
    tiny_clip: CLIP, tiny_bank: MemoryBank, network: MRAD
):
    images = make_images(2)
    before = network(images)
    batches = [batch | {"image": images, "label": torch.ones(2)} for batch in make_labeled_batches(2, 2)]
    extended = network.with_bank(tiny_bank.extend(tiny_clip, batches, progress=False))
    assert extended.image_encoder is network.image_encoder
    features = network.encode(images)
    assert (extended.image_probability(features) > network.image_probability(features)).all()
    assert (extended(images) - before).abs().max() > 1e-4
    assert torch.equal(network(images), before)


def test_sigma_and_temperature_stay_when_the_bank_changes(tiny_clip: CLIP, tiny_bank: MemoryBank):
    network, images = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.07, sigma=1.0), make_images(1)
    assert torch.equal(network.with_bank(tiny_bank)(images), network(images))


def test_network_works_with_half_precision_encoders(tiny_bank: MemoryBank, network: MRAD):
    images = make_images(1)
    maps = build_mrad_tf(make_tiny_clip(precision="bf16"), tiny_bank)(images)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, network(images), atol=5e-3, rtol=0)


def test_bank_of_another_backbone_is_refused(tiny_bank: MemoryBank):
    with pytest.raises(MemoryBankError, match=r"built with backbone 'tiny 0'.*the loaded backbone is 'tiny 1'"):
        build_mrad_tf(make_tiny_clip(seed=1), tiny_bank)


def test_bank_without_anomalous_patches_is_refused(tiny_clip: CLIP, tiny_bank: MemoryBank):
    normal = dataclasses.replace(tiny_bank, patch_labels=torch.zeros_like(tiny_bank.patch_labels))
    with pytest.raises(MemoryBankError, match="no patch anomalous entry"):
        build_mrad_tf(tiny_clip, normal)


def test_images_that_do_not_fit_the_patches_are_refused(network: MRAD):
    with pytest.raises(ValueError, match="multiples of the patch size 14, got 57 x 56"):
        network(make_images(1, 57, 56))


def test_start_temperature_that_is_not_positive_is_refused(tiny_clip: CLIP, tiny_bank: MemoryBank):
    with pytest.raises(ValueError, match="start_temperature must be positive"):
        build_mrad_ft(tiny_clip, tiny_bank, start_temperature=0.0)


def test_fine_tuning_may_start_from_retrieval(tiny_clip: CLIP, tiny_bank: MemoryBank):
    features = tiny_clip.image_encoder(torch.rand(2, 3, TINY_SIZE, TINY_SIZE))
    plain = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.07)
    started = build_mrad_ft(tiny_clip, tiny_bank, start_temperature=0.07)
    with torch.no_grad():
        assert torch.allclose(started.image_probability(features), plain.image_probability(features), atol=1e-5)
