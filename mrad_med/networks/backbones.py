"""Load a backbone: the embedded one, one from OpenAI or open_clip, or a local file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mrad_med.errors import BackboneError
from mrad_med.files import sha256_of_file
from mrad_med.networks.clip import CLIP, CLIPImageEncoder, CLIPTextEncoder
from mrad_med.networks.weight_files import (
    infer_model_config,
    is_from_openai,
    is_text_key,
    read_model_description,
    read_state_dict,
)
from mrad_med.types import BackboneCard

if TYPE_CHECKING:
    from open_clip.model import CLIPVisionCfg

__all__ = ["BackboneError", "load_clip"]

logger = logging.getLogger(__name__)

# open_clip is slow to import, so it is imported inside the functions.

EMBEDDED = "embedded"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, for RGB
_WEIGHTS_FOLDER = Path(__file__).parent / "weights"
_ALIASES = {"openai": "ViT-L-14-336-quickgelu:openai"}


@dataclass(frozen=True)
class _Weights:
    """A state dict with open_clip's names, and the values needed to build its towers."""

    name: str
    state: Mapping[str, Tensor]
    config: Mapping[str, Any]  # open_clip's "model_cfg"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    patch_source: str = "v-v"


def load_clip(
    source: str | os.PathLike[str] = EMBEDDED,
    *,
    model: str | None = None,
    precision: str = "fp32",
    patch_source: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
) -> CLIP:
    """Return a frozen backbone with its card.

    Args:
        source: ``"embedded"``, the small backbone in this package; ``"openai"``, short for
            ``"ViT-L-14-336-quickgelu:openai"``, the backbone of the paper; ``"<open_clip model>:<tag>"``, downloaded
            once by open_clip; or a file: OpenAI's JIT archive or state dict, an open_clip checkpoint, or safetensors.
            These names take precedence over files of the same name.
        model: open_clip model name for a local file, for example ``"ViT-L-14-336-quickgelu"``. None reads
            ``<file>.json`` or ``open_clip_config.json`` in the same folder. Without these, only OpenAI's own weights
            are accepted: other weights do not state their activation, which changes every feature.
        precision: data type of the matrix products: ``"fp32"``, ``"bf16"`` or ``"fp16"``. Features are float32.
        patch_source: source of the patch tokens, as in `CLIPImageEncoder`. Banks and heads fit only one source. None
            uses the description of the weights (``"standard"`` for the embedded backbone), or else ``"v-v"``.
        device: device of the encoders.
        cache_dir: folder for open_clip's downloads; None uses open_clip's default.

    Raises:
        BackboneError: the model or file does not exist, the download failed, the file is damaged or unsupported, or
            the model of the file is unknown.
        ValueError: the tower has no V-V branch, or ``precision`` or ``patch_source`` is unknown.
    """
    name = _ALIASES.get(str(source), str(source))
    is_file = name != EMBEDDED and not _is_model_with_tag(name) and Path(name).is_file()
    if model is not None and not is_file:
        raise BackboneError(f"{model!r} is the model of a weights file, but the backbone {str(source)!r} is not a file")
    if name == EMBEDDED:
        weights = _embedded_weights()
    elif is_file:
        weights = _file_weights(Path(name), model)
    else:
        weights = _downloaded_weights(name, cache_dir)
    if patch_source is not None:
        weights = replace(weights, patch_source=patch_source)
    return _build(weights, precision=precision, device=device)


def _is_model_with_tag(name: str) -> bool:
    """Return whether a name is ``<open_clip model>:<tag>``; a file of this name is given with its folder."""
    import open_clip

    model, separator, _ = name.partition(":")
    return bool(separator) and open_clip.get_model_config(model) is not None


