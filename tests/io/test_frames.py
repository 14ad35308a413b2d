"""Frames against a full decode by PyAV and Pillow's pages; each is identified by the number drawn in it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence

from mrad_med.errors import ImageFileError
from mrad_med.io import frames as frames_module, videos
from mrad_med.io.file_types import VIDEO_SUFFIXES
from mrad_med.io.frames import (
    Frame,
    FrameReader,
    OverlayVideo,
    as_frames,
    find_sequences,
    list_frames,
    read_frame,
)
from mrad_med.transforms.preprocessing import ImageView

av = pytest.importorskip("av")

SEQUENCE_SUFFIXES = (".gif", ".tif", ".tiff", ".webp", ".png")
ROWS, COLUMNS, COUNT = 48, 64, 30
BITS = 6  # bits of the number in an image
TICK = Fraction(1, 90000)
SECRET = "Mustermann"
ORIENTATION_TAG = 0x0112
IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # as MP4 stores display matrices


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    frames_module.close_frames()
    videos._packet_ticks.cache_clear()


def numbered(number: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Return an image (rows, columns, 3) whose vertical bars are the bits of a number, over a ramp."""
    pixels = np.repeat(np.linspace(0, 255, rows).astype(np.uint8)[:, None, None], 3, axis=2).repeat(columns, axis=1)
    width = columns // BITS
    for bit in range(BITS):
        pixels[rows // 4 :, bit * width : (bit + 1) * width] = 220 if number >> bit & 1 else 30
    return pixels


def number_of(pixels: np.ndarray) -> int:
    rows, columns = pixels.shape[:2]
    width = columns // BITS
    middle = pixels[rows // 2, width // 2 :: width][:BITS].mean(-1)
    assert not ((middle > 80) & (middle < 170)).any(), "a blend of images"
    return sum(1 << bit for bit in range(BITS) if middle[bit] > 125)


def write_video(
    path: Path, codec: str = "libx264", *, times=None, count=COUNT, rows=ROWS, columns=COLUMNS, title="", **options: str
) -> Path:
    """Write numbered images, 25 a second or at ``times``."""
    with av.open(str(path), "w", metadata_errors="surrogateescape") as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, 25, width=columns, height=rows, options=options)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = TICK
        for number in range(count if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(numbered(number, rows, columns))
            if times is not None:
                frame.pts, frame.time_base = round(times[number] / TICK), TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def full_decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def patch(path: Path, change) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def count_decoded_packets(monkeypatch) -> list[int]:
    decoded, decode = [], videos._decode
    monkeypatch.setattr(videos, "_decode", lambda packet: decoded.append(packet.size) or decode(packet))
    return decoded


# videos: which frames there are, and which is which

KINDS = {
    "b_frames.mp4": ("libx264", {"bf": "3"}),
    "open_groups.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}),
    "b_frames.ts": ("libx264", {"bf": "2"}),  # its first time stamp is not 0
    "camera.m2ts": ("libx264", {"bf": "2"}),
    "plain.avi": ("mpeg4", {}),
    "b_frames.avi": ("libx264", {"bf": "3"}),  # AVI cannot store their display times
    "b_frames_mpeg4.avi": ("mpeg4", {"bf": "2"}),
    "b_frames.mov": ("mpeg4", {"bf": "2"}),
    "b_frames.mpg": ("mpeg2video", {"bf": "2"}),
    "interlaced.mp4": ("libx264", {"x264-params": "tff=1"}),
    "hidden_frames.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "web.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "office.wmv": ("wmv2", {}),
    "intra.avi": ("mjpeg", {}),
    "NAME.MP4": ("libx264", {"bf": "3"}),
}


def available(codec: str) -> bool:
    return codec in av.codecs_available


@pytest.mark.parametrize("name", KINDS)
def test_any_order_of_asking_gives_the_frames_of_a_full_decode_bit_by_bit(tmp_path, name):
    codec, options = KINDS[name]
    if not available(codec):
        pytest.skip(f"PyAV was built without {codec}")
    path = write_video(tmp_path / name, codec, **options)
    expected = full_decode(path)
    frames = list_frames(path)
    assert [(frame.path, frame.index) for frame in frames] == [(str(path), index) for index in range(COUNT)]
    assert [frame.time for frame in frames] == pytest.approx(np.arange(COUNT) / 25, abs=1e-9)
    order = [*range(COUNT), *random.Random(0).sample(range(COUNT), COUNT), 5, 5]
    for index in order:
        pixels = read_frame(frames[index])
        assert pixels.shape == (ROWS, COLUMNS, 3)
        assert pixels.dtype == np.uint8
        assert number_of(pixels) == index
        np.testing.assert_array_equal(pixels, expected[index])


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "b_frames.ts"])
def test_variable_times_are_those_that_were_written(tmp_path, name):
    times = np.cumsum([0.0, *([0.04, 0.2, 0.033, 1.0] * 5)])
    frames = list_frames(write_video(tmp_path / name, times=times + 2.5, bf="3"))
    assert [frame.time for frame in frames] == pytest.approx(times, abs=6e-4)  # Matroska rounds to milliseconds
    assert [number_of(read_frame(frame)) for frame in frames] == list(range(len(times)))


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    path = write_video(tmp_path / "edited.mp4", bf="3", g="8", sc_threshold="0")
    (old,) = struct.unpack_from(
        ">i", path.read_bytes(), path.read_bytes().index(b"elst") + 16
    )  # where the media starts

    def begin_later(content: bytearray) -> None:
        struct.pack_into(">i", content, content.index(b"elst") + 16, old + 5 * 512)  # ticks of a 25th of a second

    expected = full_decode(patch(path, begin_later))
    frames = list_frames(path)
    assert len(frames) == len(expected) == COUNT - 5
    assert [number_of(read_frame(frame)) for frame in frames] == list(range(5, COUNT))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(COUNT - 5) / 25)
    for index in (7, 3, 0):
        np.testing.assert_array_equal(read_frame(frames[index]), expected[index])


