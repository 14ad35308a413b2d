"""Video files with PyAV: display times, frames, and a writer of overlay videos."""

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

# Playlists (HLS, concat, DASH) are refused, because FFmpeg would open the files and addresses that they name.
_OPTIONS = {"format_whitelist": "mov,mp4,avi,matroska,webm,mpeg,mpegts,asf", "protocol_whitelist": ""}
_MOST_PIXELS = 2**31 - 1  # the highest limit that FFmpeg accepts
_TIMEOUT = 60  # seconds for opening a file, and for each of its packets
_COMPARED = 8  # frames decoded to check the display times that packets state
_ENCODERS = {"libx264": {"crf": "18"}, "mpeg4": {"qmin": "2", "qmax": "4"}}  # the first one that PyAV supports is used
_TICK = Fraction(1, 60000)  # seconds, of written videos; MPEG-4 supports no tick below 1/65535
_BT709 = 1  # code of BT.709 as color space, primaries and transfer curve (ITU-T H.273), and of the MPEG range


def check_rate(rate: float, name: str = "frames_per_second") -> None:
    """Raise a ValueError if a frame rate is not positive and finite."""
    if not 0 < rate < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {rate}")


def check_count(count: int, path: Path) -> None:
    """Raise an `ImageFileError` if a file announces more frames than it has bytes, or more than `MAX_FRAMES`."""
    if count > min(MAX_FRAMES, path.stat().st_size):
        raise ImageFileError(
            f"the file has more frames than its size allows, or more than {MAX_FRAMES}; export it again, or in parts"
        )


def identity_of(path: Path) -> tuple[int, int, int]:
    """Return inode, size in bytes and modification time in ns, which differ if a file is replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def import_av() -> Any:
    """Return PyAV with its log messages switched off.

    Raises:
        ImageFileError: PyAV is not installed.
    """
    av, is_installed = optional_import("av")
    if not is_installed:
        raise ImageFileError('videos need PyAV; pip install "mrad-med[video]"')
    av.logging.set_level(None)  # FFmpeg's messages quote the file; another library may have switched them on
    return av


class _File(io.FileIO):
    """A file whose failed seeks return -1; PyAV would print their errors or raise them at the next file."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:
            return -1


