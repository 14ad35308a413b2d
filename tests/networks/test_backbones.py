"""Backbones from every source, with tiny weights written to files; nothing is downloaded."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from mrad_med import CLIP, ImageFeatures, build_memory_bank, load_clip
from mrad_med.errors import BackboneError, MemoryBankError
from mrad_med.networks import CLIPImageEncoder, backbones
from mrad_med.types import BackboneCard
from tests.conftest import make_labeled_batches

GOLDEN = Path(__file__).parents[1] / "golden"
OPENAI_URL = "https://openaipublic.azureedge.net/clip/models/.*/ViT-L-14-336px.pt"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
TINY_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 56, "patch_size": 14, "width": 128, "layers": 2, "mlp_ratio": 2.0},
}


def make_tower(activation: type[nn.Module] = QuickGELU, **changes: Any) -> VisionTransformer:
    """Return a tower whose weights are fp16 values, as in OpenAI's files, which no file format changes."""
    torch.manual_seed(5)
    shape = {"image_size": 56, "patch_size": 14, "width": 128, "layers": 2, "mlp_ratio": 2.0, "output_dim": 24}
    shape |= changes
    shape.setdefault("heads", shape["width"] // 64)
    tower = VisionTransformer(**shape, act_layer=activation)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.2)
        parameter.data = parameter.data.half().float()
    return tower


def make_bare_state(tower: VisionTransformer) -> dict[str, Tensor]:
    """Return the state dict of a whole model of open_clip: the image tower and a little of a text tower."""
    visual = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    return visual | {"positional_embedding": torch.zeros(77, 8), "logit_scale": torch.tensor(4.6052)}


def make_sizes() -> dict[str, Tensor]:
    """Return the buffers that only OpenAI's models have."""
    sizes = {"input_resolution": 56, "context_length": 77, "vocab_size": 49408}
    return {name: torch.tensor(size) for name, size in sizes.items()}


def make_state(tower: VisionTransformer) -> dict[str, Tensor]:
    """Return the state dict of a model in OpenAI's archives."""
    return make_bare_state(tower) | make_sizes()


def write_torchscript(path: Path, tower: VisionTransformer) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = tower
            for name, size in make_sizes().items():
                self.register_buffer(name, size)

        def forward(self, image: Tensor) -> Tensor:
            return self.visual.conv1(image)

    torch.jit.save(torch.jit.trace(Whole(), torch.zeros(1, 3, 56, 56, dtype=tower.conv1.weight.dtype)), path)


WRITERS: dict[str, Callable[[Path, VisionTransformer], None]] = {
    "clip.pt": lambda path, tower: torch.save(make_state(tower), path),
    "legacy.pth": lambda path, tower: torch.save(make_state(tower), path, _use_new_zipfile_serialization=False),
    "half.pt": lambda path, tower: torch.save(make_state(tower.half()), path),
    "model.safetensors": lambda path, tower: save_file(make_state(tower), path),
    "half.safetensors": lambda path, tower: save_file(make_state(tower.half()), path),
    "archive.pt": write_torchscript,
    "half_archive.pt": lambda path, tower: write_torchscript(path, tower.half()),
}


