"""Intensity transforms: windows, scaling to bytes, and conversion to RGB."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.transforms.dictionary import Eachd

__all__ = [
    "WINDOWS",
    "ApplyWindow",
    "ApplyWindowd",
    "ScaleToBytes",
    "ScaleToBytesd",
    "ToRGB",
    "ToRGBd",
    "Window",
    "apply_lookup_table",
    "apply_window",
]

Window = str | Sequence[float]  # "auto", "stored", "percentile", the name of a preset, or center and width

# Center and width in Hounsfield units, from Radiopaedia's article "Windowing (CT)" except where noted. For a range in
# the article, the middle is used.
WINDOWS: dict[str, tuple[float, float]] = {
    "brain": (40, 80),
    "subdural": (75, 215),  # centers 50 to 100, widths 130 to 300
    "stroke": (40, 40),  # the wider of two; the narrow one (32, 8) shows mostly noise
    "bone": (600, 2800),  # temporal bone, the widest
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "abdomen": (40, 400),  # the article has center 50; scanners and atlases use 40 as often
    "liver": (30, 150),
}

_MODES = ("auto", "stored", "percentile")
_CHUNK = 1 << 22  # values that are windowed at a time: a whole volume in double precision would take too much memory

INTENSITY_PERCENTILES = (0.5, 99.5)  # become black and white in images deeper than 8 bits


def apply_window(values: NDArray[Any], center: float, width: float, *, function: str = "LINEAR") -> NDArray[np.uint8]:
    """Return values as bytes, from black below a window to white above it; NaN becomes black.

    Args:
        values: array of any shape, in the units of the window.
        center: center of the window.
        width: width of the window, at least 1 for ``"LINEAR"``, above 0 for the others.
        function: VOI LUT function of DICOM. ``"LINEAR"``, the default of DICOM, subtracts 0.5 from the center and 1
            from the width; ``"LINEAR_EXACT"`` does not. The third is ``"SIGMOID"``.

    Returns:
        uint8, of the shape of the values.

    Raises:
        ValueError: center or width is not finite, the width is too small, or the function is unknown.

    Reference:
        DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.
    """
    least = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"function must be LINEAR, LINEAR_EXACT or SIGMOID, got {function!r}")
    if not (np.isfinite(center) and least <= width < np.inf):
        limit = "of 1 or more" if function == "LINEAR" else "above 0"
        raise ValueError(f"a window needs a finite center and a width {limit}, got {center:g} and {width:g}")
    flat = values.reshape(-1)
    levels = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        share = _shares(np.nan_to_num(part, nan=-np.inf, posinf=np.inf, neginf=-np.inf), center, width, function)
        levels[start : start + _CHUNK] = np.round(share * 255)
    return levels.reshape(values.shape)


def _shares(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64]:
    """Return the brightness of values in a window, in [0, 1]."""
    shares: NDArray[np.float64]
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window the exponential is infinite and the brightness 0
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    shares = ((values - center) / width + 0.5).clip(0, 1)
    return shares


def apply_lookup_table(values: NDArray[Any], first: float, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the gray level of each value from a lookup table.

    Values below ``first`` and NaN get the first gray level. Values beyond the end of the table get the last one.

    Args:
        values: array of any shape.
        first: value that the first gray level belongs to.
        levels: (N,) gray levels of ``first``, ``first + 1`` and so on.

    Reference:
        DICOM PS3.3, C.11.2.1.1.
    """
    indices = np.nan_to_num(values.astype(np.float64) - first, nan=0.0).clip(0, len(levels) - 1)
    looked_up: NDArray[np.uint8] = levels[indices.astype(np.int64)]
    return looked_up


