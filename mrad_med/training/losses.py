"""Losses for training on anomaly maps, as in MRAD (arXiv 2602.00522). The Dice loss is MONAI's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

__all__ = ["FineTuneLoss", "PromptLoss", "dice_loss", "probability_focal_loss"]

IMAGE_TEMPERATURE = 0.07  # of the cross-entropy of image-level probabilities, as published

_SMOOTH = 1e-5  # keeps one-hot targets and probabilities away from 0 and 1, as published

# The published Dice loss: numerator and denominator are smoothed by 1, and the loss is averaged over the batch.
dice_loss = DiceLoss(include_background=True, smooth_nr=1, smooth_dr=1)


def probability_focal_loss(anomalous: Tensor, mask: Tensor) -> Tensor:
    """Return the focal loss (gamma 2, no class weight) of probabilities instead of logits.

    Args:
        anomalous: (B, 1, H, W) anomalous probability in [0, 1].
        mask: (B, 1, H, W) of 0 and 1.

    Returns:
        Scalar.

    Reference:
        Published code of MRAD, arXiv 2602.00522. MONAI's focal loss takes logits, and its values differ by 1e-4.
    """
    is_normal, is_anomalous = (share.clamp(_SMOOTH, 1 - _SMOOTH) for share in (1 - mask, mask))
    likelihood = is_normal * (1 - anomalous) + is_anomalous * anomalous + _SMOOTH
    return (-((1 - likelihood) ** 2) * likelihood.log()).mean()


class FineTuneLoss(nn.Module):
    """Loss for training a `FineTunedHead`: focal and Dice of the map, plus cross-entropy of the image probability.

    Args:
        temperature: divisor of the image-level probabilities in the cross-entropy.

    Reference:
        MRAD, arXiv 2602.00522: stage 1.
    """

    def __init__(self, *, temperature: float = IMAGE_TEMPERATURE) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, prediction: tuple[Tensor, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            prediction: patch probabilities (B, 1, h, w) on the patch grid, and image-level probabilities (B, 1).
            target: ``mask`` (B, 1, H, W) of 0 and 1, and ``label`` (B,) of 0 and 1.
        """
        patch_maps, image = prediction
        mask = target["mask"]
        maps = _upsample(patch_maps, mask)
        logits = torch.cat([1 - image, image], dim=1) / self.temperature
        total: Tensor = probability_focal_loss(maps, mask) + dice_loss(maps, mask)
        return total + F.cross_entropy(logits, target["label"])


class PromptLoss(nn.Module):
    """Loss for training the prompts of a `PromptedHead`: focal loss, plus Dice of the anomalous and of the normal map.

    Reference:
        MRAD, arXiv 2602.00522: stage 2.
    """

    def forward(self, prediction: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            prediction: patch probabilities (B, 1, h, w) on the patch grid.
            target: ``mask`` (B, 1, H, W) of 0 and 1.
        """
        mask = target["mask"]
        maps = _upsample(prediction, mask)
        total: Tensor = probability_focal_loss(maps, mask) + dice_loss(maps, mask) + dice_loss(1 - maps, 1 - mask)
        return total


def _upsample(patch_maps: Tensor, mask: Tensor) -> Tensor:
    """Return patch maps at the size of the masks; they are not blurred in training, as published."""
    return F.interpolate(patch_maps, size=mask.shape[-2:], mode="bilinear", align_corners=False)
