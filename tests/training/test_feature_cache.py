"""The cache of features: exact, encoded once, named by all they depend on, and whole whatever happens to a run."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import list_data_collate
from PIL import Image
from safetensors.torch import save_file

from mrad_med import (
    CLIP,
    FeatureCache,
    ImageFeatures,
    ImageView,
    build_memory_bank,
    build_preprocessing,
    collate_features,
    feature_loader,
)
from mrad_med.errors import FailedCasesError
from mrad_med.training import FeatureDataset
from tests.conftest import TINY_SIZE, make_tiny_clip, run_in_two_processes

Case = dict[str, Any]


def make_cases(folder: Path, count: int = 4) -> list[Case]:
    """Make images that are not square; every second one is anomalous in its left half."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    cases: list[Case] = []
    for index in range(count):
        image, mask = folder / f"{index}.png", folder / f"mask_{index}.png"
        Image.fromarray(random.randint(0, 255, (40, 60, 3), np.uint8)).save(image)
        if index % 2:
            pixels = np.zeros((40, 60), np.uint8)
            pixels[:, :30] = 255
            Image.fromarray(pixels).save(mask)
        cases.append(
            {"image": str(image), "mask": str(mask) if index % 2 else None, "label": index % 2, "case_id": f"c{index}"}
        )
    return cases


def make_cache(clip: CLIP, tmp_path: Path, **options: Any) -> FeatureCache:
    return FeatureCache(clip, tmp_path / "cache", **{"image_size": TINY_SIZE} | options)


def fill(cache: FeatureCache, cases: list[Case], **options: Any) -> FeatureDataset:
    return cache.fill(cases, progress=False, **options)


def preprocess(clip: CLIP, cases: list[Case]) -> dict[str, Any]:
    steps = build_preprocessing(clip.card, ImageView(image_size=TINY_SIZE), with_mask=True)
    return list_data_collate([steps(dict(case)) for case in cases])


def names(dataset: FeatureDataset) -> list[str]:
    return [case["case_id"] for case in dataset.cases]


def files_in(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def count_images(clip: CLIP, counts: list[int]) -> Any:
    return clip.image_encoder.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))


@pytest.fixture
def encoded(tiny_clip: CLIP) -> Iterator[list[int]]:
    """How many images each call of the encoder got."""
    counts: list[int] = []
    hook = count_images(tiny_clip, counts)
    yield counts
    hook.remove()


# what is kept


def test_fp32_features_are_those_of_encoding_directly(tiny_clip, tmp_path):
    cases = make_cases(tmp_path)
    batch = collate_features([*fill(make_cache(tiny_clip, tmp_path, dtype="fp32"), cases)])
    data = preprocess(tiny_clip, cases)
    direct = tiny_clip.image_encoder(data["image"].as_tensor())
    assert torch.equal(batch["features"].image, direct.image)
    assert torch.equal(batch["features"].patches, direct.patches)
    assert torch.equal(batch["mask"], data["mask"].as_tensor())
    assert batch["features"].grid_size == direct.grid_size == (4, 4)
    assert (batch["case_id"], batch["label"].tolist()) == (["c0", "c1", "c2", "c3"], [0, 1, 0, 1])


def test_fp16_rounds_patches_to_eleven_bits_and_nothing_else(tiny_clip, tmp_path):
    cases = make_cases(tmp_path)
    features = collate_features([*fill(make_cache(tiny_clip, tmp_path), cases)])["features"]
    direct = tiny_clip.image_encoder(preprocess(tiny_clip, cases)["image"].as_tensor())
    assert torch.equal(features.image, direct.image)
    assert torch.equal(features.patches, direct.patches.half().float())
    assert ((features.patches - direct.patches).abs() <= 2**-11 * direct.patches.abs() + 2**-25).all()
    assert not torch.equal(features.patches, direct.patches)


def test_projecting_cached_patches_gives_the_encoders_own(tiny_clip, tmp_path):
    cases = make_cases(tmp_path)
    features = collate_features([*fill(make_cache(tiny_clip, tmp_path, dtype="fp32"), cases)])["features"]
    direct = tiny_clip.image_encoder(preprocess(tiny_clip, cases)["image"].as_tensor())
    torch.testing.assert_close(
        tiny_clip.image_encoder.project(features.patches), direct.projected_patches, atol=1e-5, rtol=1e-5
    )


