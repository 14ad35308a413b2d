"""The train-free head on features made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mrad_med import ImageFeatures, MemoryBank
from mrad_med.networks.heads import FineTunedHead, TrainFreeHead
from mrad_med.networks.retrieval import average_neighbors
from mrad_med.types import BankCard

CARD = BankCard(backbone="by hand", backbone_sha256=None, image_size=None)


def make_bank(*, swap: bool = False) -> MemoryBank:
    """Return a bank whose anomalous keys are the first axis and whose normal keys are the second, or the reverse."""
    labels = torch.tensor([0, 1] if swap else [1, 0])
    return MemoryBank(torch.eye(2, 3), labels, torch.eye(2, 4), labels, CARD)


def make_features(image: list[list[float]], patches: torch.Tensor, grid_size: tuple[int, int]) -> ImageFeatures:
    return ImageFeatures(torch.tensor(image), patches, torch.zeros(*patches.shape[:2], 3), grid_size)


def make_random_features(batch: int = 3) -> ImageFeatures:
    generator = torch.Generator().manual_seed(4)
    return ImageFeatures(
        torch.randn(batch, 3, generator=generator),
        torch.randn(batch, 6, 4, generator=generator),
        torch.randn(batch, 6, 3, generator=generator),
        (2, 3),
    )


def test_image_probability_is_worked_by_hand():
    features = make_features(
        [[5.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 9.0], [3.0, 4.0, 0.0]], torch.ones(4, 1, 4), (1, 1)
    )
    probability = TrainFreeHead(make_bank()).image_probability(features)
    cosines = [(1, 0), (0, 1), (0, 0), (0.6, 0.8)]
    expected = [[math.exp(a) / (math.exp(a) + math.exp(n))] for a, n in cosines]
    torch.testing.assert_close(probability, torch.tensor(expected), atol=1e-6, rtol=0)


def test_patch_probability_is_worked_by_hand():
    patches = torch.tensor([[[8.0, 0, 0, 0], [0, 8.0, 0, 0]]])
    # On a grid of 1 x 2 each patch keeps (1 + 1/9 + 1/25) / 3 of itself and takes (1/9 + 1/25) / 3 of its neighbor.
    own, other = 1 + 1 / 9 + 1 / 25, 1 / 9 + 1 / 25
    difference = (own - other) / math.hypot(own, other)
    probability = TrainFreeHead(make_bank()).patch_probability(make_features([[1.0, 0.0, 0.0]], patches, (1, 2)))
    expected = [[1 / (1 + math.exp(-difference)), 1 / (1 + math.exp(difference))]]
    torch.testing.assert_close(probability, torch.tensor(expected), atol=1e-6, rtol=0)


def test_patch_probability_agrees_with_softmax_over_averaged_normalized_patches():
    features, bank = make_random_features(), make_bank()
    queries = F.normalize(average_neighbors(features.patches, (2, 3)), dim=-1).double()
    expected = (queries @ bank.patch_keys.double().T).softmax(-1)[..., 0]
    probability = TrainFreeHead(bank).patch_probability(features)
    assert probability.shape == (3, 6)
    torch.testing.assert_close(probability.double(), expected, atol=1e-6, rtol=0)


def test_length_of_a_feature_does_not_matter():
    features, head = make_random_features(), TrainFreeHead(make_bank())
    longer = ImageFeatures(features.image * 7, features.patches * 7, features.projected_patches, features.grid_size)
    for question in (head.image_probability, head.patch_probability):
        torch.testing.assert_close(question(longer), question(features), atol=1e-6, rtol=0)


def test_temperature_is_that_of_the_paper_when_asked():
    features = make_features([[1.0, 0.0, 0.0]], torch.tensor([[[1.0, 0, 0, 0]]]), (1, 1))
    head = TrainFreeHead(make_bank(), temperature=0.07)
    expected = 1 / (1 + math.exp(-1 / 0.07))
    assert head.image_probability(features).item() == pytest.approx(expected, abs=1e-6)
    assert head.patch_probability(features).item() == pytest.approx(expected, abs=1e-6)


def test_batch_equals_its_elements():
    features, head = make_random_features(), TrainFreeHead(make_bank())
    for index in range(3):
        rows = (getattr(features, name)[index : index + 1] for name in ("image", "patches", "projected_patches"))
        alone = ImageFeatures(*rows, features.grid_size)
        for question in (head.image_probability, head.patch_probability):
            together = question(features)[index : index + 1]
            torch.testing.assert_close(question(alone), together, atol=1e-6, rtol=0)


def test_another_bank_changes_results_and_leaves_the_original_alone():
    features, head = make_random_features(), TrainFreeHead(make_bank(), temperature=0.5)
    before = head.image_probability(features), head.patch_probability(features)
    swapped = head.with_bank(make_bank(swap=True))
    assert swapped.temperature == 0.5
    torch.testing.assert_close(swapped.image_probability(features), 1 - before[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(swapped.patch_probability(features), 1 - before[1], atol=1e-6, rtol=0)
    assert (before[1] - 0.5).abs().max() > 0.1
    assert torch.equal(head.image_probability(features), before[0])
    assert torch.equal(head.patch_probability(features), before[1])


def test_bank_moves_with_the_head_and_is_not_in_its_state_dict():
    head = TrainFreeHead(make_bank())
    assert head.state_dict() == {"_extra_state": torch.tensor(1.0, dtype=torch.float64)}  # the temperature
    assert list(head.parameters()) == []
    moved = TrainFreeHead(make_bank()).to("meta")
    assert {name: buffer.device.type for name, buffer in moved.named_buffers()} == dict.fromkeys(
        ("image_keys", "image_labels", "patch_keys", "patch_labels"), "meta"
    )


def test_the_temperature_is_what_a_train_free_head_saves_and_loads():
    saved = TrainFreeHead(make_bank(), temperature=0.3).learned_state()
    head = TrainFreeHead(make_bank())
    head.load_state_dict(saved)
    assert head.temperature == 0.3  # the float itself, not rounded to float32


def test_grid_that_does_not_fit_the_patches_is_refused():
    features = make_features([[1.0, 0.0, 0.0]], torch.ones(1, 6, 4), (2, 2))
    with pytest.raises(ValueError, match="6 patches do not fill a grid of 2 x 2"):
        TrainFreeHead(make_bank()).patch_probability(features)


def test_features_of_another_width_are_refused():
    features = ImageFeatures(torch.ones(1, 5), torch.ones(1, 1, 6), torch.ones(1, 1, 5), (1, 1))
    head = TrainFreeHead(make_bank())
    with pytest.raises(ValueError, match="same width, got 5 and 3"):
        head.image_probability(features)
    with pytest.raises(ValueError, match="same width, got 6 and 4"):
        head.patch_probability(features)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_a_learned_metric_that_starts_from_retrieval_gives_what_retrieval_gives(temperature: float):
    features = make_random_features()
    features = replace(features, patches=features.projected_patches)  # as wide as the joint space
    labels = torch.tensor([1, 0])
    bank = MemoryBank(torch.eye(2, 3), labels, torch.eye(2, 3), labels, CARD)
    plain = TrainFreeHead(bank, temperature=temperature)
    learned = FineTunedHead(bank, start_temperature=temperature).eval()
    with torch.no_grad():
        assert torch.allclose(learned.patch_probability(features), plain.patch_probability(features), atol=1e-5)
        assert torch.allclose(learned.image_probability(features), plain.image_probability(features), atol=1e-5)
