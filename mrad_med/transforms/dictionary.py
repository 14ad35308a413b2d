"""Base classes of dictionary transforms: ``Xd`` applies the array transform ``X`` to every key."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import InvertibleTransform, MapTransform

__all__ = ["Eachd", "InvertibleEachd"]


class Eachd(MapTransform):
    """Apply an array transform to the value of every key."""

    transform: Any

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the values of the keys transformed."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result


class InvertibleEachd(Eachd, InvertibleTransform):
    """Apply an invertible array transform to the value of every key."""

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the dictionary with the values of the keys inverted."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform.inverse(result[key])
        return result
