"""Frames of videos and pages of multi-page images: their number, display times and pixels."""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mrad_med.errors import ImageFileError
from mrad_med.io.file_types import is_image
from mrad_med.io.limits import MAX_PIXELS, check_pixels
from mrad_med.io.refusals import refusing
from mrad_med.io.videos import OverlayVideo, VideoReader, check_count, check_rate, identity_of, video_times

__all__ = [
    "Frame",
    "FrameReader",
    "OverlayVideo",
    "as_frames",
    "close_frames",
    "find_sequences",
    "list_frames",
    "read_frame",
    "thin_frames",
]

MAX_OPEN = 2  # files; one that is read with two values of max_pixels is opened twice
MAX_ANIMATED_PIXELS = 2_000_000_000  # 1000 frames of full HD; an animation is decoded to be listed

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names
_NUMBER = re.compile(r"\d+(?=\D*$)")  # the last number of a name
_DAMAGED = "the file is not a video or image, or is damaged ({kind}); copy or export it again"
_ROUNDING = 6e-4  # seconds; Matroska stores times in milliseconds


@dataclass(frozen=True)
class Frame:
    """One frame of a video, one page of a multi-page image, or one image of a sequence.

    Attributes:
        path: path of the file.
        index: number of the frame in the file, from 0, in display order.
        time: seconds since the first frame of the video or sequence; None where the file has no times, as in TIFF.
    """

    path: str
    index: int
    time: float | None


def list_frames(
    path: str | os.PathLike[str], *, frames_per_second: float | None = None, max_pixels: int = MAX_PIXELS
) -> list[Frame]:
    """Return the frames of a video, an animated GIF, WebP or PNG, or a multi-page TIFF, in display order.

    Times increase from frame to frame. The file type is detected from the first bytes. A video is decoded only where
    its packets do not state display times (interlaced video, some AVI files). For a damaged video the list may contain
    frames that `read_frame` refuses.

    Args:
        path: path of the file.
        frames_per_second: sampling rate; only the first frame at or after each multiple of
            1 / ``frames_per_second`` seconds is listed. None lists all frames. Pages without times are all listed.
        max_pixels: largest number of pixels of a frame; files with larger frames are refused.

    Raises:
        ValueError: ``frames_per_second`` is not positive.
        ImageFileError: the file is missing, damaged, too large, of an unknown type or without frames; its pages have
            more than 8 bits per value; or it is a video and PyAV is not installed.
    """
    if frames_per_second is not None:
        check_rate(frames_per_second)
    with refusing(_DAMAGED):
        times_of = _page_times if is_image(path) else video_times
        frames = [Frame(str(path), index, time) for index, time in enumerate(times_of(Path(path), max_pixels))]
    return frames if frames_per_second is None else thin_frames(frames, frames_per_second)


