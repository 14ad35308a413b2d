"""The DICOM reader against pydicom's own pixel functions, on all of its test files and on twins written here."""

from __future__ import annotations

import logging
import os
import random
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
import torch
from monai.data import list_data_collate
from monai.transforms import LoadImage
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.reader import DicomReader
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.image import read_image_file
from mrad_med.transforms.intensity import apply_lookup_table, apply_window
from tests.small_dicom import COLUMNS, ROWS, item, lookup_table, make_image, write_image

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"
NO_DICOM = {".py", ".pyc", ".txt", ".json", ".dump", ".icc", ".gz"}
FILES = sorted(
    path
    for path in TEST_FILES.rglob("*")
    if path.is_file() and path.suffix not in NO_DICOM and path.name != "README" and "cache" not in str(path)
)
HAS_CODECS = all(find_spec(name) for name in ("openjpeg", "libjpeg", "jpeg_ls"))
FUZZ = int(os.environ.get("MRAD_MED_FUZZ", "200"))  # files to damage
SIDEWAYS = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0)

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, about files that are odd on purpose

REFUSED = {
    "index of an export disk": {"DICOMDIR*"},
    "a structured report": {"reportsi*", "test-SR.dcm"},
    "a segmentation": {"liver*"},
    "a waveform": {"waveform_ecg.dcm"},
    "a radiotherapy dose": {"rtdose*", "badVR.dcm"},
    "a radiotherapy plan": {"rtplan*", "ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm"},
    "a radiotherapy structure set": {"rtstruct.dcm"},
    "holds no image": {"empty_charset_LEI.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm"},
    "does not state the image size": {
        "IM0000*",  # of the export disk; their pixels were taken out
        "UN_sequence.dcm",
        "no_meta_group_length.dcm",
        "priv_SQ.dcm",
    },
    "header cannot be read": {"no_meta.dcm"},
    "pixel data cannot be decoded": {
        "JPEG-lossy.dcm",  # pydicom can neither
        "JPEG2000-embedded-sequence-delimiter.dcm",
        "MR_truncated.dcm",
    },
}


def refusal_of(path: Path) -> str | None:
    return next((reason for reason, names in REFUSED.items() if any(path.match(name) for name in names)), None)


def load(path: Path) -> tuple[np.ndarray, dict]:
    reader = DicomReader()
    return reader.get_data(reader.read(path))


def saved(tmp_path: Path, dataset: pydicom.Dataset, name: str = "a.dcm") -> tuple[np.ndarray, dict]:
    return load(write_image(tmp_path / name, dataset))


def gray(dtype: str = "uint16", high: int = 4096, *, frames: int = 0, seed: int = 0, low: int = 0) -> np.ndarray:
    shape = (frames, ROWS, COLUMNS) if frames else (ROWS, COLUMNS)
    return np.random.RandomState(seed).randint(low, high, shape).astype(dtype)


