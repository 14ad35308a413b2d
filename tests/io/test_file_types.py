"""File types: the first bytes take precedence over the name."""

from __future__ import annotations

import gzip
import shutil
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from mrad_med.io.file_types import (
    DICOM,
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    PHOTOGRAPH,
    PHOTOGRAPH_SUFFIXES,
    VIDEO,
    VIDEO_SUFFIXES,
    VOLUME,
    VOLUME_SUFFIXES,
    detect_file_type,
)

SUFFIXES = {PHOTOGRAPH: PHOTOGRAPH_SUFFIXES, DICOM: DICOM_SUFFIXES, VOLUME: VOLUME_SUFFIXES, VIDEO: VIDEO_SUFFIXES}
NAMES = ["image", "image.png", "image.dcm", "image.nii.gz", "image.mp4", "image.txt", "1.2.840.7"]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def write_image(path: Path, kind: str) -> Path:
    Image.new("RGB", (20, 20), (200, 10, 30)).save(path, format=kind)
    return path


def volume(kind: type = nibabel.Nifti1Image, order: str = "<") -> bytes:
    header = kind.header_class(endianness=order)
    return kind(np.zeros((4, 5, 6), np.int16), np.eye(4), header).to_bytes()


@pytest.mark.parametrize(
    ("kind", "suffix"), [(kind, suffix) for kind, suffixes in SUFFIXES.items() for suffix in suffixes]
)
@pytest.mark.parametrize("content", [b"", b"damaged beyond recognition"])
def test_file_that_tells_nothing_is_what_its_name_says(tmp_path, kind, suffix, content):
    for name in (f"a{suffix}", f"A.B{suffix.upper()}"):
        assert detect_file_type(write(tmp_path / name, content)) == kind


def test_each_suffix_has_one_type_and_videos_are_not_images():
    everything = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    assert len(set(everything)) == len(everything)
    assert set(IMAGE_SUFFIXES) == set(everything) - set(VIDEO_SUFFIXES)


@pytest.mark.parametrize("name", ["notes.txt", "table.csv", "png", "archive.gz", "a.zip", "README", "scan.dcm.txt"])
@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\3\4" + bytes(300), b"%PDF-1.7"])
def test_file_that_is_not_an_image_has_no_type(tmp_path, name, content):
    assert detect_file_type(write(tmp_path / name, content)) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_photograph_is_known_whatever_its_name(tmp_path, name, kind):
    assert detect_file_type(write_image(tmp_path / name, kind)) == PHOTOGRAPH


@pytest.mark.parametrize("start", [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])
def test_tiff_of_either_byte_order_and_size_is_a_photograph(tmp_path, start):
    assert detect_file_type(write(tmp_path / "image", start + bytes(200))) == PHOTOGRAPH


@pytest.mark.parametrize("name", NAMES)
def test_dicom_is_known_whatever_its_name_even_with_the_start_of_a_tiff(tmp_path, name):
    path = tmp_path / name
    shutil.copy(get_testdata_file("CT_small.dcm"), path)
    assert path.read_bytes().startswith(b"II*\0")
    assert detect_file_type(path) == DICOM


@pytest.mark.parametrize(("name", "expected"), [("image", DICOM), ("image.dcm", DICOM), ("image.png", PHOTOGRAPH)])
def test_dicom_without_preamble_is_known_unless_its_name_says_otherwise(tmp_path, name, expected):
    dataset = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    dataset.save_as(tmp_path / "whole.dcm")
    assert detect_file_type(write(tmp_path / name, (tmp_path / "whole.dcm").read_bytes()[132:])) == expected


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])
def test_index_of_an_export_disk_is_not_an_image(tmp_path, name):
    shutil.copy(get_testdata_file("dicomdirtests/DICOMDIR"), tmp_path / name)
    assert detect_file_type(tmp_path / name) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_is_a_volume_whatever_its_name_packing_and_byte_order(tmp_path, name, pack, kind, order):
    assert detect_file_type(write(tmp_path / name, pack(volume(kind, order)))) == VOLUME


