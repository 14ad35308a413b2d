"""Images and volumes in, anomaly maps and scores out: MONAI inferers over `MRAD`."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor

from mrad_med.maps import IMAGE_WEIGHT, TOP_FRACTION, fuse_scores
from mrad_med.networks import MRAD
from mrad_med.types import AnomalyKeys, ImageFeatures

__all__ = ["AnomalyInferer", "FeatureInferer", "SliceAnomalyInferer"]


class AnomalyInferer(Inferer):
    """Score whole images with one pass of the encoder.

    Args:
        image_weight: weight of the image-level probability in the score; the map's highest pixels have the rest.
        top_fraction: share of the map's pixels that are averaged for the score.
    """

    def __init__(self, *, image_weight: float = IMAGE_WEIGHT, top_fraction: float = TOP_FRACTION) -> None:
        super().__init__()
        self.image_weight = image_weight
        self.top_fraction = top_fraction

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: MRAD, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Return maps and scores of a batch.

        Args:
            inputs: (B, 3, H, W) normalized images.
            network: any variant of MRAD.

        Returns:
            ``anomaly_map`` (B, 1, H, W) in [0, 1], carrying the metadata of a MetaTensor input so that MONAI's
            `Invertd` can bring it back onto the file's grid, and ``anomaly_score`` (B, 1).

        Raises:
            ValueError: a score is NaN.
        """
        images = convert_to_tensor(inputs, track_meta=False)
        output = self.score(network.encode(images), network, (images.shape[-2], images.shape[-1]))
        output[AnomalyKeys.ANOMALY_MAP.value] = _with_metadata(output[AnomalyKeys.ANOMALY_MAP.value], inputs)
        return output

    def score(self, features: ImageFeatures, network: MRAD, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return ``anomaly_map`` (B, 1, H, W) and ``anomaly_score`` (B, 1) of features.

        Raises:
            ValueError: a score is NaN.
        """
        maps = network.anomaly_map(features, image_size)
        scores = fuse_scores(
            network.image_probability(features), maps, image_weight=self.image_weight, fraction=self.top_fraction
        )
        if not torch.isfinite(scores).all():
            raise ValueError("the network gives NaN: use precision='fp32', or get undamaged weights and bank")
        return {AnomalyKeys.ANOMALY_MAP.value: maps, AnomalyKeys.ANOMALY_SCORE.value: scores}


class FeatureInferer(Inferer):
    """Score features that were encoded before, as cached ones are in validation.

    Args:
        inferer: how features are scored.
    """

    def __init__(self, inferer: AnomalyInferer | None = None) -> None:
        super().__init__()
        self.inferer = inferer or AnomalyInferer()

    @torch.no_grad()
    def __call__(self, inputs: ImageFeatures, network: MRAD, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Return ``anomaly_map`` (B, 1, H, W) and ``anomaly_score`` (B, 1) of a batch."""
        rows, columns = (count * network.image_encoder.patch_size for count in inputs.grid_size)
        return self.inferer.score(inputs, network, (rows, columns))


class SliceAnomalyInferer(AnomalyInferer):
    """Score volumes slice by slice along the last axis; images are scored whole.

    The score of a volume is the highest score of its slices.

    Args:
        slices_per_batch: slices that are encoded together.
        image_weight: as in `AnomalyInferer`.
        top_fraction: as in `AnomalyInferer`.
    """

    def __init__(
        self, *, slices_per_batch: int = 4, image_weight: float = IMAGE_WEIGHT, top_fraction: float = TOP_FRACTION
    ) -> None:
        super().__init__(image_weight=image_weight, top_fraction=top_fraction)
        if slices_per_batch < 1:
            raise ValueError(f"slices_per_batch must be at least 1, got {slices_per_batch}")
        self.slices_per_batch = slices_per_batch

    def __call__(self, inputs: Tensor, network: MRAD, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return ``anomaly_map`` (B, 1, H, W[, D]) and ``anomaly_score`` (B, 1) of (B, 3, H, W[, D]) inputs."""
        if inputs.ndim != 5:
            return super().__call__(inputs, network, *args, **kwargs)
        volumes = convert_to_tensor(inputs, track_meta=False)
        slices = volumes.permute(0, 4, 1, 2, 3).flatten(0, 1)  # (B * D, 3, H, W)
        results = [
            super(SliceAnomalyInferer, self).__call__(part, network, *args, **kwargs)
            for part in slices.split(self.slices_per_batch)
        ]
        maps = torch.cat([result[AnomalyKeys.ANOMALY_MAP] for result in results])  # (B * D, 1, H, W)
        scores = torch.cat([result[AnomalyKeys.ANOMALY_SCORE] for result in results])  # (B * D, 1)
        maps = maps.reshape(len(volumes), -1, *maps.shape[1:]).permute(0, 2, 3, 4, 1)  # (B, 1, H, W, D)
        return {
            AnomalyKeys.ANOMALY_MAP.value: _with_metadata(maps, inputs),
            AnomalyKeys.ANOMALY_SCORE.value: scores.view(len(volumes), -1).amax(1, keepdim=True),
        }


def _with_metadata(maps: Tensor, inputs: Tensor) -> Tensor:
    return MetaTensor(maps).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else maps
