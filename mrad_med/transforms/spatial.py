"""Spatial transforms: upright orientation of images and volumes, resizing, and the layout of slices."""

from __future__ import annotations

from typing import NamedTuple

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, Orientation, Transform
from monai.utils import TraceKeys
from numpy.typing import NDArray
from PIL import Image

from mrad_med.errors import ImageFileError
from mrad_med.io.image import MIN_SIDE
from mrad_med.transforms.dictionary import Eachd, InvertibleEachd
from mrad_med.types import IMAGE_SIZE, MASK_THRESHOLD

__all__ = [
    "PLANES",
    "ResizeBicubic",
    "ResizeBicubicd",
    "ResizeMask",
    "ResizeMaskd",
    "SliceLayout",
    "ToDisplayOrientation",
    "ToDisplayOrientationd",
    "slice_layout",
]

# Patient directions of increasing column, row and slice number in upright slices.
PLANES = {"axial": "LPS", "coronal": "LIA", "sagittal": "PIL"}
_PLANE_ACROSS = ("sagittal", "coronal", "axial")  # plane of the slices along x, y and z
THICK = 1.5  # ratio of slice spacing to pixel spacing, at or above which a volume was acquired slice by slice


class ToDisplayOrientation(InvertibleTransform):
    """Turn an array in MONAI's axis order into upright images: rows run down, columns run right.

    (C, W, H) becomes (C, H, W). A volume becomes (C, rows, columns, slices) in the radiological convention. The left
    side of an axial or coronal slice is the patient's right. The left side of a sagittal slice is anterior. The top of
    a coronal or sagittal slice is superior. The top of an axial slice is anterior.

    Args:
        plane: plane of a volume's slices: ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"auto"`` for the plane of
            acquisition; see `slice_layout`. An oblique volume is not resampled: its nearest axis is used.

    Raises:
        ValueError: the plane is unknown.
    """

    def __init__(self, plane: str = "auto") -> None:
        if plane not in ("auto", *PLANES):
            raise ValueError(f"plane must be one of auto, {', '.join(PLANES)}; got {plane!r}")
        self.plane = plane
        # MONAI announces a change of the default labels. These are for RAS affines, which MONAI's readers return.
        labels = (("L", "R"), ("P", "A"), ("I", "S"))
        self._orientations = {name: Orientation(axcodes=codes, labels=labels) for name, codes in PLANES.items()}

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the upright image or volume.

        Args:
            image: (C, W, H) or (C, X, Y, Z).

        Raises:
            ImageFileError: the affine of a volume defines no directions, or its slices have too few pixels.
        """
        plane = ""
        if image.ndim == 4:
            plane = slice_layout(image.affine.numpy(), self.plane).plane
            image = self._orientations[plane](image)
            if min(image.shape[1:3]) < MIN_SIDE:
                raise ImageFileError(
                    f"its {plane} slices have {image.shape[1]} x {image.shape[2]} pixels, but at least "
                    f"{MIN_SIDE} x {MIN_SIDE} are needed: choose another plane"
                )
        return self.push_transform(_swap_rows_and_columns(image), extra_info={"plane": plane})

    def inverse(self, image: MetaTensor) -> MetaTensor:
        """Return a map of the upright image on the axes of the file."""
        plane = self.pop_transform(image)[TraceKeys.EXTRA_INFO]["plane"]
        image = _swap_rows_and_columns(image)
        return self._orientations[plane].inverse(image) if plane else image


class SliceLayout(NamedTuple):
    """Arrangement of a volume's slices in the stored array.

    Attributes:
        plane: plane of the slices: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        axis: axis of the stored array along which the slices follow each other, 0 to 2.
        is_flipped: whether the stored order of the slices is the reverse of the order of `ToDisplayOrientation`.
    """

    plane: str
    axis: int
    is_flipped: bool


def slice_layout(affine: NDArray[np.float64], plane: str = "auto") -> SliceLayout:
    """Return how the slices of a volume are arranged in its array.

    Args:
        affine: (4, 4) voxel to world matrix (RAS, mm).
        plane: plane of the slices. ``"auto"`` is the plane of acquisition: the one across the widest spacing if that is
            at least 1.5 times the next one, otherwise axial.

    Raises:
        ImageFileError: the affine defines no directions of the axes.
    """
    directions = nibabel.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(directions).all():
        raise ImageFileError("the affine in its header does not define independent axes; export it again")
    world_axes = directions[:, 0].astype(int).tolist()
    if plane == "auto":
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        is_thick = spacing.max() >= THICK * np.sort(spacing)[1]
        plane = _PLANE_ACROSS[world_axes[int(spacing.argmax())]] if is_thick else "axial"
    axis = world_axes.index(_PLANE_ACROSS.index(plane))
    rises = PLANES[plane][2] in "RAS"
    return SliceLayout(plane, axis, bool((directions[axis, 1] > 0) != rises))


def _swap_rows_and_columns(image: MetaTensor) -> MetaTensor:
    return image.transpose(1, 2).contiguous()


class ToDisplayOrientationd(InvertibleEachd):
    """Dictionary version of `ToDisplayOrientation`."""

    def __init__(self, keys: KeysCollection, plane: str = "auto", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ToDisplayOrientation(plane)


class ResizeBicubic(InvertibleTransform):
    """Resize rows and columns of bytes with Pillow's antialiased bicubic filter; the aspect ratio is not kept.

    The inverse resizes a map to the original size, bilinearly unless ``nearest_interp`` of MONAI's `Invertd` is set.
    Slices of a volume are resized one by one.

    Args:
        size: rows and columns in pixels, or one number for both.
    """

    def __init__(self, size: int | tuple[int, int] = IMAGE_SIZE) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image as uint8 (C, rows, columns[, slices]).

        Args:
            image: uint8 (C, H, W[, slices]).
        """
        original = tuple(image.shape[1:])
        resized = _resize_bytes(image, self.size, Image.Resampling.BICUBIC)
        return self.push_transform(resized, orig_size=original, extra_info={"mode": "bilinear"})

    def inverse(self, image: MetaTensor) -> MetaTensor:
        """Return a map (C, rows, columns[, slices]) at the original size, (C, H, W[, slices])."""
        applied = self.pop_transform(image)
        size, mode = applied[TraceKeys.ORIG_SIZE][:2], applied[TraceKeys.EXTRA_INFO]["mode"]
        slices = _slices(image.as_tensor())
        restored = F.interpolate(slices, size=size, mode=mode, antialias=mode != "nearest")
        return MetaTensor(_restack(restored, image.ndim)).copy_meta_from(image)


