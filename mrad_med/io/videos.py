"""Video files with PyAV: when their frames are shown, the frames, and a writer of videos of overlays."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.files import atomic_path
from mrad_med.io.limits import check_pixels

__all__ = ["OverlayVideo", "VideoReader", "check_count", "check_rate", "identity_of", "import_av", "video_times"]

MAX_FRAMES = 4_000_000  # 18 hours at 60 frames a second

# Playlists (HLS, concat, DASH) are no videos here: the files and addresses that such a text names would be opened.
_OPTIONS = {"format_whitelist": "mov,mp4,avi,matroska,webm,mpeg,mpegts,asf", "protocol_whitelist": ""}
_MOST_PIXELS = 2**31 - 1  # that FFmpeg takes for a limit
_PATIENCE = 60  # seconds for opening a file, and for each of its packets
_COMPARED = 8  # frames decoded to see whether packets tell when frames are shown
_ENCODERS = {"libx264": {"crf": "18"}, "mpeg4": {"qmin": "2", "qmax": "4"}}  # the first that PyAV was built with
_TICK = Fraction(1, 60000)  # seconds, of written videos; MPEG-4 has none below 1/65535
_BT709 = 1  # its number among color spaces, primaries and curves (ITU-T H.273); the same of the range of MPEG


def check_rate(rate: float, name: str = "frames_per_second") -> None:
    """Raise a ValueError for a rate of frames that is none."""
    if not 0 < rate < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {rate}")


def check_count(count: int, path: Path) -> None:
    """Raise an `ImageFileError` for more frames than bytes, which a tiny file may announce, or than can be listed."""
    if count > min(MAX_FRAMES, path.stat().st_size):
        raise ImageFileError(
            f"more frames than a file of its size can hold, or than {MAX_FRAMES}; export it again, or in parts"
        )


def identity_of(path: Path) -> tuple[int, int, int]:
    """Return what tells a file from another one that takes its name later."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def import_av() -> Any:
    """Return PyAV, silent.

    Raises:
        ImageFileError: it is missing.
    """
    av, is_installed = optional_import("av")
    if not is_installed:
        raise ImageFileError('videos need PyAV; pip install "mrad-med[video]"')
    av.logging.set_level(None)  # FFmpeg's messages quote the file; another library may have turned them on
    return av


