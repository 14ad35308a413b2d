"""Bad files among good ones, end to end: how each is read or why it is refused; and images in memory."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import ANY

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image, ImageOps
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mrad_med import CLIP, AnomalyDetector, CaseDataset, MemoryBank, build_mrad_tf, build_preprocessing
from mrad_med.data.phantoms import make_chest_phantom, write_sample_series
from mrad_med.data.search import find_cases
from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.image import read_image
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import FailedCase
from tests.conftest import TINY_SIZE
from tests.small_dicom import COLUMNS, ROWS, make_image, write_image, write_series

NOWHERE = "the affine in its header does not define independent axes; export it again"
PLACE = {
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.5, 0.75],
}
SECRETS = ("beeblebrox", "zaphod", "42-424242")


def gray(seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 1000, (ROWS, COLUMNS)).astype(np.int16)


def dicom(without: str | None = None, **tags) -> Callable[[Path], None]:
    """Write an image with a position, without one tag, or with other tags."""

    def write(folder: Path) -> None:
        dataset = make_image(gray(), **{"Modality": "CT", **PLACE})
        for name, value in tags.items():
            setattr(dataset, name, value)
        if without is not None:
            del dataset[without]
        write_image(folder / "bad.dcm", dataset)

    return write


def cut_dicom(folder: Path) -> None:
    dicom()(folder)
    path = folder / "bad.dcm"
    path.write_bytes(path.read_bytes()[:-100])


def nifti(values: np.ndarray, affine: np.ndarray | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        volume = nibabel.Nifti1Image(values, None)
        volume.header.set_sform(np.eye(4) if affine is None else affine, code=1)
        (folder / "bad.nii").write_bytes(volume.to_bytes())

    return write


def huge_nifti(folder: Path) -> None:
    """A few bytes that would unpack to the 16 TB that the header announces."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((20000, 20000, 20000))
    header.set_data_dtype(np.int16)
    (folder / "bad.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1_000_000)))


def huge_png(folder: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1_000_000))), chunk(b"IEND", b"")]
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def huge_dicom(folder: Path) -> None:
    dicom(Rows=60000, Columns=60000)(folder)


def cut_png(folder: Path) -> None:
    Image.fromarray(gray().astype(np.uint8)).save(folder / "bad.png")
    path = folder / "bad.png"
    path.write_bytes(path.read_bytes()[:-60])


# function that writes the files, and beginning of the reason of the refusal
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated pixels": (cut_dicom, r"its pixel data cannot be decoded \(ValueError\): it is damaged, truncated"),
    "truncated photograph": (cut_png, r"the image is damaged or truncated \("),
    "no pixels": (dicom("PixelData"), r"its pixel data cannot be decoded \(AttributeError\)"),
    "no number of samples": (dicom("SamplesPerPixel"), r"its pixel data cannot be decoded \(AttributeError\)"),
    "no photometric interpretation": (
        dicom("PhotometricInterpretation"),
        "its header does not state the photometric interpretation",
    ),
    "colors of one sample": (
        dicom(PhotometricInterpretation="RGB"),
        r"1 sample\(s\) per pixel do not match its photometric",
    ),
    "unknown photometric interpretation": (
        dicom(PhotometricInterpretation="GRAYISH"),
        r"1 sample\(s\) per pixel do not match its photometric",
    ),
    "more rows than pixels": (dicom(Rows=ROWS + 1), r"its pixel data cannot be decoded \(ValueError\): it is damaged"),
    "spacing of zero": (
        dicom(PixelSpacing=[0, 0.5]),
        "its header holds a spacing that is not above 0; export the DICOM",
    ),
    "directions that are none": (dicom(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "its header holds directions of"),
    "slope of zero": (
        dicom(RescaleSlope=0, RescaleIntercept=5),
        "its rescale slope is 0, or slope or intercept is not finite",
    ),
    "negative number of frames": (dicom(NumberOfFrames=-3), "its number of frames is below 1; export the DICOM file"),
    "huge photograph": (huge_png, "60000 x 60000 pixels are more than the limit of 100000000; make the image smaller"),
    "huge volume": (huge_nifti, "20000 x 20000 x 20000 voxels are more than the limit of 500000000; crop it"),
    "huge DICOM": (huge_dicom, "60000 x 60000 pixels are more than the limit of 100000000; make the image smaller"),
    "four axes": (nifti(np.zeros((20, 20, 5, 3), np.float32)), "4-D data cannot be scored; split it into 2-D images"),
    "nothing but NaN": (nifti(np.full((20, 20, 3), np.nan, np.float32)), "the image has no finite value"),
    "nothing but infinity": (nifti(np.full((20, 20, 3), -np.inf, np.float32)), "the image has no finite value"),
    "affine of zeros": (nifti(np.zeros((20, 20, 3), np.int16), np.diag([0, 0, 0, 1])), NOWHERE),
    "affine of a plane": (nifti(np.zeros((20, 20, 3), np.int16), np.diag([1, 1, 0, 1])), NOWHERE),
    "affine of NaN": (nifti(np.zeros((20, 20, 3), np.int16), np.full((4, 4), np.nan)), NOWHERE),
    "tiny image": (
        lambda folder: Image.new("L", (15, 90)).save(folder / "bad.png"),
        "15 x 90 pixels are too few; at",
    ),
    "text": (lambda folder: (folder / "bad.png").write_text("no image") and None, "not an image in any known format"),
    "nothing": (lambda folder: (folder / "bad.dcm").touch(), r"the file is empty \(0 bytes\); copy or export it again"),
    "noise": (lambda folder: (folder / "bad.nii.gz").write_bytes(b"\x1f\x8b" * 99) and None, "the file cannot be read"),
}


