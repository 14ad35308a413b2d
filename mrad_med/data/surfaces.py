"""Procedural surfaces with painted defects: labeled, industrial-like images that are reproducible from a seed.

Normal and defect images have the same disturbances that are not defects: uneven light, dark rims, folds, highlights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from mrad_med.files import atomic_path

__all__ = ["DEFECTS", "SURFACES", "make_surface", "write_surface_dataset"]

Field = NDArray[np.float64]
SIDE = 384  # pixels
ROWS, COLUMNS = (axis / SIDE for axis in np.mgrid[:SIDE, :SIDE].astype(float))


def noise(random: np.random.RandomState, *sigmas: float) -> Field:
    """Return a smooth random field of zero mean and unit variance; two sigmas smooth rows and columns differently."""
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
    return np.asarray(0.8 * np.where(across * along > 0, across, along) + 0.3 * noise(random, 1))


def wood(random: np.random.RandomState) -> Field:
    """Return warped rings, cut lengthwise."""
    rings = random.uniform(6, 16)
    phase = rings * (COLUMNS + 0.05 * noise(random, 60, 12) + 0.3 * ROWS * random.uniform(-1, 1))
    return np.asarray(0.8 * np.sin(2 * np.pi * phase) + 0.4 * noise(random, 25, 0.8))


def leather(random: np.random.RandomState) -> Field:
    """Return cells with dark borders."""
    seeds = random.uniform(0, 1, (random.randint(300, 900), 2))
    distances, _ = cKDTree(seeds).query(np.stack([ROWS.ravel(), COLUMNS.ravel()], axis=1), k=2)
    border = np.clip((distances[:, 1] - distances[:, 0]) * 120, 0, 1).reshape(SIDE, SIDE)
    return np.asarray(1.2 * (border - 0.7) + 0.2 * noise(random, 1.5))


def tiles(random: np.random.RandomState) -> Field:
    """Return a grid of plates with dark joints."""
    count, joint = random.randint(3, 8), random.uniform(0.03, 0.08)
    inside = [np.minimum(axis * count % 1, 1 - axis * count % 1) > joint for axis in (ROWS, COLUMNS)]
    return np.asarray(1.3 * (inside[0] & inside[1]) - 0.8 + 0.15 * noise(random, 2))


def plastic(random: np.random.RandomState) -> Field:
    """Return a nearly uniform surface."""
    return 0.08 * noise(random, 1) + 0.3 * noise(random, 60)


def marble(random: np.random.RandomState) -> Field:
    """Return a cloudy stone with branching veins."""
    veins = np.exp(-np.abs(noise(random, random.uniform(12, 25))) * random.uniform(8, 20))
    return np.asarray(0.5 * noise(random, 20) + random.choice([-1, 1]) * 1.2 * veins + 0.1 * noise(random, 1))


SURFACES: Mapping[str, Callable[[np.random.RandomState], Field]] = {
    surface.__name__: surface for surface in (brushed_metal, fabric, granite, leather, marble, plastic, tiles, wood)
}


def light(random: np.random.RandomState) -> Field:
    """Return the brightness factor of each pixel: uneven light, sometimes with a dark rim or with folds."""
    angle = random.uniform(0, 2 * np.pi)
    field = 1 + random.uniform(0, 0.3) * (np.cos(angle) * (ROWS - 0.5) + np.sin(angle) * (COLUMNS - 0.5))
    if random.uniform() < 0.4:  # a dark rim, as from a spotlight
        row, column = random.uniform(0.35, 0.65, 2)
        field = field * (1 - random.uniform(0.3, 0.9) * np.clip(np.hypot(ROWS - row, COLUMNS - column), 0, 1))
    if random.uniform() < 0.4:  # folds, lit from one side
        slope = np.gradient(noise(random, random.uniform(25, 50)) * SIDE / 20)
        field = field * np.clip(1 + 0.25 * (np.cos(angle) * slope[0] + np.sin(angle) * slope[1]), 0.4, 1.6)
    return np.asarray(field)


def gloss(random: np.random.RandomState, image: Field) -> Field:
    """Return the image, in 35 % of cases with glossy highlights, which do not count as a defect."""
    if random.uniform() > 0.35:
        return image
    spots = np.clip((noise(random, random.uniform(3, 9)) - random.uniform(1.9, 2.6)) * 3, 0, 1)
    return image + spots[..., None] * (1 - image)


def paint(random: np.random.RandomState, relief: Field) -> Field:
    """Return a relief in a random color: (SIDE, SIDE, 3) with values in [0, 1]."""
    color = np.clip(random.uniform(0.25, 0.75) + random.uniform(-0.3, 0.3, 3), 0.05, 0.95)
    contrast = random.uniform(0.08, 0.18)
    return np.clip(color * (1 + contrast * relief)[..., None], 0, 1)


def blob(random: np.random.RandomState) -> NDArray[np.bool_]:
    """Return an irregular round region."""
    row, column = random.uniform(0.15, 0.85, 2)
    radius, stretch = random.uniform(0.03, 0.13), random.uniform(0.6, 1.6)
    distance = np.hypot((ROWS - row) * stretch, COLUMNS - column) / radius
    return np.asarray(distance + 0.18 * noise(random, 8) < 1)


def line(random: np.random.RandomState) -> NDArray[np.bool_]:
    """Return a thin, straight or winding stroke."""
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
    return np.asarray(image * (1 + soft * random.choice([-0.6, -0.4, 0.5, 0.8]))[..., None])


def foreign(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image with a random surface inside the region."""
    other = paint(random, list(SURFACES.values())[random.randint(len(SURFACES))](random))
    return image + soft[..., None] * (other - image)


