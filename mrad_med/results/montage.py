"""One picture of a volume: its most suspicious slices side by side, under one scale of colors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mrad_med.results.overlays import CLEAREST, CONTOUR_FRACTION, DENSEST

__all__ = ["draw_montage"]

_PANEL = 2.6  # inches


def draw_montage(
    picture: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    scores: NDArray[np.floating[Any]],
    *,
    count: int = 9,
    title: str = "",
) -> Figure:
    """Return a figure of the slices with the highest scores, the highest first, each under its anomaly map.

    As in `mrad_med.report.draw_overlay`, colors span the map's own range, here of the whole volume, and the color bar
    tells the real values. The white contours enclose the highest 5 % of the volume's pixels, so slices can be compared.

    Args:
        picture: (H, W, D, 3) uint8, upright.
        anomaly_map: (H, W, D) float32, upright like the picture.
        scores: (D,) of the slices; of equal ones the lower slice comes first.
        count: number of slices to show; all of them if there are fewer.
        title: above the panels.

    Raises:
        ValueError: the sizes do not fit, scores are not finite, or ``count`` is not positive.
    """
    scores = np.asarray(scores)
    _check(picture, anomaly_map, scores, count)
    chosen = np.argsort(-scores, kind="stable")[:count]
    columns = math.ceil(math.sqrt(len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    scale = _PANEL / max(anomaly_map.shape[:2])
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
