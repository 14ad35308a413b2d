"""Photographs and endoscopy frames: read with Pillow, upright and without surprises."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile
from monai.data import ImageReader
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mrad_med.errors import ImageFileError
from mrad_med.io.file_types import PHOTOGRAPH_SUFFIXES
from mrad_med.io.limits import MAX_PIXELS, check_pixels
from mrad_med.io.refusals import refusing

__all__ = ["PhotographReader", "upright_picture"]


_PILLOW_LIMIT = threading.Lock()  # Pillow's limit is one for the whole process

_UNKNOWN = "not an image in any known format; is the name right and the copy complete?"
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class PhotographReader(ImageReader):
    """Read photographs and endoscopy frames with Pillow, upright and without surprises.

    8-bit images come out as uint8, gray or RGB; deeper gray images as float32 in their own units. The EXIF rotation is
    applied, transparency is laid over black, palettes and CMYK become RGB. As MONAI's readers do, arrays are indexed
    (width, height[, channel]).

    Args:
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__()
        self.max_pixels = max_pixels

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Tell whether the name, or every name of a list, ends as a photograph's."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(PHOTOGRAPH_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> Image.Image:
        """Return the upright picture of one file in mode L, RGB, or a deep gray mode.

        Raises:
            ImageFileError: not an image, damaged, too large, or animated.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file makes one case, got {len(names)} files; list them as separate cases")
        with refusing("the image is damaged or truncated ({kind}); copy or export it again"):
            try:
                with _open_unlimited(names[0]) as picture:
                    self._check_header(picture)
                    return upright_picture(picture)
            except UnidentifiedImageError:
                if str(names[0]).lower().endswith((".tif", ".tiff")):
                    return _read_tiff(names[0], self.max_pixels)
                raise ImageFileError(_UNKNOWN) from None

    def _check_header(self, picture: Image.Image) -> None:
        check_pixels(picture.width, picture.height, self.max_pixels)
        if picture.format != "MPO":  # cameras add a preview to their JPEGs as a second MPO frame
            _check_frames(getattr(picture, "n_frames", 1))

    def get_data(self, img: Image.Image) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (W, H[, 3]) array and the metadata MONAI needs; nothing else of the file's metadata travels on."""
        array = np.asarray(img)
        array = array.copy() if array.dtype == np.uint8 else array.astype(np.float32)  # Pillow's own is read-only
        meta = {
            "spatial_shape": np.asarray((img.width, img.height)),
            "original_channel_dim": float("nan") if array.ndim == 2 else -1,
        }
        return np.swapaxes(array, 0, 1), meta


def _open_unlimited(path: os.PathLike[str] | str) -> Image.Image:
    """Open a picture without Pillow's own limit of pixels: ours follows, with its own message."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


_PLAIN_TONES = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)


def _read_tiff(path: os.PathLike[str] | str, max_pixels: int) -> Image.Image:
    """Return the picture of a TIFF that Pillow does not know, such as colors declared as three gray samples.

    Public archives hold such files. Gray values of any depth and colors of 8 bits are read.
    """
    with refusing("the TIFF cannot be read ({kind}); save it as PNG"):
        try:
            tiff = tifffile.TiffFile(path)
        except tifffile.TiffFileError:
            raise ImageFileError(_UNKNOWN) from None
        with tiff:
            _check_frames(len(tiff.pages))
            page = tiff.pages[0]
            check_pixels(page.imagewidth, page.imagelength, max_pixels)
            if page.samplesperpixel not in (1, 3) or page.photometric not in _PLAIN_TONES:
                raise ImageFileError("a TIFF neither of plain gray values nor of RGB colors; save it as PNG")
            pixels, orientation = page.asarray(), page.tags.valueof(ExifTags.Base.Orientation, default=1)
    if pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8:
        picture = Image.fromarray(pixels)
    elif pixels.ndim == 2 and pixels.dtype.kind in "iuf":
        picture = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32))
    else:
        raise ImageFileError(f"a TIFF with colors or values of kind {pixels.dtype}; save it as PNG of 8 or 16 bits")
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def _check_frames(frames: int) -> None:
    if frames > 1:
        raise ImageFileError(f"the file holds {frames} frames or pages; save each as a file of its own")


def upright_picture(picture: Image.Image) -> Image.Image:
    """Return a picture decoded and upright, as L, RGB or a deep gray mode; transparency is laid over black."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _DEEP_MODES:
        picture.load()
        return picture
    if picture.mode in _TRANSPARENT_MODES or "transparency" in picture.info:
        transparent = picture.convert("RGBA")
        black = Image.new("RGBA", transparent.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, transparent).convert("RGB")
    return picture.convert("L" if picture.mode in ("L", "1") else "RGB")
