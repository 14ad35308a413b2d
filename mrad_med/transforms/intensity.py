"""Transforms of intensities: windows, scaling to bytes, gray and color images to RGB."""

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

# Center and width in Hounsfield units, as Radiopaedia's article "Windowing (CT)" has them unless said otherwise. Where
# it gives a range, the middle.
WINDOWS: dict[str, tuple[float, float]] = {
    "brain": (40, 80),
    "subdural": (75, 215),  # of centers 50 to 100 and widths 130 to 300
    "stroke": (40, 40),  # its wider choice; the narrow one, 32 and 8, leaves little but noise
    "bone": (600, 2800),  # of the temporal bone, its widest
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "abdomen": (40, 400),  # there 50; scanners and atlases are set to 40 as often
    "liver": (30, 150),
}

_MODES = ("auto", "stored", "percentile")
_CHUNK = 1 << 22  # values windowed at a time, so that a volume is never held in double precision


INTENSITY_PERCENTILES = (0.5, 99.5)  # of images deeper than 8 bits: the range that becomes black to white


def apply_window(values: NDArray[Any], center: float, width: float, *, function: str = "LINEAR") -> NDArray[np.uint8]:
    """Return values as bytes, from black below a window to white above it; NaN is black.

    Args:
        values: of any shape, in the units of the window.
        center: of the window.
        width: of the window, at least 1 for ``"LINEAR"``, above 0 for the others.
        function: ``"LINEAR"`` as nearly all images mean it, with the half and the one that DICOM takes off;
            ``"LINEAR_EXACT"`` without; ``"SIGMOID"``.

    Raises:
        ValueError: the width is too small or not finite, or there is no such function.

    Reference:
        DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.
    """
    least = 1.0 if function == "LINEAR" else np.finfo(np.float64).tiny
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"function must be LINEAR, LINEAR_EXACT or SIGMOID, got {function!r}")
    if not (np.isfinite(center) and least <= width < np.inf):
        raise ValueError(f"a window has a finite center and a width of 1 or more, got {center:g} and {width:g}")
    flat = values.reshape(-1)
    shades = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        share = _shares(np.nan_to_num(part, nan=-np.inf, posinf=np.inf, neginf=-np.inf), center, width, function)
        shades[start : start + _CHUNK] = np.round(share * 255)
    return shades.reshape(values.shape)


def _shares(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64]:
    """Return the brightness in [0, 1]."""
    shares: NDArray[np.float64]
    if function == "SIGMOID":
        with np.errstate(
            over="ignore"
        ):  # far below the window the exponential is infinite and the share 0, as it should
            return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    shares = ((values - center) / width + 0.5).clip(0, 1)
    return shares


def apply_lookup_table(values: NDArray[Any], first: float, shades: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the entries of a lookup table: its first below ``first``, its last beyond its end; NaN is as below.

    Reference:
        DICOM PS3.3, C.11.2.1.1.
    """
    places = np.nan_to_num(values.astype(np.float64) - first, nan=0.0).clip(0, len(shades) - 1)
    looked_up: NDArray[np.uint8] = shades[places.astype(np.int64)]
    return looked_up


class ApplyWindow(Transform):
    """Bring an image or volume to bytes through a window.

    Args:
        window: one of

            - ``"auto"``: the window stored in a DICOM image of a modality whose windows mean something (CT, and
              radiographs of any kind), else as ``"percentile"``;
            - ``"stored"``: the stored lookup table or first stored window, whatever the modality;
            - ``"percentile"``: as `ScaleToBytes` does;
            - the name of one of `WINDOWS`, for CT in Hounsfield units;
            - center and width, in the image's units;
            - three of these, which make the red, green and blue of one gray image.
        percentiles: for ``"percentile"``.

    Raises:
        ValueError: there is no such window.
    """

    def __init__(
        self, window: Window | Sequence[Window] = "auto", percentiles: tuple[float, float] = INTENSITY_PERCENTILES
    ) -> None:
        is_several = not isinstance(window, str) and len(window) == 3
        self.windows = [_check(item) for item in (window if is_several else [window])]
        self._scale = ScaleToBytes(percentiles)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return uint8 (C, ...) of an image (C, ...), or (3, ...) of (1, ...) where there are three windows.

        Raises:
            ImageFileError: there is no stored window, or no gray values that a window could be applied to.
        """
        if len(self.windows) > 1 and len(image) != 1:
            raise ImageFileError(f"three windows need a gray image, got {len(image)} channels; use window='auto'")
        shades = [self._apply(image, window) for window in self.windows]
        result = MetaTensor(shades[0] if len(shades) == 1 else torch.cat(shades)).copy_meta_from(image)
        # The stored windows are of the values before: a second time they would be wrong.
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
    """Return a window by name or as center and width."""
    if isinstance(window, str):
        if window in WINDOWS or window in _MODES:
            return window
        names = [*_MODES, *WINDOWS]
        close = difflib.get_close_matches(window.lower(), names, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no window {window!r}: there are {', '.join(names)}, or center and width{meant}")
    if len(window) != 2:
        raise ValueError(f"a window is a name or center and width, and three make colors; got {len(window)} numbers")
    center, width = (float(value) for value in window)
    apply_window(np.zeros(1), center, width)  # refuses what is no window
    return center, width


def _apply_stored(values: NDArray[Any], meta: Mapping[Hashable, Any]) -> NDArray[np.uint8]:
    """Return bytes through the lookup table of an image, or else its first window."""
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
    """Bring intensities to uint8: 8-bit images as they are, deeper ones from black to white between two percentiles.

    The percentiles are taken over the whole image or volume. A constant deep image becomes black.
    """

    def __init__(self, percentiles: tuple[float, float] = INTENSITY_PERCENTILES) -> None:
        self.percentiles = percentiles

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the scaled image.

        Raises:
            ImageFileError: no value is finite.
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
    """Repeat a gray image in three channels; three channels stay."""

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return (3, ...).

        Raises:
            ImageFileError: another number of channels.
        """
        if image.shape[0] not in (1, 3):
            raise ImageFileError(f"{image.shape[0]} channels; gray (1) and RGB (3) images can be scored")
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
