"""The output of an inferer under its own keys, and maps as MONAI Label and MONAI Deploy take them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import CommonKeys

from mrad_med.types import AnomalyKeys

__all__ = ["SplitOutputd", "ToPrediction", "ToPredictiond"]

FULL = 255  # of a map of ones in bytes


class SplitOutputd(MapTransform):
    """Put what an inferer gives, a dictionary or a map alone, under its own keys in the place of ``keys``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with what the values of the keys hold."""
        result = dict(data)
        for key in self.key_iterator(result):
            output = result.pop(key)
            result |= output if isinstance(output, Mapping) else {AnomalyKeys.ANOMALY_MAP.value: output}
        return result


class ToPrediction(Transform):
    """Turn an anomaly map into bytes, for both apps and the formats JPEG and PNG hold no fractions.

    Args:
        threshold: pixels become 1 from it on, and 0 below it; None keeps the map, in 255ths.

    Raises:
        ValueError: the threshold is not in [0, 1].
    """

    CHANGES_NO_RESULT = ("threshold",)  # results are made of the map

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], as anomaly maps are, got {threshold}")
        self.threshold = threshold

    def __call__(self, anomaly_map: MetaTensor) -> MetaTensor:
        """Return uint8 (1, X, Y, Z) of the map of a volume, or (W, H) of that of an image (1, W, H)."""
        values = anomaly_map.as_tensor()
        prediction = torch.empty_like(values, dtype=torch.uint8)
        for part, whole in zip(prediction.unbind(1), values.unbind(1), strict=True):  # no copy of all in float
            part.copy_((whole * FULL).round() if self.threshold is None else whole >= self.threshold)
        image = prediction[0] if prediction.ndim == 3 else prediction  # MONAI Label writes a third axis as slices
        return MetaTensor(image).copy_meta_from(anomaly_map)


class ToPredictiond(MapTransform):
    """Dictionary version of `ToPrediction`. The maps stay as they are.

    Args:
        keys: key of the map.
        threshold: the one of `ToPrediction`.
        name: key of what is made of it.
        allow_missing_keys: whether dictionaries without the keys are accepted.
    """

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float | None = None,
        name: str = CommonKeys.PRED.value,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = ToPrediction(threshold)
        self.name = name

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the prediction."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[self.name] = self.transform(result[key])
        return result
