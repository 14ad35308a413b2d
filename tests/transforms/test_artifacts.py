"""Endoscopy: frames, highlights and text are found where they were painted, and maps come back to where they belong."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, ScaleIntensityRanged
from PIL import Image, ImageDraw
from scipy import ndimage

from mrad_med.transforms.artifacts import RemoveArtifacts, RemoveArtifactsd, find_field, find_highlights, find_text
from mrad_med.transforms.intensity import ScaleToBytesd, ToRGBd
from mrad_med.transforms.load import LoadMedicalImaged
from mrad_med.transforms.spatial import ResizeBicubicd, ToDisplayOrientationd

ROWS, COLUMNS = 241, 317  # odd, and the fields below are not centered
TISSUE = (190, 90, 70)
GREEN, WHITE = (0, 255, 0), (255, 255, 255)


def tissue(seed: int = 0, *, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Red, with waves and a little noise."""
    random = np.random.RandomState(seed)
    row, column = np.indices((rows, columns))
    waves = 15 * np.sin(row / 23)[..., None] + 10 * np.cos(column / 31)[..., None]
    return np.clip(np.array(TISSUE) + waves + random.normal(0, 3, (rows, columns, 1)), 0, 255).astype(np.uint8)


def octagon() -> np.ndarray:
    row, column = np.indices((ROWS, COLUMNS))
    inside = (row >= 9) & (row < 229) & (column >= 52) & (column < 300)
    return inside & (abs(row - 118.5) + abs(column - 175.5) < 170)


def circle() -> np.ndarray:
    row, column = np.indices((ROWS, COLUMNS))
    return (row - 122) ** 2 + (column - 170) ** 2 < 110**2


FIELDS = {"octagon": octagon(), "circle": circle()}