def test_stream_that_begins_amid_a_group_has_the_frames_that_can_be_decoded(tmp_path):
    path = write_video(tmp_path / "whole.ts", bf="2", g="10", sc_threshold="0", **{"x264-params": "open-gop=1"})
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    cut = tmp_path / "cut.ts"
    cut.write_bytes(path.read_bytes()[:376] + path.read_bytes()[starts[5] :])  # the tables, and from the 6th packet on
    expected = full_decode(cut)
    frames = list_frames(cut)
    assert 0 < len(frames) == len(expected) < COUNT
    for index in (len(frames) - 1, 0, 4):
        np.testing.assert_array_equal(read_frame(frames[index]), expected[index])


def test_listing_decodes_no_more_than_a_look(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", count=60, bf="3")
    decoded = count_decoded_packets(monkeypatch)
    assert len(list_frames(path)) == 60
    assert len(decoded) < 30


def test_name_does_not_decide_what_a_file_is(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    assert len(list_frames(path.rename(tmp_path / "1.2.826.0.1"))) == COUNT
    save_pages(tmp_path / "animation.gif").rename(tmp_path / "animation.mp4")
    assert len(list_frames(tmp_path / "animation.mp4")) == PAGES


def test_suffixes_are_lower_case_and_of_one_kind_only():
    assert {suffix.lower() for suffix in VIDEO_SUFFIXES + SEQUENCE_SUFFIXES} == {*VIDEO_SUFFIXES, *SEQUENCE_SUFFIXES}
    assert not set(VIDEO_SUFFIXES) & set(SEQUENCE_SUFFIXES)


# fewer frames


def test_fewer_frames_are_the_first_at_or_after_each_step(tmp_path):
    times = [0.0, 0.1, 0.5, 0.9, 1.0, 1.9, 2.0, 2.1, 4.5, 4.6]
    path = write_video(tmp_path / "variable.mp4", times=times)
    kept = list_frames(path, frames_per_second=1)
    assert [frame.index for frame in kept] == [0, 4, 6, 8]  # at 0, 1, 2; the steps 3 and 4 are answered by 4.5 alone
    assert [frame.index for frame in list_frames(path, frames_per_second=2)] == [0, 2, 4, 5, 6, 8]
    assert [number_of(read_frame(frame)) for frame in kept] == [0, 4, 6, 8]


@pytest.mark.parametrize(("rate", "step"), [(25, 1), (12.5, 2), (5, 5), (1, 25), (0.5, 50), (1000, 1)])
def test_even_rates_take_every_so_many_frames(tmp_path, rate, step):
    path = write_video(tmp_path / "even.mp4", count=60)
    assert [frame.index for frame in list_frames(path, frames_per_second=rate)] == list(range(0, 60, step))


def test_times_in_rounded_milliseconds_lose_no_frame(tmp_path):
    path = write_video(tmp_path / "rounded.mkv", times=np.arange(COUNT) / 30)
    assert len(list_frames(path, frames_per_second=30)) == COUNT
    assert [frame.index for frame in list_frames(path, frames_per_second=10)] == list(range(0, COUNT, 3))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_rate_must_be_positive(tmp_path, rate):
    with pytest.raises(ValueError, match="frames_per_second must be positive and finite"):
        list_frames(tmp_path / "none.mp4", frames_per_second=rate)
    with pytest.raises(ValueError, match="frames_per_second must be positive and finite"):
        OverlayVideo(tmp_path / "none.mp4", frames_per_second=rate)


# the open file


def test_frames_in_order_are_decoded_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "video.mp4", bf="3")
    frames = list_frames(path)
    decoded = count_decoded_packets(monkeypatch)
    for frame in frames[::2]:
        read_frame(frame)
    assert len(decoded) <= COUNT + 1  # and the end
    read_frame(frames[-2])
    assert len(decoded) <= COUNT + 1
    read_frame(frames[0])
    read_frame(frames[0])
    assert len(decoded) <= 2 * COUNT


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the open files")
def test_two_files_stay_open_at_most(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", count=5) for number in range(4)] + [save_pages(tmp_path / "a.gif")]
    before = open_files()
    for path in paths * 2:
        read_frame(list_frames(path)[-1])
        assert open_files() <= before + 2
        with pytest.raises(ImageFileError):
            read_frame(Frame(str(path), 100, None))
        assert open_files() <= before + 2
    frames_module.close_frames()
    assert open_files() == before


def test_two_places_of_a_video_are_read_in_turn_without_decoding_it_again(tmp_path, monkeypatch):
    frames = list_frames(write_video(tmp_path / "video.mp4"))
    decoded = []
    decode = videos._decode
    monkeypatch.setattr(videos, "_decode", lambda packet: [decoded.append(1) or frame for frame in decode(packet)])
    for ahead, behind in zip(frames[4:], frames, strict=False):
        assert number_of(read_frame(ahead)) == ahead.index
        assert number_of(read_frame(behind, max_pixels=sys.maxsize)) == behind.index  # as results read their images
    assert len(decoded) <= 2 * len(frames) + 2 * videos._COMPARED


def test_frame_of_a_video_is_shown_as_any_source_is(tmp_path):
    frame = list_frames(write_video(tmp_path / "video.mp4"))[5]
    assert number_of(ImageView().show(frame)) == 5


def test_image_can_be_changed_without_changing_the_next(tmp_path):
    for path in (write_video(tmp_path / "video.mp4", count=3), save_pages(tmp_path / "a.tif")):
        frame = list_frames(path)[1]
        first = read_frame(frame)
        kept = first.copy()
        first[:] = 7
        np.testing.assert_array_equal(read_frame(frame), kept)


def test_file_that_another_one_replaced_is_opened_again(tmp_path):
    path = write_video(tmp_path / "video.mp4", count=5)
    assert number_of(read_frame(list_frames(path)[4])) == 4
    os.replace(write_video(tmp_path / "other.mp4", times=[0, 1, 2], rows=ROWS * 2), path)
    assert [frame.time for frame in list_frames(path)] == pytest.approx([0, 1, 2])
    assert read_frame(list_frames(path)[2]).shape == (2 * ROWS, COLUMNS, 3)


def test_threads_get_the_frames_that_they_ask_for(tmp_path):
    frames = list_frames(write_video(tmp_path / "a.mp4", bf="3")) + list_frames(
        write_video(tmp_path / "b.avi", "mpeg4")
    )
    random.Random(1).shuffle(frames)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda frame: number_of(read_frame(frame)), frames))
    assert numbers == [frame.index for frame in frames]