def encode(clip: CLIP | VisionTransformer, size: int = 56) -> ImageFeatures:
    encoder = clip.image_encoder if isinstance(clip, CLIP) else CLIPImageEncoder(clip)
    return encoder(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


def assert_same_features(found: ImageFeatures, expected: ImageFeatures) -> None:
    for name in ("image", "patches", "projected_patches"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def tiny_card(tmp_path_factory: pytest.TempPathFactory) -> BackboneCard:
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save(make_state(make_tower()), path)
    return load_clip(path).card


@pytest.mark.parametrize("name", WRITERS)
def test_same_weights_in_any_file_are_the_same_backbone(tmp_path: Path, name: str, tiny_card: BackboneCard):
    WRITERS[name](tmp_path / name, make_tower())
    clip = load_clip(tmp_path / name)
    assert clip.card.sha256 == tiny_card.sha256
    assert clip.card.name == name
    assert {parameter.dtype for parameter in clip.image_encoder.parameters()} == {torch.float32}
    assert_same_features(encode(clip), encode(make_tower()))


def test_card_describes_the_weights(tiny_card: BackboneCard):
    assert (tiny_card.width, tiny_card.embed_dim, tiny_card.patch_size, tiny_card.native_size) == (128, 24, 14, 56)
    assert (tiny_card.mean, tiny_card.std) == (OPENAI_MEAN, OPENAI_STD)
    assert re.fullmatch("[0-9a-f]{64}", tiny_card.sha256)


def test_one_changed_weight_changes_the_hash(tmp_path: Path, tiny_card: BackboneCard):
    state = make_state(make_tower())
    state["visual.ln_post.bias"][7] += 0.25
    torch.save(state, tmp_path / "clip.pt")
    assert load_clip(tmp_path / "clip.pt").card.sha256 != tiny_card.sha256


def test_text_tower_does_not_count_in_the_hash(tmp_path: Path, tiny_card: BackboneCard):
    torch.save(make_state(make_tower()) | {"logit_scale": torch.tensor(1.0)}, tmp_path / "clip.pt")
    assert load_clip(tmp_path / "clip.pt").card.sha256 == tiny_card.sha256


def test_path_may_be_a_string(tmp_path: Path, tiny_card: BackboneCard):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    assert load_clip(str(tmp_path / "clip.pt")).card == tiny_card


ASKED = (
    r"does not state its open_clip model, .* GELU or QuickGELU\. Name the model: --clip#model NAME on the command "
    r"line, load_clip\('<file>', model='NAME'\) in Python; for example ViT-B-16 \(GELU\)"
)


def test_weights_of_openai_use_quick_gelu(tmp_path: Path):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt")
    assert isinstance(clip.image_encoder.tower.transformer.resblocks[0].mlp.gelu, QuickGELU)


@pytest.mark.parametrize("name", ["clip.pt", "clip.safetensors"])
def test_weights_that_do_not_state_their_model_are_refused_until_it_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    state = make_bare_state(make_tower())
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    with pytest.raises(BackboneError, match=rf"{re.escape(name)} {ASKED}"):
        load_clip(tmp_path / name)
    quick = TINY_CONFIG | {"quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_model_config", {"tiny": TINY_CONFIG, "tiny-quickgelu": quick}.get)
    assert_same_features(encode(load_clip(tmp_path / name, model="tiny")), encode(make_tower(nn.GELU)))
    assert_same_features(encode(load_clip(tmp_path / name, model="tiny-quickgelu")), encode(make_tower(QuickGELU)))


def test_training_checkpoint_is_refused_until_its_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = {f"module.{name}": tensor for name, tensor in make_bare_state(make_tower()).items()}
    torch.save({"epoch": 32, "name": "run", "state_dict": state}, tmp_path / "epoch_32.pt")
    with pytest.raises(BackboneError, match=rf"epoch_32\.pt {ASKED}"):
        load_clip(tmp_path / "epoch_32.pt")
    monkeypatch.setattr(open_clip, "get_model_config", {"tiny": TINY_CONFIG}.get)
    clip = load_clip(tmp_path / "epoch_32.pt", model="tiny")
    assert_same_features(encode(clip), encode(make_tower(nn.GELU)))


def test_a_model_with_a_tag_is_not_a_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make_state(make_tower()), tmp_path / "ViT-B-16:openai")
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", refuse_to_download(OSError("offline")))
    with pytest.raises(BackboneError, match="the weights of ViT-B-16:openai are not on this machine"):
        load_clip("ViT-B-16:openai")
    assert load_clip("./ViT-B-16:openai").card.native_size == 56


def test_bank_of_the_same_weights_under_another_activation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Features of QuickGELU and of GELU differ although not one weight does."""
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    quick = load_clip(tmp_path / "clip.pt")
    monkeypatch.setattr(open_clip, "get_model_config", {"tiny": TINY_CONFIG}.get)
    plain = load_clip(tmp_path / "clip.pt", model="tiny")
    assert (encode(quick).image - encode(plain).image).abs().max() > 0.1
    bank = build_memory_bank(quick, make_labeled_batches(), progress=False)
    bank.check(quick.card)
    with pytest.raises(MemoryBankError, match="was built with backbone"):
        bank.check(plain.card)


@pytest.mark.parametrize("json_name", ["model.json", "open_clip_config.json"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_description_beside_the_file_is_used(
    tmp_path: Path, json_name: str, quick_gelu: bool, caplog: pytest.LogCaptureFixture
):
    changes = {"no_ln_pre": True, "heads": 4, "norm_layer": lambda width: LayerNorm(width, eps=0.1)}
    tower = make_tower(QuickGELU if quick_gelu else nn.GELU, **changes)
    save_file(make_state(tower), tmp_path / "model.safetensors")
    described = {"no_ln_pre": True, "head_width": 32, "norm_kwargs": {"eps": 0.1}}
    description = {
        "model_cfg": TINY_CONFIG | {"quick_gelu": quick_gelu, "vision_cfg": TINY_CONFIG["vision_cfg"] | described},
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
    }
    (tmp_path / json_name).write_text(json.dumps(description))
    with caplog.at_level(logging.INFO, "mrad_med"):
        clip = load_clip(tmp_path / "model.safetensors")
    assert (clip.card.mean, clip.card.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert "assumed" not in caplog.text
    assert_same_features(encode(clip), encode(tower))


def test_description_without_constants_means_those_of_openai(tmp_path: Path):
    save_file(make_state(make_tower()), tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(json.dumps({"model_cfg": TINY_CONFIG}))
    card = load_clip(tmp_path / "model.safetensors").card
    assert (card.mean, card.std) == (OPENAI_MEAN, OPENAI_STD)


@pytest.mark.parametrize(
    "content",
    ["weights of the clinic", "[1, 2]", "{}", '{"model_cfg": {"embed_dim": 24, "vision_cfg": {"depth": 2}}}'],
)
def test_other_json_beside_the_file_is_reported(tmp_path: Path, content: str):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    (tmp_path / "clip.json").write_text(content)
    with pytest.raises(BackboneError, match=r"clip\.json"):
        load_clip(tmp_path / "clip.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 64},
        {"width": 192, "layers": 3},
        {"layers": 1},
        {"no_ln_pre": True},
        {"mlp_ratio": 4.0},
        {"mlp_ratio": 1.5},
        {"width": 704, "layers": 1, "mlp_ratio": 960.5 / 704},  # 960 / 704 * 704 is a little less than 960
        {"ls_init_value": 0.1},
        {"patch_size": 8},
        {"image_size": 28},
        {"output_dim": 40},
    ],
    ids=str,
)
def test_architecture_is_inferred_from_the_shapes(tmp_path: Path, changes: dict[str, Any]):
    torch.save(make_state(make_tower(**changes)), tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt")
    tower = make_tower(**changes)
    assert clip.card.native_size == tower.image_size[0]
    assert clip.card.patch_size == tower.patch_size[0]
    assert_same_features(encode(clip), encode(tower))


def test_head_width_is_that_of_the_open_clip_model_of_the_same_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vision = TINY_CONFIG["vision_cfg"]
    models = {
        "deeper": TINY_CONFIG | {"vision_cfg": vision | {"layers": 3, "head_width": 16}},
        "same": TINY_CONFIG | {"vision_cfg": vision | {"head_width": 32}},
    }
    monkeypatch.setattr(open_clip, "list_models", lambda: list(models))
    monkeypatch.setattr(open_clip, "get_model_config", models.get)
    torch.save(make_state(make_tower(heads=4)), tmp_path / "clip.pt")
    assert_same_features(encode(load_clip(tmp_path / "clip.pt")), encode(make_tower(heads=4)))


def test_named_model_decides_the_architecture_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(open_clip, "get_model_config", {"tiny": TINY_CONFIG}.get)
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt", model="tiny")
    assert clip.card.name == "tiny:clip.pt"
    assert_same_features(encode(clip), encode(make_tower(nn.GELU)))  # the named model does not use QuickGELU


def test_unknown_model_of_a_file_is_refused(tmp_path: Path):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    with pytest.raises(
        BackboneError, match=r"open_clip has no model 'ViT-X'; open_clip.list_models\(\) lists its models"
    ):
        load_clip(tmp_path / "clip.pt", model="ViT-X")


def test_weights_that_do_not_fit_the_named_model_are_refused(tmp_path: Path):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    with pytest.raises(BackboneError, match=r"weights of ViT-B-16:clip\.pt do not fit its architecture"):
        load_clip(tmp_path / "clip.pt", model="ViT-B-16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_reaches_the_encoder_and_leaves_the_hash(tmp_path: Path, precision: str, tiny_card: BackboneCard):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt", precision=precision)
    assert clip.image_encoder.precision == precision
    assert clip.card == tiny_card
    assert F.cosine_similarity(encode(clip).image, encode(make_tower()).image).min() > 0.999


def test_unknown_precision_is_refused(tmp_path: Path):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16; got 'int8'"):
        load_clip(tmp_path / "clip.pt", precision="int8")


def test_encoder_is_on_the_requested_device(tmp_path: Path):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    clip = load_clip(tmp_path / "clip.pt", device="meta")
    assert {parameter.device.type for parameter in clip.image_encoder.parameters()} == {"meta"}


class Malicious:
    """Would leave a file behind when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, new_format: bool, nested: bool):
    trace, path = tmp_path / "executed", tmp_path / "clip.pt"
    content = make_state(make_tower()) | {"extra": Malicious(trace)} if nested else Malicious(trace)
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(BackboneError, match=r"clip\.pt is damaged or not a weights file"):
        load_clip(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file does run code when unpickled
    assert trace.exists()


def test_malicious_plain_pickle_is_refused_and_not_executed(tmp_path: Path):
    trace, path = tmp_path / "executed", tmp_path / "clip.pt"
    path.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    with pytest.raises(BackboneError, match=r"clip\.pt is damaged or not a weights file"):
        load_clip(path)
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["clip.pt", "legacy.pth", "model.safetensors", "archive.pt"])
def test_truncated_file_is_refused(tmp_path: Path, name: str, kept: float):
    path = tmp_path / name
    WRITERS[name](path, make_tower())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(BackboneError, match=f"{re.escape(name)} is damaged or not a weights file"):
        load_clip(path)


