"""Overlays of an image, and montages of the slices of a volume with the highest scores."""

from __future__ import annotations

import math
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

__all__ = ["blend_overlay", "draw_montage", "draw_overlay", "limit_side", "save_overlay"]

CONTOUR_FRACTION = 0.05  # fraction of the pixels inside the contour
MAX_SIDE = 1024  # pixels; larger images are drawn at this size
CLEAREST, DENSEST = 0.1, 0.7  # opacity of the lowest and highest map value if no plain image is beside
_PANEL = 4.6  # inches
_MONTAGE_PANEL = 2.6  # inches


def draw_overlay(image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, title: str = "") -> Figure:
    """Return a figure of two panels: the image, and the image under its anomaly map.

    Colors span the range of the map, because values of MRAD maps may span only 0.01. The color bar shows the real
    values. The white contour encloses the highest 5 % of the pixels.

    Args:
        image: (H, W, 3) uint8 pixels, upright.
        anomaly_map: (H, W) float32 map, upright like the image.
        title: text above the panels.

    Raises:
        ValueError: map and image differ in size.
    """
    if image.shape[:2] != anomaly_map.shape:
        raise ValueError(f"a map of size {anomaly_map.shape} does not fit an image of size {image.shape[:2]}")
    image, anomaly_map = limit_side(image), limit_side(anomaly_map)
    rows, columns = anomaly_map.shape
    scale = _PANEL / max(rows, columns)
    figure = Figure(figsize=(2 * columns * scale + 1.6, rows * scale + 0.9), layout="constrained")
    plain, mapped = figure.subplots(1, 2)
    plain.imshow(image)
    plain.set_title("image", fontsize=9)
    mapped.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    heat = mapped.imshow(anomaly_map, cmap="inferno", alpha=0.55, vmin=low, vmax=max(high, low + 1e-7))
    opaque = ScalarMappable(norm=heat.norm, cmap=heat.cmap)
    figure.colorbar(opaque, ax=mapped, fraction=0.046, pad=0.02, label="anomaly value")
    if high > low:
        level = float(np.quantile(anomaly_map, 1 - CONTOUR_FRACTION))
        mapped.contour(anomaly_map, levels=[level], colors="white", linewidths=1.2)
    mapped.set_title(f"anomaly map; contour: highest {CONTOUR_FRACTION:.0%} of the pixels", fontsize=9)
    for axes in (plain, mapped):
        axes.set_axis_off()
    # Matplotlib would read "$" in a file name as the start of a formula.
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    return figure


def limit_side(array: NDArray[Any], side: int = MAX_SIDE) -> NDArray[Any]:
    """Return an image or map, reduced if its longer side is above a limit.

    Args:
        array: (H, W) or (H, W, 3).
        side: largest length of the longer side, in pixels.
    """
    rows, columns = array.shape[:2]
    factor = side / max(rows, columns)
    if factor >= 1:
        return array
    size = (max(2, round(columns * factor)), max(2, round(rows * factor)))  # contours need two rows
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))


def save_overlay(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure as PNG, completely or not at all."""
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters that no font has are drawn as boxes
        figure.savefig(partial, format="png", dpi=110)


def blend_overlay(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, low: float, high: float
) -> NDArray[np.uint8]:
    """Return an image with its anomaly map drawn over it, uint8 (H, W, 3), without text.

    Opacity rises from ``low`` to ``high``, so the image stays visible where the map is low.

    Args:
        image: (H, W, 3) uint8 pixels, upright.
        anomaly_map: (H, W) float32 map, upright like the image.
        low: map value of the lowest color.
        high: map value of the highest color.
    """
    share = ((anomaly_map - low) / max(high - low, 1e-7)).clip(0, 1)[..., None]
    opacity = CLEAREST + (DENSEST - CLEAREST) * share
    colors = 255 * colormaps["inferno"](share[..., 0])[..., :3]
    gray = image.mean(-1, keepdims=True)
    blended: NDArray[np.uint8] = np.round((1 - opacity) * gray + opacity * colors).astype(np.uint8)
    return blended


def draw_montage(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    scores: NDArray[np.floating[Any]],
    *,
    count: int = 9,
    title: str = "",
    order: NDArray[np.integer[Any]] | None = None,
) -> Figure:
    """Return a figure of the slices with the highest scores, highest first, each under its anomaly map.

    Colors span the range of the whole volume, and the color bar shows the real values. The white contours enclose the
    highest 5 % of the volume's pixels. All slices share colors and contour level, so they can be compared.

    Args:
        image: (H, W, D, 3) uint8 pixels, upright.
        anomaly_map: (H, W, D) float32 map, upright like the image.
        scores: (D,) scores of the slices.
        count: number of slices to show; all slices if there are fewer.
        title: text above the panels.
        order: indices of slices in the order in which they are shown. By default the highest score is first, and of
            equal scores the lower index.

    Raises:
        ValueError: sizes differ, scores are not finite, or ``count`` is not positive.
    """
    scores = np.asarray(scores)
    _check(image, anomaly_map, scores, count)
    chosen = (np.argsort(-scores, kind="stable") if order is None else order)[:count]
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    scale = _MONTAGE_PANEL / max(anomaly_map.shape[:2])
    height, width = (side * scale for side in anomaly_map.shape[:2])
    figure = Figure(figsize=(columns * width + 1.4, rows * (height + 0.3) + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    limits = {"vmin": low, "vmax": max(high, low + 1e-7)}
    level = float(np.quantile(anomaly_map, 1 - CONTOUR_FRACTION))
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, index in zip(panels.flat, chosen, strict=False):  # the last row may have empty panels
        slice_map = anomaly_map[..., index]
        axes.imshow(image[:, :, index].mean(-1), cmap="gray", vmin=0, vmax=255)
        # No plain image is beside, so low values are nearly transparent.
        share = (slice_map - low) / (limits["vmax"] - low)
        heat = axes.imshow(slice_map, cmap="inferno", alpha=CLEAREST + (DENSEST - CLEAREST) * share, **limits)
        if min(slice_map.shape) > 1 and slice_map.min() < level < slice_map.max():
            axes.contour(slice_map, levels=[level], colors="white", linewidths=1.0)
        axes.set_title(f"slice {index + 1} of {len(scores)}, score {scores[index]:.4f}", fontsize=8)
    opaque = ScalarMappable(norm=heat.norm, cmap=heat.cmap)
    figure.colorbar(opaque, ax=panels, fraction=0.046, pad=0.02, label="anomaly value")
    # Matplotlib would read "$" in a file name as the start of a formula.
    note = f"contour: highest {CONTOUR_FRACTION:.0%} of the volume"
    figure.suptitle(f"{title}\n{note}".strip().replace("$", r"\$"), fontsize=10)
    return figure


def _check(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], scores: NDArray[np.floating[Any]], count: int
) -> None:
    if anomaly_map.ndim != 3 or image.shape != (*anomaly_map.shape, 3):
        raise ValueError(f"a map (H, W, D) of shape {anomaly_map.shape} does not fit an image of shape {image.shape}")
    if scores.shape != anomaly_map.shape[-1:] or not np.isfinite(scores).all():
        raise ValueError(
            f"expected one finite score for each of {anomaly_map.shape[-1]} slices, got shape {scores.shape} or a NaN"
        )
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