def series(*, without: str | None = None, count: int = 3, **options) -> Callable[[Path], None]:
    """Write a series, whose slices may lack a tag."""

    def write(folder: Path) -> None:
        for path in write_series(folder, np.stack([gray(seed) for seed in range(count)], -1), **options):
            if without is not None:
                dataset = pydicom.dcmread(path)
                del dataset[without]
                dataset.save_as(path)

    return write


def two_sizes(folder: Path) -> None:
    write_series(folder, np.random.RandomState(0).rand(ROWS, COLUMNS, 3) * 90, uid="1.2.3.4")
    write_series(
        folder,
        np.random.RandomState(0).rand(30, 40, 2) * 90,
        uid="1.2.3.4",
        origin=(0, 0, 9),
        names=["x", "y"],
        SeriesNumber=4,
    )


def some_are_not_finite(folder: Path) -> None:
    values = np.random.RandomState(0).rand(20, 24, 3).astype(np.float32)
    values[:3], values[3:6], values[6:9] = np.nan, np.inf, -np.inf
    nifti(values)(folder)


def named(name: str) -> Callable[[Path], None]:
    return lambda folder: Image.linear_gradient("L").resize((20, 24)).save(folder / name)


def loops(folder: Path) -> None:
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "there.dcm").symlink_to(folder / "back.dcm")
    (folder / "back.dcm").symlink_to(folder / "there.dcm")
    (folder / "gone.nii").symlink_to(folder / "nowhere.nii")
    (folder / "parent").symlink_to(folder.parent, target_is_directory=True)


def archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("bad.png", bytes(10_000_000))


PICTURE = (3, TINY_SIZE, TINY_SIZE)
THREE_PICTURES = {"slice000": PICTURE, "slice001": PICTURE, "slice002": PICTURE}

