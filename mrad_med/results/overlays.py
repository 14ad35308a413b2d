"""Overlays of one image, and of the most suspicious slices of a volume."""

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

__all__ = ["blend_overlay", "draw_montage", "draw_overlay", "fit_picture", "save_overlay"]

CONTOUR_FRACTION = 0.05  # share of the pixels inside the contour of the top region
MAX_SIDE = 1024  # pixels; larger pictures are drawn at this size
CLEAREST, DENSEST = 0.1, 0.7  # opacity of a map without a plain picture beside it, where it is lowest and highest
_PANEL = 4.6  # inches
_MONTAGE_PANEL = 2.6  # inches


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
    gray = picture.mean(-1, keepdims=True)
    blended: NDArray[np.uint8] = np.round((1 - opacity) * gray + opacity * colors).astype(np.uint8)
    return blended


def draw_montage(
    picture: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    scores: NDArray[np.floating[Any]],
    *,
    count: int = 9,
    title: str = "",
    order: NDArray[np.integer[Any]] | None = None,
) -> Figure:
    """Return a figure of the slices with the highest scores, the highest first, each under its anomaly map.

    As in `draw_overlay`, colors span the map's own range, here of the whole volume, and the color bar
    tells the real values. The white contours enclose the highest 5 % of the volume's pixels, so slices can be compared.

    Args:
        picture: (H, W, D, 3) uint8, upright.
        anomaly_map: (H, W, D) float32, upright like the picture.
        scores: (D,) of the slices; of equal ones the lower slice comes first.
        count: number of slices to show; all of them if there are fewer.
        title: above the panels.
        order: indices of slices, the first to be shown first; by default those of the scores.

    Raises:
        ValueError: the sizes do not fit, scores are not finite, or ``count`` is not positive.
    """
    scores = np.asarray(scores)
    _check(picture, anomaly_map, scores, count)
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
    for axes, index in zip(panels.flat, chosen, strict=False):  # the last row may have panels left
        plane = anomaly_map[..., index]
        axes.imshow(picture[:, :, index].mean(-1), cmap="gray", vmin=0, vmax=255)
        # There is no plain panel beside, so the map is clear where it is low.
        share = (plane - low) / (limits["vmax"] - low)
        heat = axes.imshow(plane, cmap="inferno", alpha=CLEAREST + (DENSEST - CLEAREST) * share, **limits)
        if min(plane.shape) > 1 and plane.min() < level < plane.max():
            axes.contour(plane, levels=[level], colors="white", linewidths=1.0)
        axes.set_title(f"slice {index + 1} of {len(scores)}, score {scores[index]:.4f}", fontsize=8)
    opaque = ScalarMappable(norm=heat.norm, cmap=heat.cmap)
    figure.colorbar(opaque, ax=panels, fraction=0.046, pad=0.02, label="anomaly probability")
    # A name is text, not TeX: "$" in a file name would start a formula.
    note = f"contour: highest {CONTOUR_FRACTION:.0%} of the volume"
    figure.suptitle(f"{title}\n{note}".strip().replace("$", r"\$"), fontsize=10)
    return figure


def _check(
    picture: NDArray[np.uint8], anomaly_map: NDArray[np.float32], scores: NDArray[np.floating[Any]], count: int
) -> None:
    if anomaly_map.ndim != 3 or picture.shape != (*anomaly_map.shape, 3):
        raise ValueError(f"a map (H, W, D) of {anomaly_map.shape} does not lie on a picture of {picture.shape}")
    if scores.shape != anomaly_map.shape[-1:] or not np.isfinite(scores).all():
        raise ValueError(f"{scores.shape} scores for {anomaly_map.shape[-1]} slices; one finite score each is needed")
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
