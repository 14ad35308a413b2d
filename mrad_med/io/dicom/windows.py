"""Stored windows of DICOM images (VOI: values of interest) as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from mrad_med.io.dicom.frame_groups import frame_group

__all__ = ["VOIKeys", "stored_windows"]

MAX_WINDOWS = 4  # further windows are usually only variants
LUT_LENGTH = 65536  # longest table in DICOM; shorter ones are extended by their last value, as DICOM defines
LUT_BITS = (8, 10, 11, 12, 13, 14, 15, 16)

# Modalities whose window was set for the image; that of an MR slice is often only a guess of the scanner.
_WINDOWED = ("CT", "CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


class VOIKeys:
    """Metadata keys of the stored windows of a DICOM image.

    Each value has the same shape for all images, so images with different windows can be batched.

    Attributes:
        WINDOWS: (4, 2) center and width in the image's units; NaN after the last window.
        FUNCTION: function that a window defines: ``"LINEAR"``, ``"LINEAR_EXACT"`` or ``"SIGMOID"``.
        LUT: (65536,) uint8 brightness of the values from ``LUT_FIRST`` upwards; it takes precedence over the windows.
        LUT_FIRST: first value that the table maps.
        TRUSTED: whether images of this modality are intended to be viewed with their stored window.
    """

    WINDOWS = "windows"
    FUNCTION = "window_function"
    LUT = "voi_lut"
    LUT_FIRST = "voi_lut_first"
    TRUSTED = "window_trusted"
    ALL = (WINDOWS, FUNCTION, LUT, LUT_FIRST, TRUSTED)


def stored_windows(dataset: pydicom.Dataset, *, frame: int = 0, mirror: float | None = None) -> dict[str, Any]:
    """Return the windows of an image under the keys of `VOIKeys`; an empty dictionary if it has no valid window.

    Args:
        dataset: header of the image.
        frame: number, from 0, of the frame of an enhanced object whose windows are returned.
        mirror: sum of inverted and original value if the values were inverted, ``v`` to ``mirror - v``; the windows
            are inverted in the same way.

    Reference:
        DICOM PS3.3, C.11.2.
    """
    source = frame_group(dataset, frame, "FrameVOILUTSequence") or dataset
    function = str(source.get("VOILUTFunction") or "LINEAR").upper()
    meta: dict[str, Any] = {}
    windows = _windows(source, function)
    if windows:
        if mirror is not None:
            # The linear function is symmetric around center - 0.5, the others around their center.
            offset = 1.0 if function == "LINEAR" else 0.0
            windows = [(mirror - center + offset, width) for center, width in windows]
        padded = np.full((MAX_WINDOWS, 2), np.nan)
        padded[: len(windows)] = windows[:MAX_WINDOWS]
        meta |= {VOIKeys.WINDOWS: padded, VOIKeys.FUNCTION: function}
    table = _table(source, little_endian=dataset.file_meta.TransferSyntaxUID.is_little_endian)
    if table is not None:
        first, brightness = float(table[0]), table[1]
        if mirror is not None:
            first, brightness = mirror - (first + len(brightness) - 1), 255 - brightness[::-1]
        padding = (0, LUT_LENGTH - len(brightness))
        meta |= {VOIKeys.LUT: np.pad(brightness, padding, mode="edge"), VOIKeys.LUT_FIRST: first}
    if meta:
        meta[VOIKeys.TRUSTED] = str(dataset.get("Modality") or "") in _WINDOWED
    return meta


def _windows(source: pydicom.Dataset, function: str) -> list[tuple[float, float]]:
    """Return the pairs of center and width for which the function is defined."""
    if function not in _FUNCTIONS:
        return []
    try:
        centers, widths = (np.atleast_1d(_floats(source.get(key))) for key in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):  # an invalid window is ignored, because the pixels are still valid
        return []
    least = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    pairs = zip(centers.tolist(), widths.tolist(), strict=False)
    return [(center, width) for center, width in pairs if np.isfinite(center) and least <= width < np.inf]


def _floats(stored: Any) -> NDArray[np.float64]:
    return np.asarray([] if stored is None else stored, np.float64)


def _table(source: pydicom.Dataset, *, little_endian: bool) -> tuple[int, NDArray[np.uint8]] | None:
    """Return the first input value and the outputs (uint8) of the VOI lookup table, or None without a valid table."""
    items = source.get("VOILUTSequence")
    item = items[0] if items else {}
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    count, first, bits = (int(value) for value in descriptor)
    if isinstance(data, bytes):
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    outputs = np.asarray(data, np.float64)[: count or LUT_LENGTH]
    if bits not in LUT_BITS or len(outputs) != (count or LUT_LENGTH):
        return None
    brightness: NDArray[np.uint8] = np.round(outputs.clip(0, 2**bits - 1) * (255 / (2**bits - 1))).astype(np.uint8)
    return first, brightness
