"""Videos of anomaly maps over the frames they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrad_med.frames import Frame, OverlayVideo, read_frame
from mrad_med.report import blend_overlay, fit_picture
from mrad_med.results import CaseResult

__all__ = ["VideoCollector"]

KEPT_SIDE = 256  # pixels; maps are smooth, and those of all frames wait in memory until the video's range is known
PAGES_PER_SECOND = 5.0  # of pictures with pages, which have no times


class VideoCollector:
    """Collect the maps of the frames of one video, then draw them over the frames under one scale of colors.

    The frames keep their times. Colors span the range of all maps, for MRAD's probabilities may span no more than 0.01.
    """

    def __init__(self) -> None:
        self.study = ""
        self._maps: list[tuple[Frame, NDArray[np.float32]]] = []
        self._range = (np.inf, -np.inf)

    def add(self, result: CaseResult) -> None:
        """Add the result of a frame; all must be of one video, in order.

        Raises:
            TypeError: the result is of no frame.
        """
        if not isinstance(result.source, Frame):
            raise TypeError("a video is made of frames")
        self.study = result.study
        low, high = self._range
        self._range = (min(low, float(result.anomaly_map.min())), max(high, float(result.anomaly_map.max())))
        self._maps.append((result.source, fit_picture(result.anomaly_map, KEPT_SIDE)))

    def write(self, path: Path) -> None:
        """Write the video, whole or not at all.

        Raises:
            ImageFileError: a frame cannot be read again.
            OSError: the file cannot be written.
        """
        times = [frame.time for frame, _ in self._maps if frame.time is not None]
        steps = np.diff(times)
        rate = 1 / float(np.median(steps)) if len(steps) and np.median(steps) > 0 else PAGES_PER_SECOND
        start = times[0] if times else 0.0
        with OverlayVideo(path, frames_per_second=rate) as video:
            for number, (frame, small) in enumerate(self._maps):
                picture = fit_picture(read_frame(frame))
                size = (picture.shape[1], picture.shape[0])
                anomaly_map = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))
                time = number / rate if frame.time is None else frame.time - start
                video.write(blend_overlay(picture, anomaly_map, low=self._range[0], high=self._range[1]), time=time)
