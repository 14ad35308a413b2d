"""Losses of training on anomaly maps. Dice is MONAI's. As in MRAD (arXiv 2602.00522)."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor

__all__ = ["dice_loss", "probability_focal_loss"]

_SMOOTH = 1e-5  # keeps one-hot targets and probabilities away from 0 and 1, as published

# The published Dice: both sums smoothed by one, averaged over the batch.
dice_loss = DiceLoss(include_background=True, smooth_nr=1, smooth_dr=1)


def probability_focal_loss(anomalous: Tensor, mask: Tensor) -> Tensor:
    """Return the focal loss (gamma 2, no class weight) of probabilities rather than logits.

    Args:
        anomalous: (B, 1, H, W) anomalous probability in [0, 1].
        mask: (B, 1, H, W) of 0 and 1.

    Returns:
        Scalar.

    Reference:
        MRAD, arXiv 2602.00522, as its published code computes it. MONAI's focal loss takes logits and differs by 1e-4.
    """
    probabilities = torch.cat([1 - anomalous, anomalous], dim=1)
    target = torch.cat([1 - mask, mask], dim=1).clamp(_SMOOTH, 1 - _SMOOTH)
    likelihood = (target * probabilities).sum(1) + _SMOOTH
    return (-((1 - likelihood) ** 2) * likelihood.log()).mean()