def read_numbers(frames: list[Frame]) -> list[int]:
    return [number_of(read_frame(frame)) for frame in frames]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_processes_and_their_parent_do_not_disturb_each_other(tmp_path):
    frames = list_frames(write_video(tmp_path / "video.mp4", bf="3"))
    assert number_of(read_frame(frames[9])) == 9  # the parent's decoder is half way
    stop, seen = threading.Event(), []

    def keep_reading() -> None:
        while not stop.is_set():
            seen.append(all(number_of(read_frame(frame)) == frame.index for frame in frames))

    reader = threading.Thread(target=keep_reading)
    reader.start()
    try:
        with multiprocessing.get_context("fork").Pool(3) as pool:  # while another thread decodes
            parts = [frames[start::3] for start in range(3)] * 2
            results = pool.map_async(read_numbers, parts).get(timeout=60)
    finally:
        stop.set()
        reader.join()
    assert results == [[frame.index for frame in part] for part in parts]
    assert seen
    assert all(seen)


def handles_of(path: Path) -> int:
    """Return how often this process holds a file open. A file that is open cannot be deleted or renamed in Windows."""
    opened = (link for link in Path("/proc/self/fd").iterdir() if link.exists())
    return sum(link.samefile(path) for link in opened)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the open files")


@on_linux
@pytest.mark.parametrize(
    "make", [lambda folder: write_video(folder / "a.mp4"), lambda folder: save_pages(folder / "a.gif")]
)
def test_reader_holds_a_file_until_it_is_closed_and_no_longer(tmp_path, make):
    path = make(tmp_path)
    frames = list_frames(path)
    assert handles_of(path) == 0
    with FrameReader() as reader:
        np.testing.assert_array_equal(reader.read(frames[2]), read_frame(frames[2]))
        assert handles_of(path) == 2  # the other one is that of `read_frame`
        frames_module.close_frames()
        assert handles_of(path) == 1
        reader.read(frames[3])
        assert handles_of(path) == 1
    assert handles_of(path) == 0
    reader.read(frames[0])  # opens it again
    assert handles_of(path) == 1
    reader.close()
    assert handles_of(path) == 0


@on_linux
def test_reader_keeps_as_many_files_as_it_is_allowed(tmp_path):
    paths = [write_video(tmp_path / f"{number}.mp4", count=3) for number in range(3)]
    with FrameReader(max_open=1) as reader:
        for path in paths:
            reader.read(Frame(str(path), 0, 0.0))
            assert [handles_of(other) for other in paths] == [int(other == path) for other in paths]
    with pytest.raises(ValueError, match="max_open must be at least 1, got 0"):
        FrameReader(max_open=0)


@on_linux
def test_frame_that_is_damaged_leaves_no_file_open_after_the_end(tmp_path):
    path = write_video(tmp_path / "video.mp4", count=3)
    with pytest.raises(ImageFileError, match="there is no frame 9"), FrameReader() as reader:
        reader.read(Frame(str(path), 9, 0.0))
    assert handles_of(path) == 0


def test_pickled_reader_begins_without_open_files(tmp_path):
    frames = list_frames(write_video(tmp_path / "video.mp4"))
    with FrameReader(max_open=1) as reader:
        reader.read(frames[9])
        copy = pickle.loads(pickle.dumps(reader))
        assert number_of(copy.read(frames[3])) == 3
        copy.close()
        assert number_of(reader.read(frames[10])) == 10


def count_handles_in_worker(frame: Frame) -> tuple[int, int, int]:
    before = handles_of(Path(frame.path))
    number = number_of(read_frame(frame))
    return before, number, handles_of(Path(frame.path))


