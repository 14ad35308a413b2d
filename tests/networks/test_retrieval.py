"""Retrieval and the neighbor average: values by hand, laws, and comparison with torch's poolings and softmax."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrad_med.networks.retrieval import average_neighbors, retrieve


def make_memory(count: int = 41, width: int = 16, queries: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(count, width, generator=generator), dim=-1)
    labels = (torch.rand(count, generator=generator) < 0.3).long()
    return F.normalize(torch.randn(queries, width, generator=generator), dim=-1), keys, labels


def softmax_at_onehot(queries: Tensor, keys: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    scores = queries.double() @ keys.double().T / temperature
    return (scores.softmax(-1) @ F.one_hot(labels, 2).double())[..., 1]


def three_poolings(patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    grid = patches.transpose(1, 2).unflatten(2, grid_size)
    pooled = [
        F.avg_pool2d(grid, size, stride=1, padding=size // 2, count_include_pad=True).flatten(2).transpose(1, 2)
        for size in (1, 3, 5)
    ]
    return torch.stack(pooled).mean(0)


def test_probability_is_the_softmax_worked_by_hand():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([1, 0, 0])
    query = torch.tensor([1.0, 0.0])  # scores 1, 0, -1
    expected = math.e / (math.e + 1 + 1 / math.e)
    assert retrieve(query, keys, labels).item() == pytest.approx(expected, abs=1e-6)


def test_two_keys_equally_near_give_one_half():
    keys = torch.tensor([[0.6, 0.8], [0.6, -0.8]])
    assert retrieve(torch.tensor([1.0, 0.0]), keys, torch.tensor([0, 1])).item() == 0.5


def test_temperature_divides_the_scores():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    probability = retrieve(torch.tensor([1.0, 0.0]), keys, torch.tensor([1, 0]), temperature=0.5)
    assert probability.item() == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)


def test_queries_are_not_normalized():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    probability = retrieve(torch.tensor([3.0, 0.0]), keys, torch.tensor([1, 0]))
    assert probability.item() == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 41, 1000])
def test_probability_agrees_with_softmax_at_onehot(chunk_size: int | None, temperature: float):
    queries, keys, labels = make_memory()
    probability = retrieve(queries, keys, labels, temperature=temperature, chunk_size=chunk_size)
    expected = softmax_at_onehot(queries, keys, labels, temperature)
    torch.testing.assert_close(probability.double(), expected, atol=1e-6, rtol=0)


def test_chunks_of_the_default_size_agree_with_one_chunk(monkeypatch: pytest.MonkeyPatch):
    queries, keys, labels = make_memory()
    monkeypatch.setattr("mrad_med.networks.retrieval._SCORES_PER_CHUNK", 4 * len(queries))  # chunks of four keys
    expected = softmax_at_onehot(queries, keys, labels)
    torch.testing.assert_close(retrieve(queries, keys, labels).double(), expected, atol=1e-6, rtol=0)


def test_more_queries_than_scores_in_a_chunk_still_work(monkeypatch: pytest.MonkeyPatch):
    queries, keys, labels = make_memory()
    monkeypatch.setattr("mrad_med.networks.retrieval._SCORES_PER_CHUNK", 1)
    expected = softmax_at_onehot(queries, keys, labels)
    torch.testing.assert_close(retrieve(queries, keys, labels).double(), expected, atol=1e-6, rtol=0)


def test_order_of_keys_does_not_matter():
    queries, keys, labels = make_memory()
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(3))
    shuffled = retrieve(queries, keys[order], labels[order])
    torch.testing.assert_close(shuffled, retrieve(queries, keys, labels), atol=1e-6, rtol=0)


def test_duplicating_the_whole_bank_changes_nothing():
    queries, keys, labels = make_memory()
    doubled = retrieve(queries, keys.repeat(2, 1), labels.repeat(2))
    torch.testing.assert_close(doubled, retrieve(queries, keys, labels), atol=1e-6, rtol=0)


def test_exchanging_the_labels_gives_the_complement():
    queries, keys, labels = make_memory()
    complement = 1 - retrieve(queries, keys, 1 - labels)
    torch.testing.assert_close(retrieve(queries, keys, labels), complement, atol=1e-6, rtol=0)


def test_a_further_anomalous_key_raises_every_probability():
    queries, keys, labels = make_memory()
    extended = retrieve(queries, torch.cat([keys, queries[:1]]), torch.cat([labels, torch.tensor([1])]))
    assert (extended > retrieve(queries, keys, labels)).all()


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_extreme_scores_do_not_overflow(chunk_size: int | None):
    keys = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]])
    queries = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    probability = retrieve(queries, keys, torch.tensor([1, 0, 0]), temperature=1e-3, chunk_size=chunk_size)
    torch.testing.assert_close(probability, torch.tensor([1.0, 0.0, 1 / 3]))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_keys_of_one_label_only_give_certainty(label: int, chunk_size: int | None):
    queries, keys, _ = make_memory(count=5)
    probability = retrieve(queries, keys, torch.full((5,), label), chunk_size=chunk_size)
    assert probability.tolist() == [float(label)] * len(queries)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (2, 1, 3), (0,), (0, 4)])
def test_any_leading_shape_is_kept(shape: tuple[int, ...]):
    _, keys, labels = make_memory()
    queries = torch.randn(*shape, 16, generator=torch.Generator().manual_seed(5))
    probability = retrieve(queries, keys, labels)
    assert probability.shape == shape
    torch.testing.assert_close(probability.double(), softmax_at_onehot(queries, keys, labels), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_are_float32_whatever_the_features_are(dtype: torch.dtype):
    queries, keys, labels = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in make_memory())
    probability = retrieve(queries, keys, labels)
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability.double(), softmax_at_onehot(queries, keys, labels), atol=1e-6, rtol=0)


def test_scores_are_float32_inside_autocast_too():
    queries, keys, labels = make_memory()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probability = retrieve(queries, keys, labels)
    assert probability.dtype == torch.float32
    torch.testing.assert_close(probability, retrieve(queries, keys, labels), atol=1e-6, rtol=0)


def test_arguments_of_retrieval_are_not_changed():
    arguments = make_memory()
    copies = [tensor.clone() for tensor in arguments]
    retrieve(*arguments, temperature=0.07)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(arguments, copies, strict=True))


def test_queries_and_keys_of_different_width_are_refused():
    with pytest.raises(ValueError, match="same width, got 3 and 4"):
        retrieve(torch.ones(2, 3), torch.ones(5, 4), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("keys", "labels", "found"),
    [
        (torch.ones(0, 3), torch.zeros(0, dtype=torch.int64), "got 0 and 0"),
        (torch.ones(5, 3), torch.zeros(4, dtype=torch.int64), "got 5 and 4"),
    ],
)
def test_no_key_or_a_key_without_label_is_refused(keys: Tensor, labels: Tensor, found: str):
    with pytest.raises(ValueError, match=f"at least one key and one label per key, {found}"):
        retrieve(torch.ones(2, 3), keys, labels)


@pytest.mark.parametrize("temperature", [0.0, -0.07, math.nan])
def test_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(ValueError, match="temperature must be positive"):
        retrieve(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(5, dtype=torch.int64), temperature=temperature)


@pytest.mark.parametrize("grid_size", [(7, 7), (6, 9), (1, 1), (2, 3), (1, 8)])
def test_neighbor_average_agrees_with_three_poolings(grid_size: tuple[int, int]):
    patches = torch.randn(2, grid_size[0] * grid_size[1], 5, generator=torch.Generator().manual_seed(0))
    averaged = average_neighbors(patches, grid_size)
    torch.testing.assert_close(averaged, three_poolings(patches, grid_size), atol=1e-6, rtol=0)


def test_one_patch_spreads_as_the_kernel_worked_by_hand():
    patches = torch.zeros(1, 49, 1)
    patches[0, 3 * 7 + 3] = 225  # 225 = 9 * 25 keeps the weights whole
    averaged = average_neighbors(patches, (7, 7)).reshape(7, 7) * 3
    far, near, center = 9.0, 9.0 + 25, 9.0 + 25 + 225
    row = [0, far, far, far, far, far, 0]
    inner = [0, far, near, near, near, far, 0]
    middle = [0, far, near, center, near, far, 0]
    expected = torch.tensor([[0.0] * 7, row, inner, middle, inner, row, [0.0] * 7])
    torch.testing.assert_close(averaged, expected, atol=1e-4, rtol=0)


def test_constant_patches_stay_constant_two_patches_from_the_border():
    averaged = average_neighbors(torch.full((1, 63, 3), 2.5), (7, 9)).reshape(7, 9, 3)
    torch.testing.assert_close(averaged[2:-2, 2:-2], torch.full((3, 5, 3), 2.5), atol=1e-6, rtol=0)


def test_zero_padding_counts_in_the_divisor_at_the_corner():
    averaged = average_neighbors(torch.ones(1, 49, 1), (7, 7)).reshape(7, 7)
    assert averaged[0, 0].item() == pytest.approx((1 + 4 / 9 + 9 / 25) / 3, abs=1e-6)


def test_rows_and_columns_of_the_grid_are_distinguished():
    patches = torch.randn(1, 24, 2, generator=torch.Generator().manual_seed(0))
    transposed = patches.reshape(4, 6, 2).transpose(0, 1).reshape(1, 24, 2)
    expected = average_neighbors(patches, (4, 6)).reshape(4, 6, 2).transpose(0, 1).reshape(1, 24, 2)
    torch.testing.assert_close(average_neighbors(transposed, (6, 4)), expected, atol=1e-6, rtol=0)


def test_every_image_and_channel_is_averaged_separately():
    patches = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0))
    averaged = average_neighbors(patches, (4, 5))
    for image in range(3):
        for channel in range(4):
            alone = average_neighbors(patches[image : image + 1, :, channel : channel + 1], (4, 5))
            torch.testing.assert_close(averaged[image, :, channel], alone[0, :, 0], atol=1e-6, rtol=0)


def test_neighbor_average_is_float32_inside_autocast_too():
    patches = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        averaged = average_neighbors(patches, (4, 5))
    torch.testing.assert_close(averaged, average_neighbors(patches, (4, 5)), atol=1e-6, rtol=0)


def test_patches_are_not_changed_by_the_average():
    patches = torch.randn(1, 9, 2, generator=torch.Generator().manual_seed(0))
    copy = patches.clone()
    average_neighbors(patches, (3, 3))
    assert torch.equal(patches, copy)


def test_patches_that_do_not_fill_the_grid_are_refused():
    with pytest.raises(ValueError, match="12 patches do not fill a grid of 3 x 5"):
        average_neighbors(torch.zeros(1, 12, 4), (3, 5))
