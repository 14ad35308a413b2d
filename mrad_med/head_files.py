"""Files of trained heads: a plain state dict, and beside it a card that says what it belongs to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from mrad_med.features import FeatureDataset
from mrad_med.files import atomic_path, sha256_of_file
from mrad_med.heads import FineTunedHead, PromptedHead
from mrad_med.memory import MemoryBank
from mrad_med.official import load_official_checkpoint
from mrad_med.types import BackboneCard, HeadCard

__all__ = ["HeadError", "check_head", "describe_head", "load_head", "save_head"]


class HeadError(ValueError):
    """A file of a head that is damaged, or does not belong to the backbone or memory bank at hand."""


def describe_head(
    *,
    variant: str,
    backbone: BackboneCard,
    bank: MemoryBank,
    training_set: FeatureDataset,
    configuration: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> HeadCard:
    """Return the card of a head that is trained with a bank on cached features; arguments as in `HeadCard`."""
    return HeadCard(
        variant=variant,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        bank_sha256=bank.sha256,
        training_set=training_set.sources,
        configuration=dict(configuration or {}),
        metrics=dict(metrics or {}),
    )


def save_head(
    head: FineTunedHead | PromptedHead,
    path: str | os.PathLike[str],
    card: HeadCard,
    *,
    evaluator: Engine | None = None,
) -> HeadCard:
    """Write a head's learned weights as a plain state dict, and its card beside them (``.json``).

    Args:
        head: its text tower and its bank are not written: they are files of their own.
        path: for example ``models/model.pt``.
        card: what the head belongs to.
        evaluator: of the validation, if there was one, whose best key metric goes onto the card.

    Returns:
        The card as written, with the hash of the weights.
    """
    path = Path(path)
    state = head.learned_state() if isinstance(head, PromptedHead) else head.state_dict()
    with atomic_path(path) as partial:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, partial)
    metrics = dict(card.metrics)
    if evaluator is not None and evaluator.state.best_metric_epoch > 0:
        best = {name: getattr(evaluator.state, name) for name in ("best_metric", "best_metric_epoch")}
        metrics[evaluator.state.key_metric_name] = best
    card = replace(
        card,
        metrics=metrics,
        weights_sha256=sha256_of_file(path),
        created=datetime.now(timezone.utc).date().isoformat(),
        version=version("mrad-med"),
    )
    with atomic_path(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(asdict(card), indent=2, default=str) + "\n", encoding="utf-8")
    return card


def load_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], HeadCard | None]:
    """Return the weights in a file and their card; a published checkpoint has none.

    Raises:
        FileNotFoundError: there is no such file.
        HeadError: the file is damaged, or not the one its card was written for.
        ValueError: without a card, the file is no published checkpoint either.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights of a head in {path}; train.json of a bundle makes them")
    if not path.with_suffix(".json").is_file():
        return load_official_checkpoint(path), None
    try:
        values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        card = HeadCard(**{item.name: values[item.name] for item in fields(HeadCard) if item.name in values})
    except (ValueError, TypeError) as error:
        raise HeadError(f"{path.with_suffix('.json').name} is no card of a head ({error}); copy it again") from error
    if sha256_of_file(path) != card.weights_sha256:
        raise HeadError(
            f"{path.name} is damaged or not the file its card {path.stem}.json was written for; copy both again"
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state, card


def check_head(card: HeadCard, backbone: BackboneCard, bank: MemoryBank) -> None:
    """Refuse a head that was trained on another backbone, or with entries that are not in this bank.

    A bank that extends the one the head was trained with is welcome.

    Raises:
        HeadError: says what was expected and what was given.
    """
    if card.backbone_sha256 != backbone.sha256:
        raise HeadError(
            f"this head was trained on backbone {card.backbone!r} (sha256 {card.backbone_sha256[:12]}), but the "
            f"backbone at hand is {backbone.name!r} (sha256 {backbone.sha256[:12]}): load that backbone or train a "
            "head for this one"
        )
    if card.bank_sha256 not in (bank.sha256, *bank.card.includes):
        raise HeadError(
            f"this head was trained with another memory bank (sha256 {card.bank_sha256[:12]}) than the one at hand "
            f"({bank.sha256[:12]}): use that bank or one that extends it, train a head for this one, or in Python, "
            "where another memory is meant, take network.with_bank(bank)"
        )
