"""Evaluations of whole sets: numbers, classes, lost cases, interruptions, several networks and several processes."""

from __future__ import annotations

import csv
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import run
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import mrad_med
from mrad_med import (
    CLIP,
    MRAD,
    AnomalyInferer,
    Evaluation,
    ImageView,
    MemoryBank,
    PixelMetrics,
    build_mrad_clip,
    build_mrad_ft,
    build_mrad_tf,
    build_postprocessing,
    build_preprocessing,
    describe_run,
)
from mrad_med.errors import FailedCasesError, OutputError
from mrad_med.evaluation import evaluate_together, evaluation as module
from mrad_med.metrics.image import image_metrics
from mrad_med.networks import CLIPImageEncoder
from mrad_med.store import LOCK_NAME
from tests.conftest import TINY_SIZE, make_tiny_clip, run_in_two_processes

ROOT = Path(__file__).parents[2]
SIZES = ((40, 60), (56, 56), (70, 30))  # rows and columns
Cases = list[dict[str, Any]]


def make_set(folder: Path, *, count: int = 8, classes: Sequence[str] = ("a",), seed: int = 0) -> Cases:
    """Write images of different sizes, every second one with a bright patch and its mask."""
    random = np.random.RandomState(seed)
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for index in range(count):
        rows, columns = SIZES[index % 3]
        label = (index // len(classes)) % 2
        pixels, mask = random.randint(0, 120, (rows, columns, 3), np.uint8), np.zeros((rows, columns), np.uint8)
        if label:
            mask[5 : rows // 2, 3 : 12 + index] = 255
            pixels[mask > 0] += 100
            Image.fromarray(mask).save(folder / f"{index}_mask.png")
        Image.fromarray(pixels).save(folder / f"{index}.png")
        case = {"case_id": f"{index}", "image": str(folder / f"{index}.png"), "label": label}
        cases.append(
            case
            | {"mask": str(folder / f"{index}_mask.png") if label else None, "class": classes[index % len(classes)]}
        )
    return cases


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return make_set(tmp_path / "set")


@pytest.fixture(scope="module")
def network(tiny_clip: CLIP, tiny_bank: MemoryBank) -> MRAD:
    return build_mrad_tf(tiny_clip, tiny_bank, temperature=0.07)


@pytest.fixture
def evaluation(tmp_path: Path, tiny_clip: CLIP, tiny_bank: MemoryBank, network: MRAD):
    """Return what makes an evaluation into a folder of a name."""

    def make(cases: Cases, name: str = "out", *, network: MRAD = network, **keywords: Any) -> Evaluation:
        settings = {
            "card": tiny_clip.card,
            "provenance": describe_run(tiny_clip, tiny_bank),
            "view": ImageView(TINY_SIZE),
        }
        settings |= {"resamples": 0, "progress": False}
        return Evaluation(network, cases, output_dir=tmp_path / name, **{**settings, **keywords})

    return make


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the size of each batch that is encoded."""
    sizes: list[int] = []
    encode = CLIPImageEncoder.forward

    def count(self: CLIPImageEncoder, images: torch.Tensor):
        sizes.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(CLIPImageEncoder, "forward", count)
    return sizes


def plainly(network: MRAD, clip: CLIP, cases: Cases, *, file_size: bool = False) -> list[SimpleNamespace]:
    """Return map, mask and score of each case by the parts that `AnomalyDetector` is made of."""
    steps = build_preprocessing(clip.card, ImageView(image_size=TINY_SIZE))
    restore = build_postprocessing(steps)
    results = []
    for case in cases:
        data = steps({"image": case["image"], "case_id": case["case_id"]})
        output = AnomalyInferer()(data["image"][None], network)
        anomaly_map = output["anomaly_map"][0]
        with Image.open(case["image"]) as image:
            mask = Image.open(case["mask"]) if case["mask"] else Image.new("L", image.size)
        if file_size:
            restored = restore({"image": data["image"], "pred": {"anomaly_map": anomaly_map}})["anomaly_map"]
            anomaly_map = restored.transpose(1, 2)  # files are read column by column
        else:
            mask = mask.resize((TINY_SIZE, TINY_SIZE), Image.Resampling.BILINEAR)
        results.append(
            SimpleNamespace(
                map=np.asarray(anomaly_map)[0], mask=np.asarray(mask) > 127, score=float(output["anomaly_score"])
            )
        )
    return results


def read_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def read_rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def assert_same_numbers(first: dict[str, Any], second: dict[str, Any], tolerance: float = 1e-9) -> None:
    for name in ("image", "pixel", "lesion"):
        assert first[name] == pytest.approx(second[name], abs=tolerance)
    assert first["images"] == second["images"]


# numbers


@pytest.mark.parametrize("file_size", [False, True])
def test_metrics_are_those_of_maps_and_scores_computed_plainly(
    tmp_path: Path, cases: Cases, evaluation, network: MRAD, tiny_clip: CLIP, file_size: bool
):
    summary = evaluation(cases, file_size=file_size).run()
    results = plainly(network, tiny_clip, cases, file_size=file_size)
    scores, labels = [item.score for item in results], [case["label"] for case in cases]
    pixels = PixelMetrics()
    for item in results:
        pixels.update(torch.from_numpy(item.map)[None, None], torch.from_numpy(item.mask)[None, None])
    assert summary["pixel"] == pytest.approx(pixels.compute(), abs=1e-5)
    assert summary["image"] == pytest.approx(image_metrics(torch.tensor(scores), torch.tensor(labels)), abs=1e-5)
    flat_maps, flat_masks = (
        np.concatenate([item.ravel() for item in items])
        for items in zip(*((r.map, r.mask) for r in results), strict=True)
    )
    assert summary["pixel"]["auroc"] == pytest.approx(roc_auc_score(flat_masks, flat_maps), abs=1e-5)
    assert summary["pixel"]["ap"] == pytest.approx(average_precision_score(flat_masks, flat_maps), abs=1e-5)
    assert summary["image"]["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-5)
    rows = read_rows(tmp_path / "out")
    for case, item in zip(cases, results, strict=True):
        row = rows[case["case_id"]]
        assert float(row["anomaly_score"]) == pytest.approx(item.score, abs=1e-5)
        assert float(row["map_maximum"]) == pytest.approx(item.map.max(), abs=1e-5)
        assert int(row["anomalous_pixels"]) == item.mask.sum()
    assert summary["compared_at"] == ("size of the files" if file_size else "56 x 56")


@pytest.mark.parametrize("changed", [{"batch_size": 1}, {"num_workers": 2}])
def test_how_images_are_read_does_not_matter(tmp_path: Path, cases: Cases, evaluation, changed: dict[str, int]):
    expected = evaluation(cases, batch_size=4, file_size=True).run()
    summary = evaluation(cases, "other", file_size=True, **changed).run()
    assert_same_numbers(summary, expected, 1e-5)
    rows, others = read_rows(tmp_path / "out"), read_rows(tmp_path / "other")
    for name, row in rows.items():
        assert float(others[name]["anomaly_score"]) == pytest.approx(float(row["anomaly_score"]), abs=1e-5)


def test_encoders_of_half_precision_are_measured_too(tmp_path: Path, cases: Cases, evaluation, tiny_bank: MemoryBank):
    expected = evaluation(cases).run()
    half = build_mrad_tf(make_tiny_clip(precision="bf16"), tiny_bank, temperature=0.07)
    summary = evaluation(cases, network=half).run()  # in the same folder: its records are others
    assert summary["pixel"]["auroc"] != expected["pixel"]["auroc"]
    assert summary["pixel"]["auroc"] == pytest.approx(expected["pixel"]["auroc"], abs=0.05)
    assert len(list((tmp_path / "out" / "records").iterdir())) == 2 * len(cases)


def test_the_record_of_a_run_says_where_its_numbers_come_from(
    tmp_path: Path, cases: Cases, evaluation, tiny_clip: CLIP, tiny_bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["/somewhere/tool", "--name", "two words"])
    provenance = describe_run(tiny_clip, tiny_bank, variant="MRAD-TF", temperature=0.07)
    summary = evaluation(cases, dataset_name="Kvasir", provenance=provenance, resamples=50, dice_threshold=0.4).run()
    written = read_metrics(tmp_path / "out")
    assert written["dataset"] == {"name": "Kvasir", "title": "Kvasir-SEG", "cases": 8}
    assert written["published"] == {"pixel_auroc": 84.3, "pixel_pro": 52.7}
    assert written["settings"] == {"variant": "MRAD-TF", "temperature": 0.07}
    assert written["memory_bank"]["sha256"] == tiny_bank.sha256
    assert written["backbone"]["name"] == tiny_clip.card.name
    assert written["command"] == "tool --name 'two words'"
    assert written["versions"].keys() >= {"python", "mrad-med", "torch"}
    assert written["processes"] == 1
    assert written["failures"] == []
    assert written["intervals"]["drawn"] == {"by": "case", "resamples": 50, "seed": 0}
    assert 0 <= written["overlap"]["dice"] <= 1
    assert written["image"] == summary["image"]
    assert (tmp_path / "out" / "metrics.md").read_text(encoding="utf-8").startswith("# Kvasir-SEG: MRAD-TF\n")


def test_classes_copies_and_unknown_masks_are_distinguished(tmp_path: Path, evaluation):
    cases = make_set(tmp_path / "set", count=12, classes=("a", "b"))
    Path(cases[6]["image"]).write_bytes(Path(cases[2]["image"]).read_bytes())
    Path(cases[6]["mask"]).write_bytes(Path(cases[2]["mask"]).read_bytes())
    cases[3]["mask"] = None
    summary = evaluation(cases).run()
    assert summary["classes"].keys() == {"a", "b"}
    means = [summary["classes"][name]["image"]["auroc"] for name in "ab"]
    assert summary["class_mean"]["image"]["auroc"] == pytest.approx(np.mean(means))
    assert summary["images"] == {"normal": 6, "anomalous": 6}
    assert summary["without_duplicates"]["images"] == {"normal": 6, "anomalous": 5}
    assert summary["unknown_masks"] == 1
    rows = read_rows(tmp_path / "out")
    assert rows["6"]["duplicate_of"] == "2"
    assert rows["3"]["anomalous_pixels"] == ""


def test_a_set_without_normal_images_is_reported_before_anything_is_encoded(
    tmp_path: Path, evaluation, encoded: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    cases = [case for case in make_set(tmp_path / "set") if case["label"]]
    said_before: list[str] = []
    monkeypatch.setattr(module, "find_duplicates", lambda _: said_before.extend(caplog.messages) or {})
    summary = evaluation(cases).run()
    reason = "4 of 4 images are anomalous"
    assert said_before == [f"image metrics will be undefined: {reason}: normal and anomalous images are needed"]
    assert reason in summary["image"]["undefined"]
    assert 0 < summary["pixel"]["auroc"] < 1
    assert f"Image metrics are undefined: {reason}." in (tmp_path / "out" / "metrics.md").read_text(encoding="utf-8")


def test_an_empty_mask_of_an_anomalous_image_is_named(cases: Cases, evaluation, caplog: pytest.LogCaptureFixture):
    Image.fromarray(np.zeros((56, 56), np.uint8)).save(cases[1]["mask"])
    evaluation(cases).run()
    assert "1: labeled anomalous, but its mask is empty; check the mask" in caplog.messages


# lost cases


def test_bad_files_cost_only_their_cases(tmp_path: Path, cases: Cases, evaluation):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(cases[1]["mask"])
    Path(cases[2]["image"]).write_bytes(b"no image")
    Path(cases[3]["mask"]).unlink()
    Path(cases[4]["image"]).unlink()
    kept = [case for case in cases if case["case_id"] not in "1234"]
    run = evaluation(cases)
    with pytest.raises(FailedCasesError, match=r"4 of 8 case\(s\) failed, the others are done:\n(  \d: .*\n?){4}"):
        run.run()
    reasons = {failure.case_id: failure.reason for failure in run.failures}
    assert reasons.keys() == {"1", "2", "3", "4"}
    assert "its mask is 30 x 20 and the image 56 x 56" in reasons["1"]
    for name, lacking in (("3", "mask"), ("4", "image")):
        assert reasons[name] == f"its {lacking} cannot be read (No such file or directory); look at the path"
    rows = read_rows(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {
        case["case_id"]: "ok" if case in kept else "failed" for case in cases
    }
    assert {name: rows[name]["reason"] for name in reasons} == reasons
    written = read_metrics(tmp_path / "out")
    assert {item["case_id"]: item["reason"] for item in written["failures"]} == reasons
    assert "4 case(s) failed and are left out" in (tmp_path / "out" / "metrics.md").read_text(encoding="utf-8")
    assert_same_numbers(written, evaluation(kept, "kept").run(), 1e-5)
    with pytest.raises(FailedCasesError, match=r"4 of 8 case\(s\) failed"):  # no failure counts twice
        run.run()
    assert len(read_metrics(tmp_path / "out")["failures"]) == 4


def test_a_set_of_which_nothing_can_be_read_has_no_metrics(tmp_path: Path, cases: Cases, evaluation):
    for case in cases:
        Path(case["image"]).write_bytes(b"no image")
    with pytest.raises(FailedCasesError, match=r"8 of 8 case\(s\) failed"):
        evaluation(cases, resamples=10).run()
    written = read_metrics(tmp_path / "out")
    assert all("undefined" in written[level] for level in ("image", "pixel", "lesion"))
    assert {row["status"] for row in read_rows(tmp_path / "out").values()} == {"failed"}


def test_networks_that_give_nan_are_refused(cases: Cases, evaluation, network: MRAD, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        network.head, "image_probability", lambda features: torch.full((len(features.image), 1), np.nan)
    )
    with pytest.raises(ValueError, match="the network returns NaN: use precision='fp32'"):
        evaluation(cases).run()


def test_a_set_without_cases_and_a_folder_that_cannot_be_written_to_are_refused(tmp_path: Path, cases, evaluation):
    with pytest.raises(ValueError, match="there are no cases to evaluate"):
        evaluation([])
    with pytest.raises(ValueError, match="two cases have the same case_id: give each its own"):
        evaluation([*cases, {**cases[1], "mask_threshold": 0}])
    with pytest.raises(ValueError, match="dice_threshold must be a number from 0 to 1, as anomaly values are; got 50"):
        evaluation(cases, dice_threshold=50)
    with pytest.raises(ValueError, match="image_size must be a multiple of the patch size 14, got 50"):
        evaluation(cases, view=ImageView(50))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OutputError, match=r"cannot write to .*file.*choose another folder"):
        evaluation(cases, "file")


def test_errors_of_measuring_reach_the_caller(cases: Cases, evaluation, monkeypatch: pytest.MonkeyPatch):
    def fail(*_, **__):
        raise MemoryError("of the measuring thread")

    monkeypatch.setattr(module.SetMeasurement, "add", fail)
    with pytest.raises(MemoryError, match="of the measuring thread"):
        evaluation(cases).run()


def test_few_cases_wait_to_be_measured(tmp_path: Path, evaluation, monkeypatch: pytest.MonkeyPatch):
    cases = make_set(tmp_path / "set", count=12)
    expected = evaluation(cases).run()
    monkeypatch.setattr(module, "_AHEAD", 2)
    done: list[str] = []
    add = module.SetMeasurement.add
    load = module.RecordStore.load
    waiting: list[int] = []
    monkeypatch.setattr(
        module.SetMeasurement,
        "add",
        lambda self, case, *a, **k: add(self, case, *a, **k) or done.append(case["case_id"]),
    )
    loaded: list[Path] = []

    def count(self, path: Path):
        loaded.append(path)
        waiting.append(len(loaded) - len(done))
        return load(self, path)

    monkeypatch.setattr(module.RecordStore, "load", count)
    assert_same_numbers(evaluation(cases).run(), expected)
    assert max(waiting[: len(cases)]) <= 2 + 2


# interruptions


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), RuntimeError("device lost")])
def test_a_run_that_was_stopped_is_resumed(
    tmp_path: Path, cases: Cases, evaluation, encoded: list[int], interruption: BaseException
):
    expected = evaluation(cases, "whole", batch_size=2).run()
    stopped = evaluation(cases, batch_size=2)
    score = stopped.score

    def stop(features, masks):
        if len(list((tmp_path / "out").rglob("*.safetensors"))) >= 3:
            raise interruption
        return score(features, masks)

    stopped.score = stop
    with pytest.raises(type(interruption)):
        stopped.run()
    done = len(list((tmp_path / "out" / "records").iterdir()))
    assert 3 <= done < len(cases)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["records", "run.json"]
    run = read_run(tmp_path / "out")
    assert (run["complete"], run["cases"]) == (False, {"total": 8, "failed": 0})
    assert run["not_reached"]["count"] == len(run["not_reached"]["cases"]) <= len(cases) - 2
    assert all(
        path.suffix == ".safetensors" and path.name[0] != "." for path in (tmp_path / "out" / "records").iterdir()
    )
    encoded.clear()
    summary = evaluation(cases, batch_size=2).run()
    run = read_run(tmp_path / "out")
    assert (run["complete"], run["not_reached"]) == (True, {"count": 0, "cases": []})
    assert sum(encoded) == len(cases) - done
    assert_same_numbers(read_metrics(tmp_path / "out"), expected)
    assert_same_numbers(summary, expected)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "whole")


def test_a_finished_run_is_measured_again_without_the_encoder(
    tmp_path: Path, cases: Cases, evaluation, monkeypatch: pytest.MonkeyPatch
):
    expected = evaluation(cases).run()
    monkeypatch.setattr(CLIPImageEncoder, "forward", None)
    moved = [{**case, "image": shutil_move(case["image"]), "class": "renamed"} for case in cases]
    summary = evaluation(moved, inferer=AnomalyInferer(image_weight=1.0), dice_threshold=0.5).run()
    assert summary["pixel"] == expected["pixel"]
    assert summary["image"]["auroc"] == pytest.approx(
        roc_auc_score(
            [case["label"] for case in cases],
            [float(read_rows(tmp_path / "out")[case["case_id"]]["image_probability"]) for case in cases],
        )
    )


def shutil_move(path: str) -> str:
    return str(Path(path).rename(Path(path).with_name(f"moved {Path(path).name}")))


def test_what_changed_is_scored_again_and_nothing_else(
    cases: Cases,
    evaluation,
    encoded: list[int],
    tiny_clip: CLIP,
    tiny_bank: MemoryBank,
    caplog: pytest.LogCaptureFixture,
):
    def scored(cases: Cases, **keywords: Any) -> int:
        encoded.clear()
        evaluation(cases, **keywords).run()
        return sum(encoded)

    assert scored(cases) == 8
    assert scored(cases) == 0
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(cases[0]["image"])
    assert scored(cases) == 1
    Image.fromarray(np.full((56, 56), 255, np.uint8)).save(cases[1]["mask"])
    assert scored(cases) == 1
    assert scored([cases[0], {**cases[1], "mask_threshold": 0}, *cases[2:]]) == 1
    assert scored(cases, file_size=True) == 8
    assert scored(cases, view=ImageView(42)) == 8
    assert scored(cases, network=build_mrad_tf(tiny_clip, tiny_bank, temperature=0.08)) == 8
    assert scored(cases, network=build_mrad_ft(tiny_clip, tiny_bank, seed=1)) == 8
    assert scored(cases, batch_size=3, provenance={"settings": {"name": "other"}}) == 0
    assert scored(cases, network=build_mrad_tf(tiny_clip, tiny_bank, temperature=0.07, sigma=1.0)) == 0
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_damaged_record_is_made_again_with_a_warning(
    tmp_path: Path, cases: Cases, evaluation, encoded: list[int], caplog: pytest.LogCaptureFixture
):
    expected = evaluation(cases).run()
    damaged = sorted((tmp_path / "out" / "records").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    encoded.clear()
    assert_same_numbers(evaluation(cases).run(), expected, 1e-6)
    assert encoded == [1]
    assert f"{damaged.name} is damaged: its case is scored again" in caplog.messages


def test_a_record_that_disappears_is_an_error(cases: Cases, evaluation):
    run = evaluation(cases)
    run.run()
    for path in (run.output_dir / "records").iterdir():
        path.unlink()
    with pytest.raises(OSError, match="the record of 0 is missing in the output: run again"):
        next(run.records(cases))


def read_run(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_case_that_changes_while_it_is_read_is_scored_once_more(
    cases: Cases, evaluation, encoded: list[int], name: str
):
    run = evaluation(cases)
    score, path = run.score, Path(cases[1][name])

    def change(features, masks):
        if not run.score.changed:
            run.score.changed = True
            replace_pixels(path)
        return score(features, masks)

    change.changed = False
    run.score = change
    summary = run.run()
    assert sum(encoded) == len(cases) + 1
    assert_same_numbers(summary, evaluation(cases, "as it is now").run())
    encoded.clear()
    evaluation(cases).run()
    assert encoded == []


def replace_pixels(path: Path) -> None:
    """Replace an image by another one of the same name, size in pixels and time of change."""
    before, stat = np.asarray(Image.open(path)), path.stat()
    Image.fromarray(255 - before).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_case_that_changes_twice_is_refused(tmp_path: Path, cases: Cases, evaluation):
    run = evaluation(cases)
    score = run.score
    run.score = lambda features, masks: replace_pixels(Path(cases[1]["image"])) or score(features, masks)
    with pytest.raises(
        FailedCasesError, match=r"1 of 8 case\(s\) failed.*\n  1: its image or mask changed twice while"
    ):
        run.run()
    assert read_rows(tmp_path / "out")["1"]["status"] == "failed"
    assert read_run(tmp_path / "out")["complete"] is True


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path, cases: Cases, evaluation):
    run = evaluation(cases)
    lock = tmp_path / "out" / LOCK_NAME
    lock.write_text('{"host": "elsewhere", "pid": 4711}', encoding="utf-8")
    with pytest.raises(OutputError, match="is being written to by process 4711 on elsewhere: wait until"):
        run.run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_NAME]
    evaluation(cases, take_over=True).run()
    assert not lock.exists()


# several networks


def test_networks_that_share_an_encoder_encode_each_image_once(
    tmp_path: Path, cases: Cases, evaluation, tiny_clip: CLIP, tiny_bank: MemoryBank, encoded: list[int]
):
    Path(cases[2]["image"]).write_bytes(b"no image")
    networks = {
        "tf": build_mrad_tf(tiny_clip, tiny_bank, temperature=0.07),
        "ft": build_mrad_ft(tiny_clip, tiny_bank, seed=1),
        "clip": build_mrad_clip(tiny_clip, tiny_bank, seed=1),
    }
    together = [evaluation(cases, name, network=network) for name, network in networks.items()]
    with pytest.raises(FailedCasesError, match=r"^1 of 8 case\(s\) failed"):
        evaluate_together(together)
    assert sum(encoded) == 7
    for name, item in zip(networks, together, strict=True):
        with pytest.raises(FailedCasesError, match="1 of 8"):
            evaluation(cases, f"{name} alone", network=networks[name]).run()
        alone = read_metrics(tmp_path / f"{name} alone")
        assert_same_numbers(read_metrics(tmp_path / name), alone, 1e-6)
        assert_same_numbers(item.summary, alone, 1e-6)
        assert [failure.case_id for failure in item.failures] == ["2"]
    assert len({item.summary["pixel"]["ap"] for item in together}) == 3


def test_a_network_that_joins_later_is_scored_without_touching_the_others(
    tmp_path: Path, cases: Cases, evaluation, tiny_clip: CLIP, tiny_bank: MemoryBank, encoded: list[int]
):
    expected = evaluation(cases, "tf").run()
    records = {path: path.stat().st_size for path in (tmp_path / "tf" / "records").iterdir()}
    joined = evaluation(cases, "ft", network=build_mrad_ft(tiny_clip, tiny_bank, seed=1))
    again = evaluation(cases, "tf")
    evaluate_together([again, joined])
    assert sum(encoded) == 2 * len(cases)
    assert {path: path.stat().st_size for path in (tmp_path / "tf" / "records").iterdir()} == records
    assert_same_numbers(again.summary, expected, 1e-6)


def test_evaluations_that_cannot_share_are_refused(cases: Cases, evaluation, tiny_bank: MemoryBank):
    first = evaluation(cases)
    other_encoder = build_mrad_tf(make_tiny_clip(), tiny_bank)
    others = [
        evaluation(cases, "other", network=other_encoder),
        evaluation(cases[1:], "other"),
        evaluation(cases, "other", file_size=True),
        evaluation(cases, "other", view=ImageView(42)),
        evaluation(cases, "other", view=ImageView(TINY_SIZE, max_pixels=10_000)),
    ]
    for other in others:
        with pytest.raises(ValueError, match="must have the same encoder, cases, preprocessing and file_size"):
            evaluate_together([first, other])
    with pytest.raises(ValueError, match="must have different output folders"):
        evaluate_together([first, evaluation(cases)])


# several processes


def evaluate_in_one_of_two(rank: int, configs: list[str], folder: Path, settings: dict[str, Any]) -> None:
    """Evaluate a bundle as process ``rank`` of two and write down the error that would end it."""
    try:
        run(config_file=configs, output_dir=str(folder / "two"), **settings)
        error = ""
    except RuntimeError as raised:  # MONAI's own, which says where in the configuration it was
        error = f"{type(raised.__cause__).__name__}: {raised.__cause__}"
    (folder / f"error_{rank}").write_text(error, encoding="utf-8")


def test_two_processes_measure_what_one_does(tmp_path: Path):
    folder = Path(mrad_med.write_sample_dataset(tmp_path / "set", count=2))
    (folder / "normal" / "broken.png").write_bytes(b"no image")
    (folder / "normal" / "copy.png").write_bytes((folder / "normal" / "phantom_0.png").read_bytes())
    bundle = ROOT / "bundles" / "mrad_tf"
    names = ("inference", "evaluate", "multi_gpu_evaluate")
    configs = [str(bundle / "configs" / f"{name}.json") for name in names]
    settings = {"bundle_root": str(bundle), "dataset_dir": str(folder)}
    settings |= {"image_size": 126, "batch_size": 1, "resamples": 50}
    run_in_two_processes(evaluate_in_one_of_two, configs, tmp_path, settings)
    errors = [(tmp_path / f"error_{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
    assert errors[0].startswith("FailedCasesError: 1 of 6 case(s) failed, the others are done:")
    assert "normal/broken: not an image" in errors[0]
    assert errors[1] == ""  # one there would end the first before that has written everything
    workflow = mrad_med.BundleWorkflow(configs[:2], output_dir=str(tmp_path / "one"), device="cpu", **settings)
    workflow.initialize()
    with pytest.raises(FailedCasesError, match=r"1 of 6 case\(s\) failed"):
        workflow.run()
    two, one = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")
    assert (two["processes"], one["processes"]) == (2, 1)
    assert_same_numbers(two, one, 1e-5)
    assert_same_numbers(two["without_duplicates"], one["without_duplicates"], 1e-5)
    assert two["failures"] == one["failures"]
    assert two["intervals"]["image"]["auroc"] == pytest.approx(one["intervals"]["image"]["auroc"], abs=1e-5)
    assert two["intervals"]["pixel"]["ap"] == pytest.approx(one["intervals"]["pixel"]["ap"], abs=1e-4)
    rows = [read_rows(tmp_path / name) for name in ("two", "one")]
    assert [list(item) for item in rows] == [[*sorted(rows[1].keys() - {"normal/broken"}), "normal/broken"]] * 2
    assert not list(tmp_path.rglob(".partial*"))
