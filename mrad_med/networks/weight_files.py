"""Read weights files without executing code in them, and infer the architecture from the weights."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mrad_med.errors import BackboneError

__all__ = ["infer_model_config", "is_from_openai", "is_text_key", "read_model_description", "read_state_dict"]

# Buffers of the models in OpenAI's archives. open_clip's models lack them.
_OPENAI_SIZES = {"input_resolution", "context_length", "vocab_size"}


def read_model_description(path: Path) -> dict[str, Any]:
    """Return the content of an ``open_clip_config.json``.

    Raises:
        BackboneError: the file is not a configuration of open_clip.
    """
    from open_clip.model import CLIPVisionCfg

    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        config = description.get("model_cfg", description)
        CLIPVisionCfg(**config["vision_cfg"])
        int(config["embed_dim"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"{path.name} beside the weights is not an open_clip configuration ({error!r}); rename or remove it, or "
            "pass model='<open_clip model>'"
        ) from error
    return description  # type: ignore[no-any-return]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return a state dict with open_clip's names.

    Raises:
        BackboneError: the file is damaged, would execute code, or does not contain a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        elif _is_torchscript(path):
            _refuse_code_on_load(path)
            content = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except BackboneError:
        raise
    except Exception as error:  # if the bytes are not a pickle, the unpickler can raise almost any error
        raise BackboneError(f"{path.name} is damaged or not a weights file: {error}") from error
    state = content["state_dict"] if isinstance(content, Mapping) and "state_dict" in content else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(
            f"{path.name} does not contain a state dict (names and tensors); got a {type(content).__name__}"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_from_openai(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights are OpenAI's: only these have the sizes of the model among them."""
    return state.keys() >= _OPENAI_SIZES


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, as published by OpenAI, and not a plain torch file."""
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False  # not a zip archive: a legacy torch file, which is read with weights_only
    return any(name == "constants.pkl" for name in names)


def _refuse_code_on_load(path: Path) -> None:
    """Raise if loading a TorchScript archive would execute a method of it. CLIP needs only parameters and forward."""
    with zipfile.ZipFile(path) as archive:
        sources = (name for name in archive.namelist() if name.endswith(".py"))
        if any(b"__setstate__" in archive.read(name) for name in sources):
            raise BackboneError(f"loading {path.name} would execute code; use a state dict or safetensors file")


def infer_model_config(state: Mapping[str, Tensor], *, quick_gelu: bool) -> dict[str, Any]:
    """Return open_clip's model configuration, inferred from the shapes of the weights."""
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    layers = len({key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")})
    vision = {
        "image_size": side * patch_size,
        "layers": layers,
        "width": width,
        "patch_size": patch_size,
        # open_clip rounds width * ratio down. The added 0.5 prevents a result that is one too small.
        "mlp_ratio": (len(state["visual.transformer.resblocks.0.mlp.c_fc.bias"]) + 0.5) / width,
        "no_ln_pre": "visual.ln_pre.weight" not in state,
        "head_width": _head_width(width, layers, patch_size),
    }
    if "visual.transformer.resblocks.0.ls_1.gamma" in state:
        vision["ls_init_value"] = 1.0  # placeholder: the weights replace it
    config = {"embed_dim": state["visual.proj"].shape[1], "quick_gelu": quick_gelu, "vision_cfg": vision}
    text = {key.removeprefix("text."): value for key, value in state.items() if is_text_key(key)}
    if {"positional_embedding", "token_embedding.weight"} <= text.keys():
        vocabulary, text_width = text["token_embedding.weight"].shape
        config["text_cfg"] = {
            "context_length": len(text["positional_embedding"]),
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": max(1, text_width // 64),  # as in all models of OpenAI
            "layers": len({key.split(".")[2] for key in text if key.startswith("transformer.resblocks.")}),
        }
    return config


def is_text_key(name: str) -> bool:
    """Return whether a weight belongs to the text tower, in either of open_clip's two naming schemes."""
    own = ("token_embedding.", "positional_embedding", "transformer.resblocks.", "ln_final.", "text_projection")
    return name.removeprefix("text.").startswith(own)


def _head_width(width: int, layers: int, patch_size: int) -> int:
    """Return the width of an attention head in open_clip's model of the same shape: weights do not determine it."""
    import open_clip
    from open_clip.model import CLIPVisionCfg

    for model in open_clip.list_models():
        vision = CLIPVisionCfg(**open_clip.get_model_config(model)["vision_cfg"])
        if (vision.width, vision.layers, vision.patch_size) == (width, layers, patch_size):
            return int(vision.head_width)
    return int(CLIPVisionCfg().head_width)