# function that writes the files, and size of each case
READ: dict[str, tuple[Callable[[Path], None], dict[str, tuple[int, ...]]]] = {
    "no position": (dicom("ImagePositionPatient"), {"bad": PICTURE}),
    "no directions": (dicom("ImageOrientationPatient"), {"bad": PICTURE}),
    "no spacing": (dicom("PixelSpacing"), {"bad": PICTURE}),
    "no modality": (dicom("Modality"), {"bad": PICTURE}),
    "series without positions": (series(without="ImagePositionPatient"), THREE_PICTURES),
    "series without directions": (series(without="ImageOrientationPatient"), THREE_PICTURES),
    "series without spacing": (series(without="PixelSpacing"), THREE_PICTURES),
    "series at one position": (series(step=(0, 0, 0)), THREE_PICTURES),
    "series without a name of its own": (series(without="SeriesInstanceUID"), THREE_PICTURES),
    "series of one slice": (series(count=1), {"slice000": PICTURE}),
    "series of two sizes": (two_sizes, {"series_3": (*PICTURE, 3), "series_4": (*PICTURE, 2)}),
    "some voxels not finite": (some_are_not_finite, {"bad": (*PICTURE, 3)}),
    "links in circles": (loops, {}),
    "archive": (archive, {}),
    "spaces": (named(" a  b .png"), {" a  b ": PICTURE}),
    "quotes": (named("a'b\"c`d.png"), {"a'b\"c`d": PICTURE}),
    "line break": (named("a\nb\rc.png"), {"a_b_c": PICTURE}),
    "other scripts": (named("Größe_病例_علی.png"), {"Größe_病例_علی": PICTURE}),
    "shell": (named("-rf $(a); *.png"), {"-rf $(a); *": PICTURE}),
    "no unicode": (named(os.fsdecode(b"gr\xfc\xdfe.png")), {"gr??e": PICTURE}),
}


def add_good(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)).save(folder / "good.png")


def load(folder: Path, clip: CLIP) -> dict[str, dict | FailedCase]:
    cases = find_cases(folder)
    loaded = CaseDataset(cases, build_preprocessing(clip.card, ImageView(image_size=TINY_SIZE)))
    return {without_code(case["case_id"]): loaded[index] for index, case in enumerate(cases)}


def without_code(case_id: str) -> str:
    """Return the name of a series without the code of its first slice, whose UID is another one each time."""
    return re.sub(r"-[0-9a-f]{10}$", "", case_id)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_file_is_refused_with_its_reason(tmp_path, tiny_clip, name):
    write, reason = REFUSED[name]
    write(tmp_path)
    add_good(tmp_path)
    loaded = load(tmp_path, tiny_clip)
    assert list(loaded) == ["bad", "good"]
    assert loaded["good"]["image"].shape == PICTURE
    assert isinstance(loaded["bad"], FailedCase)
    assert re.match(reason, loaded["bad"].reason), loaded["bad"].reason


@pytest.mark.parametrize("name", READ)
def test_odd_file_is_read_or_passed_over(tmp_path, tiny_clip, name):
    write, expected = READ[name]
    write(tmp_path)
    add_good(tmp_path)
    loaded = load(tmp_path, tiny_clip)
    assert {case_id: tuple(case["image"].shape) for case_id, case in loaded.items()} == {**expected, "good": PICTURE}
    assert all(torch.isfinite(case["image"]).all() for case in loaded.values())


def test_nothing_but_padding_is_nothing_to_score(tmp_path, tiny_clip):
    dicom(PixelPaddingValue=0, PixelData=bytes(2 * ROWS * COLUMNS))(tmp_path)
    reason = "all its pixels have one value; check the file"
    assert load(tmp_path, tiny_clip) == {"bad": FailedCase("bad", reason, ANY, "nothing to score")}


@pytest.fixture
def detector(tiny_clip: CLIP, tiny_bank: MemoryBank) -> AnomalyDetector:
    network = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.1)
    return AnomalyDetector(tiny_clip, tiny_bank, network, batch_size=4, view=ImageView(image_size=TINY_SIZE))


def test_folder_of_all_of_them_loses_only_the_bad_ones(tmp_path, detector, caplog, capfd):
    root = tmp_path / "all"
    expected = {"good"}
    add_good(root)
    for name, (write, _) in {**REFUSED, **READ}.items():
        (root / name).mkdir()
        write(root / name)
        expected |= {f"{name}/{case_id}" for case_id in READ.get(name, (None, {}))[1]}
    results = detector.detect(root, progress=False)
    assert {without_code(case_id) for case_id in results.scores} == expected
    assert all(0 <= case.anomaly_score <= 1 and np.isfinite(case.anomaly_map).all() for case in results)
    reasons = {failure.case_id: failure.reason for failure in results.failures}
    assert set(reasons) == {f"{name}/bad" for name in REFUSED}
    assert all(re.match(REFUSED[case_id.split("/")[0]][1], reason) for case_id, reason in reasons.items())
    out, err = capfd.readouterr()
    printed = (caplog.text + out + err + str(reasons)).lower()
    assert "truncated pixels/bad: left out: its pixel data cannot be decoded" in printed
    assert not [word for word in SECRETS if word in printed]