@on_linux
def test_forked_worker_lets_go_of_the_handles_of_its_parent(tmp_path):
    frames = list_frames(write_video(tmp_path / "video.mp4"))
    read_frame(frames[9])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(count_handles_in_worker, (frames[4],)) == (1, 4, 1)  # inherited, then its own alone
        assert pool.apply(count_handles_in_worker, (frames[5],)) == (1, 5, 1)
    assert number_of(read_frame(frames[10])) == 10  # the parent's place in the file is as it was
    assert handles_of(Path(frames[0].path)) == 1


WHO_REGISTERS = """
import os, sys
register, callers = os.register_at_fork, []
def watch(**hooks):
    callers.append(sys._getframe(1).f_globals["__name__"])
    register(**hooks)
os.register_at_fork = watch
import mrad_med.io.frames
assert callers  # of other packages
print([name for name in callers if name.startswith("mrad_med")])
"""


@on_linux
def test_importing_registers_nothing_with_the_process():
    ran = subprocess.run([sys.executable, "-c", WHO_REGISTERS], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# what a frame looks like

TURNS = {  # a b c d of the display matrix: x' = a x + c y, y' = b x + d y, with y down
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # a quarter clockwise, as of a phone held upright
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (0, -1, 1, 0): lambda p: np.rot90(p),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("turn", TURNS)
def test_turned_and_mirrored_videos_are_upright(tmp_path, turn):
    a, b, c, d = (value << 16 for value in turn)

    def set_matrix(content: bytearray) -> None:
        place = content.index(IDENTITY, content.index(b"tkhd"))
        struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)

    path = patch(write_video(tmp_path / "turned.mp4", count=3), set_matrix)
    stored, pixels = full_decode(path)[1], read_frame(list_frames(path)[1])
    np.testing.assert_array_equal(pixels, TURNS[turn](stored))
    assert not np.array_equal(stored, stored[::-1])
    with av.open(str(path)) as container:
        rotation = next(container.decode(video=0)).rotation
    if a * d - b * c > 0:  # PyAV reports the angle but not the mirroring
        np.testing.assert_array_equal(pixels, np.rot90(stored, rotation // 90))


def test_odd_sizes_are_kept(tmp_path):
    path = write_video(tmp_path / "odd.avi", "mpeg4", rows=47, columns=65, count=3)
    pixels = read_frame(list_frames(path)[2])
    assert pixels.shape == (47, 65, 3)
    np.testing.assert_array_equal(pixels, full_decode(path)[2])


# damaged videos


def test_damaged_frame_is_refused_and_the_others_keep_their_places(tmp_path):
    path = write_video(tmp_path / "intra.avi", "mjpeg")
    expected = full_decode(path)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
        start, size = packet.pos, packet.size

    def wipe(content: bytearray) -> None:
        content[start : start + size] = bytes(size)

    frames = list_frames(patch(path, wipe))
    assert len(frames) == COUNT
    for _ in range(2):
        with pytest.raises(ImageFileError, match="frame 20 of the video is damaged or missing"):
            read_frame(frames[20])
    for index in (21, 19, 29, 0):
        np.testing.assert_array_equal(read_frame(frames[index]), expected[index])


@pytest.mark.parametrize("index", [-1, COUNT, 10**9])
@pytest.mark.parametrize("name", ["video.mp4", "counted.webm"])
def test_frame_beyond_the_end_is_refused(tmp_path, name, index):
    path = write_video(tmp_path / name, "libvpx" if name.endswith("webm") else "libx264")
    with pytest.raises(ImageFileError, match=f"frame {index}"):
        read_frame(Frame(str(path), index, None))
    assert number_of(read_frame(Frame(str(path), 3, None))) == 3


@pytest.mark.parametrize(
    "content", [b"no video at all", b"\x00\x00\x00\x20ftypisom" + b"\x07" * 500, b"\x1aE\xdf\xa3" * 9]
)
def test_file_that_is_not_a_video_is_refused(tmp_path, content):
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match="not a video or image, or is damaged"):
        list_frames(path)


def test_missing_and_empty_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match="there is no such file"):
        list_frames(tmp_path / "none.mp4")
    with pytest.raises(ImageFileError, match="there is no such file"):
        read_frame(Frame(str(tmp_path / "none.mp4"), 0, 0.0))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ImageFileError, match="the file is empty"):
        list_frames(tmp_path / "empty.mp4")
    with pytest.raises(ImageFileError, match="there is no such file"):
        list_frames(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_refused(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    path.chmod(0)
    with pytest.raises(ImageFileError, match="no permission to read the file"):
        list_frames(path)


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 48000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ImageFileError, match="the file holds no video"):
        list_frames(path)


def write_with_cover(path: Path, *, video: bool) -> Path:
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", 1, width=32, height=32)
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic.value
        stream = container.add_stream("libx264", 25, width=COLUMNS, height=ROWS) if video else None
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(0, 32, 32))))
        container.mux(cover.encode(None))
        if stream:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(9))))
            container.mux(stream.encode(None))
    return path


def test_cover_image_is_not_a_video(tmp_path):
    path = write_with_cover(tmp_path / "cover.mp4", video=True)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    (frame,) = list_frames(path)
    assert number_of(read_frame(frame)) == 9
    with pytest.raises(ImageFileError, match="the file holds no video"):
        list_frames(write_with_cover(tmp_path / "sound.mp4", video=False))


