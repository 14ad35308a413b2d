"""Cases that are a part of one DICOM file: one frame of a sequence, or the frames of one volume."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.frames import Frame
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.io.videos import identity_of
from mrad_med.store import paths_of

__all__ = ["DicomFrame", "DicomStack", "frames_of", "read_dicom_frames", "source_paths"]


@dataclass(frozen=True)
class DicomFrame(Frame):
    """One frame of a DICOM file whose frames follow each other in time, such as a cine of ultrasound.

    Attributes:
        path: path of the file.
        index: number of the frame in the file, from 0.
        time: seconds since the first frame; None where the file does not state it.
    """


@dataclass(frozen=True)
class DicomStack:
    """Frames of a DICOM file that form one volume, or one image, beside others in the same file.

    Attributes:
        path: path of the file.
        frames: numbers of the frames in the file, from 0, in stored order.
    """

    path: str
    frames: tuple[int, ...]


class _LastFile:
    """The encoded pixels of the file that was read last: the frames of a sequence are read one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[Any, ...] = ()
        self._dataset: pydicom.Dataset | None = None

    def read(self, reader: DicomReader, path: Path) -> pydicom.Dataset:
        key = (path, identity_of(path), reader.max_pixels, reader.max_voxels, len(reader.frames or ()))
        with self._lock:
            if self._dataset is None or self._key != key:
                self._dataset = None  # released before another file is read
                self._dataset, self._key = reader.read(path), key
            return self._dataset


_LAST = _LastFile()  # global: transforms are built from configs and pickled to workers


def frames_of(source: Any) -> tuple[int, ...] | None:
    """Return the numbers, from 0, of the frames of a file that a case consists of; None for all frames of its files."""
    if isinstance(source, DicomStack):
        return source.frames
    return (source.index,) if isinstance(source, DicomFrame) else None


def source_paths(source: Any) -> Sequence[str | os.PathLike[str]]:
    """Return the paths of the files from which a source is read; empty for an image in memory."""
    return [source.path] if isinstance(source, (Frame, DicomStack)) else paths_of(source)


def read_dicom_frames(
    source: DicomFrame | DicomStack, *, max_pixels: int = MAX_PIXELS
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return the array and the metadata of frames of a DICOM file, as `DicomReader` does.

    Args:
        source: the frames.
        max_pixels: largest number of pixels of a frame; larger ones are refused.

    Raises:
        ImageFileError: the file cannot be read, or the frames do not form a volume.
    """
    path, frames = Path(source.path), frames_of(source) or ()
    if not path.is_file():
        raise ImageFileError("there is no such file")
    reader = DicomReader(max_pixels, frames=_checked(frames))
    return reader.get_data(_LAST.read(reader, path))


def _checked(frames: Sequence[int]) -> tuple[int, ...]:
    if not frames or min(frames) < 0 or len(set(frames)) < len(frames):
        raise ImageFileError("frames are distinct numbers from 0; list them with find_cases")
    return tuple(frames)
