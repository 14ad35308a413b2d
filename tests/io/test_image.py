"""Readers against Pillow, pydicom and nibabel, and a long list of files that must be refused with advice."""

from __future__ import annotations

import struct
import zlib
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
import tifffile
import torch
from monai.transforms import LoadImage
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import apply_color_lut

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.file_types import DICOM, detect_file_type
from mrad_med.io.image import read_image_file
from mrad_med.io.photographs import PhotographReader
from mrad_med.transforms.spatial import ToDisplayOrientation

ROWS, COLUMNS = 20, 30
ORIENTATION_TAG = 0x0112  # of EXIF
META_KEYS = {"affine", "original_affine", "spatial_shape", "space", "filename_or_obj"}
DICOM_META_KEYS = META_KEYS | set(VOIKeys.ALL)
OBLIQUE = np.array([[0.8, 0.1, 0.0, -10.0], [-0.1, 0.8, 0.2, 5.0], [0.0, -0.2, 2.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
DICOM_FILES = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


def gray_pixels() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (ROWS, COLUMNS)).astype(np.uint8)


def color_pixels() -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)


def write_image_file(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def as_shown(path: Path, mode: str = "RGB") -> np.ndarray:
    """What Pillow shows of a file, as (C, W, H)."""
    with Image.open(path) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image).convert(mode))
    return pixels.T[None] if pixels.ndim == 2 else pixels.transpose(2, 1, 0)


def over_black(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colors * (alpha[..., None] / 255.0)


def bundled_dicom(name: str) -> Path:
    (path,) = [path for path in DICOM_FILES if path.name == name]
    return path


def png_with_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


# photographs


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "A.JPEG", "a.bmp", "a.tif", "a.TIFF", "a.webp", "a.gif", "a.ppm"])
def test_color_photograph_is_what_pillow_shows_indexed_by_width_and_height(tmp_path, name):
    path = write_image_file(tmp_path / name, color_pixels())
    image = read_image_file(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, COLUMNS, ROWS)
    np.testing.assert_array_equal(image.numpy(), as_shown(path))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.pgm"])
def test_gray_photograph_has_one_channel(tmp_path, name):
    path = write_image_file(tmp_path / name, gray_pixels())
    image = read_image_file(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), as_shown(path, "L"))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bit_gray_keeps_its_own_units(tmp_path, name):
    pixels = np.random.RandomState(2).randint(0, 65536, (ROWS, COLUMNS)).astype(np.uint16)
    image = read_image_file(write_image_file(tmp_path / name, pixels))
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy()[0], pixels.T)


@pytest.mark.parametrize("dtype", ["float32", "int32", ">u2", "<u2"])
def test_deep_tiff_keeps_its_own_units(tmp_path, dtype):
    pixels = (np.random.RandomState(3).rand(ROWS, COLUMNS) * 4000).astype(dtype)
    path = tmp_path / "deep.tiff"
    tifffile.imwrite(path, pixels, byteorder=">" if dtype.startswith(">") else "<")
    image = read_image_file(path)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy()[0], pixels.T)


def test_palette_becomes_its_colors(tmp_path):
    path = write_image_file(tmp_path / "palette.png", Image.fromarray(color_pixels()).quantize(8))
    np.testing.assert_array_equal(read_image_file(path).numpy(), as_shown(path))


def test_transparent_entry_of_a_palette_becomes_black(tmp_path):
    palette = Image.fromarray(color_pixels()).quantize(8)
    path = write_image_file(tmp_path / "palette.png", palette, transparency=3)
    hidden = np.asarray(palette).T == 3
    expected = np.where(hidden, 0, np.asarray(palette.convert("RGB")).transpose(2, 1, 0))
    assert hidden.any()
    np.testing.assert_array_equal(read_image_file(path).numpy(), expected)


def test_alpha_is_laid_over_black(tmp_path):
    colors, alpha = color_pixels(), gray_pixels()
    alpha[0, :2] = 0, 255
    path = write_image_file(tmp_path / "alpha.png", np.dstack([colors, alpha]))
    image = read_image_file(path).numpy().transpose(2, 1, 0)
    np.testing.assert_allclose(image, over_black(colors, alpha), atol=1)
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, 1].tolist() == colors[0, 1].tolist()


