"""Files of trained heads: a plain state dict, and a card that states the backbone, bank and training."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from mrad_med.errors import HeadError
from mrad_med.files import atomic_path, sha256_of_file
from mrad_med.networks.clip import CLIPTextEncoder
from mrad_med.networks.heads import FineTunedHead, PromptedHead, TrainFreeHead
from mrad_med.networks.memory_bank import MemoryBank
from mrad_med.networks.official import load_official_checkpoint
from mrad_med.types import BackboneCard, HeadCard

__all__ = [
    "best_epoch",
    "check_head",
    "copy_weights",
    "drop_prefix",
    "load_head",
    "load_weights",
    "save_head",
    "save_tensors",
    "sha256_of_text_tower",
]

PREFIX = "head."  # of the head's weights in the network: by it MONAI's tools match the names of models/model.pt


def save_head(
    head: FineTunedHead | PromptedHead | TrainFreeHead,
    path: str | os.PathLike[str],
    card: HeadCard,
    *,
    evaluator: Engine | None = None,
) -> HeadCard:
    """Write a head's learned weights as a plain state dict, and its card to a ``.json`` file of the same name.

    Names are those of the weights in the network, such as ``head.patch_query.weight``.

    Args:
        head: trained head. Its text tower and its bank have their own files.
        path: output file, for example ``models/model.pt``.
        card: card of the head.
        evaluator: validation evaluator, whose best key metric is added to the card.

    Returns:
        The card as written, with the hash of the weights.

    Raises:
        OSError: the disk is full, or the folder is not writable. An existing file is not changed then.
    """
    path = Path(path)
    save_tensors({f"{PREFIX}{name}": tensor for name, tensor in copy_weights(head).items()}, path)
    metrics = dict(card.metrics)
    if evaluator is not None and best_epoch(evaluator) is not None:
        best = {name: getattr(evaluator.state, name) for name in ("best_metric", "best_metric_epoch")}
        metrics[evaluator.state.key_metric_name] = best
    card = replace(
        card,
        metrics=metrics,
        weights_sha256=sha256_of_file(path),
        text_sha256=sha256_of_text_tower(head.prompts.text_encoder) if isinstance(head, PromptedHead) else None,
        created=datetime.now(timezone.utc).date().isoformat(),
        version=version("mrad-med"),
    )
    with atomic_path(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(asdict(card), indent=2, default=str) + "\n", encoding="utf-8")
    return card


def best_epoch(evaluator: Engine) -> int | None:
    """Return the best epoch in validation; None before the first validation, or if its metric is not finite."""
    epoch: int = evaluator.state.best_metric_epoch
    return epoch if epoch > 0 and isfinite(evaluator.state.best_metric) else None


def copy_weights(head: FineTunedHead | PromptedHead | TrainFreeHead) -> dict[str, Tensor]:
    """Return a copy of a head's learned weights on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in head.learned_state().items()}


def drop_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a head by their names in the head, of those by their names in the network or the head."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values with `torch.save`, completely or not at all. Equal content gives equal bytes.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    try:
        # A path would put the temporary file name, with the process id, in the archive.
        with atomic_path(path) as partial, partial.open("wb") as stream:
            torch.save(_with_shared_strings(content), stream)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
        raise OSError(f"cannot write {path} ({error}): free some space or choose another folder") from error


def _with_shared_strings(content: Any) -> Any:
    """Return the content with one object for equal strings, because pickle writes each object once."""
    if isinstance(content, str):
        return sys.intern(str(content))
    if isinstance(content, Mapping):
        return {_with_shared_strings(name): _with_shared_strings(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(_with_shared_strings, content))
    return content


def load_weights(head: FineTunedHead | PromptedHead, state: Mapping[str, Tensor]) -> None:
    """Load the learned weights of a head: all weights except those of the text tower, which is the backbone's.

    Raises:
        HeadError: the weights belong to another variant or have other shapes.
    """
    try:
        missing, unexpected = head.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise HeadError(f"these weights belong to another backbone: {error}") from error
    missing = [name for name in missing if not name.startswith("prompts.text_encoder.")]
    if missing or unexpected:
        raise HeadError(
            f"these weights do not belong to a {type(head).__name__}: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}"
        )


def load_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], HeadCard | None]:
    """Return the weights in a file by their names in the head, and their card (None for a published checkpoint).

    Raises:
        FileNotFoundError: there is no such file.
        HeadError: the file or its card is damaged, or the card belongs to another file.
        ValueError: the file has no card and is not a published checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no head file {path}; train a head with train.json of a bundle. If a bundle's config names this "
            "path, give the bundle's directory: --bundle_root DIRECTORY"
        )
    if not path.with_suffix(".json").is_file():
        return load_official_checkpoint(path), None
    try:
        values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        card = HeadCard(**{item.name: values[item.name] for item in fields(HeadCard) if item.name in values})
        card = replace(card, training_set=tuple(card.training_set))
    except (ValueError, TypeError) as error:
        raise HeadError(f"{path.stem}.json is not the card of a head ({error}); copy it again") from error
    if sha256_of_file(path) != card.weights_sha256:
        raise HeadError(
            f"{path.name} is damaged or does not belong to its card {path.stem}.json; copy both files again"
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return drop_prefix(state), card


def sha256_of_text_tower(text_encoder: CLIPTextEncoder) -> str:
    """Return the hash of a text tower's weights; `BackboneCard.sha256` covers only the image tower."""
    digest = hashlib.sha256()
    for name, tensor in sorted(text_encoder.tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_head(
    card: HeadCard, backbone: BackboneCard, bank: MemoryBank, text_encoder: CLIPTextEncoder | None = None
) -> None:
    """Raise if a head was trained on another backbone, or with entries that are not in this bank.

    A bank that extends the head's bank is accepted.

    Args:
        card: card of the head.
        backbone: card of the loaded backbone.
        bank: loaded memory bank.
        text_encoder: loaded text tower, which must match a head of MRAD-CLIP; None skips this check.

    Raises:
        HeadError: the message states the expected and the given hashes.
    """
    if card.backbone_sha256 != backbone.sha256:
        raise HeadError(
            f"this head was trained on backbone {card.backbone!r} (sha256 {card.backbone_sha256[:12]}), but the "
            f"loaded backbone is {backbone.name!r} (sha256 {backbone.sha256[:12]}): load the head's backbone or train "
            "a head for this one"
        )
    if card.text_sha256 is not None and text_encoder is not None:
        given = sha256_of_text_tower(text_encoder)
        if card.text_sha256 != given:
            raise HeadError(
                f"the prompts of this head were trained with another text tower (sha256 {card.text_sha256[:12]}) than "
                f"that of {backbone.name!r} ({given[:12]}): load the head's backbone or train a head for this one"
            )
    if card.bank_sha256 not in (bank.sha256, *bank.card.includes):
        raise HeadError(
            f"this head was trained with another memory bank (sha256 {card.bank_sha256[:12]}) than the loaded one "
            f"({bank.sha256[:12]}): use the head's bank or an extension of it, or train a head for this bank. "
            "In Python, network.with_bank(bank) replaces the bank on purpose"
        )
