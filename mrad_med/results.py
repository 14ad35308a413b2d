"""What a run leaves behind: maps, overlays, one table, one record of the run."""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel
import numpy as np
import tifffile
from monai.data import MetaTensor
from numpy.typing import NDArray

from mrad_med.clip import CLIP
from mrad_med.files import atomic_path
from mrad_med.memory import MemoryBank
from mrad_med.preprocessing import load_picture
from mrad_med.report import draw_overlay, most_suspicious_slice, save_overlay
from mrad_med.transforms import ToDisplayOrientation
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["CaseResult", "OutputError", "ResultWriter", "Results", "describe_run", "package_versions", "prepare_output"]

logger = logging.getLogger(__name__)

_COLUMNS = ("case_id", "status", "anomaly_score", "map_minimum", "map_maximum", "peak", "map", "overlay", "reason")
_RECORDED_PACKAGES = ("mrad-med", "monai", "torch", "open_clip_torch", "numpy")


class OutputError(OSError):
    """Results cannot be written where they should be."""


def describe_run(clip: CLIP, bank: MemoryBank, **settings: Any) -> dict[str, Any]:
    """Return what a record of a run should say of its parts: cards, hashes and settings, all plain values."""
    memory_bank = {"sha256": bank.sha256, "card": bank.card.to_dict()}
    return {"backbone": asdict(clip.card), "memory_bank": memory_bank, "settings": settings}


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _RECORDED_PACKAGES}


@dataclass(frozen=True)
class CaseResult:
    """The answer for one file.

    Attributes:
        case_id: its name.
        path: the file that was scored.
        anomaly_score: the fused score; of a volume, the highest of its slices.
        anomaly_map: float32 on the file's own grid: (H, W) upright for an image, (X, Y, Z) as stored for a volume.
        affine: (4, 4) voxel to world matrix of a volume, None for an image.
    """

    case_id: str
    path: Path
    anomaly_score: float
    anomaly_map: NDArray[np.float32]
    affine: NDArray[np.float64] | None = None

    @classmethod
    def from_output(cls, item: Mapping[str, Any], path: str | os.PathLike[str]) -> CaseResult:
        """Return the result in one decollated, inverted output of an evaluator."""
        inverted: MetaTensor = item[AnomalyKeys.ANOMALY_MAP]
        array = inverted.detach().cpu().numpy()[0].astype(np.float32)
        is_volume = array.ndim == 3
        return cls(
            case_id=item[AnomalyKeys.CASE_ID],
            path=Path(path),
            anomaly_score=float(item[AnomalyKeys.ANOMALY_SCORE]),
            anomaly_map=array if is_volume else np.ascontiguousarray(array.T),
            affine=inverted.affine.cpu().numpy() if is_volume else None,
        )

    @property
    def peak(self) -> tuple[int, ...]:
        """Index of the map's highest value: (row, column) of an image, (x, y, z) of a volume."""
        return tuple(int(i) for i in np.unravel_index(int(self.anomaly_map.argmax()), self.anomaly_map.shape))

    def overlay_input(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], str]:
        """Return picture (H, W, 3), map (H, W) and a note; of a volume, of its most suspicious slice."""
        picture = load_picture(self.path)
        if self.affine is None:
            return picture, self.anomaly_map, ""
        upright = ToDisplayOrientation()(MetaTensor(self.anomaly_map[None], affine=self.affine)).numpy()[0]
        index = most_suspicious_slice(upright)
        return picture[:, :, index], upright[..., index], f", slice {index + 1} of {upright.shape[-1]}"


