"""MRAD-FT and MRAD-CLIP heads against numbers of the published implementation, and their laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.engines import IterationEvents, SupervisedTrainer
from monai.handlers import LrScheduleHandler
from open_clip.model import CLIPTextCfg, _build_text_tower
from safetensors.torch import save_file
from torch import Tensor, nn

from mrad_med import (
    CLIP,
    MRAD,
    AnomalyInferer,
    FineTuneTrainer,
    MemoryBank,
    PromptTrainer,
    build_mrad_clip,
    build_mrad_ft,
    feature_loader,
    load_official_checkpoint,
)
from mrad_med.errors import HeadError
from mrad_med.networks.clip import CLIPTextEncoder
from mrad_med.networks.heads import FineTunedHead
from mrad_med.networks.retrieval import exclude_nearest, region_tokens, retrieve
from mrad_med.training import FeatureDataset
from mrad_med.training.losses import dice_loss, probability_focal_loss
from mrad_med.types import BankCard, ImageFeatures
from tests.reference_weights import head_state

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mrad.npz")
HEADS = np.load(Path(__file__).parents[1] / "golden" / "learned_heads.npz")
LossPart = Callable[..., Tensor]


def gap(given: Tensor, name: str) -> float:
    return float(np.abs(given.detach().numpy() - HEADS[name]).max())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files of both published formats, holding the reference weights."""
    state, folder = head_state(), tmp_path_factory.mktemp("checkpoints")

    def layers(**names: str) -> dict[str, Tensor]:
        return {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in names.items() for kind in ("weight", "bias")}

    content = {
        "image_proj": layers(image_query="mlp1", image_key="mlp2"),
        "patch_proj": layers(patch_query="fc.0", patch_key="fc.1"),
    }
    torch.save(content, folder / "ft.pth")
    learner = {f"compound_prompts_text.{index}": state[f"deep_prompts.{index}"] for index in range(8)}
    learner |= {"ctx_pos": state["context_normal"][None, None], "ctx_neg": state["context_anomaly"][None, None]}
    learner |= {"mlp.c_fc.weight": torch.zeros(2, 2)}  # published files contain modules that are not used
    content |= {"prompt_proj": layers(bias_normal="mlp1", bias_anomaly="mlp2"), "prompt_learner": learner}
    torch.save(content, folder / "clip.pth")
    return {"ft": folder / "ft.pth", "clip": folder / "clip.pth"}


@pytest.fixture(scope="module")
def bank() -> MemoryBank:
    levels = [torch.from_numpy(GOLDEN[f"bank_{name}"]) for name in ("image_keys", "image_labels")]
    levels += [torch.from_numpy(GOLDEN[f"bank_{name}"]) for name in ("patch_keys", "patch_labels")]
    return MemoryBank(*levels, BankCard("reference", None, (518, 518)))


@pytest.fixture(scope="module")
def features(golden_outcome: dict[str, Any]) -> ImageFeatures:
    return golden_outcome["features"]


@pytest.fixture
def fine_tuned(bank: MemoryBank) -> FineTunedHead:
    head = FineTunedHead(bank)
    head.load_state_dict({name: value for name, value in head_state().items() if name in head.state_dict()})
    return head.eval()


def query_masks() -> Tensor:
    return torch.from_numpy(np.unpackbits(HEADS["query_masks"])[: 3 * 518 * 518].reshape(3, 1, 518, 518)).float()


def score(network: MRAD, features: ImageFeatures) -> dict[str, Tensor]:
    """Return maps and scores of features that are encoded already."""
    network.encode = lambda _: features
    return AnomalyInferer()(torch.zeros(3, 3, 518, 518), network)


def test_fine_tuned_network_meets_the_published_numbers(
    reference: CLIP, bank: MemoryBank, features: ImageFeatures, checkpoints: dict[str, Path]
):
    network = build_mrad_ft(reference, bank, checkpoint=checkpoints["ft"])
    with torch.no_grad():
        assert gap(network.patch_probability(features), "ft_patch_prob") < 1e-5
        assert gap(network.image_probability(features)[:, 0], "ft_image_prob") < 1e-5
    result = score(network, features)
    assert gap(result["anomaly_map"][:, 0, ::37, ::37], "ft_map") < 1e-5
    assert gap(result["anomaly_score"][:, 0], "ft_score") < 1e-5


@pytest.mark.parametrize("case", ["clip", "clipmed"])
@pytest.mark.parametrize(("fp16", "tolerance"), [(True, 1e-5), (False, 1e-3)])
def test_prompted_network_meets_the_published_numbers(
    reference: CLIP,
    bank: MemoryBank,
    features: ImageFeatures,
    checkpoints: dict[str, Path],
    case: str,
    fp16: bool,
    tolerance: float,
):
    network = build_mrad_clip(
        reference,
        bank,
        checkpoint=checkpoints["clip"],
        threshold=float(HEADS[f"{case}_threshold"]),
        fp16_deep_prompts=fp16,
    )
    with torch.no_grad():
        assert gap(network.head.region_tokens(features), f"{case}_region_tokens") < 1e-5
        assert gap(network.head.text_features(features), f"{case}_text_features") < tolerance
        assert gap(network.patch_probability(features), f"{case}_patch_prob") < tolerance
    result = score(network, features)
    assert gap(result["anomaly_map"][:, 0, ::37, ::37], f"{case}_map") < tolerance
    assert gap(result["anomaly_score"][:, 0], f"{case}_score") < tolerance


