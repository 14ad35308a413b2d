"""Frames, highlights and text in endoscopy images: detection, removal before the network, and restoring of the size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.utils import TraceKeys
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull
from torch import Tensor

from mrad_med.transforms.dictionary import InvertibleEachd

__all__ = ["ARTIFACTS", "RemoveArtifacts", "RemoveArtifactsd", "find_field", "find_highlights", "find_text"]

ARTIFACTS = ("border", "highlights", "text")

ColorImage = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)

# Lengths are fractions of the image's short side, areas are fractions of all pixels. Brightness ranges from 0 to 255.

_DARKEST_BLACK = 20  # video levels put black at 16
_BLACK_MARGIN = 12  # noise that compression leaves on black
_SPECK = 0.01  # shapes thinner than twice this are not part of the field: text, icons, noise beside the edge
_SMALLEST_FIELD = 0.1
_EDGE_STEP = 25  # a frame ends in a step; a vignette and a dark lumen fade
_FRAME_NOISE = 3  # a dark lumen is not as black as the frame
_EDGE_BLUR = 0.006  # the outermost pixels of the field are blurred with the frame
_LEAST_SPECK, _LEAST_BLUR = 4, 3  # pixels: JPEG blocks have 8 pixels in small images too

_HIGHLIGHT = 180  # least value of the darkest channel: bright, and with little saturation
_HIGHLIGHT_RELIEF = 80  # least difference from the surroundings: that of white tissue and hair is smaller
_BLOOM_RELIEF = 25
_HIGHLIGHT_SIDE = 0.08  # longer shapes are not reflections of a small lamp: hair, glare, white coating
_HIGHLIGHT_SHARE = 0.05  # an image with more of them has a bright texture
_HALO = 0.004  # around a highlight the sensor blooms

_STROKE = 0.015  # wider shapes are not strokes of a character
_STROKE_RELIEF = 50
_CHARACTER_HEIGHTS = (0.012, 0.06)
_LOWEST_CHARACTER = 6  # pixels: lower characters cannot be read
_WIDEST_CHARACTER = 2.0  # in heights: two characters may touch
_FEWEST_CHARACTERS = 4  # in a row of text
_MOST_CHARACTERS = 2000  # an image with more shows a page or a texture


def find_field(image: ColorImage) -> Mask:
    """Return the field of view inside a black frame: the convex hull of the largest region that is not black.

    Text, icons and small images on the frame are outside the field. Dark lumina are inside it, also at its edge, unless
    they are as black as the frame. Where the frame reaches into the hull (an inset), it is outside. The blurred edge is
    outside too.

    The function misses frames that are not black or that fade into the field, and insets whose content touches the
    field. Dark tissue at the edge can cut a corner or a segment off the field.

    Args:
        image: uint8 (H, W, 3), upright.

    Returns:
        bool (H, W); all True where there is no frame, or where the field covers less than 10 % of the image.
    """
    whole = np.ones(image.shape[:2], np.bool_)
    brightness = _brightest_channel(image)
    black = float(np.percentile(brightness, 1))
    if black > _DARKEST_BLACK or min(whole.shape) <= 2 * _LEAST_SPECK:
        return whole
    speck = _length(_SPECK, image, least=_LEAST_SPECK)
    lit = ndimage.binary_fill_holes(brightness > black + _BLACK_MARGIN)
    lit = _largest_region(_dilate(_erode(lit, speck), speck))
    if lit.mean() < _SMALLEST_FIELD:
        return whole
    field = _convex_hull(lit)
    if field.all():
        return whole
    insets = _insets(field, lit, brightness, 2 * speck)
    if insets.sum() > (~field).sum():  # these are black objects in an image without a frame
        return whole
    field &= ~insets
    if _edge_step(brightness, field, speck) < _EDGE_STEP:
        return whole
    return _erode(field, _length(_EDGE_BLUR, image, least=_LEAST_BLUR))


def find_highlights(image: ColorImage) -> Mask:
    """Return the specular highlights of an image: small white spots that stand out, with their halo.

    The function misses dim, colored and large reflections, because overexposed areas and white backgrounds look like
    large ones. White text and small spots of white tissue are treated as highlights. Check the result on stained slides
    before you rely on it.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        bool (H, W); all False where more than 5 % of the pixels would be highlights: the image has a white texture.
    """
    whiteness = np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])
    longest, halo = _length(_HIGHLIGHT_SIDE, image), _length(_HALO, image)
    relief = _relief(whiteness, longest)
    spots, _ = ndimage.label(whiteness >= _HIGHLIGHT, np.ones((3, 3)))
    is_highlight = [
        max(spots[box].shape) <= longest and relief[box][spots[box] == index].max() >= _HIGHLIGHT_RELIEF
        for index, box in enumerate(ndimage.find_objects(spots), start=1)
    ]
    found = np.array([False, *is_highlight])[spots]
    if found.mean() > _HIGHLIGHT_SHARE:
        return np.zeros_like(found)
    bloom = _dilate(found, halo) & (relief >= _BLOOM_RELIEF)
    return _dilate(found | bloom, halo)


def find_text(image: ColorImage) -> Mask:
    """Return the text burned into an image: rows of four or more bright thin shapes of the same height.

    Strokes are searched in the green and blue channels, because tissue has little of both. The function misses red,
    dark blue and black text, text on glare, short or handwritten text, characters that touch each other, and text that
    does not run from left to right.

    Args:
        image: uint8 (H, W, 3), upright.

    Returns:
        bool (H, W).
    """
    width = _length(_STROKE, image, least=3)
    relief = np.maximum(_relief(image[..., 1], width), _relief(image[..., 2], width))
    strokes = relief >= _STROKE_RELIEF
    crests = strokes & (relief >= ndimage.maximum_filter(relief, width) // 3)  # the soft edges of characters may touch
    found = np.zeros_like(strokes)
    lowest, highest = (_length(share, image, least=_LOWEST_CHARACTER) for share in _CHARACTER_HEIGHTS)
    boxes = ndimage.find_objects(ndimage.label(crests, np.ones((3, 3)))[0])
    characters = np.array(
        [
            (rows.start, columns.start, rows.stop, columns.stop)
            for rows, columns in boxes
            if lowest <= rows.stop - rows.start <= highest
            and columns.stop - columns.start <= _WIDEST_CHARACTER * (rows.stop - rows.start)
        ]
    )
    if not _FEWEST_CHARACTERS <= len(characters) <= _MOST_CHARACTERS:
        return found
    for top, left, bottom, right in _rows_of(characters):
        margin = bottom - top  # commas reach below the row; colons and brackets stand beside it
        rows = slice(max(top - margin // 4, 0), bottom + margin // 4)
        columns = slice(max(left - margin, 0), right + margin)
        found[rows, columns] |= strokes[rows, columns]
    return _dilate(found, _length(_HALO, image))


class RemoveArtifacts(InvertibleTransform):
    """Remove artifacts of endoscopy: crop the black frame, and fill highlights and text from their surroundings.

    The transform works on upright bytes, after `ScaleToBytes`. Its inverse restores a map to the original size. Removed
    pixels get the lowest of the map's other values. The affine remains the affine of the stored grid, as in all upright
    images. Images that are not uint8 are returned unchanged, and so are gray images with one or three channels. A mask
    is not cropped with its image: compare it with the inverted map.

    Args:
        remove: artifacts to remove, any of ``"border"``, ``"highlights"`` and ``"text"``.

    Raises:
        ValueError: ``remove`` is not a list of these names.
    """

    def __init__(self, remove: Sequence[str] = ("border", "highlights")) -> None:
        unknown = [remove] if isinstance(remove, str) else [name for name in remove if name not in ARTIFACTS]
        if unknown:
            raise ValueError(f"remove must list any of {', '.join(ARTIFACTS)}; got {unknown}")
        self.remove = tuple(remove)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image without artifacts, uint8 (3, h, w[, frames]).

        All frames are cropped to the same box. It is the field of view of their brightest values. Each frame is filled
        separately.

        Args:
            image: upright uint8 (3, H, W[, frames]).
        """
        pixels, info = image.as_tensor(), dict[str, Any]()
        if _is_colored(pixels):
            frames = pixels.numpy()[None] if pixels.ndim == 3 else np.moveaxis(pixels.numpy(), -1, 0)
            (rows, columns), taken = _find(np.moveaxis(frames, 1, -1), self.remove)
            pixels = pixels[:, rows, columns].clone()
            for index in np.flatnonzero(taken.any(axis=(1, 2))):
                frame = pixels if pixels.ndim == 3 else pixels[..., index]
                frame.copy_(_filled(frame, torch.from_numpy(taken[index])))
            box = [rows.start, rows.stop, columns.start, columns.stop]
            info = {"box": box, "taken": np.packbits(taken) if taken.any() else None}
        result = MetaTensor(pixels).copy_meta_from(image)
        return self.push_transform(result, orig_size=tuple(image.shape[1:]), extra_info=info)

    def inverse(self, image: MetaTensor) -> MetaTensor:
        """Return a map (C, h, w[, frames]) of the cropped image at the original size, (C, H, W[, frames])."""
        applied = self.pop_transform(image)
        info, values = applied[TraceKeys.EXTRA_INFO], image.as_tensor()
        if not info:
            return image
        kept = torch.ones(values.shape[1:], dtype=torch.bool, device=values.device)
        if info["taken"] is not None:
            taken = torch.from_numpy(np.unpackbits(info["taken"], count=kept.numel())).bool().to(values.device)
            kept = ~(taken.view(kept.shape) if kept.ndim == 2 else taken.view(-1, *kept.shape[:2]).movedim(0, -1))
        lowest = (values[:, kept] if kept.any() else values).amin().item()
        restored = values.new_full((len(values), *applied[TraceKeys.ORIG_SIZE]), lowest)
        top, bottom, left, right = info["box"]
        restored[:, top:bottom, left:right] = torch.where(kept, values, restored[:, top:bottom, left:right])
        return MetaTensor(restored).copy_meta_from(image)


