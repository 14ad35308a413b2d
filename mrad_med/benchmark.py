"""Several bundles on several sets: one table for each metric, networks that saw medical images kept apart."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrad_med.data.catalog import DATASETS
from mrad_med.data.datalist import Datalist
from mrad_med.data.public_sets import load_datalist
from mrad_med.detector import AnomalyDetector
from mrad_med.errors import FailedCasesError, OutputError
from mrad_med.evaluation.evaluation import Evaluation, evaluate_together
from mrad_med.evaluation.summary import Summary, as_json, benchmark_tables, latex_tables
from mrad_med.files import atomic_path

__all__ = ["run_benchmark"]

logger = logging.getLogger(__name__)

ZERO_SHOT, WITH_MEDICAL = "no medical training data", "with medical training data"


def run_benchmark(
    bundles: Sequence[str | os.PathLike[str]],
    datasets: Mapping[str, str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    medical: Collection[str] = (),
    strict: bool = False,
    file_size: bool = False,
    resamples: int = 0,
    seed: int = 0,
    progress: bool = True,
    **overrides: Any,
) -> dict[str, dict[str, dict[str, Summary]]]:
    """Evaluate bundles on sets; bundles that share a backbone encode each image once.

    Writes ``benchmark.md``, ``.tex`` and ``.json``, and in ``<set>/<bundle>/`` what `Evaluation` writes. A
    benchmark that was interrupted goes on where it stopped.

    Args:
        bundles: directories, or names of the project's bundles.
        datasets: names of the catalog to where they are unpacked.
        output_dir: made if absent.
        medical: names of the bundles that saw medical images in training, where their cards do not tell. A bundle whose
            bank or head is of a medical set of the catalog counts as one of them anyway.
        strict: problems of a set are errors.
        file_size: as in `Evaluation`.
        resamples: as in `Evaluation`.
        seed: as in `Evaluation`.
        progress: whether to show progress bars.
        **overrides: values of every bundle's ``configs/inference.json``.

    Returns:
        Protocol, bundle and set to the summary.

    Raises:
        ValueError: there is no bundle or no set, two bundles have the same name, or ``medical`` names another one.
        FailedCasesError: some cases failed; everything else is done.
    """
    if not bundles or not datasets:
        raise ValueError("a benchmark needs at least one bundle and one set")
    directories = {Path(bundle).resolve().name: bundle for bundle in bundles}
    if len(directories) != len(bundles):
        raise ValueError("two bundles have the same name: rename one of the directories")
    if unknown := set(medical) - set(directories):
        raise ValueError(f"no bundle is named {', '.join(sorted(unknown))}; there are {', '.join(directories)}")
    cases = {name: load_datalist(name, root, strict=strict) for name, root in datasets.items()}
    detectors = {name: AnomalyDetector.from_bundle(bundle, **overrides) for name, bundle in directories.items()}
    results: dict[str, dict[str, dict[str, Summary]]] = {}
    problems = []
    saw_medical = {name for name, item in detectors.items() if name in medical or _is_medical(item)}
    measuring = {"file_size": file_size, "resamples": resamples, "seed": seed, "progress": progress}
    for dataset, datalist in cases.items():
        for together in _sharing_an_encoder(detectors):
            logger.info("%s on %s", ", ".join(together), dataset)
            evaluations = [
                _evaluation(detector, datalist, Path(output_dir) / dataset / name, dataset=dataset, **measuring)
                for name, detector in together.items()
            ]
            try:
                evaluate_together(evaluations)
            except FailedCasesError as error:
                problems.append(f"{dataset}: {error}")
            for name, evaluation in zip(together, evaluations, strict=True):
                protocol = WITH_MEDICAL if name in saw_medical else ZERO_SHOT
                results.setdefault(protocol, {}).setdefault(name, {})[dataset] = evaluation.summary
    _write(Path(output_dir), results)
    if problems:
        raise FailedCasesError("\n".join(problems))
    return results


def _evaluation(detector: AnomalyDetector, cases: Datalist, output_dir: Path, **measuring: Any) -> Evaluation:
    return Evaluation(
        detector.network,
        cases,
        card=detector.clip.card,
        output_dir=output_dir,
        provenance=detector.provenance,
        inferer=detector.inferer,
        options=detector.options,
        image_size=detector.image_size,
        batch_size=detector.batch_size,
        num_workers=detector.num_workers,
        max_pixels=detector.max_pixels,
        **measuring,
    )


def _sharing_an_encoder(detectors: Mapping[str, AnomalyDetector]) -> list[dict[str, AnomalyDetector]]:
    """Return groups of detectors with the same encoder and input, made to use one and the same object."""
    groups: dict[tuple[Any, ...], dict[str, AnomalyDetector]] = {}
    for name, detector in detectors.items():
        encoder = detector.network.image_encoder
        device, reading = (
            next(encoder.parameters()).device,
            (detector.image_size, detector.max_pixels, str(detector.options)),
        )
        group = groups.setdefault((detector.clip.card, encoder.precision, device, reading), {})
        if group:  # nothing holds on to the detector's own encoder then
            detector.clip = next(iter(group.values())).clip
            detector.network.image_encoder = detector.clip.image_encoder
        group[name] = detector
    return list(groups.values())


def _is_medical(detector: AnomalyDetector) -> bool:
    """Tell whether the cards name a medical set of the catalog, or say themselves that a source is medical."""
    entries = [item for item in DATASETS.values() if item.domain == "medical"]
    names = {name.lower() for item in entries for name in (item.name, item.title)}
    sources = (*detector.bank.card.sources, *detector.training_set)
    return any(source.get("domain") == "medical" or str(source.get("name")).lower() in names for source in sources)


def _write(output_dir: Path, results: Mapping[str, Mapping[str, Mapping[str, Summary]]]) -> None:
    head = (
        "Percent; of sets with several classes the mean of their classes. Intervals, counts and hashes are in "
        "`<set>/<bundle>/metrics.json`. The PRO by 200 thresholds is the one of the literature's tables; it changes "
        "when scores are rescaled."
    )
    pages = [f"## Protocol: {protocol}\n\n{benchmark_tables(tables)}" for protocol, tables in results.items()]
    sources = [f"% Protocol: {protocol}\n{latex_tables(tables)}" for protocol, tables in results.items()]
    try:
        for name, text in (
            ("benchmark.md", "\n".join([f"# Benchmark\n\n{head}\n", *pages])),
            ("benchmark.tex", "\n".join(sources)),
            ("benchmark.json", as_json(results)),
        ):
            with atomic_path(output_dir / name) as partial:
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the tables to {output_dir}: {error}") from error
