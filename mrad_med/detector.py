"""A path in, results out: the whole toolkit behind one class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer

from mrad_med.bundle import find_bundle, plain_errors, read_bundle
from mrad_med.data.loader import CaseDataset, CaseLoader
from mrad_med.data.search import find_cases
from mrad_med.io.frames import close_frames
from mrad_med.io.image import ImageSource
from mrad_med.io.limits import MAX_PIXELS
from mrad_med.networks.clip import CLIP
from mrad_med.networks.head_files import load_head
from mrad_med.networks.inferers import SliceAnomalyInferer
from mrad_med.networks.memory_bank import MemoryBank
from mrad_med.networks.mrad import MRAD
from mrad_med.networks.provenance import describe_run
from mrad_med.results.case_result import CaseResult
from mrad_med.results.handlers import ResultCollector
from mrad_med.results.writer import ResultWriter
from mrad_med.transforms.preprocessing import PictureLoader, build_postprocessing, build_preprocessing
from mrad_med.types import IMAGE_SIZE, AnomalyKeys, FailedCase

__all__ = ["AnomalyDetector", "Results"]

LOCAL_SHARE = 0.2  # a few local cases count as a fifth of the memory: enough to be seen, not to drown the rest


@dataclass
class Results:
    """The results of a detection, in the order of the cases.

    Attributes:
        cases: one `CaseResult` per case that could be scored.
        failures: one `FailedCase` per case that could not.
        provenance: cards, hashes and settings of the run.
        pictures: how sources are shown; by default as `build_preprocessing` does.
        result_settings: what `save` writes unless told otherwise, as options of `ResultWriter`.
    """

    cases: list[CaseResult] = field(default_factory=list)
    failures: list[FailedCase] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    pictures: PictureLoader | None = None
    result_settings: dict[str, Any] = field(default_factory=dict)

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
        """Write files, tables and ``run.json``; the options (``write``, ``threshold``, ...) are of `ResultWriter`."""
        known = {"provenance": self.provenance, "pictures": self.pictures, **self.result_settings}
        writer = ResultWriter(output_dir, **{**known, **options})
        for case in self.cases:
            writer.write(case)
        writer.finish(self.failures)


class AnomalyDetector:
    """Find what does not belong in the images below a path, or in memory.

    Args:
        clip: the backbone.
        bank: the memory the network retrieves from.
        network: any variant of MRAD, built from the two.
        inferer: how images and volumes pass through the network.
        image_size: side of the network's square input in pixels.
        batch_size: images that are encoded together.
        num_workers: processes that read ahead; 0 reads in this one.
        max_pixels: pictures with more pixels are refused.
        search: options of `find_cases`.
        options: of `build_preprocessing`: ``window``, ``plane``, ``remove``, ``keep_size``, ``strict``.
        result_settings: what a bundle says of results, for who writes them: ``write``, ``threshold``, ...
        settings: further values to record in results.
        training_set: what the head was trained on, as its card has it; empty where nothing is known.

    Attributes:
        bank: the memory bank in use; `extend_bank` gives a detector with a larger one.
    """

    def __init__(
        self,
        clip: CLIP,
        bank: MemoryBank,
        network: MRAD,
        *,
        inferer: Inferer | None = None,
        image_size: int = IMAGE_SIZE,
        batch_size: int = 4,
        num_workers: int = 0,
        max_pixels: int = MAX_PIXELS,
        search: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        result_settings: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        training_set: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.clip = clip
        self.bank = bank
        self.network = network
        self.inferer = inferer or SliceAnomalyInferer()
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.settings = {"image_size": image_size, **(settings or {})}
        self.max_pixels = max_pixels
        self.training_set = tuple(training_set)
        self.search = dict(search or {})
        self.options = dict(options or {})
        self.result_settings = dict(result_settings or {})
        self.preprocessing = build_preprocessing(
            clip.card, image_size=image_size, max_pixels=max_pixels, **self.options
        )
        shown = {name: self.options[name] for name in ("window", "plane", "strict") if name in self.options}
        self.pictures = PictureLoader(**shown)

    @classmethod
    def from_bundle(
        cls, bundle: str | os.PathLike[str] = "mrad_clip", *, profiles: Sequence[str] = (), **overrides: Any
    ) -> AnomalyDetector:
        """Return the detector a bundle describes.

        Args:
            bundle: a bundle directory, or the name of one of the project's bundles.
            profiles: settings for kinds of images that the bundle has, by name: ``"endoscopy"``, ``"volume"`` and
                ``"sliding"`` are its ``configs/inference_<name>.json``; later ones come before earlier ones.
            **overrides: values of the bundle's ``configs/inference.json``, for example ``backbone``, ``memory_bank``,
                ``checkpoint``, ``device``, ``precision``, ``batch_size``.

        Raises:
            FileNotFoundError: there is no such bundle or profile.
            KeyError: an override that the bundle does not know.
        """
        parser = read_bundle(bundle, profiles=profiles, overrides=overrides)
        names = (
            *("clip", "bank", "network_def", "inferer", "image_size", "batch_size", "num_workers", "max_pixels"),
            *("search", "options", "result_settings"),
        )
        with plain_errors():
            clip, bank, network, *values = (parser.get_parsed_content(name) for name in names)
            settings = {"bundle": find_bundle(bundle).name, **parser.get_parsed_content("settings")}
            card = load_head(parser.get_parsed_content("checkpoint"))[1] if "checkpoint" in parser else None
        if overrides:
            settings["overrides"] = {name: str(value) for name, value in overrides.items()}
        if profiles:
            settings["profiles"] = list(profiles)
        parts = dict(zip(names[3:], values, strict=True))
        training_set = () if card is None else card.training_set
        return cls(clip, bank, network, **parts, settings=settings, training_set=training_set)

    @property
    def provenance(self) -> dict[str, Any]:
        """What results record of this detector: cards, hashes and settings."""
        return describe_run(self.clip, self.bank, **self.settings)

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
            **search: options of `find_cases` that come before the detector's own, such as ``frames_per_second``.

        Raises:
            DatasetError: the path does not exist, or no image is below it.
        """
        if isinstance(source, (str, os.PathLike)):
            cases = find_cases(source, **{**self.search, **search})
        else:
            named = source if isinstance(source, Mapping) else {"image": source}
            cases = [{AnomalyKeys.IMAGE.value: image, AnomalyKeys.CASE_ID.value: name} for name, image in named.items()]
        results = Results(provenance=self.provenance, pictures=self.pictures, result_settings=self.result_settings)
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
            postprocessing=build_postprocessing(self.preprocessing),
            val_handlers=[ResultCollector(receive, self.pictures)],
        )
        try:
            evaluator.run()
        finally:
            close_frames()  # for somebody may want to move or delete a video that was scored
        return list(loader.failures)

    def extend_bank(
        self, cases: Sequence[Mapping[str, Any]], *, share: float = LOCAL_SHARE, source: str = "local cases"
    ) -> AnomalyDetector:
        """Return a detector that also remembers these labelled cases. Nothing is trained; this one is unchanged.

        Args:
            cases: ``{"image": path, "label": 0 or 1, "mask": path or None}`` each; the mask marks what is anomalous.
            share: of the memory that they have at least, in [0, 1); see `MemoryBank.extend`.
            source: their name in the bank's card.

        Raises:
            FailedCasesError: an image or mask cannot be used.
        """
        if not cases:
            raise ValueError("give at least one case to remember")
        steps = build_preprocessing(
            self.clip.card,
            image_size=self.image_size,
            with_mask=True,
            max_pixels=self.max_pixels,
            window=self.options.get("window", "auto"),  # cases are remembered as they will be seen
        )
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
        return AnomalyDetector(
            self.clip,
            bank,
            self.network.with_bank(bank),
            inferer=self.inferer,
            image_size=self.image_size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            max_pixels=self.max_pixels,
            search=self.search,
            options=self.options,
            result_settings=self.result_settings,
            settings=self.settings,
            training_set=self.training_set,
        )