def test_checkpoints_of_another_variant_or_format_are_refused(
    reference: CLIP, bank: MemoryBank, checkpoints: dict[str, Path], tmp_path: Path
):
    with pytest.raises(HeadError, match="do not belong to a FineTunedHead: missing"):
        build_mrad_ft(reference, bank, checkpoint=checkpoints["clip"])
    with pytest.raises(HeadError, match="do not belong to a PromptedHead: missing"):
        build_mrad_clip(reference, bank, checkpoint=checkpoints["ft"])
    with pytest.raises(HeadError, match="these weights belong to another backbone"):
        build_mrad_ft(reference, bank, checkpoint={"patch_query.weight": torch.zeros(2, 2)})
    with pytest.raises(HeadError, match="has context_length 12, not 8: leave these arguments out"):
        build_mrad_clip(reference, bank, checkpoint=checkpoints["clip"], context_length=8)
    with pytest.raises(HeadError, match="has depth 9, not 12, deep_length 4, not 2: leave these arguments out"):
        build_mrad_clip(reference, bank, checkpoint=checkpoints["clip"], depth=12, deep_length=2)
    with pytest.raises(ValueError, match="has no text tower"):
        build_mrad_clip(replace(reference, text_encoder=None), bank, checkpoint=checkpoints["clip"])
    (tmp_path / "broken.pth").write_bytes(checkpoints["ft"].read_bytes()[:1000])
    torch.save({"something": "else"}, tmp_path / "other.pth")
    for name in ("broken.pth", "other.pth"):
        with pytest.raises(ValueError, match=rf"{name} is damaged or not a published checkpoint"):
            load_official_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no published checkpoint"):
        load_official_checkpoint(tmp_path / "missing.pth")


@pytest.fixture(scope="module")
def training_set(features: ImageFeatures, tmp_path_factory: pytest.TempPathFactory) -> FeatureDataset:
    """Return the queries as a cache would keep them; the published steps took them as one batch."""
    folder = tmp_path_factory.mktemp("features")
    cases, files = [], []
    for index, mask in enumerate(query_masks()):
        files.append(folder / f"{index}.safetensors")
        tensors = {"image": features.image[index], "patches": features.patches[index], "mask": mask[0].byte()}
        save_file(tensors, files[-1])
        cases.append({"case_id": f"query {index}", "label": int(mask.max())})
    return FeatureDataset(cases, files, features.grid_size)


def follow_steps(trainer: SupervisedTrainer, parts: list[LossPart], watched: list[nn.Parameter]) -> np.ndarray:
    """Train; return a row a step: each part of the loss, the whole, and the norm of each watched gradient."""
    rows: list[list[float]] = []

    def note_losses(engine: SupervisedTrainer) -> None:
        target = engine.state.output["label"]
        values = [part(engine.state.output["pred"], target).item() for part in parts]
        rows.append([*values, engine.state.output["loss"].item()])

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, note_losses)
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda: rows[-1].extend(item.grad.norm().item() for item in watched)
    )
    trainer.run()
    return np.array(rows)


def upsample(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=(518, 518), mode="bilinear", align_corners=False)


def test_steps_of_the_fine_tune_trainer_meet_the_published_losses_gradients_and_weights(
    training_set: FeatureDataset, fine_tuned: FineTunedHead
):
    optimizer = torch.optim.Adam(fine_tuned.parameters(), lr=4e-4, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=1e-6)
    loader = feature_loader(training_set, batch_size=3)
    trainer = FineTuneTrainer(
        "cpu", 3, loader, fine_tuned, optimizer, train_handlers=[LrScheduleHandler(schedule, print_lr=False)]
    )
    parts = [
        lambda given, target: probability_focal_loss(upsample(given[0]), target["mask"]),
        lambda given, target: dice_loss(upsample(given[0]), target["mask"]),
        lambda given, target: F.cross_entropy(torch.cat([1 - given[1], given[1]], dim=1) / 0.07, target["label"]),
    ]
    layers = (fine_tuned.patch_query, fine_tuned.patch_key, fine_tuned.image_query, fine_tuned.image_key)
    watched = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    steps = follow_steps(trainer, parts, watched)
    np.testing.assert_allclose(steps[:, :4], HEADS["ft_steps"][:, :4], atol=1e-5)
    # A constant added to all scores of a query changes no probability: the gradient of a key's bias is rounding alone.
    meaningful = [4, 5, 6, 8, 9, 10]
    np.testing.assert_allclose(steps[:, meaningful], HEADS["ft_steps"][:, meaningful], rtol=1e-3)
    after = torch.stack([fine_tuned.patch_query.weight[:4, :8], fine_tuned.patch_key.weight[:4, :8]])
    assert gap(after, "ft_w_after") < 1e-5


