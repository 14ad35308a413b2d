"""What a batch of labelled images adds to a memory bank, as in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from torch import Tensor

from mrad_med.errors import MemoryBankError
from mrad_med.networks.clip import CLIP
from mrad_med.networks.retrieval import average_neighbors
from mrad_med.types import AnomalyKeys, ImageFeatures

__all__ = ["bank_entries"]

logger = logging.getLogger(__name__)


def bank_entries(clip: CLIP, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return the keys and labels of both levels for a batch, and the height and width of its images.

    Args:
        clip: the backbone.
        batch: as `build_memory_bank` takes them from its loader.

    Raises:
        MemoryBankError: images or labels are missing, or masks are not like their images.
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
    """Return the features of a batch, cached or encoded now, and the size of its images."""
    if AnomalyKeys.LABEL not in batch or not {AnomalyKeys.IMAGE, "features"} & batch.keys():
        raise MemoryBankError(f"each batch needs 'image' and 'label'; this one has {sorted(map(str, batch))}")
    if "features" in batch:
        features: ImageFeatures = batch["features"]
        rows, columns = (count * clip.card.patch_size for count in features.grid_size)
        return features, (rows, columns)
    device = next(clip.image_encoder.parameters()).device
    images = convert_to_tensor(batch[AnomalyKeys.IMAGE], track_meta=False).to(device)
    return clip.image_encoder(images), (images.shape[-2], images.shape[-1])


def _masks(masks: Any, shape: tuple[int, ...], labels: Tensor) -> Tensor:
    """Return (B, 1, H, W) masks of 0, 1, and 0.5 where it is not known what is anomalous: such fits neither region."""
    if masks is None:
        return (labels * 0.5).float().view(-1, 1, 1, 1).expand(shape)
    masks = torch.as_tensor(convert_to_tensor(masks, track_meta=False), dtype=torch.float32).cpu()
    if masks.shape != shape:
        raise MemoryBankError(f"masks must be {shape} like their images, got {tuple(masks.shape)}")
    unknown = masks.isnan()
    empty = int(((masks > 0.5) | unknown).flatten(1).any(1).logical_not().logical_and(labels == 1).sum())
    if empty:
        logger.warning("%d anomalous image(s) have an empty mask: they add a normal patch entry only", empty)
    return torch.where(unknown, 0.5, (masks > 0.5).float())


def _region_keys(features: ImageFeatures, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return one key per image and region, the anomalous region first; mixed patches belong to neither."""
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
