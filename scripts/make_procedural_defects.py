"""Write a labelled set of procedural surfaces, with and without painted defects, in the layout of a plain folder.

Usage:
    python scripts/make_procedural_defects.py OUTPUT_FOLDER --count 160 --seed 0

Every image is one of several surfaces in random colors under uneven light. A defect image has one to three defects of
one kind; its mask marks them. The set widens the variety of a memory bank beyond the real industrial sets at hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

Field = NDArray[np.float64]
SIDE = 384  # pixels
ROWS, COLUMNS = (axis / SIDE for axis in np.mgrid[:SIDE, :SIDE].astype(float))


def noise(random: np.random.RandomState, *sigmas: float) -> Field:
    """Return a smooth random field of unit variance; two sigmas stretch it along the columns or rows."""
    field = gaussian_filter(
        random.standard_normal((SIDE, SIDE)), sigmas[0] if len(sigmas) == 1 else sigmas, mode="wrap"
    )
    return np.asarray((field - field.mean()) / field.std())


def brushed_metal(random: np.random.RandomState) -> Field:
    """Return fine parallel streaks."""
    return 0.6 * noise(random, 0.7, random.uniform(15, 50)) + 0.3 * noise(random, 40)


def granite(random: np.random.RandomState) -> Field:
    """Return grains of several sizes."""
    return 0.7 * noise(random, random.uniform(1, 2)) + 0.5 * noise(random, random.uniform(3, 6))


def fabric(random: np.random.RandomState) -> Field:
    """Return a weave of two thread directions, slightly warped."""
    threads = random.uniform(20, 45)
    warp = 0.004 * noise(random, 20)
    across, along = (np.sin(2 * np.pi * threads * (axis + warp)) for axis in (ROWS, COLUMNS))
    return 0.8 * np.where(across * along > 0, across, along) + 0.3 * noise(random, 1)


def wood(random: np.random.RandomState) -> Field:
    """Return warped rings, cut lengthwise."""
    rings = random.uniform(6, 16)
    phase = rings * (COLUMNS + 0.05 * noise(random, 60, 12) + 0.3 * ROWS * random.uniform(-1, 1))
    return 0.8 * np.sin(2 * np.pi * phase) + 0.4 * noise(random, 25, 0.8)


def leather(random: np.random.RandomState) -> Field:
    """Return cells with dark borders."""
    seeds = random.uniform(0, 1, (random.randint(300, 900), 2))
    distances, _ = cKDTree(seeds).query(np.stack([ROWS.ravel(), COLUMNS.ravel()], axis=1), k=2)
    border = np.clip((distances[:, 1] - distances[:, 0]) * 120, 0, 1).reshape(SIDE, SIDE)
    return 1.2 * (border - 0.7) + 0.2 * noise(random, 1.5)


def tiles(random: np.random.RandomState) -> Field:
    """Return a grid of plates with dark joints."""
    count, joint = random.randint(3, 8), random.uniform(0.03, 0.08)
    inside = [np.minimum(axis * count % 1, 1 - axis * count % 1) > joint for axis in (ROWS, COLUMNS)]
    return 1.3 * (inside[0] & inside[1]) - 0.8 + 0.15 * noise(random, 2)


def plastic(random: np.random.RandomState) -> Field:
    """Return a nearly plain surface."""
    return 0.08 * noise(random, 1) + 0.3 * noise(random, 60)


SURFACES: tuple[Callable[[np.random.RandomState], Field], ...] = (
    brushed_metal,
    granite,
    fabric,
    wood,
    leather,
    tiles,
    plastic,
)


def paint(random: np.random.RandomState, relief: Field) -> Field:
    """Return (SIDE, SIDE, 3) in [0, 1]: a relief in a random color under uneven light."""
    color = np.clip(random.uniform(0.25, 0.75) + random.uniform(-0.22, 0.22, 3), 0.1, 0.9)
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + random.uniform(0, 0.3) * (np.cos(angle) * (ROWS - 0.5) + np.sin(angle) * (COLUMNS - 0.5))
    contrast = random.uniform(0.08, 0.18)
    return np.clip(color * (light * (1 + contrast * relief))[..., None], 0, 1)


def blob(random: np.random.RandomState) -> NDArray[np.bool_]:
    """Return an irregular round region."""
    row, column = random.uniform(0.15, 0.85, 2)
    radius, stretch = random.uniform(0.03, 0.13), random.uniform(0.6, 1.6)
    distance = np.hypot((ROWS - row) * stretch, COLUMNS - column) / radius
    return np.asarray(distance + 0.18 * noise(random, 8) < 1)


def line(random: np.random.RandomState) -> NDArray[np.bool_]:
    """Return a thin, possibly wandering stroke."""
    steps = random.randint(80, 250)
    turns = np.cumsum(random.normal(0, random.choice([0.005, 0.15]), steps)) + random.uniform(0, 2 * np.pi)
    path = np.cumsum(np.stack([np.sin(turns), np.cos(turns)]), axis=1) + random.uniform(0.2, 0.8, (2, 1)) * SIDE
    rows, columns = np.clip(path.astype(int), 0, SIDE - 1)
    region = np.zeros((SIDE, SIDE), bool)
    region[rows, columns] = True
    return np.asarray(binary_dilation(region, iterations=random.randint(1, 4)))


def stain(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image tinted inside the region."""
    tint = random.uniform(0, 1, 3)
    return image + (soft * random.uniform(0.3, 0.8))[..., None] * (tint - image)


