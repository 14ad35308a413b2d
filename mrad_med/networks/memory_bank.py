"""The two-level memory bank of MRAD (arXiv 2602.00522): build, extend, merge, save, load and check it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from mrad_med.errors import MemoryBankError
from mrad_med.files import atomic_path
from mrad_med.networks.clip import CLIP
from mrad_med.networks.retrieval import average_neighbors
from mrad_med.types import AnomalyKeys, BackboneCard, BankCard, ImageFeatures

__all__ = [
    "MemoryBank",
    "MemoryBankError",
    "bank_entries",
    "build_memory_bank",
    "load_memory_bank",
    "merge_memory_banks",
]

logger = logging.getLogger(__name__)

_TENSORS = ("image_keys", "image_labels", "patch_keys", "patch_labels")
_FORMAT = "mrad_med memory bank"


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Features of labeled images (keys) with their labels, at image and at patch level. Banks are not changed in place.

    Attributes:
        image_keys: (K, E) float32, L2-normalized image features.
        image_labels: (K,) int64, 0 normal and 1 anomalous.
        patch_keys: (K', D) float32, L2-normalized mean patch features, one key per region.
        patch_labels: (K',) int64, 0 normal and 1 anomalous.
        card: sources of the entries and backbone that made them.

    Raises:
        MemoryBankError: shapes, data types or values are invalid.
    """

    image_keys: Tensor
    image_labels: Tensor
    patch_keys: Tensor
    patch_labels: Tensor
    card: BankCard

    def __post_init__(self) -> None:
        """Check all fields and count the entries."""
        for level, keys, labels in (
            ("image", self.image_keys, self.image_labels),
            ("patch", self.patch_keys, self.patch_labels),
        ):
            if keys.ndim != 2 or labels.ndim != 1 or len(keys) != len(labels):
                raise MemoryBankError(
                    f"{level} level: expected keys (K, width) and labels (K,), "
                    f"got {tuple(keys.shape)} and {tuple(labels.shape)}"
                )
            if keys.dtype != torch.float32 or labels.dtype != torch.int64:
                raise MemoryBankError(
                    f"{level} level: expected float32 keys and int64 labels, got {keys.dtype} and {labels.dtype}"
                )
            if not torch.isfinite(keys).all():
                raise MemoryBankError(f"{level} level: some keys are NaN or infinite; build the bank again")
            if not torch.isin(labels, torch.tensor([0, 1])).all():
                raise MemoryBankError(f"{level} level: labels must be 0 (normal) or 1 (anomalous)")
        object.__setattr__(self, "card", replace(self.card, counts=self._counts()))

    def _counts(self) -> dict[str, int]:
        return {
            f"{level}_{name}": int((labels == value).sum())
            for level, labels in (("image", self.image_labels), ("patch", self.patch_labels))
            for value, name in enumerate(("normal", "anomalous"))
        }

    def __repr__(self) -> str:
        """Return backbone and counts, without the keys."""
        counts = ", ".join(f"{name}={count}" for name, count in self.card.counts.items())
        return f"MemoryBank(backbone={self.card.backbone!r}, {counts})"

    @property
    def sha256(self) -> str:
        """Hash of keys and labels: banks with equal hashes give equal scores."""
        digest = hashlib.sha256()
        for name in _TENSORS:
            digest.update(getattr(self, name).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, backbone: BackboneCard) -> None:
        """Raise if another backbone made these keys, or if a level has no normal or no anomalous entry.

        Raises:
            MemoryBankError: the message states the expected and the given value.
        """
        made_by, given = self.card.backbone_sha256, backbone.sha256
        if made_by is not None and made_by != given:
            raise MemoryBankError(
                f"this memory bank was built with backbone {self.card.backbone!r} (sha256 {made_by[:12]}), but the "
                f"loaded backbone is {backbone.name!r} (sha256 {given[:12]}): load the bank's backbone or build a bank "
                "for this one"
            )
        for level, keys, expected in (
            ("image", self.image_keys, backbone.embed_dim),
            ("patch", self.patch_keys, backbone.width),
        ):
            if keys.shape[1] != expected:
                raise MemoryBankError(
                    f"{level} keys of this memory bank have width {keys.shape[1]}, but features of backbone "
                    f"{backbone.name!r} have width {expected}: load the bank's backbone ({self.card.backbone})"
                )
        lacking = [name.replace("_", " ") for name, count in self.card.counts.items() if count == 0]
        if lacking:
            raise MemoryBankError(
                f"this memory bank has no {' and no '.join(lacking)} entry: retrieval needs both labels at both "
                "levels; extend the bank with labeled images (and masks) that add them"
            )

    def extend(
        self, clip: CLIP, loader: Iterable[Mapping[str, Any]], *, share: float = 0.0, **keywords: Any
    ) -> MemoryBank:
        """Return this bank with the entries of more labeled images. Results change at once, without training.

        All entries are weighted equally, so two cases among a thousand have little influence. ``share`` repeats the
        new entries until they are at least that share of the patch entries.

        Args:
            clip: backbone that made this bank.
            loader: batches of labeled images, see `build_memory_bank`.
            share: smallest share of new entries at patch level, in [0, 1); 0 adds every entry once.
            **keywords: further arguments of `build_memory_bank`.

        Raises:
            MemoryBankError: another backbone made this bank.
            ValueError: ``share`` is not in [0, 1).
        """
        if not 0 <= share < 1:
            raise ValueError(f"share must be in [0, 1), got {share}")
        added = build_memory_bank(clip, loader, **keywords)
        wanted = share / (1 - share) * len(self.patch_keys) / max(1, len(added.patch_keys))
        return merge_memory_banks([self, added.repeat(max(1, math.ceil(wanted)))])

    def repeat(self, copies: int) -> MemoryBank:
        """Return this bank with every entry ``copies`` times. Scores change only after a merge with other banks."""
        tensors = {name: torch.cat([getattr(self, name)] * copies) for name in _TENSORS}
        sources = tuple({**source, "copies": copies} if copies > 1 else source for source in self.card.sources)
        includes = (*self.card.includes, self.sha256)
        return MemoryBank(**tensors, card=replace(self.card, sources=sources, includes=includes))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the card in its header, completely or not at all.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        card = json.dumps(self.card.to_dict(), sort_keys=True)
        with atomic_path(path) as partial:
            try:
                save_file(tensors, partial, metadata={"format": _FORMAT, "card": card})
                _sort_header(partial)
            except SafetensorError as error:
                raise OSError(f"cannot write the memory bank to {path}: {error}") from error


