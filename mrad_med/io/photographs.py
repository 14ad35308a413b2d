"""Reader for photographs and endoscopy frames."""

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

__all__ = ["PhotographReader", "upright_image"]

_PILLOW_LIMIT = threading.Lock()  # Pillow's limit is global to the process

_UNKNOWN = "not an image in any known format; check that the name is right and the copy complete"
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class PhotographReader(ImageReader):
    """Read photographs and endoscopy frames with Pillow.

    8-bit images are returned as uint8, gray or RGB. Deeper gray images are returned as float32 in their own units. The
    EXIF rotation is applied, transparency is composited over black, and palettes and CMYK are converted to RGB. Arrays
    are indexed (width, height[, channel]), as in MONAI's readers.

    Args:
        max_pixels: largest number of pixels of an image; larger ones are refused before they are decoded.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__()
        self.max_pixels = max_pixels

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Return whether the name, or every name of a list, has the suffix of a photograph."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(PHOTOGRAPH_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> Image.Image:
        """Return one file as an upright Pillow image in mode L, RGB, or a deep gray mode.

        Raises:
            ImageFileError: the file is not an image, is damaged or too large, or holds several frames or pages.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file is one case, got {len(names)} files; list them as separate cases")
        with refusing("the image is damaged or truncated ({kind}); copy or export it again"):
            try:
                with _open_unlimited(names[0]) as image:
                    self._check_header(image)
                    return upright_image(image)
            except UnidentifiedImageError:
                if str(names[0]).lower().endswith((".tif", ".tiff")):
                    return _read_tiff(names[0], self.max_pixels)
                raise ImageFileError(_UNKNOWN) from None

    def _check_header(self, image: Image.Image) -> None:
        check_pixels(image.width, image.height, self.max_pixels)
        if image.format != "MPO":  # cameras add a preview to their JPEGs as a second MPO frame
            _check_frames(getattr(image, "n_frames", 1))

    def get_data(self, img: Image.Image) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (W, H[, 3]) array and the metadata that MONAI needs; other metadata is dropped."""
        array = np.asarray(img)
        array = array.copy() if array.dtype == np.uint8 else array.astype(np.float32)  # Pillow's array is read-only
        meta = {
            "spatial_shape": np.asarray((img.width, img.height)),
            "original_channel_dim": float("nan") if array.ndim == 2 else -1,
        }
        return np.swapaxes(array, 0, 1), meta


def _open_unlimited(path: os.PathLike[str] | str) -> Image.Image:
    """Open an image without Pillow's limit of pixels; `check_pixels` replaces it."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


_PLAIN_PHOTOMETRIC = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)


def _read_tiff(path: os.PathLike[str] | str, max_pixels: int) -> Image.Image:
    """Return a TIFF that Pillow cannot read, such as colors declared as three gray samples, as a Pillow image.

    Public archives hold such files. Gray values of any depth and colors of 8 bits are supported.
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
            if page.samplesperpixel not in (1, 3) or page.photometric not in _PLAIN_PHOTOMETRIC:
                raise ImageFileError("the TIFF holds neither plain gray values nor RGB colors; save it as PNG")
            pixels, orientation = page.asarray(), page.tags.valueof(ExifTags.Base.Orientation, default=1)
    if pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8:
        image = Image.fromarray(pixels)
    elif pixels.ndim == 2 and pixels.dtype.kind in "iuf":
        image = Image.fromarray(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32))
    else:
        raise ImageFileError(f"the TIFF holds unsupported values ({pixels.dtype}); save it as PNG of 8 or 16 bits")
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _check_frames(frames: int) -> None:
    if frames > 1:
        raise ImageFileError(f"the file holds {frames} frames or pages; save each as a separate file")


def upright_image(image: Image.Image) -> Image.Image:
    """Return the decoded, upright image in mode L, RGB or a deep gray mode, with transparency composited over black."""
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_MODES:
        image.load()
        return image
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        transparent = image.convert("RGBA")
        black = Image.new("RGBA", transparent.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, transparent).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")