def test_alpha_of_a_gray_image_is_laid_over_black(tmp_path):
    gray, alpha = gray_pixels(), gray_pixels()[::-1]
    path = write_image_file(tmp_path / "alpha.png", Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]))
    image = read_image_file(path).numpy().transpose(2, 1, 0)
    np.testing.assert_allclose(image, over_black(np.dstack([gray] * 3), alpha), atol=1)


@pytest.mark.parametrize("hidden", [200, (200, 10, 20)])
def test_transparent_color_of_a_png_without_alpha_becomes_black(tmp_path, hidden):
    pixels = gray_pixels() if isinstance(hidden, int) else color_pixels()
    pixels[:5, :4] = hidden
    image = read_image_file(write_image_file(tmp_path / "transparent.png", pixels, transparency=hidden))
    assert image[:, :4, :5].max() == 0
    assert image[:, 4:].max() > 0


def test_1_bit_image_becomes_black_and_white(tmp_path):
    bits = gray_pixels() > 127
    image = read_image_file(write_image_file(tmp_path / "bits.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(image.numpy()[0], np.where(bits.T, 255, 0))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = write_image_file(tmp_path / "print.jpg", Image.fromarray(color_pixels()).convert("CMYK"))
    np.testing.assert_array_equal(read_image_file(path).numpy(), as_shown(path))


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path = write_image_file(tmp_path / name, color_pixels(), exif=exif)
    image = read_image_file(path)
    assert image.shape[1:] == ((COLUMNS, ROWS) if orientation < 5 else (ROWS, COLUMNS))
    np.testing.assert_array_equal(image.numpy(), as_shown(path))


def test_constant_image_is_read(tmp_path):
    image = read_image_file(write_image_file(tmp_path / "constant.png", Image.new("RGB", (40, 30), (9, 8, 7))))
    assert image.shape == (3, 40, 30)
    assert [channel.unique().tolist() for channel in image.as_tensor()] == [[9], [8], [7]]


def test_preview_that_a_camera_adds_to_a_jpeg_is_skipped(tmp_path):
    first, preview = Image.fromarray(color_pixels()), Image.new("RGB", (16, 16))
    stream = BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[preview])
    path = tmp_path / "camera.jpg"
    path.write_bytes(stream.getvalue())
    np.testing.assert_array_equal(read_image_file(path).numpy(), as_shown(path))


@pytest.mark.parametrize("name", ["several.gif", "several.tif", "several.png", "several.webp"])
def test_several_frames_or_pages_are_refused_with_advice(tmp_path, name):
    frames = [Image.fromarray(color_pixels()), Image.fromarray(255 - color_pixels())]
    path = write_image_file(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageFileError, match=r"2 frames or pages; save each as a separate file"):
        read_image_file(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_photograph_is_refused_with_advice(tmp_path, name):
    path = write_image_file(tmp_path / name, color_pixels())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageFileError, match=r"damaged or truncated .*; copy or export it again"):
        read_image_file(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif", "webp", "ppm"])
def test_photograph_cut_anywhere_is_whole_or_refused(tmp_path, suffix):
    path = write_image_file(tmp_path / f"cut.{suffix}", color_pixels())
    content, whole, refused = path.read_bytes(), read_image_file(path), 0
    for length in {*range(1, len(content), len(content) // 25), len(content) - 12, len(content) - 2, len(content) - 1}:
        path.write_bytes(content[:length])
        try:
            image = read_image_file(path)
        except ImageFileError:
            refused += 1
        else:
            assert torch.equal(image, whole), f"half an image out of {length} of {len(content)} bytes"
    assert refused > 20


@pytest.mark.parametrize("reader", [PhotographReader().read, read_image_file])
def test_tiff_whose_second_page_is_damaged_is_refused(tmp_path, reader):
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(path, np.stack([gray_pixels()] * 2), photometric="minisblack", metadata=None)
    content, width = path.read_bytes(), struct.pack("<HH", 256, 4)  # tag ImageWidth, type LONG
    first, second = content.index(width), content.rindex(width)
    assert first < second
    path.write_bytes(content[:second] + struct.pack("<HH", 255, 4) + content[second + 4 :])
    with pytest.raises(ImageFileError, match="copy or export it again"):
        reader(path)


def test_tiff_of_colors_declared_as_gray_samples_is_read_all_the_same(tmp_path):
    """Some frames of CVC-ClinicDB are such files: Pillow refuses them, tifffile does not."""
    path = tmp_path / "frame.tif"
    tifffile.imwrite(path, color_pixels(), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnidentifiedImageError), Image.open(path):
        pass
    image = read_image_file(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), color_pixels().transpose(2, 1, 0))


def test_tiff_of_numbers_that_pillow_does_not_know_keeps_its_values(tmp_path):
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, gray_pixels() / 3.0)
    np.testing.assert_array_equal(read_image_file(path)[0], (gray_pixels().T / 3.0).astype(np.float32))


def test_tiff_that_pillow_does_not_know_is_shown_upright(tmp_path):
    path = tmp_path / "turned.tif"
    tifffile.imwrite(path, gray_pixels() / 3.0, extratags=[(ORIENTATION_TAG, 3, 1, 6, True)])
    upright = np.rot90(gray_pixels() / 3.0, -1)  # 6: turned by 90 degrees against the clock
    np.testing.assert_array_equal(read_image_file(path)[0], upright.T.astype(np.float32))


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (gray_pixels() / 3.0, {"photometric": "miniswhite"}, "neither plain gray values nor RGB colors"),
        (color_pixels().view(np.int8), {"photometric": "rgb"}, r"unsupported values \(int8\); save it as PNG"),
        (gray_pixels() + 1j, {}, r"unsupported values \(complex128\); save it as PNG"),
        (np.zeros((2, ROWS, COLUMNS)), {"photometric": "minisblack"}, "2 frames or pages; save each as a separate"),
    ],
)
def test_tiff_that_neither_library_can_show_is_refused_with_advice(tmp_path, pixels, options, message):
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, pixels, **options)
    with pytest.raises(ImageFileError, match=message):
        read_image_file(path)