def _sort_header(path: Path) -> None:
    """Sort the header of a safetensors file, because the library writes metadata in a random order.

    Reference:
        https://huggingface.co/docs/safetensors: eight bytes with the length of the header, then the header as JSON,
        which may end with spaces.
    """
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        ordered = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= size:  # otherwise keep the header as the library wrote it, which is also valid
            stream.seek(8)
            stream.write(ordered.ljust(size))


def load_memory_bank(path: str | os.PathLike[str]) -> MemoryBank:
    """Return the memory bank in a file. No code in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryBankError: the file is damaged or not a memory bank.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no memory bank {path}; build one with `mrad-med bank build`, or use the bank of the embedded "
            "backbone in the project's folder bundles/memory_banks. If a bundle's config names this path, give the "
            "bundle's directory: --bundle_root DIRECTORY"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise MemoryBankError(
                    f"{path.name} is a safetensors file, but not a memory bank of mrad_med; read published banks with "
                    "load_official_bank(image_file, patch_file)"
                )
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
            card = BankCard.from_dict(json.loads(metadata["card"]))
    except MemoryBankError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise MemoryBankError(
            f"{path.name} is damaged or not a memory bank ({error}); copy or build it again"
        ) from error
    return MemoryBank(**tensors, card=card)


def merge_memory_banks(banks: Sequence[MemoryBank]) -> MemoryBank:
    """Return one bank with the entries of all banks, in their order.

    Raises:
        MemoryBankError: ``banks`` is empty, or different backbones made them.
    """
    if not banks:
        raise MemoryBankError("nothing to merge: give at least one memory bank")
    first = next((bank for bank in banks if bank.card.backbone_sha256), banks[0])  # one that states its backbone
    known = first.card
    for bank in banks:
        hashes = {known.backbone_sha256, bank.card.backbone_sha256} - {None}
        widths = [(b.image_keys.shape[1], b.patch_keys.shape[1]) for b in (first, bank)]
        if len(hashes) > 1 or widths[0] != widths[1]:
            raise MemoryBankError(
                f"banks of different backbones cannot be merged: {known.backbone!r} (widths {widths[0]}) and "
                f"{bank.card.backbone!r} (widths {widths[1]})"
            )
    sizes = {bank.card.image_size for bank in banks}
    card = BankCard(
        backbone=known.backbone,
        backbone_sha256=known.backbone_sha256,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        sources=tuple(source for bank in banks for source in bank.card.sources),
        created=_today(),
        version=version("mrad-med"),
        notes=first.card.notes if len(banks) == 1 else {},
        includes=tuple(dict.fromkeys(name for bank in banks for name in (*bank.card.includes, bank.sha256))),
    )
    return MemoryBank(**{name: torch.cat([getattr(bank, name) for bank in banks]) for name in _TENSORS}, card=card)


def build_memory_bank(
    clip: CLIP,
    loader: Iterable[Mapping[str, Any]],
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    notes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> MemoryBank:
    """Return the memory bank of labeled images; both levels are built in one pass.

    Args:
        clip: backbone.
        loader: batches as dictionaries: ``image`` (B, 3, H, W) normalized (or cached ``features``), ``label`` (B,) 0 or
            1, and optionally ``mask`` (B, 1, H, W) in [0, 1]. Without masks, normal images are normal everywhere, and
            anomalous images add no patch entry. NaN in a mask marks unknown pixels, which belong to no patch entry.
        sources: mappings for the card, one per source set: name, license, ...
        notes: additional values for the card.
        progress: whether to show a progress bar.

    Raises:
        MemoryBankError: the loader yields nothing, or a batch lacks images or labels or has masks of another shape.
    """
    entries: dict[str, list[Tensor]] = {name: [] for name in _TENSORS}
    sizes: set[tuple[int, int]] = set()
    for batch in tqdm(loader, desc="memory bank", unit="batch", disable=not progress):
        found, size = bank_entries(clip, batch)
        sizes.add(size)
        for name, tensor in found.items():
            entries[name].append(tensor)
    if not sizes:
        raise MemoryBankError("the loader yielded no image: a memory bank needs labeled images")
    card = BankCard(
        backbone=clip.card.name,
        backbone_sha256=clip.card.sha256,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        sources=tuple(sources),
        created=_today(),
        version=version("mrad-med"),
        notes=notes or {},
    )
    return MemoryBank(**{name: torch.cat(parts) for name, parts in entries.items()}, card=card)


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def bank_entries(clip: CLIP, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return the keys and labels of both levels for a batch, and the height and width of its images.

    Args:
        clip: backbone.
        batch: one batch of the loader of `build_memory_bank`.

    Raises:
        MemoryBankError: images or labels are missing, or masks have another shape.
    """
    features, size = _features(clip, batch)
    labels = torch.as_tensor(batch[AnomalyKeys.LABEL]).reshape(-1).long().cpu()
    if len(labels) != len(features.image):
        raise MemoryBankError(
            f"each image needs one label, got {len(labels)} label(s) for {len(features.image)} image(s)"
        )
    masks = _masks(batch.get(AnomalyKeys.MASK), (len(labels), 1, *size), labels).to(features.patches.device)
    keys, key_labels = _region_keys(features, masks)
    found = {
        "image_keys": F.normalize(features.image, dim=-1).cpu(),
        "image_labels": labels,
        "patch_keys": keys.cpu(),
        "patch_labels": key_labels.cpu(),
    }
    return found, size