def test_unknown_masks_stay_unknown_and_empty_masks_empty(tiny_clip, tmp_path):
    cases = make_cases(tmp_path)
    for case in cases:
        case["mask"] = None
    del cases[2]["mask"]
    dataset = fill(make_cache(tiny_clip, tmp_path), cases)
    for index, case in enumerate(cases):
        mask = dataset.mask(index)
        assert mask.shape == (1, TINY_SIZE, TINY_SIZE)
        assert mask.isnan().all() if case["label"] else (mask == 0).all()


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 2e-3)])
def test_bank_of_cached_features_is_the_bank_of_the_images(tiny_clip, tmp_path, dtype, tolerance, masks):
    cases = make_cases(tmp_path, 6)
    for case in cases[3:]:
        case["mask"] = case["mask"] if masks else None
    dataset = fill(make_cache(tiny_clip, tmp_path, dtype=dtype), cases, batch_size=3)
    cached = build_memory_bank(tiny_clip, feature_loader(dataset, batch_size=3), progress=False)
    batches = [preprocess(tiny_clip, cases[:3]), preprocess(tiny_clip, cases[3:])]
    direct = build_memory_bank(tiny_clip, batches, progress=False)
    assert torch.equal(cached.image_keys, direct.image_keys)
    torch.testing.assert_close(cached.patch_keys, direct.patch_keys, atol=tolerance, rtol=0)
    assert cached.card == direct.card
    for name in ("image_labels", "patch_labels"):
        assert torch.equal(getattr(cached, name), getattr(direct, name))


def test_grid_follows_the_image_size(tiny_clip, tmp_path):
    cache = make_cache(tiny_clip, tmp_path, image_size=84)
    item = fill(cache, make_cases(tmp_path, 1))[0]
    assert cache.grid_size == item["features"].grid_size == (6, 6)
    assert item["features"].patches.shape == (36, 32)
    assert item["mask"].shape == (1, 84, 84)


# once


def test_second_fill_encodes_nothing(tiny_clip, tmp_path, encoded):
    cases = make_cases(tmp_path)
    first = fill(make_cache(tiny_clip, tmp_path), cases, batch_size=3)
    assert encoded == [3, 1]
    second = fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == [3, 1]
    assert second.files == first.files
    assert second.sha256 == first.sha256


def test_neither_names_nor_order_nor_other_keys_of_cases_matter(tiny_clip, tmp_path, encoded):
    first = fill(make_cache(tiny_clip, tmp_path), make_cases(tmp_path / "first"))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    moved = [
        {
            name: value.replace("first", "second") if value and name in ("image", "mask") else value
            for name, value in case.items()
        }
        for case in make_cases(tmp_path / "first")[::-1]
    ]
    for case in moved:
        case |= {"case_id": f"other {case['case_id']}", "class": "tile"}
    second = fill(make_cache(tiny_clip, tmp_path), moved)
    assert sum(encoded) == 4
    assert second.files == first.files[::-1]
    assert names(second) == ["other c3", "other c2", "other c1", "other c0"]


def test_added_cases_alone_are_encoded(tiny_clip, tmp_path, encoded):
    cases = make_cases(tmp_path, 6)
    fill(make_cache(tiny_clip, tmp_path), cases[2:4])
    dataset = fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == [2, 4]
    assert names(dataset) == ["c0", "c1", "c2", "c3", "c4", "c5"]