def expected_of(path: Path) -> np.ndarray:
    """What pydicom's functions make of a file, indexed as the reader does."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset) >> 8
    elif dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 2**dataset.BitsStored - 1 - pixels
    if dataset.SamplesPerPixel == 3:
        pixels = pixels >> (dataset.BitsStored - 8)
    elif dataset.PhotometricInterpretation != "PALETTE COLOR":
        pixels = apply_modality_lut(pixels, dataset)
    if dataset.get("PixelPaddingValue") is not None:
        hidden = dataset.pixel_array == dataset.PixelPaddingValue
        pixels[hidden] = pixels[~hidden].min()
    pixels = pixels.astype(np.float32)
    axes = (2, 1, 0) if int(dataset.get("NumberOfFrames") or 1) > 1 else (1, 0)
    return pixels.transpose(*axes, *range(len(axes), pixels.ndim))


# pydicom's files


@pytest.mark.skipif(not HAS_CODECS, reason="decoders of the extra 'dicom' are not installed")
@pytest.mark.parametrize("path", [path for path in FILES if not refusal_of(path)], ids=lambda path: path.name)
def test_image_of_pydicom_is_what_its_functions_make_of_it(path):
    array, meta = load(path)
    np.testing.assert_array_equal(array.astype(np.float32), expected_of(path))
    assert array.dtype in (np.uint8, np.float32)
    assert np.isfinite(meta["affine"]).all()


@pytest.mark.parametrize("path", [path for path in FILES if refusal_of(path)], ids=lambda path: path.name)
def test_object_of_pydicom_that_is_not_an_image_is_refused_for_its_reason(path):
    with pytest.raises(ImageFileError, match=refusal_of(path)):
        load(path)


def test_table_of_refusals_names_files_that_are_there():
    assert len(FILES) > 100
    assert all(any(path.match(name) for path in FILES) for names in REFUSED.values() for name in names)
    assert sum(refusal_of(path) is None for path in FILES) > 60


# gray values


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("dtype", "low", "high", "bits"), [("uint16", 0, 4096, 12), ("int16", -2048, 2048, 12)])
def test_rescaled_values_are_those_of_the_modality_table_of_pydicom(tmp_path, syntax, dtype, low, high, bits):
    stored = gray(dtype, high, low=low)
    dataset = make_image(stored, bits=bits, RescaleSlope="0.5", RescaleIntercept="-7.25")
    if syntax is ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    array, _ = saved(tmp_path, dataset)
    np.testing.assert_array_equal(array, (stored * 0.5 - 7.25).T.astype(np.float32))


def test_unused_bits_are_not_part_of_the_value(tmp_path):
    stored = gray("int16", 2048, low=-2048)
    dirty = ((stored & 0x0FFF) | 0x5000).astype(np.uint16).view(np.int16)
    array, _ = saved(tmp_path, make_image(dirty, bits=12))
    np.testing.assert_array_equal(array, stored.T)


@pytest.mark.parametrize("as_words", [False, True])
def test_modality_table_is_applied(tmp_path, as_words):
    table = np.random.RandomState(1).permutation(256).astype(np.uint16) * 100
    luts = [lookup_table(0, 16, table.tolist(), as_words=as_words)]
    stored = gray("uint8", 256)
    array, _ = saved(tmp_path, make_image(stored, ModalityLUTSequence=luts))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, table[stored].T)


def test_bytes_stay_bytes_unless_they_have_units(tmp_path):
    stored = gray("uint8", 256)
    plain, _ = saved(tmp_path, make_image(stored, RescaleSlope="1", RescaleIntercept="0"))
    assert plain.dtype == np.uint8
    np.testing.assert_array_equal(plain, stored.T)
    rescaled, _ = saved(tmp_path, make_image(stored, RescaleSlope="2", RescaleIntercept="0"))
    assert rescaled.dtype == np.float32
    np.testing.assert_array_equal(rescaled, stored.T * 2.0)


@pytest.mark.parametrize(("padding", "limit", "hidden"), [(0, None, [0]), (5, 3, [3, 4, 5]), (63536, None, [-2000])])
def test_padding_becomes_the_lowest_value_of_the_image(tmp_path, padding, limit, hidden):
    stored = gray("int16", 100, low=10)
    stored[0, : len(hidden)] = hidden
    dataset = make_image(stored, RescaleSlope="1", RescaleIntercept="-1024")
    dataset.add_new("PixelPaddingValue", "US" if padding > 32767 else "SS", padding)  # signed taken for unsigned
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", "SS", limit)
    array, _ = saved(tmp_path, dataset)
    assert array.min() == stored[1:].min() - 1024
    assert (array[: len(hidden), 0] == array.min()).all()
    np.testing.assert_array_equal(array[:, 1:], stored[1:].T - 1024)


def test_image_of_only_padding_keeps_its_value(tmp_path):
    array, _ = saved(tmp_path, make_image(np.full((ROWS, COLUMNS), 7, np.uint16), PixelPaddingValue=7))
    assert np.unique(array).tolist() == [7]


# twins of MONOCHROME1


@pytest.mark.parametrize(
    ("dtype", "bits", "tags"),
    [
        ("uint8", 8, {}),
        ("uint16", 12, {}),
        ("uint16", 12, {"RescaleSlope": "2", "RescaleIntercept": "-100"}),
        ("int16", 12, {"RescaleSlope": "0.5", "RescaleIntercept": "3"}),
        ("uint16", 12, {"PixelPaddingValue": 9}),
    ],
)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_inverted_twin_gives_an_equal_image_also_through_its_window(tmp_path, dtype, bits, tags, function):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype == "int16" else (0, 2**bits)
    stored, mirror = gray(dtype, high, low=low), low + high - 1
    tags = {**tags, "Modality": "DX", "VOILUTFunction": function}
    twin_tags = dict(tags)
    if "PixelPaddingValue" in tags:
        twin_tags["PixelPaddingValue"] = mirror - tags["PixelPaddingValue"]
    slope, intercept = float(tags.get("RescaleSlope", 1)), float(tags.get("RescaleIntercept", 0))
    center, width = slope * (low + high) / 2 + intercept + 10.5, slope * 100
    twin_center = slope * mirror + 2 * intercept - center + (function == "LINEAR")
    inverted = make_image(
        stored, photometric="MONOCHROME1", bits=bits, WindowCenter=str(center), WindowWidth=str(width), **tags
    )
    twin = make_image(
        (mirror - stored).astype(dtype), bits=bits, WindowCenter=str(twin_center), WindowWidth=str(width), **twin_tags
    )
    first, first_meta = saved(tmp_path, inverted)
    second, second_meta = saved(tmp_path, twin)
    assert first.dtype == second.dtype
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first_meta[VOIKeys.WINDOWS], second_meta[VOIKeys.WINDOWS])
    shown = apply_voi_lut(apply_modality_lut(stored, inverted), inverted)
    ends = apply_modality_lut(np.asarray([low, high - 1]), inverted)
    white = 255 - (shown - ends[0]) / (ends[1] - ends[0]) * 255  # as MONOCHROME1 is displayed
    seen = apply_window(first, *first_meta[VOIKeys.WINDOWS][0], function=function).T
    visible = stored != tags.get("PixelPaddingValue")
    assert np.abs(seen[visible] - white[visible]).max() <= 0.51


def test_inverted_image_with_a_modality_table_is_mirrored_behind_it(tmp_path):
    luts = [lookup_table(0, 16, [value * 10 for value in range(256)])]
    stored = gray("uint8", 256)
    array, _ = saved(tmp_path, make_image(stored, photometric="MONOCHROME1", ModalityLUTSequence=luts))
    np.testing.assert_array_equal(array, 65535.0 - 10 * stored.T.astype(np.float32))


@pytest.mark.parametrize("modality", ["CT", "PT"])
def test_units_that_mean_the_same_everywhere_are_not_inverted(tmp_path, modality):
    stored = gray()
    array, _ = saved(tmp_path, make_image(stored, photometric="MONOCHROME1", Modality=modality))
    np.testing.assert_array_equal(array, stored.T)


# colors


def colors(seed: int = 2) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)


@pytest.mark.parametrize("planar", [0, 1])
def test_both_orders_of_colors_are_read(tmp_path, planar):
    stored = colors()
    dataset = make_image(stored, photometric="RGB")
    dataset.PlanarConfiguration = planar
    if planar:
        dataset.PixelData = stored.transpose(2, 0, 1).tobytes()
    array, meta = saved(tmp_path, dataset)
    assert meta["original_channel_dim"] == -1
    np.testing.assert_array_equal(array, stored.transpose(1, 0, 2))


def test_ybr_becomes_rgb(tmp_path):
    stored = colors()
    array, _ = saved(tmp_path, make_image(stored, photometric="YBR_FULL"))
    np.testing.assert_array_equal(array, convert_color_space(stored, "YBR_FULL", "RGB").transpose(1, 0, 2))


def test_deep_colors_keep_their_upper_bits(tmp_path):
    stored = colors().astype(np.uint16) * 257
    array, _ = saved(tmp_path, make_image(stored, photometric="RGB"))
    np.testing.assert_array_equal(array, colors().transpose(1, 0, 2))


@pytest.mark.parametrize(("bits", "dtype", "scale"), [(8, np.uint8, 1), (16, np.uint16, 257), (8, np.uint16, 256)])
def test_palette_becomes_its_colors(tmp_path, bits, dtype, scale):
    palette = np.random.RandomState(3).randint(0, 256, (256, 3))
    palette[0] = 255
    stored = gray("uint8", 256)
    dataset = make_image(stored, photometric="PALETTE COLOR")
    for index, name in enumerate(("Red", "Green", "Blue")):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", (palette[:, index] * scale).astype(dtype).tobytes())
    array, _ = saved(tmp_path, dataset)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, palette[stored].transpose(1, 0, 2))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_twin_is_the_same_image(tmp_path, syntax):
    if syntax == JPEG2000Lossless and not HAS_CODECS:
        pytest.skip("the encoder is not installed")
    stored = np.tile(gray(), (4, 4))  # the encoder of JPEG 2000 needs some room
    dataset = make_image(stored)
    dataset.compress(syntax)
    array, _ = saved(tmp_path, dataset)
    np.testing.assert_array_equal(array, stored.T)


# place in the patient


def world(affine: np.ndarray, *index: float) -> np.ndarray:
    return (affine @ [*index, 1.0])[:3]


def test_affine_of_a_slice_leads_from_pixels_to_the_patient(tmp_path):
    """Column 3 and row 5 of a slice that runs up and down: worked by hand, in LPS, then turned to RAS."""
    dataset = make_image(
        gray(),
        ImagePositionPatient=["10", "20", "30"],
        ImageOrientationPatient=[str(value) for value in SIDEWAYS],
        PixelSpacing=["0.5", "2"],  # between rows, between columns
        SliceThickness="4",
    )
    _, meta = saved(tmp_path, dataset)
    assert meta["space"] == "RAS"
    left, posterior, superior = 10 + 5 * 0.5 * 1.0, 20 + 3 * 2 * 0.6, 30 + 3 * 2 * 0.8
    np.testing.assert_allclose(world(meta["affine"], 3, 5, 0), [-left, -posterior, superior], atol=1e-9)
    assert np.linalg.norm(meta["affine"][:3, 2]) == pytest.approx(4)


@pytest.mark.parametrize("name", ["PixelSpacing", "ImagerPixelSpacing"])
def test_image_without_a_position_is_upright_with_its_spacing(tmp_path, name):
    _, meta = saved(tmp_path, make_image(gray(), **{name: ["0.5", "2"]}))
    np.testing.assert_array_equal(meta["affine"], np.diag([-2, -0.5, 1, 1]))


def test_radiograph_whose_spacing_is_stored_as_zero_has_none(tmp_path):
    _, meta = saved(tmp_path, make_image(gray(), PixelSpacing=["0", "0"]))
    np.testing.assert_array_equal(meta["affine"], np.diag([-1, -1, 1, 1]))


# several frames


def enhanced(frames: np.ndarray, positions: list, *, slopes: list | None = None, **shared) -> pydicom.Dataset:
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[str(value) for value in position])],
            PixelValueTransformationSequence=[item(RescaleSlope=str(slope), RescaleIntercept="-5")],
        )
        for position, slope in zip(positions, slopes or [1] * len(frames), strict=True)
    ]
    common = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])],
        PixelMeasuresSequence=[item(PixelSpacing=["0.5", "2"], SliceThickness="9")],
        FrameVOILUTSequence=[item(WindowCenter="50", WindowWidth="350")],
    )
    return make_image(
        frames,
        NumberOfFrames=len(frames),
        SharedFunctionalGroupsSequence=[common],
        PerFrameFunctionalGroupsSequence=groups,
        Modality="CT",
        **shared,
    )


def test_frames_are_ordered_by_position_and_rescaled_one_by_one(tmp_path):
    frames = gray(frames=3)
    array, meta = saved(tmp_path, enhanced(frames, [(1, 2, 7), (1, 2, 3), (1, 2, 5)], slopes=[1, 2, 4]))
    assert array.shape == (COLUMNS, ROWS, 3)
    for place, (frame, slope) in enumerate([(1, 2), (2, 4), (0, 1)]):
        np.testing.assert_array_equal(array[..., place], frames[frame].T * float(slope) - 5)
    np.testing.assert_allclose(meta["affine"], [[-2, 0, 0, -1], [0, -0.5, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1]])
    assert meta[VOIKeys.WINDOWS][0].tolist() == [50, 350]
    assert meta[VOIKeys.TRUSTED]


def test_film_keeps_its_order_and_lies_upright(tmp_path):
    frames = gray("uint8", 256, frames=4)
    array, meta = saved(tmp_path, make_image(frames, NumberOfFrames=4))
    np.testing.assert_array_equal(array, frames.transpose(2, 1, 0))
    np.testing.assert_array_equal(meta["affine"], np.diag([-1, -1, 1, 1]))
    still, meta = saved(tmp_path, enhanced(gray(frames=4), [(1, 2, 3)] * 4))
    np.testing.assert_array_equal(still, gray(frames=4).transpose(2, 1, 0) - 5.0)
    np.testing.assert_array_equal(meta["affine"], np.diag([-2, -0.5, 1, 1]))


def test_film_in_colors_is_read_as_a_volume_with_channels(tmp_path):
    frames = np.stack([colors(seed) for seed in range(3)])
    path = write_image(tmp_path / "cine.dcm", make_image(frames, photometric="RGB", NumberOfFrames=3))
    image = read_image_file(path)
    assert image.shape == (3, COLUMNS, ROWS, 3)
    np.testing.assert_array_equal(image.numpy(), frames.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("step", [2.5, -2.5])
def test_slices_of_nuclear_medicine_are_stacked_along_the_sign_of_their_spacing(tmp_path, step):
    detector = item(ImagePositionPatient=["1", "2", "3"], ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])
    frames = gray(frames=3)
    dataset = make_image(frames, NumberOfFrames=3, DetectorInformationSequence=[detector], PixelSpacing=["4", "4"])
    dataset.SpacingBetweenSlices = str(step)
    array, meta = saved(tmp_path, dataset)
    np.testing.assert_array_equal(array, (frames if step > 0 else frames[::-1]).transpose(2, 1, 0))
    np.testing.assert_allclose(world(meta["affine"], 0, 0, 0), [-1, -2, 3 if step > 0 else -2])
    np.testing.assert_allclose(meta["affine"][:3, 2], [0, 0, 2.5])


# windows


def test_windows_travel_as_numbers_and_nothing_else_does(tmp_path):
    dataset = make_image(gray(), WindowCenter=["40", "300"], WindowWidth=["80", "1500"], Modality="MR")
    path = write_image(tmp_path / "a.dcm", dataset)
    meta = read_image_file(path).meta
    assert np.asarray(meta[VOIKeys.WINDOWS])[:2].tolist() == [[40, 80], [300, 1500]]
    assert np.isnan(np.asarray(meta[VOIKeys.WINDOWS])[2:]).all()
    assert not meta[VOIKeys.TRUSTED]
    assert not any(word in str(meta) for word in ("Beeblebrox", "42-4"))


@pytest.mark.parametrize(("center", "width"), [("40", "0"), ("40", "-1"), ("nan", "80"), ("40", "")])
def test_window_that_is_none_is_left_out(tmp_path, center, width):
    dataset = make_image(gray(), WindowCenter="40", WindowWidth="80")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.WindowCenter, dataset.WindowWidth = center, width
    _, meta = saved(tmp_path, dataset)
    assert VOIKeys.WINDOWS not in meta


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("as_words", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_stored_lookup_table_shows_what_pydicom_shows(tmp_path, bits, photometric, as_words):
    table = np.sort(np.random.RandomState(4).randint(0, 2**bits, 500)).astype(int).tolist()
    luts = [lookup_table(100, bits, table, as_words=as_words)]
    stored = gray("uint16", 1024)
    dataset = make_image(stored, bits=10, photometric=photometric, VOILUTSequence=luts, Modality="DX")
    array, meta = saved(tmp_path, dataset)
    shown = apply_voi_lut(stored, dataset).T / (2**bits - 1) * 255 if bits > 8 else None
    if shown is None:  # pydicom holds places in a byte there, and wraps
        shown = np.asarray(table)[(stored.T.astype(int) - 100).clip(0, 499)].astype(float)
    if photometric == "MONOCHROME1":
        shown = 255 - shown
    seen = apply_lookup_table(array, meta[VOIKeys.LUT_FIRST], meta[VOIKeys.LUT])
    assert np.abs(seen - shown).max() <= 0.51


def test_images_with_different_windows_make_a_batch(tmp_path):
    tags = [
        {"WindowCenter": "40", "WindowWidth": "80"},
        {"WindowCenter": ["40", "50"], "WindowWidth": ["80", "90"]},
        {"VOILUTSequence": [lookup_table(0, 8, list(range(256)) + [255] * 44)]},
    ]
    images = [
        read_image_file(write_image(tmp_path / f"{index}.dcm", make_image(gray(), **extra)))
        for index, extra in enumerate(tags)
    ]
    assert list_data_collate([{"image": image} for image in images])["image"].shape == (3, 1, COLUMNS, ROWS)
    assert list_data_collate([{"image": image} for image in images[:2]])["image"].meta[VOIKeys.WINDOWS].shape == (
        2,
        4,
        2,
    )


# refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Rows": None}, "cannot be read|cannot be decoded"),
        ({"SamplesPerPixel": 3}, "3 sample\\(s\\) per pixel do not match its photometric interpretation"),
        ({"PhotometricInterpretation": ""}, "does not state the photometric interpretation"),
        ({"PhotometricInterpretation": "CMYK"}, "do not match its photometric interpretation"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "rescale slope is 0"),
        ({"BitsStored": 17}, "pixel data cannot be decoded"),
        ({"Columns": 44}, "pixel data cannot be decoded .*truncated"),
        ({"NumberOfFrames": "3"}, "pixel data cannot be decoded .*truncated"),
        ({"NumberOfFrames": "-1"}, "number of frames is below 1"),
        ({"PixelSpacing": ["0", "0"]}, "a spacing that is not above 0"),
        ({"ImageOrientationPatient": ["0"] * 6}, "not perpendicular unit vectors"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "not perpendicular unit vectors"),
        ({"ImagePositionPatient": ["nan", "0", "0"]}, "not a finite number"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "this DICOM object is a document, not an image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "is a presentation state, not an image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "is a segmentation, not an image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6"}, "is a whole slide in tiles, not an image"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59"}, "is a selection of key images, not an image"),
        ({"SOPClassUID": "1.2.3", "Modality": "SEG"}, "is a segmentation, not an image"),
    ],
)
def test_contradiction_is_refused(tmp_path, change, message):
    dataset = make_image(
        gray(),
        ImagePositionPatient=["1", "2", "3"],
        ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
        PixelSpacing=["1", "1"],
    )
    for name, value in change.items():
        setattr(dataset, name, value)
    with pytest.raises(ImageFileError, match=message):
        saved(tmp_path, dataset)


def test_image_of_radiotherapy_is_an_image(tmp_path):
    array, _ = saved(tmp_path, make_image(gray(), SOPClassUID="1.2.840.10008.5.1.4.1.1.481.1", Modality="RTIMAGE"))
    np.testing.assert_array_equal(array, gray().T)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0, 0), (0, 0, 2), (0, 0, 2)], r"1 slice\(s\) at the position of another"),
        ([(0, 0, 0), (0, 0, 2), (0, 0, 4), (0, 0, 8)], r"1 gap\(s\) between slices .*about 1 slice\(s\) missing"),
        ([(0, 0, 0), (0, 0, 2), (5, 0, 4), (0, 0, 6)], "off one line"),
    ],
)
def test_unevenly_spaced_frames_are_refused(tmp_path, positions, message):
    with pytest.raises(ImageFileError, match=f"cannot form one volume: .*{message}"):
        saved(tmp_path, enhanced(gray(frames=len(positions)), positions))


def test_frames_that_are_not_parallel_are_refused(tmp_path):
    dataset = enhanced(gray(frames=2), [(0, 0, 0), (0, 0, 2)])
    turned = item(ImageOrientationPatient=["0", "1", "0", "1", "0", "0"])
    dataset.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [turned]
    with pytest.raises(ImageFileError, match="frames are not parallel; export each direction"):
        saved(tmp_path, dataset)


def test_frames_that_are_not_all_described_are_refused(tmp_path):
    dataset = enhanced(gray(frames=2), [(0, 0, 0), (0, 0, 2)])
    del dataset.PerFrameFunctionalGroupsSequence[1]
    with pytest.raises(ImageFileError, match=r"describes 1 frame\(s\) but states 2"):
        saved(tmp_path, dataset)


def test_signed_colors_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match="color values are signed"):
        saved(tmp_path, make_image(colors().view(np.int8), photometric="RGB"))


def test_limits_are_kept_before_pixels_are_decoded(tmp_path):
    path = write_image(tmp_path / "a.dcm", make_image(gray(frames=2), NumberOfFrames=2))
    with pytest.raises(ImageFileError, match=r"22 x 18 pixels are more than the limit of 395; .*--max_pixels"):
        DicomReader(max_pixels=395).read(path)
    with pytest.raises(ImageFileError, match=r"22 x 18 x 2 voxels are more than the limit of 791; crop it"):
        DicomReader(max_voxels=791).read(path)


def test_missing_decoder_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setattr("pydicom.pixels.common.CoderBase.is_available", False)
    with pytest.raises(
        ImageFileError, match=r'no decoder for JPEG-LS .* is installed; pip install "mrad-med\[dicom\]"'
    ):
        load(TEST_FILES / "MR_small_jpeg_ls_lossless.dcm")


@pytest.mark.parametrize("installed", [None, "pylibjpeg"])
def test_more_decoders_are_offered_where_there_are_more(monkeypatch, installed):
    monkeypatch.setattr("mrad_med.io.dicom.reader.find_spec", lambda _: installed)
    with pytest.raises(ImageFileError, match="cannot be decoded") as refusal:
        load(TEST_FILES / "JPEG-lossy.dcm")
    assert ("mrad-med[dicom]" in str(refusal.value)) is (installed is None)


def test_video_is_refused(tmp_path):
    dataset = make_image(gray("uint8", 256))
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    dataset["PixelData"].is_undefined_length = True
    with pytest.raises(ImageFileError, match="coded as a video or in an unknown way"):
        saved(tmp_path, dataset)


def test_several_files_are_referred_to_the_reader_of_series(tmp_path):
    path = write_image(tmp_path / "a.dcm", make_image(gray()))
    assert DicomReader().read([path]).Rows == ROWS
    with pytest.raises(ImageFileError, match="got 2 files; read a series with read_series"):
        DicomReader().read([path, path])


def test_file_without_preamble_is_read_where_it_tells_its_class(tmp_path):
    stored, path = gray(), tmp_path / "a.dcm"
    dataset = make_image(stored)
    del dataset.file_meta
    dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(load(path)[0], stored.T)


def test_reader_serves_monai_and_knows_its_files(tmp_path):
    path = write_image(tmp_path / "a.dcm", make_image(gray(), ImagePositionPatient=["1", "2", "3"]))
    loaded = LoadImage(reader=DicomReader(), image_only=True, ensure_channel_first=True)(path)
    assert torch.equal(loaded.as_tensor(), read_image_file(path).as_tensor())
    assert DicomReader().verify_suffix([path, "b.IMA"])
    assert not DicomReader().verify_suffix("a.png")


@pytest.mark.parametrize("keyword", ["PixelSpacing", "WindowCenter", "ImagePositionPatient", "RescaleSlope"])
def test_name_in_the_wrong_tag_reaches_neither_message_nor_log(tmp_path, caplog, capfd, keyword):
    dataset = make_image(
        gray(),
        RescaleSlope="1.234567",
        RescaleIntercept="0",
        WindowCenter="1.234567",
        WindowWidth="9",
        PixelSpacing=["1.234567"] * 2,
        ImagePositionPatient=["1.234567"] * 3,
        ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
    )
    path = write_image(tmp_path / "a.dcm", dataset)
    content = path.read_bytes()
    start = content.index(pydicom.dataelem.DataElement(keyword, "DS", "").tag.elem.to_bytes(2, "little") + b"DS")
    path.write_bytes(content[:start] + content[start:].replace(b"1.234567", b"DOE^JOHN", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if keyword == "WindowCenter":  # the pixels are still valid
            said = str(read_image_file(path).meta)
        else:
            with pytest.raises(ImageFileError, match="the DICOM file cannot be read") as refusal:
                read_image_file(path)
            assert refusal.value.__cause__ is None
            said = str(refusal.value)
    captured = capfd.readouterr()
    assert "DOE" not in caplog.text + captured.out + captured.err + said


# damage


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_cut_file_is_refused_and_nothing_logged(tmp_path, caplog, name, share):
    content = (TEST_FILES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    level = logging.getLogger("pydicom").level
    with pytest.raises(ImageFileError, match=r"again|leave it out"):
        load(path)
    assert caplog.text == ""
    assert logging.getLogger("pydicom").level == level


@pytest.mark.parametrize("fault", [ValueError("DOE^JOHN"), BaseException("DOE^JOHN")])
def test_whatever_a_decoder_raises_is_a_refusal_that_quotes_nothing(tmp_path, monkeypatch, fault):
    """Decoders written in Rust panic, which is not an Exception."""
    path = write_image(tmp_path / "a.dcm", make_image(gray()))

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", fail)
    with pytest.raises(ImageFileError, match="pixel data cannot be decoded") as refusal:
        load(path)
    assert "DOE" not in str(refusal.value)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: interrupt())
    with pytest.raises(KeyboardInterrupt):
        load(path)


@pytest.mark.skipif(not HAS_CODECS, reason="decoders of the extra 'dicom' are not installed")
def test_empty_box_of_a_jpeg_2000_file_is_refused_and_not_searched_for_ever(tmp_path):
    content = (TEST_FILES / "GDCMJ2K_TextGBR.dcm").read_bytes()
    place = content.index(b"jp2h") - 4
    assert int.from_bytes(content[place : place + 4], "big") > 8
    path = tmp_path / "a.dcm"
    path.write_bytes(content[:place] + bytes(4) + content[place + 4 :])
    with pytest.raises(ImageFileError, match=r"pixel data cannot be decoded \(ValueError\)"):
        load(path)


def interrupt():
    raise KeyboardInterrupt


def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path):
    """Seeded damage to headers and pixels: flipped bytes, holes, doubled pieces."""
    rng = random.Random(5)
    small = [path for path in FILES if path.stat().st_size < 50_000 and refusal_of(path) is None]
    path, outcomes = tmp_path / "damaged.dcm", {"read": 0, "refused": 0}
    for _ in range(FUZZ):
        content = bytearray(rng.choice(small).read_bytes())
        end = len(content) if rng.random() < 0.3 else min(len(content), 2500)  # mostly in the header
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(132, end)
            kind = rng.random()
            if kind < 0.7:
                content[place] = rng.choice([0, 1, 255, rng.randrange(256)])
            elif kind < 0.85:
                del content[place : place + rng.randint(1, 16)]
            else:
                content[place:place] = content[place : place + rng.randint(1, 16)]
            end = min(end, len(content))
        path.write_bytes(content)
        try:
            read_image_file(path)
            outcomes["read"] += 1
        except ImageFileError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > FUZZ // 20, outcomes
