"""Equal content gives equal bytes: files saved twice, or by two processes, have the same sha256."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from mrad_med import (
    FeatureCache,
    MemoryBank,
    build_memory_bank,
    build_mrad_ft,
    describe_run,
    export_network,
    load_memory_bank,
    save_head,
)
from mrad_med.files import sha256_of_file
from mrad_med.io.volume_writer import write_volume
from mrad_med.networks.head_files import save_tensors
from mrad_med.types import BankCard, HeadCard
from tests.conftest import TINY_SIZE, make_labeled_batches, make_tiny_clip
from tests.training_runs import make_run, write_features

ROOT = Path(__file__).parent.parent
SUFFIXES = (".onnx", ".pt2", ".ts")


def save_everything(folder: Path) -> None:
    """Write one of each file that is saved."""
    clip = make_tiny_clip()
    bank = build_memory_bank(clip, make_labeled_batches(), sources=[{"name": "b", "license": "a"}], progress=False)
    bank = replace(bank, card=replace(bank.card, created="2026-01-01", notes={"z": 1, "a": {"y": "ü", "b": 2}}))
    bank.save(folder / "bank.safetensors")
    network = build_mrad_ft(clip, bank, seed=0).eval()
    save_head(network.head, folder / "model.pt", HeadCard("MRAD-FT", "tiny", clip.card.sha256, bank.sha256))
    save_tensors({"a": torch.ones(2), "b": {"c": [1, "text", None]}}, folder / "tensors.pt")
    dataset = write_features(folder / "features", clip, count=8)
    for stage in ("fine_tune", "prompts"):
        make_run(stage, folder / stage, clip, dataset, max_epochs=2).trainer.run()
    pixels = np.random.RandomState(0).randint(0, 256, (60, 70, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    cases = [{"image": str(folder / "a.png"), "mask": None, "label": 0, "case_id": "a"}]
    FeatureCache(clip, folder / "cache", image_size=TINY_SIZE).fill(cases, progress=False)
    # NRRD is left out: pynrrd writes the time into its header.
    write_volume(folder / "a.nii.gz", np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4))
    for suffix in SUFFIXES:
        provenance = describe_run(clip, bank)
        export_network(network, folder / f"network{suffix}", provenance=provenance, image_size=TINY_SIZE)


def hashes_below(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths}


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path):
    found = []
    for seed in ("1", "2"):  # of Python's hashes, and so of the order of sets
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.test_equal_bytes", str(folder)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
        card = folder / "model.json"
        card.write_text(json.dumps(json.loads(card.read_text(encoding="utf-8")) | {"created": ""}), encoding="utf-8")
        found.append(hashes_below(folder))
    assert found[0] == found[1]
    names = set(found[0])
    assert {"bank.safetensors", "model.pt", "tensors.pt", "fine_tune/last.pt", "prompts/best.pt"} < names
    assert {f"network{suffix}" for suffix in SUFFIXES} < names
    assert len([name for name in names if name.startswith("cache/")]) == 1


def saved_bank(path: Path) -> MemoryBank:
    keys = torch.eye(3)
    labels = torch.tensor([0, 1, 0])
    card = BankCard("tiny", None, (56, 56), sources=({"name": "b", "a": 'ü\n"\\'},), notes={"z": 1, "a": 2})
    bank = MemoryBank(keys, labels, keys.clone(), labels.clone(), card)
    bank.save(path)
    return bank


def test_a_bank_saved_many_times_has_the_same_bytes_and_comes_back(tmp_path: Path):
    for index in range(20):  # two metadata in random order would agree by chance with 1 in 2^19
        bank = saved_bank(tmp_path / f"{index}.safetensors")
    assert len(set(hashes_below(tmp_path).values())) == 1
    loaded = load_memory_bank(tmp_path / "0.safetensors")
    assert loaded.sha256 == bank.sha256
    assert loaded.card == bank.card


def test_the_header_of_a_bank_is_as_safetensors_defines_it(tmp_path: Path):
    saved_bank(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0
    header = json.loads(content[8 : 8 + size])
    assert list(header) == sorted(header)
    assert list(header["__metadata__"]) == ["card", "format"]
    assert max(header[name]["data_offsets"][1] for name in header if name != "__metadata__") == len(content) - 8 - size
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("image_keys"), torch.eye(3))


def test_tensors_have_the_same_bytes_whatever_objects_hold_them_and_whatever_the_file_is_named(tmp_path: Path):
    one = "text"
    other = "".join(["te", "xt"])
    assert one is not other
    save_tensors({"a": [one, one], "b": torch.ones(2)}, tmp_path / "one.pt")
    save_tensors({"a": [one, other], "b": torch.ones(2)}, tmp_path / "other.pt")
    assert sha256_of_file(tmp_path / "one.pt") == sha256_of_file(tmp_path / "other.pt")
    assert torch.load(tmp_path / "other.pt", weights_only=True)["a"] == ["text", "text"]


@pytest.mark.parametrize("name", ["model.pt", "bank.safetensors", "tensors.pt"])
def test_no_file_holds_the_number_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(os, "getpid", lambda: 987654321)
    clip = make_tiny_clip()
    bank = build_memory_bank(clip, make_labeled_batches(), progress=False)
    if name == "model.pt":
        head = build_mrad_ft(clip, bank, seed=0).head
        save_head(head, tmp_path / name, HeadCard("MRAD-FT", "tiny", clip.card.sha256, bank.sha256))
    elif name == "bank.safetensors":
        bank.save(tmp_path / name)
    else:
        save_tensors({"a": torch.ones(2)}, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert b"987654321" not in content
    assert b"partial" not in content


def test_a_volume_written_twice_has_the_same_bytes(tmp_path: Path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4))
    assert len(set(hashes_below(tmp_path).values())) == 1
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (2, 3, 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    save_everything(parser.parse_args().folder)
