"""Provenance of a run: backbone, memory bank, and versions of the installed packages."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.metadata import version
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mrad_med.networks.clip import CLIP
from mrad_med.networks.memory_bank import MemoryBank

__all__ = ["describe_run", "fingerprint", "package_versions"]

_RECORDED_PACKAGES = ("mrad-med", "monai", "torch", "open_clip_torch", "numpy")


def describe_run(
    clip: CLIP, bank: MemoryBank, *, parts: Mapping[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Return the provenance of a run as plain values: cards, hashes and arguments.

    Args:
        clip: backbone.
        bank: memory bank.
        parts: other objects that affect the results, by name: head, preprocessing, inferer. Only their hashes are
            returned.
        **settings: arguments of the run.
    """
    return {
        "backbone": asdict(clip.card),
        "memory_bank": {"sha256": bank.sha256, "card": bank.card.to_dict()},
        "parts": {name: fingerprint(part) for name, part in (parts or {}).items()},
        "settings": _plain(settings),
    }


def _plain(value: Any) -> Any:
    """Return mappings and data classes as dictionaries, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def fingerprint(part: Any) -> str:
    """Return a hash of everything that affects the behavior of a part. Parts with equal hashes behave alike.

    Args:
        part: module, transform, inferer, or any object that consists of these and of plain values. A class lists in
            ``CHANGES_NO_RESULT`` the attributes that affect only speed or memory.
    """
    digest = hashlib.sha256()
    _describe(part, digest, set())
    return digest.hexdigest()


def _describe(part: Any, digest: Any, seen: set[int]) -> None:
    """Add the types, plain values and arrays of an object and its contents to a hash, recursively."""
    if part is None or isinstance(part, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        digest.update(f"{type(part).__name__} {part!r};".encode("utf-8", "surrogateescape"))
    elif isinstance(part, (Tensor, np.ndarray)):
        array = part.detach().cpu().contiguous() if isinstance(part, Tensor) else torch.from_numpy(part.copy())
        digest.update(f"array {tuple(array.shape)} {array.dtype};".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(part, (np.random.RandomState, np.random.Generator, torch.Generator)):
        digest.update(b"random;")  # the random state is not part of the behavior
    elif isinstance(part, (type, FunctionType, BuiltinFunctionType)):
        digest.update(f"{part.__module__}.{part.__qualname__};".encode())
    elif id(part) in seen:
        digest.update(b"itself;")  # an object that contains itself
    else:
        seen.add(id(part))
        digest.update(f"{type(part).__module__}.{type(part).__qualname__}(".encode())
        for name, value in _items(part):
            digest.update(f"{name}=".encode())
            _describe(value, digest, seen)
        digest.update(b");")
        seen.discard(id(part))


def _items(part: Any) -> list[tuple[str, Any]]:
    """Return the contents of an object by name, in a fixed order."""
    if isinstance(part, nn.Module):
        named = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *part.named_children())
        plain = [item for item in vars(part).items() if isinstance(item[1], (bool, int, float, str))]
        return sorted([*named, *(item for item in plain if item[0] != "training")], key=lambda item: item[0])
    if isinstance(part, Mapping):
        return sorted(((str(name), value) for name, value in part.items()), key=lambda item: item[0])
    if isinstance(part, (set, frozenset)):
        return [("", item) for item in sorted(part, key=str)]
    if isinstance(part, Iterable):
        items = [(str(index), item) for index, item in enumerate(part)] if isinstance(part, (list, tuple)) else []
        if items or not hasattr(part, "__dict__"):
            return items
    ignored = getattr(type(part), "CHANGES_NO_RESULT", ())
    values = getattr(part, "__dict__", {}).items()
    return sorted((item for item in values if item[0] not in ignored), key=lambda item: str(item[0]))


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect numerical results."""
    return {"python": platform.python_version()} | {name: version(name) for name in _RECORDED_PACKAGES}
