"""Files of trained heads: a plain state dict, and beside it a card that says what it belongs to."""

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
    """Write a head's learned weights as a plain state dict, and its card beside them (``.json``).

    Names are those of the weights in the network, such as ``head.patch_query.weight``.

    Args:
        head: its text tower and its bank are not written: they are files of their own.
        path: for example ``models/model.pt``.
        card: what the head belongs to.
        evaluator: of the validation, if there was one, whose best key metric goes onto the card.

    Returns:
        The card as written, with the hash of the weights.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; a file that was there before is untouched.
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
    """Return the epoch that was best in validation; None before one, and where its metric is undefined (NaN)."""
    epoch: int = evaluator.state.best_metric_epoch
    return epoch if epoch > 0 and isfinite(evaluator.state.best_metric) else None


def copy_weights(head: FineTunedHead | PromptedHead | TrainFreeHead) -> dict[str, Tensor]:
    """Return a copy of a head's learned weights, in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in head.learned_state().items()}


def drop_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a head by their names in the head, of those by their names in the network or the head."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values with `torch.save`: the whole file or nothing. Equal content gives equal bytes.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    try:
        # Into a stream: torch would name the archive inside after the temporary file, and so after this process.
        with atomic_path(path) as partial, partial.open("wb") as stream:
            torch.save(_with_shared_strings(content), stream)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter
        raise OSError(f"cannot write {path} ({error}): free some space or choose another folder") from error


def _with_shared_strings(content: Any) -> Any:
    """Return plain values and tensors with one object for equal strings: pickle writes each object once."""
    if isinstance(content, str):
        return sys.intern(str(content))
    if isinstance(content, Mapping):
        return {_with_shared_strings(name): _with_shared_strings(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(_with_shared_strings, content))
    return content


def load_weights(head: FineTunedHead | PromptedHead, state: Mapping[str, Tensor]) -> None:
    """Load the learned weights of a head; everything but the text tower, which is the backbone's, must be there.

    Raises:
        HeadError: the weights are those of another variant, or have other shapes.
    """
    try:
        missing, unexpected = head.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise HeadError(f"these weights belong to another backbone: {error}") from error
    missing = [name for name in missing if not name.startswith("prompts.text_encoder.")]
    if missing or unexpected:
        raise HeadError(
            f"these weights are not those of a {type(head).__name__}: they lack {missing[:3]} and bring "
            f"{unexpected[:3]}"
        )


def load_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], HeadCard | None]:
    """Return the weights in a file, by their names in the head, and their card; a published checkpoint has none.

    Raises:
        FileNotFoundError: there is no such file.
        HeadError: the file is damaged, or not the one its card was written for.
        ValueError: without a card, the file is no published checkpoint either.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no weights of a head in {path}; train.json of a bundle makes them. If a bundle's config names "
            "this path, give its directory as --bundle_root DIRECTORY"
        )
    if not path.with_suffix(".json").is_file():
        return load_official_checkpoint(path), None
    try:
        values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        card = HeadCard(**{item.name: values[item.name] for item in fields(HeadCard) if item.name in values})
        card = replace(card, training_set=tuple(card.training_set))
    except (ValueError, TypeError) as error:
        raise HeadError(f"{path.with_suffix('.json').name} is no card of a head ({error}); copy it again") from error
    if sha256_of_file(path) != card.weights_sha256:
        raise HeadError(
            f"{path.name} is damaged or not the file its card {path.stem}.json was written for; copy both again"
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return drop_prefix(state), card


def sha256_of_text_tower(text_encoder: CLIPTextEncoder) -> str:
    """Return the hash of a text tower's weights: `BackboneCard.sha256` is of the image tower alone."""
    digest = hashlib.sha256()
    for name, tensor in sorted(text_encoder.tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_head(
    card: HeadCard, backbone: BackboneCard, bank: MemoryBank, text_encoder: CLIPTextEncoder | None = None
) -> None:
    """Refuse a head that was trained on another backbone, or with entries that are not in this bank.

    A bank that extends the one the head was trained with is welcome.

    Args:
        card: of the head.
        backbone: at hand.
        bank: at hand.
        text_encoder: the backbone's, which a head of MRAD-CLIP must also agree with.

    Raises:
        HeadError: says what was expected and what was given.
    """
    if card.backbone_sha256 != backbone.sha256:
        raise HeadError(
            f"this head was trained on backbone {card.backbone!r} (sha256 {card.backbone_sha256[:12]}), but the "
            f"backbone at hand is {backbone.name!r} (sha256 {backbone.sha256[:12]}): load that backbone or train a "
            "head for this one"
        )
    if card.text_sha256 is not None and text_encoder is not None:
        given = sha256_of_text_tower(text_encoder)
        if card.text_sha256 != given:
            raise HeadError(
                f"this head's prompts were learned for another text tower (sha256 {card.text_sha256[:12]}) than that "
                f"of {backbone.name!r} ({given[:12]}): load the backbone it was trained with, or train a "
                "head for this one"
            )
    if card.bank_sha256 not in (bank.sha256, *bank.card.includes):
        raise HeadError(
            f"this head was trained with another memory bank (sha256 {card.bank_sha256[:12]}) than the one at hand "
            f"({bank.sha256[:12]}): use that bank or one that extends it, train a head for this one, or in Python, "
            "where another memory is meant, take network.with_bank(bank)"
        )
