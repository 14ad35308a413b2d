"""Overlay videos as PyAV decodes them: images, times, and one color scale."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from mrad_med import CaseResult
from mrad_med.errors import ImageFileError
from mrad_med.io import frames as frames_module
from mrad_med.io.frames import Frame, as_frames, list_frames
from mrad_med.results.overlay_video import VideoCollector

av = pytest.importorskip("av")

ROWS, COLUMNS = 48, 64
TICK = Fraction(1, 90000)
TIMES = [0.0, 0.04, 0.08, 0.2, 0.24]  # a camera that paused once: the step between two is 0.04 s
GRAY = 100
LOW, HIGH = 0.48, 0.52  # of maps, whose range is narrow
CODEC_ERROR = 14  # of 255, that H.264 leaves within a plain block


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    frames_module.close_frames()


def write_video(path: Path, times=TIMES, *, rows: int = ROWS, columns: int = COLUMNS, start: float = 0.0) -> Path:
    """Write gray images; the first has a start time, as in a cut video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, width=columns, height=rows)
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", TICK
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((rows, columns, 3), GRAY, np.uint8))
            frame.pts, frame.time_base = round((start + time) / TICK), TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def block_of(number: int, rows: int, columns: int) -> tuple[slice, slice]:
    """Return where the map of a frame is high: further right and down in each."""
    top, left = rows // 8 * (number + 1), columns // 8 * (number + 1)
    return slice(top, top + rows // 4), slice(left, left + columns // 4)


def shares(number: int, count: int) -> tuple[float, float]:
    """Return where the background and the block of a map are on the scale: both rise, frame by frame."""
    share = number / max(count - 1, 1)
    return share / 4, share


def make_maps(count: int, rows: int = ROWS, columns: int = COLUMNS) -> list[np.ndarray]:
    maps = []
    for number in range(count):
        background, block = (LOW + (HIGH - LOW) * share for share in shares(number, count))
        anomaly_map = np.full((rows, columns), background, np.float32)
        anomaly_map[block_of(number, rows, columns)] = block
        maps.append(anomaly_map)
    return maps


def collect(frames: list[Frame], maps: list[np.ndarray]) -> VideoCollector:
    video = VideoCollector()
    for number, (frame, anomaly_map) in enumerate(zip(frames, maps, strict=True)):
        video.add(CaseResult(f"case {number}", frame, 0.5, anomaly_map, study="exam"), "videos/exam.mp4")
    return video


def decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24", src_colorspace="ITU709") for frame in frames], [f.time for f in frames]


def seconds_of(path: Path) -> float:
    """Return the duration in the header; FFmpeg states the durations of packets in decoding order."""
    content = path.read_bytes()
    scale, duration = struct.unpack_from(">II", content, content.index(b"mvhd") + 16)  # ISO/IEC 14496-12, 8.2.2
    return duration / scale


def under(share: float, gray: float = GRAY) -> np.ndarray:
    """Return the color of a gray under a share of the scale, which covers 10 % of it at its lowest and 70 % at most."""
    opacity = 0.1 + 0.6 * share
    return (1 - opacity) * gray + opacity * 255 * np.array(colormaps["inferno"](float(share))[:3])


def inner(image: np.ndarray, block: tuple[slice, slice]) -> np.ndarray:
    """Return the mean color within a block, without its edge."""
    rows, columns = (slice(side.start + 3, side.stop - 3) for side in block)
    return image[rows, columns].reshape(-1, 3).mean(0)


@pytest.mark.parametrize(("suffix", "start"), [(".mp4", 0.0), (".mkv", 0.0), (".ts", 3.5)])
def test_frames_keep_their_number_their_times_and_their_size(tmp_path, suffix, start):
    frames = list_frames(write_video(tmp_path / f"source{suffix}", start=start))
    assert collect(frames, make_maps(len(TIMES))).write(tmp_path / "overlay.mp4") == [tmp_path / "overlay.mp4"]
    images, times = decode(tmp_path / "overlay.mp4")
    assert [image.shape for image in images] == [(ROWS, COLUMNS, 3)] * len(TIMES)
    assert times == pytest.approx(TIMES, abs=0.002)
    assert seconds_of(tmp_path / "overlay.mp4") == pytest.approx(TIMES[-1] + 0.04, abs=0.005)  # the last stays a step


def test_one_scale_of_colors_spans_all_frames(tmp_path):
    frames, maps = list_frames(write_video(tmp_path / "source.mp4")), make_maps(len(TIMES))
    collect(frames, maps).write(tmp_path / "overlay.mp4")
    images, _ = decode(tmp_path / "overlay.mp4")
    for number, image in enumerate(images):
        block = block_of(number, ROWS, COLUMNS)
        background, highest = shares(number, len(TIMES))
        np.testing.assert_allclose(inner(image, block), under(highest), atol=CODEC_ERROR)
        outside = np.ones((ROWS, COLUMNS), bool)
        outside[max(block[0].start - 4, 0) : block[0].stop + 4, max(block[1].start - 4, 0) : block[1].stop + 4] = False
        np.testing.assert_allclose(image[outside].mean(0), under(background), atol=CODEC_ERROR)
    brightest = [image.max() for image in images]
    assert np.argmax(brightest) == np.argmax([anomaly_map.max() for anomaly_map in maps]) == len(TIMES) - 1


@pytest.mark.parametrize(("rows", "columns"), [(600, 900), (20, 300), (ROWS, COLUMNS)])
def test_maps_of_any_size_lie_on_their_frames(tmp_path, rows, columns):
    """Maps wait in memory at a smaller size; where they are high must not move for that."""
    path = tmp_path / "page.png"
    Image.fromarray(np.full((rows, columns, 3), GRAY, np.uint8)).save(path)
    collect(as_frames([path] * 3, rate=2), make_maps(3, rows, columns)).write(tmp_path / "overlay.mp4")
    for number, image in enumerate(decode(tmp_path / "overlay.mp4")[0][1:], start=1):
        block = block_of(number, rows, columns)
        between = np.mean([under(share).sum() for share in shares(number, 3)])
        bright = np.argwhere(image.astype(int).sum(-1) > between)
        middle = [(side.start + side.stop - 1) / 2 for side in block]
        np.testing.assert_allclose(bright.mean(0), middle, atol=max(rows, columns) / 256 + 1)


@pytest.mark.parametrize(("rows", "columns", "even"), [(47, 63, (48, 64)), (48, 63, (48, 64)), (2050, 101, (1024, 50))])
def test_odd_sizes_become_even_and_large_ones_smaller(tmp_path, rows, columns, even):
    path = tmp_path / "page.png"
    Image.fromarray(np.full((rows, columns, 3), GRAY, np.uint8)).save(path)
    collect(as_frames([path], rate=2), make_maps(1, rows, columns)).write(tmp_path / "overlay.mp4")
    ((image,), _) = decode(tmp_path / "overlay.mp4")
    assert image.shape[:2] == even


def test_frames_that_were_left_out_leave_no_hole_at_the_start(tmp_path):
    frames = list_frames(write_video(tmp_path / "source.mp4"))[2:]
    collect(frames, make_maps(3)).write(tmp_path / "overlay.mp4")
    assert decode(tmp_path / "overlay.mp4")[1] == pytest.approx([0, 0.12, 0.16], abs=0.002)


def pages(count: int = 4) -> list[Image.Image]:
    """Return images that differ, because a GIF keeps a single page of equal images."""
    return [Image.fromarray(np.full((ROWS, COLUMNS), GRAY + 20 * number, np.uint8)) for number in range(count)]


@pytest.mark.parametrize(
    ("name", "options", "times"),
    [
        ("pages.tif", {}, [0, 0.2, 0.4, 0.6]),
        ("untimed.gif", {}, [0, 0.2, 0.4, 0.6]),
        ("timed.gif", {"duration": [100, 300, 100, 100]}, [0, 0.1, 0.4, 0.5]),
        ("timed.webp", {"duration": 500, "lossless": True}, [0, 0.5, 1, 1.5]),
    ],
)
def test_pages_without_times_are_shown_five_a_second(tmp_path, name, options, times):
    first, *rest = pages()
    first.save(tmp_path / name, save_all=True, append_images=rest, **options)
    collect(list_frames(tmp_path / name), make_maps(4)).write(tmp_path / "overlay.mp4")
    images, shown = decode(tmp_path / "overlay.mp4")
    assert shown == pytest.approx(times, abs=0.002)
    corners = [image[-5:, :5].reshape(-1, 3).mean(0) for image in images]  # where no map is high
    expected = [under(shares(number, 4)[0], GRAY + 20 * number) for number in range(4)]
    np.testing.assert_allclose(corners, expected, atol=CODEC_ERROR)  # each page is under its own map


@pytest.mark.parametrize("rate", [0.02, 4, 240])
def test_numbered_photographs_follow_each_other_at_their_rate(tmp_path, rate):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, page in zip(paths, pages(), strict=True):
        page.save(path)
    collect(as_frames(paths, rate=rate), make_maps(4)).write(tmp_path / "overlay.mp4")
    assert decode(tmp_path / "overlay.mp4")[1] == pytest.approx(np.arange(4) / rate, rel=1e-3, abs=1e-9)
    assert seconds_of(tmp_path / "overlay.mp4") == pytest.approx(4 / rate, abs=0.001)


def test_photographs_taken_hourly_make_a_video_too(tmp_path):
    for number, page in enumerate(pages()):
        page.save(tmp_path / f"{number}.png")
    frames = as_frames(sorted(tmp_path.glob("*.png")), rate=1 / 3600)
    collect(frames, make_maps(4)).write(tmp_path / "overlay.mp4")
    assert decode(tmp_path / "overlay.mp4")[1] == pytest.approx([0, 3600, 7200, 10800])


def test_single_frame_is_shown_for_a_fifth_of_a_second(tmp_path):
    pages()[0].save(tmp_path / "page.png")
    collect([Frame(str(tmp_path / "page.png"), 0, None)], make_maps(1)).write(tmp_path / "overlay.mp4")
    assert len(decode(tmp_path / "overlay.mp4")[0]) == 1
    assert seconds_of(tmp_path / "overlay.mp4") == pytest.approx(0.2, abs=0.002)


def test_maps_of_one_value_are_the_lowest_color(tmp_path):
    frames = list_frames(write_video(tmp_path / "source.mp4"))
    collect(frames, [np.full((ROWS, COLUMNS), 0.5, np.float32)] * len(TIMES)).write(tmp_path / "overlay.mp4")
    for image in decode(tmp_path / "overlay.mp4")[0]:
        np.testing.assert_allclose(image.reshape(-1, 3).mean(0), under(0), atol=CODEC_ERROR)


def test_collector_states_the_video_of_its_frames():
    video = VideoCollector()
    assert video.name == ""
    video.add(CaseResult("1", Frame("v.mp4", 0, 0.0), 0.5, np.zeros((4, 4), np.float32)), "videos/exam.mp4")
    assert video.name == "videos/exam.mp4"


@pytest.mark.parametrize("source", ["photo.png", ["a.dcm", "b.dcm"], np.zeros((4, 4, 3), np.uint8)])
def test_what_is_no_frame_is_refused(source):
    with pytest.raises(TypeError, match="a video is made of frames"):
        VideoCollector().add(CaseResult("photo", source, 0.5, np.zeros((4, 4), np.float32)), "videos/exam.mp4")


@pytest.mark.parametrize("earlier", [None, b"an earlier video"])
def test_frame_that_cannot_be_read_again_leaves_nothing_half_written(tmp_path, earlier):
    frames = list_frames(write_video(tmp_path / "source.mp4"))
    folder = tmp_path / "out"
    folder.mkdir()
    if earlier is not None:
        (folder / "overlay.mp4").write_bytes(earlier)
    video = collect([*frames, Frame(frames[0].path, 99, 1.0)], make_maps(6))
    with pytest.raises(ImageFileError):
        video.write(folder / "overlay.mp4")
    assert [path.read_bytes() for path in folder.iterdir()] == ([] if earlier is None else [earlier])


def test_source_that_is_gone_is_an_error(tmp_path):
    path = write_video(tmp_path / "source.mp4")
    video = collect(list_frames(path), make_maps(len(TIMES)))
    path.unlink()
    with pytest.raises(ImageFileError, match="there is no such file"):
        video.write(tmp_path / "overlay.mp4")
    assert list(tmp_path.iterdir()) == []


def test_pages_of_other_sizes_are_brought_to_that_of_the_first(tmp_path):
    first, second = pages(2)
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second.resize((96, 24))])
    maps = [*make_maps(2)[:1], make_maps(2, 24, 96)[1]]
    collect(list_frames(tmp_path / "pages.tif"), maps).write(tmp_path / "overlay.mp4")
    images, _ = decode(tmp_path / "overlay.mp4")
    assert [image.shape for image in images] == [(ROWS, COLUMNS, 3)] * 2
    block = inner(images[1], block_of(1, ROWS, COLUMNS))
    np.testing.assert_allclose(block, under(1, GRAY + 20), atol=CODEC_ERROR)


def test_video_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image was written"):
        VideoCollector().write(tmp_path / "overlay.mp4")
    assert list(tmp_path.iterdir()) == []
