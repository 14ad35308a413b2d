"""Procedural surfaces: the same from the same seed, and their masks mark what was painted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

from mrad_med import load_labeled_folder, write_surface_dataset
from mrad_med.data import DEFECTS, SURFACES, make_surface
from mrad_med.data.surfaces import SIDE, blob, line


@pytest.fixture
def small(monkeypatch):
    """Make smaller images: the written files do not depend on their size."""
    side = 96
    rows, columns = (axis / side for axis in np.mgrid[:side, :side].astype(float))
    for name, value in (("SIDE", side), ("ROWS", rows), ("COLUMNS", columns)):
        monkeypatch.setattr(f"mrad_med.data.surfaces.{name}", value)


def grow(region: np.ndarray, pixels: int) -> np.ndarray:
    """Return a region with all pixels that a separable filter of this reach gets to from it."""
    return binary_dilation(region, np.ones((3, 3)), iterations=pixels)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# one image


@pytest.mark.parametrize("surface", SURFACES)
def test_surface_without_defect_has_an_empty_mask(surface):
    image, mask = make_surface(surface, seed=3)
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((384, 384, 3), np.uint8, (384, 384), np.uint8)
    assert image.std() > 1
    assert mask.max() == 0


@pytest.mark.parametrize("defect", DEFECTS)
def test_mask_of_a_defect_is_black_and_white(defect):
    image, mask = make_surface("plastic", defect=defect, seed=5)
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((384, 384, 3), np.uint8, (384, 384), np.uint8)
    assert np.unique(mask).tolist() == [0, 255]
    assert 0 < (mask > 0).mean() < 0.5


def test_same_seed_makes_the_same_image_and_another_seed_another():
    first, again, other = (make_surface("tiles", defect="stain", count=2, seed=seed) for seed in (7, 7, 8))
    for i in range(2):
        np.testing.assert_array_equal(first[i], again[i])
        assert (first[i] != other[i]).any()


def test_random_numbers_of_others_are_neither_used_nor_moved():
    np.random.seed(1)  # noqa: NPY002 - the global state is what this is about
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, _ = make_surface("granite", seed=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(9)  # noqa: NPY002
    np.testing.assert_array_equal(make_surface("granite", seed=2)[0], first)


@pytest.mark.parametrize("defect", DEFECTS)
def test_mask_marks_where_the_defect_was_painted(defect, monkeypatch):
    """The light is constant, and there is no gloss; only the noise differs."""
    monkeypatch.setattr("mrad_med.data.surfaces.light", lambda _: np.ones((SIDE, SIDE)))
    monkeypatch.setattr("mrad_med.data.surfaces.gloss", lambda _, image: image)
    whole, _ = make_surface("granite", seed=4)
    damaged, mask = make_surface("granite", defect=defect, count=3, seed=4)
    change = np.abs(gaussian_filter(damaged.astype(float) - whole, (2, 2, 0))).max(-1)  # of 255
    reach = grow(mask > 0, 28)  # 20 pixels of the filters that soften a defect, 8 of the one that removes the noise
    assert change[~reach].max() < 6
    assert change[mask > 0].mean() > 8


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("shape", [blob, line])
def test_defect_leaves_what_is_outside_its_region_alone(defect, shape):
    random = np.random.RandomState(0)
    image = random.uniform(0.2, 0.8, (SIDE, SIDE, 3))
    before = image.copy()
    region = shape(random)
    painted = DEFECTS[defect](random, image, gaussian_filter(region.astype(float), 0.8))
    changed = np.abs(painted - image).max(-1) > 1e-9
    np.testing.assert_array_equal(image, before)
    assert not changed[~grow(region, 20 if defect == "bump" else 3)].any()  # a bump lights its surroundings too
    assert changed[region].mean() > 0.95


def test_more_places_cover_more(small):
    areas = [(make_surface("wood", defect="stain", count=count, seed=1)[1] > 0).sum() for count in (1, 2, 6)]
    assert areas == sorted(areas)
    assert areas[0] < areas[2]


@pytest.mark.parametrize(("surface", "defect"), [("leder", None), ("leather", "Kratzer"), ("", "bump")])
def test_unknown_names_are_refused_with_those_there_are(surface, defect):
    with pytest.raises(
        ValueError, match=rf"surfaces are brushed_metal, .*defects are bump, .*got '{surface}', '?{defect}'?$"
    ):
        make_surface(surface, defect=defect)


@pytest.mark.parametrize("count", [0, -1])
def test_defect_in_no_place_is_refused(count):
    with pytest.raises(ValueError, match=f"count must be at least 1, got {count}"):
        make_surface("wood", defect="bump", count=count)


# a folder of them


def test_dataset_is_read_as_one_class_a_surface(tmp_path, small):
    assert write_surface_dataset(tmp_path / "new" / "set", surfaces=["wood", "tiles"], count=2) == str(
        tmp_path / "new" / "set"
    )
    cases = load_labeled_folder(tmp_path / "new" / "set")
    assert [(case["class"], case["case_id"], case["label"]) for case in cases] == [
        ("tiles", "tiles/normal/whole_000", 0),
        ("tiles", "tiles/normal/whole_001", 0),
        ("tiles", "tiles/defect/bump_000", 1),
        ("tiles", "tiles/defect/foreign_001", 1),
        ("wood", "wood/normal/whole_000", 0),
        ("wood", "wood/normal/whole_001", 0),
        ("wood", "wood/defect/bump_000", 1),
        ("wood", "wood/defect/foreign_001", 1),
    ]
    for case in cases:
        with Image.open(case["image"]) as image:
            assert (image.size, image.mode) == ((96, 96), "RGB")
        if case["label"]:
            with Image.open(case["mask"]) as mask:
                assert np.unique(np.asarray(mask)).tolist() == [0, 255]


def test_dataset_is_the_same_from_the_same_seed_and_can_be_written_twice(tmp_path, small):
    options = {"surfaces": ["plastic"], "count": 1}
    first, other = tmp_path / "first", tmp_path / "other"
    write_surface_dataset(first, seed=1, **options)
    before = contents(first)
    write_surface_dataset(first, seed=1, **options)
    write_surface_dataset(other, seed=2, **options)
    assert contents(first) == before
    assert contents(other).keys() == before.keys()
    assert all(content != before[name] for name, content in contents(other).items())


def test_killed_writing_leaves_whole_images_and_no_defect_without_a_mask(tmp_path, small, monkeypatch):
    calls = []
    save = Image.Image.save

    def die_at_the_fifth(self, file, **keywords):
        calls.append(file)
        save(self, file, **keywords)
        if len(calls) == 5:  # the second defect, its mask being there
            Path(file).write_bytes(Path(file).read_bytes()[:50])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", die_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        write_surface_dataset(tmp_path, surfaces=["plastic"], count=3)
    assert sorted(contents(tmp_path)) == [
        "plastic/defect/bump_000.png",
        "plastic/mask/bump_000.png",
        "plastic/mask/foreign_001.png",
        "plastic/normal/whole_000.png",
    ]
    assert len(load_labeled_folder(tmp_path)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surfaces": ["wood", "leder"]}, "surfaces are .* got 'leder', None"),
        ({"count": 0}, "count must be at least 1, got 0"),
    ],
)
def test_refused_dataset_writes_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_surface_dataset(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
