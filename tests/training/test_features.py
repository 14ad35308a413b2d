"""Cached features: what an item, a part and a batch of them is, and in which order they come."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mrad_med import collate_features, feature_loader
from mrad_med.training import FeatureDataset
from mrad_med.training.features import UNKNOWN

CLASSES = ("tile", "board", "tile", "wood", "board", "tile", "wood")


def make_tensors(index: int, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)
    mask = torch.zeros(56, 56, dtype=torch.uint8)
    mask[: 7 * index, :21] = 1
    return {
        "image": torch.randn(24, generator=generator),
        "patches": torch.randn(16, 32, generator=generator).to(dtype),
        "mask": mask,
    }


def make_dataset(folder: Path, count: int = len(CLASSES), dtype: torch.dtype = torch.float16) -> FeatureDataset:
    """Write features as the cache does; every second case is anomalous."""
    files = [folder / f"{index:032x}.safetensors" for index in range(count)]
    for index, file in enumerate(files):
        save_file(make_tensors(index, dtype), file)
    cases = [{"case_id": f"case {i}", "label": i % 2, "class": CLASSES[i % len(CLASSES)]} for i in range(count)]
    return FeatureDataset(cases, files, (4, 4))


def names(dataset: FeatureDataset) -> list[str]:
    return [dataset[i]["case_id"] for i in range(len(dataset))]


def names_in(loader) -> list[list[str]]:
    return [batch["case_id"] for batch in loader]


def act_as(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Stand for one of several processes."""
    for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", world)):
        monkeypatch.setattr(f"mrad_med.distributed.dist.{name}", lambda value=value: value)


# items


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_item_is_what_the_file_holds(tmp_path, dtype):
    item = make_dataset(tmp_path, dtype=dtype)[3]
    tensors = make_tensors(3, dtype)
    assert {name: item[name] for name in ("case_id", "label", "index")} == {"case_id": "case 3", "label": 1, "index": 3}
    features = item["features"]
    assert torch.equal(features.image, tensors["image"])
    assert torch.equal(features.patches, tensors["patches"].float())
    assert features.patches.dtype == torch.float32
    assert features.projected_patches.shape == (16, 0)  # made of the patches by whoever needs them
    assert features.grid_size == (4, 4)
    assert item["mask"].shape == (1, 56, 56)
    assert item["mask"].dtype == torch.float32
    assert item["mask"].sum() == 21 * 21


def test_mask_can_be_had_alone(tmp_path):
    dataset = make_dataset(tmp_path)
    assert torch.equal(dataset.mask(4), dataset[4]["mask"])


def test_unknown_mask_is_nan(tmp_path):
    dataset = make_dataset(tmp_path, 1)
    mask = torch.tensor([[0, 1], [UNKNOWN, UNKNOWN]], dtype=torch.uint8)
    save_file(make_tensors(0) | {"mask": mask}, dataset.files[0])
    expected = torch.tensor([[[0, 1], [torch.nan, torch.nan]]])
    torch.testing.assert_close(dataset[0]["mask"], expected, equal_nan=True)
    torch.testing.assert_close(dataset.mask(0), expected, equal_nan=True)


def test_changing_an_item_changes_no_file(tmp_path):
    """The file is mapped into memory."""
    dataset = make_dataset(tmp_path, 1, dtype=torch.float32)
    item = dataset[0]
    for tensor in (item["features"].image, item["features"].patches, item["mask"]):
        tensor.fill_(7)
    assert torch.equal(dataset[0]["features"].image, make_tensors(0)["image"])
    assert torch.equal(dataset[0]["features"].patches, make_tensors(0, torch.float32)["patches"])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def replace(file: Path) -> None:
    save_file({"patches": torch.zeros(1)}, file)


