"""Records of cases: what comes back from disk, what they belong to, and the maps made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mrad_med import CLIP, MemoryBank, build_mrad_clip, build_mrad_ft, build_mrad_tf
from mrad_med.evaluation import records as module
from mrad_med.evaluation.records import (
    CaseRecord,
    MapMaker,
    RecordStore,
    pack_mask,
    unpack_mask,
)
from mrad_med.networks.maps import upsample_and_blur
from mrad_med.networks.provenance import fingerprint
from mrad_med.store import contents_of


def make_record(*, mask: bool = True, seed: int = 0) -> CaseRecord:
    random = np.random.RandomState(seed)
    return CaseRecord(
        random.rand(3, 5).astype(np.float32), float(random.rand()), random.rand(7, 11) > 0.5 if mask else None
    )


# masks


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (8, 16), (33, 5)])
def test_masks_of_any_size_are_unpacked_as_they_were(shape: tuple[int, int]):
    mask = np.random.RandomState(1).rand(*shape) > 0.5
    packed = pack_mask(mask)
    assert len(packed) == 8 + int(np.ceil(mask.size / 8))
    restored = unpack_mask(packed)
    assert restored.dtype == bool
    np.testing.assert_array_equal(restored, mask)


def test_a_mask_that_is_not_known_stays_unknown():
    assert pack_mask(None) == b""
    assert unpack_mask(b"") is None


@pytest.mark.parametrize("change", [lambda packed: packed[:-1], lambda packed: packed + b"\0"])
def test_bytes_that_are_not_a_packed_mask_are_refused(change):
    with pytest.raises(ValueError, match="expected a packed mask of 7 x 9 pixels, got"):
        unpack_mask(change(pack_mask(np.ones((7, 9), bool))))


# the store


@pytest.mark.parametrize("mask", [True, False])
def test_a_record_comes_back_bit_by_bit(tmp_path: Path, mask: bool):
    store, record = RecordStore(tmp_path / "new" / "records", {"head": "a"}), make_record(mask=mask)
    path = store.path("content")
    store.save(path, record)
    restored = store.load(path)
    np.testing.assert_array_equal(restored.patch_map, record.patch_map)
    assert restored.patch_map.dtype == np.float32
    assert restored.image_probability == record.image_probability
    if mask:
        np.testing.assert_array_equal(restored.mask, record.mask)
    else:
        assert restored.mask is None
    assert list((tmp_path / "new" / "records").iterdir()) == [path]


def test_a_missing_record_is_none_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = RecordStore(tmp_path, {})
    assert store.load(store.path("content")) is None
    assert caplog.text == ""


@pytest.mark.parametrize("damage", ["cut", "other", "lacking", "short mask"])
def test_a_damaged_record_is_reported_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str):
    store = RecordStore(tmp_path, {})
    path = store.path("content")
    store.save(path, make_record())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "other":
        path.write_bytes(b"no record")
    elif damage == "lacking":
        save_file({"patch_map": np.zeros((2, 2), np.float32)}, path)
    else:
        tensors = {"patch_map": np.zeros((2, 2), np.float32), "image_probability": np.zeros(1)}
        save_file({**tensors, "mask": np.frombuffer(pack_mask(np.ones((7, 9), bool))[:-3], np.uint8)}, path)
    assert store.load(path) is None
    assert f"{path.name} is damaged: its case is scored again" in caplog.text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fill_the_disk(_, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(module, "save_file", fill_the_disk)
    store = RecordStore(tmp_path, {})
    with pytest.raises(OSError, match=r"cannot write to .*No space left.*free some space and run again"):
        store.save(store.path("content"), make_record())
    assert list(tmp_path.iterdir()) == []


def test_records_are_found_by_network_and_content(tmp_path: Path):
    paths = {RecordStore(tmp_path, {"head": head}).path(content) for head in "ab" for content in "xy"}
    assert len(paths) == 4
    assert RecordStore(tmp_path, {"x": 1, "y": 2}).path("x") == RecordStore(tmp_path, {"y": 2, "x": 1}).path("x")


def test_records_of_other_package_versions_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = RecordStore(tmp_path, {}).path("x")
    monkeypatch.setattr(module, "package_versions", lambda: {"torch": "99"})
    assert RecordStore(tmp_path, {}).path("x") != before


def test_records_of_an_older_version_are_reported_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = RecordStore(tmp_path, {})
    store.save(store.path("content"), make_record())
    store.report_outdated()
    assert caplog.messages == []
    for name in "ab":
        (tmp_path / f"{name * 40}.safetensors").touch()  # as version 0.1 named them
    store.report_outdated()
    assert caplog.messages == ["2 record(s) of an older version of mrad_med are not used; their cases are scored again"]


# what a case is


@pytest.fixture
def case(tmp_path: Path) -> dict:
    for name, value in (("image", 10), ("mask", 255)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / f"{name}.png")
    return {
        "case_id": "a",
        "image": str(tmp_path / "image.png"),
        "mask": str(tmp_path / "mask.png"),
        "label": 1,
    }


def test_a_case_is_its_files_and_its_label_wherever_they_lie(tmp_path: Path, case: dict):
    (before,) = contents_of([case])[0].values()
    moved = {**case, "case_id": "b", "class": "other"}
    for name in ("image", "mask"):
        moved[name] = str(Path(case[name]).rename(tmp_path / f"moved {name}.png"))
    assert contents_of([moved]) == ({"b": before}, [])


@pytest.mark.parametrize("change", ["image", "mask", "no mask", "label", "mask_threshold"])
def test_a_case_that_changed_is_another(case: dict, change: str):
    before = contents_of([case])[0]
    if change in case and change != "label":
        Image.fromarray(np.full((4, 4), 11, np.uint8)).save(case[change])
    changed = {"no mask": {"mask": None}, "label": {"label": 0}, "mask_threshold": {"mask_threshold": 0}}
    after = contents_of([{**case, **changed.get(change, {})}])[0]
    assert after.keys() == before.keys()
    assert after != before


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_case_whose_files_are_gone_is_named(case: dict, name: str):
    Path(case[name]).unlink()
    contents, (failure,) = contents_of([case])
    assert contents == {}
    assert failure.case_id == "a"
    assert failure.reason == f"its {name} cannot be read (No such file or directory); look at the path"


# what a network is


def test_networks_that_answer_alike_have_one_fingerprint(tiny_clip: CLIP, tiny_bank: MemoryBank):
    builds = [
        lambda: build_mrad_tf(tiny_clip, tiny_bank),
        lambda: build_mrad_ft(tiny_clip, tiny_bank, seed=1),
        lambda: build_mrad_clip(tiny_clip, tiny_bank, seed=1),
    ]
    prints = [fingerprint(build().head) for build in builds]
    assert len(set(prints)) == 3
    assert [fingerprint(build().train().head) for build in builds] == prints


def test_weights_settings_and_memory_change_the_fingerprint(tiny_clip: CLIP, tiny_bank: MemoryBank):
    other_bank = MemoryBank(
        *(tiny_bank.image_keys.flip(1), tiny_bank.image_labels, tiny_bank.patch_keys, tiny_bank.patch_labels),
        tiny_bank.card,
    )
    heads = [
        build_mrad_tf(tiny_clip, tiny_bank).head,
        build_mrad_tf(tiny_clip, tiny_bank, temperature=0.5).head,
        build_mrad_tf(tiny_clip, other_bank).head,
        *(build_mrad_ft(tiny_clip, tiny_bank, seed=seed).head for seed in (1, 2)),
        *(build_mrad_clip(tiny_clip, tiny_bank, seed=1, threshold=threshold).head for threshold in (0.4, 0.5)),
        build_mrad_clip(tiny_clip, tiny_bank, seed=1, threshold=0.5, fp16_deep_prompts=True).head,
    ]
    assert len({fingerprint(head) for head in heads}) == len(heads)


# maps


def test_map_and_score_of_a_constant_record_are_its_value():
    record = CaseRecord(np.full((4, 4), 0.3, np.float32), 0.8, None)
    anomaly_map, score = MapMaker((56, 56), image_weight=0.25)(record)
    torch.testing.assert_close(anomaly_map, torch.full((1, 1, 56, 56), 0.3))
    assert score == pytest.approx(0.25 * 0.8 + 0.75 * 0.3)


def test_map_is_on_the_grid_of_the_mask_and_the_score_does_not_depend_on_it():
    record = make_record()
    make_map = MapMaker((42, 70), sigma=2.0, top_fraction=0.1)
    plain, score = make_map(CaseRecord(record.patch_map, record.image_probability, None))
    expected = upsample_and_blur(torch.from_numpy(record.patch_map)[None, None], (42, 70), sigma=2.0)
    torch.testing.assert_close(plain, expected)
    of_file, same_score = make_map(record)
    assert of_file.shape == (1, 1, 7, 11)
    assert same_score == score
    assert 0 <= of_file.min() <= of_file.max() <= 1
    of_input, _ = make_map(CaseRecord(record.patch_map, 0.0, np.zeros((42, 70), bool)))
    assert torch.equal(of_input, plain)
