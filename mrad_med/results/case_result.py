"""The result of one case, and the ranking of its slices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from mrad_med.io.frames import Frame
from mrad_med.io.image import ImageSource
from mrad_med.networks.maps import top_fraction_mean
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.transforms.spatial import SliceLayout
from mrad_med.types import AnomalyKeys

__all__ = ["CaseResult", "SliceRanking", "slice_means", "upright_image"]


class SliceRanking(NamedTuple):
    """The slices of a volume, ranked by score. All outputs and tables use this order.

    Attributes:
        scores: (D,) scores of the slices, in stored order; NaN for a slice with nothing to score.
        order: (D,) indices of the stored slices, highest score first. Of equal scores, the lower index is first. Slices
            with nothing to score (NaN) are last.
        layout: plane and axis of the slices.
    """

    scores: NDArray[np.float32]
    order: NDArray[np.intp]
    layout: SliceLayout

    @property
    def upright_scores(self) -> NDArray[np.float32]:
        """Scores of the slices, in the order of the upright volume."""
        return self.scores[::-1] if self.layout.is_flipped else self.scores

    @property
    def upright_order(self) -> NDArray[np.intp]:
        """``order`` as indices of slices of the upright volume."""
        return len(self.scores) - 1 - self.order if self.layout.is_flipped else self.order

    @property
    def scored(self) -> int:
        """Number of slices that have a score."""
        return int(np.isfinite(self.scores).sum())


def slice_means(anomaly_map: NDArray[np.float32], *, axis: int) -> NDArray[np.float32]:
    """Return a score for each slice from the anomaly map alone: the mean of its highest pixels.

    Args:
        anomaly_map: (X, Y, Z) anomaly map of a volume.
        axis: array axis of the slices.

    Returns:
        (D,) scores, see `top_fraction_mean`.
    """
    slices = (torch.from_numpy(np.array(item)) for item in np.moveaxis(anomaly_map, axis, 0))
    return np.array([top_fraction_mean(item[None]).item() for item in slices], np.float32)


def upright_image(stored: NDArray[np.uint8], affine: NDArray[np.float64] | None, view: ImageView) -> NDArray[np.uint8]:
    """Return the upright pixels of a case as people view them: (H, W, 3) of an image, (H, W, D, 3) of a volume.

    Args:
        stored: pixels in stored order, (W, H, 3) or (X, Y, Z, 3), see `ImageView.show_stored`.
        affine: (4, 4) voxel to world matrix (RAS, mm) of a volume, None for an image.
        view: how images are shown (window, plane).
    """
    if affine is None:
        return np.ascontiguousarray(stored.swapaxes(0, 1))
    channels: list[Any] = list(np.moveaxis(stored, -1, 0))
    return np.stack([view.upright(channel, affine) for channel in channels], axis=-1)


@dataclass(frozen=True)
class CaseResult:
    """The result of one case.

    Attributes:
        case_id: name of the case.
        source: image that was scored, in a form that `read_image` accepts.
        anomaly_score: score of an image, see `fuse_scores`; for a volume, the highest score of its slices.
        anomaly_map: float32 map on the grid of the source: (H, W) upright for an image, (X, Y, Z) as stored for a
            volume.
        affine: (4, 4) voxel to world matrix (RAS, mm) of a volume, None for an image.
        slice_scores: (D,) scores of a volume's slices, in stored order along ``slice_axis``. NaN for a slice with one
            value in all pixels: there is nothing to score, and its part of the map has the lowest value of the others.
        slice_axis: array axis of the slices in (X, Y, Z).
        study: study of the case, see `find_cases`; empty if unknown.
    """

    case_id: str
    source: ImageSource
    anomaly_score: float
    anomaly_map: NDArray[np.float32]
    affine: NDArray[np.float64] | None = None
    slice_scores: NDArray[np.float32] | None = None
    slice_axis: int = -1
    study: str = ""

    @classmethod
    def from_output(
        cls, case: Mapping[str, Any], output: Mapping[str, Any], view: ImageView | None = None
    ) -> CaseResult:
        """Return the result of one case from the output of an evaluator.

        Args:
            case: item of the datalist.
            output: output for this case, decollated and inverted to the grid of the source.
            view: how images are shown (window, plane); `ImageView()` if None.
        """
        inverted: MetaTensor = output[AnomalyKeys.ANOMALY_MAP]
        array = inverted.detach().cpu().numpy()[0].astype(np.float32)
        values = {
            "case_id": case[AnomalyKeys.CASE_ID],
            "source": case[AnomalyKeys.IMAGE],
            "anomaly_score": float(output[AnomalyKeys.ANOMALY_SCORE]),
            "study": case.get(AnomalyKeys.STUDY, ""),
        }
        if array.ndim == 2:
            return cls(**values, anomaly_map=np.ascontiguousarray(array.T))
        affine = inverted.affine.cpu().numpy()
        layout, scores = (view or ImageView()).layout(affine), output.get(AnomalyKeys.SLICE_SCORES)
        if scores is not None:
            scores = scores.detach().cpu().numpy()[:: -1 if layout.is_flipped else 1].astype(np.float32)
        return cls(**values, anomaly_map=array, affine=affine, slice_scores=scores, slice_axis=layout.axis)

    @property
    def kind(self) -> str:
        """``"volume"``, ``"frame"`` (of a video or of a file with several pages), or ``"image"``."""
        if self.affine is not None:
            return "volume"
        return "frame" if isinstance(self.source, Frame) else "image"

    @property
    def files(self) -> tuple[Path, ...]:
        """Files from which the source is read; empty for an image in memory."""
        if isinstance(self.source, (str, os.PathLike)):
            return (Path(self.source),)
        if isinstance(self.source, Frame):
            return (Path(self.source.path),)
        return tuple(Path(path) for path in self.source) if isinstance(self.source, (list, tuple)) else ()

    @property
    def peak(self) -> tuple[int, ...]:
        """Index of the highest value of the map: (row, column) for an image, (x, y, z) for a volume."""
        return tuple(int(i) for i in np.unravel_index(int(self.anomaly_map.argmax()), self.anomaly_map.shape))

    def map_to_mark(self, threshold: float) -> NDArray[np.float32]:
        """Return the anomaly map with values below a threshold in slices with nothing to score.

        Args:
            threshold: lowest anomaly value that is marked.
        """
        if self.slice_scores is None or not np.isnan(self.slice_scores).any():
            return self.anomaly_map
        slices = np.moveaxis(self.anomaly_map.copy(), self.slice_axis, 0)
        slices[np.isnan(self.slice_scores)] = np.nextafter(np.float32(threshold), np.float32(-np.inf))
        return np.moveaxis(slices, 0, self.slice_axis)

    def rank_slices(self, view: ImageView | None = None) -> SliceRanking:
        """Return the slices of a volume, ranked by ``slice_scores``.

        Without ``slice_scores``, slices are ranked by the mean of their highest pixels (`slice_means`).

        Args:
            view: how images are shown (window, plane); `ImageView()` if None.

        Raises:
            ValueError: the case is not a volume, the number of scores differs from the number of slices, or the plane
                of the view is not the plane that was scored.
        """
        if self.affine is None:
            raise ValueError("only the slices of a volume can be ranked; this result has no affine")
        layout, scores = (view or ImageView()).layout(self.affine), self.slice_scores
        if scores is None:
            scores = slice_means(self.anomaly_map, axis=layout.axis)
        elif layout.axis != self.slice_axis % 3:
            raise ValueError(
                f"slices were scored along axis {self.slice_axis % 3}, but the view shows axis {layout.axis}; "
                "show them in the plane in which they were scored"
            )
        scores = np.asarray(scores)
        if scores.shape != (self.anomaly_map.shape[layout.axis],):
            raise ValueError(
                f"expected one score for each of {self.anomaly_map.shape[layout.axis]} slices, got shape {scores.shape}"
            )
        return SliceRanking(scores, np.argsort(-scores, kind="stable"), layout)

    def overlay_input(
        self, view: ImageView | None = None, *, stored: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], str]:
        """Return the upright image (H, W, 3), its map (H, W) and a note for the title.

        For a volume they are those of the slice with the highest score, and the note states its number. For an image
        the note is empty.

        Args:
            view: how images are shown (window, plane); `ImageView()` if None.
            stored: pixels of the source from `ImageView.show_stored`; read from the source if None.

        Raises:
            ValueError: see `rank_slices`.
        """
        view = view or ImageView()
        ranking = None if self.affine is None else self.rank_slices(view)
        stored = view.show_stored(self.source) if stored is None else stored
        if self.affine is None or ranking is None:
            return upright_image(stored, None, view), self.anomaly_map, ""
        one = (slice(None),) * ranking.layout.axis + (slice(ranking.order[0], ranking.order[0] + 1),)
        image = upright_image(stored[one], self.affine, view)
        upright = view.upright(self.anomaly_map[one], self.affine)
        note = f", slice {ranking.upright_order[0] + 1} of {len(ranking.scores)}"
        return image[:, :, 0], upright[..., 0], note
