"""Load cases in batches; a file that cannot be read fails only its own case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from monai.data import Dataset, list_data_collate
from tqdm.auto import tqdm

from mrad_med.data.workers import TIME_LIMIT, LostItem, load_ahead
from mrad_med.errors import FailedCasesError, ImageFileError, NothingToScoreError
from mrad_med.types import FAILED, NOTHING_TO_SCORE, AnomalyKeys, FailedCase

__all__ = ["CaseDataset", "CaseLoader"]

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A MONAI dataset that returns a `FailedCase`, instead of an exception, for a case that cannot be loaded.

    Args:
        data: a datalist; each item has ``"case_id"`` and ``"image"``.
        transform: preprocessing of one case.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable[[Any], Any]) -> None:
        super().__init__(data, transform)

    def __getitem__(self, index: int) -> dict[str, Any] | FailedCase:
        """Return the preprocessed case, or a `FailedCase` with the reason."""
        case = self.data[index]
        try:
            result: dict[str, Any] = self.transform(dict(case))
        except Exception as error:  # libraries raise anything on a damaged file; the other cases continue
            return FailedCase(case[AnomalyKeys.CASE_ID], *_reason(error, case.get(AnomalyKeys.STUDY, "")))
        return result


def _reason(error: BaseException, study: str) -> tuple[str, str, str]:
    """Return this project's message from MONAI's chain of causes, or the type of an unforeseen error.

    The study and the status follow, as in `FailedCase`.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImageFileError):
            return str(cause), study, NOTHING_TO_SCORE if isinstance(cause, NothingToScoreError) else FAILED
        error, cause = cause, cause.__cause__
    return f"unforeseen {type(error).__name__} while loading; please report it", study, FAILED


class CaseLoader:
    """Yield batches of cases with equal shape, and collect the failed cases.

    Consecutive images of equal shape are batched. Each volume is a batch. The loader has no length, because the number
    of batches depends on which files can be read.

    Args:
        dataset: usually a `CaseDataset`; a `FailedCase` among its items is moved to ``failures``, also one that has
            nothing to score.
        batch_size: largest number of images in a batch.
        num_workers: number of processes that read ahead, without shared memory; 0 reads in this process.
        progress: whether to show a progress bar, which counts images and slices.
        time_limit: seconds that a process may spend on a case; ignored if ``num_workers`` is 0.

    Attributes:
        failures: cases of the last pass that failed or have nothing to score (`FailedCase.status`); always the same
            list, filled during iteration.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int = 4,
        num_workers: int = 0,
        progress: bool = True,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers (--jobs) must be at least 0, got {num_workers}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.progress = progress
        self.time_limit = time_limit
        self.failures: list[FailedCase] = []

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """The items of the datalist by case id."""
        return {case[AnomalyKeys.CASE_ID]: case for case in self.dataset.data}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield collated batches in the order of the dataset."""
        self.failures.clear()
        # Time grows with the number of images, so a volume counts as its slices once it is loaded.
        total = len(self.dataset)
        with (
            closing(self._items()) as items,  # also stops the processes if the caller stops early
            tqdm(total=total, desc="images", unit="image", disable=not self.progress) as bar,
        ):
            for batch in self._batches(items, bar):
                yield list_data_collate(batch)
                bar.update(sum(map(_count_images, batch)))

    def _items(self) -> Generator[dict[str, Any] | FailedCase, None, None]:
        """Yield the items of the dataset in order; a case whose process ended is a `FailedCase`."""
        if self.num_workers == 0:
            for index in range(len(self.dataset)):
                yield self.dataset[index]
            return
        for item in load_ahead(self.dataset, num_workers=self.num_workers, time_limit=self.time_limit):
            if isinstance(item, LostItem):
                case = self.dataset.data[item.index]
                yield FailedCase(case[AnomalyKeys.CASE_ID], item.reason, case.get(AnomalyKeys.STUDY, ""))
            else:
                yield item

    def _batches(self, cases: Iterable[dict[str, Any] | FailedCase], bar: Any) -> Iterator[list[dict[str, Any]]]:
        """Yield consecutive cases of equal shape together; each volume is a batch."""
        batch: list[dict[str, Any]] = []
        for case in cases:
            if isinstance(case, FailedCase):
                logger.warning("%s: %s: %s", case.case_id, "left out" if case.is_failure else case.status, case.reason)
                self.failures.append(case)
                bar.update()
                continue
            image = case[AnomalyKeys.IMAGE]
            if batch and (image.ndim == 4 or image.shape != batch[0][AnomalyKeys.IMAGE].shape):
                yield batch
                batch = []
            batch.append(case)
            bar.total += _count_images(case) - 1
            if image.ndim == 4 or len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def raise_for_failures(self) -> None:
        """Raise an error at the end of a run if cases failed, so the exit status is not 0.

        Raises:
            FailedCasesError: cases failed; the message lists them with reasons.
        """
        raise_for_failures(self.failures, len(self.dataset))


def raise_for_failures(failures: Sequence[FailedCase], total: int) -> None:
    """Raise a `FailedCasesError` that lists the failed cases, if there are any.

    Cases that have nothing to score are not failures.
    """
    failures = [failure for failure in failures if failure.is_failure]
    if failures:
        names = "\n".join(f"  {failure.case_id}: {failure.reason}" for failure in failures)
        raise FailedCasesError(f"{len(failures)} of {total} case(s) failed, the others are done:\n{names}")


def _count_images(case: Mapping[str, Any]) -> int:
    image = case[AnomalyKeys.IMAGE]
    return int(image.shape[-1]) if image.ndim == 4 else 1