def bump(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image lit as if the region were raised or pressed in."""
    slope = np.gradient(gaussian_filter(soft, 4))
    angle = random.uniform(0, 2 * np.pi)
    return np.asarray(image * (1 + 9 * (np.cos(angle) * slope[0] + np.sin(angle) * slope[1]))[..., None])


def smear(random: np.random.RandomState, image: Field, soft: Field) -> Field:
    """Return the image with its texture displaced inside the region."""
    offsets = [12 * soft * noise(random, 10) for _ in range(2)]
    places = [axis * SIDE + offset for axis, offset in zip((ROWS, COLUMNS), offsets, strict=True)]
    return np.stack([map_coordinates(image[..., c], places, order=1, mode="reflect") for c in range(3)], axis=-1)


DEFECTS: Mapping[str, Callable[[np.random.RandomState, Field, Field], Field]] = {
    effect.__name__: effect for effect in (bump, foreign, shade, smear, stain)
}


def make_surface(
    surface: str, *, defect: str | None = None, count: int = 1, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image of a surface, and the mask of its defects.

    Args:
        surface: name in `SURFACES`.
        defect: name in `DEFECTS`; None gives a surface without defect.
        count: number of defects to paint.
        seed: seed of all random numbers of the image.

    Returns:
        The image, uint8 (384, 384, 3), and the mask, uint8 (384, 384) with values 0 and 255.

    Raises:
        ValueError: the surface or defect is unknown, or the count is below 1.
    """
    _check(surface, defect, count)
    random = np.random.RandomState(seed)
    image = paint(random, SURFACES[surface](random))
    mask = np.zeros((SIDE, SIDE), bool)
    if defect is not None:
        shape = line if defect in ("stain", "shade") and random.uniform() < 0.5 else blob
        for _ in range(count):
            region = shape(random)
            image = DEFECTS[defect](random, image, gaussian_filter(region.astype(float), 0.8))
            mask |= region
    image = gloss(random, image * light(random)[..., None]) + random.normal(0, 0.01, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), mask.astype(np.uint8) * 255


def write_surface_dataset(
    folder: str | os.PathLike[str], *, surfaces: Sequence[str] = tuple(SURFACES), count: int = 4, seed: int = 0
) -> str:
    """Write labeled surfaces to a folder, one class each (``<surface>/{normal,defect,mask}/``), and return its path.

    Args:
        folder: output folder, created if absent.
        surfaces: names of the surfaces, which become the classes.
        count: number of images with defects per class, and of images without.
        seed: seed of the whole dataset.

    Raises:
        ValueError: a surface is unknown, or the count is below 1. Nothing is written.
    """
    for surface in surfaces:
        _check(surface, None, count)
    folder = Path(folder)
    random = np.random.RandomState(seed)
    for surface in surfaces:
        for index in range(count):
            defect = list(DEFECTS)[index % len(DEFECTS)]
            number, places = int(random.randint(2**31)), int(random.randint(1, 5))
            image, mask = make_surface(surface, defect=defect, count=places, seed=number)
            name = f"{defect}_{index:03d}.png"
            _save_png(folder / surface / "mask" / name, mask)  # first, so a defect image is never without mask
            _save_png(folder / surface / "defect" / name, image)
            whole, _ = make_surface(surface, seed=number + 1)
            _save_png(folder / surface / "normal" / f"whole_{index:03d}.png", whole)
    return str(folder)


def _check(surface: str, defect: str | None, count: int) -> None:
    if surface not in SURFACES or (defect is not None and defect not in DEFECTS):
        raise ValueError(
            f"surfaces are {', '.join(SURFACES)}; defects are {', '.join(DEFECTS)}; got {surface!r}, {defect!r}"
        )
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _save_png(path: Path, image: NDArray[np.uint8]) -> None:
    with atomic_path(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")
