"""Read the files of the published implementation without executing code in them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from mrad_med.networks.memory_bank import MemoryBank, MemoryBankError
from mrad_med.types import BankCard

__all__ = ["load_official_bank", "load_official_checkpoint"]


def load_official_bank(image_file: str | os.PathLike[str], patch_file: str | os.PathLike[str]) -> MemoryBank:
    """Return the memory bank in the two published files.

    The files do not state their backbone, which was OpenAI's ViT-L/14@336px. The card therefore has no hash, and only
    the widths are checked against a backbone.

    Args:
        image_file: ``cache_model_<set>.pt``, the image level.
        patch_file: ``cache_patch_model_<set>.pt``, the patch level.

    Raises:
        FileNotFoundError: a file is missing.
        MemoryBankError: a file is damaged or has other contents.
    """
    image_keys, image_labels = _load_level(Path(image_file))
    patch_keys, patch_labels = _load_level(Path(patch_file))
    card = BankCard(
        backbone="ViT-L-14-336-quickgelu:openai (as published; the files do not record it)",
        backbone_sha256=None,
        image_size=(518, 518),
        sources=({"name": Path(image_file).name}, {"name": Path(patch_file).name}),
    )
    return MemoryBank(image_keys, image_labels, patch_keys, patch_labels, card)


def load_official_checkpoint(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights of a published MRAD-FT or MRAD-CLIP checkpoint with the names of this project's heads.

    Args:
        file: path of a file with ``{"image_proj", "patch_proj"}``, and for MRAD-CLIP also ``{"prompt_proj",
            "prompt_learner"}``.

    Returns:
        The state dict of a `FineTunedHead`, or of a `PromptedHead` without its text tower.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has other contents.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no published checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _rename_weights(content)
    except Exception as error:  # if the bytes are not a pickle, the unpickler can raise almost any error
        raise ValueError(
            f"{path.name} is damaged or not a published checkpoint ({type(error).__name__}): expected 'image_proj' and "
            "'patch_proj', and for MRAD-CLIP 'prompt_proj' and 'prompt_learner'"
        ) from error


def _rename_weights(content: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    layers = {
        "image_query": ("image_proj", "mlp1"),
        "image_key": ("image_proj", "mlp2"),
        "patch_query": ("patch_proj", "fc.0"),
        "patch_key": ("patch_proj", "fc.1"),
    }
    is_prompted = "prompt_learner" in content
    prefix = "fine_tuned." if is_prompted else ""
    state = {
        f"{prefix}{name}.{parameter}": content[group][f"{published}.{parameter}"].float()
        for name, (group, published) in layers.items()
        for parameter in ("weight", "bias")
    }
    if not is_prompted:
        return state
    learner = content["prompt_learner"]
    for name, published in (("bias_normal", "mlp1"), ("bias_anomaly", "mlp2")):
        for parameter in ("weight", "bias"):
            state[f"prompts.{name}.{parameter}"] = content["prompt_proj"][f"{published}.{parameter}"].float()
    state["prompts.context_normal"] = learner["ctx_pos"][0, 0].float()
    state["prompts.context_anomaly"] = learner["ctx_neg"][0, 0].float()
    deep = [name for name in learner if name.startswith("compound_prompts_text.")]
    for name in deep:
        state[f"prompts.deep_prompts.{name.rpartition('.')[2]}"] = learner[name].float()
    return state


def _load_level(path: Path) -> tuple[Tensor, Tensor]:
    """Return keys (K, width) and labels (K,) of one file ``{"keys", "values"}``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no published memory bank {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # if the bytes are not a pickle, the unpickler can raise almost any error
        raise MemoryBankError(f"{path.name} is damaged or not a plain tensor file: {error}") from error
    if not isinstance(content, dict) or not {"keys", "values"} <= content.keys():
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise MemoryBankError(f"{path.name}: expected a dictionary with 'keys' and 'values', found {found}")
    keys, values = content["keys"], content["values"]
    if not (isinstance(keys, Tensor) and isinstance(values, Tensor) and _is_one_hot(values)) or (
        keys.ndim != 2 or len(keys) != len(values)
    ):
        found = [tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in (keys, values)]
        raise MemoryBankError(
            f"{path.name}: expected keys (K, width) and one-hot values (K, 2), got {found[0]} and {found[1]}"
        )
    return keys.float(), values.argmax(1)


def _is_one_hot(values: Tensor) -> bool:
    if values.ndim != 2 or values.shape[1] != 2:
        return False
    return bool(((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all())
