"""Types that all subpackages share: dictionary keys, image features, cards, failed cases, and constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # modules that only need cards and keys should not import torch
    from torch import Tensor

__all__ = [
    "FAILED",
    "IMAGE_SIZE",
    "MASK_THRESHOLD",
    "NOTHING_TO_SCORE",
    "AnomalyKeys",
    "BackboneCard",
    "BankCard",
    "FailedCase",
    "HeadCard",
    "ImageFeatures",
]

IMAGE_SIZE = 518  # side length of the network's input in pixels, as published: 37 patches of 14 pixels
FAILED, NOTHING_TO_SCORE = "failed", "nothing to score"  # status of a case without a score, as in tables
MASK_THRESHOLD = 127  # not 0, because JPEG compression changes the values 0 and 255 of a mask


class AnomalyKeys(str, Enum):
    """Keys of the dictionaries that datalists, transforms, inferers and results use."""

    IMAGE = "image"
    MASK = "mask"
    MASK_THRESHOLD = "mask_threshold"
    LABEL = "label"
    CASE_ID = "case_id"
    ANOMALY_MAP = "anomaly_map"
    ANOMALY_SCORE = "anomaly_score"
    SLICE_SCORES = "slice_scores"
    STUDY = "study"

    def __str__(self) -> str:
        """Return the value of the key, which messages and file names use."""
        return str(self.value)


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the image encoder for a batch; all variants of MRAD can use it without encoding again.

    Attributes:
        image: class feature, shape (B, E), not normalized.
        patches: patch tokens after the last layer norm, shape (B, N, D), not normalized, before the neighbor average.
        projected_patches: the same tokens in the joint image-text space, shape (B, N, E).
        grid_size: rows and columns of the patch grid; ``N = rows * columns``, row by row.
    """

    image: Tensor
    patches: Tensor
    projected_patches: Tensor
    grid_size: tuple[int, int]


@dataclass(frozen=True)
class BackboneCard:
    """Identity of an image encoder, which memory banks, heads and results must match.

    Attributes:
        name: name for display, for example ``"ViT-L-14-336-quickgelu:openai"``.
        sha256: hash of the image tower's weights as float32; it does not depend on the file format.
        width: width D of the patch tokens.
        embed_dim: width E of the joint image-text space.
        patch_size: side length of a patch in pixels.
        native_size: side length in pixels of the square image that the positional embedding was trained for.
        mean: mean of each RGB channel for the normalization of the input, for values in [0, 1].
        std: standard deviation of each RGB channel, for values in [0, 1].
        patch_source: branch that the patch tokens come from, as in `CLIPImageEncoder`; it is part of the hash.
    """

    name: str
    sha256: str
    width: int
    embed_dim: int
    patch_size: int
    native_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    patch_source: str = "v-v"


@dataclass(frozen=True)
class BankCard:
    """Origin of the entries of a memory bank.

    Attributes:
        backbone: name of the backbone that computed the keys.
        backbone_sha256: hash of the backbone (`BackboneCard.sha256`), or None if a published file does not state it.
        image_size: height and width of the encoded images in pixels, or None if unknown or mixed.
        sources: one mapping for each source dataset, with its name, license and further values.
        counts: number of entries by level and label: image_normal, image_anomalous, patch_normal, patch_anomalous.
        created: date of creation in ISO format.
        version: version of mrad_med that wrote the bank.
        notes: further values, such as measured results and how they were measured.
        includes: hashes of the banks whose entries this bank contains. Heads trained with one of them fit this bank.
    """

    backbone: str
    backbone_sha256: str | None
    image_size: tuple[int, int] | None
    sources: tuple[Mapping[str, Any], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    created: str = ""
    version: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    includes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BankCard:
        """Return the card with the given values; unknown keys of newer versions are ignored.

        Raises:
            ValueError: a required key is missing.
        """
        missing = {"backbone", "backbone_sha256", "image_size"} - values.keys()
        if missing:
            raise ValueError(f"the card of this memory bank lacks {sorted(missing)}; use a bank that mrad_med wrote")
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        size = known["image_size"]
        known["image_size"] = None if size is None else (int(size[0]), int(size[1]))
        for name in ("sources", "includes"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True)
class HeadCard:
    """Origin of the weights of a trained head, and the backbone and bank that they belong to.

    Attributes:
        variant: ``"MRAD-TF"``, ``"MRAD-FT"`` or ``"MRAD-CLIP"``.
        backbone: name of the backbone whose features the head was trained on.
        backbone_sha256: hash of the backbone.
        bank_sha256: hash of the memory bank that the head was trained with.
        training_set: one mapping for each source dataset, with name, license and counts.
        configuration: settings of the training and of the head (context length, depth, ...).
        metrics: measured results, with the datasets they were measured on.
        weights_sha256: hash of the weights file beside the card.
        text_sha256: hash of the text tower that the prompts were trained for; None except for MRAD-CLIP.
        created: date of creation in ISO format.
        version: version of mrad_med that wrote the card.
    """

    variant: str
    backbone: str
    backbone_sha256: str
    bank_sha256: str
    training_set: tuple[Mapping[str, Any], ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    text_sha256: str | None = None
    created: str = ""
    version: str = ""


@dataclass(frozen=True)
class FailedCase:
    """A case that has no score, and the reason.

    Attributes:
        case_id: name of the case.
        reason: problem and advice; never quotes the file's content.
        study: study that the case belongs to; empty if unknown.
        status: ``"failed"`` if the case could not be processed. ``"nothing to score"`` if all its pixels have one
            value; this is not a failure.
    """

    case_id: str
    reason: str
    study: str = ""
    status: str = FAILED

    @property
    def is_failure(self) -> bool:
        """Whether the case could not be processed."""
        return self.status == FAILED
