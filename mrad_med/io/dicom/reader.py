"""Reader for DICOM images: gray values in their own units, colors as RGB bytes, and the affine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pydicom
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import JPEG2000TransferSyntaxes

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.frame_groups import FrameGroup, frame_group, group_frames, pixel_spacing
from mrad_med.io.dicom.headers import quiet, read_dataset, without_stderr
from mrad_med.io.dicom.object_kinds import check_is_image, check_is_no_mosaic
from mrad_med.io.dicom.streams import count_frames
from mrad_med.io.dicom.windows import stored_windows
from mrad_med.io.file_types import DICOM_SUFFIXES
from mrad_med.io.geometry import HAS_POSITION, stack_planes, upright_affine
from mrad_med.io.limits import MAX_PIXELS, MAX_VOXELS, check_pixels, check_voxels

__all__ = ["DicomReader"]

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"

_J2K_SIZE = b"\xff\x4f\xff\x51"  # the markers SOC and SIZ
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "

# Modalities whose values have a fixed physical meaning, independent of the display: Hounsfield units, activity.
_ABSOLUTE = ("CT", "PT")


class DicomReader(ImageReader):
    """Read the pixels, the affine and the windows of one DICOM file; the rest of its header is ignored.

    - Gray values are in real units, after the modality lookup table or the rescaling, which may differ between frames.
      8-bit values without such units stay uint8; all others are float32. Padding becomes the lowest value of the image.
    - MONOCHROME1 (the lowest value is white) is inverted within the range of its bits. The image then equals the
      MONOCHROME2 image of the same appearance. Its windows are inverted too. CT and PET keep their values, because
      their units have a fixed physical meaning.
    - Palettes, YBR and RGB become RGB bytes; of deeper colors the upper 8 bits are kept.
    - Several frames become a volume, sorted by position. Frames without positions become a volume in stored order if
      the header states the distance between slices. All other frames do not form a volume: read them one by one.
    - The affine is in RAS. Without a stated position, the image is treated as an upright axial slice, and
      `HAS_POSITION` in the metadata is False.
    - The metadata contains the stored windows (`VOIKeys`).

    Arrays are indexed (width, height[, channel]), and volumes (X, Y, Z[, channel]), as in MONAI's readers.

    Args:
        max_pixels: largest number of pixels of a frame; larger images are refused before they are decoded.
        max_voxels: largest number of voxels of the frames that are read; larger volumes are refused before they are
            decoded.
        frames: numbers, from 0, of the frames that are read: one frame, or all frames of one `FrameGroup`. None reads
            all frames of a file whose frames form one volume or image.
    """

    def __init__(
        self, max_pixels: int = MAX_PIXELS, max_voxels: int = MAX_VOXELS, frames: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.max_pixels = max_pixels
        self.max_voxels = max_voxels
        self.frames = None if frames is None else tuple(frames)

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Return whether the name, or every name of a list, has the suffix of a DICOM file."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(DICOM_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> pydicom.Dataset:
        """Return the tags of one file that its image needs, with the encoded pixels.

        Raises:
            ImageFileError: the file is not DICOM, not an image, damaged, too large, or no installed decoder supports
                its transfer syntax.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file is one case, got {len(names)} files; read a series with read_series")
        return read_dataset(names[0], self._check)

    def _check(self, header: pydicom.Dataset) -> None:
        """Refuse an object that is not an image, is too large or cannot be decoded."""
        check_is_image(header)
        check_is_no_mosaic(header)
        rows, columns = int(header.Rows), int(header.Columns)
        check_pixels(columns, rows, self.max_pixels)
        frames = count_frames(header) if self.frames is None else len(self.frames)
        check_voxels(columns, rows, frames, limit=self.max_voxels)
        _check_samples(header)
        _decoder_of(header)

    def get_data(self, img: pydicom.Dataset) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (W, H[, 3]) or (X, Y, Z[, 3]) array and the metadata that MONAI needs, with the stored windows.

        Raises:
            ImageFileError: the pixels are damaged or missing, or the header is contradictory.
        """
        with quiet("the DICOM file"):
            group = _select(group_frames(img), self.frames)
            order, affine = _lay_out(img, group)
            pixels = _decode(img, order)
            if img.PhotometricInterpretation in _GRAY:
                values, mirror = _gray_values(img, pixels, order)
                windows = stored_windows(img, frame=min(order), mirror=mirror)
            else:
                values, windows = _color_bytes(img, pixels), {}
        values = np.swapaxes(values, 1, 2)  # (frames, columns, rows[, 3])
        array, axes = (values[0], 2) if len(order) == 1 else (np.moveaxis(values, 0, 2), 3)
        meta = {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:axes]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if array.ndim == axes else -1,
            HAS_POSITION: group.planes is not None,
            **windows,
        }
        return np.ascontiguousarray(array), meta


def _check_samples(header: pydicom.Dataset) -> None:
    """Refuse an image whose number of samples does not match its photometric interpretation."""
    photometric, samples = str(header.get("PhotometricInterpretation") or ""), int(header.get("SamplesPerPixel") or 1)
    if not photometric:
        raise ImageFileError("its header does not state the photometric interpretation; export the DICOM file again")
    if samples != (1 if photometric in (*_GRAY, _PALETTE) else 3):
        raise ImageFileError(
            f"{samples} sample(s) per pixel do not match its photometric interpretation; export the DICOM file again"
        )


def _decoder_of(header: pydicom.Dataset) -> Decoder:
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageFileError("its pixels are encoded as a video or in an unknown way; export it uncompressed") from None
    if not decoder.is_available:
        raise ImageFileError(f'no decoder for {decoder.UID.name} is installed; pip install "mrad-med[dicom]"')
    return decoder


def _decode(dataset: pydicom.Dataset, order: Sequence[int]) -> NDArray[Any]:
    """Return the stored pixels (frames, rows, columns[, samples]) of frames, with colors as RGB.

    Args:
        dataset: header and encoded pixels.
        order: numbers of the frames, from 0, in the order of the returned values.
    """
    decoder, colors = _decoder_of(dataset), (3,) * (int(dataset.get("SamplesPerPixel") or 1) > 1)
    try:
        with without_stderr():
            pixels, photometric = _decode_frames(decoder, dataset, order)
        pixels = pixels.reshape(len(order), dataset.Rows, dataset.Columns, *colors)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # decoders raise errors of any class on damaged files; Rust decoders panic
        advice = "copy or export the file again"
        if decoder.is_encapsulated and find_spec("pylibjpeg") is None:
            advice += ', or pip install "mrad-med[dicom]" for more decoders'
        raise ImageFileError(
            f"its pixel data cannot be decoded ({type(error).__name__}): it is damaged, truncated or contradicts the "
            f"header; {advice}"
        ) from None
    if colors and photometric != "RGB":
        raise ImageFileError("its color encoding is not supported; export it as RGB")
    return pixels


def _decode_frames(decoder: Decoder, dataset: pydicom.Dataset, order: Sequence[int]) -> tuple[NDArray[Any], str]:
    """Return the pixels of frames, and their photometric interpretation."""
    if decoder.UID in JPEG2000TransferSyntaxes:
        _check_codestreams(dataset)
    frames = count_frames(dataset)
    if len(order) == frames or not decoder.UID.is_little_endian:  # pydicom 3.0 swaps bytes only in whole files
        pixels, properties = decoder.as_array(dataset, allow_excess_frames=False)  # type: ignore[arg-type]
        return pixels.reshape(frames, -1)[list(order)], str(properties["photometric_interpretation"])
    decoded = list(decoder.iter_array(dataset, indices=order, allow_excess_frames=False))
    return np.stack([frame for frame, _ in decoded]), str(decoded[0][1]["photometric_interpretation"])


def _check_codestreams(dataset: pydicom.Dataset) -> None:
    """Refuse JPEG 2000 data that would be decoded for hours.

    These have an empty box before the codestream, on which pydicom 3.0 loops forever, or a codestream of another size
    than the header.
    """
    for frame in generate_frames(dataset.PixelData, number_of_frames=count_frames(dataset)):
        offset = len(_JP2_SIGNATURE) + 4 if frame.startswith(_JP2_SIGNATURE) else len(frame)
        while offset < len(frame) and frame[offset + 4 : offset + 8] != b"jp2c":
            length = int.from_bytes(frame[offset : offset + 4], "big")
            if length == 0:
                raise ValueError("an empty box")
            offset += length
        start = frame.find(_J2K_SIZE)
        size = frame[start + 8 : start + 24]  # Xsiz, Ysiz, XOsiz, YOsiz (ISO 15444-1, A.5.1)
        right, bottom, left, top = (int.from_bytes(size[i : i + 4], "big") for i in (0, 4, 8, 12))
        if start >= 0 and (right - left, bottom - top) != (dataset.Columns, dataset.Rows):
            raise ValueError("another size than in the header")


def _select(groups: Sequence[FrameGroup], frames: tuple[int, ...] | None) -> FrameGroup:
    """Return the group of the frames to read: the only one of the file, that of the given frames, or one frame of it.

    Raises:
        ImageFileError: the frames do not form a volume.
    """
    if frames is None:
        if len(groups) == 1 and not groups[0].is_sequence:
            return groups[0]
        what = f"differ in direction, spacing, stack or time and form {len(groups)} volumes or images"
        if len(groups) == 1:
            what = "do not form a volume: they follow each other in time, or state neither positions nor their distance"
        raise ImageFileError(
            f"its {sum(len(group.frames) for group in groups)} frames {what}; list them with find_cases"
        )
    group = next((group for group in groups if set(frames) <= set(group.frames)), None)
    if group is not None and len(frames) == 1:
        return group.frame(frames[0])
    if group is None or len(group.frames) != len(frames) or group.is_sequence:
        raise ImageFileError("these frames do not form one volume of the file; list them with find_cases")
    return group


def _lay_out(dataset: pydicom.Dataset, group: FrameGroup) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return the frames of a group in the order of their positions, and the (4, 4) affine."""
    if group.planes is None:
        spacing = pixel_spacing(dataset, group.frames[0]) or (0.0, 0.0)
        is_known = min(spacing) > 0 and np.isfinite(spacing).all()  # some radiographs store unknown spacings as 0
        return group.frames, upright_affine(spacing if is_known else (1.0, 1.0), group.step or 1.0)
    stack = stack_planes(group.planes)
    if stack.faults:
        raise ImageFileError(f"its frames cannot form one volume: {'; '.join(stack.faults)}; split or export it again")
    return tuple(group.frames[index] for index in stack.order), stack.affine


