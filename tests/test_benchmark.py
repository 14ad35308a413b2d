"""Several bundles on several datasets: tables, protocols, shared encoders, and resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monai.bundle import ConfigParser

from mrad_med import Evaluation, ImageView, MemoryBank, benchmark as module, run_benchmark
from mrad_med.benchmark import WITH_MEDICAL, ZERO_SHOT
from mrad_med.errors import FailedCasesError, OutputError
from mrad_med.networks import CLIPImageEncoder
from tests.conftest import TINY_SIZE, make_tiny_clip
from tests.evaluation.test_evaluation import make_set


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return two datasets on disk; they are loaded by their names."""
    cases = {name: make_set(tmp_path / name, count=6, seed=seed) for seed, name in enumerate(("kvasir", "endo"))}
    monkeypatch.setattr(module, "load_datalist", lambda name, *_, **__: cases[name])
    return {name: str(tmp_path / name) for name in cases}


@pytest.fixture
def bundles(
    tiny_bank: MemoryBank, read: list[ConfigParser], monkeypatch: pytest.MonkeyPatch
) -> dict[str, ConfigParser]:
    """Return the configs of bundles by name, as they are read from disk; both declare the same backbone."""
    networks = {"tf": "mrad_med.build_mrad_tf", "ft": "mrad_med.build_mrad_ft"}
    made = {}
    for name, target in networks.items():
        config = ConfigParser(
            {
                "clip": {"_target_": "tests.conftest.make_tiny_clip", "seed": 0},
                "network_def": {"_target_": target, "clip": "@clip", "bank": "@bank"},
                "image_size": TINY_SIZE,
                "file_size": False,
                "view": {"_target_": "mrad_med.ImageView", "image_size": "@image_size"},
                "evaluation": {
                    "_target_": "mrad_med.Evaluation",
                    "network": "@network_def",
                    "cases": "@cases",
                    "card": "$@clip.card",
                    "output_dir": "@output_dir",
                    "provenance": {"settings": {"bundle": name}},
                    "view": "@view",
                    "file_size": "@file_size",
                    "dataset_name": "@dataset_name",
                    "resamples": "@resamples",
                    "seed": "@seed",
                    "progress": "@progress",
                },
            }
        )
        config["bank"] = tiny_bank
        made[name] = config

    def read_bundle(bundle: str, *, config: str, overrides: dict[str, Any]) -> ConfigParser:
        assert config == "evaluate"
        parser = ConfigParser({**made[Path(bundle).name].get(), **overrides})
        read.append(parser)
        return parser

    monkeypatch.setattr(module, "read_bundle", read_bundle)
    return made