def _build(weights: _Weights, *, precision: str, device: str | torch.device) -> CLIP:
    from open_clip.model import _build_vision_tower

    state = {key[len("visual.") :]: value.float() for key, value in weights.state.items() if key.startswith("visual.")}
    vision = _vision_config(weights.name, weights.config)
    with torch.device("meta"):  # skips the random initialization: the weights are replaced below
        tower = _build_vision_tower(weights.config["embed_dim"], vision, weights.config.get("quick_gelu", False))
    try:
        tower.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise BackboneError(f"the weights of {weights.name} do not fit its architecture: {error}") from error
    card = BackboneCard(
        name=weights.name,
        sha256=_sha256_of_state(
            state, quick_gelu=bool(weights.config.get("quick_gelu")), patch_source=weights.patch_source
        ),
        width=vision.width,
        embed_dim=weights.config["embed_dim"],
        patch_size=int(tower.patch_size[0]),
        native_size=int(tower.image_size[0]),
        mean=weights.mean,
        std=weights.std,
        patch_source=weights.patch_source,
    )
    text_encoder = _build_text_encoder(weights)
    return CLIP(
        CLIPImageEncoder(tower, precision=precision, patch_source=weights.patch_source).to(device),
        card,
        None if text_encoder is None else text_encoder.to(device),
    )


def _build_text_encoder(weights: _Weights) -> CLIPTextEncoder | None:
    """Return the text tower in float32, or None if there is none or it does not support learned prompts."""
    from open_clip.model import CLIPTextCfg, _build_text_tower

    state = {key.removeprefix("text."): value.float() for key, value in weights.state.items() if is_text_key(key)}
    config = CLIPTextCfg(**weights.config.get("text_cfg", {}))
    if "token_embedding.weight" not in state or config.hf_model_name:
        return None
    with torch.device("meta"):
        tower = _build_text_tower(weights.config["embed_dim"], config, weights.config.get("quick_gelu", False))
    try:
        tower.load_state_dict(state, assign=True)
        tower.attn_mask = None if config.no_causal_mask else tower.build_causal_mask()
        return CLIPTextEncoder(tower)
    except (RuntimeError, ValueError) as error:
        logger.info("%s: text tower skipped (%s)", weights.name, str(error).splitlines()[0])
        return None


def _vision_config(name: str, config: Mapping[str, Any]) -> CLIPVisionCfg:
    """Return the image tower's configuration; raise if its architecture has no V-V branch."""
    from open_clip.model import CLIPVisionCfg

    vision = CLIPVisionCfg(**config["vision_cfg"])
    if vision.timm_model_name or not isinstance(vision.layers, int):
        architecture = vision.timm_model_name or "ResNet"
        raise BackboneError(
            f"{name} has a {architecture} image tower; the V-V branch needs open_clip's own vision transformer, for "
            "example ViT-L-14-336-quickgelu, ViT-B-16 or ViT-H-14"
        )
    return vision


def _sha256_of_state(state: Mapping[str, Tensor], *, quick_gelu: bool, patch_source: str) -> str:
    # Activation and patch source change every feature but have no weights.
    digest = hashlib.sha256(b"QuickGELU" if quick_gelu else b"")
    digest.update(b"" if patch_source == "v-v" else patch_source.encode())
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _embedded_weights() -> _Weights:
    """Return both towers. Their files are separate, so the image tower's hash is independent of the text tower."""
    (image, state), (text, text_state) = (_embedded_tower(name) for name in ("embedded", "embedded_text"))
    weights = _described_weights(image["card"]["name"], state, image)
    return replace(
        weights, state={**weights.state, **text_state}, config={**weights.config, "text_cfg": text["text_cfg"]}
    )


