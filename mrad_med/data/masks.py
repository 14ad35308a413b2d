"""Pair masks with images by name, derive labels from masks, and check masks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags

from mrad_med import io  # loaded lazily: reading masks needs MONAI, listing datasets does not
from mrad_med.data.datalist import Datalist, Report, make_cases, shorten
from mrad_med.data.paths import stem_of
from mrad_med.errors import ImageFileError
from mrad_med.io.file_types import PHOTOGRAPH_SUFFIXES
from mrad_med.io.opening import open_image, open_tiff
from mrad_med.io.refusals import refusing
from mrad_med.types import MASK_THRESHOLD, AnomalyKeys

__all__ = ["cases_by_masks", "check_masks", "pair_masks"]


def pair_masks(
    images: Sequence[Path], masks: Sequence[Path], *, endings: Sequence[str] = (), report: Report
) -> dict[Path, Path]:
    """Return the mask of each image, paired by the stems of their names and never by their order.

    Args:
        images: image files of one folder.
        masks: mask files of one folder.
        endings: suffixes that a mask's stem may add to its image's stem, such as ``"_mask"``.
        report: function that receives each problem: images without mask, masks without image, and ambiguous names.
            The returned pairs contain none of these files.
    """
    images_of, masks_of = defaultdict(list), defaultdict(list)
    for image in images:
        images_of[stem_of(image.name)].append(image)
    for mask in masks:
        masks_of[_image_stem(mask, images_of, endings)].append(mask)
    unclear = [
        path.name
        for stem in sorted(images_of.keys() & masks_of.keys())
        for group in (images_of[stem], masks_of[stem])
        for path in group
        if len(group) > 1
    ]
    if unclear:
        report(
            f"{len(unclear)} file(s) in {images[0].parent} or {masks[0].parent} share a name, so their masks cannot be "
            f"assigned: {shorten(unclear)}; keep one file per name"
        )
    unmasked = [path.name for stem in images_of.keys() - masks_of.keys() for path in images_of[stem]]
    if unmasked:
        report(
            f"{len(unmasked)} of {len(images)} image(s) in {images[0].parent} have no mask of the same name: "
            f"{shorten(sorted(unmasked))}; unpack or copy the masks again"
        )
    stray = [path.name for stem in masks_of.keys() - images_of.keys() for path in masks_of[stem]]
    if stray:
        report(
            f"{len(stray)} of {len(masks)} mask(s) in {masks[0].parent} have no image of the same name: "
            f"{shorten(sorted(stray))}; unpack or copy the images again"
        )
    return {
        images_of[stem][0]: masks_of[stem][0]
        for stem in images_of.keys() & masks_of.keys()
        if len(images_of[stem]) == len(masks_of[stem]) == 1
    }


def _image_stem(mask: Path, stems: Mapping[str, object], endings: Sequence[str]) -> str:
    """Return the stem of the image that a mask is named after, or the mask's stem if there is no such image."""
    own = stem_of(mask.name)
    candidates = [own, *(own[: -len(ending)] for ending in endings if ending and own.endswith(ending))]
    return next((stem for stem in candidates if stem in stems), own)


def cases_by_masks(
    root: Path, images: Sequence[Path], masks: Mapping[Path, Path], class_name: str, report: Report
) -> Datalist:
    """Return cases with labels derived from their masks. Images without a readable mask are left out."""
    anomalous = {image: _has_anomaly(masks[image], report) for image in images if image in masks}
    known = [image for image in images if anomalous.get(image) is not None]
    cases = make_cases(root, known, 0, masks, class_name)
    return [{**case, "label": int(bool(anomalous[Path(case["image"])]))} for case in cases]


def _has_anomaly(mask: Path, report: Report) -> bool | None:
    """Return whether a mask has an anomalous pixel, or None if unreadable; the threshold is that of mask reading."""
    try:
        highest = float(io.read_image_file(mask).max())
    except ImageFileError as error:
        report(f"the mask {mask} cannot be used, left out: {error}")
        return None
    return highest > (0 if highest <= 1 else MASK_THRESHOLD)


def check_masks(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return problems with the masks of a datalist. Only headers are read; no pixel is decoded.

    Args:
        cases: a datalist with ``image``, ``case_id`` and ``mask`` (path or None). DICOM files and volumes are skipped.

    Returns:
        One sentence for each mask whose size differs from that of its image, and for each file that cannot be opened.
    """
    problems = []
    for case in cases:
        pair = [case[AnomalyKeys.IMAGE.value], case.get(AnomalyKeys.MASK.value)]
        if not all(path and str(path).lower().endswith(PHOTOGRAPH_SUFFIXES) for path in pair):
            continue
        sizes = [_size_of(path) for path in pair]
        for what, size in zip(("image", "mask"), sizes, strict=True):
            if size is None:
                problems.append(f"{case[AnomalyKeys.CASE_ID.value]}: its {what} cannot be opened; copy it again")
        if None not in sizes and sizes[0] != sizes[1]:
            shown = [" x ".join(map(str, size or ())) for size in sizes]
            problems.append(f"{case[AnomalyKeys.CASE_ID.value]}: its mask is {shown[1]} and the image {shown[0]}")
    return problems


def _size_of(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return (width, height) as displayed, from the header only, or None if it cannot be read."""
    damaged = "its header cannot be read ({kind}); copy it again"
    with suppress(ImageFileError), refusing(damaged), open_image(path) as image:
        swapped = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # values of 5 and more swap rows and columns
        return (image.height, image.width) if swapped else (image.width, image.height)
    with suppress(ImageFileError), refusing(damaged), open_tiff(path) as tiff:  # Pillow cannot open every TIFF
        page = tiff.pages[0]
        return int(page.imagewidth), int(page.imagelength)
    return None
