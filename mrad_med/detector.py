"""Detection of anomalies below a path or in memory: the whole toolkit behind one class."""

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
from mrad_med.types import LOCAL_SHARE, AnomalyKeys, FailedCase

__all__ = ["AnomalyDetector", "Results"]

# Values of a writer that `Results.save` sets, or that belong to one run.
_NOT_OF_RESULTS = ("_target_", "output_dir", "provenance", "resume", "take_over", "view")


@dataclass
class Results:
    """The results of a detection, in the order of the cases.

    Attributes:
        cases: one `CaseResult` for each case that was scored.
        failures: one `FailedCase` for each case that could not be scored.
        nothing_to_score: one `FailedCase` for each case in which all pixels have one value.
        provenance: cards, hashes and settings of the run.
        view: input size, window, plane and further settings of how images are prepared.
        writing: default arguments of `ResultWriter` for `save`.
    """

    cases: list[CaseResult] = field(default_factory=list)
    failures: list[FailedCase] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    view: ImageView | None = None
    writing: dict[str, Any] = field(default_factory=dict)
    nothing_to_score: list[FailedCase] = field(default_factory=list)

    def __iter__(self) -> Iterator[CaseResult]:
        """Iterate over the results of the scored cases."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Return the number of scored cases."""
        return len(self.cases)

    @property
    def scores(self) -> dict[str, float]:
        """Anomaly score by case id."""
        return {case.case_id: case.anomaly_score for case in self.cases}

    def save(self, output_dir: str | os.PathLike[str], **options: Any) -> None:
        """Write files, tables and ``run.json``.

        Args:
            output_dir: folder for the files, created if absent.
            **options: arguments of `ResultWriter`, such as ``write`` and ``threshold``.

        Raises:
            OutputError: the folder cannot be written to.
        """
        known = {"provenance": self.provenance, "view": self.view, **self.writing}
        writer = ResultWriter(output_dir, **{**known, **options})
        try:
            for case in self.cases:
                writer.write(case)
            writer.finish([*self.failures, *self.nothing_to_score])
        finally:
            close_frames()  # overlays have opened the videos


class AnomalyDetector:
    """Detect anomalies in the images below a path, or in images in memory.

    Args:
        clip: backbone.
        bank: memory bank that the network retrieves from.
        network: variant of MRAD, built from the backbone and the memory bank.
        view: input size, window, plane and further settings of how images are prepared; `ImageView()` if None.
        preprocessing: transforms from a case to the input of the network; those of the view if None.
        inferer: inferer that passes images and volumes through the network; `SliceAnomalyInferer()` if None.
        postprocessing: transforms from the output of the inferer to the grid of the file; if None, they invert the
            preprocessing.
        batch_size: number of images that are encoded together.
        num_workers: number of processes that load cases in advance; 0 loads them in this process.
        search: arguments of `find_cases`.
        writing: default arguments of `ResultWriter` for results that are saved.
        settings: further values to record in results.
        training_set: sources that the head was trained on, as in its card.

    Attributes:
        bank: memory bank in use; `extend_bank` returns a detector with a larger one.
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
            bundle: bundle directory, or name of one of the project's bundles.
            profiles: names of profiles: ``"endoscopy"``, ``"volume"`` and ``"sliding"`` are the bundle's
                ``configs/inference_<name>.json``; later ones take precedence over earlier ones.
            **overrides: values of the config, for example ``backbone``, ``memory_bank``, ``checkpoint``, ``device``,
                ``precision``, ``batch_size``. They are used as they are: nothing in a text is evaluated.

        Raises:
            FileNotFoundError: there is no such bundle or profile.
            KeyError: the config has no value with the name of an override.
            ValueError: the config was written for an older version.
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
        """Cards, hashes and settings of this detector, as results record them."""
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
        """Score a file, all images below a folder, or images in memory, and return all results at once.

        The maps of many cases may not fit in memory; use `stream` to receive them one by one.

        Args:
            source: path of a file or folder, see `find_cases`; or an image in memory (array, Pillow image, MetaTensor);
                or a mapping of names to anything that `read_image` accepts.
            progress: whether to show a progress bar.
            **search: arguments of `find_cases`, such as ``frames_per_second``; they take precedence over those of the
                detector.

        Raises:
            DatasetError: the path does not exist, or there is no image below it.
        """
        if isinstance(source, (str, os.PathLike)):
            cases = find_cases(source, **{**self.search, **search})
        else:
            named = source if isinstance(source, Mapping) else {"image": source}
            cases = [{AnomalyKeys.IMAGE.value: image, AnomalyKeys.CASE_ID.value: name} for name, image in named.items()]
        results = Results(provenance=self.provenance, view=self.view, writing=self.writing)
        unscored = self.stream(cases, results.cases.append, progress=progress)
        results.failures = [item for item in unscored if item.is_failure]
        results.nothing_to_score = [item for item in unscored if not item.is_failure]
        return results

    def stream(
        self,
        cases: Sequence[dict[str, Any]],
        receive: Callable[[CaseResult], None],
        *,
        progress: bool = True,
    ) -> list[FailedCase]:
        """Score cases, pass each result to a function, and return the cases without a score.

        These are the cases that failed, and those with one value in all pixels (`FailedCase.status`).

        Args:
            cases: datalist of ``{"image": source, "case_id": name}``, as `find_cases` returns it.
            receive: function that is called with each result.
            progress: whether to show a progress bar.
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
            close_frames()  # scored videos can then be moved or deleted
        return list(loader.failures)

    def extend_bank(
        self, cases: Sequence[Mapping[str, Any]], *, share: float = LOCAL_SHARE, source: str = "local cases"
    ) -> AnomalyDetector:
        """Return a detector whose memory bank also has these labeled cases; nothing is trained.

        This detector is not changed.

        Args:
            cases: mappings ``{"image": path, "label": 0 or 1, "mask": path or None}``; masks mark anomalous pixels.
            share: smallest fraction of the patch entries that come from these cases, in [0, 1); see
                `MemoryBank.extend`.
            source: name of these cases in the card of the bank.

        Raises:
            FailedCasesError: an image or mask cannot be used.
            ValueError: no case is given, or ``share`` is not in [0, 1).
        """
        if not cases:
            raise ValueError("give at least one case to add to the memory bank")
        view = replace(self.view, remove=(), keep_size=False)  # a mask fits the whole, resized image only
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
        """Return the same detector with another memory bank.

        Raises:
            MemoryBankError: the bank was made with another backbone.
        """
        bank.check(self.clip.card)
        other = copy.copy(self)
        other.bank, other.network = bank, self.network.with_bank(bank)
        return other