def shade(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image darker or brighter inside the region."""
    return image * (1 + soft * random.choice([-0.6, -0.4, 0.5, 0.8]))[..., None]


def foreign(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image with another surface inside the region."""
    other = paint(random, SURFACES[random.randint(len(SURFACES))](random))
    return image + soft[..., None] * (other - image)


def bump(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image lit as if the region stood out or were pressed in."""
    slope = np.gradient(gaussian_filter(soft, 4))
    angle = random.uniform(0, 2 * np.pi)
    return image * (1 + 9 * (np.cos(angle) * slope[0] + np.sin(angle) * slope[1]))[..., None]


def smear(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image with its texture displaced inside the region."""
    offsets = [12 * soft * noise(random, 10) for _ in range(2)]
    places = [axis * SIDE + offset for axis, offset in zip((ROWS, COLUMNS), offsets, strict=True)]
    return np.stack([map_coordinates(image[..., c], places, order=1, mode="reflect") for c in range(3)], axis=-1)


EFFECTS = (stain, shade, foreign, bump, smear)


def make_image(
    random: np.random.RandomState, index: int, *, defects: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a surface (SIDE, SIDE, 3) and its mask (SIDE, SIDE) of 0 and 255."""
    image = paint(random, SURFACES[index % len(SURFACES)](random))
    mask = np.zeros((SIDE, SIDE), bool)
    effect = EFFECTS[random.randint(len(EFFECTS))]
    shape = line if effect in (stain, shade) and random.uniform() < 0.5 else blob
    for _ in range(defects):
        region = shape(random)
        image = effect(random, image, gaussian_filter(region.astype(float), 0.8))
        mask |= region
    image = image + random.normal(0, 0.01, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), mask.astype(np.uint8) * 255


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=160, help="images with defects, and as many without")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for folder in ("normal", "defect", "mask"):
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(options.seed)
    for index in range(options.count):
        name = f"{SURFACES[index % len(SURFACES)].__name__}_{index:04d}.png"
        Image.fromarray(make_image(random, index, defects=0)[0]).save(options.output / "normal" / name)
        image, mask = make_image(random, index, defects=random.randint(1, 4))
        Image.fromarray(image).save(options.output / "defect" / name)
        Image.fromarray(mask).save(options.output / "mask" / name)


if __name__ == "__main__":
    main()
