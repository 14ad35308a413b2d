"""Trainers of both stages: what they refuse, what they compute only once, what they leave alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.handlers import from_engine
from monai.utils import set_determinism

from mrad_med import (
    CLIP,
    FineTuneTrainer,
    ImageFeatures,
    PromptTrainer,
    build_mrad_clip,
    build_mrad_ft,
    feature_loader,
    select_trainable,
)
from mrad_med.errors import TrainingError
from mrad_med.training import FeatureDataset, FineTuneLoss
from tests.conftest import run_in_two_processes
from tests.training_runs import (
    STAGES,
    assert_same_training,
    bank_of,
    make_run,
    train_both_stages,
    train_in_one_of_two,
    write_features,
)

both_stages = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_clip: CLIP) -> FeatureDataset:
    return write_features(tmp_path_factory.mktemp("features"), tiny_clip)


def features_of(dataset: FeatureDataset, clip: CLIP, count: int = 12) -> ImageFeatures:
    batch = next(iter(feature_loader(dataset, batch_size=count)))["features"]
    return ImageFeatures(batch.image, batch.patches, clip.image_encoder.project(batch.patches), batch.grid_size)


@both_stages
@pytest.mark.parametrize(("kept", "counts"), [(0, "6 normal and 0 anomalous"), (1, "0 normal and 6 anomalous")])
def test_a_training_set_of_one_label_is_refused(
    stage: str, kept: int, counts: str, dataset: FeatureDataset, tiny_clip: CLIP
):
    part = dataset.subset(range(kept, 12, 2))
    network = build_mrad_ft(tiny_clip, bank_of(tiny_clip, dataset))
    optimizer = torch.optim.Adam(network.head.parameters())
    trainer = FineTuneTrainer if stage == "fine_tune" else PromptTrainer
    keywords = {} if stage == "fine_tune" else {"image_encoder": tiny_clip.image_encoder}
    with pytest.raises(TrainingError, match=f"cannot be trained on {counts} image.*both labels are needed"):
        trainer("cpu", 1, feature_loader(part), network.head, optimizer, **keywords)


def test_anomalous_images_without_a_usable_mask_are_left_out_by_name(
    tmp_path: Path, tiny_clip: CLIP, caplog: pytest.LogCaptureFixture
):
    dataset = write_features(tmp_path, tiny_clip, count=6, unknown=1, empty=5)
    with caplog.at_level(logging.WARNING, logger="mrad_med"):
        selected = select_trainable(dataset)
    assert [case["case_id"] for case in selected.cases] == ["case 0", "case 2", "case 3", "case 4"]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["case 1", "case 5"]
    with pytest.raises(TrainingError, match="3 normal and 0 anomalous"):
        select_trainable(dataset.subset([0, 1, 2, 4, 5]))


@both_stages
def test_nan_loss_stops_before_weights_are_touched_and_names_the_cases(stage: str, tmp_path: Path, tiny_clip: CLIP):
    dataset = write_features(tmp_path / "features", tiny_clip, count=6, unknown=3)
    run = make_run(stage, tmp_path, tiny_clip, dataset, batch_size=1)
    before: list[dict[str, torch.Tensor]] = []
    run.trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: before.append(run.weights) if "case 3" in engine.state.batch["case_id"] else 0,
    )
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1, on case 3: check these"):
        run.trainer.run()
    assert len(before) == 1
    after = run.weights
    assert all(torch.equal(after[name], tensor) for name, tensor in before[0].items())
    assert not run.checkpoint.path.exists()


def test_nan_loss_in_a_later_epoch_leaves_the_last_checkpoint(tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset):
    loss = FineTuneLoss()

    def becomes_nan(*arguments: object) -> torch.Tensor:
        return loss(*arguments) * (float("nan") if run.trainer.state.epoch == 3 else 1)

    run = make_run("fine_tune", tmp_path, tiny_clip, dataset, loss_function=becomes_nan)
    with pytest.raises(TrainingError, match=r"nan in epoch 3, on case .*, case"):
        run.trainer.run()
    saved = torch.load(run.checkpoint.path, weights_only=True)
    assert saved["trainer"]["iteration"] == 6  # two epochs of three batches
    resumed = make_run("fine_tune", tmp_path, tiny_clip, dataset)
    resumed.trainer.run()
    assert resumed.trainer.state.epoch == 3


@both_stages
def test_what_is_computed_once_an_image_gives_the_weights_of_computing_it_every_step(
    stage: str, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset, monkeypatch: pytest.MonkeyPatch
):
    once, every_step = (make_run(stage, tmp_path / name, tiny_clip, dataset) for name in ("once", "every"))
    head = once.network.head
    name = "thresholds" if stage == "fine_tune" else "region_tokens"
    compute, calls = getattr(head, name), []

    def count(features: ImageFeatures) -> object:
        if head.training:  # validation computes them again
            calls.append(len(features.image))
        return compute(features)

    monkeypatch.setattr(head, name, count)
    monkeypatch.setattr(every_step.trainer, "_once", lambda _: {})
    once.trainer.run()
    every_step.trainer.run()
    assert calls == [1] * len(dataset)
    assert_same_training(once.weights, every_step.weights)


def test_regions_are_found_with_the_nearest_keys_excluded_as_in_training(
    tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset, monkeypatch: pytest.MonkeyPatch
):
    run, seen = make_run("prompts", tmp_path, tiny_clip, dataset, max_epochs=1, batch_size=12), []
    forward = run.network.head.forward
    monkeypatch.setattr(
        run.network.head, "forward", lambda features, region_tokens: seen.append(region_tokens) or forward(features)
    )
    run.trainer.run()
    head = build_mrad_clip(tiny_clip, bank_of(tiny_clip, dataset)).head
    head.fine_tuned.load_state_dict(run.trainer.fine_tuned.state_dict())
    features = features_of(dataset, tiny_clip)
    order = [index for batch in run.trainer.data_loader for index in batch["index"].tolist()]
    with torch.no_grad():
        torch.testing.assert_close(seen[0], head.train().region_tokens(features)[order], atol=1e-5, rtol=0)
        assert (head.eval().region_tokens(features) - head.train().region_tokens(features)).abs().max() > 1e-3


@both_stages
def test_only_what_is_learned_changes(stage: str, tmp_path: Path, dataset: FeatureDataset, tiny_clip: CLIP):
    run = make_run(stage, tmp_path, tiny_clip, dataset)
    network = run.network
    everything = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    before = {name: tensor.clone() for name, tensor in everything.items()}
    stage_1 = (
        {f"head.fine_tuned.{name}" for name in run.trainer.fine_tuned.state_dict()} if stage == "prompts" else set()
    )
    run.trainer.run()
    changed = {name for name, tensor in everything.items() if not torch.equal(tensor, before[name])}
    learned = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    # Stage 2 takes over the weights of stage 1 when it starts, and keeps them.
    assert changed == learned | stage_1
    if stage == "prompts":
        given = run.trainer.fine_tuned.state_dict()
        assert all(torch.equal(network.head.fine_tuned.state_dict()[name], tensor) for name, tensor in given.items())
        assert not any(name.startswith("head.prompts.text_encoder") for name in changed)
    assert not any(name.startswith("image_encoder") for name in changed)


@both_stages
def test_two_trainings_with_one_seed_are_equal_bit_by_bit(
    stage: str, tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    results = []
    for name in ("first", "second"):
        torch.rand(len(name))  # what was drawn before does not matter
        set_determinism(seed=0)
        run = make_run(stage, tmp_path / name, tiny_clip, dataset)
        run.trainer.run()
        results.append(run.weights)
    set_determinism(seed=None)
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[1][name], tensor) for name, tensor in results[0].items())


@pytest.mark.parametrize("build", [build_mrad_ft, build_mrad_clip])
def test_a_seed_fixes_the_random_weights_and_nothing_else(build, tiny_clip: CLIP, dataset: FeatureDataset):
    bank = bank_of(tiny_clip, dataset)
    states = []
    for seed in (3, 3, 4, None):
        torch.rand(1)
        before = torch.get_rng_state()
        states.append(build(tiny_clip, bank, seed=seed).head.learned_state())
        assert torch.equal(torch.get_rng_state(), before) is (seed is not None)
    same, other, unseeded = (all(torch.equal(states[0][name], state[name]) for name in state) for state in states[1:])
    assert (same, other, unseeded) == (True, False, False)


def test_the_loss_of_a_step_is_where_monais_handlers_look_for_it(
    tmp_path: Path, tiny_clip: CLIP, dataset: FeatureDataset
):
    run, losses = make_run("fine_tune", tmp_path, tiny_clip, dataset, max_epochs=1), []
    transform = from_engine(["loss"], first=True)
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(transform(engine.state.output))
    )
    run.trainer.run()
    assert len(losses) == 3
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)


def test_two_processes_learn_and_measure_what_one_does(tmp_path: Path):
    run_in_two_processes(train_in_one_of_two, tmp_path)
    first, second = (torch.load(tmp_path / f"process_{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = train_both_stages(tmp_path / "alone", batch_size=4)
    for stage in STAGES:
        for name, tensor in first[stage]["weights"].items():
            assert torch.equal(second[stage]["weights"][name], tensor)
        assert_same_training(first[stage]["weights"], alone[stage]["weights"])
        assert first[stage]["metrics"] == second[stage]["metrics"]
        assert first[stage]["metrics"] == pytest.approx(alone[stage]["metrics"], abs=1e-4)


def test_a_validation_set_smaller_than_the_number_of_processes_is_refused(
    dataset: FeatureDataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"1 image\(s\) cannot be divided among 2 processes: hold out more"):
        feature_loader(dataset.subset([0]))
    assert len(feature_loader(dataset.subset([]))) == 0  # a training without validation
