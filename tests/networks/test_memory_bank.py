"""The memory bank: built by hand, in one pass or many, saved completely or not at all, and checked."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from safetensors.torch import save_file
from torch import Tensor

from mrad_med import (
    CLIP,
    AnomalyDetector,
    MemoryBank,
    build_memory_bank,
    build_mrad_tf,
    load_memory_bank,
    merge_memory_banks,
)
from mrad_med.cli import main
from mrad_med.errors import MemoryBankError
from mrad_med.networks.retrieval import average_neighbors
from mrad_med.types import LOCAL_SHARE, BackboneCard, BankCard
from tests.conftest import make_labeled_batches, make_tiny_clip

TENSORS = ("image_keys", "image_labels", "patch_keys", "patch_labels")
NOTHING = torch.zeros(0, dtype=torch.int64)


def make_images(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(23))


def make_bank(clip: CLIP, *batches: dict[str, Any]) -> MemoryBank:
    return build_memory_bank(clip, batches, progress=False)


def make_card(**changes: Any) -> BankCard:
    return BankCard(**{"backbone": "tiny", "backbone_sha256": "a" * 64, "image_size": (56, 56)} | changes)


def make_small_bank(**changes: Any) -> MemoryBank:
    """Return two entries per level without a backbone."""
    fields = {
        "image_keys": torch.eye(2, 24),
        "image_labels": torch.tensor([0, 1]),
        "patch_keys": torch.eye(2, 32),
        "patch_labels": torch.tensor([1, 0]),
        "card": make_card(),
    }
    return MemoryBank(**fields | changes)


def assert_same_entries(found: MemoryBank, expected: MemoryBank, atol: float = 0.0) -> None:
    for name in TENSORS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=atol, rtol=0)


def test_entries_are_those_worked_by_hand(tiny_clip: CLIP):
    image = make_images()
    mask = torch.zeros(1, 1, 56, 56)
    mask[..., 14:42, 0:21] = 1  # patches of rows 1 and 2: column 0 is inside, column 1 is half inside, the rest outside
    bank = make_bank(tiny_clip, {"image": image, "mask": mask, "label": torch.tensor([1])})
    features = tiny_clip.image_encoder(image)
    grid = average_neighbors(features.patches, (4, 4)).reshape(4, 4, 32)
    inside = (grid[1, 0] + grid[2, 0]) / 2
    outside = (grid[0].sum(0) + grid[3].sum(0) + grid[1:3, 2:].sum((0, 1))) / 12
    expected = torch.stack([inside / inside.norm(), outside / outside.norm()])
    torch.testing.assert_close(bank.patch_keys, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(bank.image_keys, features.image / features.image.norm(), atol=1e-6, rtol=0)
    assert bank.patch_labels.tolist() == [1, 0]
    assert bank.image_labels.tolist() == [1]


def test_patch_keys_are_normalized_after_the_mean_and_not_before(tiny_clip: CLIP):
    image = make_images()
    bank = make_bank(tiny_clip, {"image": image, "label": torch.tensor([0])})
    patches = average_neighbors(tiny_clip.image_encoder(image).patches, (4, 4))[0]
    other = F.normalize(F.normalize(patches, dim=-1).mean(0), dim=0)
    torch.testing.assert_close(bank.patch_keys[0], F.normalize(patches.mean(0), dim=0), atol=1e-6, rtol=0)
    assert (bank.patch_keys[0] - other).abs().max() > 1e-4


def test_keys_have_unit_length(tiny_bank: MemoryBank):
    for keys in (tiny_bank.image_keys, tiny_bank.patch_keys):
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys)), atol=1e-6, rtol=0)


def test_each_image_gives_its_anomalous_key_first(tiny_bank: MemoryBank):
    assert tiny_bank.image_labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert tiny_bank.patch_labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]


def test_mixed_patches_belong_to_neither_region(tiny_clip: CLIP):
    mask = torch.zeros(1, 1, 56, 56)
    mask[..., 7:49, 7:49] = 1  # no patch of the border is pure; the four in the middle are
    bank = make_bank(tiny_clip, {"image": make_images(), "mask": mask, "label": torch.tensor([1])})
    middle = average_neighbors(tiny_clip.image_encoder(make_images()).patches, (4, 4)).reshape(4, 4, 32)[1:3, 1:3]
    assert bank.patch_labels.tolist() == [1]
    torch.testing.assert_close(bank.patch_keys[0], F.normalize(middle.mean((0, 1)), dim=0), atol=1e-6, rtol=0)


def test_image_of_mixed_patches_only_gives_no_patch_entry(tiny_clip: CLIP):
    stripes = (torch.arange(56) // 7 % 2).float().expand(1, 1, 56, 56)
    bank = make_bank(tiny_clip, {"image": make_images(), "mask": stripes, "label": torch.tensor([1])})
    assert bank.image_keys.shape == (1, 24)
    assert bank.patch_keys.shape == (0, 32)
    assert bank.patch_labels.dtype == torch.int64


def test_mask_counts_above_one_half(tiny_clip: CLIP):
    mask = torch.full((1, 1, 56, 56), 0.5)
    mask[..., :28] = 0.51
    gray = make_bank(tiny_clip, {"image": make_images(), "mask": mask, "label": torch.tensor([1])})
    sharp = make_bank(tiny_clip, {"image": make_images(), "mask": (mask > 0.5).float(), "label": torch.tensor([1])})
    assert gray.patch_labels.tolist() == [1, 0]
    assert_same_entries(gray, sharp)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float64])
def test_masks_of_any_type_give_the_same_entries(tiny_clip: CLIP, dtype: torch.dtype):
    (batch,) = make_labeled_batches(2, 2)
    assert_same_entries(make_bank(tiny_clip, batch | {"mask": batch["mask"].to(dtype)}), make_bank(tiny_clip, batch))


def test_normal_image_without_mask_is_normal_everywhere(tiny_clip: CLIP):
    image, label = make_images(), torch.tensor([0])
    without = make_bank(tiny_clip, {"image": image, "label": label})
    with_empty = make_bank(tiny_clip, {"image": image, "mask": torch.zeros(1, 1, 56, 56), "label": label})
    assert without.patch_labels.tolist() == [0]
    assert_same_entries(without, with_empty)


def test_anomalous_image_without_mask_adds_an_image_entry_only(tiny_clip: CLIP, caplog: pytest.LogCaptureFixture):
    bank = make_bank(tiny_clip, {"image": make_images(2), "label": torch.tensor([1, 0])})
    assert bank.image_labels.tolist() == [1, 0]
    assert bank.patch_labels.tolist() == [0]
    assert caplog.text == ""


def test_empty_mask_of_an_anomalous_image_is_warned_of(tiny_clip: CLIP, caplog: pytest.LogCaptureFixture):
    masks = torch.zeros(3, 1, 56, 56)
    masks[2, ..., :14] = 1
    with caplog.at_level(logging.WARNING, "mrad_med"):
        bank = make_bank(tiny_clip, {"image": make_images(3), "mask": masks, "label": torch.tensor([1, 0, 1])})
    assert "1 anomalous image(s) have an empty mask" in caplog.text
    assert bank.patch_labels.tolist() == [0, 0, 1, 0]


def test_mask_of_nan_is_unknown_for_one_image_of_a_batch(tiny_clip: CLIP, caplog: pytest.LogCaptureFixture):
    masks = torch.zeros(3, 1, 56, 56)
    masks[1] = torch.nan
    masks[2, ..., :14] = 1
    bank = make_bank(tiny_clip, {"image": make_images(3), "mask": masks, "label": torch.tensor([0, 1, 1])})
    assert bank.image_labels.tolist() == [0, 1, 1]
    assert bank.patch_labels.tolist() == [0, 1, 0]
    assert caplog.text == ""


def test_unknown_part_of_a_mask_belongs_to_neither_region(tiny_clip: CLIP):
    mask = torch.full((1, 1, 56, 56), torch.nan)
    mask[..., :14, :], mask[..., 42:, :] = 1, 0
    bank = make_bank(tiny_clip, {"image": make_images(), "mask": mask, "label": torch.tensor([1])})
    grid = average_neighbors(tiny_clip.image_encoder(make_images()).patches, (4, 4)).reshape(4, 4, 32)
    assert bank.patch_labels.tolist() == [1, 0]
    expected = F.normalize(torch.stack([grid[0].mean(0), grid[3].mean(0)]), dim=1)
    torch.testing.assert_close(bank.patch_keys, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("with_mask", [True, False])
def test_features_encoded_before_give_the_entries_of_their_images(tiny_clip: CLIP, with_mask: bool):
    batches = make_labeled_batches()
    if not with_mask:
        for batch in batches:
            del batch["mask"]
    cached = [
        {name: value for name, value in batch.items() if name != "image"}
        | {"features": tiny_clip.image_encoder(batch["image"])}
        for batch in batches
    ]
    bank = make_bank(tiny_clip, *cached)
    assert bank.card.image_size == (56, 56)
    assert_same_entries(bank, make_bank(tiny_clip, *batches))


def test_masks_unlike_the_images_of_their_features_are_refused(tiny_clip: CLIP):
    features = tiny_clip.image_encoder(torch.zeros(2, 3, 28, 70))
    batch = {"features": features, "label": torch.tensor([0, 1])}
    with pytest.raises(
        MemoryBankError, match=r"masks must have shape \(2, 1, 28, 70\) like their images, got \(2, 1, 70, 28\)"
    ):
        make_bank(tiny_clip, batch | {"mask": torch.zeros(2, 1, 70, 28)})


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_batches_of_any_size_give_the_same_bank(tiny_clip: CLIP, tiny_bank: MemoryBank, batch_size: int):
    assert_same_entries(make_bank(tiny_clip, *make_labeled_batches(batch_size=batch_size)), tiny_bank, atol=1e-6)


@pytest.mark.parametrize(
    "convert", [lambda labels: labels[:, None], lambda labels: labels.tolist(), lambda labels: labels.double()]
)
def test_labels_may_be_a_column_a_list_or_numbers(tiny_clip: CLIP, tiny_bank: MemoryBank, convert: Any):
    batches = [batch | {"label": convert(batch["label"])} for batch in make_labeled_batches()]
    assert_same_entries(make_bank(tiny_clip, *batches), tiny_bank)


def test_batches_of_meta_tensors_give_plain_tensors(tiny_clip: CLIP, tiny_bank: MemoryBank):
    batches = [
        batch | {"image": MetaTensor(batch["image"]), "mask": MetaTensor(batch["mask"])}
        for batch in make_labeled_batches()
    ]
    bank = make_bank(tiny_clip, *batches)
    assert {type(getattr(bank, name)) for name in TENSORS} == {Tensor}
    assert_same_entries(bank, tiny_bank)


def test_images_may_be_of_several_sizes_and_not_square(tiny_clip: CLIP):
    wide = {"image": torch.randn(1, 3, 42, 70), "mask": torch.zeros(1, 1, 42, 70), "label": torch.tensor([1])}
    wide["mask"][..., :28] = 1
    bank = make_bank(tiny_clip, *make_labeled_batches(2, 2), wide)
    assert bank.card.image_size is None
    assert bank.patch_labels.tolist() == [0, 1, 0, 1, 0]
    assert make_bank(tiny_clip, wide).card.image_size == (42, 70)


def test_card_states_the_sources_of_the_entries(tiny_clip: CLIP):
    sources = [{"name": "tiles", "license": "CC BY 4.0"}]
    bank = build_memory_bank(tiny_clip, make_labeled_batches(), sources=sources, notes={"auroc": 0.9}, progress=False)
    assert (bank.card.backbone, bank.card.backbone_sha256) == (tiny_clip.card.name, tiny_clip.card.sha256)
    assert bank.card.image_size == (56, 56)
    assert bank.card.sources == tuple(sources)
    assert bank.card.notes == {"auroc": 0.9}
    assert bank.card.counts == {"image_normal": 3, "image_anomalous": 3, "patch_normal": 6, "patch_anomalous": 3}
    assert len(bank.card.created) == len("2026-01-31")
    assert bank.card.version


def test_counts_of_the_card_are_always_those_of_the_entries():
    bank = make_small_bank(card=make_card(counts={"image_normal": 99}))
    assert bank.card.counts == {"image_normal": 1, "image_anomalous": 1, "patch_normal": 1, "patch_anomalous": 1}


def test_card_survives_the_way_to_a_dictionary_and_back():
    card = make_card(sources=({"name": "tiles"},), counts={"image_normal": 1}, created="2026-01-31", notes={"a": [1]})
    assert BankCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_card_of_a_newer_version_is_read_without_its_new_keys():
    assert BankCard.from_dict(make_card(image_size=None).to_dict() | {"mood": "good"}) == make_card(image_size=None)


def test_card_that_lacks_the_backbone_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['backbone', 'backbone_sha256'\]; use a bank that mrad_med wrote"):
        BankCard.from_dict({"image_size": None})


def test_representation_shows_counts_and_no_keys():
    expected = "MemoryBank(backbone='tiny', image_normal=1, image_anomalous=1, patch_normal=1, patch_anomalous=1)"
    assert repr(make_small_bank()) == expected


def test_loader_without_batches_is_refused(tiny_clip: CLIP):
    with pytest.raises(MemoryBankError, match="the loader yielded no image"):
        make_bank(tiny_clip)


@pytest.mark.parametrize(("lacking", "found"), [("image", "['label', 'mask']"), ("label", "['image', 'mask']")])
def test_batch_without_images_or_labels_is_refused(tiny_clip: CLIP, lacking: str, found: str):
    (batch,) = make_labeled_batches(2, 2)
    del batch[lacking]
    with pytest.raises(
        MemoryBankError, match=f"each batch needs 'image' and 'label'; this batch has {re.escape(found)}"
    ):
        make_bank(tiny_clip, batch)


@pytest.mark.parametrize("shape", [(2, 56, 56), (1, 1, 56, 56), (2, 1, 28, 56), (2, 3, 56, 56)])
def test_masks_unlike_their_images_are_refused(tiny_clip: CLIP, shape: tuple[int, ...]):
    (batch,) = make_labeled_batches(2, 2)
    with pytest.raises(MemoryBankError, match=r"masks must have shape \(2, 1, 56, 56\) like their images, got"):
        make_bank(tiny_clip, batch | {"mask": torch.zeros(shape)})


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("labels", [[1], [0, 1, 1]])
def test_labels_that_do_not_match_their_images_are_refused(tiny_clip: CLIP, labels: list[int], with_mask: bool):
    (batch,) = make_labeled_batches(2, 2)
    batch["label"] = torch.tensor(labels)
    if not with_mask:
        del batch["mask"]
    with pytest.raises(MemoryBankError, match="label"):
        make_bank(tiny_clip, batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_keys": torch.ones(24)}, r"image level: expected keys \(K, width\) and labels \(K,\), got \(24,\)"),
        ({"patch_keys": torch.ones(3, 32)}, r"patch level: expected keys .* got \(3, 32\) and \(2,\)"),
        ({"patch_labels": torch.tensor([[0, 1]])}, r"patch level: expected keys .* got \(2, 32\) and \(1, 2\)"),
        (
            {"image_keys": torch.ones(2, 24).half()},
            "image level: expected float32 keys and int64 labels, got torch.float16",
        ),
        ({"patch_labels": torch.tensor([0.0, 1.0])}, "patch level: expected float32 keys and int64 labels"),
        ({"image_keys": torch.full((2, 24), torch.nan)}, "image level: some keys are NaN or infinite; build"),
        ({"patch_keys": torch.full((2, 32), torch.inf)}, "patch level: some keys are NaN or infinite; build"),
        ({"image_labels": torch.tensor([0, 2])}, r"image level: labels must be 0 \(normal\) or 1 \(anomalous\)"),
        ({"patch_labels": torch.tensor([-1, 1])}, r"patch level: labels must be 0 \(normal\) or 1 \(anomalous\)"),
    ],
)
def test_invalid_entries_are_refused(changes: dict[str, Tensor], message: str):
    with pytest.raises(MemoryBankError, match=message):
        make_small_bank(**changes)


def test_saved_bank_comes_back_the_same(tmp_path: Path, tiny_clip: CLIP):
    batches = make_labeled_batches()
    bank = build_memory_bank(
        tiny_clip, batches, sources=[{"name": "tiles", "urls": ["a", "b"]}], notes={"auroc": 0.9}, progress=False
    )
    bank.save(tmp_path / "new folder" / "bank.safetensors")
    loaded = load_memory_bank(tmp_path / "new folder" / "bank.safetensors")
    assert_same_entries(loaded, bank)
    assert loaded.card == bank.card
    assert loaded.sha256 == bank.sha256
    images = batches[0]["image"]
    assert torch.equal(build_mrad_tf(tiny_clip, loaded)(images), build_mrad_tf(tiny_clip, bank)(images))


def test_hash_depends_on_entries_and_not_on_cards(tiny_bank: MemoryBank):
    renamed = dataclasses.replace(tiny_bank, card=make_card())
    relabeled = dataclasses.replace(tiny_bank, patch_labels=1 - tiny_bank.patch_labels)
    shifted = dataclasses.replace(tiny_bank, image_keys=tiny_bank.image_keys + 1e-3)
    assert renamed.sha256 == tiny_bank.sha256
    assert len({tiny_bank.sha256, relabeled.sha256, shifted.sha256}) == 3


def test_failed_save_leaves_the_old_file_and_no_partial_one(
    tmp_path: Path, tiny_bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "bank.safetensors"
    tiny_bank.save(path)
    before = path.read_bytes()

    def fill_the_disk(tensors: dict[str, Tensor], partial: Path, **_: Any) -> None:
        partial.write_bytes(b"half of")
        raise OSError("no space left on device")

    monkeypatch.setattr("mrad_med.networks.memory_bank.save_file", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        make_small_bank().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_is_reported_with_what_to_do(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"no memory bank .*nothing\.safetensors; build one with `mrad-med bank"
    ):
        load_memory_bank(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_bank_is_refused(tmp_path: Path, tiny_bank: MemoryBank, kept: float):
    path = tmp_path / "bank.safetensors"
    tiny_bank.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(MemoryBankError, match=r"bank\.safetensors is damaged or not a memory bank"):
        load_memory_bank(path)


def test_bank_with_a_key_turned_into_nan_is_refused(tmp_path: Path, tiny_bank: MemoryBank):
    path = tmp_path / "bank.safetensors"
    tiny_bank.save(path)
    key = tiny_bank.image_keys[0].numpy().tobytes()
    content = path.read_bytes()
    assert content.count(key) == 1
    path.write_bytes(content.replace(key, b"\xff" * len(key)))
    with pytest.raises(MemoryBankError, match="image level: some keys are NaN"):
        load_memory_bank(path)


@pytest.mark.parametrize("content", [b"not a bank", b"\x00" * 64, b"PK\x03\x04 a zip archive"])
def test_file_of_another_type_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(MemoryBankError, match=r"notes\.txt is damaged or not a memory bank"):
        load_memory_bank(tmp_path / "notes.txt")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_file_of_something_else_is_refused(tmp_path: Path, metadata: dict[str, str] | None):
    save_file({"image_keys": torch.zeros(2, 24)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(MemoryBankError, match=r"model\.safetensors is a safetensors file, but not a memory bank"):
        load_memory_bank(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "card",
    [None, "{", "{}", "[]", json.dumps({"backbone": "tiny", "backbone_sha256": None, "image_size": 56})],
    ids=["absent", "no JSON", "empty", "a list", "one size"],
)
def test_bank_with_a_damaged_card_is_refused(tmp_path: Path, card: str | None):
    metadata = {"format": "mrad_med memory bank"} | ({} if card is None else {"card": card})
    bank = make_small_bank()
    save_file({name: getattr(bank, name) for name in TENSORS}, tmp_path / "bank.safetensors", metadata=metadata)
    with pytest.raises(MemoryBankError, match=r"bank\.safetensors is damaged or not a memory bank"):
        load_memory_bank(tmp_path / "bank.safetensors")


def test_bank_that_lacks_a_tensor_is_refused(tmp_path: Path):
    bank = make_small_bank()
    metadata = {"format": "mrad_med memory bank", "card": json.dumps(bank.card.to_dict())}
    save_file({name: getattr(bank, name) for name in TENSORS[:3]}, tmp_path / "bank.safetensors", metadata=metadata)
    with pytest.raises(MemoryBankError, match=r"damaged or not a memory bank \(.*patch_labels"):
        load_memory_bank(tmp_path / "bank.safetensors")


def test_extending_equals_merging_and_building_over_the_union(tiny_clip: CLIP):
    first, second, third = make_labeled_batches()
    union = make_bank(tiny_clip, first, second, third)
    extended = make_bank(tiny_clip, first).extend(tiny_clip, [second, third], progress=False)
    merged = merge_memory_banks([make_bank(tiny_clip, batch) for batch in (first, second, third)])
    assert_same_entries(extended, union)
    assert_same_entries(merged, union)
    assert extended.card.counts == merged.card.counts == union.card.counts
    assert extended.sha256 == merged.sha256 == union.sha256


def test_new_entries_are_a_fifth_of_the_patch_entries_unless_another_share_is_given(tiny_clip: CLIP):
    """Of 165 entries and n copies of 3 new ones, a fifth are new from n = 14 on: 42 of 207, after 39 of 204."""
    bank = make_bank(tiny_clip, *make_labeled_batches(2, 2)).repeat(55)
    new = make_labeled_batches(2, 2, seed=9)
    assert len(bank.patch_keys) == 165
    assert len(bank.extend(tiny_clip, new, progress=False).patch_keys) == 165 + 14 * 3
    assert len(bank.extend(tiny_clip, new, share=0, progress=False).patch_keys) == 165 + 3


def test_every_way_to_extend_a_bank_has_the_same_share(monkeypatch: pytest.MonkeyPatch):
    for function in (MemoryBank.extend, AnomalyDetector.extend_bank):
        assert inspect.signature(function).parameters["share"].default == LOCAL_SHARE == 0.2
    monkeypatch.setattr("mrad_med.cli.bank._extend", lambda options: int(10 * options.share))
    words = ["bank", "extend", "bank.safetensors", "folder", "--out", "more.safetensors"]
    assert main(words) == 10 * 0.2


def test_extending_leaves_the_old_bank_alone(tiny_clip: CLIP):
    bank = make_bank(tiny_clip, *make_labeled_batches(2, 2))
    before = bank.sha256
    extended = bank.extend(tiny_clip, make_labeled_batches(2, 2, seed=9), sources=[{"name": "more"}], progress=False)
    assert bank.sha256 == before
    assert len(bank.image_keys) == 2
    assert len(extended.image_keys) == 4
    assert extended.card.sources == ({"name": "more"},)


def test_merged_card_keeps_all_sources_in_order():
    banks = [make_small_bank(card=make_card(sources=({"name": name},), notes={"of": name})) for name in "abc"]
    card = merge_memory_banks(banks).card
    assert [source["name"] for source in card.sources] == ["a", "b", "c"]
    assert card.notes == {}  # results measured with a part are not valid for the whole
    assert card.counts["image_normal"] == 3


def test_merging_one_bank_changes_nothing():
    bank = make_small_bank(card=make_card(sources=({"name": "a"},), notes={"auroc": 0.9}))
    merged = merge_memory_banks([bank])
    assert_same_entries(merged, bank)
    assert (merged.card.sources, merged.card.notes) == (bank.card.sources, bank.card.notes)


@pytest.mark.parametrize(("sizes", "merged"), [([(56, 56)] * 2, (56, 56)), ([(56, 56), (70, 70)], None)])
def test_merged_card_has_a_size_only_if_all_agree(sizes: list[tuple[int, int]], merged: tuple[int, int] | None):
    banks = [make_small_bank(card=make_card(image_size=size)) for size in sizes]
    assert merge_memory_banks(banks).card.image_size == merged


def test_merging_uses_the_backbone_of_the_bank_that_states_it():
    known, unknown = make_small_bank(), make_small_bank(card=make_card(backbone="unknown", backbone_sha256=None))
    card = merge_memory_banks([unknown, known]).card
    assert (card.backbone, card.backbone_sha256) == ("tiny", "a" * 64)


def make_banks_of_two_backbones() -> Iterable[list[MemoryBank]]:
    bank = make_small_bank()
    other = make_small_bank(card=make_card(backbone="other", backbone_sha256="b" * 64))
    unknown = make_small_bank(card=make_card(backbone="unknown", backbone_sha256=None))
    wide = make_small_bank(patch_keys=torch.eye(2, 40))
    return [[bank, other], [bank, unknown, other], [bank, wide], [bank, bank, other], [unknown, bank, other]]


@pytest.mark.parametrize(
    "banks",
    make_banks_of_two_backbones(),
    ids=["hashes", "unknown between", "widths", "third", "unknown first"],
)
def test_banks_of_different_backbones_are_not_merged(banks: list[MemoryBank]):
    with pytest.raises(MemoryBankError, match="banks of different backbones cannot be merged"):
        merge_memory_banks(banks)


def test_nothing_to_merge_is_refused():
    with pytest.raises(MemoryBankError, match="nothing to merge"):
        merge_memory_banks([])


def test_extending_with_another_backbone_is_refused(tiny_bank: MemoryBank):
    with pytest.raises(MemoryBankError, match=r"banks of different backbones cannot be merged: 'tiny 0'.*'tiny 1'"):
        tiny_bank.extend(make_tiny_clip(seed=1), make_labeled_batches(2, 2), progress=False)


def test_bank_fits_the_backbone_that_made_it(tiny_clip: CLIP, tiny_bank: MemoryBank):
    tiny_bank.check(tiny_clip.card)
    unknown = dataclasses.replace(tiny_bank, card=make_card(backbone_sha256=None))
    unknown.check(tiny_clip.card)  # only the widths of a bank without a backbone hash are checked


def change_card(card: BackboneCard, **changes: Any) -> BackboneCard:
    return dataclasses.replace(card, **changes)


def test_bank_of_another_backbone_is_refused(tiny_clip: CLIP, tiny_bank: MemoryBank):
    other = change_card(tiny_clip.card, name="other", sha256="b" * 64)
    with pytest.raises(
        MemoryBankError, match=r"built with backbone 'tiny 0' \(sha256 0{12}\).*'other' \(sha256 b{12}\)"
    ):
        tiny_bank.check(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embed_dim": 25},
            "image keys of this memory bank have width 24, but features of backbone 'tiny 0' have width 25",
        ),
        (
            {"width": 33},
            "patch keys of this memory bank have width 32, but features of backbone 'tiny 0' have width 33",
        ),
    ],
)
def test_bank_of_other_widths_is_refused(tiny_clip: CLIP, tiny_bank: MemoryBank, changes: dict[str, int], message: str):
    unknown = dataclasses.replace(tiny_bank, card=make_card(backbone_sha256=None))
    with pytest.raises(MemoryBankError, match=message):
        unknown.check(change_card(tiny_clip.card, **changes))


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"image_labels": torch.tensor([1, 1])}, "no image normal entry"),
        ({"image_labels": torch.tensor([0, 0])}, "no image anomalous entry"),
        ({"patch_labels": torch.tensor([1, 1])}, "no patch normal entry"),
        ({"patch_keys": torch.ones(0, 32), "patch_labels": NOTHING}, "no patch normal and no patch anomalous entry"),
    ],
)
def test_bank_that_lacks_a_label_is_refused(tiny_clip: CLIP, changes: dict[str, Tensor], lacking: str):
    bank = make_small_bank(card=make_card(backbone_sha256=None), **changes)
    with pytest.raises(MemoryBankError, match=f"this memory bank has {lacking}: retrieval needs both labels"):
        bank.check(tiny_clip.card)


def test_fields_of_a_bank_cannot_be_replaced(tiny_bank: MemoryBank):
    with pytest.raises(dataclasses.FrozenInstanceError, match="image_keys"):
        tiny_bank.image_keys = torch.zeros(1)
