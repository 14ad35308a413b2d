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


def read_frame(frame: Frame, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return a frame's picture: (H, W, 3) uint8, RGB, upright, transparency over black, pixels as they are stored.

    Of a video it is, bit by bit, what decoding all from the start gives. The files that were read last stay open, so
    that asking for frames in order decodes each of them once; asking for an earlier one decodes from the start again.
    A file is opened once for each ``max_pixels``.
    Threads may ask at once, and processes be forked in between.

    Args:
        frame: one of `list_frames`.
        max_pixels: larger pictures are refused.

    Raises:
        ImageFileError: the file is missing, has changed or is unusable (see `list_frames`), or the frame is damaged.
    """
    with refusing(_DAMAGED), _LOCK:
        path = Path(frame.path)
        identity = (os.getpid(), path, identity_of(path), max_pixels)
        source = _sources.pop(identity, None)
        if source is None:
            while len(_sources) >= MAX_OPEN:
                _sources.pop(next(iter(_sources))).close()
            source = (_PageReader if is_picture(path) else VideoReader)(path, max_pixels)
        try:
            picture = source.read(frame.index)
        except ImageFileError:
            _sources[identity] = source
            raise
        except BaseException:
            source.close()  # for its state is unknown
            raise
        _sources[identity] = source  # as the last
        return picture


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


_LOCK = threading.Lock()
_sources: dict[tuple[Any, ...], _PageReader | VideoReader] = {}  # what was read last, the latest as the last

if hasattr(os, "register_at_fork"):  # no child may begin with a lock that nobody opens, or amid a frame
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def close_frames() -> None:
    """Close what `read_frame` keeps open."""
    with _LOCK:
        while _sources:
            _sources.popitem()[1].close()
