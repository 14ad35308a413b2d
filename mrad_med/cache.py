"""Features of images, encoded once and kept on disk: a bank, both stages of training and every epoch read them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.utils import convert_to_tensor
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mrad_med.clip import CLIP
from mrad_med.features import UNKNOWN, FeatureDataset
from mrad_med.files import atomic_path, sha256_of_file
from mrad_med.loaders import CaseDataset, CaseLoader, raise_for_failures
from mrad_med.preprocessing import build_preprocessing
from mrad_med.readers import MAX_PIXELS
from mrad_med.transforms import IMAGE_SIZE
from mrad_med.types import FailedCase

__all__ = ["FeatureCache"]

logger = logging.getLogger(__name__)

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_SPARE_BYTES = 2**26  # of the disk, left to others


class FeatureCache:
    """Encode labelled images once. Each has a file of its own, named by everything its features depend on.

    Files are whole or absent, so that a run that was killed, a full disk or several processes at work leave nothing
    damaged behind: the next run encodes what is missing.

    Args:
        clip: the backbone.
        folder: where the files go; made if absent.
        image_size: side of the network's square input in pixels.
        dtype: ``"fp16"`` or ``"fp32"``, of the kept patches; the image feature is always float32.
        max_pixels: photographs with more pixels are refused.

    Attributes:
        failures: the cases that the last `fill` left out.

    Raises:
        ValueError: the type is unknown, or the size does not fit the backbone.
    """

    def __init__(
        self,
        clip: CLIP,
        folder: str | os.PathLike[str],
        *,
        image_size: int = IMAGE_SIZE,
        dtype: str = "fp16",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"features are cached as {' or '.join(_DTYPES)}; got {dtype!r}")
        self.clip = clip
        self.folder = Path(folder)
        self.image_size = image_size
        self.dtype = dtype
        self.preprocessing = build_preprocessing(
            clip.card, image_size=image_size, with_mask=True, max_pixels=max_pixels
        )
        self.failures: list[FailedCase] = []
        self._total = 0

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        side = self.image_size // self.clip.card.patch_size
        return side, side

    def fill(
        self, cases: Sequence[Mapping[str, Any]], *, batch_size: int = 4, num_workers: int = 0, progress: bool = True
    ) -> FeatureDataset:
        """Encode what is missing and return the features of all cases that could be read.

        With several processes each encodes a share, and all wait for each other.

        Args:
            cases: ``{"image": path, "mask": path or None, "label": 0 or 1, "case_id": name}`` each.
            batch_size: images that are encoded together.
            num_workers: processes that read ahead.
            progress: whether to show a progress bar.

        Raises:
            OSError: the disk cannot hold the features; those already written stay.
        """
        self._total = len(cases)
        files, unreadable = self._files(cases)
        missing = [case for case in cases if case["case_id"] in files and not files[case["case_id"]].is_file()]
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        share = missing[rank::world]
        problem: OSError | None = None
        failures: list[FailedCase] = []
        try:
            self._check_space(len(missing))
            failures = self._encode(share, files, batch_size, num_workers, progress and rank == 0)
        except OSError as error:
            problem = error
        if world > 1:  # nobody may wait for a process that gave up
            gathered: list[Any] = [None] * world
            dist.all_gather_object(gathered, (failures, problem))
            failures = [failure for part, _ in gathered for failure in part]
            problem = next((error for _, error in gathered if error is not None), None)
        if problem is not None:
            raise problem
        self.failures = [*unreadable, *failures]
        left_out = {failure.case_id for failure in self.failures}
        usable = [case for case in cases if case["case_id"] not in left_out]
        return FeatureDataset(usable, [files[case["case_id"]] for case in usable], self.grid_size)

    def raise_for_failures(self) -> None:
        """Say at the end of a run that images were left out, in a way that reaches the exit status.

        Raises:
            FailedCasesError: names the cases.
        """
        raise_for_failures(self.failures, self._total)

    def _files(self, cases: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Path], list[FailedCase]]:
        """Return the file of each case, and the cases whose image or mask cannot be opened."""
        card = self.clip.card
        common = {
            "backbone": card.sha256,
            "precision": self.clip.image_encoder.precision,
            "normalization": [card.mean, card.std],
            "image_size": self.image_size,
            "dtype": self.dtype,
            "version": version("mrad-med"),
        }
        files: dict[str, Path] = {}
        failures = []
        for case in cases:
            try:
                content = [sha256_of_file(case[name]) if case.get(name) else None for name in ("image", "mask")]
            except OSError as error:
                failures.append(FailedCase(case["case_id"], f"cannot be read ({error.strerror})"))
                continue
            identity = json.dumps([common, content, int(case["label"])], sort_keys=True)
            name = hashlib.sha256(identity.encode()).hexdigest()
            files[case["case_id"]] = self.folder / name[:2] / f"{name[2:34]}.safetensors"
        return files, failures

    def _check_space(self, count: int) -> None:
        """Refuse before the encoder runs for hours what the disk cannot hold."""
        self.folder.mkdir(parents=True, exist_ok=True)
        patches = self.grid_size[0] * self.grid_size[1] * self.clip.card.width
        needed = count * (patches * _DTYPES[self.dtype].itemsize + self.image_size**2)
        free = shutil.disk_usage(self.folder).free
        if needed > free - _SPARE_BYTES:
            raise OSError(
                f"the features of {count} image(s) take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in "
                f"{self.folder}: choose another cache folder, a smaller image_size, or fp16"
            )

    def _encode(
        self,
        cases: Sequence[Mapping[str, Any]],
        files: Mapping[str, Path],
        batch_size: int,
        num_workers: int,
        progress: bool,
    ) -> list[FailedCase]:
        if not cases:
            return []
        device = next(self.clip.image_encoder.parameters()).device
        dataset = CaseDataset([{"mask": None, **case} for case in cases], self.preprocessing)
        loader = CaseLoader(dataset, batch_size=batch_size, num_workers=num_workers, progress=progress)
        for batch in loader:
            images = convert_to_tensor(batch["image"], track_meta=False).to(device)
            with torch.inference_mode():
                features = self.clip.image_encoder(images)
            masks = convert_to_tensor(batch["mask"], track_meta=False)
            for name, image, patches, mask in zip(
                batch["case_id"], features.image, features.patches, masks, strict=True
            ):
                self._save(files[name], image, patches, mask)
        return list(loader.failures)

    def _save(self, path: Path, image: Tensor, patches: Tensor, mask: Tensor) -> None:
        known = torch.where(mask[0].isnan(), float(UNKNOWN), (mask[0] > 0.5).float())
        tensors = {
            "image": image.cpu().contiguous(),
            "patches": patches.to(_DTYPES[self.dtype]).cpu().contiguous(),
            "mask": known.to(torch.uint8),
        }
        try:
            with atomic_path(path) as partial:
                save_file(tensors, partial)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"cannot write features to {self.folder} ({error}): free some space or choose another cache folder; "
                "what is written stays, and only what is missing is encoded again"
            ) from error
