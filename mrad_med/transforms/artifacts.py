"""What an endoscope adds to a picture that is no tissue: found, taken out before the network, put back after it."""

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

Picture = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)

# Lengths are shares of the picture's short side, areas of all its pixels, brightness counts from 0 to 255.

_DARKEST_BLACK = 20  # video levels put black at 16
_BLACK_MARGIN = 12  # compression leaves as much on black
_SPECK = 0.01  # what is thinner than twice this is no field: letters, icons, noise beside the edge
_SMALLEST_FIELD = 0.1
_EDGE_STEP = 25  # a frame ends in a step; a vignette and a dark lumen fade
_FRAME_NOISE = 3  # a dark lumen is not as black as the frame
_EDGE_BLUR = 0.006  # the outermost pixels of the field are blurred with the frame
_LEAST_SPECK, _LEAST_BLUR = 4, 3  # pixels: JPEG's blocks have 8 in small pictures too

_HIGHLIGHT = 180  # of the darkest channel: bright, and with little saturation
_HIGHLIGHT_RELIEF = 80  # above what surrounds it: white tissue and hair rise less
_BLOOM_RELIEF = 25
_HIGHLIGHT_SIDE = 0.08  # what is longer is no reflection of a small lamp: hair, glare, white coating
_HIGHLIGHT_SHARE = 0.05  # of a picture with more of them, the texture is bright
_HALO = 0.004  # around a highlight the sensor blooms

_STROKE = 0.015  # what is wider is no stroke of a letter
_STROKE_RELIEF = 50
_LETTER_HEIGHTS = (0.012, 0.06)
_LETTER_PIXELS = 6  # lowest letter that can be read
_LETTER_WIDTH = 2.0  # in heights: two letters may touch
_LETTERS = 4  # fewest in a row
_MOST_LETTERS = 2000  # a picture with more is a page or a texture


def find_field(picture: Picture) -> Mask:
    """Return (H, W) the field of view of uint8 (H, W, 3) in a black frame: the hull of the largest region not black.

    Text, icons and small pictures on the frame are outside, dark lumina inside, also those that touch the edge unless
    they are as black as the frame. Where the frame reaches into the hull (an inset), it is outside. The blurred edge is
    left out. Where there is no frame, or next to nothing in it, all is True.

    Missed are frames that are not black or fade into the field, insets whose content touches the field, and dark tissue
    that takes away a corner or a bow of the field.
    """
    whole = np.ones(picture.shape[:2], np.bool_)
    brightness = _brightest_channel(picture)
    black = float(np.percentile(brightness, 1))
    if black > _DARKEST_BLACK or min(whole.shape) <= 2 * _LEAST_SPECK:
        return whole
    speck = _length(_SPECK, picture, least=_LEAST_SPECK)
    lit = ndimage.binary_fill_holes(brightness > black + _BLACK_MARGIN)
    lit = _largest_region(_dilate(_erode(lit, speck), speck))
    if lit.mean() < _SMALLEST_FIELD:
        return whole
    field = _convex_hull(lit)
    if field.all():
        return whole
    insets = _insets(field, lit, brightness, 2 * speck)
    if insets.sum() > (~field).sum():  # black objects in a picture are no frame around it
        return whole
    field &= ~insets
    if _edge_step(brightness, field, speck) < _EDGE_STEP:
        return whole
    return _erode(field, _length(_EDGE_BLUR, picture, least=_LEAST_BLUR))


def find_highlights(picture: Picture) -> Mask:
    """Return (H, W) the specular highlights of uint8 (H, W, 3): small white spots that stand out, with their halo.

    Missed are dim and colored reflections, and large ones, for overexposed areas and white backgrounds look the same.
    In a picture with very many of them nothing is found, for then its texture is white. Taken for highlights are white
    text and white tissue in spots as small: look at the result before trusting it on stained slides.
    """
    whiteness = np.minimum(np.minimum(picture[..., 0], picture[..., 1]), picture[..., 2])
    longest, halo = _length(_HIGHLIGHT_SIDE, picture), _length(_HALO, picture)
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


