"""Videos of anomaly maps over their frames."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mrad_med.io.dicom.frames import DicomFrame
from mrad_med.io.frames import Frame, FrameReader, OverlayVideo
from mrad_med.results.case_result import CaseResult
from mrad_med.results.overlays import blend_overlay, limit_side
from mrad_med.transforms.preprocessing import ImageView

__all__ = ["VideoCollector"]

KEPT_SIDE = 128  # pixels; maps are smooth, so a small copy is enough
PAGES_PER_SECOND = 5.0  # rate for files with several pages; pages have no times


class VideoCollector:
    """Collect the maps of one video's frames, then draw them over the frames with one color scale.

    The frames keep their times. Colors span the range of all maps, because values of MRAD maps may span only 0.01.
    Small maps are kept in a temporary file until this range is known.

    Args:
        folder: folder of the temporary file; the system's folder if None.
        view: how frames of DICOM files are shown (window); `ImageView()` if None.

    Attributes:
        name: name of the video; empty before the first frame.
    """

    def __init__(self, folder: Path | None = None, view: ImageView | None = None) -> None:
        self.name = ""
        self._view = view or ImageView()
        self._frames: list[tuple[Frame, tuple[int, int]]] = []
        self._maps = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the object
        self._range = (np.inf, -np.inf)

    def add(self, result: CaseResult, name: str) -> None:
        """Add the result of a frame.

        Args:
            result: result of the next frame, in the order of the video.
            name: name of the video, the same for all frames.

        Raises:
            TypeError: the source of the result is not a frame.
            OSError: the disk is full.
        """
        if not isinstance(result.source, Frame):
            raise TypeError("a video is made of frames, but the source of this result is not a frame")
        self.name = name
        low, high = self._range
        self._range = (min(low, float(result.anomaly_map.min())), max(high, float(result.anomaly_map.max())))
        small = limit_side(result.anomaly_map, KEPT_SIDE)
        self._frames.append((result.source, (small.shape[0], small.shape[1])))
        self._maps.write(small.astype(np.float32).tobytes())

    def write(self, path: Path) -> list[Path]:
        """Write the video completely or not at all, and return its path.

        All frames are resized to the size of the first one.

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
                pixels = self._view.show(frame) if isinstance(frame, DicomFrame) else reader.read(frame)
                image = Image.fromarray(limit_side(pixels))
                size = size or image.size
                shown = np.asarray(image if image.size == size else image.resize(size))
                anomaly_map = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))
                time = number / rate if frame.time is None else frame.time - start
                video.write(blend_overlay(shown, anomaly_map, low=self._range[0], high=self._range[1]), time=time)
        return [path]
