"""Anomaly maps of large images, stitched from tiles by MONAI's sliding window inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.jit import ScriptModule

from mrad_med.networks.inferers import AnomalyInferer, Network
from mrad_med.networks.maps import IMAGE_WEIGHT, TOP_FRACTION
from mrad_med.networks.mrad import MRAD
from mrad_med.types import IMAGE_SIZE, BackboneCard

__all__ = ["NonBlack", "SlidingWindowAnomalyInferer"]

BLACK = 10 / 255  # above the artifacts of JPEG compression in a black border
MODES = ("constant", "gaussian")

Size = tuple[int, int]
Foreground = Callable[[Tensor], Tensor] | Tensor


class NonBlack:
    """Find the pixels of normalized images that are not black, such as the field of view of an endoscope.

    Args:
        card: card of the backbone, for its normalization constants.
        threshold: value above which a channel makes a pixel foreground; black is 0 and white 1.
    """

    def __init__(self, card: BackboneCard, *, threshold: float = BLACK) -> None:
        self.levels = [(threshold - mean) / std for mean, std in zip(card.mean, card.std, strict=True)]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the (B, 1, H, W) foreground, bool, for (B, 3, H, W) normalized images."""
        return (images > images.new_tensor(self.levels).view(3, 1, 1)).any(1, keepdim=True)


