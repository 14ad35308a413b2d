"""MONAI inferers over `MRAD`: images and volumes in, anomaly maps and scores out."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.jit import ScriptModule

from mrad_med.networks.maps import IMAGE_WEIGHT, TOP_FRACTION, fuse_scores, upsample_and_blur
from mrad_med.networks.mrad import MRAD
from mrad_med.types import AnomalyKeys, ImageFeatures

__all__ = ["AnomalyInferer", "FeatureInferer", "SliceAnomalyInferer"]

Network = MRAD | ScriptModule


class AnomalyInferer(Inferer):
    """Score whole images with one pass of the encoder.

    Args:
        image_weight: weight of the image-level probability in the score, in [0, 1]; the map's highest pixels have the
            rest.
        top_fraction: share of the map's pixels that are averaged for the score, in (0, 1].
    """

    def __init__(self, *, image_weight: float = IMAGE_WEIGHT, top_fraction: float = TOP_FRACTION) -> None:
        super().__init__()
        self.image_weight = image_weight
        self.top_fraction = top_fraction

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Network, *_: Any, **__: Any) -> Any:
        """Return the maps and scores of a batch.

        Args:
            inputs: (B, 3, H, W) normalized images.
            network: any variant of MRAD, or one exported to TorchScript.

        Returns:
            ``anomaly_map`` (B, 1, H, W) in [0, 1] and ``anomaly_score`` (B, 1). The map of a MetaTensor has the
            metadata of the input, so MONAI's `Invertd` can resample it to the grid of the file. For a TorchScript
            network, which does not return its image-level probability, only the map, as MONAI Deploy expects.

        Raises:
            ValueError: the images have a wrong shape, or images or scores are not finite.
        """
        probability, maps = self.examine(convert_to_tensor(inputs, track_meta=False), network)
        if isinstance(network, ScriptModule):
            return _with_metadata(maps, inputs)
        return {
            AnomalyKeys.ANOMALY_MAP.value: _with_metadata(maps, inputs),
            AnomalyKeys.ANOMALY_SCORE.value: self.fuse(probability, maps),
        }

    def examine(self, images: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        """Return (B, 1) image-level probabilities and (B, 1, H, W) maps, which the scores are computed from.

        The probabilities of a TorchScript network are not known: NaN.

        Raises:
            ValueError: the images have a wrong shape or are not finite.
        """
        self._check_finite(images)
        if isinstance(network, ScriptModule):
            output = network(images)
            maps = output if isinstance(output, Tensor) else output[0]  # `export_network` adds the score
            return maps.new_full((len(maps), 1), math.nan), maps
        features = network.encode(images)
        maps = network.anomaly_map(features, (images.shape[-2], images.shape[-1]))
        return network.image_probability(features), maps

    def score(self, features: ImageFeatures, network: MRAD, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return ``anomaly_map`` (B, 1, H, W) and ``anomaly_score`` (B, 1) for features.

        Raises:
            ValueError: a score is not finite.
        """
        maps = network.anomaly_map(features, image_size)
        scores = self.fuse(network.image_probability(features), maps)
        return {AnomalyKeys.ANOMALY_MAP.value: maps, AnomalyKeys.ANOMALY_SCORE.value: scores}

    def fuse(self, image_probability: Tensor, maps: Tensor) -> Tensor:
        """Return (B, 1) scores from (B, 1) image-level probabilities and (B, 1, H, W) maps.

        Raises:
            ValueError: a score is not finite.
        """
        scores = fuse_scores(image_probability, maps, image_weight=self.image_weight, fraction=self.top_fraction)
        if not torch.isfinite(scores).all():
            raise ValueError("the network returns NaN: use precision='fp32', or replace a damaged weights or bank file")
        return scores

    @staticmethod
    def _check_finite(images: Tensor) -> None:
        if images.numel() and not torch.stack(images.aminmax()).isfinite().all():  # aminmax propagates NaN
            raise ValueError(
                "images must be finite, got NaN or infinite values; replace them with `build_preprocessing` or "
                "torch.nan_to_num"
            )


