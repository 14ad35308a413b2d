"""Images to try things on: those that the installed dependencies bring, and a phantom whose lesion is known."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter

from mrad_med.files import atomic_path

__all__ = ["make_phantom", "write_sample_dataset", "write_sample_images"]

_PHANTOM_SEED = 20260202


def make_phantom(
    size: tuple[int, int] = (360, 480), *, lesion_radius: float = 0.11, seed: int = _PHANTOM_SEED
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a picture of tissue-like texture with one raised lesion, and the lesion's mask.

    Args:
        size: rows and columns.
        lesion_radius: share of the rows; 0 leaves the lesion out.
        seed: of the texture and of the lesion's place.

    Returns:
        uint8 (H, W, 3) and uint8 (H, W) of 0 and 255.
    """
    state = np.random.RandomState(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    noise = [gaussian_filter(state.standard_normal(size), sigma) * sigma for sigma in (1.5, 6.0, 30.0)]
    light = 1 - 0.45 * np.hypot(rows / size[0] - 0.5, columns / size[1] - 0.5)
    tissue = (0.62 + 0.05 * noise[0] + 0.05 * noise[1] + 0.08 * noise[2]) * light
    center_row, center_column = state.uniform(0.3, 0.7, 2) * size
    radius = max(lesion_radius * size[0], 1e-3)
    distance = np.hypot(rows - center_row, (columns - center_column) / 1.25) / radius + 0.12 * noise[1]
    if lesion_radius == 0:
        distance = np.full(size, 2.0)
    bump = 1 / (1 + np.exp(12 * (distance - 1)))
    shade = np.clip((rows - center_row + columns - center_column) / (2 * radius), -1, 1)
    red = tissue * (1 + bump * (0.25 - 0.25 * shade))
    green = tissue * (0.55 + 0.32 * bump)
    blue = tissue * (0.50 + 0.05 * bump)
    picture = np.clip(255 * np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)
    return picture, np.where(distance < 1, 255, 0).astype(np.uint8)


def write_sample_images(folder: str | os.PathLike[str]) -> str:
    """Fill a folder with sample images and return it.

    A CT and an MR slice (DICOM, from pydicom), a retina photograph and its close-up, an immunohistochemistry image
    (from scikit-image), and the phantom with its lesion.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {
        "ct_slice.dcm": get_testdata_file("CT_small.dcm"),
        "mr_slice.dcm": get_testdata_file("MR_small.dcm"),
        "retina.jpg": Path(skimage.data.__file__).parent / "retina.jpg",
        "retina_closeup.png": Path(skimage.data.__file__).parent / "microaneurysms.png",
        "histology.png": Path(skimage.data.__file__).parent / "ihc.png",
    }
    for name, source in sources.items():
        with atomic_path(folder / name) as partial:
            shutil.copyfile(str(source), partial)
    _save_png(folder / "phantom.png", make_phantom()[0])
    return str(folder)


def write_sample_dataset(folder: str | os.PathLike[str], *, count: int = 3) -> str:
    """Fill a folder with a labelled set of phantoms (``normal/``, ``defect/``, ``mask/``) and return it.

    Good for trying the evaluation and the building of memory banks; its numbers say nothing about medicine.

    Args:
        folder: made if absent.
        count: phantoms with a lesion, and as many without.
    """
    folder = Path(folder)
    for index in range(count):
        name = f"phantom_{index}.png"
        picture, mask = make_phantom(seed=index)
        _save_png(folder / "defect" / name, picture)
        _save_png(folder / "mask" / name, mask)
        _save_png(folder / "normal" / name, make_phantom(seed=count + index, lesion_radius=0)[0])
    return str(folder)


def _save_png(path: Path, picture: NDArray[np.uint8]) -> None:
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