def framed(field: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    return np.where(field[..., None], tissue() if image is None else image, 0).astype(np.uint8)


def compressed(image: np.ndarray, quality: int = 75) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def written(image: np.ndarray, text: str, place: tuple[int, int], color, size: int = 14) -> np.ndarray:
    canvas = Image.fromarray(image)
    ImageDraw.Draw(canvas).text(place[::-1], text, fill=color, font_size=size)
    return np.array(canvas)


def disk(place: tuple[int, int], radius: float, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    row, column = np.indices(shape)
    return (row - place[0]) ** 2 + (column - place[1]) ** 2 <= radius**2


def channels_first(image: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.moveaxis(image, -1, 0).copy()))


def box_of(mask: np.ndarray) -> tuple[slice, slice]:
    return ndimage.find_objects(mask.astype(int))[0]


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    return ndimage.binary_dilation(mask, np.ones((3, 3)), pixels)


def shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    return ndimage.binary_erosion(mask, np.ones((3, 3)), pixels, border_value=1)


# field of view


@pytest.mark.parametrize("quality", [None, 90, 40])
@pytest.mark.parametrize("shape", FIELDS)
def test_field_is_found_to_a_few_pixels(shape, quality):
    image = framed(FIELDS[shape])
    field = find_field(image if quality is None else compressed(image, quality))
    assert field.dtype == bool
    assert not (field & ~FIELDS[shape]).any()  # none of the frame
    assert (field | ~shrunk(FIELDS[shape], 4)).all()  # all of the field but its edge


@pytest.mark.parametrize(("rows", "blurred"), [(200, 3), (1000, 6)])  # 0.6 %, but no less than compression blurs
def test_field_of_a_letterbox_lacks_the_blurred_rows_and_no_column(rows, blurred):
    bars, expected = np.zeros((2, rows, rows + 100), bool)
    bars[rows // 10 : -rows // 10] = True
    expected[rows // 10 + blurred : -rows // 10 - blurred] = True
    np.testing.assert_array_equal(find_field(framed(bars, tissue(rows=rows, columns=rows + 100))), expected)


@pytest.mark.parametrize("shape", FIELDS)
def test_text_and_icons_on_the_frame_change_nothing(shape):
    image = framed(FIELDS[shape])
    crowded = written(image, "Name\n12:30\nZ 1.2", (30, 2), GREEN)
    crowded = written(crowded, "NBI", (4, 4), WHITE)
    crowded[200:235, 5:45] = tissue(1)[:35, :40]  # a second image
    crowded[3:13, 303:314] = (255, 200, 0)  # an icon
    np.testing.assert_array_equal(find_field(crowded), find_field(image))


@pytest.mark.parametrize("quality", [90, 60])
def test_text_across_the_edge_does_not_widen_the_field(quality):
    crossing = compressed(written(framed(octagon()), "17/02/2014", (110, 20), WHITE), quality)
    assert not (find_field(crossing) & ~octagon()).any()


@pytest.mark.parametrize("darkness", [0, 8])
def test_dark_lumen_is_field(darkness):
    image = framed(octagon())
    image[disk((110, 170), 45)] = darkness
    np.testing.assert_array_equal(find_field(image), find_field(framed(octagon())))


@pytest.mark.parametrize("place", [(118, 300), (9, 175), (228, 160)], ids=["right", "top", "bottom"])
def test_dark_lumen_at_the_edge_is_field(place):
    image = framed(octagon())
    image[disk(place, 30) & octagon()] = 8
    field = find_field(image)
    assert field[disk(place, 30) & shrunk(octagon(), 3)].all()
    assert (field == find_field(framed(octagon()))).mean() > 0.999


def test_speck_at_the_edge_is_field_even_if_as_black_as_the_frame():
    image = framed(octagon())
    image[disk((118, 300), 4)] = 0
    np.testing.assert_array_equal(find_field(image), find_field(framed(octagon())))


def test_inset_that_covers_a_corner_is_not_part_of_the_field():
    inset = np.zeros((ROWS, COLUMNS), bool)
    inset[160:, :120] = True
    image = framed(octagon() & ~inset)
    image[190:210, 60:90] = GREEN  # what is drawn in it
    field = find_field(compressed(image, 90))
    assert not (field & inset).any()
    assert (field | ~shrunk(octagon() & ~inset, 4)).all()


def vignette() -> np.ndarray:
    distance = np.hypot(*(np.indices((ROWS, COLUMNS)) - np.array([120, 158])[:, None, None])) / 150
    return (tissue() * np.clip(1.1 - distance, 0, 1)[..., None]).astype(np.uint8)  # the corners are black


def small_logo() -> np.ndarray:
    image = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    image[100:140, 100:160] = WHITE
    return image


def dark_objects() -> np.ndarray:
    image = tissue()
    image[150:, 200:] = 0
    image[40:90, :30] = 0
    return image


@pytest.mark.parametrize(
    "image",
    [
        tissue(),
        np.zeros((ROWS, COLUMNS, 3), np.uint8),
        framed(octagon())[100:101],
        np.full((ROWS, COLUMNS, 3), 255, np.uint8),
        vignette(),
        small_logo(),
        dark_objects(),
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.astronaut(),
        skimage.data.immunohistochemistry(),
    ],
    ids=[
        "tissue",
        "black",
        "one row",
        "white",
        "vignette",
        "logo",
        "objects",
        "chelsea",
        "coffee",
        "astronaut",
        "histology",
    ],
)
def test_image_without_a_frame_is_all_field(image):
    assert find_field(image).all()


def test_field_of_a_fundus_photograph_is_its_disk():
    image = skimage.data.retina()
    field = find_field(image)
    rows, columns = box_of(field)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert abs(height - width) < 10
    assert field.sum() == pytest.approx(np.pi / 4 * height * width, rel=0.01)
    assert image[field].max(axis=1).min() > 30  # no black is left


# highlights


@pytest.mark.parametrize("quality", [None, 80])
def test_highlights_are_found_with_their_halo_and_little_else(quality):
    image, spots = tissue(), disk((60, 80), 4) | disk((150, 200), 7) | disk((30, 290), 2)
    image[spots] = (250, 248, 240)
    found = find_highlights(image if quality is None else compressed(image, quality))
    assert found[grown(spots, 1)].all()
    assert not found[~grown(spots, 4)].any()


@pytest.mark.parametrize(
    "place",
    [(slice(100, 160), slice(100, 170)), (slice(0, ROWS), slice(0, 90)), (100, slice(20, 280)), (slice(0, 0), 0)],
    ids=["patch", "glare", "hair", "nothing"],
)
def test_large_and_long_shapes_are_not_highlights(place):
    image = tissue()
    image[place] = WHITE
    assert not find_highlights(image).any()


def test_pale_spots_are_not_highlights():
    image = tissue()
    image[disk((100, 100), 6)] = (255, 220, 170)
    image[disk((50, 100), 6)] = (160, 160, 160)
    image[180:, :] = (250, 150, 130)  # near the lamp
    image[disk((210, 200), 6)] = (230, 210, 200)
    assert not find_highlights(image).any()


def test_white_background_of_a_photograph_is_not_a_highlight():
    image = np.full((ROWS, COLUMNS, 3), 245, np.uint8)
    image[disk((120, 150), 60)] = (120, 70, 50)
    assert not find_highlights(image).any()


def test_white_texture_is_not_a_highlight():
    image = tissue()
    image[2::8, 2::8] = image[3::8, 2::8] = image[2::8, 3::8] = image[3::8, 3::8] = WHITE
    assert (image == 255).all(axis=2).mean() > 0.05
    assert not find_highlights(image).any()


# text


@pytest.mark.parametrize(
    "color", [WHITE, GREEN, (255, 255, 0), (0, 255, 255)], ids=["white", "green", "yellow", "cyan"]
)
@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize(("text", "size"), [("14:25:07", 10), ("Dr 2019-11-30", 14)])
def test_text_is_found_where_it_is_written(color, text, size, quality):
    before = tissue(rows=400, columns=500)
    image = written(before, text, (110, 90), color, size)
    strokes = (abs(image.astype(int) - before) > 60).any(axis=2)
    found = find_text(image if quality is None else compressed(image, quality))
    assert found[strokes].mean() > 0.95
    assert not found[~grown(strokes, 4)].any()


def test_text_on_the_frame_and_two_lines_are_found():
    image = written(framed(octagon()), "12:30:45\n2019", (60, 3), GREEN, 10)
    found = find_text(image)
    assert found[(image == GREEN).all(axis=2)].all()
    assert not found[octagon()].any()


def test_punctuation_belongs_to_the_text():
    before = tissue()
    image = written(before, ":1234,", (110, 90), WHITE, 14)
    strokes = (abs(image.astype(int) - before) > 60).any(axis=2)
    assert find_text(image)[strokes].all()


def outlines(*boxes: tuple[int, int, int, int], color=WHITE) -> np.ndarray:
    """Thin rectangles (top, left, bottom, right) on tissue."""
    canvas = Image.fromarray(tissue())
    for top, left, bottom, right in boxes:
        ImageDraw.Draw(canvas).rectangle((left, top, right - 1, bottom - 1), outline=color)
    return np.asarray(canvas)


@pytest.mark.parametrize(
    ("boxes", "is_text"),
    [
        ([(100, 60 + 10 * i, 112, 66 + 10 * i) for i in range(5)], True),
        ([(100, 60 + 10 * i, 112, 66 + 10 * i) for i in range(3)], False),
        ([(100 + 4 * i, 60 + 10 * i, 112 + 4 * i, 66 + 10 * i) for i in range(5)], False),
        ([(100 - 3 * (i % 2), 60 + 10 * i, 111, 66 + 10 * i) for i in range(7)], False),
        ([(100, 60 + 10 * i, 111 + 3 * (i % 2), 66 + 10 * i) for i in range(7)], False),
        ([(100, 60 + 25 * i, 112, 66 + 25 * i) for i in range(5)], False),
        ([(100, 30 + 50 * i, 112, 74 + 50 * i) for i in range(5)], False),
        ([(100, 20 + 40 * i, 130, 46 + 40 * i) for i in range(5)], False),
    ],
    ids=["row", "three", "stairs", "tops differ", "bottoms differ", "far apart", "too wide", "too high"],
)
def test_text_is_a_row_of_shapes_alike(boxes, is_text):
    assert find_text(outlines(*boxes)).any() == is_text


def test_text_may_stand_out_in_blue_alone():
    assert find_text(outlines(*[(100, 60 + 10 * i, 112, 66 + 10 * i) for i in range(5)], color=(0, 0, 255))).any()


@pytest.mark.parametrize("seed", range(3))
def test_scattered_highlights_are_not_text(seed):
    image, random = tissue(), np.random.RandomState(seed)
    for row, column, radius in random.rand(40, 3) * (ROWS, COLUMNS, 4) + (0, 0, 2):
        image[disk((row, column), radius)] = WHITE
    assert not find_text(image).any()


@pytest.mark.parametrize(
    "image",
    [tissue(), np.zeros((50, 60, 3), np.uint8), skimage.data.retina()[::2, ::2], skimage.data.chelsea()],
    ids=["tissue", "black", "retina", "chelsea"],
)
def test_no_text_is_found_where_none_is_burned_in(image):
    assert not find_text(image).any()


def test_noise_is_not_text():
    noise = np.random.RandomState(0).randint(0, 256, (300, 300, 3)).astype(np.uint8)
    assert not find_text(noise).any()


@pytest.mark.parametrize(("rows", "is_found"), [(2, True), (45, False)])
def test_few_rows_of_characters_are_text_and_a_full_page_is_not(rows, is_found):
    image = np.zeros((1000, 1000, 3), np.uint8)
    for row in range(rows):
        image[20 + 20 * row : 34 + 20 * row, 20:980] = np.where(np.arange(960) % 18 < 4, 255, 0)[:, None]
    assert find_text(image).any() == is_found


# removal


def endoscopy(shape: str = "octagon", seed: int = 0) -> np.ndarray:
    """A frame with two highlights, text in the field and on the border."""
    image = framed(FIELDS[shape], tissue(seed))
    image[disk((70, 150), 5)] = image[disk((160, 210), 3)] = WHITE
    image = written(image, "14:25:07", (120, 80), WHITE, 10)
    return written(image, "ID 123", (5, 3), GREEN)


@pytest.mark.parametrize("remove", [("borders",), ["text", "hair"], "border"])
def test_unknown_artifacts_are_refused(remove):
    with pytest.raises(ValueError, match=r"any of border, highlights, text; got \['(borders|hair|border)'\]"):
        RemoveArtifacts(remove)


@pytest.mark.parametrize("make", [RemoveArtifacts, lambda remove: RemoveArtifactsd("image", remove).transform])
@pytest.mark.parametrize(
    ("remove", "image"),
    [
        ((), endoscopy()),
        (("border", "highlights", "text"), tissue()),
        (("border", "highlights", "text"), vignette()),
        (("highlights",), framed(octagon())),
        (("border", "highlights"), np.zeros((40, 50, 3), np.uint8)),
    ],
    ids=["nothing asked", "nothing there", "vignette", "frame stays", "black"],
)
def test_image_without_artifacts_is_unchanged(make, remove, image):
    step = make(remove)
    tensor = channels_first(image)
    result = step(tensor)
    assert torch.equal(result, tensor)
    assert torch.equal(step.inverse(result), tensor)


@pytest.mark.parametrize(
    "image",
    [
        channels_first(endoscopy()[..., 1:2]),
        channels_first(endoscopy()[..., 1:2].repeat(3, 2)),
        channels_first(endoscopy()).float(),
        MetaTensor(torch.from_numpy(endoscopy()[..., 1].copy()))[None, ..., None].repeat(1, 1, 1, 4),
    ],
    ids=["gray", "gray in three channels", "float", "volume"],
)
def test_images_that_are_not_colored_bytes_are_unchanged(image):
    step = RemoveArtifacts(("border", "highlights", "text"))
    result = step(image)
    assert torch.equal(result, image)
    restored = step.inverse(result)
    assert torch.equal(restored, image)
    assert restored.applied_operations == []


def test_input_is_left_alone():
    image = channels_first(endoscopy())
    before = image.clone()
    RemoveArtifacts(("border", "highlights", "text"))(image)
    assert torch.equal(image, before)
    assert image.applied_operations == []


@pytest.mark.parametrize("shape", FIELDS)
def test_image_is_cropped_to_the_field_and_tissue_is_unchanged(shape):
    image, field = endoscopy(shape), find_field(endoscopy(shape))
    result = RemoveArtifacts()(channels_first(image)).numpy().transpose(1, 2, 0)
    box = box_of(field)
    assert result.shape == image[box].shape
    stays = field[box] & ~find_highlights(image)[box]
    np.testing.assert_array_equal(result[stays], image[box][stays])
    assert result[~stays].max(axis=1).min() > 120  # corners and highlights are as red as the tissue
    assert result[~stays].min(axis=1).max() < 130


def test_even_tissue_is_continued_evenly():
    even = np.full((ROWS, COLUMNS, 3), TISSUE, np.uint8)
    image = framed(circle(), even)
    image[disk((100, 160), 6)] = WHITE
    result = RemoveArtifacts()(channels_first(image))
    assert torch.equal(result.as_tensor(), torch.tensor(TISSUE, dtype=torch.uint8)[:, None, None].expand(result.shape))


def test_fill_makes_no_edge():
    row, column = np.indices((ROWS, COLUMNS))
    ramp = np.stack([100 + row // 3, 40 + column // 5, 60 + (row + column) // 8], axis=-1).astype(np.uint8)
    image = framed(octagon(), ramp)
    image[disk((110, 180), 6)] = WHITE
    result = RemoveArtifacts()(channels_first(image)).numpy().astype(int)
    assert abs(np.diff(result, axis=1)).max() <= 8  # the frame's edge has 100 and more, the ramp itself 1
    assert abs(np.diff(result, axis=2)).max() <= 8


def test_text_and_highlights_are_filled_and_the_frame_kept_when_so_asked():
    image = endoscopy()
    result = RemoveArtifacts(("highlights", "text"))(channels_first(image)).numpy().transpose(1, 2, 0)
    assert result.shape == image.shape
    assert result.min(axis=2).max() < 130  # no white
    assert (result[..., 1] < result[..., 0] + 10).all()  # no green
    changed = (result != image).any(axis=2)
    np.testing.assert_array_equal(changed & ~(find_highlights(image) | find_text(image)), False)


@pytest.mark.parametrize("quality", [None, 70])
@pytest.mark.parametrize("shape", FIELDS)
def test_second_removal_finds_no_frame(shape, quality):
    image = endoscopy(shape) if quality is None else compressed(endoscopy(shape), quality)
    once = RemoveArtifacts(("border",))(channels_first(image))
    assert torch.equal(RemoveArtifacts(("border",))(once), once)


# there and back again


@pytest.mark.parametrize("place", [(15, 175), (119, 57), (119, 294), (222, 175), (61, 240), (100, 101)])
def test_lit_pixel_comes_back_exactly_and_what_was_removed_is_lowest(place):
    image = framed(octagon())
    image[disk((70, 150), 5)] = WHITE
    step = RemoveArtifacts()
    result = step(channels_first(image))
    rows, columns = box_of(find_field(image))
    assert result.shape[1:] == (rows.stop - rows.start, columns.stop - columns.start)
    probabilities = torch.full((1, *result.shape[1:]), 0.36)
    probabilities[0, 0, 0] = 0.1  # in a filled corner, where no value counts
    probabilities[0, place[0] - rows.start, place[1] - columns.start] = 0.38
    restored = step.inverse(MetaTensor(probabilities).copy_meta_from(result)).numpy()
    expected = np.full((1, ROWS, COLUMNS), 0.36, np.float32)
    expected[0, place[0], place[1]] = 0.38
    np.testing.assert_array_equal(restored, expected)


def test_map_has_its_own_values_in_the_field_and_the_lowest_of_them_elsewhere():
    image = endoscopy()
    step = RemoveArtifacts(("border", "highlights", "text"))
    result = step(channels_first(image))
    kept = find_field(image) & ~find_highlights(image) & ~find_text(image)
    values = np.random.RandomState(1).rand(ROWS, COLUMNS).astype(np.float32)
    cropped = MetaTensor(torch.from_numpy(values[box_of(find_field(image))][None])).copy_meta_from(result)
    restored = step.inverse(cropped)
    np.testing.assert_array_equal(restored.numpy()[0], np.where(kept, values, values[kept].min()))
    assert restored.applied_operations == []


@pytest.mark.parametrize("remove", [("border",), ("highlights",), ("text",), ("border", "highlights", "text")])
@pytest.mark.parametrize("frames", [None, 3])
def test_inverse_of_the_removal_has_the_size_before(remove, frames):
    image = channels_first(endoscopy())
    image = image if frames is None else image[..., None].repeat(1, 1, 1, frames)
    step = RemoveArtifacts(remove)
    assert step.inverse(step(image)).shape == image.shape


def test_frames_share_a_box_and_are_filled_one_by_one():
    images = [framed(octagon(), tissue(seed)) for seed in range(3)]
    images[0][:, :120] = 0  # one dark side
    images[1][disk((100, 200), 5)] = WHITE
    stacked = torch.stack([channels_first(image) for image in images], dim=-1)
    step = RemoveArtifacts()
    result = step(stacked)
    single = RemoveArtifacts()(channels_first(images[1]))
    assert result.shape == (*single.shape, 3)
    assert torch.equal(result[..., 1].as_tensor(), single.as_tensor())
    values = torch.rand(1, *result.shape[1:])
    restored = step.inverse(MetaTensor(values).copy_meta_from(result)).numpy()[0]
    spot = disk((100, 200), 5)
    lowest = restored[~octagon()].min()
    assert (restored[spot, 1] == lowest).all()
    assert (restored[spot][:, [0, 2]] > lowest).all()


def test_affine_stays_that_of_the_stored_grid():
    image = channels_first(endoscopy())
    image.affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    step = RemoveArtifacts()
    result = step(image)
    assert result.shape != image.shape
    assert torch.equal(result.affine, image.affine)
    assert torch.equal(step.inverse(result).affine, image.affine)


def test_dictionary_version_does_what_the_array_version_does():
    data = {"image": channels_first(endoscopy()), "case_id": "a"}
    step = RemoveArtifactsd("image", ("border", "text"))
    result = step(data)
    assert torch.equal(result["image"], RemoveArtifacts(("border", "text"))(data["image"]))
    assert result["case_id"] == "a"
    assert step.inverse(result)["image"].shape == (3, ROWS, COLUMNS)


def test_missing_key_is_an_error_unless_allowed():
    with pytest.raises(KeyError, match="image"):
        RemoveArtifactsd("image")({"case_id": "a"})
    assert RemoveArtifactsd("image", allow_missing_keys=True)({"case_id": "a"}) == {"case_id": "a"}


def preprocessing() -> Compose:
    return Compose(
        [
            LoadMedicalImaged("image"),
            ToDisplayOrientationd("image"),
            ScaleToBytesd("image"),
            RemoveArtifactsd("image"),
            ToRGBd("image"),
            ResizeBicubicd("image", 56),
            ScaleIntensityRanged("image", a_min=0, a_max=255, b_min=0, b_max=1),
        ]
    )


def restore(steps: Compose, data: dict) -> torch.Tensor:
    """The red channel as a map on the file's grid, upright."""
    carried = MetaTensor(data["image"][:1].as_tensor()).copy_meta_from(data["image"])
    back = Invertd("anomaly_map", steps, orig_keys="image", nearest_interp=False)
    return back({**data, "anomaly_map": carried})["anomaly_map"].as_tensor().transpose(1, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_of_images_of_different_sizes_is_restored_as_each_alone(tmp_path, workers):
    images = [endoscopy("octagon"), endoscopy("circle", seed=1)[5:, :-8], tissue(2)]
    cases = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        cases.append({"image": tmp_path / f"{index}.png"})
    steps = preprocessing()
    loader = DataLoader(Dataset(cases, steps), batch_size=3, num_workers=workers)
    batch = next(iter(loader))
    assert batch["image"].shape == (3, 3, 56, 56)
    for item, case, image in zip(decollate_batch(batch), cases, images, strict=True):
        alone = steps(case)
        assert torch.equal(item["image"].as_tensor(), alone["image"].as_tensor())
        restored = restore(steps, item)
        assert restored.shape == (1, *image.shape[:2])
        assert torch.equal(restored, restore(steps, alone))


@pytest.mark.parametrize("place", [(40, 140), (119, 70), (190, 230)])
def test_bright_spot_of_a_resized_frame_comes_back_where_it_was(tmp_path, place):
    image = framed(octagon())
    image[disk(place, 6)] = (255, 60, 60)  # redder than tissue, but not a highlight
    Image.fromarray(image).save(tmp_path / "a.png")
    steps = preprocessing()
    restored = restore(steps, steps({"image": tmp_path / "a.png"})).numpy()[0]
    np.testing.assert_allclose(np.unravel_index(restored.argmax(), restored.shape), place, atol=4)
    assert restored[~octagon()].max() == restored[octagon()].min() == restored.min()