@pytest.mark.parametrize("name", ["notes.pt", "notes.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"Weights of the clinic\n", b"hello\n", b"(see the readme)\n", b"0123456789\n", b"G", b"\x89PNG\r\n\x1a\n"],
)
def test_file_of_another_type_is_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=f"{re.escape(name)} is damaged or not a weights file"):
        load_clip(tmp_path / name)


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(2, 3, 7, 7), "fc.bias": torch.zeros(2)},
        {"visual.conv1.weight": torch.zeros(2, 3, 7, 7), "visual.attnpool.positional_embedding": torch.zeros(2)},
        {},
    ],
)
def test_foreign_state_dict_is_refused(tmp_path: Path, state: Mapping[str, Tensor]):
    torch.save(dict(state), tmp_path / "resnet.pt")
    with pytest.raises(
        BackboneError, match=r"resnet\.pt does not contain an open_clip or OpenAI vision transformer.*expected"
    ):
        load_clip(tmp_path / "resnet.pt")


def test_foreign_state_dict_is_shown_by_some_of_its_names(tmp_path: Path):
    save_file(
        {name: torch.zeros(1) for name in ("fc.bias", "bn1.bias", "conv1.weight", "z")}, tmp_path / "a.safetensors"
    )
    with pytest.raises(BackboneError, match=r"found for example \['bn1\.bias', 'conv1\.weight', 'fc\.bias'\]"):
        load_clip(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "kind"), [([1, 2], "list"), ({"epoch": 3}, "dict"), ({"state_dict": [1]}, "dict"), ("text", "str")]
)
def test_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any, kind: str):
    torch.save(content, tmp_path / "clip.pt")
    with pytest.raises(
        BackboneError, match=rf"clip\.pt does not contain a state dict \(names and tensors\); got a {kind}"
    ):
        load_clip(tmp_path / "clip.pt")


