"""What every room shares: dictionary keys, image features, cards of backbones, banks and heads, and constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # cards and keys are also needed where importing torch would take longer than the work
    from torch import Tensor

__all__ = [
    "IMAGE_SIZE",
    "MASK_THRESHOLD",
    "AnomalyKeys",
    "BackboneCard",
    "BankCard",
    "FailedCase",
    "HeadCard",
    "ImageFeatures",
]

IMAGE_SIZE = 518  # side of the network's input as published: 37 patches of 14 pixels
MASK_THRESHOLD = 127  # JPEG compression leaves small values beside a mask's 0 and 255


class AnomalyKeys(str, Enum):
    """Keys of the dictionaries that travel through datalists, transforms, inferers and results."""

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
        """Return the key itself, so that it reads the same in messages and names."""
        return str(self.value)


@dataclass(frozen=True)
class ImageFeatures:
    """What the image encoder says about a batch: encode once, ask many times.

    Attributes:
        image: (B, E) class feature, not normalized.
        patches: (B, N, D) tokens after the last layer norm, not normalized, before the neighbor average.
        projected_patches: (B, N, E) the same tokens in the joint image-text space.
        grid_size: rows and columns of the patch grid; ``N = rows * columns``, row by row.
    """

    image: Tensor
    patches: Tensor
    projected_patches: Tensor
    grid_size: tuple[int, int]


@dataclass(frozen=True)
class BackboneCard:
    """Identity of an image encoder: what a memory bank, a head or a report must agree with.

    Attributes:
        name: for people, for example ``"ViT-L-14-336-quickgelu:openai"``.
        sha256: hash of the image tower's weights as float32, the same whatever file they came in.
        width: D, width of the patch tokens.
        embed_dim: E, width of the joint image-text space.
        patch_size: side of a patch in pixels.
        native_size: side in pixels of the square image the position table was made for.
        mean: mean per RGB channel that the input is normalized with, for values in [0, 1].
        std: standard deviation per RGB channel, for values in [0, 1].
        patch_source: where the patch tokens come from, as in `CLIPImageEncoder`; a part of the hash.
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
    """Where the entries of a memory bank come from.

    Attributes:
        backbone: name of the backbone that made the keys.
        backbone_sha256: its hash (`BackboneCard.sha256`), or None where a published file does not tell.
        image_size: (height, width) in pixels of the encoded images, or None where unknown or mixed.
        sources: one mapping per source set: its name, license, and whatever else should travel with the bank.
        counts: entries per level and label: image_normal, image_anomalous, patch_normal, patch_anomalous.
        created: ISO date.
        version: version of mrad_med that wrote it.
        notes: free text values, such as measured results and how they were measured.
        includes: hashes of the banks whose entries this one contains, for what was trained with one of them.
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
        """Return the card as plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BankCard:
        """Return the card described by ``values``; keys of a newer version are ignored.

        Raises:
            ValueError: a required key is missing.
        """
        missing = {"backbone", "backbone_sha256", "image_size"} - values.keys()
        if missing:
            raise ValueError(f"the card of this memory bank lacks {sorted(missing)}; was it written by mrad_med?")
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        size = known["image_size"]
        known["image_size"] = None if size is None else (int(size[0]), int(size[1]))
        for name in ("sources", "includes"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


@dataclass(frozen=True)
class HeadCard:
    """Where the weights of a trained head come from, and what they belong to.

    Attributes:
        variant: ``"MRAD-TF"``, ``"MRAD-FT"`` or ``"MRAD-CLIP"``.
        backbone: name of the backbone whose features it was trained on.
        backbone_sha256: its hash.
        bank_sha256: hash of the memory bank it was trained with.
        training_set: one mapping per source set: name, license, counts.
        configuration: everything that shaped the training, and the head (context length, depth, ...).
        metrics: measured results, and on what.
        weights_sha256: hash of the weights file beside the card.
        text_sha256: of MRAD-CLIP, hash of the text tower that its prompts were learned for.
        created: ISO date.
        version: version of mrad_med that wrote it.
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
    """A case that was left out, and why.

    Attributes:
        case_id: its name.
        reason: what is wrong and what to do; never quotes the file's content.
        study: that it belongs to; empty where nothing is known.
    """

    case_id: str
    reason: str
    study: str = ""
