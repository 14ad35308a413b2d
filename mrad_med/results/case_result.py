"""The answer for one case, and what is recorded of a run."""

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

__all__ = ["CaseResult", "SliceRanking", "slice_means", "upright_picture"]


class SliceRanking(NamedTuple):
    """The slices of a volume, ranked by score: the one order that all outputs and tables follow.

    Attributes:
        scores: (D,) scores of the slices, in the order in which they are stored.
        order: (D,) indices of the stored slices, the highest score first; among equal scores the lower index first.
        layout: plane and axis of the slices.
    """

    scores: NDArray[np.float32]
    order: NDArray[np.intp]
    layout: SliceLayout

    @property
    def upright_scores(self) -> NDArray[np.float32]:
        """Scores of the slices, in the order in which upright pictures show them."""
        return self.scores[::-1] if self.layout.is_flipped else self.scores

    @property
    def upright_order(self) -> NDArray[np.intp]:
        """Indices in upright pictures of the slices of ``order``."""
        return len(self.scores) - 1 - self.order if self.layout.is_flipped else self.order


def slice_means(anomaly_map: NDArray[np.float32], *, axis: int) -> NDArray[np.float32]:
    """Return the mean of the highest pixels of each slice, the score of a slice that has no other.

    Args:
        anomaly_map: (X, Y, Z).
        axis: axis along which the slices follow each other.

    Returns:
        (D,), see `top_fraction_mean`.
    """
    slices = (torch.from_numpy(np.array(plane)) for plane in np.moveaxis(anomaly_map, axis, 0))
    return np.array([top_fraction_mean(plane[None]).item() for plane in slices], np.float32)


def upright_picture(
    stored: NDArray[np.uint8], affine: NDArray[np.float64] | None, view: ImageView
) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) of an image or (H, W, D, 3) of a volume, as people look at it.

    Args:
        stored: (W, H, 3) or (X, Y, Z, 3), see `ImageView.show_stored`.
        affine: (4, 4) voxel to world matrix (RAS, mm) of a volume, None for an image.
        view: how images are seen.
    """
    if affine is None:
        return np.ascontiguousarray(stored.swapaxes(0, 1))
    channels: list[Any] = list(np.moveaxis(stored, -1, 0))
    return np.stack([view.upright(channel, affine) for channel in channels], axis=-1)


@dataclass(frozen=True)
class CaseResult:
    """The answer for one case.

    Attributes:
        case_id: its name.
        source: what was scored, as `read_image` takes it.
        anomaly_score: the fused score; of a volume, the highest of its slices.
        anomaly_map: float32 on the source's own grid: (H, W) upright for an image, (X, Y, Z) as stored for a volume.
        affine: (4, 4) voxel to world matrix (RAS, mm) of a volume, None for an image.
        slice_scores: (D,) of a volume's slices, in the order in which they are stored along ``slice_axis``.
        slice_axis: of the volume (X, Y, Z), along which the slices follow each other.
        study: what the case belongs to, see `find_cases`; empty where nothing is known.
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
        """Return the result of one case.

        Args:
            case: of the datalist.
            output: of an evaluator, decollated and inverted.
            view: how images are seen; `ImageView` with its defaults if None.
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
        """``"volume"``, ``"frame"`` of a video or of a picture with several pages, or ``"image"``."""
        if self.affine is not None:
            return "volume"
        return "frame" if isinstance(self.source, Frame) else "image"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the source was read from; none for an image in memory."""
        if isinstance(self.source, (str, os.PathLike)):
            return (Path(self.source),)
        if isinstance(self.source, Frame):
            return (Path(self.source.path),)
        return tuple(Path(path) for path in self.source) if isinstance(self.source, (list, tuple)) else ()

    @property
    def peak(self) -> tuple[int, ...]:
        """Index of the map's highest value: (row, column) of an image, (x, y, z) of a volume."""
        return tuple(int(i) for i in np.unravel_index(int(self.anomaly_map.argmax()), self.anomaly_map.shape))

    def rank_slices(self, view: ImageView | None = None) -> SliceRanking:
        """Return the slices of a volume in the order of their ``slice_scores``.

        A result without such scores ranks by the mean of the highest pixels of each slice.

        Args:
            view: how images are seen; `ImageView` with its defaults if None.

        Raises:
            ValueError: the result is not of a volume, the scores do not fit the map, or the view cuts the volume
                along another axis than it was scored along.
        """
        if self.affine is None:
            raise ValueError("slices are ranked in volumes; an image has no affine")
        layout, scores = (view or ImageView()).layout(self.affine), self.slice_scores
        if scores is None:
            scores = slice_means(self.anomaly_map, axis=layout.axis)
        elif layout.axis != self.slice_axis % 3:
            raise ValueError(
                f"slices were scored along axis {self.slice_axis % 3} and are to be shown along axis {layout.axis}; "
                "show them in the plane in which they were scored"
            )
        scores = np.asarray(scores)
        if scores.shape != (self.anomaly_map.shape[layout.axis],):
            raise ValueError(f"{scores.shape} scores do not fit {self.anomaly_map.shape[layout.axis]} slices")
        return SliceRanking(scores, np.argsort(-scores, kind="stable"), layout)

    def overlay_input(
        self, view: ImageView | None = None, *, stored: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], str]:
        """Return picture (H, W, 3), map (H, W) and a note; of a volume, of its most suspicious slice.

        Args:
            view: how images are seen; `ImageView` with its defaults if None.
            stored: the source as `ImageView.show_stored` returns it; by default it is read.

        Raises:
            ValueError: see `rank_slices`.
        """
        view = view or ImageView()
        ranking = None if self.affine is None else self.rank_slices(view)
        stored = view.show_stored(self.source) if stored is None else stored
        if self.affine is None or ranking is None:
            return upright_picture(stored, None, view), self.anomaly_map, ""
        one = (slice(None),) * ranking.layout.axis + (slice(ranking.order[0], ranking.order[0] + 1),)
        picture = upright_picture(stored[one], self.affine, view)
        upright = view.upright(self.anomaly_map[one], self.affine)
        note = f", slice {ranking.upright_order[0] + 1} of {len(ranking.scores)}"
        return picture[:, :, 0], upright[..., 0], note
