"""DICOM images as numbers: gray values in their own units, colors as RGB bytes, and their place in the patient."""

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
from mrad_med.io.dicom.headers import (
    count_frames,
    frame_group,
    pixel_spacing,
    planes_of,
    quiet,
    read_dataset,
)
from mrad_med.io.dicom.object_kinds import check_is_image
from mrad_med.io.dicom.windows import stored_windows
from mrad_med.io.file_types import DICOM_SUFFIXES
from mrad_med.io.geometry import stack_planes, upright_affine
from mrad_med.io.limits import MAX_PIXELS, MAX_VOXELS, check_pixels, check_voxels

__all__ = ["DicomReader"]

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"

_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "

# Modalities whose values mean the same whatever a display makes of them: Hounsfield units, activity.
_ABSOLUTE = ("CT", "PT")


class DicomReader(ImageReader):
    """Read one DICOM file with pydicom: what its pixels mean, where they lie, and nothing else of its header.

    - Gray images are in real units, after the modality lookup table or the rescaling, of each frame if need be. 8-bit
      values without such units stay bytes; all others are float32. Padding becomes the lowest value of the picture.
    - MONOCHROME1 (the lowest value is white) is mirrored within the range of its bits, so that the image equals the
      MONOCHROME2 twin that shows the same; its windows are mirrored along. CT and PET keep their values: their units
      mean the same whatever a display makes of them.
    - Palettes, YBR and RGB become RGB bytes: of deeper colors, the upper 8 bits.
    - Several frames become a volume, sorted by position where they have different ones; else as stored, as of a film.
    - The affine is in RAS. Where the header does not tell the place, the picture is taken for an upright axial slice.
    - The windows that were stored travel in the metadata (`VOIKeys`).

    As MONAI's readers do, arrays are indexed (width, height[, channel]), volumes (X, Y, Z[, channel]).

    Args:
        max_pixels: larger pictures are refused before they are decoded.
        max_voxels: so are larger volumes.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__()
        self.max_pixels = max_pixels
        self.max_voxels = max_voxels

    def verify_suffix(self, filename: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str) -> bool:
        """Tell whether the name, or every name of a list, ends as a DICOM file's."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else filename
        return all(str(name).lower().endswith(DICOM_SUFFIXES) for name in names)

    def read(self, data: Sequence[os.PathLike[str] | str] | os.PathLike[str] | str, **_: Any) -> pydicom.Dataset:
        """Return the tags of one file that its image needs, with the pixels still encoded.

        Raises:
            ImageFileError: no DICOM, no image, damaged, too large, or of a coding that no installed decoder knows.
        """
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        if len(names) != 1:
            raise ImageFileError(f"one file makes one case, got {len(names)} files; slices are read by read_series")
        return read_dataset(names[0], self._check)

    def _check(self, header: pydicom.Dataset) -> None:
        """Refuse an image that cannot be decoded, or should not be."""
        check_is_image(header)
        rows, columns = int(header.Rows), int(header.Columns)
        check_pixels(columns, rows, self.max_pixels)
        check_voxels(columns, rows, count_frames(header), limit=self.max_voxels)
        _check_tones(header)
        _decoder_of(header)

    def get_data(self, img: pydicom.Dataset) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the (W, H[, 3]) or (X, Y, Z[, 3]) array and the metadata MONAI needs, with the stored windows.

        Raises:
            ImageFileError: the pixels are damaged or missing, or the header contradicts itself.
        """
        with quiet("the DICOM file"):
            order, affine = _lay_out(img)
            pixels = _decode(img)[list(order)]
            if img.PhotometricInterpretation in _GRAY:
                values, mirror = _gray_values(img, pixels, order)
                windows = stored_windows(img, mirror=mirror)
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
            **windows,
        }
        return np.ascontiguousarray(array), meta


def _check_tones(header: pydicom.Dataset) -> None:
    """Refuse pictures whose number of samples is not that of their kind of tones."""
    tones, samples = str(header.get("PhotometricInterpretation") or ""), int(header.get("SamplesPerPixel") or 1)
    if not tones:
        raise ImageFileError("the header does not tell whether its pixels are gray or colors; export the file again")
    if samples != (1 if tones in (*_GRAY, _PALETTE) else 3):
        raise ImageFileError(f"{samples} sample(s) a pixel contradict its kind of tones; export the DICOM file again")


def _decoder_of(header: pydicom.Dataset) -> Decoder:
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageFileError("its pixels are coded as a video or in an unknown way; export it uncompressed") from None
    if not decoder.is_available:
        raise ImageFileError(f'no decoder for {decoder.UID.name} is installed; pip install "mrad-med[dicom]" brings it')
    return decoder


def _decode(dataset: pydicom.Dataset) -> NDArray[Any]:
    """Return the stored pixels (frames, rows, columns[, samples]), colors as RGB."""
    decoder = _decoder_of(dataset)
    try:
        if decoder.UID in JPEG2000TransferSyntaxes:
            _check_boxes(dataset)
        pixels, properties = decoder.as_array(dataset, allow_excess_frames=False)  # type: ignore[arg-type]
        colors = (3,) * (dataset.SamplesPerPixel > 1)
        pixels = pixels.reshape(count_frames(dataset), dataset.Rows, dataset.Columns, *colors)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # decoders raise nearly everything on damaged files; those in Rust even panic
        advice = "copy or export the file again"
        if decoder.is_encapsulated and find_spec("pylibjpeg") is None:
            advice += ', or pip install "mrad-med[dicom]" for more decoders'
        raise ImageFileError(
            f"its pixel data cannot be decoded ({type(error).__name__}): damaged, truncated, or not as the header "
            f"says; {advice}"
        ) from None
    if colors and properties["photometric_interpretation"] != "RGB":
        raise ImageFileError("its colors are coded in an uncommon way; export it as RGB")
    return pixels


def _check_boxes(dataset: pydicom.Dataset) -> None:
    """Refuse JPEG 2000 files with an empty box before their picture: pydicom 3.0 would look for its end for ever."""
    for frame in generate_frames(dataset.PixelData, number_of_frames=count_frames(dataset)):
        offset = len(_JP2_SIGNATURE) + 4 if frame.startswith(_JP2_SIGNATURE) else len(frame)
        while offset < len(frame) and frame[offset + 4 : offset + 8] != b"jp2c":
            length = int.from_bytes(frame[offset : offset + 4], "big")
            if length == 0:
                raise ValueError("an empty box")
            offset += length


def _lay_out(dataset: pydicom.Dataset) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return the order of the frames by position, and the affine."""
    frames, planes = count_frames(dataset), planes_of(dataset)
    as_stored = tuple(range(frames))
    if planes is None:
        spacing = pixel_spacing(dataset) or (0.0, 0.0)
        is_known = min(spacing) > 0 and np.isfinite(spacing).all()  # radiographs may hold zeros for "not known"
        return as_stored, upright_affine(spacing if is_known else (1.0, 1.0))
    stack = stack_planes(planes)
    if len(stack.repeated) == frames - 1 > 0:  # a film: its third axis is time, and lies nowhere in the patient
        return as_stored, upright_affine(planes.spacing)
    if stack.faults:
        raise ImageFileError(f"its frames make no single volume: {'; '.join(stack.faults)}; split or export it again")
    return stack.order, stack.affine