@pytest.mark.parametrize("damage", [cut, replace, Path.unlink, lambda file: file.write_bytes(b"")])
def test_error_of_a_damaged_file_names_the_case_and_the_remedy(tmp_path, damage):
    dataset = make_dataset(tmp_path)
    damage(dataset.files[2])
    message = r"the cached features of case 2 are damaged or missing \(.+\); run again: only damaged and missing"
    with pytest.raises(OSError, match=message):
        dataset[2]
    with pytest.raises(OSError, match=message):
        dataset.mask(2)
    assert dataset[3]["case_id"] == "case 3"


def test_each_case_needs_a_file(tmp_path):
    dataset = make_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"each case needs one file of features, got 7 case\(s\) and 6 file\(s\)"):
        FeatureDataset(dataset.cases, dataset.files[1:], (4, 4))


# parts


def test_subset_has_the_order_of_the_indices_and_new_indices(tmp_path):
    dataset = make_dataset(tmp_path)
    part = dataset.subset([5, 0, 3])
    assert names(part) == ["case 5", "case 0", "case 3"]
    assert [part[i]["index"] for i in range(3)] == [0, 1, 2]
    assert torch.equal(part[0]["features"].patches, dataset[5]["features"].patches)
    assert part.grid_size == (4, 4)
    assert len(dataset) == 7


def test_subset_may_be_given_by_a_generator(tmp_path):
    assert len(make_dataset(tmp_path).subset(i for i in range(7) if i % 2)) == 3


@pytest.mark.parametrize(
    ("held_out", "inside"),
    [([], []), (["board"], [1, 4]), (["wood", "board"], [1, 3, 4, 6]), (["nothing"], [])],
)
def test_split_parts_the_held_out_classes_from_the_others(tmp_path, held_out, inside):
    others, kept = make_dataset(tmp_path).split(held_out)
    assert names(kept) == [f"case {i}" for i in inside]
    assert names(others) == [f"case {i}" for i in range(7) if i not in inside]


def test_classes_may_be_numbers_or_absent(tmp_path):
    dataset = make_dataset(tmp_path, 3)
    cases = [{**case, "class": number} for case, number in zip(dataset.cases, (1, 2, 1), strict=True)]
    assert names(FeatureDataset(cases, dataset.files, (4, 4)).split(["1"])[1]) == ["case 0", "case 2"]
    cases = [{"case_id": case["case_id"], "label": case["label"]} for case in dataset.cases]
    without = FeatureDataset(cases, dataset.files, (4, 4))
    assert [len(part) for part in without.split(["tile"])] == [3, 0]
    assert without.sources == ({"name": "", "normal": 2, "anomalous": 1},)


def test_sources_count_each_class(tmp_path):
    assert make_dataset(tmp_path).sources == (
        {"name": "board", "normal": 1, "anomalous": 1},
        {"name": "tile", "normal": 2, "anomalous": 1},
        {"name": "wood", "normal": 1, "anomalous": 1},
    )


def test_hash_depends_on_contents_and_their_order_and_not_on_names(tmp_path):
    dataset = make_dataset(tmp_path)
    renamed = FeatureDataset([{**case, "case_id": "x", "class": "y"} for case in dataset.cases], dataset.files, (4, 4))
    moved = FeatureDataset(dataset.cases, [Path("elsewhere") / file.name for file in dataset.files], (4, 4))
    assert renamed.sha256 == moved.sha256 == dataset.sha256
    parts = [dataset, dataset.subset(range(6)), dataset.subset(reversed(range(7))), dataset.subset([*range(6), 5])]
    assert len({part.sha256 for part in parts}) == 4


# batches


def test_batch_stacks_its_items(tmp_path):
    dataset = make_dataset(tmp_path)
    items = [dataset[i] for i in (4, 1)]
    batch = collate_features(items)
    for name in ("image", "patches", "projected_patches"):
        assert torch.equal(
            getattr(batch["features"], name), torch.stack([getattr(item["features"], name) for item in items])
        )
    assert batch["features"].grid_size == (4, 4)
    assert torch.equal(batch["mask"], torch.stack([item["mask"] for item in items]))
    assert batch["label"].tolist() == [0, 1]
    assert batch["index"].tolist() == [4, 1]
    assert batch["case_id"] == ["case 4", "case 1"]
    assert batch.keys() == {"features", "mask", "label", "case_id", "index"}


