"""Cache of image features on disk: memory banks and both training stages use features that are encoded once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, SelectItemsd
from monai.utils import convert_to_tensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mrad_med.data.loader import CaseDataset, CaseLoader, raise_for_failures
from mrad_med.distributed import rank_and_world, share_work
from mrad_med.files import atomic_path
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.networks.clip import CLIP
from mrad_med.store import contents_of, make_key
from mrad_med.training.features import UNKNOWN, FeatureDataset
from mrad_med.transforms.preprocessing import ImageView, build_preprocessing
from mrad_med.types import IMAGE_SIZE, AnomalyKeys, FailedCase

__all__ = ["FeatureCache"]

logger = logging.getLogger(__name__)

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
_SPARE_BYTES = 2**26  # left free on the disk for other programs
_TENSORS = ("image", "patches", "mask")
_CHANGED = "its image or mask changed twice while it was read; wait until nothing writes to it, and run again"

Cases = Sequence[Mapping[str, Any]]


class FeatureCache:
    """Encode labeled images once and keep their features on disk, one file per case.

    The name of a file is a hash of everything that its features depend on. Files are written completely or not at all.
    After a killed run or a full disk, the next run encodes only the missing features.

    Args:
        clip: backbone that encodes the images.
        folder: folder of the files; created if absent. Several processes must share it.
        image_size: side of the network's square input in pixels.
        dtype: type of the cached patch features, ``"fp16"`` or ``"fp32"``; the image feature is always float32.
        max_pixels: largest number of pixels of an image; larger ones are refused.

    Attributes:
        failures: cases that the last `fill` left out.

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
        view = ImageView(image_size=image_size, max_pixels=max_pixels)
        self.preprocessing = build_preprocessing(clip.card, view, with_mask=True)
        self.failures: list[FailedCase] = []
        self._total = 0

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        side = self.image_size // self.clip.card.patch_size
        return side, side

    def fill(self, cases: Cases, *, batch_size: int = 4, num_workers: int = 0, progress: bool = True) -> FeatureDataset:
        """Encode missing and damaged features, and return the features of all cases that can be read.

        Several processes encode a share each and wait for each other.

        Args:
            cases: cases of the form ``{"image": path, "mask": path or None, "label": 0 or 1, "case_id": name}``.
            batch_size: number of images that are encoded together.
            num_workers: number of processes that read images ahead.
            progress: whether to show a progress bar.

        Raises:
            ValueError: two cases have the same name, or a label is not 0 or 1.
            OSError: the disk has too little space for the features; features that are already written remain.
            RuntimeError: another process failed.
        """
        _check_cases(cases)
        self._total = len(cases)
        files: dict[str, Path] = {}
        reasons: dict[str, FailedCase] = {}
        lacking: set[str] = set()
        for found, not_there, unreadable in share_work(self._look_up, cases):
            files |= found
            lacking.update(not_there)
            reasons |= {failure.case_id: failure for failure in unreadable}
        missing = [case for case in cases if case[AnomalyKeys.CASE_ID] in lacking]
        share_work(lambda _: self._check_space(len(missing)), missing)
        progress = progress and rank_and_world()[0] == 0
        expected = dict(files)
        for changed, failures in share_work(
            lambda share: self._encode_all(share, expected, batch_size, num_workers, progress), missing
        ):
            files |= changed
            reasons |= {failure.case_id: failure for failure in failures}
        names = [case[AnomalyKeys.CASE_ID] for case in cases]
        self.failures = [reasons[name] for name in names if name in reasons]
        usable = [case for case in cases if case[AnomalyKeys.CASE_ID] not in reasons]
        return FeatureDataset(usable, [files[name] for name in names if name not in reasons], self.grid_size)

    def raise_for_failures(self) -> None:
        """Raise an error at the end of a run if cases were left out, so that the exit status shows it.

        Raises:
            FailedCasesError: the last `fill` left cases out; the error names them.
        """
        raise_for_failures(self.failures, self._total)

    def _look_up(self, cases: Cases) -> tuple[dict[str, Path], list[str], list[FailedCase]]:
        """Return the file of each case, the names of cases to encode, and the cases that cannot be read."""
        contents, failures = contents_of(cases)
        files = self._files(contents)
        return files, [name for name, file in files.items() if not _is_whole(file, name)], failures

    def _files(self, contents: Mapping[str, str]) -> dict[str, Path]:
        """Return the feature file of each case name, from the content keys of the cases (`contents_of`)."""
        card = self.clip.card
        common = {
            "backbone": card.sha256,
            "precision": self.clip.image_encoder.precision,
            "normalization": [card.mean, card.std],
            "image_size": self.image_size,
            "dtype": self.dtype,
            "version": version("mrad-med"),
        }
        keys = {name: make_key(common, content) for name, content in contents.items()}
        return {name: self.folder / key[:2] / f"{key[2:34]}.safetensors" for name, key in keys.items()}

    def _check_space(self, count: int) -> None:
        """Raise an error before encoding, which can take hours, if the disk has too little space."""
        self.folder.mkdir(parents=True, exist_ok=True)
        patches = self.grid_size[0] * self.grid_size[1] * self.clip.card.width
        needed = count * (patches * _DTYPES[self.dtype].itemsize + self.image_size**2)
        usable = max(0, shutil.disk_usage(self.folder).free - _SPARE_BYTES)
        if needed > usable:
            raise OSError(
                f"the features of {count} image(s) need {needed / 1e9:.1f} GB, but only {usable / 1e9:.1f} GB can be "
                f"used in {self.folder}: choose another cache folder, a smaller image_size, or fp16"
            )

    def _encode_all(
        self, cases: Cases, files: Mapping[str, Path], batch_size: int, num_workers: int, progress: bool
    ) -> tuple[dict[str, Path], list[FailedCase]]:
        """Write the features of the cases; encode cases once more whose files change meanwhile.

        Returns:
            The files of cases that changed, and the cases that failed.
        """
        changed, failures = self._encode(cases, files, batch_size, num_workers, progress)
        if not changed:
            return {}, failures
        latest, unreadable = contents_of(changed)
        again = [case for case in changed if case[AnomalyKeys.CASE_ID] in latest]
        twice, others = self._encode(again, self._files(latest), batch_size, num_workers, progress)
        refused = [FailedCase(case[AnomalyKeys.CASE_ID], _CHANGED) for case in twice]
        return self._files(latest), [*failures, *unreadable, *others, *refused]

    def _encode(
        self, cases: Cases, files: Mapping[str, Path], batch_size: int, num_workers: int, progress: bool
    ) -> tuple[list[Mapping[str, Any]], list[FailedCase]]:
        """Write the features of the cases; return the cases that changed meanwhile, and the cases that failed."""
        if not cases:
            return [], []
        device = next(self.clip.image_encoder.parameters()).device
        by_name = {case[AnomalyKeys.CASE_ID]: case for case in cases}
        # Cases of different sets may have different further keys, which cannot be collated.
        steps = Compose([self.preprocessing, SelectItemsd(["image", "mask", "case_id"])])
        dataset = CaseDataset([{"mask": None, **case} for case in cases], steps)
        loader = CaseLoader(dataset, batch_size=batch_size, num_workers=num_workers, progress=progress)
        changed: dict[str, Mapping[str, Any]] = {}
        failures = []
        for batch in loader:
            images = convert_to_tensor(batch["image"], track_meta=False).to(device)
            with torch.inference_mode():
                features = self.clip.image_encoder(images)
            masks = convert_to_tensor(batch["mask"], track_meta=False)
            kept = features.patches.to(_DTYPES[self.dtype])
            changed |= self._changed([by_name[name] for name in batch["case_id"]], files)
            for name, image, patches, mask in zip(batch["case_id"], features.image, kept, masks, strict=True):
                if name in changed:
                    continue
                if image.isfinite().all() and patches.isfinite().all():
                    self._save(files[name], image, patches, mask)
                else:
                    failures.append(FailedCase(name, f"its features exceed {self.dtype} or are NaN; try fp32"))
        changed |= self._changed([by_name[failure.case_id] for failure in loader.failures], files)
        failures += loader.failures
        return list(changed.values()), [failure for failure in failures if failure.case_id not in changed]

    def _changed(self, cases: Cases, files: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
        """Return by name the cases whose image, mask or label no longer matches their feature file."""
        now = self._files(contents_of(cases)[0])
        names = {case[AnomalyKeys.CASE_ID]: case for case in cases}
        return {name: case for name, case in names.items() if now.get(name) != files[name]}

    def _save(self, path: Path, image: Tensor, patches: Tensor, mask: Tensor) -> None:
        known = torch.where(mask[0].isnan(), float(UNKNOWN), (mask[0] > 0.5).float())
        tensors = (image.cpu().contiguous(), patches.cpu().contiguous(), known.to(torch.uint8))
        try:
            with atomic_path(path) as partial:
                save_file(dict(zip(_TENSORS, tensors, strict=True)), partial)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"cannot write features to {self.folder} ({error}): free some space or choose another cache folder. "
                "Features that are already written are kept"
            ) from error


def _check_cases(cases: Cases) -> None:
    """Raise ValueError if two cases have the same name, or if a label is not 0 or 1."""
    seen: set[str] = set()
    for case in cases:
        name = case[AnomalyKeys.CASE_ID]
        if name in seen:
            raise ValueError(f"two cases are named {name!r}: names must be unique; begin them with the name of the set")
        if case.get(AnomalyKeys.LABEL) not in (0, 1):
            raise ValueError(
                f"the label of {name!r} must be 0 (normal) or 1 (anomalous), got {case.get(AnomalyKeys.LABEL)!r}"
            )
        seen.add(name)


def _is_whole(path: Path, case_id: str) -> bool:
    """Return whether a feature file exists with all tensors, at the length that its header states."""
    try:
        with safe_open(path, framework="pt") as file:
            if set(_TENSORS) <= set(file.keys()):
                return True
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError):
        pass
    logger.warning("%s: its cached features are damaged; they are encoded again", case_id)
    return False