def other_weights(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    return make_tiny_clip(1)


def other_precision(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    return make_tiny_clip(0, precision="bf16")


def other_normalization(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    return CLIP(clip.image_encoder, dataclasses.replace(clip.card, mean=(0.5, 0.5, 0.4)))


def other_size(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    options["image_size"] = 28
    return clip


def other_dtype(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    options["dtype"] = "fp32"
    return clip


def other_image(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    Image.linear_gradient("L").resize((60, 40)).save(cases[1]["image"])
    return clip


def other_mask(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    Image.new("L", (60, 40), 255).save(cases[1]["mask"])
    return clip


def no_mask(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    cases[1]["mask"] = None
    return clip


def other_label(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    cases[1]["label"] = 0
    return clip


def other_threshold(clip: CLIP, options: dict, cases: list[Case]) -> CLIP:
    cases[1]["mask_threshold"] = 254
    return clip


@pytest.mark.parametrize("change", [other_weights, other_precision, other_normalization, other_size, other_dtype])
def test_all_is_encoded_again_where_its_making_changes(tiny_clip, tmp_path, change):
    cases, options = make_cases(tmp_path), {}
    first = fill(make_cache(tiny_clip, tmp_path), cases)
    clip = change(tiny_clip, options, cases)
    counts: list[int] = []
    hook = count_images(clip, counts)
    second = fill(make_cache(clip, tmp_path, **options), cases)
    hook.remove()
    assert sum(counts) == 4
    assert not set(first.files) & set(second.files)
    assert first.sha256 != second.sha256
    assert len(files_in(tmp_path)) == 8


def test_all_is_encoded_again_by_another_version(tiny_clip, tmp_path, encoded, monkeypatch):
    cases = make_cases(tmp_path)
    fill(make_cache(tiny_clip, tmp_path), cases)
    monkeypatch.setattr("mrad_med.training.feature_cache.version", lambda _: "9.9.9")
    fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == [4, 4]


@pytest.mark.parametrize("change", [other_image, other_mask, no_mask, other_label, other_threshold])
def test_changed_case_alone_is_encoded_again(tiny_clip, tmp_path, change, encoded):
    cases = make_cases(tmp_path)
    first = fill(make_cache(tiny_clip, tmp_path), cases)
    change(tiny_clip, {}, cases)
    second = fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == [4, 1]
    assert [old == new for old, new in zip(first.files, second.files, strict=True)] == [True, False, True, True]
    assert first.sha256 != second.sha256


def test_threshold_of_a_set_decides_what_is_kept_of_its_masks(tiny_clip, tmp_path):
    (case,) = make_cases(tmp_path, 2)[1:]
    pixels = np.full((40, 60), 2, np.uint8)
    pixels[:, :30] = 9  # class numbers
    Image.fromarray(pixels).save(case["mask"])
    areas = [
        float(fill(make_cache(tiny_clip, tmp_path), [{**case, "mask_threshold": cut}]).mask(0).mean())
        for cut in (0, 5, 9)
    ]
    assert areas == [1, 0.5, 0]


def test_cases_of_several_sets_may_share_a_batch(tiny_clip, tmp_path):
    cases = make_cases(tmp_path)
    cases[0]["class"] = "tile"
    cases[1]["mask_threshold"] = 0
    cases[2]["anything"] = None
    assert names(fill(make_cache(tiny_clip, tmp_path), cases)) == ["c0", "c1", "c2", "c3"]


def test_cases_are_left_alone(tiny_clip, tmp_path):
    cases = make_cases(tmp_path)
    before = [dict(case) for case in cases]
    fill(make_cache(tiny_clip, tmp_path), cases)
    assert cases == before


# accidents


def test_killed_run_leaves_whole_files_and_the_next_encodes_the_rest(tiny_clip, tmp_path, encoded):
    cases = make_cases(tmp_path, 5)

    def kill_at_the_second_batch(*_: Any) -> None:
        if encoded:
            raise KeyboardInterrupt

    hook = tiny_clip.image_encoder.register_forward_pre_hook(kill_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        fill(make_cache(tiny_clip, tmp_path), cases, batch_size=2)
    hook.remove()
    whole = files_in(tmp_path)
    assert len(whole) == 2
    leftover = whole[0].with_name(f".partial-1-{whole[0].name}")  # as a kill in the middle of writing leaves it
    leftover.write_bytes(whole[0].read_bytes()[:100])
    dataset = fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == [2, 3]
    assert set(files_in(tmp_path)) == {*dataset.files, leftover}
    assert [item["case_id"] for item in dataset] == ["c0", "c1", "c2", "c3", "c4"]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_damaged_file_is_encoded_again_and_named(tiny_clip, tmp_path, encoded, kept, caplog):
    cases = make_cases(tmp_path)
    dataset = fill(make_cache(tiny_clip, tmp_path), cases, batch_size=1)
    before = dataset.files[2].read_bytes()
    dataset.files[2].write_bytes(before[:kept])
    with pytest.raises(OSError, match="cached features of c2 are damaged or missing"):
        dataset[2]
    with caplog.at_level(logging.WARNING, "mrad_med"):
        fill(make_cache(tiny_clip, tmp_path), cases, batch_size=1)
    assert encoded == [1] * 5
    assert caplog.messages == ["c2: its cached features are damaged; they are encoded again"]
    assert dataset.files[2].read_bytes() == before
    assert dataset[2]["case_id"] == "c2"


def test_file_that_holds_something_else_is_encoded_again(tiny_clip, tmp_path, encoded):
    cases = make_cases(tmp_path, 2)
    dataset = fill(make_cache(tiny_clip, tmp_path), cases)
    save_file({"image": torch.zeros(24)}, dataset.files[0])
    assert len([*fill(make_cache(tiny_clip, tmp_path), cases)]) == 2
    assert encoded == [2, 1]


Usage = namedtuple("Usage", "free")
BYTES = 16 * 32 * 2 + TINY_SIZE**2  # of one image: patches in fp16, mask


@pytest.mark.parametrize("free", [2**26 + 4 * BYTES - 1, 2**26, 0])
def test_too_small_disk_is_refused_before_anything_is_encoded(tiny_clip, tmp_path, encoded, free, monkeypatch):
    monkeypatch.setattr("mrad_med.training.feature_cache.shutil.disk_usage", lambda _: Usage(free))
    with pytest.raises(
        OSError, match=r"features of 4 image\(s\) need 0\.0 GB, but only 0\.0 GB can be used in .*cache: choose"
    ):
        fill(make_cache(tiny_clip, tmp_path), make_cases(tmp_path))
    assert encoded == []
    assert files_in(tmp_path) == []


def test_only_what_is_missing_needs_space(tiny_clip, tmp_path, encoded, monkeypatch):
    cases = make_cases(tmp_path)
    monkeypatch.setattr("mrad_med.training.feature_cache.shutil.disk_usage", lambda _: Usage(2**26 + 3 * BYTES))
    fill(make_cache(tiny_clip, tmp_path), cases[:3])
    fill(make_cache(tiny_clip, tmp_path), cases)
    monkeypatch.setattr("mrad_med.training.feature_cache.shutil.disk_usage", lambda _: Usage(0))
    assert names(fill(make_cache(tiny_clip, tmp_path), cases)) == ["c0", "c1", "c2", "c3"]
    assert encoded == [3, 1]


def test_disk_that_fills_all_the_same_loses_nothing(tiny_clip, tmp_path, encoded, monkeypatch):
    cases = make_cases(tmp_path)
    written = []

    def fill_the_disk(tensors: dict, partial: Path) -> None:
        if len(written) == 3:
            partial.write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, partial)
        written.append(partial)

    monkeypatch.setattr("mrad_med.training.feature_cache.save_file", fill_the_disk)
    with pytest.raises(
        OSError,
        match=r"cannot write features to .*cache \(.*No space left on device\): free some space or choose another",
    ):
        fill(make_cache(tiny_clip, tmp_path), cases)
    assert len(files_in(tmp_path)) == 3
    monkeypatch.undo()
    assert len([*fill(make_cache(tiny_clip, tmp_path), cases)]) == 4
    assert encoded == [4, 1]


# bad input


def make_bad_cases(folder: Path, count: int = 7) -> tuple[list[Case], dict[str, str]]:
    """Return cases of which c1, c2, c3, c5 and c6 cannot be used, and what is wrong with each."""
    cases = make_cases(folder, count)
    Path(cases[1]["image"]).write_bytes(b"not an image")
    Path(cases[2]["image"]).unlink()
    Path(cases[3]["mask"]).unlink()
    Image.new("L", (40, 60)).save(cases[5]["mask"])
    cases[6]["image"] = str(folder / "volume.nii")
    nibabel.Nifti1Image(np.zeros((20, 30, 16), np.float32), np.eye(4)).to_filename(cases[6]["image"])
    return cases, {
        "c1": "not an image in any known format; check that the name is right and the copy complete",
        "c2": "its image cannot be read (No such file or directory); look at the path",
        "c3": "its mask cannot be read (No such file or directory); look at the path",
        "c5": "its mask is 40 x 60 and the image 60 x 40: they must have the same size",
        "c6": "volumes cannot enter a memory bank or be evaluated; export their slices as images",
    }


def test_bad_file_costs_only_itself_and_is_named(tiny_clip, tmp_path):
    cases, reasons = make_bad_cases(tmp_path)
    cache = make_cache(tiny_clip, tmp_path)
    dataset = fill(cache, cases, batch_size=2)
    assert names(dataset) == [item["case_id"] for item in dataset] == ["c0", "c4"]
    assert [(failure.case_id, failure.reason) for failure in cache.failures] == list(reasons.items())
    with pytest.raises(
        FailedCasesError, match=r"^5 of 7 case\(s\) failed, the others are done:\n  c1: not an image"
    ) as error:
        cache.raise_for_failures()
    assert all(f"  {name}: {reason}" in str(error.value).splitlines() for name, reason in reasons.items())


def test_failures_are_those_of_the_last_fill(tiny_clip, tmp_path):
    cases, _ = make_bad_cases(tmp_path)
    cache = make_cache(tiny_clip, tmp_path)
    fill(cache, cases)
    fill(cache, cases)
    assert len(cache.failures) == 5
    fill(cache, cases[:1])
    assert cache.failures == []
    cache.raise_for_failures()


def test_image_above_the_limit_is_named(tiny_clip, tmp_path):
    cache = make_cache(tiny_clip, tmp_path, max_pixels=40 * 60 - 1)
    assert len(fill(cache, make_cases(tmp_path, 2))) == 0
    assert all("limit of 2399" in failure.reason for failure in cache.failures)


def enlarge(_: Any, __: Any, features: ImageFeatures) -> ImageFeatures:
    """Make the first image's patches larger than half precision can hold."""
    patches = features.patches.clone()
    patches[0] += 1e6
    return dataclasses.replace(features, patches=patches)


def change_while_encoding(clip, path: Path, times: int):
    """Replace an image by others while it is encoded."""
    left = [times]

    def replace(*_) -> None:
        if left[0]:
            left[0] -= 1
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)

    return clip.image_encoder.register_forward_hook(replace)


def test_case_that_changes_while_it_is_encoded_is_encoded_once_more(tiny_clip, tmp_path, encoded):
    cases = make_cases(tmp_path)
    hook = change_while_encoding(tiny_clip, Path(cases[1]["image"]), 1)
    changed = fill(make_cache(tiny_clip, tmp_path), cases)
    hook.remove()
    assert encoded == [4, 1]
    again = fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == [4, 1]
    assert changed.files == again.files
    assert len(files_in(tmp_path)) == 4


def test_case_that_changes_twice_is_left_out_with_the_reason(tiny_clip, tmp_path):
    cases, cache = make_cases(tmp_path), make_cache(tiny_clip, tmp_path)
    hook = change_while_encoding(tiny_clip, Path(cases[1]["image"]), 2)
    dataset = fill(cache, cases)
    hook.remove()
    assert [case["case_id"] for case in dataset.cases] == [case["case_id"] for case in cases if case is not cases[1]]
    assert [(failure.case_id, failure.reason) for failure in cache.failures] == [
        (
            cases[1]["case_id"],
            "its image or mask changed twice while it was read; wait until nothing writes to it, and run again",
        )
    ]
    assert len(files_in(tmp_path)) == 3


def test_features_that_half_precision_cannot_hold_are_named_and_not_kept(tiny_clip, tmp_path):
    cases = make_cases(tmp_path, 2)
    hook = tiny_clip.image_encoder.register_forward_hook(enlarge)
    half, full = make_cache(tiny_clip, tmp_path), make_cache(tiny_clip, tmp_path, dtype="fp32")
    found = [names(fill(cache, cases)) for cache in (half, full)]
    hook.remove()
    assert found == [["c1"], ["c0", "c1"]]
    assert [failure.reason for failure in half.failures] == ["its features exceed fp16 or are NaN; try fp32"]
    assert len(files_in(tmp_path)) == 3


def test_two_cases_of_one_name_are_refused(tiny_clip, tmp_path, encoded):
    cases = make_cases(tmp_path)
    cases[3]["case_id"] = "c1"
    with pytest.raises(
        ValueError, match="two cases are named 'c1': names must be unique; begin them with the name of the set"
    ):
        fill(make_cache(tiny_clip, tmp_path), cases)
    assert encoded == []


@pytest.mark.parametrize("label", [2, -1, 0.5, "1", None])
def test_label_that_is_neither_normal_nor_anomalous_is_refused(tiny_clip, tmp_path, label):
    cases = make_cases(tmp_path)
    cases[2]["label"] = label
    with pytest.raises(
        ValueError, match=rf"the label of 'c2' must be 0 \(normal\) or 1 \(anomalous\), got '?{label}'?$"
    ):
        fill(make_cache(tiny_clip, tmp_path), cases)


@pytest.mark.parametrize("dtype", ["bf16", "float16", ""])
def test_unknown_type_is_refused(tiny_clip, tmp_path, dtype):
    with pytest.raises(ValueError, match=f"features are cached as fp16 or fp32; got '{dtype}'"):
        make_cache(tiny_clip, tmp_path, dtype=dtype)


def test_size_that_does_not_fit_the_backbone_is_refused(tiny_clip, tmp_path):
    with pytest.raises(ValueError, match="multiple of the patch size 14, got 57"):
        make_cache(tiny_clip, tmp_path, image_size=57)


# several processes


def attempt(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fill_in_one_of_two(rank: int, root: str) -> None:
    """Fill caches as process ``rank`` of two and write down what came of it; one that waits in vain is an error."""
    folder = Path(root)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    cases, _ = make_bad_cases(folder / f"seen by {rank}", 10)
    clip, counts = make_tiny_clip(), []
    count_images(clip, counts)
    cache = make_cache(clip, folder)
    found = {"names": [names(fill(cache, cases, batch_size=1)) for _ in range(2)], "encoded": list(counts)}
    found["failures"] = [failure.case_id for failure in cache.failures]
    found["raised"] = attempt(cache.raise_for_failures)

    good = [case for case in cases if case["case_id"] in ("c0", "c4")]
    other = FeatureCache(clip, folder / "other", image_size=TINY_SIZE)

    def break_down(*_: Any) -> None:
        raise MemoryError("the device is full")

    if rank == 1:
        hook = clip.image_encoder.register_forward_pre_hook(break_down)
    found["error"] = attempt(lambda: fill(other, good))
    if rank == 1:
        hook.remove()
    counts.clear()
    found["afterwards"] = names(fill(other, good))
    found["encoded afterwards"] = list(counts)
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what two processes wrote down."""
    root = tmp_path_factory.mktemp("two processes")
    run_in_two_processes(fill_in_one_of_two, str(root))
    return [json.loads((root / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_processes_share_the_work_and_encode_nothing_twice(two_processes):
    for found in two_processes:
        assert found["names"] == [["c0", "c4", "c7", "c8", "c9"]] * 2
    assert sorted(sum(found["encoded"]) for found in two_processes) == [2, 3]


def test_every_process_knows_all_failures(two_processes):
    for found in two_processes:
        assert found["failures"] == ["c1", "c2", "c3", "c5", "c6"]
        assert found["raised"].startswith("FailedCasesError: 5 of 10 case(s) failed")


def test_error_in_one_process_reaches_the_other(two_processes):
    assert [found["error"] for found in two_processes] == [
        "RuntimeError: process 1 of 2 failed: MemoryError: the device is full",
        "MemoryError: the device is full",
    ]


def test_work_of_the_process_that_did_not_fail_is_kept(two_processes):
    assert [found["afterwards"] for found in two_processes] == [["c0", "c4"], ["c0", "c4"]]
    assert [found["encoded afterwards"] for found in two_processes] == [[1], []]