def test_video_without_a_frame_that_can_be_decoded_is_refused(tmp_path):
    path = write_video(tmp_path / "intra.avi", "mjpeg", count=5)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]

    def wipe(content: bytearray) -> None:
        for start, size in packets:
            content[start : start + size] = bytes(size)

    with pytest.raises(ImageFileError, match="no frame of the video can be decoded"):
        list_frames(patch(path, wipe))


def test_too_large_frames_are_refused(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    frame = list_frames(path, max_pixels=ROWS * COLUMNS)[0]
    with pytest.raises(ImageFileError, match=f"{COLUMNS} x {ROWS} pixels are more than the limit of 3071"):
        list_frames(path, max_pixels=ROWS * COLUMNS - 1)
    with pytest.raises(ImageFileError, match="more than the limit"):
        read_frame(frame, max_pixels=ROWS * COLUMNS - 1)


def test_more_frames_than_can_be_listed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "MAX_FRAMES", COUNT - 1)
    for name, codec in (("video.mp4", "libx264"), ("counted.webm", "libvpx")):
        with pytest.raises(ImageFileError, match=f"more frames than its size allows, or more than {COUNT - 1}"):
            list_frames(write_video(tmp_path / name, codec))


def test_missing_pyav_is_told_and_pages_do_not_need_it(tmp_path, monkeypatch):
    path, pages = write_video(tmp_path / "video.mp4"), save_pages(tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageFileError, match=r'videos need PyAV; pip install "mrad-med\[video\]"'):
        list_frames(path)
    with pytest.raises(ImageFileError, match="videos need PyAV"):
        OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=1)
    assert len(list_frames(pages)) == PAGES


# files that refer to other files, and their texts

PLAYLISTS = {
    "concat.mp4": "ffconcat version 1.0\nfile 'private.ts'\n",
    "stream.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nprivate.ts\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_never_lead_to_other_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(Path("private.ts"))
    Path(name).write_text(PLAYLISTS[name], encoding="utf-8")
    with av.open(Path(name).open("rb")) as container:  # the danger is real
        assert len(list(container.decode(video=0))) == COUNT
    with pytest.raises(ImageFileError, match="not a video or image"):
        list_frames(name)
    with pytest.raises(ImageFileError, match="not a video or image"):
        read_frame(Frame(name, 0, 0.0))


def test_names_that_look_like_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_video(Path("video.mp4")).rename("concat:a.mp4")
    assert len(list_frames(path)) == COUNT
    with OverlayVideo("http:b.mp4", frames_per_second=1) as video:
        video.write(numbered(1))
    assert len(list_frames("http:b.mp4")) == 1


def test_title_of_any_encoding_is_accepted(tmp_path):
    path = write_video(tmp_path / "title.mp4", title="Muller")
    patch(path, lambda content: content.__setitem__(content.index(b"Muller") + 1, 0xFC))  # Latin-1
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert [number_of(read_frame(frame)) for frame in list_frames(path)] == list(range(COUNT))


def test_neither_messages_nor_logs_tell_what_a_file_holds(tmp_path, capfd, caplog):
    caplog.set_level(1)
    path = write_video(tmp_path / "title.mp4", title=SECRET)
    content = path.read_bytes()
    assert SECRET.encode() in content
    messages = []
    av.logging.set_level(av.logging.DEBUG)  # as another library may have left it
    try:
        for seed in range(20):
            path.write_bytes(mutated(content, seed))
            messages += attempt(path)
    finally:
        av.logging.set_level(None)
    written = capfd.readouterr()
    assert messages
    assert SECRET not in "".join(messages)
    assert (caplog.text, written.out, written.err) == ("", "", "")


def test_damaged_file_leaves_nothing_to_be_told_at_the_next_one(tmp_path, capfd):
    whole = list_frames(write_video(tmp_path / "whole.mp4", count=4))
    path = write_video(tmp_path / "damaged.wmv", "wmv2", rows=32, columns=32, count=10)
    content = path.read_bytes()
    for seed in range(150, 240):  # some lead to places beyond any file's end
        path.write_bytes(mutated(content, seed))
        attempt(path)
        assert number_of(read_frame(whole[3])) == 3
    assert capfd.readouterr() == ("", "")


def mutated(content: bytes, seed: int) -> bytes:
    """Return a file cut off, or with bytes changed, some in the first part, where headers are."""
    chance = random.Random(seed)
    changed = bytearray(content)
    if seed % 3 == 0:
        del changed[chance.randrange(len(changed)) :]
    for _ in range(chance.choice([1, 4, 30]) if changed and seed % 3 else 0):
        end = len(changed) if chance.random() < 0.5 else min(400, len(changed))
        changed[chance.randrange(end)] = chance.randrange(256)
    return bytes(changed)


def attempt(path: Path) -> list[str]:
    """Read what can be read, and return the messages of what cannot."""
    messages = []
    try:
        frames = list_frames(path)
    except ImageFileError as error:
        return [str(error)]
    assert frames
    for frame in (*frames[:3], *frames[-2:]):
        try:
            assert read_frame(frame).dtype == np.uint8
        except ImageFileError as error:
            messages.append(str(error))
    return messages


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
@pytest.mark.parametrize(
    "name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.mpg", "a.wmv", "a.gif", "a.webp", "a.png", "a.tif"]
)
def test_damaged_files_raise_nothing_but_image_file_errors(tmp_path, name):
    codecs = {"a.avi": "mpeg4", "a.mpg": "mpeg2video", "a.wmv": "wmv2"}
    small = {"rows": 32, "columns": 32, "count": 10}
    path = tmp_path / name
    if path.suffix in SEQUENCE_SUFFIXES:
        save_pages(path)
    else:
        write_video(path, codecs.get(name, "libx264"), **small)
    content = path.read_bytes()
    refused = 0
    for seed in range(24):
        path.write_bytes(mutated(content, seed))
        refused += bool(attempt(path))
    assert refused > 0


