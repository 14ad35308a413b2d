"""Images and volumes in, anomaly maps and scores out: MONAI inferers over `MRAD`."""

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
        image_weight: weight of the image-level probability in the score; the map's highest pixels have the rest.
        top_fraction: share of the map's pixels that are averaged for the score.
    """

    def __init__(self, *, image_weight: float = IMAGE_WEIGHT, top_fraction: float = TOP_FRACTION) -> None:
        super().__init__()
        self.image_weight = image_weight
        self.top_fraction = top_fraction

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Network, *_: Any, **__: Any) -> Any:
        """Return maps and scores of a batch.

        Args:
            inputs: (B, 3, H, W) normalized images.
            network: any variant of MRAD, or one exported to TorchScript.

        Returns:
            ``anomaly_map`` (B, 1, H, W) in [0, 1], carrying the metadata of a MetaTensor input so that MONAI's
            `Invertd` can bring it back onto the file's grid, and ``anomaly_score`` (B, 1). Of a TorchScript network,
            which keeps its image-level probability to itself, the maps alone, as MONAI Deploy takes them.

        Raises:
            ValueError: the images do not fit or are not finite, or a score is NaN.
        """
        probability, maps = self.examine(convert_to_tensor(inputs, track_meta=False), network)
        if isinstance(network, ScriptModule):
            return _with_metadata(maps, inputs)
        return {
            AnomalyKeys.ANOMALY_MAP.value: _with_metadata(maps, inputs),
            AnomalyKeys.ANOMALY_SCORE.value: self.fuse(probability, maps),
        }

    def examine(self, images: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        """Return what scores are made of: (B, 1) image-level probabilities and (B, 1, H, W) maps of plain tensors.

        The probabilities of a TorchScript network are not known: NaN.

        Raises:
            ValueError: the images do not fit or are not finite.
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
        """Return ``anomaly_map`` (B, 1, H, W) and ``anomaly_score`` (B, 1) of features.

        Raises:
            ValueError: a score is NaN.
        """
        maps = network.anomaly_map(features, image_size)
        scores = self.fuse(network.image_probability(features), maps)
        return {AnomalyKeys.ANOMALY_MAP.value: maps, AnomalyKeys.ANOMALY_SCORE.value: scores}

    def fuse(self, image_probability: Tensor, maps: Tensor) -> Tensor:
        """Return (B, 1) scores of (B, 1) image-level probabilities and (B, 1, H, W) maps.

        Raises:
            ValueError: a score is NaN.
        """
        scores = fuse_scores(image_probability, maps, image_weight=self.image_weight, fraction=self.top_fraction)
        if not torch.isfinite(scores).all():
            raise ValueError("the network gives NaN: use precision='fp32', or get undamaged weights and bank")
        return scores

    @staticmethod
    def _check_finite(images: Tensor) -> None:
        if images.numel() and not torch.stack(images.aminmax()).isfinite().all():  # aminmax hands NaN on, and is small
            raise ValueError(
                "images must be finite, got NaN or infinite values; `build_preprocessing` replaces them, and so does "
                "torch.nan_to_num"
            )


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
    """Score volumes slice by slice along one axis; images are scored whole.

    The score of a volume is the highest score of its slices, each made of its part of the map that is returned.

    Args:
        slices_per_batch: slices that are encoded together.
        axis: of the volume (X, Y, Z), along which the slices follow each other: 0, 1, 2, or negative from the last.
        smooth: standard deviation, in slices, of a Gaussian that smooths the map across slices, edges mirrored; 0
            leaves each slice as it is.
        device: where maps and scores are put together; None is where the volume is. Slices go to the network's device
            batch by batch, so that volumes larger than its memory can stay in the computer's.
        slice_inferer: how slices and images are scored, for example a `SlidingWindowAnomalyInferer` for sides that are
            no multiples of the patch size; None passes them through the network whole.
        image_weight: as in `AnomalyInferer`; where a ``slice_inferer`` is given, that one's counts.
        top_fraction: likewise.

    Raises:
        ValueError: a setting is out of its range.
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
        """Return maps and scores of a batch of volumes, or of images.

        Args:
            inputs: (B, 3, X, Y, Z) normalized volumes, or (B, 3, H, W) normalized images.
            network: any variant of MRAD, or one exported to TorchScript.
            *args: handed on to the inferer of images.
            **kwargs: handed on to the inferer of images.

        Returns:
            ``anomaly_map`` (B, 1, X, Y, Z), float32, with the metadata of the input as in `AnomalyInferer`,
            ``anomaly_score`` (B, 1) and ``slice_scores`` (B, slices). Of images, and of a TorchScript network, as
            `AnomalyInferer`.

        Raises:
            ValueError: the input does not fit, is not finite or has no slices, or a score is NaN.
        """
        if inputs.ndim != 5:
            return self.slice_inferer(inputs, network, *args, **kwargs)
        volumes = convert_to_tensor(inputs, track_meta=False).movedim(2 + self.axis, 1)  # (B, D, 3, H, W)
        if 0 in volumes.shape[:2]:
            raise ValueError(f"expected volumes with slices along axis {self.axis}, got shape {tuple(inputs.shape)}")
        probabilities, maps = self._examine_slices(volumes, network)
        if self.smooth:
            maps = _smooth_slices(maps, self.smooth)
        if isinstance(network, ScriptModule):
            return _with_metadata(maps.movedim(1, 2 + self.axis), inputs)
        # Slice by slice, for the highest pixels of all at once would take a second copy of the map.
        scores = torch.cat([self.fuse(*pair) for pair in zip(probabilities.unbind(1), maps.unbind(1), strict=True)], 1)
        return {
            AnomalyKeys.ANOMALY_MAP.value: _with_metadata(maps.movedim(1, 2 + self.axis), inputs),
            AnomalyKeys.ANOMALY_SCORE.value: scores.amax(1, keepdim=True),
            AnomalyKeys.SLICE_SCORES.value: scores,
        }

    def _examine_slices(self, volumes: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        """Return (B, D, 1) image-level probabilities and (B, D, 1, H, W) maps of (B, D, 3, H, W) volumes."""
        batch, depth, _, *image_size = volumes.shape
        count, device = batch * depth, self.device or volumes.device
        network_device = next(network.parameters(), volumes).device  # a frozen file has no parameters
        probabilities = torch.empty(count, 1, device=device)
        maps = torch.empty(count, 1, *image_size, device=device)
        for start in range(0, count, self.slices_per_batch):
            part = slice(start, min(start + self.slices_per_batch, count))
            # Picked one by one: to flatten volumes and slices into one axis would copy all volumes.
            slices = [volumes[index // depth, index % depth] for index in range(part.start, part.stop)]
            found = self.slice_inferer.examine(torch.stack(slices).to(network_device), network)
            probabilities[part], maps[part] = (item.to(device) for item in found)
        return probabilities.view(batch, depth, 1), maps.view(batch, depth, 1, *image_size)


def _smooth_slices(maps: Tensor, sigma: float) -> Tensor:
    """Return (B, D, 1, H, W) maps after a Gaussian along D, whose edges are mirrored as `upsample_and_blur` does."""
    depth = maps.shape[1]
    units = torch.eye(depth, dtype=maps.dtype, device=maps.device).view(depth, 1, depth, 1)
    blur = upsample_and_blur(units, (depth, 1), sigma=sigma).view(depth, depth).T  # each column is a blurred slice
    with torch.autocast(maps.device.type, enabled=False):
        return (blur @ maps.flatten(2)).view_as(maps).clamp_(0, 1)  # float rounding


def _with_metadata(maps: Tensor, inputs: Tensor) -> Tensor:
    return MetaTensor(maps).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else maps
