"""Small valid files of every format that is read, which ``fuzz.py`` damages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from mrad_med.io.frames import OverlayVideo
from mrad_med.io.volume_writer import write_volume

SECRET = "Beeblebrox"  # in every free text of the originals
DICOM_NAMES = (
    "CT_small",
    "MR_small",
    "MR_small_RLE",
    "MR_small_bigendian",
    "MR_small_implicit",
    "MR_small_jp2klossless",
    "JPEG2000",
    "MR_small_expb",
    "MR_small_padded",
    "SC_rgb_rle",
    "SC_rgb_rle_16bit_2frame",
    "SC_rgb_jpeg_dcmtk",
    "SC_ybr_full_422_uncompressed",
    "SC_rgb_rle_32bit",
    "SC_rgb_jls_lossy_line",
    "MR_small_jpeg_ls_lossless",
    "image_dfl",
    "examples_palette",
)


def write_originals(folder: Path) -> list[Path]:
    """Write small valid files of every format whose free texts hold `SECRET`, and return their paths."""
    noise = np.random.RandomState(0)
    for name in DICOM_NAMES:
        dataset = pydicom.dcmread(str(get_testdata_file(f"{name}.dcm", download=False)), force=True)
        dataset.PatientName = dataset.PatientID = dataset.StudyDescription = SECRET
        dataset.save_as(folder / f"{name}.dcm", enforce_file_format=False)
    values = noise.rand(20, 18, 17).astype(np.float32)
    affine = np.array([[-1.0, 0, 0, 9], [0, 0.8, 0.3, 5], [0, -0.3, 2, 7], [0, 0, 0, 1]])
    for name, kind in (("one.nii", nibabel.Nifti1Image), ("two.nii", nibabel.Nifti2Image), ("packed.nii.gz", None)):
        image = (kind or nibabel.Nifti1Image)((values * 1000).astype(np.int16), affine)
        image.header["descrip"] = SECRET
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET.encode()))
        nibabel.save(image, folder / name)
    write_volume(folder / "packed.nrrd", values, affine)
    for encoding, data in (("raw", values.tobytes("F")), ("ascii", " ".join(map(str, values.ravel("F"))).encode())):
        fields = (
            f"type: float\ndimension: 3\nsizes: 20 18 17\nencoding: {encoding}\nendian: little\ncontent: {SECRET}\n"
        )
        grid = "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (1,2,3)\n"
        (folder / f"{encoding}.nrrd").write_bytes(f"NRRD0004\n{fields}{grid}patient:={SECRET}\n\n".encode() + data)
    _write_pictures(folder, noise.randint(0, 256, (5, 40, 50, 3)).astype(np.uint8))
    return sorted(folder.iterdir())


def _write_pictures(folder: Path, pixels: np.ndarray[Any, Any]) -> None:
    pages = [Image.fromarray(page) for page in pixels]
    exif = Image.Exif()
    exif[0x010E] = exif[0x9286] = SECRET  # description and comment
    exif[0x0112] = 6  # orientation
    info = {"exif": exif, "comment": SECRET}
    for suffix in ("png", "jpg", "webp", "tif"):
        pages[0].save(folder / f"one.{suffix}", **info)
    pages[0].convert("P").save(folder / "palette.png", transparency=3)
    pages[0].convert("CMYK").save(folder / "cmyk.jpg")
    pages[0].save(folder / "progressive.jpg", progressive=True)
    pages[0].convert("I;16").save(folder / "deep.png")
    for name in ("many.gif", "many.webp", "many.png"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:], duration=[100, 50, 40, 30, 20], **info)
    tifffile.imwrite(folder / "pages.tif", pixels, photometric="rgb", compression="zlib", description=SECRET)
    tifffile.imwrite(folder / "tiles.tif", pixels[0, ..., 0], tile=(16, 16), metadata=None, software=SECRET)
    tifffile.imwrite(folder / "ome.ome.tif", pixels[..., 0], metadata={"axes": "TYX", "Name": SECRET})
    pages[0].convert("L").save(folder / "jpeg.tif", compression="jpeg")
    with OverlayVideo(folder / "video.mp4", frames_per_second=25) as video:
        for page in pixels:
            video.write(page)
