"""Datasets and loaders of cached features, for memory banks and both training stages."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from mrad_med.distributed import rank_and_world
from mrad_med.types import AnomalyKeys, ImageFeatures

__all__ = ["UNKNOWN", "FeatureDataset", "collate_features", "feature_loader"]

_BATCHES_AHEAD = 2  # per thread

UNKNOWN = 255  # value of a cached mask where it is not known whether a pixel is anomalous


class FeatureDataset(Dataset[dict[str, Any]]):
    """Cached features of labeled cases; an item is read from disk when it is used.

    Args:
        cases: one mapping per case with ``case_id``, ``label`` and optionally ``class``.
        files: files of the cache, in the order of the cases.
        grid_size: rows and columns of the patch grid.

    Raises:
        ValueError: the numbers of cases and files differ.
    """

    def __init__(self, cases: Sequence[Mapping[str, Any]], files: Sequence[Path], grid_size: tuple[int, int]) -> None:
        if len(cases) != len(files):
            raise ValueError(f"each case needs one file of features, got {len(cases)} case(s) and {len(files)} file(s)")
        self.cases = list(cases)
        self.files = list(files)
        self.grid_size = grid_size

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a dictionary of one image: ``features``, ``mask``, ``label``, ``case_id`` and ``index``.

        The mask is float32 (1, H, W) of 0 and 1, or NaN where not known. The projected patches of the features are
        empty.

        Raises:
            OSError: the file is damaged or missing.
        """
        case = self.cases[index]
        image, patches, mask = self._read(index, "image", "patches", "mask")
        patches = patches.float()
        return {
            # Projecting takes less time than reading. Heads that need projected patches use `CLIPImageEncoder.project`.
            "features": ImageFeatures(image.float(), patches, patches[:, :0], self.grid_size),
            "mask": _known_mask(mask),
            "label": int(case[AnomalyKeys.LABEL]),
            "case_id": case[AnomalyKeys.CASE_ID],
            "index": index,
        }

    def mask(self, index: int) -> Tensor:
        """Return the mask of one image, (1, H, W), without reading its features.

        Raises:
            OSError: the file is damaged or missing.
        """
        return _known_mask(*self._read(index, "mask"))

    def _read(self, index: int, *names: str) -> tuple[Tensor, ...]:
        try:
            with safe_open(self.files[index], framework="pt") as file:
                return tuple(file.get_tensor(name) for name in names)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"the cached features of {self.cases[index][AnomalyKeys.CASE_ID]} are damaged or missing ({error}); "
                "run again: only damaged and missing features are encoded again"
            ) from error

    def subset(self, indices: Iterable[int]) -> FeatureDataset:
        """Return a dataset of the cases with these indices, in the order of the indices."""
        chosen = list(indices)
        return FeatureDataset([self.cases[i] for i in chosen], [self.files[i] for i in chosen], self.grid_size)

    def split(self, held_out: Sequence[str]) -> tuple[FeatureDataset, FeatureDataset]:
        """Return two datasets: the cases of all other classes, and the cases of the held-out classes."""
        inside = [_class_of(case) in set(held_out) for case in self.cases]
        return (
            self.subset(index for index, is_held_out in enumerate(inside) if not is_held_out),
            self.subset(index for index, is_held_out in enumerate(inside) if is_held_out),
        )

    @property
    def sources(self) -> tuple[dict[str, Any], ...]:
        """Name and number of normal and anomalous images of each class, for cards."""
        labels: dict[str, list[int]] = {}
        for case in self.cases:
            labels.setdefault(_class_of(case), []).append(int(case[AnomalyKeys.LABEL]))
        return tuple(
            {"name": name, "normal": len(values) - sum(values), "anomalous": sum(values)}
            for name, values in sorted(labels.items())
        )

    @property
    def sha256(self) -> str:
        """Hash of everything the features and labels depend on, made from the names of the files."""
        return hashlib.sha256("\n".join(file.name for file in self.files).encode()).hexdigest()


def _class_of(case: Mapping[str, Any]) -> str:
    return str(case.get("class", ""))


def _known_mask(mask: Tensor) -> Tensor:
    return torch.where(mask == UNKNOWN, torch.nan, mask.float())[None]


def collate_features(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch of items of a `FeatureDataset`: features and tensors are stacked, names are in a list."""
    features = [item["features"] for item in items]
    batch: dict[str, Any] = default_collate(
        [{name: value for name, value in item.items() if name != "features"} for item in items]
    )
    batch["features"] = ImageFeatures(
        image=torch.stack([item.image for item in features]),
        patches=torch.stack([item.patches for item in features]),
        projected_patches=torch.stack([item.projected_patches for item in features]),
        grid_size=features[0].grid_size,
    )
    return batch


def feature_loader(
    dataset: FeatureDataset, *, batch_size: int = 8, shuffle: bool = False, seed: int = 0, num_workers: int = 0
) -> DataLoader[dict[str, Any]]:
    """Return a loader of cached features; several processes load a share each.

    Args:
        dataset: features to load.
        batch_size: number of images in a batch of each process.
        shuffle: whether to shuffle, for training. The order depends only on the seed and the epoch, so a training can
            be resumed. Processes then get equal shares, and some cases may be repeated. Without shuffling each case is
            loaded once.
        seed: seed of the order.
        num_workers: number of threads that read ahead; 0 reads a batch when it is used.

    Raises:
        ValueError: ``num_workers`` is negative, or without shuffling there are more processes than images.
    """
    rank, world = rank_and_world()
    if not shuffle:
        if 0 < len(dataset) < world:  # a process without images would not take part in gathering the results
            raise ValueError(
                f"{len(dataset)} image(s) cannot be divided among {world} processes: hold out more images, or start "
                "fewer processes"
            )
        part = dataset.subset(range(rank, len(dataset), world)) if world > 1 else dataset
        return _FeatureLoader(part, batch_size=batch_size, collate_fn=collate_features, threads=num_workers)
    sampler: DistributedSampler[dict[str, Any]] = DistributedSampler(dataset, world, rank, shuffle=True, seed=seed)
    return _FeatureLoader(
        dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate_features, threads=num_workers
    )


class _FeatureLoader(DataLoader[dict[str, Any]]):
    """A `DataLoader` whose batches are read ahead by threads.

    Worker processes would pass batches through shared memory, and a Docker container has 64 MB of it by default.
    Features need no decoding, so threads are fast enough.

    Args:
        dataset: features to load.
        threads: number of threads; 0 reads a batch when it is used.
        **keywords: further arguments of `DataLoader`.

    Raises:
        ValueError: the number of threads is negative.
    """

    def __init__(self, dataset: FeatureDataset, *, threads: int, **keywords: Any) -> None:
        if threads < 0:
            raise ValueError(f"num_workers must be at least 0, got {threads}")
        super().__init__(dataset, **keywords)
        self._threads = threads

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # only next() is used
        """Yield the batches in the order of the sampler."""
        if not self._threads:
            return super().__iter__()
        return self._read_ahead()

    def _read_ahead(self) -> Iterator[dict[str, Any]]:
        pending: deque[Any] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="mrad_med-features") as threads:
            try:
                for indices in self.batch_sampler or ():
                    pending.append(threads.submit(self._read, indices))
                    if len(pending) > _BATCHES_AHEAD * self._threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, indices: Sequence[int]) -> dict[str, Any]:
        return collate_features([self.dataset[index] for index in indices])