def test_tower_that_lacks_a_weight_is_refused(tmp_path: Path):
    state = make_state(make_tower())
    del state["visual.transformer.resblocks.1.attn.out_proj.bias"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(BackboneError, match=r"(?s)do not fit its architecture: .*resblocks\.1\.attn\.out_proj\.bias"):
        load_clip(tmp_path / "clip.pt")


@pytest.mark.parametrize("name", ["ViT-L-14-336", "no_such_model:openai", "weights/clip.pt", ""])
def test_unknown_name_is_refused_with_the_alternatives(name: str):
    alternatives = r"'embedded', 'openai', '<open_clip model>:<tag>' .* or the path of a weights file"
    with pytest.raises(
        BackboneError, match=f"{re.escape(repr(name))} is neither a file nor a backbone: use {alternatives}"
    ):
        load_clip(name)


def test_unknown_tag_is_refused_with_the_tags_there_are():
    with pytest.raises(BackboneError, match=r"open_clip has no weights 'laion' for ViT-L-14-336; it has: openai"):
        load_clip("ViT-L-14-336:laion")


def refuse_to_download(error: Exception) -> Callable[..., str]:
    def download(*_: Any, **__: Any) -> str:
        raise error

    return download


@pytest.mark.parametrize(
    "error",
    [
        OSError("network is unreachable"),
        urllib.error.URLError("network is unreachable"),
        RuntimeError("network is unreachable: the checksum does not match"),
        FileNotFoundError("network is unreachable"),
    ],
)
def test_openai_without_a_network_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch, error: Exception):
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", refuse_to_download(error))
    with pytest.raises(BackboneError, match=OPENAI_URL) as caught:
        load_clip("openai")
    message = str(caught.value)
    assert "the weights of ViT-L-14-336-quickgelu:openai are not on this machine" in message
    assert "network is unreachable" in message
    assert "load_clip('<file>', model='ViT-L-14-336-quickgelu')" in message
    assert "--backbone <file> --clip#model ViT-L-14-336-quickgelu" in message
    assert "load_clip('embedded')" in message


