"""Preprocessing of images for the network and for display, and postprocessing of maps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, NormalizeIntensityd, ScaleIntensityRanged
from monai.utils import CommonKeys
from numpy.typing import NDArray

from mrad_med.io.image import ImageSource
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.transforms.artifacts import RemoveArtifactsd
from mrad_med.transforms.content import CheckValuesd, CheckVisibled
from mrad_med.transforms.intensity import ApplyWindow, ApplyWindowd, ToRGB, ToRGBd, Window
from mrad_med.transforms.load import LoadMaskd, LoadMedicalImage, LoadMedicalImaged
from mrad_med.transforms.prediction import SplitOutputd, ToPredictiond
from mrad_med.transforms.spatial import (
    ResizeBicubicd,
    ResizeMaskd,
    SliceLayout,
    ToDisplayOrientation,
    ToDisplayOrientationd,
    slice_layout,
)
from mrad_med.types import IMAGE_SIZE, AnomalyKeys, BackboneCard

__all__ = ["ImageView", "build_postprocessing", "build_preprocessing"]


@dataclass(frozen=True)
class ImageView:
    """Window, plane, size and further values of the preprocessing, the same for the network and for display.

    Attributes:
        image_size: side of the network's square input in pixels; a multiple of the patch size.
        max_pixels: largest number of pixels of an image; larger ones are refused.
        window: range of gray values that is shown from black to white; see `ApplyWindow`.
        plane: plane of a volume's slices; see `ToDisplayOrientation`.
        remove: artifacts that are removed from endoscopy frames; see `RemoveArtifacts`.
        keep_size: whether images keep their own size, for `SlidingWindowAnomalyInferer`.
        strict_geometry: whether a DICOM series with unevenly spaced slices is refused; see `read_series`.

    Raises:
        ValueError: the window, the plane or an artifact is unknown.
    """

    image_size: int = IMAGE_SIZE
    max_pixels: int = MAX_PIXELS
    window: Window | Sequence[Window] = "auto"
    plane: str = "auto"
    remove: Sequence[str] = ()
    keep_size: bool = False
    strict_geometry: bool = True

    def __post_init__(self) -> None:
        """Check window, plane and artifacts before the first image is read."""
        object.__setattr__(self, "remove", tuple(self.remove))  # configs give lists
        _ = self._window, self._turn
        if self.remove:
            RemoveArtifactsd(AnomalyKeys.IMAGE.value, self.remove)

    # There is no limit of pixels for display, because the image was already read within the limit for its score.
    @cached_property
    def _load(self) -> LoadMedicalImage:
        return LoadMedicalImage(sys.maxsize, self.strict_geometry)

    @cached_property
    def _window(self) -> ApplyWindow:
        return ApplyWindow(self.window)

    @cached_property
    def _turn(self) -> ToDisplayOrientation:
        return ToDisplayOrientation(self.plane)

    def show(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return an image or volume for display: upright, with the window applied, at its own size.

        Args:
            source: an image or a volume; see `read_image`.

        Returns:
            uint8 (H, W, 3), or (H, W, D, 3) for a volume.

        Raises:
            ImageFileError: the source cannot be read.
        """
        return _channels_last(self._turn(self._in_bytes(source)))

    def show_stored(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return the same as `show`, on the axes of the file: uint8 (W, H, 3), or (X, Y, Z, 3) for a volume."""
        return _channels_last(self._in_bytes(source))

    def _in_bytes(self, source: ImageSource) -> MetaTensor:
        return ToRGB()(self._window(self._load(source)))  # a Compose would load the files of a series one by one

    def layout(self, affine: NDArray[np.float64]) -> SliceLayout:
        """Return how the slices of a volume are arranged in its array.

        Args:
            affine: (4, 4) voxel to world matrix (RAS, mm).
        """
        return slice_layout(affine, self.plane)

    def upright(self, anomaly_map: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the anomaly map of a volume in upright orientation, as in `show`.

        Args:
            anomaly_map: (X, Y, Z), on the axes of the file.
            affine: (4, 4) voxel to world matrix (RAS, mm).

        Returns:
            float32 (H, W, D).
        """
        turned: NDArray[np.float32] = self._turn(MetaTensor(anomaly_map[None], affine=affine)).numpy()[0]
        return turned


def build_preprocessing(
    card: BackboneCard, view: ImageView | None = None, *, with_mask: bool = False, resize_mask: bool = True
) -> Compose:
    """Return the transforms from a case ``{"image": source, ...}`` to the input of the network.

    Args:
        card: card of the backbone; it has the normalization constants.
        view: values of the preprocessing; `ImageView` with its defaults if None.
        with_mask: whether to load ``"mask"`` (a path, None or absent) too, as (1, H, W).
        resize_mask: whether the mask is resized to the network's input; otherwise it keeps the size of the file.

    Returns:
        A transform that makes ``"image"`` (3, H, W), or (3, H, W, D) for a volume. Its inverse returns maps on the grid
        of the file.

    Raises:
        ValueError: the image size is not a multiple of the patch size; or a mask is asked for with ``view.remove`` or
            ``view.keep_size``.
    """
    view = view or ImageView()
    if with_mask and (view.remove or view.keep_size):
        raise ValueError("masks need images that are resized whole: leave out remove and keep_size")
    if view.image_size < card.patch_size or view.image_size % card.patch_size:
        raise ValueError(f"image_size must be a multiple of the patch size {card.patch_size}, got {view.image_size}")
    image, mask = [AnomalyKeys.IMAGE.value], [AnomalyKeys.MASK.value] * with_mask
    return Compose(
        [
            LoadMedicalImaged(image, view.max_pixels, view.strict_geometry),
            *([LoadMaskd(mask)] if with_mask else []),
            CheckValuesd(image),
            ToDisplayOrientationd(image + mask, view.plane),
            ApplyWindowd(image, view.window),
            ToRGBd(image),
            *([RemoveArtifactsd(image, view.remove)] if view.remove else []),
            *([] if view.keep_size else [ResizeBicubicd(image, view.image_size)]),
            CheckVisibled(image),
            *([ResizeMaskd(mask, view.image_size)] if with_mask and resize_mask else []),
            ScaleIntensityRanged(image, a_min=0, a_max=255, b_min=0, b_max=1),
            NormalizeIntensityd(image, subtrahend=card.mean, divisor=card.std, channel_wise=True),
        ]
    )


def build_postprocessing(preprocessing: Compose, *, threshold: float | None = None) -> Compose:
    """Return the transforms that bring an inferer's maps back to the grid of the file.

    Args:
        preprocessing: transforms of the images, which are inverted.
        threshold: threshold of ``"pred"``, which MONAI Label and MONAI Deploy show; see `ToPrediction`.
    """
    maps = AnomalyKeys.ANOMALY_MAP.value
    return Compose(
        [
            SplitOutputd(CommonKeys.PRED.value),
            Invertd(keys=maps, transform=preprocessing, orig_keys=AnomalyKeys.IMAGE.value, nearest_interp=False),
            ToPredictiond(maps, threshold),
        ]
    )


def _channels_last(image: MetaTensor) -> NDArray[np.uint8]:
    return np.moveaxis(image.numpy(), 0, -1)
