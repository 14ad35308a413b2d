"""The outputs: files to which a result is written, each chosen by its name."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mrad_med.files import atomic_path
from mrad_med.io.dicom.source import SourceSeries, frames_on_source, read_source_series
from mrad_med.io.dicom.writer import require_highdicom, write_overlay_captures, write_parametric_map, write_segmentation
from mrad_med.io.file_types import DICOM, detect_file_type
from mrad_med.io.videos import import_av
from mrad_med.io.volume_writer import require_nrrd, write_volume
from mrad_med.results.case_result import CaseResult, slice_means, upright_image
from mrad_med.results.overlays import blend_overlay, draw_montage, draw_overlay, save_overlay
from mrad_med.transforms.preprocessing import ImageView

__all__ = ["OUTPUTS", "Output", "OutputSettings", "check_outputs", "is_dicom"]

T = TypeVar("T")

CAPTURES = 9  # number of captured slices of a volume; a montage shows as many


class CaseCache:
    """Data of a case's source that several outputs need, read once.

    Only one case is kept. It is released when another case is requested, or when its result is deleted.
    """

    def __init__(self) -> None:
        self._case: weakref.ref[CaseResult] | None = None
        self._read: dict[str, Any] = {}

    def get(self, result: CaseResult, name: str, read: Callable[[], T]) -> T:
        """Return data of a case from the cache, and read it first if it is missing.

        Args:
            result: result of the case.
            name: name of the data.
            read: function that reads the data.
        """
        if self._case is None or self._case() is not result:
            self._release()
            self._case = weakref.ref(result, self._release)
        if name not in self._read:
            self._read[name] = read()
        value: T = self._read[name]
        return value

    def _release(self, _: Any = None) -> None:
        self._case, self._read = None, {}


@dataclass(frozen=True)
class OutputSettings:
    """Settings that all outputs share.

    Attributes:
        folder: output folder.
        threshold: lowest anomaly value that masks and segmentations mark; None if no output needs it.
        view: how images are shown (window, plane).
        keep_identifiers: whether DICOM outputs keep the patient's identifiers of their source.
        volume_suffix: file suffix of a volume's mask.
    """

    folder: Path
    threshold: float | None = None
    view: ImageView = field(default_factory=ImageView)
    keep_identifiers: bool = False
    volume_suffix: str = ".nii.gz"
    _cache: CaseCache = field(default_factory=CaseCache, init=False, repr=False, compare=False)

    def stored(self, result: CaseResult) -> NDArray[np.uint8]:
        """Return the pixels of a case in stored order, see `ImageView.show_stored`. The array must not be changed."""
        return self._cache.get(result, "stored", lambda: self.view.show_stored(result.source))

    def source(self, result: CaseResult) -> SourceSeries:
        """Return the DICOM headers of a case."""
        read = partial(read_source_series, result.files, keep_identifiers=self.keep_identifiers)
        return self._cache.get(result, "source", read)


@dataclass(frozen=True)
class Output:
    """How one output is written.

    Attributes:
        subfolder: folder of its files, relative to the output folder.
        suffix: suffix of its files; empty if ``write`` adds it.
        kinds: kinds of cases for which it can be written.
        write: function that writes it to a path and returns the written files.
        needs_threshold: whether it marks pixels at or above a threshold.
        needs_dicom: whether the source must be DICOM.
    """

    subfolder: str
    suffix: str
    kinds: tuple[str, ...]
    write: Callable[[CaseResult, Path, OutputSettings], Sequence[Path]]
    needs_threshold: bool = False
    needs_dicom: bool = False

    def suits(self, result: CaseResult) -> bool:
        """Return whether the output can be written for a result."""
        return result.kind in self.kinds and (not self.needs_dicom or is_dicom(result))


def is_dicom(result: CaseResult) -> bool:
    """Return whether the source of a result is DICOM."""
    return bool(result.files) and detect_file_type(result.files[0]) == DICOM


def check_outputs(names: Sequence[str], threshold: float | None) -> None:
    """Check at the start of a run that all outputs can be written.

    Args:
        names: names of outputs.
        threshold: lowest anomaly value that masks and segmentations mark; None if no output needs it.

    Raises:
        ValueError: there is no output of this name, an output needs a threshold, or the threshold is NaN.
        OutputError: a package for DICOM outputs is missing.
        ImportError: the package for NRRD files is missing.
        ImageFileError: the package for videos is missing.
    """
    unknown = [name for name in names if name not in OUTPUTS and name != "video"]
    if unknown:
        raise ValueError(f"there is no output {', '.join(unknown)}; there are {', '.join([*OUTPUTS, 'video'])}")
    lacking = [name for name in names if name != "video" and OUTPUTS[name].needs_threshold]
    if lacking and threshold is None:
        raise ValueError(f"{', '.join(lacking)} marks pixels at or above a threshold; give one (--threshold)")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("the threshold must be a number, got nan")
    if any(name != "video" and OUTPUTS[name].needs_dicom for name in names):
        require_highdicom()
    if "nrrd" in names:
        require_nrrd()
    if "video" in names:
        import_av()


def _write_tiff(result: CaseResult, path: Path, _: OutputSettings) -> list[Path]:
    with atomic_path(path) as partial:
        tifffile.imwrite(partial, result.anomaly_map, compression="zlib")
    return [path]


def _write_png(result: CaseResult, path: Path, _: OutputSettings) -> list[Path]:
    """Write a map as a gray 16-bit PNG. Values are clipped to 0 to 1 and scaled to 0 to 65535."""
    return _save_png(path, np.round(result.anomaly_map.clip(0, 1) * 65535).astype(np.uint16))


def _write_volume(result: CaseResult, path: Path, _: OutputSettings) -> list[Path]:
    write_volume(path, result.anomaly_map, _affine(result))
    return [path]


def _write_mask(result: CaseResult, path: Path, settings: OutputSettings) -> list[Path]:
    threshold = _threshold(settings)
    mask = result.map_to_mark(threshold) >= threshold
    if result.affine is None:
        return _save_png(path.with_name(path.name + ".png"), mask.astype(np.uint8) * 255)
    path = path.with_name(path.name + settings.volume_suffix)
    write_volume(path, mask, result.affine)
    return [path]


def _write_overlay(result: CaseResult, path: Path, settings: OutputSettings) -> list[Path]:
    image, upright, note = result.overlay_input(settings.view, stored=settings.stored(result))
    title = f"{result.case_id}{note}\nanomaly score {result.anomaly_score:.4f}"
    save_overlay(path, draw_overlay(image, upright, title=title))
    return [path]


def _write_montage(result: CaseResult, path: Path, settings: OutputSettings) -> list[Path]:
    affine, view = _affine(result), settings.view
    ranking = result.rank_slices(view)
    image = upright_image(settings.stored(result), affine, view)
    title = f"{result.case_id}, anomaly score {result.anomaly_score:.4f}"
    upright, scores = view.upright(result.anomaly_map, affine), np.nan_to_num(ranking.upright_scores)
    order = ranking.upright_order[: ranking.scored]  # a slice with nothing to score is not shown
    save_overlay(path, draw_montage(image, upright, scores, title=title, order=order))
    return [path]


def _write_segmentation(result: CaseResult, path: Path, settings: OutputSettings) -> list[Path]:
    threshold = _threshold(settings)
    marked = result.map_to_mark(threshold)
    write_segmentation(path, marked, settings.source(result), threshold=threshold, affine=result.affine)
    return [path]


def _write_parametric_map(result: CaseResult, path: Path, settings: OutputSettings) -> list[Path]:
    write_parametric_map(path, result.anomaly_map, settings.source(result), affine=result.affine)
    return [path]


def _write_captures(result: CaseResult, path: Path, settings: OutputSettings) -> list[Path]:
    """Write the frames of the source with the highest scores, with their anomaly maps drawn over them."""
    source = settings.source(result)
    maps = frames_on_source(result.anomaly_map, source, result.affine)
    shown = settings.stored(result)  # (columns, rows[, slices], 3)
    if result.affine is None:
        shown = shown.swapaxes(0, 1)
    channels = [frames_on_source(shown[..., i].astype(np.float32), source, result.affine) for i in range(3)]
    images = np.stack(channels, axis=-1).astype(np.uint8)
    low, high = float(maps.min()), float(maps.max())
    chosen = _rank_frames(result, maps, source, settings)[:CAPTURES]
    overlays = {int(i): blend_overlay(images[i], maps[i], low=low, high=high) for i in chosen}
    return write_overlay_captures(path, overlays, source, warn=False)  # `ResultWriter` warns once for all outputs


def _rank_frames(
    result: CaseResult, maps: NDArray[np.float32], source: SourceSeries, settings: OutputSettings
) -> NDArray[np.intp]:
    """Return the indices of a source's frames, highest score first.

    Frames that are slices follow the ranking of the slices, without those that have nothing to score. If a volume was
    scored in another plane than that of its frames, no frame has a score. The frames are then ranked by the highest
    pixels of their maps (`slice_means`).
    """
    if result.affine is not None:
        ranking = result.rank_slices(settings.view)
        shape, axis = result.anomaly_map.shape, ranking.layout.axis
        index = np.arange(shape[axis], dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        slices = frames_on_source(np.broadcast_to(index, shape), source, result.affine)
        if (slices == slices[:, :1, :1]).all():  # each frame is one slice
            rank = np.argsort(ranking.order)
            return np.argsort(rank[slices[:, 0, 0].astype(int)])[: ranking.scored]
    return np.argsort(-slice_means(maps, axis=0), kind="stable")


def _save_png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> list[Path]:
    with atomic_path(path) as partial:
        Image.fromarray(pixels).save(partial)
    return [path]


def _affine(result: CaseResult) -> NDArray[np.float64]:
    if result.affine is None:
        raise ValueError("this output needs a volume; an image has no affine")
    return result.affine


def _threshold(settings: OutputSettings) -> float:
    if settings.threshold is None:
        raise ValueError("a mask needs a threshold")
    return settings.threshold


_FLAT, _ALL = ("image", "frame"), ("image", "frame", "volume")
_FRAMED = ("image", "volume")  # kinds of cases that DICOM files hold

OUTPUTS: dict[str, Output] = {
    "tiff": Output("maps", ".tiff", _FLAT, _write_tiff),
    "png": Output("maps", ".png", _FLAT, _write_png),
    "nifti": Output("maps", ".nii.gz", ("volume",), _write_volume),
    "nrrd": Output("maps", ".nrrd", ("volume",), _write_volume),
    "mask": Output("masks", "", _ALL, _write_mask, needs_threshold=True),
    "overlay": Output("overlays", ".png", _ALL, _write_overlay),
    "montage": Output("montages", ".png", ("volume",), _write_montage),
    "seg": Output("dicom", "_seg.dcm", _FRAMED, _write_segmentation, needs_threshold=True, needs_dicom=True),
    "parametric-map": Output("dicom", "_map.dcm", _FRAMED, _write_parametric_map, needs_dicom=True),
    "capture": Output("dicom", "", _FRAMED, _write_captures, needs_dicom=True),
}