def test_weights_of_the_hub_are_named_by_their_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", refuse_to_download(OSError("offline")))
    assert not open_clip.get_pretrained_cfg("ViT-L-14", "datacomp_xl_s13b_b90k").get("url")
    with pytest.raises(
        BackboneError, match=r"Download https://huggingface\.co/laion/CLIP-ViT-L-14-DataComp\S+[^/] on a machine"
    ):
        load_clip("ViT-L-14:datacomp_xl_s13b_b90k")


def test_advice_after_a_failed_download_keeps_the_activation(monkeypatch: pytest.MonkeyPatch):
    """OpenAI's weights use QuickGELU under every model name; the model that the advice names must do so too."""
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", refuse_to_download(OSError("offline")))
    with pytest.raises(BackboneError) as caught:
        load_clip("ViT-L-14-336:openai")
    advised = re.search(r"load_clip\('<file>', model='(?P<model>[^']+)'\)", str(caught.value))
    assert advised is not None
    assert open_clip.get_model_config(advised["model"])["quick_gelu"]


@pytest.mark.parametrize(
    ("pretrained", "activation", "from_hub"),
    [
        ({"url": "https://example.org/tiny.pt", "hf_hub": "tiny/", "quick_gelu": True}, QuickGELU, False),
        ({"url": "", "hf_hub": "tiny/", "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}, nn.GELU, True),
    ],
)
def test_downloaded_weights_are_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretrained: dict[str, Any],
    activation: type[nn.Module],
    from_hub: bool,
):
    calls = []

    def download(config: dict[str, Any], **keywords: Any) -> str:
        calls.append((config, keywords))
        return str(tmp_path / "clip.pt")

    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    monkeypatch.setattr(open_clip, "get_model_config", {"tiny": TINY_CONFIG}.get)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {("tiny", "tag"): pretrained}[model, tag])
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    clip = load_clip("tiny:tag", cache_dir=tmp_path / "cache")
    assert calls == [(pretrained, {"prefer_hf_hub": from_hub, "cache_dir": str(tmp_path / "cache")})]
    assert clip.card.name == "tiny:tag"
    assert clip.card.mean == pretrained.get("mean", OPENAI_MEAN)
    assert clip.card.std == pretrained.get("std", OPENAI_STD)
    assert_same_features(encode(clip), encode(make_tower(activation)))