class _File(io.FileIO):
    """A file in which impossible seeks fail silently: PyAV prints their errors, or raises them at the next file."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:
            return -1


@contextmanager
def _open_video(path: Path, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Yield an open container and its video stream."""
    av = import_av()
    # A file object, for a name may be taken for a protocol. Metadata is not ours to refuse, whatever its encoding.
    with (
        _File(path) as file,
        av.open(file, container_options=_OPTIONS, metadata_errors="ignore", timeout=_PATIENCE) as container,
    ):
        cover = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
        if stream is None:
            raise ImageFileError("the file holds no video, maybe sound alone; leave it out")
        context = stream.codec_context
        if context is None:
            raise ImageFileError("a video of a kind that PyAV does not decode; convert it to H.264 (.mp4)")
        check_pixels(context.width, context.height, max_pixels)
        context.options = {"max_pixels": str(min(max_pixels, _MOST_PIXELS))}  # frames may grow later
        context.thread_count = 1  # a damaged frame then looks the same each time, and a fork is harmless
        yield container, stream


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a video, and at the end the empty one that flushes the decoder."""
    return (packet for packet in container.demux(stream) if packet.size or packet.dts is None)


def _decode(packet: Any) -> list[Any]:
    """Return the frames that a packet completes; none of a damaged one, for the next may be whole."""
    try:
        frames: list[Any] = packet.decode()
    except import_av().FFmpegError:
        return []
    return frames


@lru_cache(maxsize=16)
def _packet_ticks(path: Path, _identity: tuple[int, int, int], max_pixels: int) -> tuple[NDArray[np.int64], float]:
    """Return when frames are shown, in rising ticks, as packets tell it without being decoded; and a tick's seconds.

    There are no ticks where packets do not tell it. Frames are then counted.
    """
    shown: list[Any] = []
    ticks: list[Any] = []
    with _open_video(path, max_pixels) as (container, stream):
        trusted = bool(stream.time_base) and stream.codec_context.name != "vp8"  # some of whose packets show nothing
        for packet in _packets(container, stream):
            for frame in _decode(packet) if len(shown) < _COMPARED else ():
                shown.append(frame.pts)
                trusted = trusted and not frame.interlaced_frame  # two packets may make one frame, anywhere in the file
            if packet.size and not packet.is_discard:  # what an edit list hides
                ticks.append(packet.pts)
                check_count(len(ticks), path)
        trusted = trusted and None not in ticks and len(set(ticks)) == len(ticks)
        if not trusted or not shown or sorted(ticks)[: len(shown)] != shown:
            return np.zeros(0, np.int64), 0.0
        return np.sort(np.asarray(ticks, np.int64)), float(stream.time_base)


def video_times(path: Path, max_pixels: int) -> list[float] | list[None]:
    """Return when each frame is shown, in rising seconds after the first; None of each where nothing tells it.

    Raises:
        ImageFileError: no video, too large, too many frames, none that can be decoded, or PyAV is missing.
        Exception: whatever PyAV raises on damaged files.
    """
    packet_ticks, tick = _packet_ticks(path, identity_of(path), max_pixels)
    if len(packet_ticks):
        times: list[float] = ((packet_ticks - packet_ticks[0]) * tick).tolist()
        return times
    with _open_video(path, max_pixels) as (container, stream):
        ticks = [frame.pts for packet in _packets(container, stream) for frame in _decode(packet)]
        rate, time_base = stream.average_rate, stream.time_base
    if not ticks:
        raise ImageFileError("no frame of the video can be decoded; copy or export it again")
    check_count(len(ticks), path)
    if time_base and None not in ticks and all(before < after for before, after in itertools.pairwise(ticks)):
        return [float((tick - ticks[0]) * time_base) for tick in ticks]
    return [float(number / rate) for number in range(len(ticks))] if rate else [None] * len(ticks)


class VideoReader:
    """An open video, decoded from its start on.

    A frame is found by its tick where packets tell ticks, so that frames which cannot be decoded do not shift the
    others, and elsewhere by its number; either is called its place. Nothing is sought: of some videos a frame decoded
    from the nearest key frame differs from the same frame decoded from the start.

    Args:
        path: of the file.
        max_pixels: larger frames are refused.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        self._ticks, _ = _packet_ticks(path, identity_of(path), max_pixels)
        self._stack = ExitStack()
        self._frame: Any = None
        self._place = self._before = -math.inf  # of this frame, and of the one before
        self._rest: Iterator[tuple[float, Any]] = iter(())
        self._rewind()

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a frame by its number from 0: (H, W, 3), RGB, upright.

        Raises:
            ImageFileError: the frame is damaged, or there is none of this number.
        """
        if index < 0 or 0 < len(self._ticks) <= index:
            raise ImageFileError(f"there is no frame {index}; list the frames again")
        place = int(self._ticks[index]) if len(self._ticks) else index
        if place <= self._before:
            self._rewind()
        while self._place < place:
            self._before = self._place
            self._place, self._frame = next(self._rest, (math.inf, None))
        if self._place > place or self._frame.is_corrupt:
            raise ImageFileError(f"frame {index} of the video is damaged or missing; copy or export the video again")
        return _upright(self._frame)

    def close(self) -> None:
        """Close the file."""
        self._frame, self._rest = None, iter(())
        self._stack.close()

    def _rewind(self) -> None:
        self.close()
        self._place = self._before = -math.inf
        self._rest = self._decoded(*self._stack.enter_context(_open_video(self._path, self._max_pixels)))

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
        frames = (frame for packet in _packets(container, stream) for frame in _decode(packet))
        for number, frame in enumerate(frames):
            place = frame.pts if len(self._ticks) else number
            if place is not None:
                yield place, frame


def _upright(frame: Any) -> NDArray[np.uint8]:
    """Return a decoded frame as RGB, turned and mirrored as its display matrix tells, to the nearest right angle."""
    picture = frame.to_ndarray(format="rgb24", threads=1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:  # x' = a x + c y, y' = b x + d y
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
        if abs(b) + abs(c) > abs(a) + abs(d):
            a, d, picture = c, b, picture.swapaxes(0, 1)
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.array(picture, np.uint8)


class OverlayVideo:
    """Write pictures as a video, H.264 or, where PyAV cannot encode that, MPEG-4: whole or not at all.

    To be used in a ``with`` statement. Odd sizes are padded to even ones by repeating the edge. Nothing but the
    pictures and their times goes into the file.

    Args:
        path: the file to write, ``.mp4``.
        frames_per_second: how pictures without a time follow each other, and how long the last one is shown.

    Raises:
        ValueError: another suffix, a rate that is not positive, or no picture was written when the block ends.
        ImageFileError: PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str], *, frames_per_second: float) -> None:
        if Path(path).suffix.lower() != ".mp4":
            raise ValueError(f"videos are written as .mp4, not as {Path(path).suffix!r}")
        check_rate(frames_per_second)
        self._av, self._path = import_av(), path
        self._step = 1 / frames_per_second
        self._container: Any = None  # while the file is open
        self._stream: Any = None  # from the first picture on
        self._shape: tuple[int, ...] = ()
        self._time, self._tick = -self._step, -1  # of the last picture

    def __enter__(self) -> OverlayVideo:
        """Begin the file, under a temporary name."""
        self._scope = self._opened()
        self._scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Give the file its name, or delete it if there was an error."""
        self._scope.__exit__(*error)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with (
            atomic_path(self._path) as partial,
            partial.open("wb") as file,
            self._av.open(file, "w", format="mp4") as container,
        ):
            self._container = container
            try:
                yield
                if self._stream is None:
                    raise ValueError("no picture was written; a video needs one at least")
                self._mux(None)
            finally:
                self._container = self._stream = None

    def write(self, picture: NDArray[np.uint8], *, time: float | None = None) -> None:
        """Add a picture.

        Args:
            picture: (H, W, 3) uint8, RGB; all have one size.
            time: seconds since the start of the video, later than that of the picture before; None for a step after it.

        Raises:
            ValueError: another size or kind of picture, or a time that is not later.
            RuntimeError: outside of the ``with`` statement.
        """
        if self._container is None:
            raise RuntimeError("pictures are written inside of a with statement: with OverlayVideo(...) as video")
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"a picture is (H, W, 3) of uint8, got {picture.shape} of {picture.dtype}")
        if self._shape not in ((), picture.shape):
            raise ValueError(f"a picture of {picture.shape} in a video of {self._shape}; all must have one size")
        time = self._time + self._step if time is None else time
        tick = round(time / _TICK) if math.isfinite(time) else -1
        if tick <= self._tick:
            raise ValueError(f"a picture at {time} s, the {self._tick + 1}th tick; times start at 0 or later and rise")
        self._shape, self._time, self._tick = picture.shape, time, tick
        even = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        # Players guess an untold color space from a video's size, and tint what was meant otherwise.
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = tick, _TICK
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        """Encode a frame; None ends the video."""
        if self._stream is None:
            name = next(name for name in _ENCODERS if name in self._av.codecs_available)
            rate = Fraction(1 / self._step).limit_denominator(1001)
            size = {"width": frame.width, "height": frame.height}
            self._stream = self._container.add_stream(name, rate, options=_ENCODERS[name], time_base=_TICK, **size)
            context = self._stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = context.color_range = _BT709
        for packet in self._stream.encode(frame):
            packet.duration = round(self._step / _TICK)  # that of the last one counts
            self._container.mux(packet)
