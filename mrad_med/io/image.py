"""Images from any supported source; the reader is selected by the detected file type."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import EnsureChannelFirst
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from numpy.typing import NDArray
from PIL import Image

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.series import read_series
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.file_types import DICOM, IMAGE_SUFFIXES, PHOTOGRAPH, VIDEO, VOLUME, detect_file_type
from mrad_med.io.frames import Frame, list_frames, read_frame
from mrad_med.io.geometry import upright_affine
from mrad_med.io.limits import MAX_PIXELS, check_pixels
from mrad_med.io.photographs import PhotographReader, upright_image
from mrad_med.io.refusals import refusing
from mrad_med.io.volume_reader import VolumeReader

__all__ = ["ImageSource", "read_image", "read_image_file"]

# A file, the files of a DICOM series, a frame of a video, or an image in memory; see `read_image`.
ImageSource: TypeAlias = (
    str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Frame | Image.Image | NDArray[Any] | MetaTensor
)

MIN_SIDE = 16  # smaller images have no more pixels than the patch grid has patches


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, strict: bool = True) -> Any:
    """Return an image or a volume as a MetaTensor (C, W, H) or (C, X, Y, Z).

    8-bit images keep uint8. All other images are float32 in the source's own units. The metadata contains the affine
    (RAS, mm) and the stored windows of DICOM (`VOIKeys`). Other header values are dropped.

    Args:
        source: one of

            - the path of a photograph, a DICOM file, a NIfTI or an NRRD volume;
            - the paths of the slices of one DICOM series, in any order;
            - a `Frame` of a video or of a multi-page image;
            - a Pillow image;
            - an array: an upright image (H, W) or (H, W, 3), or a volume (X, Y, Z) whose axes point to the patient's
              right, anterior and superior;
            - a MetaTensor as in MONAI's readers: (C, W, H) or (C, X, Y, Z), with its affine and stored windows.
              8-bit images must be uint8, because all other types are windowed.
        max_pixels: largest number of pixels of an image or slice; larger ones are refused.
        strict: whether a series with unevenly spaced slices is refused; see `read_series`.

    Raises:
        ImageFileError: the source is missing, empty, damaged, of an unknown type, without pixels, too large or too
            small.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image_file(source, max_pixels=max_pixels)
    if isinstance(source, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in source):
        try:
            return _finish(read_series(source, strict=strict, max_pixels=max_pixels), str(source[0]))
        except ImageFileError:
            if source and detect_file_type(Path(source[0])) not in (DICOM, None):
                message = "a list of files must be one DICOM series; give several images by name: {'a': path, ...}"
                raise ImageFileError(message) from None
            raise
    if isinstance(source, Frame):
        return _finish(_from_array(read_frame(source, max_pixels=max_pixels)), source.path)
    if isinstance(source, Image.Image):
        return _finish(_from_array(_from_pillow(source, max_pixels)))
    if isinstance(source, MetaTensor):
        return _finish(_from_tensor(source, max_pixels))
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source, max_pixels))
    raise ImageFileError(
        f"the type {type(source).__name__} is not supported; give a path, the paths of a series, a Pillow image, an "
        "array (H, W), (H, W, 3) or (X, Y, Z), or a MetaTensor"
    )


def read_image_file(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Any:
    """Return the image or volume of one file; see `read_image`."""
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path's, returns False for invalid names
        raise ImageFileError("there is no such file")
    if path.stat().st_size == 0:
        raise ImageFileError("the file is empty (0 bytes); copy or export it again")
    with refusing("the file cannot be read ({kind}); copy or export it again"):
        reader = _reader_for(path, max_pixels)
        array, meta = reader.get_data(reader.read(path))
        if array.dtype.kind not in "biuf":
            kind = "complex" if array.dtype.kind == "c" else "RGB or structured"
            raise ImageFileError(f"its values are {kind}; export plain numbers (for a complex image, its magnitude)")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        image = EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(array, meta))
    # Channels of a multi-frame DICOM file are colors; those of a NIfTI volume are times, not colors.
    return _finish(image, str(path), color_axis=isinstance(reader, DicomReader))


