"""Evaluation of several bundles on several datasets, with one table for each metric.

Bundles that were trained on medical images have separate tables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from mrad_med.bundle import literal, plain_errors, read_bundle
from mrad_med.data.catalog import DATASETS
from mrad_med.data.datalist import Datalist
from mrad_med.data.public_sets import load_datalist
from mrad_med.errors import FailedCasesError, OutputError
from mrad_med.evaluation.evaluation import Evaluation, evaluate_together
from mrad_med.evaluation.summary import Summary, as_json, benchmark_tables, latex_tables
from mrad_med.files import atomic_path
from mrad_med.networks.clip import CLIP
from mrad_med.networks.head_files import load_head

__all__ = ["run_benchmark"]

logger = logging.getLogger(__name__)

ZERO_SHOT, WITH_MEDICAL = "no medical training data", "with medical training data"


def run_benchmark(
    bundles: Sequence[str | os.PathLike[str]],
    datasets: Mapping[str, str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    medical: Collection[str] = (),
    strict_dataset: bool = False,
    resamples: int = 0,
    seed: int = 0,
    progress: bool = True,
    **overrides: Any,
) -> dict[str, dict[str, dict[str, Summary]]]:
    """Evaluate bundles on datasets, and return the summaries by protocol, bundle and dataset.

    Bundles that share a backbone encode each image once. The function writes ``benchmark.md``, ``.tex`` and ``.json``,
    and the files of `Evaluation` in ``<dataset>/<bundle>/``. An interrupted benchmark resumes when it is run again.

    Args:
        bundles: bundle directories, or names of the project's bundles.
        datasets: folder of each dataset by its name in the catalog.
        output_dir: folder for tables and results, created if absent.
        medical: names of bundles that were trained on medical images although their cards do not state it. A bundle
            whose bank or head was made from a medical dataset of the catalog is always counted as medical.
        strict_dataset: whether problems of a dataset are errors; otherwise they are warnings.
        resamples: number of bootstrap resamples, see `Evaluation`.
        seed: seed of the bootstrap, see `Evaluation`.
        progress: whether to show progress bars.
        **overrides: values of every bundle's ``configs/evaluate.json`` and ``configs/inference.json``.

    Raises:
        ValueError: no bundle or no dataset is given, two bundles have the same name, or ``medical`` names a bundle
            that is not given.
        FailedCasesError: some cases failed; the others are evaluated and the tables are written.
        OutputError: the tables cannot be written.
    """
    if not bundles or not datasets:
        raise ValueError("a benchmark needs at least one bundle and one dataset")
    directories = {Path(bundle).resolve().name: bundle for bundle in bundles}
    if len(directories) != len(bundles):
        raise ValueError("two bundles have the same name: rename one of the directories")
    if unknown := set(medical) - set(directories):
        raise ValueError(f"no bundle is named {', '.join(sorted(unknown))}; the bundles are {', '.join(directories)}")
    cases = {name: load_datalist(name, root, strict=strict_dataset) for name, root in datasets.items()}
    values = {"resamples": resamples, "seed": seed, "progress": progress, **overrides}
    configs = _read(directories, values)
    results: dict[str, dict[str, dict[str, Summary]]] = {}
    problems = []
    saw_medical = {name for name, config in configs.items() if name in medical or _is_medical(config)}
    for dataset, datalist in cases.items():
        evaluations = {
            name: _evaluation(config, dataset, datalist, Path(output_dir) / dataset / name)
            for name, config in configs.items()
        }
        for together in _sharing_an_encoder(evaluations):
            logger.info("%s on %s", ", ".join(together), dataset)
            try:
                evaluate_together([evaluations[name] for name in together])
            except FailedCasesError as error:
                problems.append(f"{dataset}: {error}")
        for name, evaluation in evaluations.items():
            protocol = WITH_MEDICAL if name in saw_medical else ZERO_SHOT
            results.setdefault(protocol, {}).setdefault(name, {})[dataset] = evaluation.summary
    _write(Path(output_dir), results)
    if problems:
        raise FailedCasesError("\n".join(problems))
    return results


def _read(directories: Mapping[str, str | os.PathLike[str]], values: Mapping[str, Any]) -> dict[str, ConfigParser]:
    """Return the evaluation config of each bundle; bundles that declare the same backbone share one object."""
    configs: dict[str, ConfigParser] = {}
    backbones: dict[str, CLIP] = {}
    for name, bundle in directories.items():
        config = read_bundle(bundle, config="evaluate", overrides=values)
        with plain_errors():
            names = [key for key in config["clip"] if key != "_target_"]
            declared = str({key: config.get_parsed_content(f"clip#{key}") for key in names})
            if declared in backbones:
                config["clip"] = backbones[declared]
            backbones[declared] = config.get_parsed_content("clip")
            # Every change of a config discards its instantiated objects. These parts are instantiated only once.
            config.update({part: config.get_parsed_content(part) for part in ("clip", "bank", "network_def")})
        configs[name] = config
    return configs


def _evaluation(config: ConfigParser, dataset: str, cases: Datalist, output_dir: Path) -> Evaluation:
    """Return the evaluation that a bundle declares, for the cases of a dataset."""
    config.update({"dataset_name": literal(dataset), "cases": literal(list(cases)), "output_dir": output_dir})
    with plain_errors():
        evaluation: Evaluation = config.get_parsed_content("evaluation")
    return evaluation


def _sharing_an_encoder(evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """Return groups of names of evaluations; a group has the same encoder and the same input."""
    groups: list[list[str]] = []
    for name, evaluation in evaluations.items():
        group = next((group for group in groups if evaluations[group[0]].shared == evaluation.shared), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def _is_medical(config: ConfigParser) -> bool:
    """Return whether a card names a medical dataset of the catalog, or states that a source is medical."""
    entries = [item for item in DATASETS.values() if item.domain == "medical"]
    names = {name.lower() for item in entries for name in (item.name, item.title)}
    sources = list(config.get_parsed_content("bank").card.sources)
    card = load_head(config.get_parsed_content("checkpoint"))[1] if "checkpoint" in config else None
    sources += [] if card is None else card.training_set
    return any(source.get("domain") == "medical" or str(source.get("name")).lower() in names for source in sources)


def _write(output_dir: Path, results: Mapping[str, Mapping[str, Mapping[str, Summary]]]) -> None:
    head = (
        "Values are percentages. A dataset with several classes has the mean of its classes. Intervals, counts and "
        "hashes are in `<dataset>/<bundle>/metrics.json`. The PRO of 200 thresholds is the one of published tables; it "
        "changes when scores are rescaled."
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