class ResizeMask(Transform):
    """Resize a binary mask with Pillow's antialiased bilinear filter and threshold it at one half, as published.

    Args:
        size: rows and columns in pixels, or one number for both.
    """

    def __init__(self, size: int | tuple[int, int] = IMAGE_SIZE) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def __call__(self, mask: MetaTensor) -> MetaTensor:
        """Return the mask as float32 (1, rows, columns[, slices]) of 0 and 1; all NaN where any pixel is NaN.

        Args:
            mask: (1, H, W[, slices]) of 0 and 1, or NaN where not known.
        """
        if mask.isnan().any():
            return mask.new_full((1, *self.size, *mask.shape[3:]), float("nan"))
        gray = (mask * 255).to(torch.uint8)
        return (_resize_bytes(gray, self.size, Image.Resampling.BILINEAR) > MASK_THRESHOLD).float()


def _resize_bytes(image: MetaTensor, size: tuple[int, int], resample: Image.Resampling) -> MetaTensor:
    """Return uint8 (C, rows, columns[, slices]), each slice resized by Pillow, so that pixels equal Pillow's."""
    slices = _slices(image.as_tensor()).permute(0, 2, 3, 1).numpy()  # (D, H, W, C)
    resized = [
        np.asarray(Image.fromarray(item[..., 0] if item.shape[-1] == 1 else item).resize(size[::-1], resample))
        for item in slices
    ]
    stacked = torch.from_numpy(np.stack(resized)).reshape(len(resized), *size, -1).permute(0, 3, 1, 2)
    return MetaTensor(_restack(stacked, image.ndim)).copy_meta_from(image)


def _slices(image: torch.Tensor) -> torch.Tensor:
    """Return an image or volume (C, H, W[, D]) as a batch of slices (D, C, H, W)."""
    return image[None] if image.ndim == 3 else image.permute(3, 0, 1, 2)


def _restack(slices: torch.Tensor, ndim: int) -> torch.Tensor:
    """Return a batch of slices (D, C, H, W) as an array of ``ndim`` axes: (C, H, W) or (C, H, W, D)."""
    return slices[0] if ndim == 3 else slices.permute(1, 2, 3, 0)


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