def _reader_for(path: Path, max_pixels: int) -> ImageReader:
    file_type = detect_file_type(path)
    if file_type == DICOM:
        return DicomReader(max_pixels)
    if file_type == VOLUME:
        return VolumeReader()
    if file_type == PHOTOGRAPH:
        return PhotographReader(max_pixels)
    if file_type == VIDEO:
        frames = list_frames(path)  # raises a specific error if the video is damaged
        raise ImageFileError(f"the file is a video of {len(frames)} frames; list its frames as images with find_cases")
    known = ", ".join(IMAGE_SUFFIXES)
    raise ImageFileError(f"unknown file type; give a DICOM file or one that ends in {known}")


def _from_pillow(image: Image.Image, max_pixels: int) -> NDArray[Any]:
    """Return a Pillow image, which may not be decoded yet, as an array (H, W[, 3])."""
    check_pixels(image.width, image.height, max_pixels)
    with refusing("the image cannot be decoded ({kind}); check that its file is complete"):
        array, _ = PhotographReader().get_data(upright_image(image))
    return np.swapaxes(array, 0, 1)


def _from_tensor(image: MetaTensor, max_pixels: int) -> MetaTensor:
    shape = image.meta.get(MetaKeys.SPATIAL_SHAPE)
    if image.meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM) == "no_channel" and shape is not None and len(shape) == image.ndim:
        image = image[None]  # MONAI Deploy hands volumes on without the axis of channels
    if image.ndim not in (3, 4) or image.is_complex():
        problem = "complex numbers" if image.is_complex() else f"the shape {tuple(image.shape)}"
        raise ImageFileError(f"the MetaTensor has {problem}; it must be real numbers (C, W, H) or (C, X, Y, Z)")
    check_pixels(image.shape[1], image.shape[2], max_pixels)
    copy = MetaTensor(image.detach().cpu().as_tensor().clone(), affine=image.affine.clone())
    copy.meta |= {key: image.meta[key] for key in VOIKeys.ALL if key in image.meta}
    return copy


def _from_array(array: NDArray[Any], max_pixels: int = MAX_PIXELS) -> MetaTensor:
    """Return an upright image (H, W[, 3]) as (C, W, H), or a volume (X, Y, Z) as (1, X, Y, Z)."""
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3) or array.shape[2:] in ((1,), (2,), (4,)):
        raise ImageFileError(
            f"the array is {array.dtype} {array.shape}; it must be real numbers (H, W), (H, W, 3) or (X, Y, Z)"
        )
    check_pixels(array.shape[1], array.shape[0], max_pixels)
    if array.ndim == 3 and array.shape[-1] != 3:
        channels, affine = array[None], np.eye(4)
    else:
        channels = np.atleast_3d(array).transpose(2, 1, 0)
        affine = upright_affine((1.0, 1.0))
    deep = array.dtype != np.uint8
    values = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32 if deep else np.uint8).copy())
    return MetaTensor(values, affine=torch.from_numpy(affine))


def _finish(image: MetaTensor, path: str = "", *, color_axis: bool = True) -> MetaTensor:
    """Check the shape of an image and return it with the metadata keys that all sources have.

    Args:
        image: image (C, W, H) or volume (C, X, Y, Z).
        path: path of its file; empty for an image in memory.
        color_axis: whether three channels are colors.

    Raises:
        ImageFileError: the image has too many axes or too few pixels.
    """
    has_colors = color_axis and len(image) == 3
    if image.ndim not in (3, 4) or (image.ndim == 4 and len(image) > 1 and not has_colors):
        axes = image.ndim - (1 if len(image) == 1 else 0)
        raise ImageFileError(f"{axes}-D data cannot be scored; split it into 2-D images or 3-D volumes")
    sides = sorted(image.shape[1:], reverse=True)
    if min(sides[:2]) < MIN_SIDE:  # in a volume, for slices in every plane
        size = " x ".join(map(str, image.shape[1:]))
        raise ImageFileError(f"{size} pixels are too few; at least {MIN_SIDE} x {MIN_SIDE} are needed in each slice")
    windows = {key: image.meta[key] for key in VOIKeys.ALL if key in image.meta}
    plain = MetaTensor(image.as_tensor() if image.dtype == torch.uint8 else image.as_tensor().float())
    plain.affine = image.affine.to(torch.float64)
    plain.meta[MetaKeys.ORIGINAL_AFFINE] = plain.affine.numpy().copy()
    plain.meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(image.shape[1:])
    plain.meta[MetaKeys.SPACE] = SpaceKeys.RAS
    plain.meta |= {ImageMetaKey.FILENAME_OR_OBJ: path, **windows}
    return plain
