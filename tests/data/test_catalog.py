"""The catalog: complete, consistent, and equal to the published numbers."""

from __future__ import annotations

import dataclasses

import pytest

from mrad_med.data.archives import ARCHIVES
from mrad_med.data.catalog import DATASETS, METRICS


def test_catalog_has_every_archive_by_its_name():
    assert set(DATASETS) == set(ARCHIVES)
    assert all(name == entry.name for name, entry in DATASETS.items())
    assert len({entry.title for entry in DATASETS.values()}) == len(DATASETS) == 25


@pytest.mark.parametrize("entry", DATASETS.values(), ids=lambda entry: entry.name)
def test_dataset_is_complete(entry):
    assert entry.domain in ("medical", "industrial")
    assert entry.home.startswith(("https://", "http://"))
    assert all((entry.title, entry.modality, entry.license, entry.reference))
    assert set(entry.counts) <= set(ARCHIVES[entry.name].layout.splits)
    assert all(normal >= 0 and anomalous >= 0 and normal + anomalous for normal, anomalous in entry.counts.values())
    assert set(entry.published) <= set(METRICS)
    assert entry.second_hand <= set(entry.published)
    assert all(50 < value < 100 for value in entry.published.values())
    assert entry.has_masks or not any(metric.startswith("pixel") for metric in entry.published)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        *(("mvtec-ad", 1725), ("visa", 2162), ("btad", 741), ("mpdd", 458), ("dagm", 8050), ("ksdd", 399)),
        *(("ksdd2", 1004), ("bmad-brain", 3715), ("bmad-liver", 1493), ("bmad-resc", 1805), ("bmad-oct2017", 968)),
        ("bmad-chest", 17194),
    ],
)
def test_counts_add_up_to_the_published_sizes(name, total):
    assert sum(DATASETS[name].counts["test"]) == total


def test_second_hand_numbers_are_marked():
    entry = DATASETS["mvtec-ad"]
    assert entry.published == {"pixel_auroc": 93.0, "pixel_pro": 86.8, "image_auroc": 94.0, "image_ap": 97.4}
    assert entry.second_hand == {"pixel_pro", "image_ap"}
    assert DATASETS["kvasir"].published == {"pixel_auroc": 84.3, "pixel_pro": 52.7}
    assert DATASETS["kvasir"].second_hand == {"pixel_auroc"}
    assert (DATASETS["ksdd"].published, DATASETS["ksdd"].second_hand) == ({"image_auroc": 83.9}, frozenset())
    assert DATASETS["tn3k"].published == {}


def test_catalog_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        DATASETS["mine"] = DATASETS["visa"]
    with pytest.raises(TypeError, match="does not support item assignment"):
        DATASETS["visa"].counts["test"] = (1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        DATASETS["visa"].name = "mine"
