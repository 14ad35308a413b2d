"""The numbers of the published implementation, reproduced with the public names and published file formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mrad_med
from mrad_med.networks.retrieval import average_neighbors
from tests.reference_weights import CLIP_MEAN, CLIP_STD, normalize

GOLDEN = Path(__file__).parent / "golden"
FEATURES, KEYS, PROBABILITIES, MAPS = 1e-4, 1e-5, 1e-5, 1e-5  # absolute tolerances
STORED_BANK_IMAGES = 2  # of the six whose bank is stored


@pytest.fixture(scope="module")
def built_bank(reference: mrad_med.CLIP, golden: dict[str, np.ndarray]) -> mrad_med.MemoryBank:
    masks = torch.from_numpy(golden["bank_masks"][:STORED_BANK_IMAGES, None])
    labels = torch.from_numpy(golden["bank_image_labels"][:STORED_BANK_IMAGES])
    batch = {"image": normalize(golden["bank_images"]), "mask": (masks > 0).float(), "label": labels}
    return mrad_med.build_memory_bank(reference, [batch], progress=False)


def test_class_features_are_the_published_ones(golden_outcome: dict[str, Any], golden: dict[str, np.ndarray]):
    np.testing.assert_allclose(
        golden_outcome["features"].image.numpy(), golden["image_features"], atol=FEATURES, rtol=0
    )


@pytest.mark.parametrize(("name", "stored"), [("patches", "patch_tokens"), ("projected_patches", "patch_proj")])
def test_patch_features_are_the_published_ones(
    golden_outcome: dict[str, Any], golden: dict[str, np.ndarray], name: str, stored: str
):
    rows = getattr(golden_outcome["features"], name)[:, golden["patch_idx"]]
    np.testing.assert_allclose(rows.numpy(), golden[stored], atol=FEATURES, rtol=0)


def test_neighbor_average_is_the_published_one(golden_outcome: dict[str, Any], golden: dict[str, np.ndarray]):
    features = golden_outcome["features"]
    rows = average_neighbors(features.patches, features.grid_size)[:, golden["patch_idx"]]
    np.testing.assert_allclose(rows.numpy(), golden["patch_pooled"], atol=FEATURES, rtol=0)


def test_patch_probabilities_are_the_published_ones(
    golden_network: mrad_med.MRAD, golden_outcome: dict[str, Any], golden: dict[str, np.ndarray]
):
    probability = golden_network.patch_probability(golden_outcome["features"])
    np.testing.assert_allclose(probability.numpy(), golden["tf_patch_prob"], atol=PROBABILITIES, rtol=0)


def test_image_probabilities_are_the_published_ones(
    golden_network: mrad_med.MRAD, golden_outcome: dict[str, Any], golden: dict[str, np.ndarray]
):
    probability = golden_network.image_probability(golden_outcome["features"])
    np.testing.assert_allclose(probability[:, 0].numpy(), golden["tf_image_prob"], atol=PROBABILITIES, rtol=0)


def test_maps_are_the_published_ones(golden_outcome: dict[str, Any], golden: dict[str, np.ndarray]):
    assert golden_outcome["anomaly_map"].shape == (3, 1, 518, 518)
    maps = golden_outcome["anomaly_map"][:, 0, ::37, ::37]
    np.testing.assert_allclose(maps.numpy(), golden["tf_map"], atol=MAPS, rtol=0)


def test_scores_are_the_published_ones(golden_outcome: dict[str, Any], golden: dict[str, np.ndarray]):
    np.testing.assert_allclose(golden_outcome["anomaly_score"][:, 0].numpy(), golden["tf_score"], atol=MAPS, rtol=0)


def test_image_entries_of_the_bank_are_the_published_ones(
    built_bank: mrad_med.MemoryBank, golden: dict[str, np.ndarray]
):
    assert built_bank.image_labels.tolist() == golden["bank_image_labels"][:STORED_BANK_IMAGES].tolist()
    expected = golden["bank_image_keys"][:STORED_BANK_IMAGES]
    np.testing.assert_allclose(built_bank.image_keys.numpy(), expected, atol=KEYS, rtol=0)


def test_patch_entries_of_the_bank_are_the_published_ones(
    built_bank: mrad_med.MemoryBank, golden: dict[str, np.ndarray]
):
    count = 2 * STORED_BANK_IMAGES  # both images have an anomalous and a normal region
    assert built_bank.patch_labels.tolist() == golden["bank_patch_labels"][:count].tolist()
    np.testing.assert_allclose(built_bank.patch_keys.numpy(), golden["bank_patch_keys"][:count], atol=KEYS, rtol=0)


@pytest.mark.parametrize("number", range(4))
def test_preprocessing_is_the_published_one(tmp_path: Path, number: int):
    stored = np.load(GOLDEN / "preprocessing.npz")
    Image.fromarray(stored[f"pre_in_{number}"]).save(tmp_path / "image.png")
    card = mrad_med.types.BackboneCard(
        name="CLIP's constants",
        sha256="0" * 64,
        width=1024,
        embed_dim=768,
        patch_size=14,
        native_size=336,
        mean=tuple(CLIP_MEAN.tolist()),
        std=tuple(CLIP_STD.tolist()),
    )
    image = mrad_med.build_preprocessing(card)({"image": str(tmp_path / "image.png")})["image"]
    assert image.shape == (3, 518, 518)
    levels = (np.asarray(image)[:, ::7, ::7] - stored[f"pre_out_{number}"]) * CLIP_STD[:, None, None] * 255
    assert np.abs(levels).max() <= 1 + 1e-3  # gray levels before normalization, as the reference asks
    assert np.abs(levels).mean() <= 0.2
