"""Conversion of the output of an inferer to keys of the data, and to the format of MONAI Label and MONAI Deploy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import CommonKeys

from mrad_med.types import AnomalyKeys, check_threshold

__all__ = ["SplitOutputd", "ToPrediction", "ToPredictiond"]

FULL = 255  # byte of the anomaly value 1


class SplitOutputd(MapTransform):
    """Replace each of ``keys`` by the outputs of the inferer: its dictionary, or a single map as ``anomaly_map``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the outputs under their own keys."""
        result = dict(data)
        for key in self.key_iterator(result):
            output = result.pop(key)
            result |= output if isinstance(output, Mapping) else {AnomalyKeys.ANOMALY_MAP.value: output}
        return result


class ToPrediction(Transform):
    """Convert an anomaly map to uint8, because both apps and the formats JPEG and PNG store integers.

    Args:
        threshold: anomaly value in [0, 1]. Pixels at or above it become 1, others 0. None scales the map from [0, 1] to
            0 to 255.

    Raises:
        ValueError: the threshold is not in [0, 1].
    """

    CHANGES_NO_RESULT = ("threshold",)  # results are computed from the map

    def __init__(self, threshold: float | None = None) -> None:
        check_threshold(threshold)
        self.threshold = threshold

    def __call__(self, anomaly_map: MetaTensor) -> MetaTensor:
        """Return uint8 (1, X, Y, Z) for the map of a volume, and uint8 (W, H) for the map (1, W, H) of an image."""
        values = anomaly_map.as_tensor()
        prediction = torch.empty_like(values, dtype=torch.uint8)
        for part, whole in zip(prediction.unbind(1), values.unbind(1), strict=True):  # no float copy of the map
            part.copy_((whole * FULL).round() if self.threshold is None else whole >= self.threshold)
        image = prediction[0] if prediction.ndim == 3 else prediction  # MONAI Label writes a third axis as slices
        return MetaTensor(image).copy_meta_from(anomaly_map)


class ToPredictiond(MapTransform):
    """Dictionary version of `ToPrediction`. The maps stay as they are.

    Args:
        keys: key of the map.
        threshold: threshold of `ToPrediction`.
        name: key of the prediction.
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