class ResultWriter:
    """Write the results of a run as they come; nothing is ever half-written.

    ``maps/<case_id>.tiff`` or ``.nii.gz`` holds the float32 map on the file's own grid, ``overlays/<case_id>.png`` a
    picture of it. `finish` writes ``scores.csv`` and ``run.json``.

    Args:
        output_dir: made if absent.
        provenance: what should be recorded of the run: cards, hashes, settings.
        overlays: whether to draw pictures.

    Raises:
        OutputError: the folder cannot be written to.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        provenance: Mapping[str, Any] | None = None,
        overlays: bool = True,
    ) -> None:
        self.output_dir = prepare_output(output_dir)
        self.provenance = dict(provenance or {})
        self.overlays = overlays
        self.rows: list[dict[str, str]] = []
        self._started = time.time()

    def write(self, result: CaseResult) -> None:
        """Write map and overlay of one case.

        Raises:
            OutputError: the disk is full, or the folder went away.
            ValueError: the case name would lead out of the output folder.
        """
        relative = _safe_relative_path(result.case_id)
        map_file = f"maps/{relative}{'.tiff' if result.affine is None else '.nii.gz'}"
        overlay_file = f"overlays/{relative}.png" if self.overlays else ""
        try:
            with atomic_path(self.output_dir / map_file) as partial:
                if result.affine is None:
                    tifffile.imwrite(partial, result.anomaly_map, compression="zlib")
                else:
                    nibabel.save(nibabel.Nifti1Image(result.anomaly_map, result.affine), partial)
            if self.overlays and not self._draw(result, self.output_dir / overlay_file):
                overlay_file = ""
        except OSError as error:
            raise OutputError(f"cannot write the results of {result.case_id} to {self.output_dir}: {error}") from error
        self.rows.append(
            {
                "case_id": result.case_id,
                "status": "ok",
                "anomaly_score": f"{result.anomaly_score:.7g}",
                "map_minimum": f"{result.anomaly_map.min():.7g}",
                "map_maximum": f"{result.anomaly_map.max():.7g}",
                "peak": " ".join(map(str, result.peak)),
                "map": map_file,
                "overlay": overlay_file,
            }
        )

    def _draw(self, result: CaseResult, path: Path) -> bool:
        """Draw the overlay; a picture that cannot be drawn costs only itself."""
        try:
            picture, upright, note = result.overlay_input()
            title = f"{result.case_id}{note}\nanomaly score {result.anomaly_score:.4f}"
            save_overlay(path, draw_overlay(picture, upright, title=title))
        except OSError:
            raise
        except Exception as error:
            logger.warning("%s: no overlay could be drawn (%s)", result.case_id, type(error).__name__)
            return False
        return True

    def finish(self, failures: Sequence[FailedCase] = ()) -> None:
        """Write ``scores.csv`` and ``run.json``, with the failed cases in both.

        Raises:
            OutputError: the disk is full, or the folder went away.
        """
        failed = [{"case_id": f.case_id, "status": "failed", "reason": f.reason} for f in failures]
        record = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self._started, 3),
            "versions": package_versions(),
            **self.provenance,
            "cases": {"total": len(self.rows) + len(failed), "ok": len(self.rows), "failed": len(failed)},
            "failures": [asdict(failure) for failure in failures],
        }
        try:
            for failure in failures:  # what an earlier run left of a case that fails now would mislead
                self._remove(failure.case_id)
            with (
                atomic_path(self.output_dir / "scores.csv") as partial,
                partial.open("w", newline="", encoding="utf-8") as stream,
            ):
                table = csv.DictWriter(stream, _COLUMNS, restval="")
                table.writeheader()
                table.writerows([*self.rows, *failed])
            with atomic_path(self.output_dir / "run.json") as partial:
                partial.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the tables to {self.output_dir}: {error}") from error
        logger.info("%d case(s) written to %s, %d failed", len(self.rows), self.output_dir, len(failed))

    def _remove(self, case_id: str) -> None:
        relative = _safe_relative_path(case_id)
        for name in (f"maps/{relative}.tiff", f"maps/{relative}.nii.gz", f"overlays/{relative}.png"):
            (self.output_dir / name).unlink(missing_ok=True)


def prepare_output(output_dir: str | os.PathLike[str]) -> Path:
    """Make a folder for results; refuse it before hours of computing, not after.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"writable")
    except OSError as error:
        raise OutputError(f"cannot write to {folder} ({error.strerror}); choose another folder") from error
    return folder


def _safe_relative_path(case_id: str) -> str:
    path = PurePosixPath(case_id)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in case_id:
        raise ValueError(f"case name {case_id!r} cannot become a file below the output folder; rename the case")
    return str(path)


@dataclass
class Results:
    """The results of a detection, in the order of the files.

    Attributes:
        cases: one `CaseResult` per file that could be scored.
        failures: one `FailedCase` per file that could not.
        provenance: cards, hashes and settings of the run.
    """

    cases: list[CaseResult] = field(default_factory=list)
    failures: list[FailedCase] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[CaseResult]:
        """Iterate over the cases that could be scored."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Return the number of cases that could be scored."""
        return len(self.cases)

    @property
    def scores(self) -> dict[str, float]:
        """Anomaly score by case name."""
        return {case.case_id: case.anomaly_score for case in self.cases}

    def save(self, output_dir: str | os.PathLike[str], *, overlays: bool = True) -> None:
        """Write maps, overlays, ``scores.csv`` and ``run.json``; see `ResultWriter`."""
        writer = ResultWriter(output_dir, provenance=self.provenance, overlays=overlays)
        for case in self.cases:
            writer.write(case)
        writer.finish(self.failures)
