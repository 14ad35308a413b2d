"""References and geometry of the source images of DICOM results, without patient identifiers by default."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.multival import MultiValue

from mrad_med.errors import ImageFileError, UnfitSourceError
from mrad_med.io.dicom.frame_groups import frame_group
from mrad_med.io.dicom.headers import KEPT_IDENTIFIERS, read_header, silent
from mrad_med.io.dicom.streams import check_counts
from mrad_med.io.geometry import LPS_TO_RAS, Planes, plane_matrices

__all__ = ["SourceSeries", "burned_in_warning", "frames_on_source", "read_source_series", "warn_burned_in"]

_METHODS = ("ISO_10918_1", "ISO_13818_2", "ISO_14495_1", "ISO_14496_10", "ISO_15444_1", "ISO_15444_15", "ISO_23008_2")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns")
_HELPFUL = (
    "BurnedInAnnotation",
    "FrameOfReferenceUID",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
    "LossyImageCompressionRatio",
    "NumberOfFrames",
)
# What a value that is copied to results must be (PS3.3, C.7.6.1 and C.8; PS3.5, 6.2 and 9.1).
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_TERMS: dict[str, tuple[str, ...]] = {
    "BurnedInAnnotation": ("YES", "NO"),
    "LossyImageCompression": ("00", "01"),
    "LossyImageCompressionMethod": _METHODS,
    "SpecificCharacterSet": tuple(python_encoding),
}
_VALID: dict[str, Callable[[str], Any]] = {
    **{keyword: partial(operator.contains, terms) for keyword, terms in _TERMS.items()},
    **dict.fromkeys(("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"), _UID.fullmatch),
    **dict.fromkeys(("SeriesInstanceUID", "FrameOfReferenceUID"), _UID.fullmatch),
    "LossyImageCompressionRatio": re.compile(r" *[0-9]{1,8}(\.[0-9]{1,8})? *").fullmatch,
    "Modality": re.compile(r"[A-Z]{2,8}").fullmatch,
}
_SAME_IN_A_SERIES = ("StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "FrameOfReferenceUID")

# Functional groups with the geometry of multi-frame images. The other groups may hold dates and texts.
_GEOMETRY = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
_GEOMETRY_KEYWORDS = tuple(keyword for keywords in _GEOMETRY.values() for keyword in keywords)
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

_GRID_TOLERANCE = 0.25  # voxels; positions are rounded in headers, and slices are never exactly evenly spaced
_PIXELS_OF_TEXT = ("SC", "OT", "US", "ES", "IVUS", "XC", "GM")  # modalities whose images often show a name or a date


@dataclass(frozen=True)
class SourceSeries:
    """Headers of the source images of results, reduced to references and geometry.

    Attributes:
        images: one header per file, in the given order.
        planes: (F, 4, 3) matrix of each frame that maps (row, column, 1) to world coordinates (LPS, mm) in its first
            three rows; None if the images state no position.
        identifiers: identifiers of patient and study; blank unless requested.
        numbers: numbers, from 1, of the frames in the file of a multi-frame source; empty for single-frame images.
    """

    images: tuple[Dataset, ...] = field(repr=False)
    planes: NDArray[np.float64] | None
    identifiers: Dataset = field(repr=False)
    numbers: tuple[int, ...] = ()

    @property
    def frame_count(self) -> int:
        """Number of frames of all images."""
        return sum(_frame_count(image) for image in self.images)

    def frame(self, index: int) -> tuple[Dataset, int | None]:
        """Return the image that holds a frame, and the frame number in it, from 1; None for a single-frame image."""
        if len(self.images) > 1:
            return self.images[index], None
        return self.images[0], self.numbers[index] if self.numbers else None

    @property
    def has_frame_of_reference(self) -> bool:
        """Whether the source states in which space its positions are."""
        return bool(self.images[0].get("FrameOfReferenceUID"))

    @silent()
    def place(self, index: int) -> Dataset:
        """Return the Image Plane attributes that place a single-frame image at the position of a frame."""
        if self.planes is None or not self.has_frame_of_reference:
            return Dataset()
        image = self.images[0]
        place = Dataset()
        place.FrameOfReferenceUID, place.PositionReferenceIndicator = image.FrameOfReferenceUID, None
        for keyword in _GEOMETRY_KEYWORDS:
            value = _frame_headers(self.frame(index)[0])[index if len(self.images) == 1 else 0].get(keyword)
            if value is not None:
                setattr(place, keyword, value)
        right, down = np.reshape(np.asarray(place.ImageOrientationPatient, float), (2, 3))
        place.PatientOrientation = [_patient_side(right), _patient_side(down)]
        return place


def read_source_series(
    paths: Sequence[str | os.PathLike[str]], *, keep_identifiers: bool = False, frames: Sequence[int] | None = None
) -> SourceSeries:
    """Read the references and geometry of the source of results.

    The source is one multi-frame file, or the single-frame files of one series. Pixels are not read. Names, numbers and
    dates of patient and study are read only on request.

    Args:
        paths: paths of the files; frames are counted in this order.
        keep_identifiers: whether name, ID, birth date and sex of the patient, and date, time, numbers and referring
            physician of the study are copied to written results. Archives use them to assign results to the patient.
        frames: numbers, from 0, of the frames of one multi-frame file that were scored; None for all frames.

    Raises:
        UnfitSourceError: a file is not a DICOM image, lacks an attribute that a reference needs, or belongs to another
            series. The message states the index of the file in ``paths`` and quotes no header value.
    """
    if not paths:
        raise UnfitSourceError("no source image was given; results must refer to at least one")
    names = [f"source image {number} of {len(paths)}" for number in range(1, len(paths) + 1)]
    with silent():  # values of sequences are decoded on access
        headers = [_read(path, name, keep_identifiers) for path, name in zip(paths, names, strict=True)]
        for header, name in zip(headers, names, strict=True):
            _check_same_series(header, headers[0], name)
        numbers = tuple(range(1, _frame_count(headers[0]) + 1)) if "NumberOfFrames" in headers[0] else ()
        if frames is not None:
            numbers = tuple(number + 1 for number in frames)
            headers = [_take(headers[0], frames)]
        planes = _planes(headers)
        has_place = planes is not None and bool(headers[0].get("FrameOfReferenceUID"))
        images = tuple(_with_geometry(header, has_place=has_place) for header in headers)
        return SourceSeries(images, planes, _only(headers[0], [*KEPT_IDENTIFIERS, "SpecificCharacterSet"]), numbers)


def _read(path: str | os.PathLike[str], name: str, keep_identifiers: bool) -> Dataset:
    keywords = [*_NEEDED, *_HELPFUL, *_GEOMETRY_KEYWORDS, *_FUNCTIONAL_GROUPS]
    identifiers = [*KEPT_IDENTIFIERS, "SpecificCharacterSet"] if keep_identifiers else []
    try:
        header = read_header(path, more=keywords + identifiers)
        check_counts(header, Path(path).stat().st_size)
        header = _only(header, keywords + identifiers)
    except ImageFileError:
        raise UnfitSourceError(f"{name} cannot be read as DICOM; give the files that were scored") from None
    _drop_texts(header)
    missing = [keyword for keyword in _NEEDED if header.get(keyword) in (None, "")]
    if missing:
        raise UnfitSourceError(f"{name} has no {', '.join(missing)}, so results cannot refer to it; export it again")
    for keyword in KEPT_IDENTIFIERS:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def _drop_texts(header: Dataset) -> None:
    """Drop each copied attribute whose value is not one that the standard defines: it may be a name."""
    for keyword, is_valid in _VALID.items():
        if keyword in header and not all(map(is_valid, _values(header[keyword].value))):
            del header[keyword]


def _values(stored: Any) -> list[str]:
    if stored is None:
        return []
    return [str(value) for value in stored] if isinstance(stored, MultiValue) else [str(stored)]


def _only(header: Dataset, keywords: Sequence[str]) -> Dataset:
    kept = Dataset()
    for keyword in keywords:
        if keyword in header:
            kept[keyword] = header[keyword]
    return kept


def _check_same_series(header: Dataset, first: Dataset, name: str) -> None:
    different = [keyword for keyword in _SAME_IN_A_SERIES if header.get(keyword) != first.get(keyword)]
    if different:
        raise UnfitSourceError(f"{name} differs from the first in {', '.join(different)}; give the files of one series")
    if header is not first and (_frame_count(header) > 1 or header.SOPInstanceUID == first.SOPInstanceUID):
        raise UnfitSourceError(
            f"{name} is given twice or holds several frames; give one multi-frame file, or single frames"
        )


def _take(header: Dataset, frames: Sequence[int]) -> Dataset:
    """Return the header of some frames of a multi-frame file.

    Raises:
        UnfitSourceError: the file does not hold one of them.
    """
    if not frames or not 0 <= min(frames) <= max(frames) < _frame_count(header):
        raise UnfitSourceError(f"the source has {_frame_count(header)} frame(s), not those that were scored")
    taken, groups = (
        _only(header, [element.keyword for element in header]),
        header.get("PerFrameFunctionalGroupsSequence"),
    )
    del taken.NumberOfFrames  # the element is shared with the header
    taken.NumberOfFrames = len(frames)
    if groups:
        del taken.PerFrameFunctionalGroupsSequence
        taken.PerFrameFunctionalGroupsSequence = [groups[frame] for frame in frames]
    return taken


def _frame_count(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _frame_headers(header: Dataset) -> list[Dataset]:
    """Return a flat data set with the geometry attributes of each frame, from the header or its functional groups."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [header] if _frame_count(header) == 1 else [Dataset() for _ in range(_frame_count(header))]
    frames = []
    for number in range(len(header.PerFrameFunctionalGroupsSequence)):
        frame = Dataset()
        for macro, keywords in _GEOMETRY.items():
            frame.update(_only(frame_group(header, number, macro) or Dataset(), keywords))
        frames.append(frame)
    return frames