def _features(clip: CLIP, batch: Mapping[str, Any]) -> tuple[ImageFeatures, tuple[int, int]]:
    """Return the cached or newly encoded features of a batch, and the height and width of its images."""
    if AnomalyKeys.LABEL not in batch or not {AnomalyKeys.IMAGE, "features"} & batch.keys():
        raise MemoryBankError(f"each batch needs 'image' and 'label'; this batch has {sorted(map(str, batch))}")
    if "features" in batch:
        features: ImageFeatures = batch["features"]
        rows, columns = (count * clip.card.patch_size for count in features.grid_size)
        return features, (rows, columns)
    device = next(clip.image_encoder.parameters()).device
    images = convert_to_tensor(batch[AnomalyKeys.IMAGE], track_meta=False).to(device)
    return clip.image_encoder(images), (images.shape[-2], images.shape[-1])


def _masks(masks: Any, shape: tuple[int, ...], labels: Tensor) -> Tensor:
    """Return (B, 1, H, W) masks: 0 normal, 1 anomalous, and 0.5 unknown, which belongs to neither region."""
    if masks is None:
        return (labels * 0.5).float().view(-1, 1, 1, 1).expand(shape)
    masks = torch.as_tensor(convert_to_tensor(masks, track_meta=False), dtype=torch.float32).cpu()
    if masks.shape != shape:
        raise MemoryBankError(f"masks must have shape {shape} like their images, got {tuple(masks.shape)}")
    unknown = masks.isnan()
    empty = int(((masks > 0.5) | unknown).flatten(1).any(1).logical_not().logical_and(labels == 1).sum())
    if empty:
        logger.warning("%d anomalous image(s) have an empty mask: they add only a normal patch entry", empty)
    return torch.where(unknown, 0.5, (masks > 0.5).float())


def _region_keys(features: ImageFeatures, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return one key per image and region, the anomalous region first; mixed patches belong to neither region."""
    patches = average_neighbors(features.patches, features.grid_size)
    coverage = F.interpolate(masks, size=features.grid_size, mode="bilinear", align_corners=False).flatten(1)  # (B, N)
    keys, labels = [], []
    for tokens, share in zip(patches, coverage, strict=True):
        for label in (1, 0):
            inside = share == label
            if inside.any():
                keys.append(F.normalize(tokens[inside].mean(0), dim=0))
                labels.append(label)
    if not keys:
        return patches.new_empty(0, patches.shape[-1]), torch.empty(0, dtype=torch.int64)
    return torch.stack(keys), torch.tensor(labels)