def test_tiff_that_only_tifffile_knows_keeps_to_the_limit(tmp_path):
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, gray_pixels() / 3.0)
    with pytest.raises(ImageFileError, match=rf"{COLUMNS} x {ROWS} pixels are more than the limit of 599"):
        read_image_file(path, max_pixels=ROWS * COLUMNS - 1)


def test_tiff_whose_pixels_are_cut_off_is_refused_with_advice(tmp_path):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, gray_pixels() / 3.0, compression="zlib")
    content = bytearray(path.read_bytes())
    content[-200:] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match=r"the TIFF cannot be read \(\w+\); save it as PNG"):
        read_image_file(path)


def test_huge_image_is_refused_by_its_header_alone(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_with_header(20000, 20000))
    with pytest.raises(ImageFileError, match=r"20000 x 20000 pixels .* limit of 100000000; .*raise the limit"):
        read_image_file(path)


def test_limit_on_pixels_can_be_moved(tmp_path):
    path = write_image_file(tmp_path / "a.png", color_pixels())
    assert read_image_file(path, max_pixels=ROWS * COLUMNS).shape == (3, COLUMNS, ROWS)
    with pytest.raises(ImageFileError, match=r"30 x 20 pixels are more than the limit of 599"):
        read_image_file(path, max_pixels=ROWS * COLUMNS - 1)


@pytest.mark.parametrize("content", ["whole", "cut", "text"])
def test_limit_of_pillow_gives_way_and_is_restored(tmp_path, monkeypatch, content):
    path = write_image_file(tmp_path / "a.png", color_pixels())
    whole = path.read_bytes()
    path.write_bytes({"whole": whole, "cut": whole[:200], "text": b"no image"}[content])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow itself refuses twice as many with an error of its own
    if content == "whole":
        assert read_image_file(path).shape == (3, COLUMNS, ROWS)
    else:
        with pytest.raises(ImageFileError):
            read_image_file(path)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 15)])
