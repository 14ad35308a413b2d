"""Frames of videos, and pages of pictures with several: which there are, when they are shown, and what is on them."""

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
from mrad_med.io.file_types import is_picture
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

MAX_OPEN = 2  # files, or one twice: what reads ahead and what draws results are at different places of a video
MAX_ANIMATED_PIXELS = 2_000_000_000  # 1000 frames of full HD; to be listed, an animation must be decoded

_PICTURES = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names
_NUMBER = re.compile(r"\d+(?=\D*$)")  # the last one of a name
_DAMAGED = "no video or picture, or damaged ({kind}); is the copy complete? Export it again"
_ROUNDING = 6e-4  # seconds; Matroska tells times in milliseconds


@dataclass(frozen=True)
class Frame:
    """One picture of a video, one page of a picture with several, or one of a sequence of pictures.

    Attributes:
        path: of the file.
        index: number in the file from 0, in the order of display.
        time: seconds since the first frame of the video or sequence; None where the file tells no times, as TIFF does.
    """

    path: str
    index: int
    time: float | None


def list_frames(
    path: str | os.PathLike[str], *, frames_per_second: float | None = None, max_pixels: int = MAX_PIXELS
) -> list[Frame]:
    """Return the frames of a video, an animated GIF, WebP or PNG, or a TIFF with pages, in the order of display.

    Times rise from frame to frame. What a file is, its first bytes tell. A video is decoded only where its packets do
    not tell when its frames are shown (interlaced video, some AVI files). Of a damaged one, frames may be listed that
    `read_frame` then refuses.

    Args:
        path: of the file.
        frames_per_second: list only the first frame at or after each multiple of 1 / ``frames_per_second`` seconds;
            None lists all. Pages without times are all listed.
        max_pixels: files with larger pictures are refused.

    Raises:
        ValueError: ``frames_per_second`` is not positive.
        ImageFileError: missing, damaged, of no known kind, without frames, too large, pages of more than 8 bits a
            value, or a video while PyAV is missing.
    """
    if frames_per_second is not None:
        check_rate(frames_per_second)
    with refusing(_DAMAGED):
        times_of = _page_times if is_picture(path) else video_times
        frames = [Frame(str(path), index, time) for index, time in enumerate(times_of(Path(path), max_pixels))]
    return frames if frames_per_second is None else thin_frames(frames, frames_per_second)