def test_steps_of_the_prompt_trainer_meet_the_published_losses_and_gradients(
    reference: CLIP, bank: MemoryBank, training_set: FeatureDataset, checkpoints: dict[str, Path]
):
    head = build_mrad_clip(reference, bank, checkpoint=checkpoints["clip"], fp16_deep_prompts=True).head
    learned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    trainer = PromptTrainer(
        "cpu",
        2,
        feature_loader(training_set, batch_size=3),
        head,
        torch.optim.Adam(learned, lr=4e-4, betas=(0.5, 0.999)),
        image_encoder=reference.image_encoder,
    )
    parts = [
        lambda given, target: probability_focal_loss(upsample(given), target["mask"]),
        lambda given, target: dice_loss(upsample(given), target["mask"]),
        lambda given, target: dice_loss(1 - upsample(given), 1 - target["mask"]),
    ]
    prompts = head.prompts
    watched = [prompts.context_normal, prompts.context_anomaly, prompts.bias_normal.weight, prompts.bias_anomaly.weight]
    steps = follow_steps(trainer, parts, [*watched, prompts.deep_prompts[0]])
    np.testing.assert_allclose(steps[:, :4], HEADS["clip_steps"][:, :4], atol=1e-5)
    np.testing.assert_allclose(steps[:, 4:], HEADS["clip_steps"][:, 4:], rtol=1e-3)


def test_projected_keys_follow_a_change_of_weights(features: ImageFeatures, fine_tuned: FineTunedHead):
    with torch.no_grad():
        before = fine_tuned.image_probability(features)
        fine_tuned.image_key.weight.mul_(0)
        after = fine_tuned.image_probability(features)
    assert not torch.equal(before, after)
    assert torch.allclose(after, torch.full_like(after, (fine_tuned.image_labels == 1).float().mean().item()))


def test_a_head_made_and_used_in_inference_mode_works(bank: MemoryBank, features: ImageFeatures):
    with torch.inference_mode():
        head = FineTunedHead(bank.repeat(1)).eval()
        first = head.image_probability(features)
        torch.testing.assert_close(head.image_probability(features), first)


def test_another_bank_keeps_the_weights(bank: MemoryBank, features: ImageFeatures, fine_tuned: FineTunedHead):
    doubled = fine_tuned.with_bank(bank.repeat(2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(doubled.patch_probability(features), fine_tuned.patch_probability(features))


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_nearest_keys_are_those_above_torchs_quantile(quantile: float):
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(2, 5, 8, generator=generator), dim=-1)
    keys = F.normalize(torch.randn(23, 8, generator=generator), dim=-1)
    cosines = queries @ keys.T
    expected = cosines > torch.quantile(cosines, quantile, dim=-1, keepdim=True)
    assert torch.equal(exclude_nearest(queries, keys, quantile), expected)


def test_excluded_keys_are_as_if_they_were_not_there():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(4, 8, generator=generator), torch.randn(9, 8, generator=generator)
    labels = torch.arange(9) % 2
    excluded = torch.zeros(4, 9, dtype=torch.bool)
    excluded[:, 3:5] = True
    kept = [0, 1, 2, 5, 6, 7, 8]
    given = retrieve(queries, keys, labels, excluded=excluded, chunk_size=4)
    torch.testing.assert_close(given, retrieve(queries, keys[kept], labels[kept]))


def test_region_tokens_are_means_and_zero_for_an_empty_region():
    patches = torch.arange(8.0).reshape(1, 4, 2)
    tokens = region_tokens(patches, torch.tensor([[0.9, 0.1, 0.8, 0.2]]))
    assert tokens.tolist() == [[[4.0, 5.0], [2.0, 3.0]]]
    assert region_tokens(patches, torch.zeros(1, 4))[0, 1].tolist() == [0.0, 0.0]


def test_text_after_the_end_token_changes_nothing(reference: CLIP):
    text_encoder = reference.text_encoder
    tokens = torch.tensor([[49406, 343, 14115, 269, 49407, 0, 0, 0]])
    ends = torch.tensor([4])
    with torch.no_grad():
        long, short = (text_encoder(text_encoder.embed(item), ends) for item in (tokens, tokens[:, :5]))
    torch.testing.assert_close(long, short, atol=3e-6, rtol=0)


def test_a_text_tower_without_a_causal_mask_is_refused():
    tower = _build_text_tower(8, CLIPTextCfg(width=64, heads=1, layers=1, vocab_size=10, no_causal_mask=True))
    with pytest.raises(ValueError, match="causal text tower"):
        CLIPTextEncoder(tower)


def test_focal_loss_by_hand():
    loss = probability_focal_loss(torch.full((1, 1, 1, 1), 0.25), torch.ones(1, 1, 1, 1))
    likelihood = 0.25 * (1 - 1e-5) + 0.75 * 1e-5 + 1e-5
    assert loss.item() == pytest.approx(-((1 - likelihood) ** 2) * np.log(likelihood), rel=1e-5)
    assert torch.isfinite(probability_focal_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)))
