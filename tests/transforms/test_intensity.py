"""Windows against pydicom's own functions, and against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from pydicom.pixels.processing import apply_windowing

from mrad_med.errors import ImageFileError
from mrad_med.io.dicom.windows import VOIKeys
from mrad_med.io.image import read_image_file
from mrad_med.transforms.intensity import (
    WINDOWS,
    ApplyWindow,
    ApplyWindowd,
    ScaleToBytes,
    apply_lookup_table,
    apply_window,
)
from tests.small_dicom import COLUMNS, ROWS, lookup_table, make_image, write_image


def hounsfield(shape: tuple[int, ...] = (1, 20, 24), seed: int = 0) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.random.RandomState(seed).randint(-1024, 3000, shape).astype(np.float32)))


def with_window(image: MetaTensor, *, trusted: bool = True) -> MetaTensor:
    image.meta |= {
        VOIKeys.WINDOWS: np.asarray([[40.0, 80.0], [np.nan, np.nan]]),
        VOIKeys.FUNCTION: "LINEAR",
        VOIKeys.TRUSTED: trusted,
    }
    return image


@pytest.mark.filterwarnings("ignore:overflow")  # pydicom's
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("window", [*WINDOWS.values(), (0, 1), (0.5, 2), (-30.25, 77.5)])
def test_window_is_that_of_pydicom(function, window):
    values = np.arange(-1500, 3000).astype(np.int16)
    dataset = make_image(values[None], WindowCenter=str(window[0]), WindowWidth=str(window[1]), VOILUTFunction=function)
    shown = apply_windowing(values, dataset)  # on the range of 16 signed bits
    expected = (shown + 32768) / 65535 * 255
    actual = apply_window(values, *window, function=function)
    assert actual.dtype == np.uint8
    assert np.abs(actual - expected).max() <= 0.5 + 1e-9


def test_window_of_the_standard_worked_by_hand():
    """PS3.3 C.11.2.1.2.1, its note 3: c=2048, w=4096 takes 0 to 0 and 4095 to 255; c=0, w=1 is a threshold at 0."""
    assert apply_window(np.asarray([-1, 0, 4095, 5000]), 2048, 4096).tolist() == [0, 0, 255, 255]
    assert apply_window(np.asarray([-1.0, -0.5, 0.0]), 0, 1).tolist() == [0, 0, 255]
    assert apply_window(np.asarray([-1, 0]), 0, 2).tolist() == [0, 255]
    assert apply_window(np.asarray([-100, -50, 0]), 0, 100).tolist() == [0, 0, 129]  # (0.5 / 99 + 0.5) * 255


def test_nan_is_black_and_infinity_is_black_or_white():
    values = np.asarray([np.nan, -np.inf, np.inf])
    assert apply_window(values, 0, 10).tolist() == [0, 0, 255]
    assert apply_window(values, 0, 10, function="SIGMOID").tolist() == [0, 0, 255]


def test_window_of_many_values_is_that_of_each(monkeypatch):
    values = np.random.RandomState(1).randint(-100, 100, (7, 5, 3))
    whole = apply_window(values, 10, 50)
    monkeypatch.setattr("mrad_med.transforms.intensity._CHUNK", 4)
    np.testing.assert_array_equal(apply_window(values, 10, 50), whole)
    assert apply_window(np.zeros((0, 3)), 1, 2).shape == (0, 3)


@pytest.mark.parametrize(
    ("center", "width", "function", "message"),
    [
        (0, 0.5, "LINEAR", "a finite center and a width of 1 or more, got 0 and 0.5"),
        (0, 0, "SIGMOID", "a finite center and a width above 0, got 0 and 0"),
        (np.nan, 10, "LINEAR", "a finite center"),
        (0, np.inf, "LINEAR", "a finite center"),
        (0, 10, "CUBIC", "function must be LINEAR, LINEAR_EXACT or SIGMOID, got 'CUBIC'"),
    ],
)
def test_invalid_window_is_refused(center, width, function, message):
    with pytest.raises(ValueError, match=message):
        apply_window(np.zeros(3), center, width, function=function)


def test_lookup_table_continues_with_its_end_values():
    levels = np.asarray([10, 20, 30], np.uint8)
    values = np.asarray([-5, 99.9, 100, 101.7, 102, 5000, np.nan])
    assert apply_lookup_table(values, 100, levels).tolist() == [10, 10, 10, 20, 30, 30, 10]


@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_preset_is_black_below_and_white_above(name):
    center, width = WINDOWS[name]
    image = MetaTensor(torch.tensor([[[center - width / 2, center + width / 2, center]]]))
    low, high, middle = ApplyWindow(name)(image).flatten().tolist()
    assert (low, high) == (0, 255)
    assert abs(middle - 127.5) < 4


def test_center_and_width_are_taken_as_given():
    image = hounsfield()
    np.testing.assert_array_equal(ApplyWindow((40, 400))(image).numpy(), apply_window(image.numpy(), 40, 400))


def test_three_windows_make_three_channels():
    image = hounsfield((1, 20, 24, 3))
    result = ApplyWindow(["brain", (75, 215), "percentile"])(image)
    assert result.shape == (3, 20, 24, 3)
    np.testing.assert_array_equal(result[0], apply_window(image.numpy()[0], *WINDOWS["brain"]))
    np.testing.assert_array_equal(result[1], apply_window(image.numpy()[0], 75, 215))
    assert torch.equal(result[2].as_tensor(), ScaleToBytes()(image)[0].as_tensor())


def test_default_takes_a_stored_window_that_is_to_be_trusted():
    image = with_window(hounsfield())
    np.testing.assert_array_equal(ApplyWindow()(image).numpy(), apply_window(image.numpy(), 40, 80))


@pytest.mark.parametrize("image", [hounsfield(), with_window(hounsfield(), trusted=False), hounsfield((1, 16, 16, 4))])
def test_default_is_percentiles_where_no_window_is_to_be_trusted(image):
    assert torch.equal(ApplyWindow()(image).as_tensor(), ScaleToBytes()(image).as_tensor())


def test_percentiles_can_be_chosen():
    image = hounsfield()
    chosen = ApplyWindow("percentile", percentiles=(10, 60))(image)
    assert torch.equal(chosen.as_tensor(), ScaleToBytes((10, 60))(image).as_tensor())


def test_stored_window_is_taken_when_asked_for_whatever_the_modality():
    image = with_window(hounsfield(), trusted=False)
    np.testing.assert_array_equal(ApplyWindow("stored")(image).numpy(), apply_window(image.numpy(), 40, 80))


def test_colors_pass_through_the_default():
    image = MetaTensor(torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8))
    assert torch.equal(ApplyWindow()(image).as_tensor(), image.as_tensor())


def test_applied_window_is_removed_from_the_metadata_and_the_input_is_not_changed():
    image = with_window(hounsfield())
    before = image.clone()
    result = ApplyWindow()(image)
    assert not set(VOIKeys.ALL) & set(result.meta)
    assert set(VOIKeys.ALL) & set(image.meta)
    assert torch.equal(image.as_tensor(), before.as_tensor())
    assert torch.equal(result.affine, image.affine)
    assert torch.equal(ApplyWindow()(result).as_tensor(), result.as_tensor())


def test_lookup_table_takes_precedence_over_windows(tmp_path):
    luts = [lookup_table(0, 8, list(range(255, -1, -1)))]
    stored = np.random.RandomState(2).randint(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
    dataset = make_image(stored, VOILUTSequence=luts, WindowCenter="9", WindowWidth="9", Modality="DX")
    image = read_image_file(write_image(tmp_path / "a.dcm", dataset))
    np.testing.assert_array_equal(ApplyWindow()(image).numpy()[0], 255 - stored.T)


def test_dictionary_version_does_the_same_to_its_keys():
    image = hounsfield()
    result = ApplyWindowd(["image", "other"], "lung", allow_missing_keys=True)({"image": image, "case_id": "a"})
    assert result["case_id"] == "a"
    assert torch.equal(result["image"].as_tensor(), ApplyWindow("lung")(image).as_tensor())


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("brian", r"there is no window 'brian': choose one of auto, .*brain.*liver.*did you mean 'brain'\?"),
        ("Lung", r"did you mean 'lung'\?"),
        ("xyz", r"there is no window 'xyz'.*center and width$"),
        ((40,), "a window must be a name, or center and width; three windows make colors. Got 1 values"),
        ((40, 0), "a finite center and a width of 1 or more, got 40 and 0"),
        (["brain", "lung", "brian"], "did you mean 'brain'"),
        (["brain", "lung"], "could not convert"),
    ],
)
def test_unknown_window_is_refused_with_the_known_ones(window, message):
    with pytest.raises(ValueError, match=message):
        ApplyWindow(window)


def test_window_without_values_for_it_is_refused():
    colors = MetaTensor(torch.zeros(3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ImageFileError, match="no window is stored with the image; use window='auto'"):
        ApplyWindow("stored")(hounsfield())
    with pytest.raises(ImageFileError, match="a window is for gray values, and the image has colors"):
        ApplyWindow((40, 80))(colors)
    with pytest.raises(ImageFileError, match="an 8-bit image has no Hounsfield units for window='brain'"):
        ApplyWindow("brain")(colors[:1])
    with pytest.raises(ImageFileError, match="three windows need a gray image, got 3 channels"):
        ApplyWindow(["brain", "lung", "bone"])(colors)
