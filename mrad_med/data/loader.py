"""Cases in batches, where a bad file costs only itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from monai.data import Dataset, list_data_collate
from tqdm.auto import tqdm

from mrad_med.data.workers import TIME_LIMIT, LostItem, load_ahead
from mrad_med.errors import FailedCasesError, ImageFileError
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["CaseDataset", "CaseLoader"]

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """A MONAI dataset that answers a case which cannot be loaded with a `FailedCase` instead of an exception.

    Args:
        data: a datalist; each item has ``"case_id"`` and ``"image"``.
        transform: the preprocessing.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable[[Any], Any]) -> None:
        super().__init__(data, transform)

    def __getitem__(self, index: int) -> dict[str, Any] | FailedCase:
        """Return the preprocessed case, or why there is none."""
        case = self.data[index]
        try:
            result: dict[str, Any] = self.transform(dict(case))
        except Exception as error:  # whatever a damaged file makes a library raise, the other cases go on
            return FailedCase(case[AnomalyKeys.CASE_ID], _reason(error), case.get(AnomalyKeys.STUDY, ""))
        return result


def _reason(error: BaseException) -> str:
    """Return the project's own message at the root of MONAI's chain, or the kind of an unforeseen error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImageFileError):
            return str(cause)
        error, cause = cause, cause.__cause__
    return f"unforeseen {type(error).__name__} while loading; please report it"


class CaseLoader:
    """Iterate over batches of equally shaped cases; keep the failed ones for the end.

    Images of one shape are batched; a volume makes a batch of its own. It has no length: how many batches there are
    depends on what can be read.

    Args:
        dataset: usually a `CaseDataset`; items that are a `FailedCase` are set aside.
        batch_size: images in a batch, at most.
        num_workers: processes that read ahead; 0 reads in this one. They use no shared memory.
        progress: whether to show a progress bar over cases.
        time_limit: seconds that a process may take for a case; no limit applies without such processes.

    Attributes:
        failures: the failed cases of the last pass; one list object, filled while iterating.
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
        """The items of the datalist by their names."""
        return {case[AnomalyKeys.CASE_ID]: case for case in self.dataset.data}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield collated batches in the order of the dataset."""
        self.failures.clear()
        # What takes time is pictures, so that these are counted: of a volume its slices, as soon as it is known.
        total = len(self.dataset)
        with (
            closing(self._items()) as items,  # stops the processes also where not all batches are asked for
            tqdm(total=total, desc="pictures", unit="picture", disable=not self.progress) as bar,
        ):
            for batch in self._batches(items, bar):
                yield list_data_collate(batch)
                bar.update(sum(map(_pictures, batch)))

    def _items(self) -> Generator[dict[str, Any] | FailedCase, None, None]:
        """Yield the items of the dataset in order; a case whose process was lost is a failed one."""
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
        """Yield cases of one shape together; a volume by itself."""
        batch: list[dict[str, Any]] = []
        for case in cases:
            if isinstance(case, FailedCase):
                logger.warning("%s: left out: %s", case.case_id, case.reason)
                self.failures.append(case)
                bar.update()
                continue
            image = case[AnomalyKeys.IMAGE]
            if batch and (image.ndim == 4 or image.shape != batch[0][AnomalyKeys.IMAGE].shape):
                yield batch
                batch = []
            batch.append(case)
            bar.total += _pictures(case) - 1
            if image.ndim == 4 or len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def raise_for_failures(self) -> None:
        """Say at the end of a run that cases failed, in a way that reaches the exit status.

        Raises:
            FailedCasesError: names the cases.
        """
        raise_for_failures(self.failures, len(self.dataset))


def raise_for_failures(failures: Sequence[FailedCase], total: int) -> None:
    """Raise a `FailedCasesError` that names the cases, if there are any."""
    if failures:
        names = "\n".join(f"  {failure.case_id}: {failure.reason}" for failure in failures)
        raise FailedCasesError(f"{len(failures)} of {total} case(s) failed, the others are done:\n{names}")


def _pictures(case: Mapping[str, Any]) -> int:
    image = case[AnomalyKeys.IMAGE]
    return int(image.shape[-1]) if image.ndim == 4 else 1
