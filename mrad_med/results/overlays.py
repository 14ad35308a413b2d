"""Pictures a person can read: the image, its anomaly map in real units, and where the map is highest."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from mrad_med.files import atomic_path

__all__ = ["blend_overlay", "draw_overlay", "fit_picture", "most_suspicious_slice", "save_overlay"]

CONTOUR_FRACTION = 0.05  # share of the pixels inside the contour of the top region
MAX_SIDE = 1024  # pixels; larger pictures are drawn at this size
CLEAREST, DENSEST = 0.1, 0.7  # opacity of a map without a plain picture beside it, where it is lowest and highest
_PANEL = 4.6  # inches


def most_suspicious_slice(anomaly_map: NDArray[np.float32], *, fraction: float = 0.01) -> int:
    """Return the index of the slice of (H, W, D) whose highest pixels have the highest mean.

    Args:
        anomaly_map: of a volume.
        fraction: share of a slice's pixels that count.
    """
    flat = anomaly_map.reshape(-1, anomaly_map.shape[-1])
    count = max(1, int(fraction * len(flat)))
    return int(np.partition(flat, -count, axis=0)[-count:].mean(0).argmax())


def draw_overlay(picture: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, title: str = "") -> Figure:
    """Return a figure of two panels: the image, and the image under its anomaly map.

    Colors span the map's own range, for MRAD's probabilities may span no more than 0.01; the color bar tells the real
    values. The white contour encloses the highest 5 % of the pixels.

    Args:
        picture: (H, W, 3) uint8.
        anomaly_map: (H, W) float32, upright like the picture.
        title: above the panels.

    Raises:
        ValueError: the map's size is not the picture's.
    """
    if picture.shape[:2] != anomaly_map.shape:
        raise ValueError(f"a map of {anomaly_map.shape} does not lie on a picture of {picture.shape[:2]}")
    picture, anomaly_map = fit_picture(picture), fit_picture(anomaly_map)
    rows, columns = anomaly_map.shape
    scale = _PANEL / max(rows, columns)
    figure = Figure(figsize=(2 * columns * scale + 1.6, rows * scale + 0.9), layout="constrained")
    plain, mapped = figure.subplots(1, 2)
    plain.imshow(picture)
    plain.set_title("image", fontsize=9)
    mapped.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    heat = mapped.imshow(anomaly_map, cmap="inferno", alpha=0.55, vmin=low, vmax=max(high, low + 1e-7))
    opaque = ScalarMappable(norm=heat.norm, cmap=heat.cmap)
    figure.colorbar(opaque, ax=mapped, fraction=0.046, pad=0.02, label="anomaly probability")
    if high > low:
        level = float(np.quantile(anomaly_map, 1 - CONTOUR_FRACTION))
        mapped.contour(anomaly_map, levels=[level], colors="white", linewidths=1.2)
    mapped.set_title(f"anomaly map; contour: highest {CONTOUR_FRACTION:.0%} of the pixels", fontsize=9)
    for axes in (plain, mapped):
        axes.set_axis_off()
    # A name is text, not TeX: "$" in a file name would start a formula.
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return figure


def fit_picture(array: NDArray[Any], side: int = MAX_SIDE) -> NDArray[Any]:
    """Return a picture or map whose longer side is at most so many pixels; by default what is worth drawing."""
    rows, columns = array.shape[:2]
    factor = side / max(rows, columns)
    if factor >= 1:
        return array
    size = (max(2, round(columns * factor)), max(2, round(rows * factor)))  # contours need two rows
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))


def save_overlay(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in a script that no font has: it is drawn as boxes
        figure.savefig(partial, format="png", dpi=110)


def blend_overlay(
    picture: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, low: float, high: float
) -> NDArray[np.uint8]:
    """Return a picture under its anomaly map, uint8 (H, W, 3), at the picture's own size and without any text.

    The map is clear where it is ``low`` and dense where it is ``high``, so that the picture stays visible.

    Args:
        picture: (H, W, 3) uint8.
        anomaly_map: (H, W) float32, upright like the picture.
        low: the value of the lowest color.
        high: of the highest.
    """
    share = ((anomaly_map - low) / max(high - low, 1e-7)).clip(0, 1)[..., None]
    opacity = CLEAREST + (DENSEST - CLEAREST) * share
    colors = 255 * colormaps["inferno"](share[..., 0])[..., :3]
    grey = picture.mean(-1, keepdims=True)
    blended: NDArray[np.uint8] = np.round((1 - opacity) * grey + opacity * colors).astype(np.uint8)
    return blended