def test_tiny_image_is_refused(tmp_path, size):
    path = write_image_file(tmp_path / "tiny.png", Image.new("RGB", size))
    with pytest.raises(ImageFileError, match=rf"{size[0]} x {size[1]} pixels are too few; at least 16 x 16"):
        read_image_file(path)


def test_smallest_allowed_image_is_read(tmp_path):
    path = write_image_file(tmp_path / "small.png", Image.new("L", (16, 16)))
    assert read_image_file(path).shape == (1, 16, 16)


def test_text_named_as_an_image_is_refused(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("patient 17, second visit")
    with pytest.raises(
        ImageFileError, match="not an image in any known format; check that the name is right"
    ) as refusal:
        read_image_file(path)
    assert "patient 17" not in str(refusal.value)


def test_unknown_suffix_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "picture.xyz"
    path.write_bytes(b"content")
    with pytest.raises(
        ImageFileError, match=r"unknown file type; give a DICOM file or one that ends in \.png.*\.dcm.*\.nii\.gz"
    ):
        read_image_file(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a.nii", "a.nii.gz", "a"])
def test_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ImageFileError, match=r"the file is empty \(0 bytes\); copy or export it again"):
        read_image_file(tmp_path / name)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageFileError, match="there is no such file"):
            read_image_file(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "dcm", "nii", "nii.gz", "tif"])
def test_random_bytes_are_refused_whatever_the_name(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    path.write_bytes(np.random.RandomState(4).bytes(3000))
    with pytest.raises(ImageFileError, match=r"again|the name is right"):
        read_image_file(path)


def test_reader_takes_one_file_at_a_time(tmp_path):
    path = write_image_file(tmp_path / "a.png", gray_pixels())
    assert PhotographReader().read([path]).size == (COLUMNS, ROWS)
    with pytest.raises(ImageFileError, match="one file is one case, got 2 files; list them as separate cases"):
        PhotographReader().read([path, path])


def test_reader_knows_photographs_by_their_names():
    reader = PhotographReader()
    assert reader.verify_suffix("a.PNG")
    assert reader.verify_suffix([Path("a.jpg"), "b.tiff"])
    assert not reader.verify_suffix("a.dcm")
    assert not reader.verify_suffix(["a.jpg", "b.nii.gz"])


@pytest.mark.parametrize("pixels", [gray_pixels(), color_pixels()])
def test_reader_serves_monai(tmp_path, pixels):
    path = write_image_file(tmp_path / "a.png", pixels)
    loaded = LoadImage(reader=PhotographReader(), image_only=True, ensure_channel_first=True)(path)
    np.testing.assert_array_equal(loaded.numpy(), read_image_file(path).numpy())


def test_array_of_the_reader_may_be_written_to(tmp_path):
    """PyTorch warns of undefined behavior when it is given an array that may not."""
    reader = PhotographReader()
    array, _ = reader.get_data(reader.read(write_image_file(tmp_path / "a.png", color_pixels())))
    assert array.flags.writeable


def test_metadata_of_a_photograph_stays_behind(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "Zaphod Beeblebrox"  # ImageDescription
    image = read_image_file(write_image_file(tmp_path / "a.jpg", color_pixels(), exif=exif, comment=b"Beeblebrox"))
    assert set(image.meta) <= META_KEYS
    assert "Beeblebrox" not in str(image.meta)


# DICOM


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "examples_overlay.dcm"]
)
def test_gray_dicom_is_in_rescaled_units(name):
    path = bundled_dicom(name)
    dataset = pydicom.dcmread(path)
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    image = read_image_file(path)
    assert image.dtype == torch.float32
    assert image.shape == (1, dataset.Columns, dataset.Rows)
    np.testing.assert_array_equal(image.numpy()[0], expected.T)


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "ExplVR_BigEnd.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm"]
)
def test_color_dicom_is_rgb(name):
    path = bundled_dicom(name)
    expected = pixel_array(path)  # pydicom converts YBR
    image = read_image_file(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), expected.transpose(2, 1, 0))


