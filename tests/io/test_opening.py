"""Only the formats that are read are opened: no program is started, no other file opened, nothing logged."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, UnidentifiedImageError

from mrad_med.data.masks import check_masks
from mrad_med.errors import ImageFileError
from mrad_med.io.frames import Frame, list_frames, read_frame
from mrad_med.io.image import read_image_file
from mrad_med.io.opening import open_image, open_tiff

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
READ = {".bmp": "BMP", ".gif": "GIF", ".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM", ".tif": "TIFF", ".webp": "WEBP"}
NOT_READ = [".eps", ".pdf", ".tga", ".ico", ".sgi", ".jp2", ".dds", ".avif"]


@pytest.fixture
def postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return PostScript that is named as a PNG; any program that is started fails the test."""
    path = tmp_path / "image.png"
    path.write_bytes(POSTSCRIPT)
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *_, **__: pytest.fail("a program was started"))
    return path


def test_pillow_alone_would_open_postscript(postscript):
    with Image.open(postscript) as image:
        assert image.format == "EPS"


@pytest.mark.parametrize(
    "read",
    [read_image_file, list_frames, lambda path: read_frame(Frame(str(path), 0, None))],
    ids=["image", "frames", "frame"],
)
def test_postscript_named_as_an_image_is_refused_without_starting_a_program(postscript, read):
    with pytest.raises(ImageFileError, match=r"not an image in any known format|not a video or image"):
        read(postscript)


def test_postscript_named_as_a_mask_is_a_problem_and_starts_no_program(postscript):
    Image.new("RGB", (40, 30)).save(postscript.with_name("real.png"))
    case = {"image": str(postscript.with_name("real.png")), "mask": str(postscript), "case_id": "a"}
    assert check_masks([case]) == ["a: its mask cannot be opened; copy it again"]


@pytest.mark.parametrize(("suffix", "name"), READ.items())
def test_formats_that_are_read_are_opened_whatever_their_name(tmp_path, suffix, name):
    Image.new("RGB", (40, 30)).save(tmp_path / f"a{suffix}")
    with open_image((tmp_path / f"a{suffix}").rename(tmp_path / "a.png")) as image:
        assert image.format == name


@pytest.mark.parametrize("suffix", NOT_READ)
def test_other_formats_of_pillow_are_not_opened(tmp_path, suffix):
    Image.new("RGB", (64, 64)).save(tmp_path / f"a{suffix}")
    with pytest.raises(UnidentifiedImageError, match="cannot identify"):
        open_image(tmp_path / f"a{suffix}")


def test_limit_of_pillow_does_not_hold_and_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(Image.DecompressionBombError), Image.open(tmp_path / "a.png"):
        pass
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_pillow_warns_of_nothing(tmp_path, recwarn):
    path = tmp_path / "a.tif"
    Image.new("L", (40, 30)).save(path, description="Beeblebro")
    path.write_bytes(path.read_bytes().replace(b"\x0e\x01\x02\x00\x0a\x00", b"\x0e\x01\x02\x00\xff\x7f"))
    with Image.open(path, formats=["TIFF"]) as image:
        image.getexif()
    assert [warning for warning in recwarn if "PIL" in warning.filename]
    recwarn.clear()
    with open_image(path) as image:
        image.getexif()
    assert [str(warning) for warning in recwarn] == []


def test_pillow_logs_nothing_of_a_file(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("PIL"), "level", logging.NOTSET)
    path = tmp_path / "a.tif"
    Image.new("RGB", (40, 30)).save(path)
    count = path.read_bytes().index(b"\x15\x01\x03\x00\x01\x00\x00\x00") + 8  # samples per pixel
    content = bytearray(path.read_bytes())
    content[count : count + 2] = (9999).to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(UnidentifiedImageError), Image.open(path, formats=["TIFF"]):
        pass
    assert "9999" in caplog.text
    caplog.clear()
    with pytest.raises(UnidentifiedImageError), open_image(path):
        pass
    assert caplog.text == ""


def test_tifffile_tells_nothing_of_a_file(tmp_path, caplog):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((3, 4), np.uint8), software="Beeblebrox")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x31\x01\x02\x00", b"\x31\x01\x02\xf0"))  # an impossible type of the tag
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].imagewidth == 4
    assert "tifffile" in str(caplog.records)
    caplog.clear()
    with open_tiff(path) as tiff:
        assert tiff.pages[0].imagewidth == 4
    assert caplog.records == []
