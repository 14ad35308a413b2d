"""The published bank files: read as they are, never executed, refused when they are something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrad_med import CLIP, MemoryBank, build_mrad_tf, load_official_bank
from mrad_med.errors import MemoryBankError


def write_level(path: Path, keys: Tensor, labels: Tensor) -> Path:
    torch.save({"keys": keys, "values": F.one_hot(labels, 2).float()}, path)
    return path


def write_bank(folder: Path, bank: MemoryBank) -> tuple[Path, Path]:
    image_file = write_level(folder / "cache_model_visa.pt", bank.image_keys, bank.image_labels)
    return image_file, write_level(folder / "cache_patch_model_visa.pt", bank.patch_keys, bank.patch_labels)


def test_published_files_give_the_bank_they_were_written_from(tmp_path: Path, tiny_bank: MemoryBank):
    loaded = load_official_bank(*write_bank(tmp_path, tiny_bank))
    for name in ("image_keys", "image_labels", "patch_keys", "patch_labels"):
        assert torch.equal(getattr(loaded, name), getattr(tiny_bank, name))
    assert loaded.sha256 == tiny_bank.sha256


def test_paths_may_be_strings(tmp_path: Path, tiny_bank: MemoryBank):
    assert load_official_bank(*map(str, write_bank(tmp_path, tiny_bank))).sha256 == tiny_bank.sha256


def test_card_states_what_the_files_do_not(tmp_path: Path, tiny_bank: MemoryBank):
    card = load_official_bank(*write_bank(tmp_path, tiny_bank)).card
    assert card.backbone_sha256 is None
    assert "ViT-L-14-336" in card.backbone
    assert "do not record it" in card.backbone
    assert [source["name"] for source in card.sources] == ["cache_model_visa.pt", "cache_patch_model_visa.pt"]
    assert card.counts == tiny_bank.card.counts


def test_published_bank_scores_as_the_one_it_was_written_from(tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank):
    images = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    loaded = load_official_bank(*write_bank(tmp_path, tiny_bank))
    assert torch.equal(build_mrad_tf(tiny_clip, loaded)(images), build_mrad_tf(tiny_clip, tiny_bank)(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_keys_of_another_precision_become_float32(tmp_path: Path, tiny_bank: MemoryBank, dtype: torch.dtype):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    write_level(image_file, tiny_bank.image_keys.to(dtype), tiny_bank.image_labels)
    loaded = load_official_bank(image_file, patch_file)
    assert loaded.image_keys.dtype == torch.float32
    torch.testing.assert_close(loaded.image_keys, tiny_bank.image_keys, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_one_hot_values_of_any_type_are_read(tmp_path: Path, tiny_bank: MemoryBank, dtype: torch.dtype):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    values = F.one_hot(tiny_bank.image_labels, 2).to(dtype)
    torch.save({"keys": tiny_bank.image_keys, "values": values}, image_file)
    assert torch.equal(load_official_bank(image_file, patch_file).image_labels, tiny_bank.image_labels)


class Malicious:
    """Would leave a file behind when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("level", [0, 1])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, tiny_bank: MemoryBank, level: int):
    trace, files = tmp_path / "executed", write_bank(tmp_path, tiny_bank)
    torch.save(torch.load(files[level], weights_only=True) | {"note": Malicious(trace)}, files[level])
    with pytest.raises(MemoryBankError, match=f"{files[level].name} is damaged or not a plain tensor file"):
        load_official_bank(*files)
    assert not trace.exists()
    torch.load(files[level], weights_only=False)  # the file does run code when unpickled
    assert trace.exists()


@pytest.mark.parametrize("level", [0, 1])
def test_missing_file_is_reported(tmp_path: Path, tiny_bank: MemoryBank, level: int):
    files = write_bank(tmp_path, tiny_bank)
    files[level].unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no published memory bank .*{files[level].name}"):
        load_official_bank(*files)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, tiny_bank: MemoryBank, kept: float):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    content = patch_file.read_bytes()
    patch_file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(MemoryBankError, match=r"cache_patch_model_visa\.pt is damaged or not a plain tensor file"):
        load_official_bank(image_file, patch_file)


@pytest.mark.parametrize("content", [b"Weights of the clinic\n", b"hello\n", b"(see the readme)\n", b"G", b"0123\n"])
def test_file_of_another_type_is_refused(tmp_path: Path, tiny_bank: MemoryBank, content: bytes):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    image_file.write_bytes(content)
    with pytest.raises(MemoryBankError, match=r"cache_model_visa\.pt is damaged or not a plain tensor file"):
        load_official_bank(image_file, patch_file)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"features": torch.ones(2, 24), "labels": torch.eye(2)}, "['features', 'labels']"),
        ({"keys": torch.ones(2, 24)}, "['keys']"),
        ([torch.ones(2, 24), torch.eye(2)], "list"),
        (torch.ones(2, 24), "Tensor"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, tiny_bank: MemoryBank, content: Any, found: str):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    torch.save(content, image_file)
    expected = f"cache_model_visa.pt: expected a dictionary with 'keys' and 'values', found {found}"
    with pytest.raises(MemoryBankError, match=re.escape(expected)):
        load_official_bank(image_file, patch_file)


@pytest.mark.parametrize(
    "change",
    [
        lambda keys, values: (keys, values.argmax(1)),  # labels instead of one-hot values
        lambda keys, values: (keys, torch.zeros_like(values)),
        lambda keys, values: (keys, torch.ones_like(values)),
        lambda keys, values: (keys, torch.full_like(values, 0.5)),  # rows sum to one, but which label is it
        lambda keys, values: (keys, values * 3 - 1),  # rows sum to one: 2 and -1
        lambda keys, values: (keys, torch.cat([values, values[:, :1] * 0], dim=1)),
        lambda keys, values: (keys[:-1], values),
        lambda keys, values: (keys[0], values),
        lambda keys, values: (keys.tolist(), values.tolist()),
    ],
    ids=["labels", "zeros", "ones", "halves", "2 and -1", "three columns", "a key less", "one key", "lists"],
)
def test_values_that_are_not_one_hot_are_refused(
    tmp_path: Path, tiny_bank: MemoryBank, change: Callable[[Tensor, Tensor], tuple[Any, Any]]
):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    keys, values = change(tiny_bank.image_keys, F.one_hot(tiny_bank.image_labels, 2).float())
    torch.save({"keys": keys, "values": values}, image_file)
    message = r"cache_model_visa\.pt: expected keys \(K, width\) and one-hot values \(K, 2\)"
    with pytest.raises(MemoryBankError, match=message):
        load_official_bank(image_file, patch_file)


def test_keys_that_are_not_finite_are_refused(tmp_path: Path, tiny_bank: MemoryBank):
    image_file, patch_file = write_bank(tmp_path, tiny_bank)
    write_level(patch_file, torch.full((2, 32), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(MemoryBankError, match="patch level: some keys are NaN or infinite"):
        load_official_bank(image_file, patch_file)
