"""The montage: which slices, in which order, under which colors."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image

from mrad_med.results.overlays import CONTOUR_FRACTION, draw_montage, save_overlay

ROWS, COLUMNS, SLICES = 20, 30, 7
SCORES = np.array([0.1, 0.6, 0.3, 0.6, 0.2, 0.5, 0.0])


def make_volume() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (ROWS, COLUMNS, SLICES, 3)).astype(np.uint8)
    return image, (0.3 + 0.01 * random.rand(ROWS, COLUMNS, SLICES)).astype(np.float32)


def shown(figure: Figure) -> list:
    """Return the panels that show a slice, without the color bar."""
    return [axes for axes in figure.axes if len(axes.images) == 2]


def test_highest_scores_come_first_and_of_equal_ones_the_lower_slice():
    figure = draw_montage(*make_volume(), SCORES, count=4)
    titles = [axes.get_title() for axes in shown(figure)]
    numbers = [(2, 0.6), (4, 0.6), (6, 0.5), (3, 0.3)]
    assert titles == [f"slice {number} of 7, score {score:.4f}" for number, score in numbers]


def test_slices_can_be_shown_in_a_given_order():
    figure = draw_montage(*make_volume(), SCORES, count=3, order=np.array([3, 1, 5, 2]))
    assert [axes.get_title()[:12] for axes in shown(figure)] == ["slice 4 of 7", "slice 2 of 7", "slice 6 of 7"]


def test_panels_show_the_pixels_and_the_map_of_their_slice():
    image, anomaly_map = make_volume()
    gray, heat = shown(draw_montage(image, anomaly_map, SCORES, count=1))[0].images
    np.testing.assert_allclose(gray.get_array(), image[:, :, 1].mean(-1))
    np.testing.assert_array_equal(heat.get_array(), anomaly_map[..., 1])


def test_one_scale_of_colors_spans_the_whole_volume():
    image, anomaly_map = make_volume()
    anomaly_map[0, 0, 6] = 0.9  # in the slice of the lowest score, which is not shown
    figure = draw_montage(image, anomaly_map, SCORES, count=3)
    assert len(shown(figure)) == 3
    for axes in shown(figure):
        assert axes.images[1].get_clim() == pytest.approx((anomaly_map.min(), 0.9))
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "anomaly value"
    assert bar.get_ylim() == pytest.approx((anomaly_map.min(), 0.9))


def test_map_is_denser_where_it_is_higher():
    heat = shown(draw_montage(*make_volume(), SCORES))[0].images[1]
    order = np.argsort(heat.get_array(), axis=None)
    assert (np.diff(heat.get_alpha().ravel()[order]) >= 0).all()
    assert 0 < heat.get_alpha().min() < heat.get_alpha().max() < 1


def test_contours_enclose_the_highest_pixels_of_the_volume():
    image, anomaly_map = make_volume()
    levels = {
        contour.levels[0]
        for axes in shown(draw_montage(image, anomaly_map, SCORES))
        for contour in axes.collections
        if isinstance(contour, QuadContourSet)
    }
    assert len(levels) == 1
    assert (anomaly_map > levels.pop()).mean() == pytest.approx(CONTOUR_FRACTION, abs=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 5, 9])
def test_png_is_written_whatever_the_number_of_slices(tmp_path, count):
    image, anomaly_map = make_volume()
    anomaly_map[..., :3] = 0.31  # slices of one value
    figure = draw_montage(image, anomaly_map, SCORES, count=count, title="case $1_a$")
    assert len(shown(figure)) == min(count, SLICES)
    save_overlay(tmp_path / "montage.png", figure)
    with Image.open(tmp_path / "montage.png") as written:
        assert min(written.size) > 100


@pytest.mark.filterwarnings("error")
def test_constant_volume_is_drawn_without_contours(tmp_path):
    image, anomaly_map = make_volume()
    figure = draw_montage(image, np.full_like(anomaly_map, 0.5), SCORES, count=2)
    assert not any(isinstance(item, QuadContourSet) for axes in shown(figure) for item in axes.collections)
    save_overlay(tmp_path / "montage.png", figure)


def test_title_and_the_meaning_of_the_contour_are_shown():
    figure = draw_montage(*make_volume(), SCORES, title="case 7")
    assert figure.get_suptitle() == "case 7\ncontour: highest 5% of the volume"


def test_inputs_are_never_changed():
    inputs = (*make_volume(), SCORES.copy())
    for array in inputs:
        array.setflags(write=False)
    assert isinstance(draw_montage(*inputs, count=2), Figure)


def test_map_of_another_size_is_refused():
    image, anomaly_map = make_volume()
    with pytest.raises(ValueError, match=r"shape \(.*\) does not fit an image of shape"):
        draw_montage(image, anomaly_map[:-1], SCORES)


@pytest.mark.parametrize("scores", [SCORES[:-1], np.where(SCORES > 0.5, np.nan, SCORES)])
def test_scores_must_be_one_finite_number_a_slice(scores):
    with pytest.raises(ValueError, match="one finite score for each of"):
        draw_montage(*make_volume(), scores)


def test_count_must_be_positive():
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        draw_montage(*make_volume(), SCORES, count=0)
