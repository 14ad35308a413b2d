"""A case with one value in all pixels is reported as such: no score, no map, no mask, and no failure."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from mrad_med import CLIP, AnomalyDetector, ImageView, MemoryBank, build_mrad_tf, make_phantom
from mrad_med.cli import main
from mrad_med.results import ResultWriter
from mrad_med.types import FailedCase
from tests.conftest import TINY_SIZE
from tests.small_dicom import write_series

ONE_VALUE = "all its pixels have one value; check the file"
SMALL = ["--image_size", "70", "--device", "cpu"]


@pytest.fixture
def detector(tiny_clip: CLIP, tiny_bank: MemoryBank) -> AnomalyDetector:
    network = build_mrad_tf(tiny_clip, tiny_bank, temperature=0.1)
    return AnomalyDetector(tiny_clip, tiny_bank, network, batch_size=2, view=ImageView(image_size=TINY_SIZE))


def write_folder(folder: Path) -> Path:
    """Write four constant cases of different kinds, and one photograph."""
    folder.mkdir()
    Image.fromarray(make_phantom((40, 60))[0]).save(folder / "photo.png")
    Image.new("L", (40, 30), 128).save(folder / "gray.png")
    Image.new("RGB", (40, 30), (200, 30, 10)).save(folder / "red.jpg")
    tifffile.imwrite(folder / "deep.tiff", np.full((30, 40), 1000, np.uint16))
    air = nibabel.Nifti1Image(np.full((20, 24, 6), -1024, np.int16), np.eye(4))
    nibabel.save(air, folder / "air.nii.gz")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def record(out: Path) -> Any:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def test_constant_images_of_all_kinds_have_no_result_and_are_no_failures(detector: AnomalyDetector, tmp_path: Path):
    results = detector.detect(write_folder(tmp_path / "in"), progress=False)
    assert [case.case_id for case in results] == ["photo"]
    assert results.failures == []
    assert results.nothing_to_score == [
        FailedCase(name, ONE_VALUE, "", "nothing to score") for name in ("air", "deep", "gray", "red")
    ]
    results.save(tmp_path / "out", write=["tiff", "nifti", "mask", "overlay"], threshold=0.0)
    written = {path.name for path in (tmp_path / "out").rglob("*.*") if path.parent != tmp_path / "out"}
    assert written == {"photo.tiff", "photo.png"}
    rows = {row["case_id"]: row for row in table(tmp_path / "out" / "scores.csv")}
    assert {name: row["status"] for name, row in rows.items() if name != "photo"} == dict.fromkeys(
        ("air", "deep", "gray", "red"), "nothing to score"
    )
    assert {column: text for column, text in rows["gray"].items() if text} == {
        "case_id": "gray",
        "status": "nothing to score",
        "reason": ONE_VALUE,
    }
    assert record(tmp_path / "out")["cases"] == {"total": 5, "ok": 1, "failed": 0, "nothing_to_score": 4}
    assert record(tmp_path / "out")["nothing_to_score"][2] == {"case_id": "gray", "reason": ONE_VALUE}
    assert record(tmp_path / "out")["failures"] == []


def test_padding_around_one_value_is_nothing_to_score(detector: AnomalyDetector, tmp_path: Path):
    values = np.full((20, 24, 4), 40)
    values[:3] = -2000
    write_series(tmp_path / "padded", values, PixelPaddingValue=-2000, PixelRepresentation=1)
    results = detector.detect(tmp_path, progress=False)
    assert [item.reason for item in results.nothing_to_score] == [ONE_VALUE]


def test_a_window_that_saturates_all_pixels_is_named(detector: AnomalyDetector, tmp_path: Path):
    values = np.random.RandomState(0).randint(1000, 2000, (20, 24, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "bone.nii")
    detector = AnomalyDetector(
        detector.clip, detector.bank, detector.network, view=ImageView(image_size=TINY_SIZE, window="brain")
    )
    (item,) = detector.detect(tmp_path, progress=False).nothing_to_score
    assert item.reason == "each of its slices shows one gray value or color in this window; try another --window"


def test_constant_slices_have_no_score_no_mask_and_no_panel(detector: AnomalyDetector, tmp_path: Path):
    values = np.random.RandomState(0).rand(20, 24, 6).astype(np.float32)
    values[..., 1], values[..., 4] = 0.25, 1.0
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "volume.nii")
    results = detector.detect(tmp_path / "volume.nii", progress=False)
    (case,) = results
    assert np.isnan(case.slice_scores).nonzero()[0].tolist() == [1, 4]
    assert case.anomaly_score == pytest.approx(np.nanmax(case.slice_scores))
    assert set(case.rank_slices(results.view).order[-2:]) == {1, 4}
    scored = case.anomaly_map[..., [0, 2, 3, 5]]
    assert case.anomaly_map[..., [1, 4]].max() <= scored.min()
    assert case.anomaly_map[..., [1, 4]].min() > scored.min() - 0.01  # colors keep the range of the other slices
    results.save(tmp_path / "out", write=["mask", "montage"], threshold=0.0)
    mask = nibabel.load(tmp_path / "out" / "masks" / "volume.nii.gz").get_fdata()
    assert mask.any((0, 1)).tolist() == [True, False, True, True, False, True]
    rows = table(tmp_path / "out" / "slices.csv")
    assert [row["status"] for row in rows] == ["ok", "nothing to score", "ok", "ok", "nothing to score", "ok"]
    assert {column: text for column, text in rows[1].items() if text} == {
        "case_id": "volume",
        "slice": "1",
        "position_mm": "1.0",
        "status": "nothing to score",
    }
    assert [float(rows[index]["score"]) for index in (0, 2, 3, 5)] == pytest.approx(case.slice_scores[[0, 2, 3, 5]])


def test_the_other_slices_are_scored_as_if_constant_ones_were_absent(detector: AnomalyDetector):
    values = np.random.RandomState(0).rand(20, 24, 8).astype(np.float32)
    values[..., 0], values[..., 7] = values.min(), values.max()
    (whole,) = detector.detect(values, progress=False)
    (part,) = detector.detect(values[..., 1:7], progress=False)
    np.testing.assert_allclose(whole.slice_scores[1:7], part.slice_scores, atol=2e-3)  # percentiles differ a little


def test_a_run_that_is_repeated_keeps_such_a_case_as_finished(detector: AnomalyDetector, tmp_path: Path):
    cases = [{"image": str(write_folder(tmp_path / "in") / "gray.png"), "case_id": "gray", "study": "exam"}]
    blank = [FailedCase("gray", ONE_VALUE, "exam", "nothing to score")]
    writer = ResultWriter(tmp_path / "out", resume=True)
    assert writer.pending(cases) == cases
    writer.finish(blank)
    again = ResultWriter(tmp_path / "out", resume=True)
    assert again.pending(cases) == []
    again.finish()
    assert (again.nothing_to_score, again.failures) == (blank, [])
    assert record(tmp_path / "out")["complete"]
    assert table(tmp_path / "out" / "studies.csv") == [
        {
            "study": "exam",
            "cases": "0",
            "failed": "0",
            "nothing_to_score": "1",
            "anomaly_score": "",
            "highest_case": "",
        }
    ]
    Image.fromarray(make_phantom((40, 60))[0]).save(tmp_path / "in" / "gray.png")
    changed = ResultWriter(tmp_path / "out", resume=True)
    assert changed.pending(cases) == cases
    changed.finish(is_whole=False)


@pytest.mark.usefixtures("embedded_is_loaded")
def test_a_black_frame_does_not_keep_a_video_from_being_finished(tmp_path: Path):
    pytest.importorskip("av")
    pages = [Image.fromarray(make_phantom((40, 60), seed=seed)[0]) for seed in (0, 1)]
    pages.insert(1, Image.new("RGB", (60, 40)))
    pages[0].save(tmp_path / "exam.tiff", save_all=True, append_images=pages[1:])
    arguments = [str(tmp_path / "exam.tiff"), "--bundle", "mrad_tf", "--out", str(tmp_path / "out"), *SMALL]
    assert main(["detect", *arguments]) == 0
    assert record(tmp_path / "out")["cases"] == {"total": 3, "ok": 2, "failed": 0, "nothing_to_score": 1}
    assert (tmp_path / "out" / "videos" / "exam.mp4").exists()
    finished = (tmp_path / "out" / "finished.jsonl").read_bytes()
    assert main(["detect", *arguments]) == 0
    assert (tmp_path / "out" / "finished.jsonl").read_bytes() == finished


@pytest.mark.usefixtures("embedded_is_loaded")
def test_the_command_lists_such_cases_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = write_folder(tmp_path / "in"), tmp_path / "out"
    command = ["detect", str(folder), "--out", str(out), "--bundle", "mrad_tf", *SMALL]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1 of 5 case(s) scored, 4 with nothing to score, results in" in printed
    assert f"nothing to score in gray: {ONE_VALUE}" in printed
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "5 of 5 case(s) are finished already" in printed
    assert "1 of 5 case(s) scored, 4 with nothing to score" in printed
    (folder / "bad.png").write_bytes(b"no image")
    assert main(command) == 1
