"""What stands between files and the network, and between the network and results, in MONAI's transforms."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, FlattenSubKeysd, Invertd, NormalizeIntensityd, ScaleIntensityRanged
from monai.utils import CommonKeys
from numpy.typing import NDArray

from mrad_med.io.image import ImageSource
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.transforms.artifacts import RemoveArtifactsd
from mrad_med.transforms.intensity import ApplyWindow, ApplyWindowd, ToRGB, ToRGBd, Window
from mrad_med.transforms.load import LoadMaskd, LoadMedicalImage, LoadMedicalImaged
from mrad_med.transforms.spatial import (
    ResizeBicubicd,
    ResizeMaskd,
    SliceLayout,
    ToDisplayOrientation,
    ToDisplayOrientationd,
    slice_layout,
)
from mrad_med.types import IMAGE_SIZE, AnomalyKeys, BackboneCard

__all__ = ["PictureLoader", "build_postprocessing", "build_preprocessing", "load_picture"]


def build_preprocessing(
    card: BackboneCard,
    *,
    image_size: int = IMAGE_SIZE,
    with_mask: bool = False,
    resize_mask: bool = True,
    max_pixels: int = MAX_PIXELS,
    window: Window | Sequence[Window] = "auto",
    plane: str = "auto",
    remove: Sequence[str] = (),
    keep_size: bool = False,
    strict: bool = True,
) -> Compose:
    """Return what stands between a case ``{"image": source, ...}`` and the network, in MONAI's transforms.

    Args:
        card: of the backbone, for its normalization constants.
        image_size: side of the square input in pixels, a multiple of the patch size.
        with_mask: also load ``"mask"`` (a path, None or absent) as (1, H, W).
        resize_mask: bring the mask to the size of the input; it stays at that of the file otherwise.
        max_pixels: pictures with more pixels are refused.
        window: of grey values deeper than bytes, from black to white: see `ApplyWindow`.
        plane: of a volume's slices: see `ToDisplayOrientation`.
        remove: of endoscopy frames, what is no tissue: see `RemoveArtifacts`.
        keep_size: leave images at their own size, for `SlidingWindowAnomalyInferer`.
        strict: refuse a DICOM series whose slices are not evenly spaced: see `read_series`.

    Returns:
        A transform that makes ``"image"`` (3, H, W), or (3, H, W, D) for a volume. Its inverse brings maps back onto
        the file's own grid.

    Raises:
        ValueError: ``image_size`` is not a multiple of the patch size, or a mask would not fit its image.
    """
    if with_mask and (remove or keep_size):
        raise ValueError("masks go with images that are resized whole: leave out remove and keep_size")
    if image_size < card.patch_size or image_size % card.patch_size:
        raise ValueError(f"image_size must be a multiple of the patch size {card.patch_size}, got {image_size}")
    image, mask = [AnomalyKeys.IMAGE.value], [AnomalyKeys.MASK.value] * with_mask
    return Compose(
        [
            LoadMedicalImaged(image, max_pixels, strict),
            *([LoadMaskd(mask)] if with_mask else []),
            ToDisplayOrientationd(image + mask, plane),
            ApplyWindowd(image, window),
            ToRGBd(image),
            *([RemoveArtifactsd(image, remove)] if remove else []),
            *([] if keep_size else [ResizeBicubicd(image, image_size)]),
            *([ResizeMaskd(mask, image_size)] if with_mask and resize_mask else []),
            ScaleIntensityRanged(image, a_min=0, a_max=255, b_min=0, b_max=1),
            NormalizeIntensityd(image, subtrahend=card.mean, divisor=card.std, channel_wise=True),
        ]
    )


def build_postprocessing(preprocessing: Compose) -> Compose:
    """Return what brings an inferer's output back onto the file's own grid, in MONAI's transforms.

    Args:
        preprocessing: of the images; it is inverted.
    """
    maps = AnomalyKeys.ANOMALY_MAP.value
    return Compose(
        [
            FlattenSubKeysd(keys=CommonKeys.PRED, delete_keys=True),
            Invertd(keys=maps, transform=preprocessing, orig_keys=AnomalyKeys.IMAGE.value, nearest_interp=False),
        ]
    )


class PictureLoader:
    """Show what the network sees of a source, at the source's own size.

    No limit of pixels applies: it is meant for sources that were scored.

    Args:
        window: as in `build_preprocessing`.
        plane: likewise.
        strict: likewise.
    """

    def __init__(self, *, window: Window | Sequence[Window] = "auto", plane: str = "auto", strict: bool = True) -> None:
        self.plane = plane
        self._load = LoadMedicalImage(sys.maxsize, strict)
        self._window = ApplyWindow(window)
        self._turn = ToDisplayOrientation(plane)

    def __call__(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return uint8 (H, W, 3), or (H, W, D, 3) for a volume."""
        return _channels_last(self._turn(self._shades(source)))

    def stored(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return uint8 (W, H, 3), or (X, Y, Z, 3) for a volume, as the source stores it."""
        return _channels_last(self._shades(source))

    def _shades(self, source: ImageSource) -> MetaTensor:
        return ToRGB()(self._window(self._load(source)))  # no Compose: it would take the files of a series one by one

    def layout(self, affine: NDArray[np.float64]) -> SliceLayout:
        """Return how the slices that are shown lie in a volume as it is stored."""
        return slice_layout(affine, self.plane)

    def upright(self, anomaly_map: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the map (H, W, D) of a volume, upright like its picture, of the map (X, Y, Z) as stored."""
        turned: NDArray[np.float32] = self._turn(MetaTensor(anomaly_map[None], affine=affine)).numpy()[0]
        return turned


def _channels_last(picture: MetaTensor) -> NDArray[np.uint8]:
    return np.moveaxis(picture.numpy(), 0, -1)


def load_picture(source: ImageSource) -> NDArray[np.uint8]:
    """Return what the network sees of a source with default settings; see `PictureLoader`."""
    return PictureLoader()(source)
