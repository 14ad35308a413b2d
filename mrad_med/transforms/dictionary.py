"""One transform for every key of a dictionary: what MONAI's ``Xd`` of an ``X`` is made of."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import InvertibleTransform, MapTransform

__all__ = ["Eachd", "InvertibleEachd"]


class Eachd(MapTransform):
    """Apply one array transform to every key."""

    transform: Any

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the values of the keys transformed."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result


class InvertibleEachd(Eachd, InvertibleTransform):
    """The same for a transform that can be undone."""

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the transform of the keys undone."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform.inverse(result[key])
        return result