def find_sequences(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the pictures of a folder whose names differ only in their last number, two or more, in its order."""
    groups: dict[tuple[Path, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in paths:
        number = _NUMBER.search(path.stem)
        if number is not None:
            rest = f"{path.stem[: number.start()]}#{path.stem[number.end() :]}{path.suffix}"
            groups[path.parent, rest].append((int(number[0]), path))
    return [[path for _, path in sorted(group)] for group in groups.values() if len(group) > 1]


def as_frames(paths: Sequence[Path], *, rate: float, frames_per_second: float | None = None) -> list[Frame]:
    """Return pictures as the frames of a video.

    Args:
        paths: in the order of display.
        rate: pictures a second; they are evenly spaced in time.
        frames_per_second: list no more than that many of each second; None lists all.

    Raises:
        ValueError: a rate is not positive.
    """
    check_rate(rate, "sequence_rate")
    frames = [Frame(str(path), 0, number / rate) for number, path in enumerate(paths)]
    if frames_per_second is None:
        return frames
    return thin_frames(frames, frames_per_second)


def thin_frames(frames: list[Frame], frames_per_second: float) -> list[Frame]:
    """Return the first frame at or after each multiple of 1 / ``frames_per_second`` seconds; all that have no times.

    Raises:
        ValueError: ``frames_per_second`` is not positive.
    """
    check_rate(frames_per_second)
    if any(frame.time is None for frame in frames):
        return frames
    passed = [math.floor(((frame.time or 0.0) + _ROUNDING) * frames_per_second) for frame in frames]
    return [frame for frame, before, count in zip(frames, [-1, *passed], passed, strict=False) if count > before]


class FrameReader:
    """Read frames from files that stay open from one frame to the next.

    Frames that are asked for in order are decoded once each; asking for an earlier one decodes from the start again.
    The files that were read last stay open until `close`, or until the end of a ``with`` statement; a file is opened
    once for each ``max_pixels``. Threads may ask at once.

    A forked process opens files of its own, and lets go of those that it inherited: their handles share one position
    with those of its parent. A copy that is pickled begins without open files.

    Args:
        max_open: number of files that are open at most.

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
        """Return what a copy is made of: no open file."""
        return partial(FrameReader, max_open=self._max_open), ()

    def read(self, frame: Frame, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Return a frame's picture, see `read_frame`."""
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
        """Return the files of this process."""
        process = os.getpid()
        files = self._by_process.setdefault(process, _OpenFiles())
        for other in [known for known in list(self._by_process) if known != process]:
            self._by_process.pop(other, _OpenFiles()).close()  # without its lock, which a thread of the parent may hold
        return files


class _OpenFiles:
    """Open files of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._sources: dict[tuple[Any, ...], _PageReader | VideoReader] = {}  # the one that was read last is the last

    def read(self, frame: Frame, max_pixels: int, max_open: int) -> NDArray[np.uint8]:
        path = Path(frame.path)
        identity = (path, identity_of(path), max_pixels)
        source = self._sources.pop(identity, None)
        if source is None:
            while len(self._sources) >= max_open:
                self._sources.pop(next(iter(self._sources))).close()
            source = (_PageReader if is_picture(path) else VideoReader)(path, max_pixels)
        try:
            picture = source.read(frame.index)
        except ImageFileError:
            self._sources[identity] = source
            raise
        except BaseException:
            source.close()  # for its state is unknown
            raise
        self._sources[identity] = source
        return picture

    def close(self) -> None:
        while self._sources:
            self._sources.popitem()[1].close()


_SHARED = FrameReader()  # of transforms, which are made from configs and pickled to workers


def read_frame(frame: Frame, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return a frame's picture: (H, W, 3) uint8, RGB, upright, transparency over black, pixels as they are stored.

    Of a video it is, bit by bit, what decoding all from the start gives. The file stays open until `close_frames`, see
    `FrameReader`.

    Args:
        frame: one of `list_frames`.
        max_pixels: larger pictures are refused.

    Raises:
        ImageFileError: the file is missing, has changed or is unusable (see `list_frames`), or the frame is damaged.
    """
    return _SHARED.read(frame, max_pixels=max_pixels)


def close_frames() -> None:
    """Close what `read_frame` keeps open in this process."""
    _SHARED.close()


class _PageReader:
    """An open picture with several pages."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        self._picture = Image.open(path, formats=_PICTURES)

    def read(self, index: int) -> NDArray[np.uint8]:
        if index < self._picture.tell():  # which of PNG Pillow does not always find
            self.close()
            self._picture = Image.open(self._path, formats=_PICTURES)
        self._picture.seek(index)
        _check_page(self._picture, self._max_pixels)
        picture = ImageOps.exif_transpose(self._picture)
        if picture.has_transparency_data:
            transparent = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), transparent)
        return np.array(picture.convert("RGB"))

    def close(self) -> None:
        self._picture.close()


def _check_page(picture: Image.Image, max_pixels: int) -> None:
    check_pixels(picture.width, picture.height, max_pixels)
    if picture.mode[0] in "IF":
        raise ImageFileError(
            "pages or frames of more than 8 bits a value; score each as an image of its own, which keeps its depth"
        )


def _page_times(path: Path, max_pixels: int) -> list[float] | list[None]:
    """Return when pages are shown, in seconds after the first; None of each where the file does not tell it."""
    with Image.open(path, formats=_PICTURES) as picture:
        _check_page(picture, max_pixels)  # before more is read
        count, has_times = getattr(picture, "n_frames", 1), picture.format != "TIFF"
        check_count(count, path)
        if has_times and count * picture.width * picture.height > MAX_ANIMATED_PIXELS:
            raise ImageFileError(f"an animation of more than {MAX_ANIMATED_PIXELS} pixels in all; export it as a video")
        durations = []
        for index in range(count if count > 1 else 0):
            picture.seek(index)
            _check_page(picture, max_pixels)
            if has_times:
                picture.load()  # before that, WebP does not tell
                durations.append(picture.info.get("duration", 0) / 1000)
    if not durations or min(durations[:-1]) <= 0:
        return [None] * count
    return list(itertools.accumulate(durations[:-1], initial=0.0))
