"""MONAI image readers, and the choice among them by what a file is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import ImageReader, MetaTensor, NibabelReader, PydicomReader
from monai.transforms import EnsureChannelFirst
from monai.utils import ImageMetaKey
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.errors import InvalidDicomError

__all__ = ["MAX_PIXELS", "ImageFileError", "PhotographReader", "is_supported_image", "read_image_file"]

MAX_PIXELS = 100_000_000  # 10000 x 10000; a decoded RGB image of that size takes 300 MB
MIN_SIDE = 16  # smaller images have no more pixels than the patch grid has patches

PHOTOGRAPH_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


class ImageFileError(ValueError):
    """An image file that cannot be used. The message says why and what to do, and never quotes the file's content."""


class PhotographReader(ImageReader):
    """Read photographs and endoscopy frames with Pillow, upright and without surprises.

    8-bit images come out as uint8, grey or RGB; deeper grey images as float32 in their own units. The EXIF rotation is
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
        """Return the upright picture of one file in mode L, RGB, or a deep grey mode.

        Raises:
            ImageFileError: not an image, damaged, too large, or animated.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file makes one case, got {len(names)} files; list them as separate cases")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit comes first, with its own message
        try:
            with Image.open(names[0]) as picture:
                self._check_header(picture)
                return _plain_mode(ImageOps.exif_transpose(picture))
        except UnidentifiedImageError as error:
            raise ImageFileError(
                "not an image in any known format; is the name right and the copy complete?"
            ) from error
        except ImageFileError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise ImageFileError(f"the image is damaged or truncated ({error}); copy or export it again") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def _check_header(self, picture: Image.Image) -> None:
        if picture.width * picture.height > self.max_pixels:
            raise ImageFileError(
                f"{picture.width} x {picture.height} pixels are more than the limit of {self.max_pixels}; make the "
                "image smaller or raise the limit (--max_pixels)"
            )
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":  # cameras add a preview to their JPEGs as a second MPO frame
            raise ImageFileError(f"the file holds {frames} frames or pages; save each as a file of its own")

    def get_data(self, img: Image.Image) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (W, H[, 3]) array and the metadata MONAI needs; nothing else of the file's metadata travels on."""
        array = np.asarray(img)
        array = array if array.dtype == np.uint8 else array.astype(np.float32)
        meta = {
            "spatial_shape": np.asarray((img.width, img.height)),
            "original_channel_dim": float("nan") if array.ndim == 2 else -1,
        }
        return np.swapaxes(array, 0, 1), meta


def _plain_mode(picture: Image.Image) -> Image.Image:
    """Return the picture decoded, as L, RGB or a deep grey mode."""
    if picture.mode in _DEEP_MODES or picture.mode in ("L", "RGB"):
        picture.load()
        return picture
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in _TRANSPARENT_MODES or "transparency" in picture.info:
        transparent = picture.convert("RGBA")
        black = Image.new("RGBA", transparent.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, transparent).convert("RGB")
    return picture.convert("RGB")


def is_supported_image(path: Path) -> bool:
    """Tell by its name, or without a suffix by its first bytes, whether a file is meant to be an image."""
    if path.name.lower().endswith(PHOTOGRAPH_SUFFIXES + VOLUME_SUFFIXES + DICOM_SUFFIXES):
        return True
    return path.suffix == "" and _has_dicom_magic(path)


def _has_dicom_magic(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_image_file(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Any:
    """Return a file as a MetaTensor (C, W, H) or (C, X, Y, Z) with its affine and nothing else of its header.

    Photographs keep uint8; everything else is float32 in the file's own units.

    Args:
        path: a photograph, a DICOM file or a NIfTI volume.
        max_pixels: photographs with more pixels are refused.

    Raises:
        ImageFileError: missing, empty, damaged, of no known kind, without pixels, or too small.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageFileError("there is no such file")
    if path.stat().st_size == 0:
        raise ImageFileError("the file is empty (0 bytes); copy or export it again")
    reader = _reader_for(path, max_pixels)
    try:
        array, meta = reader.get_data(reader.read(path))
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        image = EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(array, meta))
    except ImageFileError:
        raise
    except Exception as error:  # MONAI, pydicom and nibabel raise nearly everything on damaged files
        raise ImageFileError(f"the file cannot be read ({_first_line(error)}); copy or export it again") from error
    image.meta = {
        key: image.meta[key] for key in ("affine", "original_affine", "spatial_shape", "space") if key in image.meta
    }
    image.meta[ImageMetaKey.FILENAME_OR_OBJ] = str(path)
    if image.ndim not in (3, 4):
        raise ImageFileError(f"{image.ndim - 1}-D data; 2-D images and 3-D volumes can be scored: split it first")
    if min(image.shape[1:3]) < MIN_SIDE:
        size = " x ".join(map(str, image.shape[1:]))
        raise ImageFileError(f"{size} pixels are too few; at least {MIN_SIDE} x {MIN_SIDE} are needed")
    return image if image.array.dtype == np.uint8 else image.float()


def _reader_for(path: Path, max_pixels: int) -> ImageReader:
    name = path.name.lower()
    if name.endswith(DICOM_SUFFIXES) or _has_dicom_magic(path):
        return _dicom_reader(path)
    if name.endswith(VOLUME_SUFFIXES):
        return NibabelReader()
    if name.endswith(PHOTOGRAPH_SUFFIXES):
        return PhotographReader(max_pixels)
    known = ", ".join(PHOTOGRAPH_SUFFIXES + DICOM_SUFFIXES + VOLUME_SUFFIXES)
    raise ImageFileError(f"unknown kind of file; images end in {known}, or are DICOM")


def _dicom_reader(path: Path) -> PydicomReader:
    """Return MONAI's reader, told where this file's colors are; patient tags are left behind."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, EOFError, AttributeError) as error:
        raise ImageFileError("the DICOM header cannot be read; copy or export the file again") from error
    if "Rows" not in header:
        raise ImageFileError("this DICOM object holds no image (a report, plan or structure set?); leave it out")
    if str(header.get("NumberOfFrames") or 1).strip() != "1":
        raise ImageFileError("the DICOM object holds several frames; save each as a file of its own")
    if header.get("PhotometricInterpretation") in ("MONOCHROME1", "PALETTE COLOR"):
        raise ImageFileError(
            f"DICOM with {header.PhotometricInterpretation} pixels would be shown in wrong tones; convert it to "
            "MONOCHROME2 or RGB"
        )
    channel_dim = -1 if header.get("SamplesPerPixel", 1) > 1 else None
    return PydicomReader(channel_dim=channel_dim, prune_metadata=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