@pytest.fixture
def read() -> list[ConfigParser]:
    """Return a list of the configs that were read."""
    return []


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    sizes: list[int] = []
    encode = CLIPImageEncoder.forward
    monkeypatch.setattr(
        CLIPImageEncoder, "forward", lambda self, images: sizes.append(len(images)) or encode(self, images)
    )
    return sizes


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_every_bundle_is_measured_on_every_set_and_each_image_encoded_once(
    tmp_path: Path, sets: dict[str, str], bundles: dict[str, ConfigParser], encoded: list[int], read: list[ConfigParser]
):
    out = tmp_path / "out"
    results = run_benchmark(["tf", "ft"], sets, out, progress=False, seed=3, resamples=20)
    assert sum(encoded) == 2 * 6
    assert read[0]["clip"] is read[1]["clip"]
    assert results.keys() == {ZERO_SHOT}
    assert {name: list(summaries) for name, summaries in results[ZERO_SHOT].items()} == {
        "tf": ["kvasir", "endo"],
        "ft": ["kvasir", "endo"],
    }
    for name in ("tf", "ft"):
        for dataset in sets:
            folder = out / dataset / name
            files = {"cases.csv", "metrics.json", "metrics.md", "records", "run.json"}
            assert {path.name for path in folder.iterdir()} == files
            written = read_json(folder / "metrics.json")
            assert written["settings"]["bundle"] == name
            assert written["intervals"]["drawn"] == {"by": "case", "resamples": 20, "seed": 3}
            assert read_json(out / "benchmark.json")[ZERO_SHOT][name][dataset]["image"] == written["image"]
    page = (out / "benchmark.md").read_text(encoding="utf-8")
    shown = [line.split("|") for line in page.split("**image AUROC**")[1].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in cells[1:-1]] for cells in shown[:3]]
    assert rows[0] == ["network", "kvasir, n = 6", "endo, n = 6", "mean"]
    for row, name in zip(rows[1:], ("tf", "ft"), strict=True):
        summaries = [results[ZERO_SHOT][name][dataset] for dataset in sets]
        values = [100 * summary["image"]["auroc"] for summary in summaries]
        ends = [[100 * summary["intervals"]["image"]["auroc"][end] for end in ("low", "high")] for summary in summaries]
        cells = [f"{value:.1f} ({low:.1f} to {high:.1f})" for value, (low, high) in zip(values, ends, strict=True)]
        assert row == [name, *cells, f"{sum(values) / 2:.1f}"]
    assert "kvasir: **6 images prove nothing**. The widest 95 % interval is" in page
    assert WITH_MEDICAL not in page
    latex = (out / "benchmark.tex").read_text(encoding="utf-8")
    assert latex.startswith(
        f"% Protocol: {ZERO_SHOT}\n% image AUROC, percent, with 95 % intervals\n\\begin{{tabular}}{{lrrr}}"
    )


def test_intervals_are_drawn_as_often_as_in_an_evaluation_by_default(
    tmp_path: Path, sets: dict[str, str], bundles: dict[str, ConfigParser], read: list[ConfigParser]
):
    run_benchmark(["tf"], {"endo": sets["endo"]}, tmp_path / "out", progress=False)
    assert read[0]["resamples"] == 1000
    none = run_benchmark(["tf"], {"endo": sets["endo"]}, tmp_path / "out", progress=False, resamples=0)
    assert none[ZERO_SHOT]["tf"]["endo"]["intervals"] == {}


def test_numbers_are_those_of_a_bundle_alone(tmp_path: Path, sets: dict[str, str], bundles: dict[str, ConfigParser]):
    results = run_benchmark(["tf", "ft"], sets, tmp_path / "out", file_size=True, progress=False)
    network, cases = bundles["ft"].get_parsed_content("network_def"), module.load_datalist("endo")
    alone = Evaluation(
        network,
        cases,
        card=make_tiny_clip().card,
        output_dir=tmp_path / "alone",
        provenance={},
        view=ImageView(image_size=TINY_SIZE),
        file_size=True,
        progress=False,
    ).run()
    for level in ("image", "pixel", "lesion"):
        assert results[ZERO_SHOT]["ft"]["endo"][level] == pytest.approx(alone[level], abs=1e-6)


@pytest.mark.parametrize(
    ("sources", "training_set", "medical", "kept_apart"),
    [
        ([], [], [], False),
        ([{"name": "VisA"}, {"name": "fabric"}], [{"name": "mvtec-ad"}], [], False),
        ([{"name": "Kvasir-SEG"}], [], [], True),
        ([{"name": "clinic", "domain": "medical"}], [], [], True),
        ([], [{"name": "brainmri"}], [], True),
        ([], [], ["tf"], True),
    ],
)
def test_networks_that_saw_medical_images_are_kept_apart(
    tmp_path: Path,
    sets: dict[str, str],
    bundles: dict[str, ConfigParser],
    monkeypatch: pytest.MonkeyPatch,
    sources: list,
    training_set: list,
    medical: list[str],
    kept_apart: bool,
):
    card = SimpleNamespace(sources=sources, to_dict=dict)
    bundles["tf"]["bank"] = SimpleNamespace(card=card, sha256="0")
    bundles["tf"]["network_def"] = bundles["ft"].get_parsed_content("network_def")
    bundles["tf"]["checkpoint"] = "model.pt"
    monkeypatch.setattr(module, "load_head", lambda _: ({}, SimpleNamespace(training_set=training_set)))
    results = run_benchmark(["tf", "ft"], {"endo": sets["endo"]}, tmp_path / "out", medical=medical, progress=False)
    expected = {ZERO_SHOT: ["ft"], WITH_MEDICAL: ["tf"]} if kept_apart else {ZERO_SHOT: ["tf", "ft"]}
    assert {protocol: list(networks) for protocol, networks in results.items()} == expected
    page = (tmp_path / "out" / "benchmark.md").read_text(encoding="utf-8")
    assert page.count("## Protocol: ") == len(expected)