def test_header_of_a_pair_is_a_volume_too(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "a.hdr")
    assert detect_file_type(tmp_path / "a.hdr") == VOLUME
    assert detect_file_type(tmp_path / "a.img") is None


def test_nrrd_is_a_volume_whatever_its_name(tmp_path):
    assert detect_file_type(write(tmp_path / "image.png", b"NRRD0004\ntype: short\n")) == VOLUME


@pytest.mark.parametrize("content", [b"notes", volume()[:200], bytes(500)])
def test_gzip_of_anything_else_is_what_its_name_says(tmp_path, content):
    packed = gzip.compress(content)
    assert detect_file_type(write(tmp_path / "a.gz", packed)) is None
    assert detect_file_type(write(tmp_path / "a.nii.gz", packed)) == VOLUME
    assert detect_file_type(write(tmp_path / "b.gz", packed[:12])) is None


def test_gzip_is_unpacked_no_further_than_it_tells(tmp_path):
    """A few bytes of gzip may unpack to thousands of times as many."""
    path = write(tmp_path / "bomb", gzip.compress(volume() + bytes(10_000_000)))
    tracemalloc.start()
    try:
        assert detect_file_type(path) == VOLUME
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def box(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(12)


def riff(kind: bytes) -> bytes:
    return b"RIFF" + (1000).to_bytes(4, "little") + kind + bytes(20)


@pytest.mark.parametrize("name", ["image", "image.png", "image.dcm", "image.txt"])
@pytest.mark.parametrize(
    "content",
    [
        *(box(brand) for brand in (b"isom", b"mp42", b"qt  ", b"M4V ")),
        riff(b"AVI "),
        b"\x1aE\xdf\xa3" + bytes(20),
        b"\0\0\x01\xba" + bytes(20),
    ],
)
def test_video_is_known_whatever_its_name(tmp_path, name, content):
    assert detect_file_type(write(tmp_path / name, content)) == VIDEO


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avif", b"crx ", b"M4A "])
def test_still_image_or_sound_in_the_container_of_a_video_is_not_a_video(tmp_path, brand):
    assert detect_file_type(write(tmp_path / "image.heic", box(brand))) is None
    assert detect_file_type(write(tmp_path / "image", box(brand))) is None
    assert detect_file_type(write(tmp_path / "image.jpg", box(brand))) == PHOTOGRAPH  # the reader then names it as bad


def test_what_riff_holds_decides(tmp_path):
    assert detect_file_type(write(tmp_path / "image.avi", riff(b"WEBP"))) == PHOTOGRAPH
    assert detect_file_type(write(tmp_path / "image.webp", riff(b"AVI "))) == VIDEO
    assert detect_file_type(write(tmp_path / "sound.wav", riff(b"WAVE"))) is None


@pytest.mark.parametrize("kept", [1, 4, 8, 12])
def test_cut_file_is_what_is_left_of_it_or_its_name(tmp_path, kept):
    content = write_image(tmp_path / "whole", "PNG").read_bytes()[:kept]
    assert detect_file_type(write(tmp_path / "cut.png", content)) == PHOTOGRAPH
    assert detect_file_type(write(tmp_path / "cut", content)) == (PHOTOGRAPH if kept >= 8 else None)


def test_file_that_cannot_be_read_is_what_its_name_says(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.dcm").symlink_to(tmp_path / "loop.dcm")
    assert detect_file_type(tmp_path / "missing.nii") == VOLUME
    assert detect_file_type(tmp_path / "missing") is None
    assert detect_file_type(tmp_path / "folder.png") == PHOTOGRAPH
    assert detect_file_type(tmp_path / "folder") is None
    assert detect_file_type(tmp_path / "loop.dcm") == DICOM


def test_windows_media_is_a_video_whatever_its_name(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "video.wmv"), "w", format="asf") as container:
        stream = container.add_stream("wmv2", 25, width=32, height=32)
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    assert detect_file_type((tmp_path / "video.wmv").rename(tmp_path / "video")) == VIDEO


def test_text_that_begins_like_a_bitmap_is_none(tmp_path):
    assert detect_file_type(write(tmp_path / "notes", b"BMI of all patients")) is None
