"""Transforms that load images, volumes and masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    MapTransform,
    Transform,
)

from mrad_med.errors import ImageFileError
from mrad_med.io.image import ImageSource, read_image, read_image_file
from mrad_med.io.limits import MAX_EXPANSION, MAX_PIXELS, MAX_VOXELS
from mrad_med.transforms.dictionary import Eachd
from mrad_med.types import MASK_THRESHOLD, AnomalyKeys

__all__ = ["LoadMaskd", "LoadMedicalImage", "LoadMedicalImaged"]


class LoadMedicalImage(Transform):
    """Load an image as (C, W, H) or a volume as (C, X, Y, Z); see `read_image`.

    Args:
        max_pixels: largest number of pixels of an image; larger ones are refused.
        strict: whether a DICOM series with unevenly spaced slices is refused; see `read_series`.
        max_voxels: largest number of voxels of a volume; larger ones are refused.
        max_expansion: largest ratio of decompressed to compressed size of a volume; see `VolumeReader`.
    """

    CHANGES_NO_RESULT = ("max_voxels", "max_expansion")

    def __init__(
        self,
        max_pixels: int = MAX_PIXELS,
        strict: bool = True,
        max_voxels: int = MAX_VOXELS,
        max_expansion: float = MAX_EXPANSION,
    ) -> None:
        self.max_pixels = max_pixels
        self.strict = strict
        self.max_voxels = max_voxels
        self.max_expansion = max_expansion

    def __call__(self, source: ImageSource) -> MetaTensor:
        """Return the image or volume.

        Args:
            source: a file, the files of a DICOM series, a frame, or an image in memory.

        Raises:
            ImageFileError: the source cannot be read or used.
        """
        return read_image(
            source,
            max_pixels=self.max_pixels,
            max_voxels=self.max_voxels,
            max_expansion=self.max_expansion,
            strict=self.strict,
        )


class LoadMedicalImaged(Eachd):
    """Dictionary version of `LoadMedicalImage`."""

    def __init__(
        self,
        keys: KeysCollection,
        max_pixels: int = MAX_PIXELS,
        strict: bool = True,
        allow_missing_keys: bool = False,
        max_voxels: int = MAX_VOXELS,
        max_expansion: float = MAX_EXPANSION,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = LoadMedicalImage(max_pixels, strict, max_voxels, max_expansion)


class LoadMaskd(MapTransform):
    """Load the mask of an image that is already loaded.

    Without a mask (absent or None) all pixels of a case are normal, and the result is 0. If such a case is labeled
    anomalous, its anomalous pixels are not known, and the result is NaN.

    Args:
        keys: keys of the masks.
        image_key: key of the image whose size each mask must have.
        threshold: value above which pixels are anomalous; a case's own ``mask_threshold`` takes precedence. In a mask
            whose largest value is 1, pixels above 0 are anomalous.
        allow_missing_keys: not used, because a mask may be absent.
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
        """Return the dictionary with the masks: float32 (1, W, H) of 0 and 1, or NaN where not known.

        Raises:
            ImageFileError: the file cannot be read, its size differs from the image's, it holds class numbers, or the
                image is a volume.
        """
        result = dict(data)
        image = result[self.image_key]
        if image.ndim == 4:
            raise ImageFileError("volumes cannot enter a memory bank or be evaluated; export their slices as images")
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
            if AnomalyKeys.MASK_THRESHOLD in result:  # the dataset defines its mask values
                result[key] = (mask > result[AnomalyKeys.MASK_THRESHOLD]).float()
                continue
            highest = float(mask.max())
            if 1 < highest <= self.threshold and not str(path).lower().endswith((".jpg", ".jpeg")):
                raise ImageFileError(
                    f"the largest value of its mask is {highest:g}; masks must have values 0 and 1, or 0 and 255: "
                    "convert class numbers"
                )
            result[key] = (mask > (0 if mask.max() <= 1 else self.threshold)).float()
        return result
