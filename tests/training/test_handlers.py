"""Handlers of training: metrics, checkpoints that a killed run resumes from, early stopping."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from sklearn.metrics import average_precision_score, roc_auc_score

from mrad_med import CLIP, EarlyStop, ImageMetricHandler, PixelMetricHandler, PixelMetrics, build_mrad_ft
from mrad_med.errors import TrainingError
from mrad_med.training import FeatureDataset
from tests.conftest import make_tiny_text_encoder
from tests.training_runs import STAGES, TrainingRun, bank_of, make_run, write_features

both_stages = pytest.mark.parametrize("stage", STAGES)


class Killed(BaseException):
    """What ends a run at once, as a signal does."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_clip: CLIP) -> FeatureDataset:
    return write_features(tmp_path_factory.mktemp("features"), tiny_clip)


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory, tiny_clip: CLIP) -> FeatureDataset:
    return write_features(tmp_path_factory.mktemp("features"), tiny_clip, count=6, seed=2)


def kill_in_epoch(run: TrainingRun, epoch: int) -> None:
    def kill(engine: Engine) -> None:
        if engine.state.epoch == epoch:
            raise Killed

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    with pytest.raises(Killed):
        run.trainer.run()


def assert_equal_bits(given: Any, expected: Any) -> None:
    """Compare what a state dict may hold."""
    if isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for name in expected:
            assert_equal_bits(given[name], expected[name])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(given, expected)
    else:
        assert given == expected


def scripted_metric(run: TrainingRun, values: list[float]) -> None:
    """Let validation find these values, one an epoch, in place of the measured ones."""

    def replace(engine: Engine) -> None:
        engine.state.metrics["pixel_auroc"] = values[engine.state.epoch - 1]

    # MONAI compares metrics at the end of the epoch, after ignite has computed them.
    events = run.evaluator._event_handlers[Events.EPOCH_COMPLETED]
    run.evaluator.add_event_handler(Events.EPOCH_COMPLETED, replace)
    position = next(i for i, item in enumerate(events) if item[0].__name__ == "_compare_metrics")
    events.insert(position, events.pop())


@both_stages
@pytest.mark.parametrize("epoch", [2, 4])
def test_a_killed_training_ends_like_an_uninterrupted_one_bit_by_bit(
    stage: str, epoch: int, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset, validation: FeatureDataset
):
    whole = make_run(stage, tmp_path / "whole", tiny_clip, dataset, max_epochs=4, validation=validation)
    whole.trainer.run()
    killed = make_run(stage, tmp_path / "killed", tiny_clip, dataset, max_epochs=4, validation=validation)
    kill_in_epoch(killed, epoch)
    torch.manual_seed(1000 + epoch)  # the resuming process has another random state
    other = build_mrad_ft(tiny_clip, bank_of(tiny_clip, dataset)).head  # the checkpoint brings its own stage 1
    keywords = {"fine_tuned": other} if stage == "prompts" else {}
    resumed = make_run(stage, tmp_path / "killed", tiny_clip, dataset, max_epochs=4, validation=validation, **keywords)
    with torch.no_grad():
        for tensor in resumed.network.head.learned_state().values():
            tensor.add_(1)
    epochs: list[int] = []
    resumed.trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
    resumed.trainer.run()
    assert epochs == list(range(epoch, 5))
    assert_equal_bits(resumed.weights, whole.weights)
    assert_equal_bits(
        torch.load(resumed.checkpoint.path, weights_only=True), torch.load(whole.checkpoint.path, weights_only=True)
    )
    for path in (whole.checkpoint.path, whole.checkpoint.best_path):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
    assert resumed.evaluator.state.best_metric == whole.evaluator.state.best_metric
    assert resumed.evaluator.state.best_metric_epoch == whole.evaluator.state.best_metric_epoch