class RemoveArtifactsd(InvertibleEachd):
    """Dictionary version of `RemoveArtifacts`."""

    def __init__(
        self, keys: KeysCollection, remove: Sequence[str] = ("border", "highlights"), allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RemoveArtifacts(remove)


def _is_colored(pixels: Tensor) -> bool:
    """Return whether the pixels are uint8 RGB and not a repeated gray channel."""
    if pixels.dtype != torch.uint8 or len(pixels) != 3:
        return False
    return not (torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2]))


def _find(frames: NDArray[np.uint8], remove: Sequence[str]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return the rows and columns to keep of (frames, H, W, 3), and a mask of the pixels to fill (frames, h, w)."""
    box = (slice(0, frames.shape[1]), slice(0, frames.shape[2]))
    taken = np.zeros(frames.shape[:-1], np.bool_)
    if "border" in remove:
        field = find_field(reduce(np.maximum, frames))
        box = ndimage.find_objects(field.astype(np.uint8))[0]
        taken |= ~field
    for name, find in (("highlights", find_highlights), ("text", find_text)):
        if name in remove:
            for frame, found in zip(frames, taken, strict=True):
                found |= find(frame)
    return box, taken[(slice(None), *box)]


def _filled(image: Tensor, taken: Tensor) -> Tensor:
    """Return an image (3, H, W) with the pixels of ``taken`` (H, W) filled from their surroundings.

    The method is push-pull: known pixels are averaged at coarser and coarser scales. Each unknown pixel is interpolated
    from the finest scale that has known pixels, so the fill is smoother farther from the known pixels.
    """
    known = (~taken).float()[None, None]
    coarse = _at_half_size(image.float()[None] * known, known)
    fine = F.interpolate(coarse.round().byte(), size=taken.shape, mode="bilinear")
    return torch.where(taken, fine[0], image)


def _at_half_size(values: Tensor, known: Tensor) -> Tensor:
    """Return the values at half the size, (1, C, H/2, W/2), with unknown pixels filled.

    Args:
        values: (1, C, H, W), zero where not known.
        known: (1, 1, H, W), 1 where known, else 0.
    """
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    means = F.avg_pool2d(values, 2, ceil_mode=True) / share.clamp(min=1e-6)
    if share.all() or max(share.shape) == 1:
        return means
    coarse = _at_half_size(means, (share > 0).float())
    return torch.where(share > 0, means, F.interpolate(coarse, size=means.shape[-2:], mode="bilinear"))


def _brightest_channel(image: ColorImage) -> ColorImage:
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _length(share: float, image: ColorImage, *, least: int = 1) -> int:
    """Return a fraction of the image's short side in pixels."""
    return max(least, round(share * int(min(image.shape[:2]))))


def _erode(mask: Mask, reach: int) -> Mask:
    """Return the mask shrunk by ``reach`` pixels on every side, except at the border of the image."""
    return np.asarray(ndimage.minimum_filter(mask.view(np.uint8), 2 * reach + 1, mode="nearest")).view(np.bool_)


def _dilate(mask: Mask, reach: int) -> Mask:
    """Return the mask grown by ``reach`` pixels on every side."""
    return np.asarray(ndimage.maximum_filter(mask.view(np.uint8), 2 * reach + 1, mode="nearest")).view(np.bool_)


def _relief(channel: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the white top-hat: the brightness above the surroundings of shapes narrower than ``size`` pixels."""
    return np.asarray(ndimage.white_tophat(channel, (size, size)))


def _largest_region(mask: Mask) -> Mask:
    labels = ndimage.label(mask)[0]
    largest = 1 + np.bincount(labels.ravel(), minlength=2)[1:].argmax()
    return np.asarray(labels == largest)


def _convex_hull(mask: Mask) -> Mask:
    """Return the convex hull of a mask, which must not be empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    lines = mask[rows]
    left, right = lines.argmax(axis=1), mask.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([left, rows], axis=1), np.stack([right, rows], axis=1)])
    canvas = Image.new("L", mask.shape[::-1])
    corners = ends[ConvexHull(ends).vertices]
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
    return mask | (np.asarray(canvas) > 0)


