"""The windows that a DICOM image was stored with (VOI: values of interest), as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from mrad_med.io.dicom.headers import frame_group

__all__ = ["VOIKeys", "stored_windows"]

MAX_WINDOWS = 4  # that travel on; further ones are seldom more than variants
LUT_LENGTH = 65536  # the longest of DICOM; a shorter one goes on with its last entry, as its definition says
LUT_BITS = (8, 10, 11, 12, 13, 14, 15, 16)

# Modalities whose window was set for the image; that of an MR slice is often no more than the scanner's guess.
_WINDOWED = ("CT", "CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


class VOIKeys:
    """Keys of the metadata that the windows of a DICOM image travel under.

    A value has one shape whatever the image, so that images with different windows can be batched.

    Attributes:
        WINDOWS: (4, 2) center and width in the image's units; NaN beyond the last window.
        FUNCTION: ``"LINEAR"``, ``"LINEAR_EXACT"`` or ``"SIGMOID"``, how a window is meant.
        LUT: (65536,) uint8, the brightness of the values from ``LUT_FIRST`` on; it comes before the windows.
        LUT_FIRST: the value that the table begins with.
        TRUSTED: whether images of this modality are meant to be seen through their window.
    """

    WINDOWS = "windows"
    FUNCTION = "window_function"
    LUT = "voi_lut"
    LUT_FIRST = "voi_lut_first"
    TRUSTED = "window_trusted"
    ALL = (WINDOWS, FUNCTION, LUT, LUT_FIRST, TRUSTED)


def stored_windows(dataset: pydicom.Dataset, *, mirror: float | None = None) -> dict[str, Any]:
    """Return the windows of an image under `VOIKeys`; nothing where it has none that can be used.

    Args:
        dataset: the header. Of an enhanced object, the windows of the first frame count.
        mirror: of an image whose values were inverted, ``v`` to ``mirror - v``: its windows are inverted too.

    Reference:
        DICOM PS3.3, C.11.2.
    """
    source = frame_group(dataset, 0, "FrameVOILUTSequence") or dataset
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
        first, shades = float(table[0]), table[1]
        if mirror is not None:
            first, shades = mirror - (first + len(shades) - 1), 255 - shades[::-1]
        padding = (0, LUT_LENGTH - len(shades))
        meta |= {VOIKeys.LUT: np.pad(shades, padding, mode="edge"), VOIKeys.LUT_FIRST: first}
    if meta:
        meta[VOIKeys.TRUSTED] = str(dataset.get("Modality") or "") in _WINDOWED
    return meta


def _windows(source: pydicom.Dataset, function: str) -> list[tuple[float, float]]:
    """Return the pairs of center and width that the function is defined for."""
    if function not in _FUNCTIONS:
        return []
    try:
        centers, widths = (np.atleast_1d(_floats(source.get(key))) for key in ("WindowCenter", "WindowWidth"))
    except (TypeError, ValueError):  # a window that is no number is none: the pixels are no worse for it
        return []
    least = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    pairs = zip(centers.tolist(), widths.tolist(), strict=False)
    return [(center, width) for center, width in pairs if np.isfinite(center) and least <= width < np.inf]


def _floats(stored: Any) -> NDArray[np.float64]:
    return np.asarray([] if stored is None else stored, np.float64)


def _table(source: pydicom.Dataset, *, little_endian: bool) -> tuple[int, NDArray[np.uint8]] | None:
    """Return the first value of the VOI lookup table and its entries as bytes, or None where there is none of use."""
    items = source.get("VOILUTSequence")
    item = items[0] if items else {}
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    count, first, bits = (int(value) for value in descriptor)
    if isinstance(data, bytes):
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    entries = np.asarray(data, np.float64)[: count or LUT_LENGTH]
    if bits not in LUT_BITS or len(entries) != (count or LUT_LENGTH):
        return None
    shades: NDArray[np.uint8] = np.round(entries.clip(0, 2**bits - 1) * (255 / (2**bits - 1))).astype(np.uint8)
    return first, shades