def find_text(picture: Picture) -> Mask:
    """Return (H, W) the text burned into uint8 (H, W, 3): rows of four or more bright thin shapes of the same height.

    Strokes are sought in green and blue, of which tissue has little. Missed are red, dark blue and black text, text
    on glare, short or handwritten text, letters that touch each other, and text that does not run from left to right.
    """
    width = _length(_STROKE, picture, least=3)
    relief = np.maximum(_relief(picture[..., 1], width), _relief(picture[..., 2], width))
    strokes = relief >= _STROKE_RELIEF
    crests = strokes & (relief >= ndimage.maximum_filter(relief, width) // 3)  # the soft edges of letters may touch
    found = np.zeros_like(strokes)
    lowest, highest = (_length(share, picture, least=_LETTER_PIXELS) for share in _LETTER_HEIGHTS)
    boxes = ndimage.find_objects(ndimage.label(crests, np.ones((3, 3)))[0])
    letters = np.array(
        [
            (rows.start, columns.start, rows.stop, columns.stop)
            for rows, columns in boxes
            if lowest <= rows.stop - rows.start <= highest
            and columns.stop - columns.start <= _LETTER_WIDTH * (rows.stop - rows.start)
        ]
    )
    if not _LETTERS <= len(letters) <= _MOST_LETTERS:
        return found
    for top, left, bottom, right in _rows_of(letters):
        margin = bottom - top  # commas hang, colons and brackets stand beside
        rows = slice(max(top - margin // 4, 0), bottom + margin // 4)
        columns = slice(max(left - margin, 0), right + margin)
        found[rows, columns] |= strokes[rows, columns]
    return _dilate(found, _length(_HALO, picture))


class RemoveArtifacts(InvertibleTransform):
    """Take out what is no tissue: the frame is cropped, all else is filled smoothly from its surroundings.

    It works on upright bytes, after `ScaleToBytes`. The inverse puts a map back at the size before, with the lowest of
    its other values wherever something was taken out. The affine stays that of the stored grid, as upright pictures
    carry it. Gray images, also where three channels repeat one, and all that is not uint8 stay as they are; so a mask
    does not follow its image: compare it with the inverted map.

    Args:
        remove: any of ``"border"``, ``"highlights"`` and ``"text"``.

    Raises:
        ValueError: a name is another.
    """

    def __init__(self, remove: Sequence[str] = ("border", "highlights")) -> None:
        unknown = [remove] if isinstance(remove, str) else [name for name in remove if name not in ARTIFACTS]
        if unknown:
            raise ValueError(f"remove lists any of {', '.join(ARTIFACTS)}; got {unknown}")
        self.remove = tuple(remove)

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return uint8 (3, h, w[, frames]) of an upright uint8 (3, H, W[, frames]).

        All frames are cropped alike, to the field of what is lit in any of them, and filled one by one.
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
        """Return a map (C, H, W[, frames]) of one (C, h, w[, frames])."""
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
    """Tell whether these are uint8 RGB and not a gray image repeated."""
    if pixels.dtype != torch.uint8 or len(pixels) != 3:
        return False
    return not (torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2]))


def _find(frames: NDArray[np.uint8], remove: Sequence[str]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return rows and columns that stay of (frames, H, W, 3), and what is to be filled in them (frames, h, w)."""
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


def _filled(picture: Tensor, taken: Tensor) -> Tensor:
    """Return a picture (3, H, W) with pixels taken (H, W) replaced by what surrounds them, the farther the smoother.

    Push and pull: averages of what is known at ever coarser scales, interpolated where nothing finer is known.
    """
    known = (~taken).float()[None, None]
    coarse = _at_half_size(picture.float()[None] * known, known)
    fine = F.interpolate(coarse.round().byte(), size=taken.shape, mode="bilinear")
    return torch.where(taken, fine[0], picture)


def _at_half_size(values: Tensor, known: Tensor) -> Tensor:
    """Return (1, C, H/2, W/2) without holes of values (1, C, H, W) that are zero where not known (1, 1, H, W)."""
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    means = F.avg_pool2d(values, 2, ceil_mode=True) / share.clamp(min=1e-6)
    if share.all() or max(share.shape) == 1:
        return means
    coarse = _at_half_size(means, (share > 0).float())
    return torch.where(share > 0, means, F.interpolate(coarse, size=means.shape[-2:], mode="bilinear"))


def _brightest_channel(picture: Picture) -> Picture:
    return np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])


def _length(share: float, picture: Picture, *, least: int = 1) -> int:
    """Return a share of the short side in pixels."""
    return max(least, round(share * int(min(picture.shape[:2]))))


def _erode(mask: Mask, reach: int) -> Mask:
    """Take off as many pixels from every side, but none where a mask ends with the picture."""
    return np.asarray(ndimage.minimum_filter(mask.view(np.uint8), 2 * reach + 1, mode="nearest")).view(np.bool_)


def _dilate(mask: Mask, reach: int) -> Mask:
    """Add as many pixels to every side."""
    return np.asarray(ndimage.maximum_filter(mask.view(np.uint8), 2 * reach + 1, mode="nearest")).view(np.bool_)


def _relief(channel: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return what rises above its surroundings and is nowhere as wide as ``size`` pixels: the white top-hat."""
    return np.asarray(ndimage.white_tophat(channel, (size, size)))


def _largest_region(mask: Mask) -> Mask:
    labels = ndimage.label(mask)[0]
    largest = 1 + np.bincount(labels.ravel(), minlength=2)[1:].argmax()
    return np.asarray(labels == largest)


def _convex_hull(mask: Mask) -> Mask:
    """Return the convex hull of a mask that is not empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    lines = mask[rows]
    left, right = lines.argmax(axis=1), mask.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([left, rows], axis=1), np.stack([right, rows], axis=1)])
    canvas = Image.new("L", mask.shape[::-1])
    corners = ends[ConvexHull(ends).vertices]
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
    return mask | (np.asarray(canvas) > 0)


def _insets(field: Mask, lit: Mask, brightness: NDArray[np.uint8], smallest: int) -> Mask:
    """Return the notches of what is lit in its hull, the field, that are as black as the frame around the hull."""
    insets, darkest = np.zeros_like(field), np.median(brightness[~field]) + _FRAME_NOISE
    notches = ndimage.label(field & ~lit)[0]
    for index, box in enumerate(ndimage.find_objects(notches), start=1):
        notch = notches[box] == index
        if min(notch.shape) > smallest and np.median(brightness[box][notch]) <= darkest:
            insets[box] |= notch
    return insets


def _edge_step(brightness: NDArray[np.uint8], field: Mask, reach: int) -> float:
    """Return how much brighter the field is just inside its edge than the frame just outside."""
    inside = field & ~_erode(field, reach)
    outside = _dilate(field, reach) & ~field
    return float(np.median(brightness[inside]) - np.median(brightness[outside]))


def _rows_of(letters: NDArray[np.int_]) -> list[NDArray[np.int_]]:
    """Return boxes (top, left, bottom, right) of rows of boxes alike in top and bottom that follow each other."""
    top, left, bottom, right = (letters[:, index, None] for index in range(4))
    height = bottom - top
    slack = np.maximum(1, height // 8)
    gap = left.T - right
    follows = (abs(top - top.T) <= slack) & (abs(bottom - bottom.T) <= slack) & (gap > -2) & (gap <= height)
    count, rows = connected_components(follows, directed=False)
    members = [letters[rows == row] for row in range(count)]
    return [np.concatenate([row[:, :2].min(axis=0), row[:, 2:].max(axis=0)]) for row in members if len(row) >= _LETTERS]
