"""Records of an evaluation: what is kept of each case, so that its map can be made again without the encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from mrad_med.files import atomic_path
from mrad_med.networks.maps import GAUSSIAN_SIGMA, IMAGE_WEIGHT, TOP_FRACTION, fuse_scores, upsample_and_blur
from mrad_med.networks.provenance import package_versions
from mrad_med.store import make_key
from mrad_med.types import AnomalyKeys

__all__ = ["CaseRecord", "MapMaker", "RecordStore", "pack_mask", "unpack_mask"]

logger = logging.getLogger(__name__)

_DIGITS = 48  # of a key in a file name
_OLD_DIGITS = 40  # of a key in a file name of version 0.1


@dataclass(frozen=True)
class CaseRecord:
    """Output of a network for one image, on the patch grid, and the mask to compare it with.

    Attributes:
        patch_map: (h, w) float32 probability that each patch is anomalous.
        image_probability: probability that the image is anomalous, in [0, 1].
        mask: (H, W) anomalous pixels, on the grid on which maps and masks are compared; None where not known.
    """

    patch_map: NDArray[np.float32]
    image_probability: float
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class MapMaker:
    """Computation of the anomaly map and the anomaly score from a record.

    Attributes:
        image_size: height and width of the network's input in pixels.
        sigma: standard deviation of the Gaussian that smooths the map, in pixels of the network's input.
        image_weight: weight of the image-level probability in the score, in [0, 1].
        top_fraction: fraction of the map's pixels, the highest, that are averaged for the score, in (0, 1].
    """

    image_size: tuple[int, int]
    sigma: float = GAUSSIAN_SIGMA
    image_weight: float = IMAGE_WEIGHT
    top_fraction: float = TOP_FRACTION

    def __call__(self, record: CaseRecord) -> tuple[Tensor, float]:
        """Return the anomaly map (1, 1, H, W) in [0, 1] at the size of the record's mask, and the anomaly score.

        Without a mask, the map has the size of the network's input. The score is always computed at that size.
        """
        patch_map = torch.from_numpy(record.patch_map)[None, None]
        anomaly_map = upsample_and_blur(patch_map, self.image_size, sigma=self.sigma).clamp(0, 1)
        probability = torch.tensor([[record.image_probability]])
        score = fuse_scores(probability, anomaly_map, image_weight=self.image_weight, fraction=self.top_fraction)
        if record.mask is not None and record.mask.shape != self.image_size:
            anomaly_map = F.interpolate(anomaly_map, size=record.mask.shape, mode="bilinear", antialias=True)
        return anomaly_map, float(score)


class RecordStore:
    """Records on disk, from which an interrupted evaluation resumes.

    The name of a file is a hash of everything that the record depends on.

    Args:
        folder: folder of the records, created when the first one is saved.
        identity: plain values that identify the network and the preprocessing. The versions of packages are added.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.identity = {**identity, "versions": package_versions()}

    def path(self, content: str) -> Path:
        """Return the path of the record of a case, from the key of its content (`mrad_med.store.contents_of`)."""
        return self.folder / f"{make_key(self.identity, content)[:_DIGITS]}.safetensors"

    def report_outdated(self) -> None:
        """Log in one line the number of records of an older version, which are not used."""
        count = sum(len(path.stem) == _OLD_DIGITS for path in self.folder.glob("*.safetensors"))
        if count:
            logger.warning(
                "%d record(s) of an older version of mrad_med are not used; their cases are scored again",
                count,
            )

    def load(self, path: Path) -> CaseRecord | None:
        """Return the record in a file; None where it is missing or, with a warning, damaged."""
        try:
            tensors = load_file(path)
            mask = unpack_mask(tensors["mask"].tobytes())
            return CaseRecord(tensors["patch_map"], float(tensors["image_probability"][0]), mask)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError, IndexError):
            logger.warning("%s is damaged: its case is scored again", path.name)
            return None

    def save(self, path: Path, record: CaseRecord) -> None:
        """Write a record completely or not at all.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        tensors = {
            "patch_map": np.ascontiguousarray(record.patch_map, np.float32),
            "image_probability": np.array([record.image_probability]),
            "mask": np.frombuffer(pack_mask(record.mask), np.uint8),
        }
        try:
            with atomic_path(path) as partial:
                save_file(tensors, partial)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"cannot write to {self.folder} ({error}): free some space and run again; finished cases are kept"
            ) from error


def pack_mask(mask: NDArray[np.bool_] | None) -> bytes:
    """Return a mask (H, W) as bytes, one bit a pixel; None becomes empty.

    Packed masks of different sizes can be collated into one batch.
    """
    return b"" if mask is None else np.array(mask.shape, "<u4").tobytes() + np.packbits(mask).tobytes()


def with_packed_mask(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return image, case id and packed mask of a preprocessed case; the mask is empty where not known (NaN)."""
    mask = convert_to_tensor(case[AnomalyKeys.MASK], track_meta=False)[0]
    packed = pack_mask(None if mask.isnan().any() else (mask > 0.5).numpy())
    return {"image": case[AnomalyKeys.IMAGE], "case_id": case[AnomalyKeys.CASE_ID], "mask": packed}


def unpack_mask(packed: bytes) -> NDArray[np.bool_] | None:
    """Return the mask (H, W) that `pack_mask` packed; None for empty bytes.

    Raises:
        ValueError: the bytes are not a packed mask.
    """
    if not packed:
        return None
    height, width = np.frombuffer(packed[:8], "<u4").astype(int)
    if len(packed) != 8 + -(-height * width // 8):
        raise ValueError(f"expected a packed mask of {height} x {width} pixels, got {len(packed)} bytes")
    bits = np.unpackbits(np.frombuffer(packed[8:], np.uint8), count=height * width)
    return bits.reshape(height, width).astype(bool)