def _embedded_tower(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the weights of one tower."""
    file = _WEIGHTS_FOLDER / f"{name}.json"
    if not file.is_file():
        raise _damaged_installation(file)
    description = json.loads(file.read_text(encoding="utf-8"))
    path = _WEIGHTS_FOLDER / description["card"]["weights_file"]
    if not path.is_file() or sha256_of_file(path) != description["card"]["sha256"]:
        raise _damaged_installation(path)
    return description, dict(load_file(path))


def _damaged_installation(path: Path) -> BackboneError:
    return BackboneError(f"{path.name} of this installation is missing or damaged; install mrad-med again")


def _described_weights(name: str, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> _Weights:
    """Return weights with the architecture and normalization constants in an open_clip_config.json."""
    if "patch_path" in description:
        raise BackboneError(f"the description of {name} has the old key patch_path: rename it to patch_source")
    preprocessing = description.get("preprocess_cfg", {})
    return _Weights(
        name=name,
        state=state,
        config=description.get("model_cfg", description),
        mean=tuple(preprocessing.get("mean", CLIP_MEAN)),
        std=tuple(preprocessing.get("std", CLIP_STD)),
        patch_source=description.get("patch_source", "v-v"),
    )


def _downloaded_weights(name: str, cache_dir: str | os.PathLike[str] | None) -> _Weights:
    """Return the weights of an open_clip model; download the file if it is not in the cache."""
    import open_clip
    from open_clip.pretrained import download_pretrained

    model, separator, tag = name.partition(":")
    config = open_clip.get_model_config(model) if separator else None
    if config is None:
        raise BackboneError(
            f"{name!r} is neither a file nor a backbone: use 'embedded', 'openai', '<open_clip model>:<tag>' "
            "(open_clip.list_pretrained() lists them) or the path of a weights file"
        )
    _vision_config(name, config)  # raises before the download
    pretrained = open_clip.get_pretrained_cfg(model, tag)
    if not pretrained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise BackboneError(f"open_clip has no weights {tag!r} for {model}; it has: {tags}")
    # Prefer OpenAI's URL to the Hugging Face hub, because open_clip checks the hash of that download.
    from_hub = not pretrained.get("url")
    try:
        path = Path(download_pretrained(pretrained, prefer_hf_hub=from_hub, cache_dir=str(cache_dir or "") or None))
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        quick = pretrained.get("quick_gelu", False) and not config.get("quick_gelu", False)
        advised = f"{model}-quickgelu" if quick else model
        where = pretrained.get("url") or f"https://huggingface.co/{pretrained['hf_hub'].rstrip('/')}"
        raise BackboneError(
            f"the weights of {name} are not on this machine and could not be downloaded ({error}). Download {where} "
            f"on a machine with a network, copy the file here and pass its path: load_clip('<file>', "
            f"model={advised!r}), or --backbone <file> --clip#model {advised} on the command line. To try mrad_med "
            "without it, use load_clip('embedded')."
        ) from error
    state = read_state_dict(path)
    return _Weights(
        name=name,
        state=state,
        config=config | {"quick_gelu": config.get("quick_gelu", False) or pretrained.get("quick_gelu", False)},
        mean=tuple(pretrained.get("mean", CLIP_MEAN)),
        std=tuple(pretrained.get("std", CLIP_STD)),
    )


def _file_weights(path: Path, model: str | None) -> _Weights:
    """Return the weights of a local file with the best available description of its architecture."""
    import open_clip

    state = read_state_dict(path)
    if "visual.conv1.weight" not in state or "visual.proj" not in state:
        raise BackboneError(
            f"{path.name} does not contain an open_clip or OpenAI vision transformer: expected 'visual.conv1.weight' "
            f"and 'visual.proj', found for example {sorted(state)[:3]}"
        )
    if model is not None:
        config = open_clip.get_model_config(model)
        if config is None:
            raise BackboneError(f"open_clip has no model {model!r}; open_clip.list_models() lists its models")
        return _Weights(name=f"{model}:{path.name}", state=state, config=config)
    for description in (path.with_suffix(".json"), path.with_name("open_clip_config.json")):
        if description.is_file():
            return _described_weights(path.name, state, read_model_description(description))
    if not is_from_openai(state):
        raise BackboneError(
            f"{path.name} does not state its open_clip model, and its weights do not show whether the activation is "
            "GELU or QuickGELU. Name the model: --clip#model NAME on the command line, load_clip('<file>', "
            "model='NAME') in Python; for example ViT-B-16 (GELU) or ViT-B-16-quickgelu. open_clip.list_models() lists "
            "the names"
        )
    return _Weights(name=path.name, state=state, config=infer_model_config(state, quick_gelu=True))