def _gray_values(
    dataset: pydicom.Dataset, stored: NDArray[Any], order: Sequence[int]
) -> tuple[NDArray[Any], float | None]:
    """Return gray values (frames, rows, columns), and the sum of inverted and original value if they were inverted.

    Args:
        dataset: header of the image.
        stored: stored pixels (frames, rows, columns), in the order of the returned values.
        order: number of each frame in the header, from 0.
    """
    sources = [frame_group(dataset, frame, "PixelValueTransformationSequence") or dataset for frame in order]
    for source in sources[:1] if sources[0] is dataset else sources:
        _check_slope(source)
    is_float = "PixelData" not in dataset
    padding = None if is_float else _padding(dataset, stored)
    ends = np.asarray([stored.min(), stored.max()]) if is_float else _stored_range(dataset)
    is_mirrored = dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.get("Modality") not in _ABSOLUTE
    has_table = bool(sources[0].get("ModalityLUTSequence"))
    if is_mirrored and not has_table:
        stored = ends.sum() - (stored if is_float else stored.astype(np.int64))
    if sources[0] is dataset:
        values = apply_modality_lut(stored, dataset)
    else:
        values = np.stack([apply_modality_lut(frame, source) for frame, source in zip(stored, sources, strict=True)])
    mirror = float(apply_modality_lut(ends, sources[0]).sum()) if is_mirrored else None
    if is_mirrored and has_table:
        mirror = 2.0 ** sources[0].ModalityLUTSequence[0].LUTDescriptor[2] - 1
        values = mirror - values
    is_bytes = not is_float and dataset.BitsStored == 8 and dataset.PixelRepresentation == 0
    values = values.astype(np.uint8 if is_bytes and not any(map(_has_units, sources)) else np.float32)
    if padding is not None and padding.any() and not padding.all():
        values[padding] = values[~padding].min()
    return values, mirror


