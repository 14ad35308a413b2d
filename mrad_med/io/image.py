"""Images out of whatever holds them: the choice among MONAI's readers and ours by what a file is."""

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
from mrad_med.io.photographs import PhotographReader, upright_picture
from mrad_med.io.refusals import refusing
from mrad_med.io.volume_reader import VolumeReader

__all__ = ["ImageSource", "read_image", "read_image_file"]

# A file; the files of a DICOM series; a frame of a video; or an image in memory: see `read_image`.
ImageSource: TypeAlias = (
    str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Frame | Image.Image | NDArray[Any] | MetaTensor
)

MIN_SIDE = 16  # smaller images have no more pixels than the patch grid has patches


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, strict: bool = True) -> Any:
    """Return an image or a volume as a MetaTensor (C, W, H) or (C, X, Y, Z).

    8-bit images keep uint8; everything else is float32 in the source's own units. The affine (RAS, mm) travels along,
    the stored windows of DICOM (`VOIKeys`), and nothing else of a header.

    Args:
        source: one of

            - the path of a photograph, a DICOM file, a NIfTI or an NRRD volume;
            - the paths of the slices of one DICOM series, in any order;
            - a `Frame` of a video or of a picture with several pages;
            - a Pillow image;
            - an array: (H, W) or (H, W, 3) upright, or a volume (X, Y, Z), whose axes are taken to run to the
              patient's right, anterior and superior;
            - a MetaTensor as MONAI's readers make it: (C, W, H) or (C, X, Y, Z), with its affine and stored windows;
              bytes as uint8, for all else goes through a window.
        max_pixels: pictures with more pixels are refused.
        strict: refuse a series whose slices are not evenly spaced; see `read_series`.

    Raises:
        ImageFileError: missing, empty, damaged, of no known kind, without pixels, too large or too small.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image_file(source, max_pixels=max_pixels)
    if isinstance(source, (list, tuple)) and all(isinstance(path, (str, os.PathLike)) for path in source):
        try:
            return _finish(read_series(source, strict=strict, max_pixels=max_pixels), str(source[0]))
        except ImageFileError:
            if source and detect_file_type(Path(source[0])) not in (DICOM, None):
                message = "a list of files is one DICOM series; give several images by name: {'a': path, ...}"
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
        f"an image of type {type(source).__name__}; give a path, the paths of a series, a Pillow image, an array "
        "(H, W), (H, W, 3) or (X, Y, Z), or a MetaTensor"
    )


def read_image_file(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Any:
    """Return what one file holds; see `read_image`."""
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path's, false for names that no file can have
        raise ImageFileError("there is no such file")
    if path.stat().st_size == 0:
        raise ImageFileError("the file is empty (0 bytes); copy or export it again")
    with refusing("the file cannot be read ({kind}); copy or export it again"):
        reader = _reader_for(path, max_pixels)
        array, meta = reader.get_data(reader.read(path))
        if array.dtype.kind not in "biuf":
            kind = "complex" if array.dtype.kind == "c" else "colors or records as"
            raise ImageFileError(f"{kind} voxel values; export plain numbers (of a complex image, its magnitude)")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        image = EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(array, meta))
    # Of a DICOM film the channels are colors; of a NIfTI volume they are times, which must not pass for colors.
    return _finish(image, str(path), color_axis=isinstance(reader, DicomReader))


def _reader_for(path: Path, max_pixels: int) -> ImageReader:
    kind = detect_file_type(path)
    if kind == DICOM:
        return DicomReader(max_pixels)
    if kind == VOLUME:
        return VolumeReader()
    if kind == PHOTOGRAPH:
        return PhotographReader(max_pixels)
    if kind == VIDEO:
        frames = list_frames(path)  # of a damaged one tells what is wrong
        raise ImageFileError(f"a video of {len(frames)} frames; each is an image: list them with find_cases")
    known = ", ".join(IMAGE_SUFFIXES)
    raise ImageFileError(f"unknown kind of file; images end in {known}, or are DICOM")


def _from_pillow(picture: Image.Image, max_pixels: int) -> NDArray[Any]:
    """Return (H, W[, 3]) of a picture that may be decoded only now."""
    check_pixels(picture.width, picture.height, max_pixels)
    with refusing("the picture cannot be decoded ({kind}); is its file whole?"):
        array, _ = PhotographReader().get_data(upright_picture(picture))
    return np.swapaxes(array, 0, 1)


def _from_tensor(image: MetaTensor, max_pixels: int) -> MetaTensor:
    shape = image.meta.get(MetaKeys.SPATIAL_SHAPE)
    if image.meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM) == "no_channel" and shape is not None and len(shape) == image.ndim:
        image = image[None]  # MONAI Deploy hands volumes on without the axis of channels
    if image.ndim not in (3, 4) or image.is_complex():
        kind = "complex numbers" if image.is_complex() else f"the shape {tuple(image.shape)}"
        raise ImageFileError(f"a MetaTensor of {kind}; plain numbers (C, W, H) or (C, X, Y, Z) are expected")
    check_pixels(image.shape[1], image.shape[2], max_pixels)
    copy = MetaTensor(image.detach().cpu().as_tensor().clone(), affine=image.affine.clone())
    copy.meta |= {key: image.meta[key] for key in VOIKeys.ALL if key in image.meta}
    return copy


def _from_array(array: NDArray[Any], max_pixels: int = MAX_PIXELS) -> MetaTensor:
    """Return (C, W, H) of an upright picture (H, W[, 3]), or (1, X, Y, Z)."""
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3) or array.shape[2:] in ((1,), (2,), (4,)):
        raise ImageFileError(
            f"an array of {array.dtype} {array.shape}; numbers (H, W), (H, W, 3) or (X, Y, Z) are expected"
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
    """Return an image with the same keys of metadata whatever it came from, once its axes are known to be an image's.

    Args:
        image: (C, W, H) or (C, X, Y, Z).
        path: it came from.
        color_axis: whether three channels are colors.

    Raises:
        ImageFileError: more axes or fewer pixels than an image has.
    """
    has_colors = color_axis and len(image) == 3
    if image.ndim not in (3, 4) or (image.ndim == 4 and len(image) > 1 and not has_colors):
        axes = image.ndim - (1 if len(image) == 1 else 0)
        raise ImageFileError(f"{axes}-D data; 2-D images and 3-D volumes can be scored: split it first")
    sides = sorted(image.shape[1:], reverse=True)
    if min(sides[:2]) < MIN_SIDE:  # of a volume, whatever plane it is cut in
        size = " x ".join(map(str, image.shape[1:]))
        raise ImageFileError(f"{size} pixels are too few; at least {MIN_SIDE} x {MIN_SIDE} are needed (of each slice)")
    windows = {key: image.meta[key] for key in VOIKeys.ALL if key in image.meta}
    plain = MetaTensor(image.as_tensor() if image.dtype == torch.uint8 else image.as_tensor().float())
    plain.affine = image.affine.to(torch.float64)
    plain.meta[MetaKeys.ORIGINAL_AFFINE] = plain.affine.numpy().copy()
    plain.meta[MetaKeys.SPATIAL_SHAPE] = np.asarray(image.shape[1:])
    plain.meta[MetaKeys.SPACE] = SpaceKeys.RAS
    plain.meta |= {ImageMetaKey.FILENAME_OR_OBJ: path, **windows}
    return plain