def _planes(headers: Sequence[Dataset]) -> NDArray[np.float64] | None:
    """Return the matrices (F, 4, 3) of all frames, or None if no frame states its position.

    Raises:
        UnfitSourceError: some attributes of the geometry are missing or invalid.
    """
    frames = [frame for header in headers for frame in _frame_headers(header)]
    if not any("ImagePositionPatient" in frame or "ImageOrientationPatient" in frame for frame in frames):
        return None
    if len(frames) != sum(map(_frame_count, headers)):
        raise UnfitSourceError(
            f"the source states {len(frames)} positions for another number of frames; export it again"
        )
    return np.stack([_plane(frame, number) for number, frame in enumerate(frames, start=1)])


def _plane(frame: Dataset, number: int) -> NDArray[np.float64]:
    """Return the (4, 3) matrix that maps (row, column, 1) of a frame to world coordinates (LPS, mm)."""
    values: dict[str, NDArray[np.float64]] = {}
    sizes = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    for keyword, size in sizes.items():
        values[keyword] = _numbers(frame.get(keyword))
        if values[keyword].shape != (size,) or not np.isfinite(values[keyword]).all():
            raise UnfitSourceError(f"frame {number} of the source has no valid {keyword}; export it again")
    between_rows, between_columns = values["PixelSpacing"].tolist()
    orientation = values["ImageOrientationPatient"].reshape(2, 3)
    planes = Planes(values["ImagePositionPatient"][None], orientation, (between_columns, between_rows))
    if planes.problem() is not None:
        raise UnfitSourceError(f"the geometry of frame {number} of the source is invalid; export it again")
    matrix: NDArray[np.float64] = plane_matrices(planes)[0][:, [1, 0, 2]]
    return matrix