@both_stages
def test_a_training_that_is_complete_is_not_repeated(
    stage: str, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    first, second = (make_run(stage, tmp_path, tiny_clip, dataset, max_epochs=2) for _ in range(2))
    first.trainer.run()
    before = first.checkpoint.path.read_bytes()
    steps: list[int] = []
    second.trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: steps.append(engine.state.iteration))
    second.trainer.run()
    assert steps == []
    assert_equal_bits(second.weights, first.weights)
    assert second.checkpoint.path.read_bytes() == before
    assert second.evaluator.state.best_metric == first.evaluator.state.best_metric


def test_a_complete_training_may_be_given_more_epochs(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    make_run("fine_tune", tmp_path / "a", tiny_clip, dataset, max_epochs=1).trainer.run()
    longer = make_run("fine_tune", tmp_path / "a", tiny_clip, dataset, max_epochs=3)
    longer.trainer.run()
    assert longer.trainer.state.iteration == 9


@both_stages
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_fewer_epochs_than_the_checkpoint_has_are_refused(
    stage: str, max_epochs: int, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    make_run(stage, tmp_path, tiny_clip, dataset, max_epochs=4).trainer.run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = make_run(stage, tmp_path, tiny_clip, dataset, max_epochs=max_epochs)
    with pytest.raises(
        TrainingError,
        match=rf"last\.pt holds a training of 4 epoch\(s\), more than max_epochs={max_epochs}: set at",
    ):
        run.trainer.run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fewer_epochs_are_welcome_where_the_checkpoint_has_not_come_so_far(
    tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset, caplog: pytest.LogCaptureFixture
):
    kill_in_epoch(make_run("prompts", tmp_path / "killed", tiny_clip, dataset, max_epochs=5), 3)
    run = make_run("prompts", tmp_path / "killed", tiny_clip, dataset, max_epochs=3)
    with caplog.at_level("INFO", logger="mrad_med.training.handlers"):
        run.trainer.run()
    assert "resumed after epoch 2 of 3" in caplog.text
    whole = make_run("prompts", tmp_path / "whole", tiny_clip, dataset, max_epochs=3)
    whole.trainer.run()
    assert_equal_bits(run.weights, whole.weights)


@both_stages
def test_a_training_saved_twice_has_the_same_bytes(
    stage: str, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    for name in ("a", "b"):
        make_run(stage, tmp_path / name, tiny_clip, dataset, max_epochs=2).trainer.run()
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_best_epochs_weights_are_in_the_head_and_on_disk_at_the_end(
    tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    run, after = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=4), []
    scripted_metric(run, [0.5, 0.9, 0.7, 0.9])
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: after.append(run.weights))
    run.trainer.run()
    assert run.evaluator.state.best_metric_epoch == 2  # of two that are equally good, the first
    assert_equal_bits(run.weights, after[1])
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert_equal_bits(best, after[1])
    assert_equal_bits(last["best_head"], after[1])
    assert_equal_bits(last["head"], after[3])
    again = build_mrad_ft(tiny_clip, bank_of(tiny_clip, dataset), checkpoint=best)
    assert_equal_bits(again.head.learned_state(), after[1])


def test_the_last_weights_stay_where_validation_is_undefined(
    tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset, caplog: pytest.LogCaptureFixture
):
    normal, after = dataset.subset(range(0, 12, 2)), []
    run = make_run("fine_tune", tmp_path, tiny_clip, dataset, validation=normal)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: after.append(run.weights))
    EarlyStop(run.evaluator, patience=1).attach(run.trainer)
    with caplog.at_level(logging.WARNING, logger="mrad_med"):
        run.trainer.run()
    assert np.isnan(run.evaluator.state.metrics["pixel_auroc"])
    assert "pixel metrics are undefined: 0 anomalous" in caplog.text
    assert len(after) == 3
    assert_equal_bits(run.weights, after[2])
    assert not (tmp_path / "best.pt").exists()


def test_a_checkpoint_needs_neither_validation_nor_schedule(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    for _ in range(2):
        run = make_run("fine_tune", tmp_path / "unused", tiny_clip, dataset, max_epochs=2)
        run.checkpoint.path = tmp_path / "last.pt"
        run.checkpoint.evaluator = run.checkpoint.lr_scheduler = None
        run.trainer.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best_head"] is None


def test_a_resumed_training_may_begin_to_be_validated(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    first = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1)
    first.checkpoint.evaluator = None
    first.trainer.run()
    second = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=2)
    second.trainer.run()
    assert second.trainer.state.iteration == 6
    assert second.evaluator.state.best_metric_epoch == 2


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(
    damage, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    run = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1)
    run.trainer.run()
    damaged = damage(run.checkpoint.path.read_bytes())
    run.checkpoint.path.write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"last\.pt is damaged; delete it to train from the start"):
        make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1).trainer.run()
    assert run.checkpoint.path.read_bytes() == damaged


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    def run(**keywords: Any) -> None:
        identity = {"backbone": "a", "memory_bank": "b", "seed": 0} | keywords.pop("identity", {})
        subset = keywords.pop("subset", dataset)
        make_run("fine_tune", tmp_path, tiny_clip, subset, max_epochs=1, identity=identity, **keywords).trainer.run()

    run()
    for name in ("backbone", "memory_bank", "seed"):
        with pytest.raises(TrainingError, match=f"belongs to another training: {name} differ"):
            run(identity={name: "other"})
    with pytest.raises(TrainingError, match="belongs to another training: optimizer differ"):
        run(learning_rate=1e-3)
    with pytest.raises(TrainingError, match="belongs to another training: epoch_length differ"):
        run(batch_size=6)
    with pytest.raises(TrainingError, match="belongs to another training: depth, epoch_length differ"):
        run(subset=dataset.subset(range(4)), identity={"depth": 6})
    run()


