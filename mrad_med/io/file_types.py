"""File types of images, detected from the first bytes or else from the name."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from mrad_med.errors import ImageFileError

__all__ = [
    "DICOM",
    "DICOM_SUFFIXES",
    "IMAGE_SUFFIXES",
    "PHOTOGRAPH",
    "PHOTOGRAPH_SUFFIXES",
    "VIDEO",
    "VIDEO_SUFFIXES",
    "VOLUME",
    "VOLUME_SUFFIXES",
    "detect_file_type",
    "is_image",
    "may_have_pages",
]

PHOTOGRAPH, DICOM, VOLUME, VIDEO = "photograph", "DICOM", "volume", "video"

PHOTOGRAPH_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts")
IMAGE_SUFFIXES = PHOTOGRAPH_SUFFIXES + DICOM_SUFFIXES + VOLUME_SUFFIXES

_BY_SUFFIX = {PHOTOGRAPH: PHOTOGRAPH_SUFFIXES, DICOM: DICOM_SUFFIXES, VOLUME: VOLUME_SUFFIXES, VIDEO: VIDEO_SUFFIXES}
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": PHOTOGRAPH,
    b"\xff\xd8\xff": PHOTOGRAPH,  # JPEG
    b"GIF8": PHOTOGRAPH,
    b"II*\x00": PHOTOGRAPH,  # TIFF, and BigTIFF below
    b"MM\x00*": PHOTOGRAPH,
    b"II+\x00": PHOTOGRAPH,
    b"MM\x00+": PHOTOGRAPH,
    b"NRRD000": VOLUME,
    b"P5\n": PHOTOGRAPH,  # PGM
    b"P6\n": PHOTOGRAPH,  # PPM
    b"\x1aE\xdf\xa3": VIDEO,  # Matroska and WebM
    b"0&\xb2u\x8ef\xcf\x11": VIDEO,  # ASF: WMV
    b"\x00\x00\x01\xba": VIDEO,  # MPEG
}
_DICOM_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")  # 2 or 8, in either byte order
_IN_RIFF = {b"WEBP": PHOTOGRAPH, b"AVI ": VIDEO}
_NOT_VIDEOS = (b"avif", b"heic", b"heim", b"heis", b"heix", b"mif1", b"crx ", b"M4A ", b"M4B ")  # images, sound
_NIFTI_SIZES = {348: (344, (b"n+1\0", b"ni1\0")), 540: (4, (b"n+2\0", b"ni2\0"))}  # header size: offset of its magic
_FIRST = 360  # bytes read to detect the type

# First bytes of image formats; WebP is detected inside RIFF.
_WITH_PAGES = (b"GIF8", b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WITHOUT_PAGES = (b"\xff\xd8\xff", b"BM", b"P5", b"P6")


def detect_file_type(path: Path) -> str | None:
    """Return the type of an image file: photograph, DICOM, volume or video. Return None for any other file.

    The first bytes take precedence, so files with a missing or wrong suffix are detected. The name decides where the
    first bytes match no format, for example in a damaged file.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(_FIRST)
    except OSError:
        start = b""
    if path.name.upper() == "DICOMDIR":  # the index of an export disk is not an image
        return None
    if start[128:132] == b"DICM":  # checked first: the bytes before it may be a valid TIFF header
        return DICOM
    name = path.name.lower()
    by_name = next((file_type for file_type, suffixes in _BY_SUFFIX.items() if name.endswith(suffixes)), None)
    # Without a preamble only two bytes indicate DICOM. Other files may have them, so the name takes precedence.
    return _by_content(start) or by_name or (DICOM if start[:2] in _DICOM_GROUPS else None)


def _by_content(start: bytes) -> str | None:
    for beginning, file_type in _BEGINNINGS.items():
        if start.startswith(beginning):
            return file_type
    if start.startswith(b"BM") and start[6:10] == bytes(4):
        return PHOTOGRAPH
    if start.startswith(b"RIFF"):
        return _IN_RIFF.get(start[8:12])
    if start[4:8] == b"ftyp":
        return None if start[8:12] in _NOT_VIDEOS else VIDEO
    if start.startswith(b"\x1f\x8b"):
        start = _unzipped(start)
    sizes = (int.from_bytes(start[:4], order) for order in ("little", "big"))
    magics_at = [_NIFTI_SIZES[size] for size in sizes if size in _NIFTI_SIZES]
    return VOLUME if any(start[offset : offset + 4] in magics for offset, magics in magics_at) else None


def _unzipped(start: bytes) -> bytes:
    """Return the decompressed beginning of a gzip file."""
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _FIRST)
    except zlib.error:
        return b""


def may_have_pages(path: Path) -> bool:
    """Return whether the first bytes are those of a format that can hold several images: GIF, PNG, TIFF, WebP."""
    return _begins(path, _WITH_PAGES)


def is_image(path: str | os.PathLike[str]) -> bool:
    """Return whether the first bytes are those of an image format that Pillow reads, and not of a video.

    Raises:
        ImageFileError: the file is missing or empty.
    """
    if not Path(path).is_file():
        raise ImageFileError("there is no such file")
    if Path(path).stat().st_size == 0:
        raise ImageFileError("the file is empty (0 bytes); copy or export it again")
    return _begins(Path(path), _WITH_PAGES + _WITHOUT_PAGES)


def _begins(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    with path.open("rb") as stream:
        start = stream.read(12)
    return start.startswith(beginnings) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