def _check_slope(source: pydicom.Dataset) -> None:
    slope, intercept = float(source.get("RescaleSlope", 1)), float(source.get("RescaleIntercept", 0))
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ImageFileError("its rescale slope is 0, or slope or intercept is not finite; export it again")


def _has_units(source: pydicom.Dataset) -> bool:
    """Return whether a lookup table or a rescaling changes the stored values."""
    return bool(source.get("ModalityLUTSequence")) or (
        "RescaleSlope" in source
        and "RescaleIntercept" in source
        and (float(source.RescaleSlope), float(source.RescaleIntercept)) != (1, 0)
    )


def _stored_range(dataset: pydicom.Dataset) -> NDArray[np.int64]:
    """Return the lowest and the highest value (2,) that the stored bits can represent."""
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    return np.asarray([low, low + 2**bits - 1])


def _padding(dataset: pydicom.Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return the mask of padding pixels (DICOM PS3.3, C.7.5.1.1.2), or None if no padding value is stated."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    # Some writers confuse signed and unsigned values, so the numbers are interpreted by their bits.
    period = 2 ** int(dataset.BitsAllocated)
    low = -(period // 2) if dataset.PixelRepresentation else 0
    limits = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit")]
    first, last = sorted((int(limits[0] if value is None else value) - low) % period + low for value in limits)
    mask: NDArray[np.bool_] = (stored >= first) & (stored <= last)
    return mask


def _color_bytes(dataset: pydicom.Dataset, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return decoded colors or palette indices as RGB bytes (frames, rows, columns, 3)."""
    if dataset.PhotometricInterpretation == _PALETTE:
        pixels = apply_color_lut(pixels, _native_palette(dataset))[..., :3]  # a fourth channel is transparency
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        bits = bits if pixels.max() < 2**bits else 16  # old files announce 8 bits and hold 16
    else:
        bits = int(dataset.BitsStored)
        if dataset.PixelRepresentation:
            raise ImageFileError("its color values are signed; export the DICOM file again")
    return (pixels >> max(bits - 8, 0)).astype(np.uint8)


def _native_palette(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Return the header with a palette in native byte order, which pydicom 3.0 assumes."""
    if dataset.file_meta.TransferSyntaxUID.is_little_endian:
        return dataset
    native = pydicom.Dataset()
    native.update(dataset)
    native.file_meta = dataset.file_meta
    for color in ("Red", "Green", "Blue"):
        name = f"{color}PaletteColorLookupTableData"
        if name in dataset and dataset[name].VR == "OW":
            swapped = np.frombuffer(dataset[name].value, "u2").byteswap().tobytes()
            native[name] = pydicom.DataElement(dataset[name].tag, "OW", swapped)
    return native