def _gray_values(
    dataset: pydicom.Dataset, stored: NDArray[Any], order: Sequence[int]
) -> tuple[NDArray[Any], float | None]:
    """Return the values (frames, rows, columns) of gray pixels, and the sum of mirrored and original values if any.

    Args:
        dataset: the header.
        stored: the pixels, in the order of the result.
        order: numbers of their frames in the header.
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
        raise ImageFileError("its rescaling turns all values into one or none; export the DICOM file again")


def _has_units(source: pydicom.Dataset) -> bool:
    """Tell whether stored values and values in units differ."""
    return bool(source.get("ModalityLUTSequence")) or (
        "RescaleSlope" in source
        and "RescaleIntercept" in source
        and (float(source.RescaleSlope), float(source.RescaleIntercept)) != (1, 0)
    )


def _stored_range(dataset: pydicom.Dataset) -> NDArray[np.int64]:
    """Return the lowest and the highest value that the stored bits can hold."""
    bits = int(dataset.BitsStored)
    low = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    return np.asarray([low, low + 2**bits - 1])


def _padding(dataset: pydicom.Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where the stored values only fill the rectangle (DICOM PS3.3, C.7.5.1.1.2), or None."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    # Writers mistake signed for unsigned, so the numbers are taken as the bits they are made of.
    period = 2 ** int(dataset.BitsAllocated)
    low = -(period // 2) if dataset.PixelRepresentation else 0
    limits = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit")]
    first, last = sorted((int(limits[0] if value is None else value) - low) % period + low for value in limits)
    mask: NDArray[np.bool_] = (stored >= first) & (stored <= last)
    return mask


def _color_bytes(dataset: pydicom.Dataset, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return RGB bytes (frames, rows, columns, 3) of decoded colors or of entries of a palette."""
    if dataset.PhotometricInterpretation == _PALETTE:
        _swap_palette(dataset)
        pixels = apply_color_lut(pixels, dataset)[..., :3]  # what follows is transparency
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        bits = bits if pixels.max() < 2**bits else 16  # old files announce 8 bits and hold 16
    else:
        bits = int(dataset.BitsStored)
        if dataset.PixelRepresentation:
            raise ImageFileError("its colors are signed numbers; export the DICOM file again")
    return (pixels >> max(bits - 8, 0)).astype(np.uint8)


def _swap_palette(dataset: pydicom.Dataset) -> None:
    """Turn the words of a big-endian palette to the machine's order, which pydicom 3.0 takes them to be in."""
    if dataset.file_meta.TransferSyntaxUID.is_little_endian:
        return
    for color in ("Red", "Green", "Blue"):
        name = f"{color}PaletteColorLookupTableData"
        if name in dataset and dataset[name].VR == "OW":
            dataset[name].value = np.frombuffer(dataset[name].value, "u2").byteswap().tobytes()