def _numbers(stored: Any) -> NDArray[np.float64]:
    """Return the numbers of an attribute, or an empty array if one of them is invalid."""
    try:
        return np.asarray([] if stored is None else stored, np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)


def _with_geometry(header: Dataset, *, has_place: bool) -> Dataset:
    """Return a header without geometry if there is no position, or with the geometry in its functional groups."""
    image = _only(header, [*_NEEDED, *_HELPFUL, *KEPT_IDENTIFIERS, "SpecificCharacterSet", *_GEOMETRY_KEYWORDS])
    if not has_place:
        for keyword in ("FrameOfReferenceUID", *_GEOMETRY_KEYWORDS):
            image.pop(keyword, None)
        if _frame_count(image) == 1:  # highdicom needs positions of a multi-frame source
            image.pop("NumberOfFrames", None)
        return image
    frames = _frame_headers(header)
    if "PerFrameFunctionalGroupsSequence" not in header:
        image.SliceThickness = header.get("SliceThickness")  # type 2 in images with a position
        return image
    shared, first = Dataset(), frames[0]
    for macro in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if any(_only(frame, _GEOMETRY[macro]) != _only(first, _GEOMETRY[macro]) for frame in frames):
            raise UnfitSourceError("the frames of the source differ in orientation or spacing; export them as series")
        setattr(shared, macro, [_only(first, _GEOMETRY[macro])])
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [_position_group(frame) for frame in frames]
    return image


def _position_group(frame: Dataset) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = [_only(frame, _GEOMETRY["PlanePositionSequence"])]
    return group