@contextmanager
def _open_video(path: Path, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Yield an open container and its video stream."""
    av = import_av()
    # A file object, because FFmpeg may parse a name as a protocol. Metadata in any encoding is ignored.
    with (
        _File(path) as file,
        av.open(file, container_options=_OPTIONS, metadata_errors="ignore", timeout=_TIMEOUT) as container,
    ):
        cover = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
        if stream is None:
            raise ImageFileError("the file holds no video, maybe only sound; leave it out")
        context = stream.codec_context
        if context is None:
            raise ImageFileError("PyAV cannot decode this video; convert it to H.264 (.mp4)")
        check_pixels(context.width, context.height, max_pixels)
        context.options = {"max_pixels": str(min(max_pixels, _MOST_PIXELS))}  # frames may grow later
        context.thread_count = 1  # makes damaged frames reproducible and forks safe
        yield container, stream


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a video, and finally the empty packet that flushes the decoder."""
    return (packet for packet in container.demux(stream) if packet.size or packet.dts is None)


def _decode(packet: Any) -> list[Any]:
    """Return the frames that a packet completes; an empty list if it is damaged, because later ones may be intact."""
    try:
        frames: list[Any] = packet.decode()
    except import_av().FFmpegError:
        return []
    return frames


@lru_cache(maxsize=16)
def _packet_ticks(path: Path, _identity: tuple[int, int, int], max_pixels: int) -> tuple[NDArray[np.int64], float]:
    """Return the display times that packets state, in increasing ticks, and the length of a tick in seconds.

    Packets are not decoded, except the first few for a check. The array is empty if packets do not state display times.
    """
    shown: list[Any] = []
    ticks: list[Any] = []
    with _open_video(path, max_pixels) as (container, stream):
        trusted = bool(stream.time_base) and stream.codec_context.name != "vp8"  # VP8 has packets without a frame
        for packet in _packets(container, stream):
            for frame in _decode(packet) if len(shown) < _COMPARED else ():
                shown.append(frame.pts)
                trusted = trusted and not frame.interlaced_frame  # two packets may form one frame, anywhere in the file
            if packet.size and not packet.is_discard:  # discarded by an edit list
                ticks.append(packet.pts)
                check_count(len(ticks), path)
        trusted = trusted and None not in ticks and len(set(ticks)) == len(ticks)
        if not trusted or not shown or sorted(ticks)[: len(shown)] != shown:
            return np.zeros(0, np.int64), 0.0
        return np.sort(np.asarray(ticks, np.int64)), float(stream.time_base)


def video_times(path: Path, max_pixels: int) -> list[float] | list[None]:
    """Return the display time of each frame, in seconds after the first; None for each if the file has no times.

    Raises:
        ImageFileError: the file is not a video, is too large, has too many frames or none that can be decoded, or PyAV
            is not installed.
        Exception: any error that PyAV raises on damaged files.
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
    """An open video, decoded sequentially from the start.

    A frame is identified by its tick where packets state ticks. Frames that cannot be decoded then do not shift the
    others. Otherwise it is identified by its number. Both are called position. The reader never seeks: in some videos a
    frame decoded from the nearest key frame differs from the same frame decoded from the start.

    Args:
        path: path of the file.
        max_pixels: largest number of pixels of a frame; larger ones are refused.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path, self._max_pixels = path, max_pixels
        self._ticks, _ = _packet_ticks(path, identity_of(path), max_pixels)
        self._stack = ExitStack()
        self._frame: Any = None
        self._position = self._before = -math.inf  # positions of this frame and of the one before
        self._rest: Iterator[tuple[float, Any]] = iter(())
        self._rewind()

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a frame by its number from 0: (H, W, 3) uint8, RGB, upright.

        Raises:
            ImageFileError: the frame is damaged or does not exist.
        """
        if index < 0 or 0 < len(self._ticks) <= index:
            raise ImageFileError(f"there is no frame {index}; list the frames again")
        position = int(self._ticks[index]) if len(self._ticks) else index
        if position <= self._before:
            self._rewind()
        while self._position < position:
            self._before = self._position
            self._position, self._frame = next(self._rest, (math.inf, None))
        if self._position > position or self._frame.is_corrupt:
            raise ImageFileError(f"frame {index} of the video is damaged or missing; copy or export the video again")
        return _upright(self._frame)

    def close(self) -> None:
        """Close the file."""
        self._frame, self._rest = None, iter(())
        self._stack.close()

    def _rewind(self) -> None:
        self.close()
        self._position = self._before = -math.inf
        self._rest = self._decoded(*self._stack.enter_context(_open_video(self._path, self._max_pixels)))

    def _decoded(self, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
        frames = (frame for packet in _packets(container, stream) for frame in _decode(packet))
        for number, frame in enumerate(frames):
            position = frame.pts if len(self._ticks) else number
            if position is not None:
                yield position, frame


def _upright(frame: Any) -> NDArray[np.uint8]:
    """Return a decoded frame as RGB, rotated and mirrored by its display matrix, to the nearest right angle."""
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:  # x' = a x + c y, y' = b x + d y
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
        if abs(b) + abs(c) > abs(a) + abs(d):
            a, d, pixels = c, b, pixels.swapaxes(0, 1)
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.array(pixels, np.uint8)


class OverlayVideo:
    """Write images as a video in H.264, or in MPEG-4 where PyAV cannot encode H.264.

    Use it in a ``with`` statement. The file is written completely or not at all. Odd sizes are padded to even ones by
    repeating the edge. The file contains only the images and their times.

    Args:
        path: file to write, ``.mp4``.
        frames_per_second: frame rate of images without a time; its inverse is the duration of the last image.

    Raises:
        ValueError: the suffix is not ``.mp4``, the rate is not positive, or the block ends without an image.
        ImageFileError: PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, frames_per_second: float) -> None:
        if Path(path).suffix.lower() != ".mp4":
            raise ValueError(f"videos are written as .mp4, got the suffix {Path(path).suffix!r}")
        check_rate(frames_per_second)
        self._av, self._path = import_av(), path
        self._step = 1 / frames_per_second
        self._container: Any = None  # while the file is open
        self._stream: Any = None  # None until the first image
        self._shape: tuple[int, ...] = ()
        self._time, self._tick = -self._step, -1  # of the last image

    def __enter__(self) -> OverlayVideo:
        """Open the file under a temporary name."""
        self._scope = self._opened()
        self._scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Rename the file to its final name, or delete it after an error."""
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
                    raise ValueError("no image was written; a video needs at least one")
                self._mux(None)
            finally:
                self._container = self._stream = None

    def write(self, image: NDArray[np.uint8], *, time: float | None = None) -> None:
        """Add an image.

        Args:
            image: (H, W, 3) uint8 RGB; all images have the same size.
            time: seconds since the start of the video, later than the previous image; None means one frame period
                after it.

        Raises:
            ValueError: the image has another size or type, or its time is not later.
            RuntimeError: the method is called outside the ``with`` statement.
        """
        if self._container is None:
            raise RuntimeError("images can only be written inside a with statement: with OverlayVideo(...) as video")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image must be (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        if self._shape not in ((), image.shape):
            raise ValueError(f"the image has shape {image.shape}, the video {self._shape}; all images need one size")
        time = self._time + self._step if time is None else time
        tick = round(time / _TICK) if math.isfinite(time) else -1
        if tick <= self._tick:
            raise ValueError(
                f"the time {time} s is invalid; times start at 0 or later and increase by {_TICK} s or more"
            )
        self._shape, self._time, self._tick = image.shape, time, tick
        even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        # Without a stated color space, players guess one from the size of the video and may change colors.
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = tick, _TICK
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        """Encode a frame; None flushes the encoder and ends the video."""
        if self._stream is None:
            name = next(name for name in _ENCODERS if name in self._av.codecs_available)
            rate = Fraction(1 / self._step).limit_denominator(1001)
            size = {"width": frame.width, "height": frame.height}
            self._stream = self._container.add_stream(name, rate, options=_ENCODERS[name], time_base=_TICK, **size)
            context = self._stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = context.color_range = _BT709
        for packet in self._stream.encode(frame):
            packet.duration = round(self._step / _TICK)  # used for the last frame
            self._container.mux(packet)