def test_a_checkpoint_of_prompts_for_another_text_tower_is_refused(
    tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    make_run("prompts", tmp_path, tiny_clip, dataset, max_epochs=1).trainer.run()
    other = dataclasses.replace(tiny_clip, text_encoder=make_tiny_text_encoder(seed=9))
    with pytest.raises(TrainingError, match="belongs to another training: text_tower differ"):
        make_run("prompts", tmp_path, other, dataset, max_epochs=1).trainer.run()


def test_a_checkpoint_of_the_other_stage_is_refused(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1).trainer.run()
    with pytest.raises(TrainingError, match="belongs to another training: text_tower differ"):
        make_run("prompts", tmp_path, tiny_clip, dataset, max_epochs=1).trainer.run()


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_leaves_the_checkpoint_before(
    error: Exception, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset, monkeypatch: pytest.MonkeyPatch
):
    make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1).trainer.run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fill_the_disk(_: Any, stream: Any) -> None:
        stream.write(b"half")
        raise error

    with monkeypatch.context() as context:
        context.setattr(torch, "save", fill_the_disk)
        with pytest.raises(OSError, match=r"cannot write .*\.pt .*free some space or choose another folder"):
            make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=2).trainer.run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=2).trainer.run()


def test_weights_that_became_nan_are_not_saved(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    run = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1)
    run.checkpoint.evaluator = None
    run.trainer.run()
    before = run.checkpoint.path.read_bytes()
    with torch.no_grad():
        run.network.head.image_key.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="weights became NaN or infinite in epoch 1: lower the learning rate"):
        run.checkpoint.save(run.trainer)
    assert run.checkpoint.path.read_bytes() == before


@pytest.mark.parametrize(
    ("patience", "values", "epochs"),
    [(1, [0.5, 0.6, 0.6, 0.9], 3), (2, [0.5, 0.4, 0.3, 0.9], 3), (2, [0.5, 0.4, 0.6, 0.5], 4)],
)
def test_training_stops_when_validation_has_not_become_better(
    patience: int, values: list[float], epochs: int, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    run = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=4)
    scripted_metric(run, values)
    EarlyStop(run.evaluator, patience=patience).attach(run.trainer)
    run.trainer.run()
    assert run.trainer.state.epoch == epochs
    assert_equal_bits(run.weights, torch.load(tmp_path / "best.pt", weights_only=True))