def find_sequences(paths: Iterable[Path]) -> list[list[Path]]:
    """Return groups of at least two images in a folder whose names differ only in the last number, sorted by it."""
    groups: dict[tuple[Path, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in paths:
        number = _NUMBER.search(path.stem)
        if number is not None:
            rest = f"{path.stem[: number.start()]}#{path.stem[number.end() :]}{path.suffix}"
            groups[path.parent, rest].append((int(number[0]), path))
    return [[path for _, path in sorted(group)] for group in groups.values() if len(group) > 1]


def as_frames(paths: Sequence[Path], *, rate: float, frames_per_second: float | None = None) -> list[Frame]:
    """Return single images as the frames of a video.

    Args:
        paths: image files in display order.
        rate: frame rate, in images per second; frames are evenly spaced in time.
        frames_per_second: sampling rate, see `list_frames`; None lists all frames.

    Raises:
        ValueError: a rate is not positive.
    """
    check_rate(rate, "sequence_rate")
    frames = [Frame(str(path), 0, number / rate) for number, path in enumerate(paths)]
    if frames_per_second is None:
        return frames
    return thin_frames(frames, frames_per_second)


def thin_frames(frames: list[Frame], frames_per_second: float) -> list[Frame]:
    """Return the first frame at or after each multiple of 1 / ``frames_per_second`` seconds.

    All frames are returned if any of them has no time.

    Raises:
        ValueError: ``frames_per_second`` is not positive.
    """
    check_rate(frames_per_second)
    if any(frame.time is None for frame in frames):
        return frames
    passed = [math.floor(((frame.time or 0.0) + _ROUNDING) * frames_per_second) for frame in frames]
    return [frame for frame, before, count in zip(frames, [-1, *passed], passed, strict=False) if count > before]


class FrameReader:
    """Read frames and keep their files open between calls.

    Frames read in display order are decoded once each. Reading an earlier frame decodes from the start again. The most
    recently read files stay open until `close`, or until the end of a ``with`` statement. A file is opened once for
    each ``max_pixels``. The reader can be used by several threads.

    A forked process opens its own files and closes the inherited ones, because these share a file position with the
    parent process. A pickled copy starts without open files.

    Args:
        max_open: largest number of files that are open at the same time.

    Raises:
        ValueError: ``max_open`` is not positive.
    """

    def __init__(self, *, max_open: int = MAX_OPEN) -> None:
        if max_open < 1:
            raise ValueError(f"max_open must be at least 1, got {max_open}")
        self._max_open = max_open
        self._by_process: dict[int, _OpenFiles] = {}

    def __enter__(self) -> FrameReader:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the constructor of a copy without open files."""
        return partial(FrameReader, max_open=self._max_open), ()

    def read(self, frame: Frame, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Return the pixels of a frame; see `read_frame`."""
        with refusing(_DAMAGED):
            files = self._files()
            with files.lock:
                return files.read(frame, max_pixels, self._max_open)

    def close(self) -> None:
        """Close all files; the next frame opens its file again."""
        files = self._files()
        with files.lock:
            files.close()

    def _files(self) -> _OpenFiles:
        """Return the open files of this process."""
        process = os.getpid()
        files = self._by_process.setdefault(process, _OpenFiles())
        for other in [known for known in list(self._by_process) if known != process]:
            self._by_process.pop(other, _OpenFiles()).close()  # without the lock; a thread of the parent may hold it
        return files


class _OpenFiles:
    """Open files of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._sources: dict[tuple[Any, ...], _PageReader | VideoReader] = {}  # sorted by last use

    def read(self, frame: Frame, max_pixels: int, max_open: int) -> NDArray[np.uint8]:
        path = Path(frame.path)
        identity = (path, identity_of(path), max_pixels)
        source = self._sources.pop(identity, None)
        if source is None:
            while len(self._sources) >= max_open:
                self._sources.pop(next(iter(self._sources))).close()
            source = (_PageReader if is_image(path) else VideoReader)(path, max_pixels)
        try:
            pixels = source.read(frame.index)
        except ImageFileError:
            self._sources[identity] = source
            raise
        except BaseException:
            source.close()  # its state is unknown
            raise
        self._sources[identity] = source
        return pixels

    def close(self) -> None:
        while self._sources:
            self._sources.popitem()[1].close()


_SHARED = FrameReader()  # global: transforms are built from configs and pickled to workers


def read_frame(frame: Frame, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the pixels of a frame: (H, W, 3) uint8 RGB, upright, with transparency composited over black.

    Pixels are not resampled. A frame of a video equals, bit by bit, the frame obtained by decoding the video from the
    start. The file stays open until `close_frames`; see `FrameReader`.

    Args:
        frame: one frame of `list_frames`.
        max_pixels: largest number of pixels of a frame; larger ones are refused.

    Raises:
        ImageFileError: the file is missing, has changed or is unusable (see `list_frames`), or the frame is damaged.
    """
    return _SHARED.read(frame, max_pixels=max_pixels)


def close_frames() -> None:
    """Close the files that `read_frame` keeps open in this process."""
    _SHARED.close()


class _PageReader:
    """An open image with one or several pages."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        self._image = Image.open(path, formats=_FORMATS)

    def read(self, index: int) -> NDArray[np.uint8]:
        if index < self._image.tell():  # Pillow cannot always seek back in a PNG
            self.close()
            self._image = Image.open(self._path, formats=_FORMATS)
        self._image.seek(index)
        _check_page(self._image, self._max_pixels)
        page = ImageOps.exif_transpose(self._image)
        if page.has_transparency_data:
            transparent = page.convert("RGBA")
            page = Image.alpha_composite(Image.new("RGBA", page.size, (0, 0, 0, 255)), transparent)
        return np.array(page.convert("RGB"))

    def close(self) -> None:
        self._image.close()


def _check_page(page: Image.Image, max_pixels: int) -> None:
    check_pixels(page.width, page.height, max_pixels)
    if page.mode[0] in "IF":
        raise ImageFileError(
            "the pages or frames have more than 8 bits per value; save each as a separate image, which keeps its depth"
        )


def _page_times(path: Path, max_pixels: int) -> list[float] | list[None]:
    """Return the display time of each page, in seconds after the first; None for each if the file has no times."""
    with Image.open(path, formats=_FORMATS) as image:
        _check_page(image, max_pixels)  # before more is read
        count, has_times = getattr(image, "n_frames", 1), image.format != "TIFF"
        check_count(count, path)
        if has_times and count * image.width * image.height > MAX_ANIMATED_PIXELS:
            raise ImageFileError(f"the animation has more than {MAX_ANIMATED_PIXELS} pixels; export it as a video")
        durations = []
        for index in range(count if count > 1 else 0):
            image.seek(index)
            _check_page(image, max_pixels)
            if has_times:
                image.load()  # Pillow knows durations of WebP only after loading
                durations.append(image.info.get("duration", 0) / 1000)
    if not durations or min(durations[:-1]) <= 0:
        return [None] * count
    return list(itertools.accumulate(durations[:-1], initial=0.0))
