"""Places of slices, worked by hand; whole series are in test_series.py."""

from __future__ import annotations

import numpy as np
import pytest

from mrad_med.io.geometry import Planes, plane_name, plane_normal, stack_planes, upright_affine

AXIAL = np.asarray([[1.0, 0, 0], [0, 1, 0]])


def planes(heights: list[float], **changes) -> Planes:
    positions = np.asarray([[1.0, 2.0, height] for height in heights])
    return Planes(**{"positions": positions, "orientation": AXIAL, "spacing": (0.5, 2.0), "thickness": 3.0, **changes})


def tilted(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.asarray([[1, 0, 0], [0, np.cos(angle), np.sin(angle)]])


def test_stack_is_ordered_and_its_affine_is_that_of_the_standard():
    stack = stack_planes(planes([8, 2, 5]))
    assert stack.order == (1, 2, 0)
    assert (stack.repeated, stack.faults, stack.remarks) == ((), (), ())
    np.testing.assert_allclose(stack.affine, [[-0.5, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 2], [0, 0, 0, 1]])


def test_single_slice_steps_by_its_thickness():
    np.testing.assert_allclose(stack_planes(planes([4])).affine[:3, 2], [0, 0, 3])


def test_order_of_the_slices_given_does_not_matter_to_the_affine():
    heights = [2.0, 4.0, 6.0, 8.0]
    expected = stack_planes(planes(heights)).affine
    for seed in range(5):
        np.testing.assert_allclose(
            stack_planes(planes(list(np.random.RandomState(seed).permutation(heights)))).affine, expected
        )


def test_position_that_repeats_counts_once():
    stack = stack_planes(planes([2, 4, 4.001, 6]))
    assert stack.order == (0, 1, 2, 3)
    assert stack.repeated == (2,)
    assert stack.faults == ("1 slice(s) at the position of another",)
    np.testing.assert_allclose(stack.affine[:3, 2], [0, 0, 2])


@pytest.mark.parametrize(
    ("heights", "fault"),
    [
        ([0, 1, 2, 5], "1 gap(s) between slices (up to 3 mm, usually 1 mm), about 2 slice(s) missing"),
        ([0, 1, 2.2, 3], "uneven distances between slices, from 0.8 to 1.2 mm"),
        ([0, 1, 2.005, 3], None),  # rounding in the header
        ([0, 7], None),
    ],
)
def test_distances_that_are_not_even_are_a_fault(heights, fault):
    assert stack_planes(planes(heights)).faults == (() if fault is None else (fault,))


@pytest.mark.parametrize(
    ("orientation", "name"),
    [
        (AXIAL, "axial"),
        (-AXIAL, "axial"),
        (tilted(25), "axial"),
        (tilted(27), "oblique"),
        (tilted(63), "oblique"),
        (tilted(65), "coronal"),
        (np.asarray([[0, 1, 0], [0, 0, -1]]), "sagittal"),
    ],
)
def test_plane_is_named_after_the_nearest_axis_if_one_is_near(orientation, name):
    assert plane_name(orientation) == name


def test_normal_is_right_handed():
    np.testing.assert_allclose(plane_normal(AXIAL), [0, 0, 1])
    np.testing.assert_allclose(plane_normal(tilted(90)), [0, -1, 0], atol=1e-12)


def test_image_without_a_position_is_upright():
    np.testing.assert_array_equal(upright_affine((0.5, 2.0), 3.0), np.diag([-0.5, -2, 3, 1]))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"positions": np.asarray([[0, np.nan, 0]])}, "a position, direction or spacing that is not a finite number"),
        ({"spacing": (1.0, 0.0)}, "a spacing that is not above 0"),
        ({"thickness": 0.0}, "a spacing that is not above 0"),
        ({"orientation": AXIAL * 2}, "directions of rows and columns that are not perpendicular unit vectors"),
        ({"orientation": AXIAL[[0, 0]]}, "directions of rows and columns that are not perpendicular unit vectors"),
    ],
)
def test_numbers_that_define_no_affine_are_reported(changes, problem):
    assert planes([1, 2], **changes).problem() == problem