def _patient_side(direction: NDArray[np.float64]) -> str:
    """Return the side of the patient that a direction (LPS) points to: L, R, P, A, H(ead) or F(eet)."""
    axis = int(np.abs(direction).argmax())
    return ("LR", "PA", "HF")[axis][int(direction[axis] < 0)]


def frames_on_source(
    anomaly_map: NDArray[np.float32], source: SourceSeries, affine: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return a map as frames (F, rows, columns), float32, in the order and the directions of the source's frames.

    With an affine, each frame gets the voxels at the positions of its pixels, for any order and direction of the axes.

    Args:
        anomaly_map: map (rows, columns) of a single frame, or (X, Y, Z) of a volume.
        source: source images of the map.
        affine: (4, 4) voxel to world matrix (RAS, mm) of (X, Y, Z). Without it, or if the source states no position, X
            are the source's columns, Y its rows and Z its frames.

    Raises:
        UnfitSourceError: the map is not finite, or is not on the source's grid.
    """
    shape = (source.frame_count, int(source.images[0].Rows), int(source.images[0].Columns))
    if not np.isfinite(anomaly_map).all():
        raise UnfitSourceError("the map holds values that are not finite, which viewers cannot show")
    if anomaly_map.size != np.prod(shape) or anomaly_map.ndim not in (2, 3):
        raise UnfitSourceError(
            f"the map of shape {anomaly_map.shape} does not match the source's grid {shape} (frames, rows, columns)"
        )
    if anomaly_map.ndim == 3 and affine is not None and source.planes is not None:
        return _take_frames(anomaly_map, np.asarray(affine, float), source.planes, shape)
    frames = anomaly_map[None] if anomaly_map.ndim == 2 else anomaly_map.transpose(2, 1, 0)
    if frames.shape != shape:
        raise UnfitSourceError(
            f"the map of shape {anomaly_map.shape} does not match the source's grid {shape} (frames, rows, columns)"
        )
    return np.ascontiguousarray(frames, dtype=np.float32)


def _take_frames(
    anomaly_map: NDArray[np.float32],
    affine: NDArray[np.float64],
    planes: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> NDArray[np.float32]:
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise UnfitSourceError("the map's affine cannot be inverted; it must be a (4, 4) voxel to world matrix")
    to_voxel = (np.linalg.inv(affine) @ LPS_TO_RAS @ planes)[:, :3]  # (F, 3, 3), applied to (row, column, 1)
    exact = np.rint(to_voxel)
    rows, columns = shape[1:]
    corners = np.array([[0, 0, 1], [rows - 1, 0, 1], [0, columns - 1, 1], [rows - 1, columns - 1, 1]]).T
    steps = np.abs(exact[:, :, :2])
    one_axis_each = (steps.sum(1) == 1).all() and (steps.sum(2) <= 1).all()
    inside = (exact @ corners >= 0).all() and (exact @ corners < np.array(anomaly_map.shape)[:, None]).all()
    all_different = len(np.unique(exact[:, :, 2], axis=0)) == len(planes)
    if np.abs((to_voxel - exact) @ corners).max() > _GRID_TOLERANCE or not (one_axis_each and inside and all_different):
        raise UnfitSourceError(
            "the map is not on the source's grid; give all files that were scored, and the map's affine"
        )
    pixels = np.stack([*np.mgrid[:rows, :columns], np.ones((rows, columns))]).reshape(3, -1)
    frames = [anomaly_map[tuple((matrix @ pixels).astype(int))] for matrix in exact]
    return np.stack(frames).reshape(shape).astype(np.float32)


def burned_in_warning(path: str | os.PathLike[str]) -> str:
    """Return the warning of `warn_burned_in` for a file; an empty text if the file cannot be read."""
    try:
        return warn_burned_in(read_header(path, more=["BurnedInAnnotation"]))
    except ImageFileError:
        return ""


def warn_burned_in(header: Dataset) -> str:
    """Return a warning if the pixels of an image may show the patient's identity, else an empty text.

    Args:
        header: header with ``Modality`` and, if stated, ``BurnedInAnnotation`` (DICOM PS3.3 C.7.6.1).
    """
    with silent():
        burned_in, modality = header.get("BurnedInAnnotation") or "", header.get("Modality")
    if burned_in == "YES":
        return "the source states that text is burned into its pixels (BurnedInAnnotation YES): overlays show it too"
    if burned_in != "NO" and modality in _PIXELS_OF_TEXT:
        return (
            "images of this modality often have names or dates burned into their pixels, and the source does not state "
            "it (no BurnedInAnnotation): check overlays before you share them"
        )
    return ""