class FeatureInferer(Inferer):
    """Score features that are already encoded, such as cached features in validation.

    Args:
        inferer: inferer that scores the features; None uses `AnomalyInferer()`.
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
    """Score volumes slice by slice along one axis; images go to the inferer of the slices.

    The score of a volume is the highest score of its slices. Each slice is scored with its part of the returned map.
    A slice with one value in all pixels has no score (NaN). Its part of the map has the lowest value of the other
    slices, and it does not take part in the smoothing.

    Args:
        slices_per_batch: number of slices that are encoded together.
        axis: axis of the volume (X, Y, Z) that the slices are stacked along: 0, 1, 2, or -3 to -1 from the last.
        smooth: standard deviation, in slices, of a Gaussian across slices with mirrored edges; 0 disables it.
        device: device of maps and scores; None uses the volume's. Slices move to the network's device in batches, so a
            volume can be larger than its memory.
        slice_inferer: inferer for slices and images. A `SlidingWindowAnomalyInferer` accepts sides that are not
            multiples of the patch size. None uses `AnomalyInferer`.
        image_weight: weight of the image-level probability, as in `AnomalyInferer`; not used with a ``slice_inferer``.
        top_fraction: share of the pixels in the score, as in `AnomalyInferer`; not used with a ``slice_inferer``.

    Raises:
        ValueError: an argument is out of its range.
    """

    CHANGES_NO_RESULT = ("slices_per_batch", "device")

    def __init__(
        self,
        *,
        slices_per_batch: int = 4,
        axis: int = -1,
        smooth: float = 0.0,
        device: torch.device | str | None = None,
        slice_inferer: AnomalyInferer | None = None,
        image_weight: float = IMAGE_WEIGHT,
        top_fraction: float = TOP_FRACTION,
    ) -> None:
        if slices_per_batch < 1:
            raise ValueError(f"slices_per_batch must be at least 1, got {slices_per_batch}")
        if axis not in range(-3, 3):
            raise ValueError(f"axis must be 0, 1 or 2, or -3 to -1 counted from the last, got {axis}")
        if not 0 <= smooth < math.inf:
            raise ValueError(f"smooth must be a number of slices, 0 or more, got {smooth}")
        self.slice_inferer = slice_inferer or AnomalyInferer(image_weight=image_weight, top_fraction=top_fraction)
        super().__init__(image_weight=self.slice_inferer.image_weight, top_fraction=self.slice_inferer.top_fraction)
        self.slices_per_batch = slices_per_batch
        self.axis = axis % 3
        self.smooth = smooth
        self.device = device

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Return the maps and scores of a batch of volumes or images.

        Args:
            inputs: (B, 3, X, Y, Z) normalized volumes, or (B, 3, H, W) normalized images.
            network: any variant of MRAD, or one exported to TorchScript.
            *args: arguments for ``slice_inferer``, for images only.
            **kwargs: arguments for ``slice_inferer``, for images only.

        Returns:
            ``anomaly_map`` (B, 1, X, Y, Z), float32, with the metadata of the input as in `AnomalyInferer`,
            ``anomaly_score`` (B, 1) and ``slice_scores`` (B, slices), NaN for constant slices. The score of a volume is
            NaN if all its slices are constant. For images, the result of ``slice_inferer``. For a TorchScript network,
            only the map.

        Raises:
            ValueError: the input has a wrong shape or no slices, or input or scores are not finite.
        """
        if inputs.ndim != 5:
            return self.slice_inferer(inputs, network, *args, **kwargs)
        volumes = convert_to_tensor(inputs, track_meta=False).movedim(2 + self.axis, 1)  # (B, D, 3, H, W)
        if 0 in volumes.shape[:2]:
            raise ValueError(f"expected volumes with slices along axis {self.axis}, got shape {tuple(inputs.shape)}")
        probabilities, maps = self._examine_slices(volumes, network)
        shown = _has_contrast(volumes)
        if self.smooth:
            maps = _smooth_slices(maps, self.smooth, shown)
        if not shown.all():
            _lower(maps, shown.to(maps.device))
        if isinstance(network, ScriptModule):
            return _with_metadata(maps.movedim(1, 2 + self.axis), inputs)
        # The highest pixels of all slices at once would need a copy of the map.
        scores = torch.cat([self.fuse(*pair) for pair in zip(probabilities.unbind(1), maps.unbind(1), strict=True)], 1)
        highest = scores.amax(1, keepdim=True)
        if not shown.all():
            scores, highest = _leave_out(scores, shown.to(scores.device))
        return {
            AnomalyKeys.ANOMALY_MAP.value: _with_metadata(maps.movedim(1, 2 + self.axis), inputs),
            AnomalyKeys.ANOMALY_SCORE.value: highest,
            AnomalyKeys.SLICE_SCORES.value: scores,
        }

    def _examine_slices(self, volumes: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        """Return (B, D, 1) image-level probabilities and (B, D, 1, H, W) maps for (B, D, 3, H, W) volumes."""
        batch, depth, _, *image_size = volumes.shape
        count, device = batch * depth, self.device or volumes.device
        network_device = next(network.parameters(), volumes).device  # a frozen file has no parameters
        probabilities = torch.empty(count, 1, device=device)
        maps = torch.empty(count, 1, *image_size, device=device)
        for start in range(0, count, self.slices_per_batch):
            part = slice(start, min(start + self.slices_per_batch, count))
            # Flattening volumes and slices into one axis would copy all volumes.
            slices = [volumes[index // depth, index % depth] for index in range(part.start, part.stop)]
            found = self.slice_inferer.examine(torch.stack(slices).to(network_device), network)
            probabilities[part], maps[part] = (item.to(device) for item in found)
        return probabilities.view(batch, depth, 1), maps.view(batch, depth, 1, *image_size)


def _has_contrast(volumes: Tensor) -> Tensor:
    """Return for each slice of (B, D, C, H, W) volumes whether any channel has more than one value, (B, D)."""
    # One slice at a time, because flattening could copy all volumes.
    found = [[bool((item != item[:, :1, :1]).any()) for item in volume] for volume in volumes]
    return torch.tensor(found)


def _lower(maps: Tensor, shown: Tensor) -> None:
    """Set the slices of (B, D, 1, H, W) maps that are not ``shown`` (B, D) to the lowest value of the others, or 0."""
    for volume, is_shown in zip(maps, shown, strict=True):
        volume[~is_shown] = volume[is_shown].amin() if is_shown.any() else 0.0


def _leave_out(scores: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores of slices (B, D) with NaN where not ``shown`` (B, D), and the highest of the others, (B, 1)."""
    highest = scores.masked_fill(~shown, -math.inf).amax(1, keepdim=True)
    return scores.masked_fill(~shown, math.nan), highest.masked_fill(~shown.any(1, keepdim=True), math.nan)


def _smooth_slices(maps: Tensor, sigma: float, shown: Tensor) -> Tensor:
    """Return (B, D, 1, H, W) maps smoothed by a Gaussian along D, with edges mirrored as in `upsample_and_blur`.

    Args:
        maps: (B, D, 1, H, W) maps.
        sigma: standard deviation of the Gaussian, in slices.
        shown: (B, D) slices that take part; the others have the weight 0.
    """
    depth = maps.shape[1]
    units = torch.eye(depth, dtype=maps.dtype, device=maps.device).view(depth, 1, depth, 1)
    blur = upsample_and_blur(units, (depth, 1), sigma=sigma).view(depth, depth).T  # column i: unit vector i, blurred
    with torch.autocast(maps.device.type, enabled=False):
        if shown.all():
            return (blur @ maps.flatten(2)).view_as(maps).clamp_(0, 1)  # corrects float rounding
        weights = blur * shown[:, None].to(maps)  # (B, D, D)
        weights /= weights.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
        return (weights @ maps.flatten(2)).view_as(maps).clamp_(0, 1)


def _with_metadata(maps: Tensor, inputs: Tensor) -> Tensor:
    return MetaTensor(maps).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else maps
