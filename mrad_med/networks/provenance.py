"""What a record of a run states of the backbone, the memory bank and the installed packages."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from mrad_med.networks.clip import CLIP
from mrad_med.networks.memory_bank import MemoryBank

__all__ = ["describe_run", "fingerprint", "package_versions"]

_RECORDED_PACKAGES = ("mrad-med", "monai", "torch", "open_clip_torch", "numpy")


def describe_run(clip: CLIP, bank: MemoryBank, **settings: Any) -> dict[str, Any]:
    """Return what a record of a run should say of its parts: cards, hashes and settings, all plain values."""
    memory_bank = {"sha256": bank.sha256, "card": bank.card.to_dict()}
    return {"backbone": asdict(clip.card), "memory_bank": memory_bank, "settings": settings}


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _RECORDED_PACKAGES}


def fingerprint(module: nn.Module) -> str:
    """Return a hash of all tensors and plain settings of a module: modules of one fingerprint answer alike."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for name, part in module.named_modules():
        values = sorted(item for item in vars(part).items() if isinstance(item[1], (bool, int, float, str)))
        settings = [item for item in values if item[0] != "training"]
        digest.update(f"{name} {type(part).__name__} {settings}".encode())
    return digest.hexdigest()