def test_without_shuffling_every_case_comes_once_and_in_order(tmp_path):
    assert names_in(feature_loader(make_dataset(tmp_path), batch_size=3)) == [
        ["case 0", "case 1", "case 2"],
        ["case 3", "case 4", "case 5"],
        ["case 6"],
    ]


def test_shuffled_order_depends_on_seed_and_epoch_alone(tmp_path):
    dataset = make_dataset(tmp_path)

    def order(seed: int, epoch: int) -> list[str]:
        torch.manual_seed(torch.seed())  # whatever others draw
        loader = feature_loader(dataset, batch_size=3, shuffle=True, seed=seed)
        loader.sampler.set_epoch(epoch)
        found = names_in(loader)
        assert [len(batch) for batch in found] == [3, 3, 1]
        return [name for batch in found for name in batch]

    first = order(0, 1)
    assert sorted(first) == names(dataset)
    assert order(0, 1) == first
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((0, 1), (0, 2), (0, 3), (10, 1), (20, 1))}) == 5


def test_workers_change_nothing(tmp_path):
    dataset = make_dataset(tmp_path)
    for options in ({"batch_size": 2}, {"batch_size": 2, "shuffle": True, "seed": 3}):
        pairs = zip(feature_loader(dataset, **options), feature_loader(dataset, num_workers=2, **options), strict=True)
        for alone, helped in pairs:
            assert helped["case_id"] == alone["case_id"]
            assert torch.equal(helped["features"].patches, alone["features"].patches)


def test_features_are_read_ahead_without_shared_memory_and_in_this_process(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("shared memory was asked for")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_shared"):
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)
    dataset = make_dataset(tmp_path)
    assert names_in(feature_loader(dataset, batch_size=3, num_workers=2)) == names_in(
        feature_loader(dataset, batch_size=3)
    )
    assert multiprocessing.active_children() == []


def test_batches_that_are_not_asked_for_are_not_read(tmp_path):
    batches = iter(feature_loader(make_dataset(tmp_path, 9), batch_size=1, num_workers=1))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mrad_med-features")]


def test_an_error_while_reading_ahead_reaches_who_asks(tmp_path):
    dataset = make_dataset(tmp_path)
    dataset.files[1].unlink()
    with pytest.raises(OSError, match="are damaged or missing"):
        list(feature_loader(dataset, batch_size=1, num_workers=2))


def test_a_negative_number_of_threads_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        feature_loader(make_dataset(tmp_path), num_workers=-1)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_cases_each_of_which_comes_once(tmp_path, monkeypatch, world):
    dataset = make_dataset(tmp_path)
    found = []
    for rank in range(world):
        act_as(monkeypatch, rank, world)
        found += [name for batch in names_in(feature_loader(dataset, batch_size=2)) for name in batch]
    assert sorted(found) == names(dataset)


def test_fewer_images_than_processes_are_refused(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, 1)
    act_as(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match=r"1 image\(s\) cannot be divided among 2 processes"):
        feature_loader(dataset)


def test_batches_of_all_processes_make_the_batches_of_one(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, 6)

    def batches(batch_size: int) -> list[list[str]]:
        loader = feature_loader(dataset, batch_size=batch_size, shuffle=True, seed=4)
        loader.sampler.set_epoch(2)
        return names_in(loader)

    alone = batches(2)
    shares = []
    for rank in range(2):
        act_as(monkeypatch, rank, 2)
        shares.append(batches(1))
    assert [sorted(first + second) for first, second in zip(*shares, strict=True)] == [sorted(batch) for batch in alone]


def test_shuffled_shares_are_equal_even_if_a_case_is_repeated(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path)
    shares = []
    for rank in range(2):
        act_as(monkeypatch, rank, 2)
        shares.append([name for batch in names_in(feature_loader(dataset, shuffle=True)) for name in batch])
    assert [len(share) for share in shares] == [4, 4]
    assert set(shares[0] + shares[1]) == set(names(dataset))