class SlidingWindowAnomalyInferer(AnomalyInferer):
    """Score images of any size: the map is stitched from tiles, the image-level probability is of the whole image.

    Only maps use tiles. The probability of one tile does not describe the image, and an average over tiles depends on
    their overlap. Therefore the image, resized to one tile, is encoded once more. The score combines its image-level
    probability with the highest pixels of the stitched map.

    A tile shrinks to a shorter side of the image, rounded up to a multiple of the patch size. The missing pixels, less
    than one patch, are mirrored. For an image of exactly one tile, the result is that of `AnomalyInferer`.

    Args:
        roi_size: height and width of a tile in pixels, or one number for both; multiples of the patch size.
        overlap: share of a tile that the next tile also covers, in [0, 1); one number for both axes, or one per axis.
        mode: weighting of overlapping tiles: ``"gaussian"``, with less weight towards the edges, or ``"constant"``.
        sw_batch_size: number of tiles that are encoded together.
        scales: factors that the image is resized by. The maps are resized back and averaged.
        foreground: (B or 1, 1, H, W) tensor, above 0 in the foreground, or a function that computes it from normalized
            images, for example `NonBlack`. Tiles without foreground are not scored. Pixels that no scored tile covers
            are 0 in the map, the lowest value. None scores all tiles.
        sw_device: device that scores tiles; None uses the network's.
        device: device of the returned map; None uses the images'.
        image_weight: weight of the image-level probability in the score, as in `AnomalyInferer`.
        top_fraction: share of the map's pixels in the score, as in `AnomalyInferer`.

    Raises:
        ValueError: an argument is out of its range.
    """

    CHANGES_NO_RESULT = ("sw_batch_size", "sw_device", "device")

    def __init__(
        self,
        *,
        roi_size: int | Sequence[int] = IMAGE_SIZE,
        overlap: float | Sequence[float] = 0.25,
        mode: str = "gaussian",
        sw_batch_size: int = 4,
        scales: Sequence[float] = (1.0,),
        foreground: Foreground | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        image_weight: float = IMAGE_WEIGHT,
        top_fraction: float = TOP_FRACTION,
    ) -> None:
        super().__init__(image_weight=image_weight, top_fraction=top_fraction)
        self.roi_size: Size = ensure_tuple_rep(roi_size, 2)
        self.overlap: tuple[float, float] = ensure_tuple_rep(overlap, 2)
        self.mode = mode
        self.sw_batch_size = sw_batch_size
        self.scales = tuple(scales)
        self.foreground = foreground
        self.sw_device = sw_device
        self.device = device
        self._check_arguments()

    def _check_arguments(self) -> None:
        if min(self.roi_size) < 1:
            raise ValueError(f"roi_size must be positive, got {self.roi_size}")
        if not all(0 <= share < 1 for share in self.overlap):
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if self.sw_batch_size < 1:
            raise ValueError(f"sw_batch_size must be at least 1, got {self.sw_batch_size}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be one or more positive numbers, got {self.scales}")

    def examine(self, images: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        """Return (B, 1) probabilities of the whole images and (B, 1, H, W) stitched maps, both on ``device``.

        Args:
            images: (B, 3, H, W) normalized images with no side shorter than a patch.
            network: any variant of MRAD, but not one exported to TorchScript.

        Raises:
            ValueError: images or foreground have a wrong shape, images are not finite, or ``roi_size`` is not a
                multiple of the patch size.
        """
        if isinstance(network, ScriptModule):
            raise ValueError("a TorchScript network scores images whole: leave out the sliding windows")
        patch_size = network.image_encoder.patch_size
        self._check_images(images, patch_size)
        images = images.float()  # MONAI sums in the data type of the images
        device = self.device or images.device
        sw_device = self.sw_device or next(network.parameters()).device
        size = _size_of(images)
        tile = self._tile_size(size, patch_size)
        whole = _resize_images(images, tile).to(sw_device)
        if tile == size and self.scales == (1.0,) and self.foreground is None:
            probability, maps = super().examine(whole, network)
        else:
            probability = network.image_probability(network.encode(whole))
            maps = self._average_scales(images, network, sw_device, device)
        return probability.to(device), maps.to(device)

    def _check_images(self, images: Tensor, patch_size: int) -> None:
        if any(side % patch_size for side in self.roi_size):
            raise ValueError(f"roi_size must be multiples of the patch size {patch_size}, got {self.roi_size}")
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < patch_size:
            raise ValueError(
                f"expected images of shape (B, 3, H, W) with H, W >= {patch_size}, got {tuple(images.shape)}; for "
                "volumes, use SliceAnomalyInferer(slice_inferer=...)"
            )
        self._check_finite(images)

    def _tile_size(self, size: Size, patch_size: int) -> Size:
        """Return the size of the tiles of images of this size."""
        height, width = (
            min(roi, math.ceil(side / patch_size) * patch_size) for roi, side in zip(self.roi_size, size, strict=True)
        )
        return height, width

    def _average_scales(
        self, images: Tensor, network: MRAD, sw_device: torch.device | str, device: torch.device | str
    ) -> Tensor:
        """Return the mean (B, 1, H, W) map of all scales, 0 where no tile was scored."""
        patch_size, size = network.image_encoder.patch_size, _size_of(images)
        foreground = self._find_foreground(images)
        # Sum maps and weights separately and divide once: otherwise values fade next to tiles that were not scored.
        total = torch.zeros(len(images), 2, *size, device=device)
        for scale in self.scales:
            height, width = (max(patch_size, round(side * scale)) for side in size)
            scaled = _resize_images(images, (height, width))
            parts = None if foreground is None else F.interpolate(foreground, size=(height, width), mode="area")
            stitched = sliding_window_inference(
                scaled,
                roi_size=self._tile_size((height, width), patch_size),
                sw_batch_size=self.sw_batch_size,
                predictor=_score_tiles,
                overlap=self.overlap,
                mode=self.mode,
                padding_mode="reflect",
                sw_device=sw_device,
                device=device,
                network=network,
                condition=parts,  # cut into the same tiles as the images
            )
            total += _resize(stitched, size, mode="bilinear")
        tiny = torch.finfo(total.dtype).tiny
        return (total[:, :1] / total[:, 1:].clamp(min=tiny)).clamp(0, 1)  # corrects float rounding

    def _find_foreground(self, images: Tensor) -> Tensor | None:
        """Return the (B, 1, H, W) float32 foreground of 0 and 1, or None if all tiles are scored."""
        if self.foreground is None:
            return None
        found = self.foreground if isinstance(self.foreground, Tensor) else self.foreground(images)
        if found.ndim != 4 or found.shape[0] not in (1, len(images)) or found.shape[1:] != (1, *images.shape[2:]):
            raise ValueError(
                f"expected a foreground of shape (B or 1, 1, H, W) for images of shape {tuple(images.shape)}, got "
                f"{tuple(found.shape)}"
            )
        return (found > 0).to(images).expand(len(images), -1, -1, -1)


def _score_tiles(tiles: Tensor, *, network: MRAD, condition: Tensor | None = None) -> Tensor:
    """Return (N, 2, H, W): maps of (N, 3, H, W) tiles and ones; zeros for tiles where ``condition`` is 0 everywhere."""
    if condition is None:
        return _with_ones(network(tiles))
    scored = (condition > 0).flatten(1).any(1)
    output = tiles.new_zeros(len(tiles), 2, *tiles.shape[2:])
    if scored.any():
        output[scored] = _with_ones(network(tiles[scored]))
    return output


def _with_ones(maps: Tensor) -> Tensor:
    return torch.cat([maps, torch.ones_like(maps)], dim=1)


def _resize_images(images: Tensor, size: Size) -> Tensor:
    """Return images resized like Pillow's bicubic: antialiased, and limited to the original range of each channel."""
    if _size_of(images) == size:
        return images
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return _resize(images, size, mode="bicubic").clamp(low, high)


def _resize(images: Tensor, size: Size, *, mode: str) -> Tensor:
    return images if _size_of(images) == size else F.interpolate(images, size=size, mode=mode, antialias=True)


def _size_of(images: Tensor) -> Size:
    return cast(Size, tuple(images.shape[-2:]))
