"""The answer for one case, and what is recorded of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from mrad_med.io.frames import Frame
from mrad_med.io.image import ImageSource
from mrad_med.results.overlays import most_suspicious_slice
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import AnomalyKeys

__all__ = ["CaseResult"]


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

    def overlay_input(self, view: ImageView | None = None) -> tuple[NDArray[np.uint8], NDArray[np.float32], str]:
        """Return picture (H, W, 3), map (H, W) and a note; of a volume, of its most suspicious slice.

        Args:
            view: how images are seen; `ImageView` with its defaults if None.
        """
        view = view or ImageView()
        picture = view.show(self.source)
        if self.affine is None:
            return picture, self.anomaly_map, ""
        upright = view.upright(self.anomaly_map, self.affine)
        index = most_suspicious_slice(upright)
        return picture[:, :, index], upright[..., index], f", slice {index + 1} of {upright.shape[-1]}"