def test_8_bit_gray_dicom_keeps_its_bytes():
    path = bundled_dicom("image_dfl.dcm")
    image = read_image_file(path)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy()[0], pydicom.dcmread(path).pixel_array.T)


def test_slope_and_intercept_of_a_dicom_are_applied(tmp_path):
    dataset = pydicom.dcmread(bundled_dicom("CT_small.dcm"))
    dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "-7.25"
    path = tmp_path / "rescaled.dcm"
    dataset.save_as(path)
    np.testing.assert_array_equal(read_image_file(path).numpy()[0], dataset.pixel_array.T * 0.5 - 7.25)


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619.2.5", "slice.png", "slice.DCM", "slice.ima"])
def test_dicom_is_known_by_its_first_bytes(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bundled_dicom("CT_small.dcm").read_bytes())
    assert detect_file_type(path) == DICOM
    assert torch.equal(read_image_file(path), read_image_file(bundled_dicom("CT_small.dcm")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtdose.dcm", "this DICOM object is a radiotherapy dose, not an image; leave it out"),
        ("rtplan.dcm", "this DICOM object is a radiotherapy plan or record, not an image; leave it out"),
        ("test-SR.dcm", "this DICOM object is a structured report, not an image; leave it out"),
        ("waveform_ecg.dcm", "this DICOM object is a waveform, not an image; leave it out"),
        ("priv_SQ.dcm", "its header does not state the image size and may be truncated; export it again"),
        (
            "MR_truncated.dcm",
            r"pixel data cannot be decoded \(\w+\): it is damaged, truncated .*; copy or export the file again",
        ),
        ("no_meta.dcm", "the DICOM header cannot be read; copy or export the file again"),
        ("SC_rgb_small_odd.dcm", "3 x 3 pixels are too few"),
    ],
)
def test_dicom_that_cannot_be_scored_is_refused_with_advice(name, message):
    with pytest.raises(ImageFileError, match=message):
        read_image_file(bundled_dicom(name))


def test_inverted_dicom_equals_its_twin(tmp_path):
    dataset = pydicom.dcmread(bundled_dicom("MR_small.dcm"))
    dataset.save_as(tmp_path / "twin.dcm")
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelData = (-1 - dataset.pixel_array).tobytes()  # of 16 signed bits
    dataset.save_as(tmp_path / "inverted.dcm")
    assert torch.equal(read_image_file(tmp_path / "inverted.dcm"), read_image_file(tmp_path / "twin.dcm"))


def test_palette_of_a_dicom_becomes_its_colors():
    path = bundled_dicom("examples_palette.dcm")
    dataset = pydicom.dcmread(path)
    expected = apply_color_lut(dataset.pixel_array, dataset) >> 8
    np.testing.assert_array_equal(read_image_file(path).numpy(), expected.transpose(2, 1, 0))


def test_film_of_a_dicom_is_a_volume_with_colors():
    path = bundled_dicom("SC_rgb_rle_2frame.dcm")
    image = read_image_file(path)
    assert image.shape == (3, 100, 100, 2)
    np.testing.assert_array_equal(image.numpy(), pixel_array(path).transpose(3, 2, 1, 0))


def test_dicom_without_pixels_is_refused(tmp_path):
    dataset = pydicom.dcmread(bundled_dicom("CT_small.dcm"))
    del dataset.PixelData
    dataset.save_as(tmp_path / "header.dcm")
    with pytest.raises(ImageFileError, match="copy or export"):
        read_image_file(tmp_path / "header.dcm")


@pytest.mark.skipif(find_spec("jpeg_ls") is not None, reason="the decoder of JPEG-LS is installed")
def test_compressed_dicom_without_its_decoder_is_refused_with_the_extra_to_install():
    with pytest.raises(ImageFileError, match=r"mrad-med\[dicom\]"):
        read_image_file(bundled_dicom("MR_small_jpeg_ls_lossless.dcm"))