# pages

PAGES = 5
DURATIONS = [100, 250, 40, 500, 100]  # milliseconds
STARTS = [0.0, 0.1, 0.35, 0.39, 0.89]


def pages(mode: str = "RGB") -> list[Image.Image]:
    return [Image.fromarray(numbered(number)).convert(mode) for number in range(PAGES)]


def save_pages(path: Path, images: list[Image.Image] | None = None, **options) -> Path:
    first, *rest = images or pages()
    if path.suffix != ".tif":
        options = {"duration": DURATIONS, **options}
    if path.suffix == ".webp":
        options = {"lossless": True, **options}
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def pillow_pages(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(ImageOps.exif_transpose(page).convert("RGB")) for page in ImageSequence.Iterator(image)]


@pytest.mark.parametrize("suffix", SEQUENCE_SUFFIXES)
def test_pages_in_any_order_are_those_of_pillow(tmp_path, suffix):
    path = save_pages(tmp_path / f"pages{suffix}", format="TIFF" if suffix == ".tiff" else None)
    expected = pillow_pages(path)
    frames = list_frames(path)
    assert [frame.index for frame in frames] == list(range(PAGES))
    for index in [0, 1, 2, 3, 4, 2, 4, 0, 3, 3, 1]:
        pixels = read_frame(frames[index])
        assert number_of(pixels) == index
        np.testing.assert_array_equal(pixels, expected[index])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_durations_make_times(tmp_path, suffix):
    path = save_pages(tmp_path / f"animation{suffix}")
    assert [frame.time for frame in list_frames(path)] == pytest.approx(STARTS)
    assert [frame.index for frame in list_frames(path, frames_per_second=4)] == [0, 2, 4]  # 0.25 and 0.5, 0.75


def test_pages_of_a_tiff_have_no_times_and_are_all_listed(tmp_path):
    path = save_pages(tmp_path / "pages.tif")
    assert list_frames(path) == list_frames(path, frames_per_second=0.1)
    assert [frame.time for frame in list_frames(path)] == [None] * PAGES


def test_animation_without_durations_has_no_times(tmp_path):
    path = save_pages(tmp_path / "animation.gif", duration=0)
    assert [frame.time for frame in list_frames(path)] == [None] * PAGES


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif", ".webp"])
def test_single_image_is_one_frame(tmp_path, suffix):
    path = tmp_path / f"still{suffix}"
    Image.fromarray(numbered(3)).save(path)
    (frame,) = list_frames(path, frames_per_second=1)
    assert frame == Frame(str(path), 0, None)
    assert number_of(read_frame(frame)) == 3


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparency_is_laid_over_black(tmp_path, suffix):
    images = pages("RGBA")
    for number, image in enumerate(images):
        image.putalpha(Image.fromarray(np.full((ROWS, COLUMNS), 60 * number, np.uint8)))
    path = save_pages(tmp_path / f"clear{suffix}", images, **({} if suffix == ".tif" else {"disposal": 1}))
    if suffix == ".webp":
        path = save_pages(tmp_path / "clear.webp", images, exact=True, background=(0, 0, 0, 0))
    frames = list_frames(path)
    assert read_frame(frames[0]).max() == 0
    if suffix != ".webp":  # whose pages may be blended with those before
        np.testing.assert_allclose(read_frame(frames[3]), numbered(3) * (180 / 255), atol=1)


def test_transparent_color_of_a_gif_becomes_black(tmp_path):
    images = []
    for number in range(2):
        pixels = np.full((ROWS, COLUMNS), 1, np.uint8)
        pixels[: 10 + number] = 0
        image = Image.fromarray(pixels)
        image.putpalette([200, 10, 10, 20, 220, 30] + [0] * 762)
        images.append(image)
    path = save_pages(tmp_path / "clear.gif", images, transparency=0, disposal=2, duration=100)
    for number, frame in enumerate(list_frames(path)):
        pixels = read_frame(frame)
        assert pixels[: 10 + number].max() == 0
        assert (pixels[10 + number :] == (20, 220, 30)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".tif", ".png", ".webp"])
