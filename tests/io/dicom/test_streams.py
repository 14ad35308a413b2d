"""Counts of a header against the size of its file, and the time and memory that hostile headers cost."""

from __future__ import annotations

import io
import re
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from mrad_med.data.search import survey
from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.headers import read_header
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.streams import BoundedStream, check_counts, count_frames, pixel_bytes
from mrad_med.io.image import read_image
from tests.small_dicom import COLUMNS, ROWS, item, make_image, write_image

STILL = np.zeros((ROWS, COLUMNS), np.uint16)
SECONDS = 5.0


def nested(depth: int) -> bytes:
    """Return sequences of undefined length in each other, as bytes."""
    start = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return start * depth + end * depth


def many(count: int) -> bytes:
    """Return a sequence of undefined length with many items, as bytes."""
    items = b"\xfe\xff\x00\xe0\x0a\0\0\0\x08\x00\x05\x00CS\x02\0xx" * count
    return b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"


def inserted(path: Path, content: bytes) -> Path:
    whole = write_image(path, make_image(STILL)).read_bytes()
    place = whole.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(whole[:place] + content + whole[place:])
    return path


def stated(path: Path, **tags) -> Path:
    dataset = make_image(STILL)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return write_image(path, dataset)


def grouped(path: Path, items: int, frames: int) -> Path:
    groups = [item() for _ in range(items)]
    return stated(path, NumberOfFrames=frames, PerFrameFunctionalGroupsSequence=groups)