def test_values_that_are_not_finite_are_seen_as_the_ends_of_the_scale(tmp_path):
    some_are_not_finite(tmp_path)
    shown = ImageView().show(tmp_path / "bad.nii")[..., 0]
    x = shown[::-1, ::-1].transpose(1, 0, 2)  # as stored, of slices seen upright
    assert np.unique(x[:3]).tolist() == [0]
    assert np.unique(x[3:6]).tolist() == [255]
    assert np.unique(x[6:9]).tolist() == [0]
    assert len(np.unique(x[9:])) > 200


def test_images_without_a_position_are_read_with_the_known_spacing(tmp_path):
    dicom("ImagePositionPatient")(tmp_path)
    np.testing.assert_array_equal(read_image(tmp_path / "bad.dcm").affine, np.diag([-0.75, -0.5, 1, 1]))
    dicom("ImagePositionPatient", PixelSpacing=[0, 0])(tmp_path)
    np.testing.assert_array_equal(read_image(tmp_path / "bad.dcm").affine, np.diag([-1.0, -1, 1, 1]))


def test_image_of_padding_alone_is_black(tmp_path):
    dicom(PixelPaddingValue=0, PixelData=bytes(2 * ROWS * COLUMNS))(tmp_path)
    assert not ImageView().show(tmp_path / "bad.dcm").any()


def test_announced_sizes_take_no_memory(tmp_path):
    tracemalloc.start()
    try:
        for write, suffix in ((huge_png, "png"), (huge_nifti, "nii.gz"), (huge_dicom, "dcm")):
            write(tmp_path)
            tracemalloc.reset_peak()
            with pytest.raises(ImageFileError, match="more than the limit"):
                read_image(tmp_path / f"bad.{suffix}")
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# images in memory


def colors() -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_of_colors_is_an_upright_image(order):
    pixels = np.asarray(colors(), order=order)
    image = read_image(pixels)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), pixels.transpose(2, 1, 0))
    image.fill_(0)
    assert pixels.any()  # the caller's own is not written to


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, ">i2", np.int64, np.float16, np.float64])
def test_array_of_gray_values_keeps_them(dtype):
    pixels = colors()[..., 0].astype(dtype)
    for view in (pixels, pixels[::-1, :10:-1]):
        image = read_image(view)
        assert image.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
        np.testing.assert_array_equal(image.numpy()[0], view.T)
        np.testing.assert_array_equal(image.affine, np.diag([-1.0, -1, 1, 1]))


def test_array_of_three_axes_is_a_volume():
    values = np.random.RandomState(0).rand(20, 24, 5)
    image = read_image(values)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy()[0], values.astype(np.float32))
    np.testing.assert_array_equal(image.affine, np.eye(4))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_pillow_image_of_any_mode_equals_its_array(mode):
    pillow = Image.fromarray(colors()).convert("L" if mode in ("I;16", "PA", "LA") else "RGB")
    pillow = pillow.convert("P").convert(mode) if mode == "PA" else pillow.convert(mode)
    image = read_image(pillow)
    shown = pillow.convert("F" if mode in ("I", "F", "I;16") else "L" if mode in ("1", "L") else "RGB")
    expected = np.asarray(shown)
    np.testing.assert_array_equal(image.numpy(), np.atleast_3d(expected).transpose(2, 1, 0))
    assert image.dtype == (torch.float32 if mode in ("I", "F", "I;16") else torch.uint8)


def test_transparency_of_a_pillow_image_is_black():
    pillow = Image.fromarray(np.dstack([colors(), np.full((20, 30), 0, np.uint8)]))
    assert not read_image(pillow).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_image_is_turned_by_its_exif_orientation(orientation):
    pillow = Image.fromarray(colors())
    pillow.getexif()[0x0112] = orientation
    shown = np.asarray(ImageOps.exif_transpose(pillow))
    np.testing.assert_array_equal(read_image(pillow).numpy(), shown.transpose(2, 1, 0))
    np.testing.assert_array_equal(np.asarray(pillow), colors())


