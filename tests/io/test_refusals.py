"""Errors of libraries become errors of images that quote nothing, in every reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from mrad_med.errors import ImageFileError, NotAnImageError
from mrad_med.io import (
    DicomReader,
    Frame,
    PhotographReader,
    VolumeReader,
    close_frames,
    list_frames,
    read_frame,
    read_image,
    read_image_file,
    read_series,
)
from mrad_med.io.refusals import refusing
from tests.small_dicom import make_image, write_image

SECRET = "Beeblebrox"


class OddError(Exception):
    """An error that no reader expects."""


def test_any_error_becomes_a_refusal_that_names_its_kind_and_quotes_nothing():
    message = r"^damaged \(OddError\); copy it \{again\}$"
    with pytest.raises(ImageFileError, match=message) as refusal, refusing("damaged ({kind}); copy it {again}"):
        raise OddError(SECRET)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize("error", [ImageFileError("too large"), NotAnImageError("a report")])
def test_refusals_stay_as_they_are(error: ImageFileError):
    with pytest.raises(ImageFileError) as refusal, refusing("damaged"):
        raise error
    assert refusal.value is error


@pytest.mark.parametrize(
    ("error", "message"),
    [(FileNotFoundError(2, SECRET), "there is no such file"), (PermissionError(13, SECRET), "no permission to read")],
)
def test_missing_and_unreadable_files_are_reported_as_such(error: OSError, message: str):
    with pytest.raises(ImageFileError, match=message), refusing("damaged"):
        raise error


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, SystemExit])
def test_errors_not_caused_by_a_file_are_not_replaced(kind: type[BaseException]):
    with pytest.raises(kind), refusing("damaged"):
        raise kind


def write_photograph(folder: Path) -> Path:
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    return folder / "a.png"


def write_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", np.zeros((20, 20, 3), np.uint8), photometric="minisblack", planarconfig="contig")
    return folder / "a.tif"


def write_volume(folder: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 3), np.float32), np.eye(4)), folder / "a.nii")
    return folder / "a.nii"


def write_dicom(folder: Path) -> Path:
    place = {"ImagePositionPatient": ["0", "0", "0"], "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]}
    return write_image(folder / "a.dcm", make_image(np.zeros((20, 20), np.uint16), PixelSpacing=["1", "1"], **place))


def read_first_frame(path: Path) -> np.ndarray:
    close_frames()
    return read_frame(Frame(str(path), 0, None))


READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], str]] = {
    "photograph": (write_photograph, PhotographReader().read, "PIL.Image.open"),
    "photograph, any image": (write_photograph, read_image_file, "PIL.Image.open"),
    "image in memory": (write_photograph, lambda path: read_image(Image.open(path)), "PIL.ImageOps.exif_transpose"),
    "TIFF": (write_tiff, PhotographReader().read, "tifffile.TiffFile.__init__"),
    "volume": (write_volume, VolumeReader().read, "nibabel.Nifti1Header.check_fix"),
    "affine of a volume": (write_volume, VolumeReader().read, "nibabel.Nifti1Header.get_best_affine"),
    "DICOM": (write_dicom, DicomReader().read, "pydicom.dcmread"),
    "pixels of DICOM": (write_dicom, read_image_file, "pydicom.pixels.decoders.base.Decoder.as_array"),
    "series": (write_dicom, lambda path: read_series([path]), "pydicom.dcmread"),
    "frame": (write_photograph, read_first_frame, "PIL.Image.open"),
    "frames": (write_photograph, list_frames, "PIL.Image.open"),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_replaces_errors_of_a_library(tmp_path, monkeypatch, caplog, reader):
    write, read, function = READERS[reader]
    path = write(tmp_path)
    read(path)

    def fail(*_, **__):
        raise OddError(SECRET)

    monkeypatch.setattr(function, fail)
    with pytest.raises(ImageFileError, match=r"again|its file is complete|save it as PNG") as refusal:
        read(path)
    assert SECRET not in str(refusal.value) + str(refusal.value.__cause__) + caplog.text
    monkeypatch.setattr(function, lambda *_, **__: run_out_of_memory())
    with pytest.raises(MemoryError):
        read(path)


def run_out_of_memory() -> None:
    raise MemoryError


def test_settings_of_pydicom_are_restored_after_an_error(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no DICOM")
    before = pydicom.config.settings.reading_validation_mode
    with pytest.raises(ImageFileError):
        DicomReader().read(tmp_path / "a.dcm")
    assert pydicom.config.settings.reading_validation_mode == before