def test_nothing_of_a_dicom_header_but_geometry_travels_on():
    path = bundled_dicom("CT_small.dcm")
    image = read_image_file(path)
    assert str(pydicom.dcmread(path).PatientName) == "CompressedSamples^CT1"
    assert set(image.meta) <= DICOM_META_KEYS
    assert "CompressedSamples" not in str(image.meta)
    assert image.affine.shape == (4, 4)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_patient_is_not_named_in_the_refusal_of_a_damaged_dicom(tmp_path, kept):
    dataset = pydicom.dcmread(bundled_dicom("MR_small.dcm"))
    dataset.PatientName, dataset.PatientID, dataset.StudyDescription = "Beeblebrox^Zaphod", "42-424242", "Two heads"
    path = tmp_path / "damaged.dcm"
    dataset.save_as(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ImageFileError, match=r"again|leave it out") as refusal:
        read_image_file(path)
    assert not any(word in str(refusal.value) for word in ("Beeblebrox", "Zaphod", "42-424242", "Two heads"))


def test_list_of_bundled_dicom_files_is_long_enough_to_mean_something():
    assert len(DICOM_FILES) > 50


@pytest.mark.filterwarnings("ignore")  # pydicom's, about files that are damaged on purpose
@pytest.mark.parametrize("path", DICOM_FILES, ids=lambda path: path.stem)
def test_any_dicom_file_is_an_image_or_refused_without_naming_the_patient(path):
    name = str(pydicom.dcmread(path, force=True, stop_before_pixels=True).get("PatientName", ""))
    try:
        image = read_image_file(path)
    except ImageFileError as error:
        said = str(error)
        assert any(
            advice in said for advice in ("again", "leave it out", "save each", "convert", "are needed", "install")
        )
    else:
        assert image.ndim in (3, 4)
        assert torch.isfinite(image).all()
        assert set(image.meta) <= DICOM_META_KEYS
        said = str({key: value for key, value in image.meta.items() if key != "filename_or_obj"})
    words = [word for word in name.replace("^", " ").split() if len(word) > 3]
    assert not any(word in said for word in words)


# NIfTI


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz", "VOLUME.NII.GZ"])
def test_volume_has_the_values_and_the_affine_of_its_file(tmp_path, name):
    values = np.random.RandomState(5).standard_normal((20, 24, 6)).astype(np.float32)
    image = read_image_file(write_volume(tmp_path / name, values))
    assert image.shape == (1, 20, 24, 6)
    np.testing.assert_array_equal(image.numpy()[0], values)
    np.testing.assert_allclose(image.affine.numpy(), OBLIQUE, atol=1e-6)  # headers hold float32
    assert set(image.meta) <= META_KEYS


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "uint32", "int64", "float64"])
def test_volume_of_any_type_and_byte_order_becomes_float32(tmp_path, dtype, order):
    values = (np.random.RandomState(6).rand(16, 18, 4) * 100).astype(dtype)
    header = nibabel.Nifti1Header(endianness=order)
    nibabel.save(nibabel.Nifti1Image(values, OBLIQUE, header, dtype=dtype), tmp_path / "volume.nii")
    assert nibabel.load(tmp_path / "volume.nii").header.endianness == order
    image = read_image_file(tmp_path / "volume.nii")
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy()[0], values, rtol=1e-6)


def test_scaling_of_a_volume_is_applied(tmp_path):
    values = np.random.RandomState(7).randint(-100, 100, (16, 18, 4)).astype(np.int16)
    volume = nibabel.Nifti1Image(values, OBLIQUE)
    volume.header.set_slope_inter(0.5, -3.0)
    nibabel.save(volume, tmp_path / "scaled.nii.gz")
    expected = nibabel.load(tmp_path / "scaled.nii.gz").get_fdata()
    assert not np.array_equal(expected, np.round(expected))
    np.testing.assert_allclose(read_image_file(tmp_path / "scaled.nii.gz").numpy()[0], expected, rtol=1e-6)