def test_pages_are_turned_as_exif_tells(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"tiffinfo": {ORIENTATION_TAG: orientation}} if suffix == ".tif" else {"exif": exif}
    plain = pillow_pages(save_pages(tmp_path / f"plain{suffix}"))
    frames = list_frames(save_pages(tmp_path / f"turned{suffix}", **options))
    for index in (2, 0, 4):
        image = Image.fromarray(plain[index])
        image.getexif()[ORIENTATION_TAG] = orientation
        np.testing.assert_array_equal(read_frame(frames[index]), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
def test_deep_pages_are_refused_rather_than_cut_to_8_bits(tmp_path, dtype):
    images = [Image.fromarray((numbered(number)[..., 0] * 200.0).astype(dtype)) for number in range(PAGES)]
    path = save_pages(tmp_path / "deep.tif", images)
    with pytest.raises(
        ImageFileError, match="pages or frames have more than 8 bits per value; save each as a separate image"
    ):
        list_frames(path)
    mixed = save_pages(tmp_path / "mixed.tif", [pages()[0], *images])
    with pytest.raises(ImageFileError, match="have more than 8 bits per value"):
        list_frames(mixed)
    assert read_frame(Frame(str(mixed), 0, None)).dtype == np.uint8
    with pytest.raises(ImageFileError, match="have more than 8 bits per value"):
        read_frame(Frame(str(mixed), 1, None))


def test_too_large_pages_are_refused(tmp_path):
    path = save_pages(tmp_path / "pages.tif", [pages()[0], pages()[1].resize((COLUMNS, ROWS + 1))])
    with pytest.raises(ImageFileError, match=f"{COLUMNS} x {ROWS + 1} pixels are more than the limit"):
        list_frames(path, max_pixels=ROWS * COLUMNS)
    with pytest.raises(ImageFileError, match="more than the limit"):
        read_frame(Frame(str(path), 1, None), max_pixels=ROWS * COLUMNS)


def test_animation_of_too_many_pixels_in_all_is_refused(tmp_path, monkeypatch):
    path = save_pages(tmp_path / "animation.gif")
    monkeypatch.setattr(frames_module, "MAX_ANIMATED_PIXELS", PAGES * ROWS * COLUMNS - 1)
    with pytest.raises(ImageFileError, match="the animation has more than 15359 pixels"):
        list_frames(path)


def test_file_that_announces_more_pages_than_it_has_bytes_is_refused(tmp_path):
    def announce(content: bytearray) -> None:
        start = content.index(b"acTL")
        struct.pack_into(">I", content, start + 4, 2**31 - 1)
        struct.pack_into(">I", content, start + 12, zlib.crc32(content[start : start + 12]))

    path = patch(save_pages(tmp_path / "animation.png"), announce)
    with pytest.raises(ImageFileError, match="more frames than its size allows"):
        list_frames(path)


def test_truncated_animation_is_refused(tmp_path):
    path = save_pages(tmp_path / "animation.gif")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ImageFileError, match="not a video or image, or is damaged"):
        list_frames(path)


def test_page_beyond_the_end_is_refused(tmp_path):
    path = save_pages(tmp_path / "animation.gif")
    with pytest.raises(ImageFileError, match="EOFError"):
        read_frame(Frame(str(path), PAGES, None))
    assert number_of(read_frame(Frame(str(path), 2, None))) == 2


# overlay videos


def write_overlay(path: Path, *, times=None, count=10, rows=ROWS, columns=COLUMNS, rate=25.0) -> Path:
    with OverlayVideo(path, frames_per_second=rate) as video:
        for number in range(count if times is None else len(times)):
            pixels = numbered(number, rows, columns)
            if times is None:
                video.write(pixels)
            else:
                video.write(pixels, time=times[number])
    return path


@pytest.mark.parametrize("rate", [25, 30, 29.97, 2.5, 0.5, 1])
def test_written_images_come_back_in_order_at_an_even_rate(tmp_path, rate):
    path = write_overlay(tmp_path / "overlay.mp4", rate=rate)
    frames = list_frames(path)
    assert [frame.time for frame in frames] == pytest.approx(np.arange(10) / rate, abs=2e-5)
    assert [number_of(read_frame(frame)) for frame in frames] == list(range(10))
    assert np.abs(read_frame(frames[5]).astype(int) - numbered(5)).mean() < 4
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert container.duration / 1e6 == pytest.approx(10 / rate, abs=1e-3)  # the last one is shown, too


def test_times_of_the_source_are_kept(tmp_path):
    times = [0.0, 0.04, 0.3, 0.333, 2.0, 2.1, 60.0]
    frames = list_frames(write_overlay(tmp_path / "overlay.mp4", times=times))
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-5)
    source = list_frames(write_video(tmp_path / "source.mkv", times=[0, 0.5, 0.6, 3.0], bf="2"))
    copied = list_frames(write_overlay(tmp_path / "copied.mp4", times=[frame.time for frame in source]))
    assert [frame.time for frame in copied] == pytest.approx([frame.time for frame in source], abs=1e-5)


def test_image_without_a_time_follows_one_period_after_the_last(tmp_path):
    with OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=10) as video:
        video.write(numbered(0), time=1.0)
        video.write(numbered(1))
        video.write(numbered(2), time=5.0)
    assert [frame.time for frame in list_frames(tmp_path / "overlay.mp4")] == pytest.approx([0.0, 0.1, 4.0])


@pytest.mark.parametrize(("rows", "columns"), [(47, 65), (48, 65), (47, 64), (1, 1)])
def test_odd_sizes_are_padded_by_repeating_the_edge(tmp_path, rows, columns):
    pixels = np.full((rows, columns, 3), 90, np.uint8)
    pixels[-1], pixels[:, -1] = 200, 200
    with OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=1) as video:
        video.write(pixels)
    (frame,) = list_frames(tmp_path / "overlay.mp4")
    read = read_frame(frame)
    assert read.shape == (rows + rows % 2, columns + columns % 2, 3)
    assert np.abs(read[-1].astype(int) - 200).max() < 25


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 120, 30), (0, 0, 0), (255, 255, 255)])
def test_colors_survive_and_the_file_tells_their_space(tmp_path, color):
    with OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=1) as video:
        video.write(np.full((ROWS, COLUMNS, 3), color, np.uint8))
    (frame,) = list_frames(tmp_path / "overlay.mp4")
    assert np.abs(read_frame(frame).astype(int) - color).max() <= 6
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        stored = next(container.decode(video=0))
    assert (stored.colorspace, stored.color_range) == (1, 1)  # BT.709, from 16 to 235
    brightness = stored.to_ndarray()[:ROWS].mean()
    assert brightness == pytest.approx(16 + 219 * np.dot((0.2126, 0.7152, 0.0722), color) / 255, abs=2)