def test_bundles_of_other_inputs_do_not_share(
    tmp_path: Path, sets: dict[str, str], bundles: dict[str, ConfigParser], encoded: list[int]
):
    bundles["ft"]["image_size"] = 42
    run_benchmark(["tf", "ft"], {"endo": sets["endo"]}, tmp_path / "out", progress=False)
    assert sum(encoded) == 2 * 6


def test_a_benchmark_that_was_stopped_resumes(
    tmp_path: Path,
    sets: dict[str, str],
    bundles: dict[str, ConfigParser],
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    expected = run_benchmark(["tf", "ft"], sets, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        keep, kept = Evaluation.keep, []

        def stop(self: Evaluation, case_id: str, record: Any) -> None:
            if len(kept) == 15:  # two records of each of the six cases of the first set, and three more
                raise KeyboardInterrupt
            kept.append(case_id)
            keep(self, case_id, record)

        patch.setattr(Evaluation, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(["tf", "ft"], sets, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "benchmark.md").exists()
    encoded.clear()
    results = run_benchmark(["tf", "ft"], sets, tmp_path / "out", progress=False)
    assert sum(encoded) == 5  # one case of the second set was kept for both, another for one
    for name in ("tf", "ft"):
        for dataset in sets:
            for level in ("image", "pixel"):
                new, old = results[ZERO_SHOT][name][dataset][level], expected[ZERO_SHOT][name][dataset][level]
                assert new == pytest.approx(old, abs=1e-6)


def test_failed_cases_are_reported_at_the_end(tmp_path: Path, sets: dict[str, str], bundles: dict[str, ConfigParser]):
    (tmp_path / "kvasir" / "2.png").write_bytes(b"no image")
    with pytest.raises(FailedCasesError, match=r"^kvasir: 1 of 6 case\(s\) failed, the others are done:\n  2: "):
        run_benchmark(["tf", "ft"], sets, tmp_path / "out", progress=False)
    written = read_json(tmp_path / "out" / "benchmark.json")[ZERO_SHOT]
    assert {name: list(summaries) for name, summaries in written.items()} == {
        "tf": ["kvasir", "endo"],
        "ft": ["kvasir", "endo"],
    }
    assert [item["case_id"] for item in written["tf"]["kvasir"]["failures"]] == ["2"]


def test_benchmarks_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path: Path, sets: dict[str, str]):
    with pytest.raises(ValueError, match="a benchmark needs at least one bundle and one dataset"):
        run_benchmark([], sets, tmp_path / "out")
    with pytest.raises(ValueError, match="a benchmark needs at least one bundle and one dataset"):
        run_benchmark(["tf"], {}, tmp_path / "out")
    with pytest.raises(ValueError, match="two bundles have the same name: rename one of the directories"):
        run_benchmark(["a/tf", "b/tf/"], sets, tmp_path / "out")
    with pytest.raises(ValueError, match="no bundle is named fp; the bundles are tf, ft"):
        run_benchmark(["tf", "ft"], sets, tmp_path / "out", medical=["fp"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, sets: dict[str, str], bundles: dict[str, ConfigParser]
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "benchmark.md").mkdir()
    with pytest.raises(OutputError, match=r"cannot write the tables to .*out"):
        run_benchmark(["tf"], sets, tmp_path / "out", progress=False)
