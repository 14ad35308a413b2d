"""A weights file as the backbone: every command takes the name of its model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

import mrad_med
from mrad_med.cli import main
from tests.conftest import TINY_SIZE, make_tiny_clip

TINY = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": TINY_SIZE,
        "patch_size": 14,
        "width": 32,
        "layers": 3,
        "head_width": 16,
        "mlp_ratio": 2,
    },
}


def test_every_command_takes_the_model_of_a_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(open_clip, "get_model_config", {"tiny": TINY}.get)
    monkeypatch.chdir(tmp_path)
    tower = make_tiny_clip().image_encoder.tower
    torch.save({f"visual.{name}": weight for name, weight in tower.state_dict().items()}, "weights.pt")
    mrad_med.write_sample_dataset("set", count=1)
    mrad_med.write_surface_dataset("classes", surfaces=["fabric", "leather"], count=1)
    size = ["--backbone", "weights.pt", "--image_size", str(TINY_SIZE), "--device", "cpu"]
    bank = ["--memory_bank", "bank.safetensors"]
    for words in (
        ["bank", "build", "set", "--out", "bank.safetensors", *size],
        ["bank", "extend", "bank.safetensors", "set", "--out", "more.safetensors", *size],
        ["detect", "set/normal", "--out", "found", "--bundle", "mrad_tf", *size, *bank],
        ["run", "mrad_tf", "--dataset_dir", "set/normal", "--output_dir", "ran", *size, *bank],
        [
            "evaluate",
            "mrad_tf",
            "--dataset",
            "folder",
            "--dataset_dir",
            "set",
            "--output_dir",
            "measured",
            *size,
            *bank,
        ],
        ["benchmark", "folder=set", "--bundles", "mrad_tf", "--out", "compared", *size, *bank],
        ["export", "mrad_tf", "--out", "network.ts", *size, *bank],
        ["train", "mrad_ft", "--dataset_dir", "classes", "--output_dir", "trained", "--max_epochs", "1", *size],
    ):
        assert main(words) == 2, words
        assert "weights.pt does not state its open_clip model" in capsys.readouterr().err
        assert main([*words, "--clip#model", "tiny"]) == 0, words
    assert mrad_med.load_memory_bank("bank.safetensors").card.backbone == "tiny:weights.pt"
    assert main(["detect", "set/normal", "--out", "x", *size, *bank, "--clip#model", "ViT-B-61"]) == 2
    assert "open_clip has no model 'ViT-B-61'" in capsys.readouterr().err


def test_a_model_is_named_only_for_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["detect", str(tmp_path), "--out", str(tmp_path / "out"), "--clip#model", "ViT-B-16"]
    mrad_med.write_sample_images(tmp_path / "images")
    for backbone in ("embedded", "openai"):
        assert main([*words, "--backbone", backbone]) == 2
        message = f"'ViT-B-16' is the model of a weights file, but the backbone '{backbone}' is not a file"
        assert message in capsys.readouterr().err
