"""Ignite handlers: metrics of an evaluator's output. Results are tested with their writer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrad_med import FailedCase, MetricsSaver, OutputError, PixelMetrics


def engine_with(maps: torch.Tensor, masks: torch.Tensor, scores: list[float], labels: list[int]) -> SimpleNamespace:
    """Return an engine in the state after one decollated batch."""
    batch = [{"mask": mask, "label": label} for mask, label in zip(masks, labels, strict=True)]
    output = [
        {"anomaly_map": anomaly_map, "anomaly_score": torch.tensor([score])}
        for anomaly_map, score in zip(maps, scores, strict=True)
    ]
    return SimpleNamespace(state=SimpleNamespace(batch=batch, output=output))


@pytest.fixture
def maps_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.zeros(3, 1, 8, 8)
    masks[0, :, :4, :4] = 1
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), masks


def written(saver: MetricsSaver) -> dict:
    saver(None)
    return json.loads((saver.output_dir / "metrics.json").read_text(encoding="utf-8"))


def test_metrics_are_those_of_the_whole_set(tmp_path: Path, maps_and_masks: tuple[torch.Tensor, torch.Tensor]):
    maps, masks = maps_and_masks
    failures = [FailedCase("bad", "the file is empty")]
    saver = MetricsSaver(tmp_path / "new", provenance={"settings": {"temperature": 1}}, failures=failures)
    saver.update(engine_with(maps[:2], masks[:2], [0.9, 0.2], [1, 0]))
    saver.update(engine_with(maps[2:], masks[2:], [0.4], [0]))
    record = written(saver)
    expected = PixelMetrics()
    expected.update(maps, masks)
    assert record["pixel"] == pytest.approx(expected.compute())
    assert record["image"] == {"auroc": 1.0, "ap": 1.0}
    assert record["images"] == {"normal": 2, "anomalous": 1}
    assert record["settings"] == {"temperature": 1}
    assert record["failures"] == [{"case_id": "bad", "reason": "the file is empty"}]


def test_undefined_metrics_give_the_reason_instead_of_a_number(
    tmp_path: Path, maps_and_masks: tuple[torch.Tensor, torch.Tensor]
):
    maps, masks = maps_and_masks
    saver = MetricsSaver(tmp_path)
    saver.update(engine_with(maps[1:], masks[1:], [0.1, 0.2], [0, 0]))
    record = written(saver)
    assert "0 anomalous" in record["pixel"]["undefined"]
    assert "0 of 2 images" in record["image"]["undefined"]


def test_a_case_whose_mask_is_not_known_counts_at_image_level_only(
    tmp_path: Path, maps_and_masks: tuple[torch.Tensor, torch.Tensor]
):
    maps, masks = maps_and_masks
    masks = masks.clone()
    masks[2] = float("nan")
    saver = MetricsSaver(tmp_path)
    saver.update(engine_with(maps, masks, [0.9, 0.2, 0.8], [1, 0, 1]))
    record = written(saver)
    expected = PixelMetrics()
    expected.update(maps[:2], masks[:2])
    assert record["pixel"] == pytest.approx(expected.compute())
    assert record["images"] == {"normal": 1, "anomalous": 2}


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_run_and_named_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OutputError, match=r"cannot write to .*file.*; choose another folder"):
        MetricsSaver(tmp_path / "file")
    saver = MetricsSaver(tmp_path / "out")

    def fill_the_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OutputError, match=r"cannot write the metrics to .*No space left"):
        saver(None)
    assert list((tmp_path / "out").iterdir()) == []