def test_last_axis_of_length_one_is_not_a_time_axis(tmp_path):
    values = np.random.RandomState(8).rand(16, 18, 4, 1).astype(np.float32)
    image = read_image_file(write_volume(tmp_path / "volume.nii.gz", values))
    np.testing.assert_array_equal(image.numpy()[0], values[..., 0])


@pytest.mark.parametrize("times", [2, 3, 5])
def test_series_of_volumes_is_refused(tmp_path, times):
    """Three time points must not pass for red, green and blue."""
    path = write_volume(tmp_path / "series.nii.gz", np.zeros((20, 24, 6, times), np.float32))
    with pytest.raises(ImageFileError, match=r"4-D data cannot be scored; split it into"):
        read_image_file(path)


@pytest.mark.parametrize("shape", [(20,), (20, 24, 6, 1, 3)])
def test_other_numbers_of_axes_are_refused(tmp_path, shape):
    path = write_volume(tmp_path / "odd.nii", np.zeros(shape, np.float32))
    with pytest.raises(ImageFileError, match=r"-D data cannot be scored; split it into 2-D images or 3-D volumes"):
        read_image_file(path)


def test_complex_volume_is_refused(tmp_path):
    path = write_volume(tmp_path / "complex.nii", np.full((20, 24, 6), 3 + 4j, np.complex64))
    with pytest.raises(ImageFileError, match="complex"):
        read_image_file(path)


def test_volume_of_colors_is_refused(tmp_path):
    colors = np.zeros((20, 24, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageFileError, match="export"):
        read_image_file(write_volume(tmp_path / "colors.nii", colors))


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_truncated_volume_is_refused(tmp_path, name):
    values = np.random.RandomState(9).rand(20, 24, 6).astype(np.float32)
    path = write_volume(tmp_path / name, values)
    content = path.read_bytes()
    for length in (10, 100, 400, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        with pytest.raises(ImageFileError, match=r"the file cannot be read \(.*\); copy or export it again"):
            read_image_file(path)


def test_affine_without_axes_is_refused(tmp_path):
    volume = nibabel.Nifti1Image(np.zeros((20, 24, 6), np.float32), None)
    volume.header.set_sform(np.diag([0.0, 0.0, 0.0, 1.0]), code=1)
    path = tmp_path / "flat.nii"
    path.write_bytes(volume.to_bytes())
    assert not nibabel.load(path).affine[:3].any()
    with pytest.raises(ImageFileError, match="affine"):
        read_image_file(path)


@pytest.mark.parametrize("shape", [(5, 24, 20), (24, 5, 20), (15, 15, 100)])
def test_volume_with_tiny_axial_slices_is_refused(tmp_path, shape):
    path = write_volume(tmp_path / "thin.nii", np.zeros(shape, np.float32), np.eye(4))
    with pytest.raises(ImageFileError, match="at least 16 x 16"):
        ToDisplayOrientation()(read_image_file(path))


@pytest.mark.parametrize("codes", ["SAR", "RSA"])
def test_few_axial_slices_are_enough_whichever_axis_they_are_stored_on(tmp_path, codes):
    volume = nibabel.Nifti1Image(np.zeros((20, 24, 5), np.float32), np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(codes)
    )
    stored = volume.as_reoriented(turn)
    nibabel.save(stored, tmp_path / "stored.nii")
    assert read_image_file(tmp_path / "stored.nii").shape == (1, *stored.shape)


def test_patient_tags_reach_neither_log_nor_message(tmp_path, caplog, capfd):
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.PatientName = "DOE^JOHN"
    dataset.PatientWeight = "1234567"
    dataset.save_as(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    assert content.count(b"1234567 ") == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(b"1234567 ", b"DOEJOHN "))  # a weight that is not a number
    image = read_image_file(tmp_path / "a.dcm")
    assert image.shape == (1, 128, 128)
    captured = capfd.readouterr()
    assert "DOE" not in caplog.text + captured.out + captured.err + str(image.meta)
