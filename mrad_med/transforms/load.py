"""Transforms that MONAI lacks, as ``X`` / ``Xd`` pairs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    Transform,
)
from monai.utils import TraceKeys
from PIL import Image

from mrad_med.errors import ImageFileError
from mrad_med.io.image import ImageSource, read_image, read_image_file
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.transforms.dictionary import Eachd, InvertibleEachd
from mrad_med.types import IMAGE_SIZE, AnomalyKeys

__all__ = [
    "LoadMaskd",
    "LoadMedicalImage",
    "LoadMedicalImaged",
    "ResizeBicubic",
    "ResizeBicubicd",
    "ResizeMask",
    "ResizeMaskd",
    "ScaleToBytes",
    "ScaleToBytesd",
    "ToRGB",
    "ToRGBd",
]

INTENSITY_PERCENTILES = (0.5, 99.5)  # of images deeper than 8 bits: the range that becomes black to white
MASK_THRESHOLD = 127  # JPEG compression leaves small values beside a mask's 0 and 255


class LoadMedicalImage(Transform):
    """Load an image or a volume as (C, W, H) or (C, X, Y, Z); see `read_image`."""

    def __init__(self, max_pixels: int = MAX_PIXELS, strict: bool = True) -> None:
        self.max_pixels = max_pixels
        self.strict = strict

    def __call__(self, source: ImageSource) -> MetaTensor:
        """Return the image in ``source``: a file, the files of a DICOM series, a frame, or an image in memory.

        Raises:
            ImageFileError: the source cannot be used.
        """
        return read_image(source, max_pixels=self.max_pixels, strict=self.strict)


class ScaleToBytes(Transform):
    """Bring intensities to uint8: 8-bit images as they are, deeper ones from black to white between two percentiles.

    The percentiles are taken over the whole image or volume. A constant deep image becomes black.
    """

    def __init__(self, percentiles: tuple[float, float] = INTENSITY_PERCENTILES) -> None:
        self.percentiles = percentiles

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the scaled image.

        Raises:
            ImageFileError: no value is finite.
        """
        if image.dtype == torch.uint8:
            return image
        values = image.numpy()
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            raise ImageFileError("the image has no finite value (all NaN or infinite); export it again")
        low, high = (float(value) for value in np.percentile(finite, self.percentiles))
        scaled = (torch.nan_to_num(image, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
        return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


class ToRGB(Transform):
    """Repeat a grey image in three channels; three channels stay."""

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return (3, ...).

        Raises:
            ImageFileError: another number of channels.
        """
        if image.shape[0] not in (1, 3):
            raise ImageFileError(f"{image.shape[0]} channels; grey (1) and RGB (3) images can be scored")
        return image if image.shape[0] == 3 else image.repeat(3, *[1] * (image.ndim - 1))


class ResizeBicubic(InvertibleTransform):
    """Resize rows and columns of bytes with Pillow's antialiased bicubic filter; the aspect ratio is not kept.

    The inverse brings a map back to the size before, bilinearly (or as ``nearest_interp`` of MONAI's `Invertd` says).
    Slices of a volume are resized one by one.

    Args:
        size: rows and columns, or one number for both.
    """

    def __init__(self, size: int | tuple[int, int] = IMAGE_SIZE) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return uint8 (C, rows, columns[, slices]) of uint8 (C, H, W[, slices])."""
        original = tuple(image.shape[1:])
        resized = _resize_bytes(image, self.size, Image.Resampling.BICUBIC)
        return self.push_transform(resized, orig_size=original, extra_info={"mode": "bilinear"})

    def inverse(self, image: MetaTensor) -> MetaTensor:
        """Return a map (C, rows, columns[, slices]) at the size before."""
        applied = self.pop_transform(image)
        size, mode = applied[TraceKeys.ORIG_SIZE][:2], applied[TraceKeys.EXTRA_INFO]["mode"]
        slices = _slices(image.as_tensor())
        restored = F.interpolate(slices, size=size, mode=mode, antialias=mode != "nearest")
        return MetaTensor(_restack(restored, image.ndim)).copy_meta_from(image)


class ResizeMask(Transform):
    """Resize a binary mask with Pillow's antialiased bilinear filter, then cut at one half, as the published code."""

    def __init__(self, size: int | tuple[int, int] = IMAGE_SIZE) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def __call__(self, mask: MetaTensor) -> MetaTensor:
        """Return float32 (1, rows, columns[, slices]) of 0 and 1; a mask of NaN (not known) stays one."""
        if mask.isnan().any():
            return mask.new_full((1, *self.size, *mask.shape[3:]), float("nan"))
        grey = (mask * 255).to(torch.uint8)
        return (_resize_bytes(grey, self.size, Image.Resampling.BILINEAR) > MASK_THRESHOLD).float()


def _resize_bytes(image: MetaTensor, size: tuple[int, int], resample: Image.Resampling) -> MetaTensor:
    """Return uint8 (C, rows, columns[, slices]) with each slice resized by Pillow itself: it is its own referee."""
    slices = _slices(image.as_tensor()).permute(0, 2, 3, 1).numpy()  # (D, H, W, C)
    resized = [
        np.asarray(Image.fromarray(item[..., 0] if item.shape[-1] == 1 else item).resize(size[::-1], resample))
        for item in slices
    ]
    stacked = torch.from_numpy(np.stack(resized)).reshape(len(resized), *size, -1).permute(0, 3, 1, 2)
    return MetaTensor(_restack(stacked, image.ndim)).copy_meta_from(image)


def _slices(image: torch.Tensor) -> torch.Tensor:
    """Return (D, C, H, W) of (C, H, W[, D])."""
    return image[None] if image.ndim == 3 else image.permute(3, 0, 1, 2)


def _restack(slices: torch.Tensor, ndim: int) -> torch.Tensor:
    """Return (C, H, W[, D]), ``ndim`` axes, of (D, C, H, W)."""
    return slices[0] if ndim == 3 else slices.permute(1, 2, 3, 0)


class LoadMedicalImaged(Eachd):
    """Dictionary version of `LoadMedicalImage`."""

    def __init__(
        self,
        keys: KeysCollection,
        max_pixels: int = MAX_PIXELS,
        strict: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = LoadMedicalImage(max_pixels, strict)


class ScaleToBytesd(Eachd):
    """Dictionary version of `ScaleToBytes`."""

    def __init__(
        self,
        keys: KeysCollection,
        percentiles: tuple[float, float] = INTENSITY_PERCENTILES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ScaleToBytes(percentiles)


class ToRGBd(Eachd):
    """Dictionary version of `ToRGB`."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ToRGB()


class ResizeBicubicd(InvertibleEachd):
    """Dictionary version of `ResizeBicubic`."""

    def __init__(
        self, keys: KeysCollection, size: int | tuple[int, int] = IMAGE_SIZE, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ResizeBicubic(size)


class ResizeMaskd(Eachd):
    """Dictionary version of `ResizeMask`."""

    def __init__(
        self, keys: KeysCollection, size: int | tuple[int, int] = IMAGE_SIZE, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ResizeMask(size)


class LoadMaskd(MapTransform):
    """Load the mask that belongs to an image already loaded.

    Where there is none (absent or None), all is normal, unless the case is labelled anomalous: then what is anomalous
    is not known, and the mask is NaN.

    Args:
        keys: of the masks.
        image_key: of the image each must agree with in size.
        threshold: pixels above it are anomalous; a case's own ``mask_threshold`` comes first. A mask whose largest
            value is 1 is taken as it is.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = AnomalyKeys.IMAGE,
        threshold: float = MASK_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with masks (1, ...) of 0 and 1 (or NaN) as float32, indexed like their image.

        Raises:
            ImageFileError: the file cannot be used, its size is not the image's, or it holds class numbers; or the
                image is a volume.
        """
        result = dict(data)
        image = result[self.image_key]
        if image.ndim == 4:
            raise ImageFileError("volumes cannot be remembered or measured; export their slices as images")
        for key in self.keys:
            path = result.get(key)
            if path is None:
                unknown = result.get(AnomalyKeys.LABEL) == 1
                result[key] = torch.full_like(image[:1], float("nan") if unknown else 0.0, dtype=torch.float32)
                continue
            mask = read_image_file(path).amax(0, keepdim=True).float()
            if mask.shape[1:] != image.shape[1:]:
                sizes = [" x ".join(map(str, item.shape[1:])) for item in (mask, image)]
                raise ImageFileError(f"its mask is {sizes[0]} and the image {sizes[1]}: they must have the same size")
            if AnomalyKeys.MASK_THRESHOLD in result:  # the set says what its values mean
                result[key] = (mask > result[AnomalyKeys.MASK_THRESHOLD]).float()
                continue
            highest = float(mask.max())
            if 1 < highest <= self.threshold and not str(path).lower().endswith((".jpg", ".jpeg")):
                raise ImageFileError(
                    f"its mask's values end at {highest:g}, 0 and 1 or 0 and 255 are expected; convert class numbers"
                )
            result[key] = (mask > (0 if mask.max() <= 1 else self.threshold)).float()
        return result
