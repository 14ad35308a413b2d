"""Image files opened with Pillow and tifffile as plain images: no program is started and no other file is opened."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import tifffile
from PIL import Image

__all__ = ["open_image", "open_tiff"]

_PILLOW_LIMIT = threading.Lock()  # Pillow's limit is global to the process

# Pillow's names of the formats that are read. For others Pillow may start programs: Ghostscript for PostScript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image with Pillow if its content has one of the formats that are read.

    Pillow's own limit of pixels does not apply; `check_pixels` replaces it. Pillow's warnings and logs are
    switched off.

    Raises:
        UnidentifiedImageError: the content has another format.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # warnings and logs may quote a damaged file
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def open_tiff(path: str | os.PathLike[str]) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF with tifffile, without the log messages of tifffile, which quote the file.

    In OME-TIFF and similar formats a file may name further files. They are not opened.

    Raises:
        TiffFileError: the file is not a TIFF.
    """
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with tifffile.TiffFile(path, _multifile=False, is_ome=False, is_scanimage=False, is_ndpi=False) as tiff:
            yield tiff
    finally:
        log.setLevel(level)
