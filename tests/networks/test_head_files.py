"""Files of trained heads: round trips, and every mismatch of a head."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch

import mrad_med
from mrad_med import (
    CLIP,
    MRAD,
    MemoryBank,
    build_mrad_clip,
    build_mrad_ft,
    describe_head,
    merge_memory_banks,
    save_head,
)
from mrad_med.errors import HeadError
from mrad_med.files import sha256_of_file
from mrad_med.networks import load_head
from mrad_med.networks.head_files import check_head, sha256_of_text_tower
from mrad_med.networks.prompts import RegionPrompts
from mrad_med.training import FeatureDataset
from mrad_med.types import HeadCard
from tests.conftest import make_labeled_batches, make_tiny_clip, make_tiny_text_encoder

VARIANTS = {"MRAD-FT": build_mrad_ft, "MRAD-CLIP": build_mrad_clip}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture
def training_set(tmp_path: Path) -> FeatureDataset:
    cases = [{"case_id": f"{i}", "label": i % 2, "class": "tile"} for i in range(3)]
    return FeatureDataset(cases, [tmp_path / "unread"] * 3, (4, 4))


def saved(variant: str, path: Path, clip: CLIP, bank: MemoryBank, training_set: FeatureDataset, **keywords) -> MRAD:
    """Return a network whose head was written to a file."""
    network = VARIANTS[variant](clip, bank, seed=1, **keywords)
    card = describe_head(
        variant=variant,
        backbone=clip.card,
        bank=bank,
        training_set=training_set,
        configuration={"seed": 1, "held_out_classes": ["wood"]},
    )
    save_head(network.head, path, card)
    return network


@each_variant
def test_a_head_comes_back_with_its_card(
    variant: str, tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    path = tmp_path / "models" / "model.pt"
    network = saved(variant, path, tiny_clip, tiny_bank, training_set)
    state, card = load_head(path)
    assert state.keys() == network.head.learned_state().keys()
    assert card == HeadCard(
        variant=variant,
        backbone="tiny 0",
        backbone_sha256=tiny_clip.card.sha256,
        bank_sha256=tiny_bank.sha256,
        training_set=({"name": "tile", "normal": 2, "anomalous": 1},),
        configuration={"seed": 1, "held_out_classes": ["wood"]},
        weights_sha256=sha256_of_file(path),
        text_sha256=sha256_of_text_tower(tiny_clip.text_encoder) if variant == "MRAD-CLIP" else None,
        created=card.created,
        version=mrad_med.__version__,
    )
    again = VARIANTS[variant](tiny_clip, tiny_bank, checkpoint=path)
    images = make_labeled_batches()[0]["image"]
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
        features = network.encode(images)
        assert torch.equal(again.image_probability(features), network.image_probability(features))


def test_files_hold_learned_weights_alone(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    saved("MRAD-CLIP", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {".".join(name.split(".")[:2]) for name in state} == {"head.fine_tuned", "head.prompts"}
    assert not any("text_encoder" in name or "keys" in name for name in state)


@pytest.mark.parametrize("sizes", [{"context_length": 5, "depth": 2, "deep_length": 3}, {"depth": 1}])
def test_the_weights_determine_the_number_of_learned_tokens(
    sizes: dict[str, int], tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    path = tmp_path / "model.pt"
    network = saved("MRAD-CLIP", path, tiny_clip, tiny_bank, training_set, **sizes)
    again = build_mrad_clip(tiny_clip, tiny_bank, checkpoint=path)
    images = make_labeled_batches()[0]["image"]
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    build_mrad_clip(tiny_clip, tiny_bank, checkpoint=path, **sizes)
    with pytest.raises(
        HeadError, match=f"this checkpoint has depth {sizes['depth']}, not 3: leave these arguments out"
    ):
        build_mrad_clip(tiny_clip, tiny_bank, checkpoint=path, depth=3)


def test_prompts_are_as_deep_as_published_or_as_the_text_tower_is(tiny_clip: CLIP, tiny_bank: MemoryBank):
    deep_clip = dataclasses.replace(tiny_clip, text_encoder=make_tiny_text_encoder(layers=11))
    for clip, count in ((tiny_clip, 2), (deep_clip, 8)):
        prompts = build_mrad_clip(clip, tiny_bank).head.prompts
        assert [tuple(prompt.shape) for prompt in prompts.deep_prompts] == [(4, 16)] * count
        assert prompts.context_normal.shape == (12, 16)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": 4}, "this text tower has 3 blocks: depth must be 1 to 3, got 4"),
        ({"depth": 0}, "depth must be 1 to 3, got 0"),
        ({"context_length": 0}, "context_length must be 1 to 72 and deep_length 1 to context_length, got 0 and 4"),
        ({"context_length": 73}, "this text tower has 77 positions: context_length must be 1 to 72 .* got 73 and 4"),
        ({"context_length": 3}, "deep_length 1 to context_length, got 3 and 4"),
        ({"deep_length": 0}, "deep_length 1 to context_length, got 12 and 0"),
    ],
)
def test_prompts_that_the_text_tower_cannot_hold_are_refused(
    sizes: dict[str, int], message: str, tiny_clip: CLIP, tiny_bank: MemoryBank
):
    with pytest.raises(ValueError, match=message):
        build_mrad_clip(tiny_clip, tiny_bank, **sizes)


def test_the_longest_prompt_that_fits_ends_at_the_last_position(tiny_clip: CLIP):
    prompts = RegionPrompts(tiny_clip.text_encoder, 24, context_length=72, depth=1)
    assert prompts.ends.tolist() == [75, 76]  # "object." is a word and a point, "damaged object." one word more
    assert prompts.embedded.shape == (2, 77, 16)
    with torch.no_grad():
        assert prompts(torch.zeros(1, 2, 24)).norm(dim=-1) == pytest.approx(1)


def test_text_is_cut_after_its_end_token(tiny_clip: CLIP):
    prompts = RegionPrompts(tiny_clip.text_encoder, 24, depth=1)
    assert prompts.embedded.shape[1] == int(prompts.ends.max()) + 1 == 17


def test_deep_prompts_are_rounded_to_fp16_only_when_asked(tiny_clip: CLIP, tiny_bank: MemoryBank):
    exact, rounding = (build_mrad_clip(tiny_clip, tiny_bank, seed=0, fp16_deep_prompts=fp16) for fp16 in (False, True))
    tokens = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(exact.head.prompts(tokens), rounding.head.prompts(tokens))
        for prompt in exact.head.prompts.deep_prompts:
            prompt.copy_(prompt.half().float())
        assert torch.equal(exact.head.prompts(tokens), rounding.head.prompts(tokens))
    assert rounding.head.prompts.deep_prompts[0].dtype == torch.float32  # the learned parameter is not rounded


@pytest.mark.parametrize(
    ("trained", "asked", "rounds"), [(True, None, True), (False, None, False), (True, False, False)]
)
def test_deep_prompts_are_rounded_as_the_card_says_unless_asked(
    tmp_path: Path,
    tiny_clip: CLIP,
    tiny_bank: MemoryBank,
    training_set: FeatureDataset,
    trained: bool,
    asked: bool | None,
    rounds: bool,
):
    path = tmp_path / "model.pt"
    network = build_mrad_clip(tiny_clip, tiny_bank, seed=1, fp16_deep_prompts=trained)
    card = describe_head(
        variant="MRAD-CLIP",
        backbone=tiny_clip.card,
        bank=tiny_bank,
        training_set=training_set,
        configuration={"fp16_deep_prompts": trained},
    )
    save_head(network.head, path, card)
    again = build_mrad_clip(tiny_clip, tiny_bank, checkpoint=path, fp16_deep_prompts=asked)
    assert again.head.prompts.fp16_deep_prompts is rounds
    of_state = build_mrad_clip(tiny_clip, tiny_bank, checkpoint=network.head.learned_state(), fp16_deep_prompts=asked)
    assert of_state.head.prompts.fp16_deep_prompts is False  # weights alone do not state it


def test_text_features_are_made_once_a_batch(tiny_clip: CLIP, tiny_bank: MemoryBank, monkeypatch: pytest.MonkeyPatch):
    network, calls = build_mrad_clip(tiny_clip, tiny_bank), []
    network.head.prompts.text_encoder.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    mrad_med.AnomalyInferer()(torch.zeros(3, 3, 56, 56), network)
    assert calls == [6]  # two prompts an image


@each_variant
def test_a_head_of_another_backbone_is_refused(
    variant: str, tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    saved(variant, tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    other = make_tiny_clip(seed=1)
    bank = mrad_med.build_memory_bank(other, make_labeled_batches(), progress=False)
    message = r"trained on backbone 'tiny 0' \(sha256 000000000000\), but the loaded backbone is 'tiny 1'"
    with pytest.raises(HeadError, match=message):
        VARIANTS[variant](other, bank, checkpoint=tmp_path / "model.pt")


def test_prompts_of_another_text_tower_are_refused(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    for variant in VARIANTS:
        saved(variant, tmp_path / f"{variant}.pt", tiny_clip, tiny_bank, training_set)
    other = dataclasses.replace(tiny_clip, text_encoder=make_tiny_text_encoder(seed=9))
    with pytest.raises(
        HeadError, match=r"prompts of this head were trained with another text tower .* than that of 'tiny 0'"
    ):
        build_mrad_clip(other, tiny_bank, checkpoint=tmp_path / "MRAD-CLIP.pt")
    for clip in (other, dataclasses.replace(tiny_clip, text_encoder=None)):
        build_mrad_ft(clip, tiny_bank, checkpoint=tmp_path / "MRAD-FT.pt")


@each_variant
def test_a_head_of_another_bank_is_refused_and_one_of_a_part_of_the_bank_is_accepted(
    variant: str, tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    path = tmp_path / "model.pt"
    network = saved(variant, path, tiny_clip, tiny_bank, training_set)
    other = mrad_med.build_memory_bank(tiny_clip, make_labeled_batches(seed=5), progress=False)
    with pytest.raises(
        HeadError, match=r"trained with another memory bank .* use the head's bank or an extension of it"
    ):
        VARIANTS[variant](tiny_clip, other, checkpoint=path)
    merged = merge_memory_banks([other, tiny_bank])
    extended = tiny_bank.extend(tiny_clip, make_labeled_batches(2, seed=5), share=0.5, progress=False)
    twice = extended.extend(tiny_clip, make_labeled_batches(2, seed=6), progress=False)
    for bank in (merged, extended, twice):
        loaded = VARIANTS[variant](tiny_clip, bank, checkpoint=path).head.learned_state()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in network.head.learned_state().items())


def test_another_bank_can_be_used_on_purpose(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    network = saved("MRAD-FT", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    other = mrad_med.build_memory_bank(tiny_clip, make_labeled_batches(seed=5), progress=False)
    moved = build_mrad_ft(tiny_clip, tiny_bank, checkpoint=tmp_path / "model.pt").with_bank(other)
    assert torch.equal(moved.head.patch_keys, other.patch_keys)
    assert torch.equal(moved.head.patch_key.weight, network.head.patch_key.weight)


def test_a_head_of_the_other_variant_is_refused(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    saved("MRAD-FT", tmp_path / "ft.pt", tiny_clip, tiny_bank, training_set)
    saved("MRAD-CLIP", tmp_path / "clip.pt", tiny_clip, tiny_bank, training_set)
    with pytest.raises(HeadError, match="these weights do not belong to a PromptedHead: missing"):
        build_mrad_clip(tiny_clip, tiny_bank, checkpoint=tmp_path / "ft.pt")
    with pytest.raises(HeadError, match="these weights do not belong to a FineTunedHead: missing"):
        build_mrad_ft(tiny_clip, tiny_bank, checkpoint=tmp_path / "clip.pt")


def test_weights_of_other_widths_are_refused(tiny_clip: CLIP, tiny_bank: MemoryBank):
    state = build_mrad_ft(tiny_clip, tiny_bank).head.learned_state()
    with pytest.raises(
        HeadError, match=r"these weights belong to another backbone: [^\n]*\n\tsize mismatch for patch_query"
    ):
        build_mrad_ft(tiny_clip, tiny_bank, checkpoint=state | {"patch_query.weight": torch.zeros(3, 3)})


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:500] + b"\xff" + data[501:], lambda _: b""]
)
def test_damaged_weights_are_refused(
    damage, tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    path = tmp_path / "model.pt"
    saved("MRAD-FT", path, tiny_clip, tiny_bank, training_set)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HeadError, match=r"model\.pt is damaged or does not belong to its card model\.json"):
        build_mrad_ft(tiny_clip, tiny_bank, checkpoint=path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"variant": "MRAD-FT"}', '{"training_set": 5}'])
def test_a_damaged_card_is_refused(
    content: str, tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    saved("MRAD-FT", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(HeadError, match=r"model\.json is not the card of a head .*; copy it again"):
        load_head(tmp_path / "model.pt")


def test_a_card_of_a_newer_version_is_read(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    saved("MRAD-FT", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"something": "new"}))
    assert load_head(tmp_path / "model.pt")[1].variant == "MRAD-FT"


def test_weights_without_a_card_must_be_a_published_checkpoint(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    saved("MRAD-FT", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    (tmp_path / "model.json").unlink()
    with pytest.raises(ValueError, match=r"model\.pt is damaged or not a published checkpoint"):
        load_head(tmp_path / "model.pt")
    with pytest.raises(
        FileNotFoundError, match=r"no head file .*missing\.pt; train a head with train\.json of a bundle"
    ):
        load_head(tmp_path / "missing.pt")


def test_the_best_validation_goes_onto_the_card_where_it_is_defined(
    tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, training_set: FeatureDataset
):
    network = build_mrad_ft(tiny_clip, tiny_bank)
    card = describe_head(
        variant="MRAD-FT",
        backbone=tiny_clip.card,
        bank=tiny_bank,
        training_set=training_set,
        metrics={"images": 3},
    )

    def metrics_after(best_metric: float, best_metric_epoch: int) -> dict:
        state = SimpleNamespace(
            key_metric_name="val_pixel_auroc", best_metric=best_metric, best_metric_epoch=best_metric_epoch
        )
        save_head(network.head, tmp_path / "model.pt", card, evaluator=SimpleNamespace(state=state))
        return load_head(tmp_path / "model.pt")[1].metrics

    assert metrics_after(-1, -1) == {"images": 3}  # no validation
    assert metrics_after(float("nan"), 1) == {"images": 3}  # undefined
    expected = {"images": 3, "val_pixel_auroc": {"best_metric": 0.9, "best_metric_epoch": 2}}
    assert metrics_after(0.9, 2) == expected


def test_a_full_disk_leaves_the_head_before(
    tmp_path: Path,
    tiny_clip: CLIP,
    tiny_bank: MemoryBank,
    training_set: FeatureDataset,
    monkeypatch: pytest.MonkeyPatch,
):
    saved("MRAD-FT", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fill_the_disk(_: object, stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")  # the error of torch's writer

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(OSError, match=r"cannot write .*model\.pt .*free some space or choose another folder"):
        saved("MRAD-FT", tmp_path / "model.pt", tiny_clip, tiny_bank, training_set)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_head_is_checked_by_hashes_not_by_names(tiny_clip: CLIP, tiny_bank: MemoryBank):
    card = HeadCard("MRAD-FT", "a name", tiny_clip.card.sha256, tiny_bank.sha256)
    check_head(card, dataclasses.replace(tiny_clip.card, name="renamed"), tiny_bank)