HOSTILE = {
    "2147483647 frames": (
        lambda path: stated(path, NumberOfFrames=2147483647),
        "it states 2147483647 frames, more than",
    ),
    "a million frames": (
        lambda path: stated(path, NumberOfFrames=1_000_000),
        "it states 1000000 frames, more than the",
    ),
    "10000 frames": (
        lambda path: stated(path, NumberOfFrames=10_000),
        r"states 10000 frame\(s\) of 22 x 18 pixels, whi",
    ),
    "rows": (
        lambda path: stated(path, Rows=65535, Columns=65535),
        r"states 1 frame\(s\) of 65535 x 65535 pixels, which",
    ),
    "samples": (lambda path: stated(path, SamplesPerPixel=65535), r"states 1 frame\(s\) of 22 x 18 pixels, which its"),
    "bits": (lambda path: stated(path, BitsAllocated=65528), r"states 1 frame\(s\) of 22 x 18 pixels, which its"),
    "more groups than frames": (lambda path: grouped(path, 42_000, 1), r"describes 0 frame\(s\) but states 1"),
    "groups of a million frames": (
        lambda path: grouped(path, 42_000, 1_000_000),
        "it states 1000000 frames, more than",
    ),
    "fewer groups than frames": (lambda path: grouped(path, 1, 2), r"states 2 frame\(s\)|describes 1 frame"),
    "deep": (lambda path: inserted(path, nested(50_000)), "the DICOM header cannot be read"),
    "items": (lambda path: inserted(path, many(300_000)), "its header has more items than an image needs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_costs_only_itself_and_little_time(tmp_path, name):
    write, message = HOSTILE[name]
    write(tmp_path / "bad.dcm")
    write_image(tmp_path / "good.dcm", make_image(STILL))
    start = time.process_time()
    found = survey(tmp_path, keep_identifiers=True)
    assert time.process_time() - start < SECONDS
    assert [case["case_id"] for case in found.cases] == ["bad", "good"]
    assert set(found.remarks) == {"bad"}
    assert re.search(message, found.remarks["bad"])
    with pytest.raises(ImageFileError, match=r"export|smaller"):
        read_image(tmp_path / "bad.dcm")


@pytest.mark.parametrize(
    ("tags", "size"),
    [
        ({}, ROWS * COLUMNS * 2),
        ({"NumberOfFrames": 7}, 7 * ROWS * COLUMNS * 2),
        ({"BitsAllocated": 1}, (ROWS * COLUMNS) // 8),
        ({"SamplesPerPixel": 3, "BitsAllocated": 8}, 3 * ROWS * COLUMNS),
        (
            {"SamplesPerPixel": 3, "BitsAllocated": 8, "PhotometricInterpretation": "YBR_FULL_422"},
            2 * ROWS * COLUMNS,
        ),
    ],
)
def test_uncompressed_pixels_need_their_exact_size(tags, size):
    header = make_image(STILL)
    for keyword, value in tags.items():
        setattr(header, keyword, value)
    assert pixel_bytes(header) == size
    check_counts(header, size)
    with pytest.raises(ImageFileError, match="cannot hold: it is truncated or damaged; copy or export"):
        check_counts(header, size - 1)


@pytest.mark.parametrize(("syntax", "ratio"), [(RLELossless, 64), (JPEG2000Lossless, 20_000)])
def test_encoded_pixels_expand_by_no_more_than_their_encoding_can(syntax, ratio):
    header = make_image(STILL)
    header.file_meta.TransferSyntaxUID = syntax
    header.Rows = header.Columns = 6400
    size = pixel_bytes(header) // ratio
    check_counts(header, size + 1)
    with pytest.raises(ImageFileError, match="cannot hold"):
        check_counts(header, size - 1)


def test_encoded_frames_need_one_fragment_each():
    header = make_image(STILL[:1, :1])
    header.file_meta.TransferSyntaxUID, header.NumberOfFrames = RLELossless, 100
    check_counts(header, 800)
    with pytest.raises(ImageFileError, match=r"states 100 frame\(s\)"):
        check_counts(header, 799)


def test_black_image_in_every_encoding_is_below_the_bounds(tmp_path):
    dataset = make_image(np.zeros((2048, 2048), np.uint16))
    dataset.compress(RLELossless)
    path = write_image(tmp_path / "a.dcm", dataset)
    check_counts(read_header(path), path.stat().st_size)
    assert not DicomReader().get_data(DicomReader().read(path))[0].any()


def test_deflated_bomb_is_listed_without_being_inflated(tmp_path):
    dataset = make_image(STILL)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(200_000_000)
    path = write_image(tmp_path / "a.dcm", dataset)
    del dataset
    tracemalloc.start()
    try:
        assert survey(tmp_path, keep_identifiers=True).descriptions == {
            "a": f"DICOM image of {COLUMNS} x {ROWS}, unknown"
        }
        with pytest.raises(ImageFileError, match=r"inflated size is above the \d+ bytes that its header describes"):
            DicomReader().read(path)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_deflated_header_may_be_longer_than_the_first_part(tmp_path):
    stored = np.arange(ROWS * COLUMNS, dtype=np.uint16).reshape(ROWS, COLUMNS)
    dataset = make_image(stored)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.private_block(0x0019, "MAKER", create=True).add_new(1, "OB", bytes(3 * 2**20))
    path = write_image(tmp_path / "a.dcm", dataset)
    np.testing.assert_array_equal(DicomReader().get_data(DicomReader().read(path))[0], stored.T)


def test_identifiers_of_a_hostile_header_are_still_read(tmp_path):
    path = grouped(tmp_path / "a.dcm", 42_000, 1)
    assert str(read_header(path, more=["PatientName"]).PatientName) == "Beeblebrox^Zaphod"


def test_bounded_stream_counts_reads():
    stream = BoundedStream(io.BytesIO(bytes(10)))
    stream.allow(pydicom.Dataset())
    stream._left = 2
    assert stream.read(3) == bytes(3)
    assert stream.seek(1) == 1
    assert stream.read() == bytes(9)
    with pytest.raises(ImageFileError, match="more items than an image needs"):
        stream.read(1)


def test_count_of_frames_below_one_is_refused():
    with pytest.raises(ImageFileError, match="number of frames is below 1"):
        count_frames(make_image(STILL, NumberOfFrames=-1))


def test_one_frame_in_many_fragments_is_read(tmp_path):
    dataset = make_image(STILL)
    dataset.compress(RLELossless)
    frames = list(pydicom.encaps.generate_fragments(dataset.PixelData))
    dataset.PixelData = encapsulate([frames[1]], fragments_per_frame=2)
    path = write_image(tmp_path / "a.dcm", dataset)
    assert not DicomReader().get_data(DicomReader().read(path))[0].any()