def test_cache_folder_is_that_of_open_clip_by_default(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def download(_: dict[str, Any], **keywords: Any) -> str:
        calls.append(keywords["cache_dir"])
        raise OSError("offline")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    with pytest.raises(BackboneError, match="offline"):
        load_clip("openai")
    assert calls == [None]


def test_damaged_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ViT-L-14-336px.pt").write_bytes(b"<html>please sign in</html>")
    monkeypatch.setattr(
        "open_clip.pretrained.download_pretrained", lambda *_, **__: str(tmp_path / "ViT-L-14-336px.pt")
    )
    with pytest.raises(BackboneError, match=r"ViT-L-14-336px\.pt is damaged or not a weights file"):
        load_clip("openai")


@pytest.mark.parametrize(
    ("name", "kind"), [("RN50:openai", "ResNet"), ("ViT-B-16-SigLIP:webli", "vit_base_patch16_siglip_224")]
)
def test_towers_of_other_architectures_are_refused_without_a_download(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str
):
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", refuse_to_download(OSError("offline")))
    with pytest.raises(BackboneError, match=f"{name} has a {kind} image tower; the V-V branch needs"):
        load_clip(name)


@pytest.mark.parametrize(("model", "kind"), [("RN50", "ResNet"), ("ViT-B-16-SigLIP", "vit_base_patch16_siglip_224")])
def test_file_with_a_model_of_another_architecture_is_refused(tmp_path: Path, model: str, kind: str):
    torch.save(make_state(make_tower()), tmp_path / "clip.pt")
    with pytest.raises(BackboneError, match=rf"{model}:clip\.pt has a {kind} image tower"):
        load_clip(tmp_path / "clip.pt", model=model)


def test_default_backbone_is_the_embedded_one(embedded: CLIP):
    assert load_clip().card == embedded.card


def test_embedded_backbone_has_its_card(embedded: CLIP):
    card = embedded.card
    assert card.name == "embedded ViT-S/14"
    assert (card.width, card.embed_dim, card.patch_size, card.native_size) == (384, 384, 14, 518)
    assert (card.mean, card.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's, not CLIP's
    assert embedded.image_encoder.tower.grid_size == (37, 37)
    assert len(embedded.image_encoder.tower.transformer.resblocks) == 9
    assert card.patch_source == embedded.image_encoder.patch_source == "standard"


def test_path_of_the_patches_is_a_choice_and_part_of_the_identity(embedded: CLIP):
    branch = load_clip("embedded", patch_source="v-v")
    assert branch.card.patch_source == branch.image_encoder.patch_source == "v-v"
    assert branch.card.sha256 != embedded.card.sha256


def test_description_with_the_old_key_of_the_patch_source_is_refused(monkeypatch: pytest.MonkeyPatch):
    read = json.loads
    monkeypatch.setattr(backbones.json, "loads", lambda text: {**read(text), "patch_path": "standard"})
    with pytest.raises(BackboneError, match="has the old key patch_path: rename it to patch_source"):
        load_clip("embedded")


def test_embedded_tower_meets_the_golden_tokens_of_its_source(embedded: CLIP):
    golden = np.load(GOLDEN / "embedded_tower.npz")
    state = np.random.RandomState(0)  # these lines are golden["input_recipe"]
    coarse = state.standard_normal((1, 3, 37, 37)).repeat(14, 2).repeat(14, 3)
    image = (coarse + 0.5 * state.standard_normal((1, 3, 518, 518))).astype(np.float32)
    np.testing.assert_allclose(image[0, :, 0, :4], golden["input_sample"], atol=1e-6)
    tower = embedded.image_encoder.tower
    last = tower.forward_intermediates(
        torch.from_numpy(image), indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    tokens = torch.cat([last["image_intermediates_prefix"][0], last["image_intermediates"][0]], dim=1)
    residual = tokens[0, golden["token_indices"]]
    np.testing.assert_allclose(residual.numpy(), golden["residual"], atol=1e-2)
    np.testing.assert_allclose(tower.ln_post(residual).numpy(), golden["normalized"], atol=0.1)


def move_embedded_files(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        shutil.copy(backbones._WEIGHTS_FOLDER / name, folder)
    monkeypatch.setattr(backbones, "_WEIGHTS_FOLDER", folder)


def test_damaged_embedded_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: CLIP):
    text = ("embedded_text.json", "embedded_text.safetensors")
    move_embedded_files(tmp_path, monkeypatch, "embedded.json", "embedded.safetensors", *text)
    assert load_clip("embedded").card == embedded.card
    path = tmp_path / "embedded.safetensors"
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(
        BackboneError, match=r"embedded\.safetensors of this installation is missing or damaged; install"
    ):
        load_clip("embedded")
    path.unlink()  # 34 MB, which pytest would keep


@pytest.mark.parametrize(
    ("present", "missing"), [([], "embedded.json"), (["embedded.json"], "embedded.safetensors")], ids=["all", "weights"]
)
def test_missing_embedded_files_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: list[str], missing: str
):
    move_embedded_files(tmp_path, monkeypatch, *present)
    with pytest.raises(BackboneError, match=f"{missing} of this installation is missing or damaged; install"):
        load_clip("embedded")


class RunsCodeOnLoad(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("code of the archive runs")  # noqa: T201 (the sign that it did)
        self.weight = state[0]
        self.training = state[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.weight


def test_torchscript_archive_that_runs_code_while_it_is_loaded_is_refused(tmp_path, capfd):
    torch.jit.save(torch.jit.script(RunsCodeOnLoad()), tmp_path / "evil.pt")
    capfd.readouterr()
    with pytest.raises(BackboneError, match=r"loading evil\.pt would execute code"):
        load_clip(tmp_path / "evil.pt")
    assert "code of the archive" not in capfd.readouterr().out