@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 20, 24), (1, 20, 24, 5), (3, 20, 24, 5)])
def test_metatensor_keeps_values_and_affine_and_nothing_else(shape):
    values = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    affine = torch.diag(torch.tensor([0.5, -2, 3, 1], dtype=torch.float64))
    given = MetaTensor(values, affine=affine, meta={"patient": "Zaphod"})
    image = read_image(given)
    assert image.dtype == torch.float32
    assert not image.requires_grad
    np.testing.assert_array_equal(image.numpy(), values.detach().float().numpy())
    np.testing.assert_array_equal(image.affine, affine)
    assert "Zaphod" not in str(image.meta)
    image.affine[0, 0] = 7
    assert given.affine[0, 0] == 0.5


def test_image_that_was_read_can_be_read_again(tmp_path):
    nifti(np.random.RandomState(0).rand(20, 24, 5), np.diag([1, 2, 3, 1]))(tmp_path)
    image = read_image(tmp_path / "bad.nii")
    again = read_image(image)
    assert torch.equal(image, again)
    assert torch.equal(image.affine, again.affine)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(50), r"the array is float64 \(50,\); it must be real numbers \(H, W\), \(H, W, 3\) or \(X, Y, Z\)"),
        (np.zeros((20, 20, 5, 2)), r"the array is float64 \(20, 20, 5, 2\)"),
        (np.zeros((20, 20, 1)), r"the array is float64 \(20, 20, 1\)"),
        (np.zeros((20, 20, 4), np.uint8), r"the array is uint8 \(20, 20, 4\)"),
        (np.zeros((20, 20), complex), "the array is complex128"),
        (np.zeros((20, 20), object), "the array is object"),
        (np.full((20, 20), "x"), "the array is <U1"),
        (np.zeros((20, 20), bool), "the array is bool"),
        (np.zeros((15, 20)), "20 x 15 pixels are too few"),
        (np.zeros((20, 15, 15)), "20 x 15 x 15 pixels are too few"),
        (np.zeros((0, 20)), "20 x 0 pixels are too few"),
        (Image.new("L", (15, 20)), "15 x 20 pixels are too few"),
        (MetaTensor(torch.zeros(2, 20, 20, 5)), "4-D data cannot be scored; split it into 2-D images"),
        (MetaTensor(torch.zeros(1, 20, 20, 5, 2)), r"the MetaTensor has the shape \(1, 20, 20, 5, 2\); it must be"),
        (
            MetaTensor(torch.zeros(20, 20)),
            r"the MetaTensor has the shape \(20, 20\); it must be real numbers \(C, W, H\) or",
        ),
        (MetaTensor(torch.zeros(1, 20, 20, dtype=torch.complex64)), "the MetaTensor has complex numbers"),
        (MetaTensor(torch.zeros(1, 20, 8)), "20 x 8 pixels are too few"),
        (
            torch.zeros(1, 20, 20),
            "the type Tensor is not supported; give a path, the paths of a series, a Pillow image, an arr",
        ),
        (None, "the type NoneType is not supported"),
        (b"a.png", "the type bytes is not supported"),
        ({"image": "a.png"}, "the type dict is not supported"),
        ([], "the series has no files; give at least one slice"),
        (["missing.dcm"], "there is no such file"),
        (["missing.dcm", 5], "the type list is not supported; give a path"),
        ("missing.dcm", "there is no such file"),
        ("x" * 5000, "there is no such file"),
        ("nul\0.png", "there is no such file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\0" not in value and len(value) < 99 else "source",
)
def test_what_is_no_image_in_memory_is_refused(source, message):
    with pytest.raises(ImageFileError, match=message):
        read_image(source)