class ApplyWindow(Transform):
    """Convert an image or volume to bytes with a window.

    Args:
        window: one of

            - ``"auto"``: the stored window or lookup table of a DICOM image of CT or radiography. Stored windows of
              other modalities are not reliable, so other images get ``"percentile"``;
            - ``"stored"``: the stored lookup table, or else the first stored window, for any modality;
            - ``"percentile"``: the same as `ScaleToBytes`;
            - a name in `WINDOWS`, for CT in Hounsfield units;
            - center and width, in the image's units;
            - three of these, for the red, green and blue channels made from one gray image.
        percentiles: lower and upper percentile for ``"percentile"``, in [0, 100].

    Raises:
        ValueError: the window is unknown or invalid.
    """

    def __init__(
        self, window: Window | Sequence[Window] = "auto", percentiles: tuple[float, float] = INTENSITY_PERCENTILES
    ) -> None:
        is_several = not isinstance(window, str) and len(window) == 3
        self.windows = [_check(item) for item in (window if is_several else [window])]
        self._scale = ScaleToBytes(percentiles)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image as uint8 (C, ...), or as (3, ...) where there are three windows.

        Args:
            image: (C, ...); three windows need C = 1.

        Raises:
            ImageFileError: the image has no stored window, or has colors where gray values are needed.
        """
        if len(self.windows) > 1 and len(image) != 1:
            raise ImageFileError(f"three windows need a gray image, got {len(image)} channels; use window='auto'")
        levels = [self._apply(image, window) for window in self.windows]
        result = MetaTensor(levels[0] if len(levels) == 1 else torch.cat(levels)).copy_meta_from(image)
        # The stored windows belong to the original values. Applied a second time they would be wrong.
        result.meta = {key: value for key, value in result.meta.items() if key not in VOIKeys.ALL}
        return result

    def _apply(self, image: MetaTensor, window: str | tuple[float, float]) -> torch.Tensor:
        if window == "auto":
            window = "stored" if image.meta.get(VOIKeys.TRUSTED, False) else "percentile"
        if window == "percentile":
            scaled: torch.Tensor = self._scale(image).as_tensor()
            return scaled
        if len(image) == 3 and image.dtype == torch.uint8:
            raise ImageFileError("a window is for gray values, and the image has colors; use window='auto'")
        values = image.detach().cpu().numpy()
        if window == "stored":
            return torch.from_numpy(_apply_stored(values, image.meta))
        if isinstance(window, str):
            if image.dtype == torch.uint8:
                raise ImageFileError(f"an 8-bit image has no Hounsfield units for window={window!r}; use 'auto'")
            window = WINDOWS[window]
        return torch.from_numpy(apply_window(values, *window))


def _check(window: Any) -> str | tuple[float, float]:
    """Return a valid window: a name, or center and width.

    Raises:
        ValueError: the window is unknown or invalid.
    """
    if isinstance(window, str):
        if window in WINDOWS or window in _MODES:
            return window
        names = [*_MODES, *WINDOWS]
        close = difflib.get_close_matches(window.lower(), names, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no window {window!r}: choose one of {', '.join(names)}, or center and width{meant}")
    if len(window) != 2:
        raise ValueError(
            f"a window must be a name, or center and width; three windows make colors. Got {len(window)} values"
        )
    center, width = (float(value) for value in window)
    apply_window(np.zeros(1), center, width)  # raises ValueError for an invalid window
    return center, width


def _apply_stored(values: NDArray[Any], meta: Mapping[Hashable, Any]) -> NDArray[np.uint8]:
    """Return values as bytes, with the stored lookup table of the image or else its first stored window."""
    if VOIKeys.LUT in meta:
        return apply_lookup_table(values, float(meta[VOIKeys.LUT_FIRST]), np.asarray(meta[VOIKeys.LUT]))
    if VOIKeys.WINDOWS not in meta:
        raise ImageFileError("no window is stored with the image; use window='auto', a preset, or center and width")
    center, width = np.asarray(meta[VOIKeys.WINDOWS])[0].tolist()
    return apply_window(values, center, width, function=str(meta[VOIKeys.FUNCTION]))


class ApplyWindowd(Eachd):
    """Dictionary version of `ApplyWindow`."""

    def __init__(
        self,
        keys: KeysCollection,
        window: Window | Sequence[Window] = "auto",
        percentiles: tuple[float, float] = INTENSITY_PERCENTILES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ApplyWindow(window, percentiles)


class ScaleToBytes(Transform):
    """Convert intensities to uint8; 8-bit images are returned unchanged.

    In deeper images the lower percentile becomes black and the upper one white. The percentiles are computed over all
    finite values of the image or volume. A constant image becomes black.

    Args:
        percentiles: lower and upper percentile, in [0, 100].
    """

    def __init__(self, percentiles: tuple[float, float] = INTENSITY_PERCENTILES) -> None:
        self.percentiles = percentiles

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image as uint8.

        Raises:
            ImageFileError: the image has no finite value.
        """
        if image.dtype == torch.uint8:
            return image
        values = image.numpy()
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            raise ImageFileError("the image has no finite value (all NaN or infinite); export it again")
        low, high = (float(value) for value in np.percentile(finite, self.percentiles))
        scaled = (torch.nan_to_num(image, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
        return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


class ToRGB(Transform):
    """Convert a gray image to three equal channels; an image with three channels is returned unchanged."""

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image as (3, ...).

        Args:
            image: (1, ...) or (3, ...).

        Raises:
            ImageFileError: the image has another number of channels.
        """
        if image.shape[0] not in (1, 3):
            raise ImageFileError(f"the image has {image.shape[0]} channels; gray (1) and RGB (3) images can be scored")
        return image if image.shape[0] == 3 else image.repeat(3, *[1] * (image.ndim - 1))


class ScaleToBytesd(Eachd):
    """Dictionary version of `ScaleToBytes`."""

    def __init__(
        self,
        keys: KeysCollection,
        percentiles: tuple[float, float] = INTENSITY_PERCENTILES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ScaleToBytes(percentiles)


class ToRGBd(Eachd):
    """Dictionary version of `ToRGB`."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ToRGB()
