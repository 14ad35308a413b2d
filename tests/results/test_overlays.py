"""Overlays: panels, color bars with real values, contours, and files that are complete or absent."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image

from mrad_med.results.overlays import CONTOUR_FRACTION, MAX_SIDE, draw_overlay, save_overlay

ROWS, COLUMNS = 40, 60


def make_image(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (rows, columns, 3)).astype(np.uint8)


def make_map(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Rises from 0.3 to 0.31, row by row, as narrow as MRAD's probabilities can be."""
    return np.linspace(0.3, 0.31, rows * columns, dtype=np.float32).reshape(rows, columns)


def contours_of(figure: Figure) -> list[QuadContourSet]:
    return [item for item in figure.axes[1].collections if isinstance(item, QuadContourSet)]


def test_figure_shows_the_image_beside_its_map_and_a_color_bar():
    image, anomaly_map = make_image(), make_map()
    figure = draw_overlay(image, anomaly_map)
    assert isinstance(figure, Figure)
    plain, mapped, bar = figure.axes
    np.testing.assert_array_equal(plain.images[0].get_array(), image)
    gray, heat = mapped.images
    np.testing.assert_allclose(gray.get_array(), image.mean(-1))
    np.testing.assert_array_equal(heat.get_array(), anomaly_map)
    assert 0 < heat.get_alpha() < 1
    assert bar.get_ylabel() == "anomaly value"


def test_colors_span_the_range_of_the_map_itself():
    figure = draw_overlay(make_image(), make_map())
    _, mapped, bar = figure.axes
    assert mapped.images[1].get_clim() == pytest.approx((0.3, 0.31), abs=1e-7)
    assert bar.get_ylim() == pytest.approx((0.3, 0.31), abs=1e-7)


def test_contour_encloses_the_highest_pixels():
    anomaly_map = make_map()
    (contour,) = contours_of(draw_overlay(make_image(), anomaly_map))
    (level,) = contour.levels
    assert (anomaly_map > level).mean() == pytest.approx(CONTOUR_FRACTION, abs=1e-3)


def test_contour_lies_around_the_hot_spot():
    anomaly_map = make_map() * 0
    anomaly_map[10:20, 36:48] = 0.9  # 120 of 2400 pixels: 5 %
    (contour,) = contours_of(draw_overlay(make_image(), anomaly_map + make_map()))
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])  # x, y
    assert vertices.min(0).tolist() == pytest.approx([35.5, 9.5], abs=0.6)
    assert vertices.max(0).tolist() == pytest.approx([47.5, 19.5], abs=0.6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_map_is_drawn_without_a_contour(tmp_path, value):
    figure = draw_overlay(make_image(), np.full((ROWS, COLUMNS), value, np.float32))
    assert contours_of(figure) == []
    low, high = figure.axes[1].images[1].get_clim()
    assert low == value < high
    save_overlay(tmp_path / "constant.png", figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_map_that_is_constant_but_for_one_pixel_is_drawn(tmp_path, background):
    anomaly_map = np.full((ROWS, COLUMNS), background, np.float32)
    anomaly_map[3, 4] = 1 - background
    save_overlay(tmp_path / "pixel.png", draw_overlay(make_image(), anomaly_map))
    with Image.open(tmp_path / "pixel.png") as drawn:
        drawn.load()


@pytest.mark.parametrize("shape", [(COLUMNS, ROWS), (ROWS, COLUMNS + 1), (ROWS, COLUMNS, 1)])
def test_map_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"a map of size \(.*\) does not fit an image of size \(40, 60\)"):
        draw_overlay(make_image(), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((1500, 3000), (512, 1024)), ((3000, 1500), (1024, 512)), ((1024, 700), (1024, 700))],
)
def test_large_images_are_reduced_before_drawing(size, drawn):
    assert max(drawn) == MAX_SIDE
    figure = draw_overlay(make_image(*size), make_map(*size))
    arrays = [image.get_array() for axes in figure.axes[:2] for image in axes.images]
    assert [array.shape[:2] for array in arrays] == [drawn] * 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(16, 16), (16, 2000), (2000, 16), (16, 30000)])
def test_long_and_small_images_are_drawn(tmp_path, size):
    save_overlay(tmp_path / "drawn.png", draw_overlay(make_image(*size), make_map(*size), title="long"))
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert min(drawn.size) > 50


@pytest.mark.filterwarnings("ignore:Glyph")  # a character that the font lacks is drawn as a box
@pytest.mark.parametrize(
    "title",
    ["$", "a$b$c", r"$\frac{1$", r"cost \$5 \$", "100 % %s %(x)d", "line\nline", "_^{}~#&", "tab\there", "x" * 500, ""],
)
def test_title_is_text_whatever_stands_in_it(title):
    figure = draw_overlay(make_image(), make_map(), title=title)
    figure.draw_without_rendering()  # lays the text out, formulas too
    assert figure.get_suptitle().replace("\\", "") == title.replace("\\", "")


def test_title_is_shown_above_the_panels():
    figure = draw_overlay(make_image(), make_map(), title="case 7\nanomaly score 0.1234")
    assert figure.get_suptitle() == "case 7\nanomaly score 0.1234"


def test_dollar_signs_of_a_title_do_not_start_a_formula(tmp_path):
    """A formula would be set in italics, without its dollar signs: fewer or other pixels."""
    drawn = []
    for title in ("a$bbb$c", "abbbc"):
        save_overlay(tmp_path / "titled.png", draw_overlay(make_image(), make_map(), title=title))
        with Image.open(tmp_path / "titled.png") as image:
            dark = np.asarray(image.convert("L"))[:25] < 128
        drawn.append(np.ptp(np.flatnonzero(dark.any(0))))
    assert drawn[0] > drawn[1] + 10


def test_inputs_of_a_drawing_are_left_alone():
    image, anomaly_map = make_image(), make_map()
    draw_overlay(image, anomaly_map)
    np.testing.assert_array_equal(image, make_image())
    np.testing.assert_array_equal(anomaly_map, make_map())


def test_overlay_is_written_as_a_png_where_folders_are_missing(tmp_path):
    path = tmp_path / "deep" / "er" / "overlay.png"
    save_overlay(path, draw_overlay(make_image(), make_map()))
    with Image.open(path) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 2 * drawn.height  # two panels of 60 x 40 side by side
    assert [item.name for item in path.parent.iterdir()] == ["overlay.png"]


def test_overlay_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "overlay.png"
    path.write_bytes(b"the old one")

    def fill_the_disk(figure, target, **options):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_overlay(path, draw_overlay(make_image(), make_map()))
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
