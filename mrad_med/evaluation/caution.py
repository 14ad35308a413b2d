"""Warnings about numbers of few images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["images_of", "width_of_interval", "warn_of_few"]

_FEWEST = 30  # images
_FEWEST_OF_LABEL = 10  # images of each label that occurs
_WARNED = (("image", "auroc", "image AUROC"), ("image", "ap", "image AP"), ("pixel", "auroc", "pixel AUROC"))


def images_of(source: Mapping[str, Any], level: str = "image") -> int:
    """Return the number of images that metrics are computed from.

    Args:
        source: summary of a set or of a class.
        level: ``"image"``, ``"pixel"`` or ``"lesion"``. Images without a mask count at image level only.
    """
    count = int(source["images"]["normal"] + source["images"]["anomalous"])
    return count if level == "image" else count - int(source.get("unknown_masks", 0))


def warn_of_few(source: Mapping[str, Any], intervals: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return which images are too few, and the width of an interval that shows it; None if there are enough.

    Args:
        source: summary of a set or of a class.
        intervals: its intervals by level and metric; may be empty.
    """
    images, count = source["images"], images_of(source)
    few = [label for label in ("normal", "anomalous") if 0 < images[label] < _FEWEST_OF_LABEL]
    if count >= _FEWEST and not few:
        return None
    what = f"{count}" if count < _FEWEST else " and ".join(f"{images[label]} {label}" for label in few)
    for level, name, title in _WARNED:
        if text := width_of_interval(intervals.get(level, {}).get(name, {})):
            return f"**{what} images prove nothing**", f"The 95 % interval of the {title} is {text}."
    return f"**{what} images prove nothing**", "No 95 % interval is known."


def width_of_interval(interval: Mapping[str, Any]) -> str:
    """Return the width of an interval in words; empty if it is undefined.

    Args:
        interval: interval with ``low`` and ``high``, in [0, 1].
    """
    if "low" not in interval:
        return ""
    low, high = (100 * float(interval[end]) for end in ("low", "high"))
    if high == low:
        return f"the single point {low:.1f}, because so few images show no errors; other images can"
    return f"{high - low:.1f} percentage points wide, from {low:.1f} to {high:.1f}"