def test_deflated_dicom_is_read_unless_it_would_fill_the_memory(tmp_path, monkeypatch):
    image = make_image(np.zeros((ROWS, COLUMNS), np.uint16))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "bad.dcm", enforce_file_format=True)
    assert read_image(tmp_path / "bad.dcm").shape == (1, COLUMNS, ROWS)
    image.PixelData = bytes(50_000_000)
    image.save_as(tmp_path / "bad.dcm", enforce_file_format=True)
    assert (tmp_path / "bad.dcm").stat().st_size < 100_000
    monkeypatch.setattr("mrad_med.io.dicom.headers._MAX_INFLATED", 10_000_000)
    tracemalloc.start()
    with pytest.raises(ImageFileError, match="inflated size is above the limit of 10000000 bytes; export it unc"):
        read_image(tmp_path / "bad.dcm")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((30, 20), np.uint8),
        np.zeros((30, 20, 5)),
        Image.new("L", (20, 30)),
        MetaTensor(torch.zeros(1, 20, 30)),
        MetaTensor(torch.zeros(1, 20, 30, 5)),
    ],
    ids=["image", "volume", "Pillow", "MetaTensor", "MetaTensor of a volume"],
)
def test_limit_of_pixels_holds_in_memory(source):
    assert read_image(source, max_pixels=600).numel() >= 600
    with pytest.raises(ImageFileError, match=r"(20 x 30|30 x 20) pixels are more than the limit of 599"):
        read_image(source, max_pixels=599)


def test_image_of_a_cut_file_that_was_opened_lazily_is_refused(tmp_path):
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with Image.open(tmp_path / "cut.png") as pillow, pytest.raises(ImageFileError, match="cannot be decoded"):
        read_image(pillow)


def test_stored_windows_of_a_tensor_are_kept(tmp_path):
    write_sample_series(tmp_path, *make_chest_phantom((32, 28, 6))[::2])
    image = read_image(sorted(map(str, tmp_path.iterdir())))
    again = read_image(MetaTensor(image, meta={**image.meta, "patient": "Zaphod"}))
    assert again.meta[VOIKeys.WINDOWS][0].tolist() == [-600, 1500]
    assert again.meta[VOIKeys.TRUSTED]
    assert "patient" not in again.meta


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "the image has no finite value"), (np.inf, "the image has no finite value"), (0.5, "")],
)
def test_values_in_memory_are_checked_as_those_of_files(tiny_clip, value, message):
    image = np.full((20, 24, 5), value)
    image[0] /= 2  # NaN and infinity stay
    case = {"image": image, "case_id": "a"}
    loaded = CaseDataset([case], build_preprocessing(tiny_clip.card, ImageView(image_size=TINY_SIZE)))[0]
    if message:
        assert isinstance(loaded, FailedCase)
        assert message in loaded.reason
    else:
        assert loaded["image"].shape == (*PICTURE, 5)


def test_images_in_memory_have_the_scores_of_their_files(tmp_path, detector):
    add_good(tmp_path)
    nifti(np.random.RandomState(0).rand(20, 24, 5).astype(np.float32), np.diag([1, 1, 4, 1]))(tmp_path)
    of_files = detector.detect(tmp_path, progress=False)
    with Image.open(tmp_path / "good.png") as pillow:
        pixels = np.asarray(pillow)
    given = {
        "array": pixels,
        "Pillow": Image.fromarray(pixels),
        "read": read_image(tmp_path / "good.png"),
        "path": tmp_path / "good.png",
        "volume": read_image(tmp_path / "bad.nii"),
        "stored": nibabel.load(tmp_path / "bad.nii").get_fdata(),
        "none": np.zeros(3),
    }
    results = detector.detect(given, progress=False)
    assert [failure.case_id for failure in results.failures] == ["none"]
    expected = dict.fromkeys(("array", "Pillow", "read", "path"), of_files.scores["good"])
    expected |= dict.fromkeys(("volume", "stored"), of_files.scores["bad"])
    assert results.scores == pytest.approx(expected, abs=1e-6)
    maps = {case.case_id: case.anomaly_map for case in results}
    assert maps["array"].shape == (30, 40)
    assert maps["volume"].shape == (20, 24, 5)
    assert detector.detect(pixels, progress=False).scores == pytest.approx({"image": of_files.scores["good"]}, abs=1e-6)
