"""A path in, results out: the whole toolkit behind one class."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.transforms import Compose

from mrad_med.bundle import find_bundle, plain_errors, read_bundle
from mrad_med.data.loader import CaseDataset, CaseLoader
from mrad_med.data.search import find_cases
from mrad_med.io.frames import close_frames
from mrad_med.io.image import ImageSource
from mrad_med.networks.clip import CLIP
from mrad_med.networks.head_files import load_head
from mrad_med.networks.inferers import SliceAnomalyInferer
from mrad_med.networks.memory_bank import MemoryBank
from mrad_med.networks.mrad import MRAD
from mrad_med.networks.provenance import describe_run
from mrad_med.results.case_result import CaseResult
from mrad_med.results.handlers import ResultCollector
from mrad_med.results.writer import ResultWriter
from mrad_med.transforms.preprocessing import ImageView, build_postprocessing, build_preprocessing
from mrad_med.types import AnomalyKeys, FailedCase

__all__ = ["AnomalyDetector", "Results"]

LOCAL_SHARE = 0.2  # a few local cases count as a fifth of the memory: enough to be seen, not to drown the rest
# Values of a writer that `Results.save` sets, or that are of one run.
_NOT_OF_RESULTS = ("_target_", "output_dir", "provenance", "resume", "take_over", "view")


@dataclass
class Results:
    """The results of a detection, in the order of the cases.

    Attributes:
        cases: one `CaseResult` for each case that could be scored.
        failures: one `FailedCase` for each case that could not.
        provenance: cards, hashes and settings of the run.
        view: how images are seen.
        writing: arguments of `ResultWriter` that `save` uses unless others are given.
    """

    cases: list[CaseResult] = field(default_factory=list)
    failures: list[FailedCase] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    view: ImageView | None = None
    writing: dict[str, Any] = field(default_factory=dict)

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

    def save(self, output_dir: str | os.PathLike[str], **options: Any) -> None:
        """Write files, tables and ``run.json``.

        Args:
            output_dir: folder, made if absent.
            **options: arguments of `ResultWriter`, such as ``write`` and ``threshold``.

        Raises:
            OutputError: the folder cannot be written to.
        """
        known = {"provenance": self.provenance, "view": self.view, **self.writing}
        writer = ResultWriter(output_dir, **{**known, **options})
        try:
            for case in self.cases:
                writer.write(case)
            writer.finish(self.failures)
        finally:
            close_frames()  # outputs show the frames of videos


class AnomalyDetector:
    """Find what does not belong in the images below a path, or in memory.

    Args:
        clip: the backbone.
        bank: the memory bank that the network retrieves from.
        network: any variant of MRAD, built from the two.
        view: how images are seen; `ImageView` with its defaults if None.
        preprocessing: transforms from a case to the network; those of the view if None.
        inferer: how images and volumes pass through the network; `SliceAnomalyInferer` if None.
        postprocessing: transforms from the output of the inferer to the grid of the file; if None, they invert the
            preprocessing.
        batch_size: number of images that are encoded together.
        num_workers: number of workers that read ahead; 0 reads in this process.
        search: arguments of `find_cases`.
        writing: arguments of `ResultWriter`, for the results that are saved.
        settings: further values to record in results.
        training_set: sources that the head was trained on, as in its card.

    Attributes:
        bank: the memory bank in use; `extend_bank` gives a detector with a larger one.
    """

    def __init__(
        self,
        clip: CLIP,
        bank: MemoryBank,
        network: MRAD,
        *,
        view: ImageView | None = None,
        preprocessing: Compose | None = None,
        inferer: Inferer | None = None,
        postprocessing: Compose | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        search: Mapping[str, Any] | None = None,
        writing: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        training_set: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.clip = clip
        self.bank = bank
        self.network = network
        self.view = view or ImageView()
        self.preprocessing = preprocessing or build_preprocessing(clip.card, self.view)
        self.inferer = inferer or SliceAnomalyInferer()
        self.postprocessing = postprocessing or build_postprocessing(self.preprocessing)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.search = dict(search or {})
        self.writing = dict(writing or {})
        self.settings = {"view": self.view, **(settings or {})}
        self.training_set = tuple(training_set)

    @classmethod
    def from_bundle(
        cls, bundle: str | os.PathLike[str] = "mrad_clip", *, profiles: Sequence[str] = (), **overrides: Any
    ) -> AnomalyDetector:
        """Return the detector that a bundle declares in its ``configs/inference.json``.

        Args:
            bundle: a bundle directory, or the name of one of the project's bundles.
            profiles: names of configs for kinds of images: ``"endoscopy"``, ``"volume"`` and ``"sliding"`` are the
                bundle's ``configs/inference_<name>.json``; later ones take precedence over earlier ones.
            **overrides: values of the config, for example ``backbone``, ``memory_bank``, ``checkpoint``, ``device``,
                ``precision``, ``batch_size``.

        Raises:
            FileNotFoundError: there is no such bundle or profile.
            KeyError: an override that the bundle does not know.
            ValueError: the config is of an older version.
        """
        parser = read_bundle(bundle, profiles=profiles, overrides=overrides)
        value = parser.get_parsed_content
        parts = ("view", "preprocessing", "inferer", "postprocessing", "batch_size", "num_workers", "search")
        with plain_errors():
            card = load_head(value("checkpoint"))[1] if "checkpoint" in parser else None
            return cls(
                value("clip"),
                value("bank"),
                value("network_def"),
                **{name: value(name) for name in parts},
                writing={name: value(f"writer#{name}") for name in parser["writer"] if name not in _NOT_OF_RESULTS},
                settings={"bundle": find_bundle(bundle).name, **value("settings")},
                training_set=() if card is None else card.training_set,
            )

    @property
    def provenance(self) -> dict[str, Any]:
        """What results record of this detector: cards, hashes and settings."""
        parts = {
            "head": self.network.get_submodule("head"),
            "preprocessing": self.preprocessing,
            "inferer": self.inferer,
            "postprocessing": self.postprocessing,
        }
        return describe_run(self.clip, self.bank, parts=parts, **self.settings)

    def detect(
        self,
        source: ImageSource | Mapping[str, ImageSource],
        *,
        progress: bool = True,
        **search: Any,
    ) -> Results:
        """Score a file, everything below a folder, or images in memory, and return all results at once.

        The maps of large sets may not fit in memory: `stream` hands them on one by one.

        Args:
            source: a path, see `find_cases`; or an image in memory as `read_image` takes it (an array, a Pillow image,
                a MetaTensor), or several of anything that `read_image` takes, by name.
            progress: whether to show a progress bar.
            **search: arguments of `find_cases` that take precedence over the detector's own, such as
                ``frames_per_second``.

        Raises:
            DatasetError: the path does not exist, or no image is below it.
        """
        if isinstance(source, (str, os.PathLike)):
            cases = find_cases(source, **{**self.search, **search})
        else:
            named = source if isinstance(source, Mapping) else {"image": source}
            cases = [{AnomalyKeys.IMAGE.value: image, AnomalyKeys.CASE_ID.value: name} for name, image in named.items()]
        results = Results(provenance=self.provenance, view=self.view, writing=self.writing)
        results.failures = self.stream(cases, results.cases.append, progress=progress)
        return results

    def stream(
        self,
        cases: Sequence[dict[str, Any]],
        receive: Callable[[CaseResult], None],
        *,
        progress: bool = True,
    ) -> list[FailedCase]:
        """Score cases and hand each result on as it comes.

        Args:
            cases: a datalist, ``{"image": source, "case_id": name}`` each, as `find_cases` makes it.
            receive: called with each result.
            progress: whether to show a progress bar.

        Returns:
            The cases that could not be scored.
        """
        dataset = CaseDataset(cases, self.preprocessing)
        loader = CaseLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers, progress=progress)
        evaluator = SupervisedEvaluator(
            device=next(self.network.parameters()).device,
            val_data_loader=loader,
            network=self.network,
            inferer=self.inferer,
            postprocessing=self.postprocessing,
            val_handlers=[ResultCollector(receive, self.view)],
        )
        try:
            evaluator.run()
        finally:
            close_frames()  # a video that was scored can now be moved or deleted
        return list(loader.failures)

    def extend_bank(
        self, cases: Sequence[Mapping[str, Any]], *, share: float = LOCAL_SHARE, source: str = "local cases"
    ) -> AnomalyDetector:
        """Return a detector that also remembers these labeled cases. Nothing is trained; this one is unchanged.

        Args:
            cases: ``{"image": path, "label": 0 or 1, "mask": path or None}`` each; the mask marks what is anomalous.
            share: smallest share of the memory that is theirs, in [0, 1); see `MemoryBank.extend`.
            source: their name in the bank's card.

        Raises:
            FailedCasesError: an image or mask cannot be used.
        """
        if not cases:
            raise ValueError("give at least one case to remember")
        view = replace(self.view, remove=(), keep_size=False)  # a mask goes with an image that is resized whole
        steps = build_preprocessing(self.clip.card, view, with_mask=True)
        data = [{"case_id": str(case["image"]), "mask": None, **case} for case in cases]
        loader = CaseLoader(CaseDataset(data, steps), batch_size=self.batch_size, progress=False)
        sources = [{"name": source, "images": len(data)}]
        try:
            bank = self.bank.extend(self.clip, loader, share=share, sources=sources, progress=False)
        finally:
            loader.raise_for_failures()
        return self.with_bank(bank)

    def with_bank(self, bank: MemoryBank) -> AnomalyDetector:
        """Return the same detector over another memory bank.

        Raises:
            MemoryBankError: another backbone made the bank.
        """
        bank.check(self.clip.card)
        other = copy.copy(self)
        other.bank, other.network = bank, self.network.with_bank(bank)
        return other
