"""Videos of anomaly maps over the frames they belong to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mrad_med.io.frames import Frame, FrameReader, OverlayVideo
from mrad_med.results.case_result import CaseResult
from mrad_med.results.overlays import blend_overlay, fit_picture

__all__ = ["VideoCollector"]

KEPT_SIDE = 128  # pixels; maps are smooth
PAGES_PER_SECOND = 5.0  # of pictures with pages, which have no times


class VideoCollector:
    """Collect the maps of the frames of one video, then draw them over the frames under one scale of colors.

    The frames keep their times. Colors span the range of all maps, for MRAD's probabilities may span no more than 0.01;
    until it is known, small maps wait in a temporary file.

    Args:
        folder: folder of the temporary file; by default that of the system.

    Attributes:
        name: of the video; empty before the first frame.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.name = ""
        self._frames: list[tuple[Frame, tuple[int, int]]] = []
        self._maps = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the object
        self._range = (np.inf, -np.inf)

    def add(self, result: CaseResult, name: str) -> None:
        """Add the result of a frame; all must be of one video, in order.

        Raises:
            TypeError: the result is of no frame.
            OSError: the disk is full.
        """
        if not isinstance(result.source, Frame):
            raise TypeError("a video is made of frames")
        self.name = name
        low, high = self._range
        self._range = (min(low, float(result.anomaly_map.min())), max(high, float(result.anomaly_map.max())))
        small = fit_picture(result.anomaly_map, KEPT_SIDE)
        self._frames.append((result.source, (small.shape[0], small.shape[1])))
        self._maps.write(small.astype(np.float32).tobytes())

    def write(self, path: Path) -> list[Path]:
        """Write the video, whole or not at all, and return its path.

        Frames of other sizes than the first are brought to that of the first.

        Raises:
            ImageFileError: a frame cannot be read again.
            OSError: the file cannot be written.
        """
        times = [frame.time for frame, _ in self._frames if frame.time is not None]
        steps = np.diff(times)
        rate = 1 / float(np.median(steps)) if len(steps) and np.median(steps) > 0 else PAGES_PER_SECOND
        start, size = times[0] if times else 0.0, None
        self._maps.seek(0)
        with OverlayVideo(path, frames_per_second=rate) as video, FrameReader() as reader:
            for number, (frame, (rows, columns)) in enumerate(self._frames):
                small = np.frombuffer(self._maps.read(4 * rows * columns), np.float32).reshape(rows, columns)
                picture = Image.fromarray(fit_picture(reader.read(frame)))
                size = size or picture.size
                shown = np.asarray(picture if picture.size == size else picture.resize(size))
                anomaly_map = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))
                time = number / rate if frame.time is None else frame.time - start
                video.write(blend_overlay(shown, anomaly_map, low=self._range[0], high=self._range[1]), time=time)
        return [path]