def test_mpeg4_is_written_where_there_is_no_encoder_of_h264(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "_ENCODERS", {"libnone": {}, "mpeg4": videos._ENCODERS["mpeg4"]})
    times = [0.0, 0.04, 0.3, 2.0]
    frames = list_frames(write_overlay(tmp_path / "overlay.mp4", times=times))
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-4)
    assert [number_of(read_frame(frame)) for frame in frames] == list(range(4))
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_only_images_and_times_are_written(tmp_path):
    source = write_video(tmp_path / f"{SECRET}.mp4", title=SECRET)
    with OverlayVideo(tmp_path / SECRET / "overlay.mp4", frames_per_second=25) as video:
        for frame in list_frames(source):
            video.write(read_frame(frame), time=frame.time)
    path = tmp_path / SECRET / "overlay.mp4"
    assert SECRET.encode() not in path.read_bytes()
    with av.open(str(path)) as container:
        assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands", "encoder"}
        assert "creation_time" not in container.streams.video[0].metadata


def test_file_is_absent_after_an_error_and_the_old_one_stays(tmp_path):
    path = write_overlay(tmp_path / "overlay.mp4", count=3)
    before = path.read_bytes()

    def write_until_it_fails() -> None:
        with OverlayVideo(path, frames_per_second=1) as video:
            video.write(numbered(0))
            assert path.read_bytes() == before
            video.write(numbered(0, ROWS + 2))

    with pytest.raises(ValueError, match="all images need one size"):
        write_until_it_fails()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["overlay.mp4"]


def test_video_without_images_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="no image was written"),
        OverlayVideo(tmp_path / "a.mp4", frames_per_second=1),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_images_must_have_one_size_and_type(tmp_path):
    with OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=1) as video:
        video.write(numbered(0))
        with pytest.raises(ValueError, match=r"the image has shape \(50, 64, 3\), the video \(48, 64, 3\)"):
            video.write(numbered(0, 50))
        for pixels in (numbered(0)[..., 0], numbered(0).astype(float), np.zeros((0, 4, 3), np.uint8)):
            with pytest.raises(ValueError, match=r"an image must be \(H, W, 3\) of uint8, got"):
                video.write(pixels)
    assert len(list_frames(tmp_path / "overlay.mp4")) == 1


@pytest.mark.parametrize("time", [1.0, 0.5, 1.000001, float("nan"), float("inf"), -1.0])
def test_times_must_increase(tmp_path, time):
    with OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=1) as video:
        video.write(numbered(0), time=1.0)
        with pytest.raises(ValueError, match="times start at 0 or later and increase"):
            video.write(numbered(1), time=time)


def test_time_before_the_start_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="times start at 0"),
        OverlayVideo(tmp_path / "a.mp4", frames_per_second=1) as v,
    ):
        v.write(numbered(0), time=-0.5)


def test_writing_is_for_the_with_statement(tmp_path):
    video = OverlayVideo(tmp_path / "overlay.mp4", frames_per_second=1)
    with pytest.raises(RuntimeError, match="inside a with statement"):
        video.write(numbered(0))
    with video:
        video.write(numbered(0))
    with pytest.raises(RuntimeError, match="inside a with statement"):
        video.write(numbered(0))


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"videos are written as \.mp4, got the suffix '\.avi'"):
        OverlayVideo(tmp_path / "overlay.avi", frames_per_second=1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".ppm", ".tif", ".webp"])
def test_numbered_photographs_are_frames_in_the_order_of_their_numbers(tmp_path, suffix):
    paths = [tmp_path / f"cam2 frame {number}a{suffix}" for number in (9, 10, 100)]
    for path, number in zip(paths, (3, 5, 6), strict=True):
        Image.fromarray(numbered(number)).save(path)
    (sequence,) = find_sequences(reversed(paths))
    assert sequence == paths
    frames = as_frames(sequence, rate=25)
    assert [frame.time for frame in frames] == [0, 0.04, 0.08]
    assert [number_of(read_frame(frame)) for frame in (frames[2], *frames)] == [6, 3, 5, 6]


def test_photographs_of_other_folders_names_or_types_are_not_a_sequence():
    names = ["a/f1.png", "b/f2.png", "a/g2.png", "a/f3.jpg", "a/f4x.png", "a/none.png", "c/f1.png", "c/f2.png"]
    assert find_sequences(map(Path, names)) == [[Path("c/f1.png"), Path("c/f2.png")]]


def test_sequence_is_thinned_as_a_video_is():
    paths = [Path(f"{number}.png") for number in range(30)]
    assert [int(Path(frame.path).stem) for frame in as_frames(paths, rate=10, frames_per_second=3)] == [
        *(0, 4, 7, 10, 14, 17, 20, 24, 27)
    ]


@pytest.mark.parametrize("rates", [{"rate": 0}, {"rate": float("nan")}, {"rate": 1, "frames_per_second": -1}])
def test_rates_of_a_sequence_must_be_positive(rates):
    with pytest.raises(ValueError, match="must be positive and finite"):
        as_frames([Path("1.png")], **rates)
