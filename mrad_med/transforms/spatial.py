"""Transforms of space: upright images, which axis of an array is which, sizes, and back."""

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

# Where columns, rows and slices of upright pictures run to.
PLANES = {"axial": "LPS", "coronal": "LIA", "sagittal": "PIL"}
_PLANE_ACROSS = ("sagittal", "coronal", "axial")  # which plane's slices follow each other along x, y and z
THICK = 1.5  # spacing between slices against that of pixels, from which on a volume was acquired slice by slice


class ToDisplayOrientation(InvertibleTransform):
    """Turn an array as MONAI reads it into upright pictures: rows run down, columns run right.

    (C, W, H) becomes (C, H, W). A volume becomes (C, rows, columns, slices), each slice as radiologists see it: at the
    left is the patient's right, or of sagittal slices the front; up is the head, or of axial slices the front.

    Args:
        plane: of a volume's slices: ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"auto"`` for the plane it was
            acquired in, see `slice_layout`. A volume oblique to the patient is cut along its own nearest axis.

    Raises:
        ValueError: there is no such plane.
    """

    def __init__(self, plane: str = "auto") -> None:
        if plane not in ("auto", *PLANES):
            raise ValueError(f"plane is one of auto, {', '.join(PLANES)}; got {plane!r}")
        self.plane = plane
        # The default labels are announced to change; these are those of RAS affines, which MONAI's readers give.
        labels = (("L", "R"), ("P", "A"), ("I", "S"))
        self._orientations = {name: Orientation(axcodes=codes, labels=labels) for name, codes in PLANES.items()}

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the upright image.

        Raises:
            ImageFileError: the axes of a volume have no directions, or the slices have too few pixels.
        """
        plane = ""
        if image.ndim == 4:
            plane = slice_layout(image.affine.numpy(), self.plane).plane
            image = self._orientations[plane](image)
            if min(image.shape[1:3]) < MIN_SIDE:
                raise ImageFileError(
                    f"its {plane} slices have {image.shape[1]} x {image.shape[2]} pixels, which are too few; at least "
                    f"{MIN_SIDE} x {MIN_SIDE} are needed: choose another plane"
                )
        return self.push_transform(_swap_rows_and_columns(image), extra_info={"plane": plane})

    def inverse(self, image: MetaTensor) -> MetaTensor:
        """Return a map on the upright grid as the file stores it."""
        plane = self.pop_transform(image)[TraceKeys.EXTRA_INFO]["plane"]
        image = _swap_rows_and_columns(image)
        return self._orientations[plane].inverse(image) if plane else image


class SliceLayout(NamedTuple):
    """How the slices of a volume lie in the array as it is stored.

    Attributes:
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        axis: of the stored array, along which the slices follow each other.
        is_flipped: whether they are counted the other way than `ToDisplayOrientation` counts them.
    """

    plane: str
    axis: int
    is_flipped: bool


def slice_layout(affine: NDArray[np.float64], plane: str = "auto") -> SliceLayout:
    """Return how the slices of a volume lie in its array.

    Args:
        affine: (4, 4) voxel to world matrix (RAS, mm).
        plane: of the slices; ``"auto"`` takes the plane across the widest spacing where that is at least 1.5 times
            the next, for so a volume was acquired, and axial slices else.

    Raises:
        ImageFileError: the affine gives no directions to the axes.
    """
    directions = nibabel.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(directions).all():
        raise ImageFileError("the affine in its header gives no directions to its axes; export it again")
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
        gray = (mask * 255).to(torch.uint8)
        return (_resize_bytes(gray, self.size, Image.Resampling.BILINEAR) > MASK_THRESHOLD).float()


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
