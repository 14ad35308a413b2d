"""Provenance of a run, and hashes of parts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityd
from torch import nn

from mrad_med import CLIP, AnomalyInferer, ImageView, MemoryBank, SliceAnomalyInferer, build_preprocessing, describe_run
from mrad_med.networks import SlidingWindowAnomalyInferer, fingerprint


def test_equal_parts_have_one_hash_in_every_process(tiny_clip: CLIP):
    def make() -> Compose:
        return build_preprocessing(tiny_clip.card, ImageView(56, window="lung"))

    assert fingerprint(make()) == fingerprint(make()) == fingerprint(pickle.loads(pickle.dumps(make())))
    assert fingerprint(make()) != fingerprint(build_preprocessing(tiny_clip.card, ImageView(56)))


@pytest.mark.parametrize(
    "view",
    [
        ImageView(70),
        ImageView(56, window="bone"),
        ImageView(56, plane="coronal"),
        ImageView(56, max_pixels=10),
        ImageView(56, remove=("border",)),
        ImageView(56, keep_size=True),
        ImageView(56, strict_geometry=False),
    ],
)
def test_every_setting_of_a_view_is_in_the_hash_of_its_preprocessing(tiny_clip: CLIP, view: ImageView):
    assert fingerprint(build_preprocessing(tiny_clip.card, view)) != fingerprint(
        build_preprocessing(tiny_clip.card, ImageView(56))
    )


def test_a_further_transform_changes_the_hash_and_its_order_too(tiny_clip: CLIP):
    steps, more = build_preprocessing(tiny_clip.card, ImageView(56)), ScaleIntensityd("image", factor=0.5)
    assert len({fingerprint(part) for part in (steps, Compose([steps, more]), Compose([more, steps]))}) == 3


def test_attributes_that_only_change_speed_are_not_in_the_hash():
    assert fingerprint(SliceAnomalyInferer(slices_per_batch=1)) == fingerprint(
        SliceAnomalyInferer(slices_per_batch=8, device="cpu")
    )
    assert fingerprint(SlidingWindowAnomalyInferer(sw_batch_size=1)) == fingerprint(
        SlidingWindowAnomalyInferer(sw_batch_size=2, device="cpu")
    )
    assert fingerprint(SliceAnomalyInferer(smooth=1.0)) != fingerprint(SliceAnomalyInferer())
    assert fingerprint(AnomalyInferer(image_weight=0.5)) != fingerprint(AnomalyInferer())
    assert fingerprint(SlidingWindowAnomalyInferer(overlap=0.5)) != fingerprint(SlidingWindowAnomalyInferer())


def test_weights_and_arrays_are_in_the_hash():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint({"a": np.zeros(3)}) != fingerprint({"a": np.zeros((3, 1))})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"b", "a"}) == fingerprint({"a", "b"})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_an_object_that_contains_itself_has_a_hash():
    part = AnomalyInferer()
    part.itself = part
    assert len(fingerprint(part)) == 64


def test_a_run_records_views_and_mappings_as_plain_values(tiny_clip: CLIP, tiny_bank: MemoryBank):
    record = describe_run(tiny_clip, tiny_bank, parts={"inferer": AnomalyInferer()}, view=ImageView(56), given=(1, 2))
    assert record["settings"]["view"]["image_size"] == 56
    assert record["settings"]["given"] == [1, 2]
    assert record["parts"] == {"inferer": fingerprint(AnomalyInferer())}
    assert record["backbone"]["name"] == "tiny 0"