def _insets(field: Mask, lit: Mask, brightness: NDArray[np.uint8], smallest: int) -> Mask:
    """Return the dark parts of the field that are as black as the frame around it.

    Args:
        field: (H, W) convex hull of the lit region.
        lit: (H, W) lit region.
        brightness: (H, W) brightest channel.
        smallest: height and width in pixels that a part must exceed.
    """
    insets, darkest = np.zeros_like(field), np.median(brightness[~field]) + _FRAME_NOISE
    notches = ndimage.label(field & ~lit)[0]
    for index, box in enumerate(ndimage.find_objects(notches), start=1):
        notch = notches[box] == index
        if min(notch.shape) > smallest and np.median(brightness[box][notch]) <= darkest:
            insets[box] |= notch
    return insets


def _edge_step(brightness: NDArray[np.uint8], field: Mask, reach: int) -> float:
    """Return the median brightness of the field just inside its edge, minus that of the frame just outside."""
    inside = field & ~_erode(field, reach)
    outside = _dilate(field, reach) & ~field
    return float(np.median(brightness[inside]) - np.median(brightness[outside]))


def _rows_of(characters: NDArray[np.int_]) -> list[NDArray[np.int_]]:
    """Return the boxes of text rows: at least four boxes that follow each other with the same top and bottom.

    Args:
        characters: (N, 4) boxes as top, left, bottom, right.
    """
    top, left, bottom, right = (characters[:, index, None] for index in range(4))
    height = bottom - top
    slack = np.maximum(1, height // 8)
    gap = left.T - right
    follows = (abs(top - top.T) <= slack) & (abs(bottom - bottom.T) <= slack) & (gap > -2) & (gap <= height)
    count, rows = connected_components(follows, directed=False)
    members = [characters[rows == row] for row in range(count)]
    return [
        np.concatenate([row[:, :2].min(axis=0), row[:, 2:].max(axis=0)])
        for row in members
        if len(row) >= _FEWEST_CHARACTERS
    ]