def test_early_stopping_survives_a_resumption(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    values, epochs = [0.9, 0.5, 0.5, 0.5, 0.5, 0.5], []
    for stops in (2, None, None):
        run = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=6)
        scripted_metric(run, values)
        EarlyStop(run.evaluator, patience=3).attach(run.trainer)
        if stops is not None:
            kill_in_epoch(run, stops)
        else:
            run.trainer.run()
        epochs.append(run.trainer.state.epoch)
    assert epochs == [2, 4, 4]  # killed, stopped, still stopped
    assert_equal_bits(run.weights, torch.load(tmp_path / "best.pt", weights_only=True))


def test_patience_must_be_an_epoch():
    with pytest.raises(ValueError, match="patience must be at least 1 epoch, got 0"):
        EarlyStop(SimpleNamespace(), patience=0)


def measure(metric: PixelMetricHandler | ImageMetricHandler, batches: list[tuple[dict, dict]]) -> float:
    """Return what a metric says of predictions and targets that come in batches."""
    outputs = iter(batches)
    engine = Engine(lambda *_: dict(zip(("pred", "label"), next(outputs), strict=True)))
    metric.attach(engine, "metric")
    return engine.run(range(len(batches))).metrics["metric"]


def make_batches(*, unknown: bool = False) -> list[tuple[dict, dict]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in (3, 2, 1):
        maps = (torch.rand(size, 1, 24, 20, generator=generator) * 8).round() / 8  # some are equal
        masks = (torch.rand(size, 1, 24, 20, generator=generator) < 0.3).float()
        if unknown:
            masks[0] = torch.nan
        prediction = {"anomaly_map": maps, "anomaly_score": maps.mean((1, 2, 3))[:, None]}
        batches.append((prediction, {"mask": masks, "label": torch.arange(size) % 2}))
    return batches


@pytest.mark.parametrize(("name", "referee"), [("auroc", roc_auc_score), ("ap", average_precision_score)])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("unknown", [False, True])
def test_pixel_metrics_over_batches_agree_with_sklearn(name: str, referee, stride: int, unknown: bool):
    batches = make_batches(unknown=unknown)
    maps, masks = (
        torch.cat([batch[part][key] for batch in batches])[..., ::stride, ::stride].flatten(1)
        for part, key in ((0, "anomaly_map"), (1, "mask"))
    )
    known = ~masks.isnan().any(1)
    assert known.sum() == (3 if unknown else 6)
    expected = referee(masks[known].flatten(), maps[known].flatten())
    assert measure(PixelMetricHandler(name, stride=stride), batches) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "referee"), [("auroc", roc_auc_score), ("ap", average_precision_score)])
def test_score_metrics_over_batches_agree_with_sklearn(name: str, referee):
    batches = make_batches()
    scores = torch.cat([prediction["anomaly_score"][:, 0] for prediction, _ in batches])
    labels = torch.cat([target["label"] for _, target in batches])
    assert measure(ImageMetricHandler(name), batches) == pytest.approx(referee(labels, scores), abs=1e-6)


def test_the_default_stride_looks_at_every_fourth_row_and_column():
    batches = make_batches()
    pixels = PixelMetrics()
    for prediction, target in batches:
        pixels.update(prediction["anomaly_map"][..., ::4, ::4], target["mask"][..., ::4, ::4])
    assert measure(PixelMetricHandler(), batches) == pixels.compute()["auroc"]


def test_undefined_metrics_are_nan_with_a_warning(caplog: pytest.LogCaptureFixture):
    batches = make_batches()
    for _, target in batches:
        target["mask"].zero_()
        target["label"].zero_()
    with caplog.at_level(logging.WARNING, logger="mrad_med"):
        assert np.isnan(measure(PixelMetricHandler(), batches))
        assert np.isnan(measure(ImageMetricHandler(), batches))
    assert "pixel metrics are undefined" in caplog.text
    assert "image metrics are undefined" in caplog.text


def test_a_metric_starts_again_every_epoch():
    metric, batches = PixelMetricHandler(), make_batches()
    first = measure(metric, batches)
    assert measure(metric, batches) == first
