"""Batches: a bad file fails only its own case, at any position, and is named at the end."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image

from mrad_med import CaseDataset, CaseLoader, ImageView, build_preprocessing, find_cases
from mrad_med.errors import FailedCasesError, ImageFileError
from mrad_med.types import FailedCase

REASON = "the file is empty (0 bytes); copy or export it again"
SECRET = "Beeblebrox, Zaphod"  # as in a header


class Load:
    """Test preprocessing: the number of the case as an image of its shape, or its error."""

    def __call__(self, case: dict) -> dict:
        if "error" in case:
            raise case["error"]
        return {**case, "image": MetaTensor(torch.full(case["image"], float(case["case_id"])))}


def make_cases(count: int, *, bad: tuple[int, ...] = (), shapes: dict | None = None) -> list[dict]:
    cases = [{"case_id": str(i), "image": (shapes or {}).get(i, (3, 4, 6))} for i in range(count)]
    for index in bad:
        cases[index]["error"] = ImageFileError(REASON)
    return cases


def make_loader(cases: list[dict], **options) -> CaseLoader:
    return CaseLoader(CaseDataset(cases, Load()), progress=False, **options)


def names_of(batches: list[dict]) -> list[list[str]]:
    return [list(batch["case_id"]) for batch in batches]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ((), [["0", "1"], ["2", "3"], ["4"]]),
        ((0,), [["1", "2"], ["3", "4"]]),
        ((2,), [["0", "1"], ["3", "4"]]),
        ((4,), [["0", "1"], ["2", "3"]]),
        ((1, 2, 3), [["0", "4"]]),
        ((0, 1, 2, 3), [["4"]]),
        ((0, 1, 2, 3, 4), []),
    ],
)
def test_bad_file_costs_only_itself(bad, expected):
    loader = make_loader(make_cases(5, bad=bad), batch_size=2)
    batches = list(loader)
    assert names_of(batches) == expected
    assert loader.failures == [FailedCase(str(index), REASON) for index in bad]
    for batch in batches:
        assert batch["image"].shape == (len(batch["case_id"]), 3, 4, 6)
        assert batch["image"][:, 0, 0, 0].tolist() == [float(name) for name in batch["case_id"]]


@pytest.mark.parametrize(("name", "position"), [("0.png", 0), ("a2.png", 1), ("z.png", 3)])
def test_files_that_are_really_bad_are_left_out_with_the_reason(image_folder, tiny_clip, name, position):
    (image_folder / name).touch()
    cases = find_cases(image_folder)
    assert cases[position]["image"] == str(image_folder / name)
    loader = CaseLoader(
        CaseDataset(cases, build_preprocessing(tiny_clip.card, ImageView(image_size=56))), progress=False
    )
    (batch,) = loader
    assert batch["image"].shape == (3, 3, 56, 56)
    assert list(batch["case_id"]) == ["a", "b", "c"]
    assert loader.failures == [FailedCase(Path(name).stem, REASON)]


def test_reason_is_the_message_of_this_project_however_deep():
    error = RuntimeError(f"applying transform {SECRET}")
    error.__cause__ = RuntimeError(SECRET)
    error.__cause__.__cause__ = ImageFileError(REASON)
    error.__cause__.__cause__.__cause__ = OSError(SECRET)
    assert CaseDataset([{"case_id": "a", "error": error}], Load())[0] == FailedCase("a", REASON)


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ZeroDivisionError, MemoryError])
def test_unforeseen_error_is_reported_by_its_type_and_not_by_its_text(kind, caplog):
    cases = [*make_cases(2), {"case_id": "bad", "image": (), "error": kind(SECRET)}]
    loader = make_loader(cases)
    with caplog.at_level(logging.DEBUG):
        assert names_of(list(loader)) == [["0", "1"]]
    assert loader.failures == [FailedCase("bad", f"unforeseen {kind.__name__} while loading; please report it")]
    assert "bad: left out: unforeseen" in caplog.text
    assert SECRET not in caplog.text


def test_unforeseen_error_is_reported_by_the_type_at_its_root():
    error = RuntimeError("applying transform")
    error.__cause__ = KeyError(SECRET)
    failed = CaseDataset([{"case_id": "a", "error": error}], Load())[0]
    assert failed == FailedCase("a", "unforeseen KeyError while loading; please report it")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_keyboard_interrupt_is_not_a_bad_file(error):
    with pytest.raises(type(error)):
        list(make_loader([{"case_id": "a", "error": error}]))


def test_dataset_leaves_the_datalist_alone():
    def mark(case: dict) -> dict:
        case["seen"] = True
        return case

    cases = [{"case_id": "a", "image": "a.png"}]
    assert CaseDataset(cases, mark)[0]["seen"]
    assert cases == [{"case_id": "a", "image": "a.png"}]


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (7, [7]), (100, [7])]
)
def test_batches_are_full_and_in_order(batch_size, sizes):
    batches = list(make_loader(make_cases(7), batch_size=batch_size))
    assert [len(batch["image"]) for batch in batches] == sizes
    assert list(chain.from_iterable(names_of(batches))) == [str(i) for i in range(7)]


def test_another_shape_starts_another_batch():
    shapes = {2: (3, 5, 5), 3: (3, 5, 5), 4: (3, 6, 4)}
    batches = list(make_loader(make_cases(7, shapes=shapes), batch_size=4))
    assert names_of(batches) == [["0", "1"], ["2", "3"], ["4"], ["5", "6"]]
    assert [tuple(batch["image"].shape[1:]) for batch in batches] == [(3, 4, 6), (3, 5, 5), (3, 6, 4), (3, 4, 6)]


def test_volumes_come_alone():
    shapes = dict.fromkeys((1, 2, 4), (3, 4, 6, 5))
    batches = list(make_loader(make_cases(6, shapes=shapes, bad=(5,)), batch_size=4))
    assert names_of(batches) == [["0"], ["1"], ["2"], ["3"], ["4"]]
    assert [batch["image"].ndim for batch in batches] == [4, 5, 5, 4, 5]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads, which later Pythons give
def test_workers_change_nothing():
    cases = make_cases(9, bad=(0, 4, 8), shapes={5: (3, 6, 4), 6: (3, 6, 4, 2)})
    alone, helped = make_loader(cases, batch_size=3), make_loader(cases, batch_size=3, num_workers=2)
    expected, batches = list(alone), list(helped)
    assert names_of(batches) == names_of(expected) == [["1", "2", "3"], ["5"], ["6"], ["7"]]
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(batches, expected, strict=True))
    assert helped.failures == alone.failures == [FailedCase(name, REASON) for name in ("0", "4", "8")]


def test_failures_are_those_of_the_last_pass_in_one_list():
    loader = make_loader(make_cases(3, bad=(1,)))
    failures = loader.failures
    assert failures == []
    for _ in range(2):
        list(loader)
        assert loader.failures is failures
        assert [failure.case_id for failure in failures] == ["1"]


def test_failures_are_logged_as_they_come(caplog):
    loader = make_loader(make_cases(2, bad=(0,)))
    with caplog.at_level(logging.WARNING, logger="mrad_med.data.loader"):
        next(iter(loader))
    assert caplog.messages == [f"0: left out: {REASON}"]


def test_failures_are_named_at_the_end_of_a_run():
    loader = make_loader([*make_cases(3, bad=(2,)), {"case_id": "visit 2/x", "error": KeyError(SECRET)}])
    list(loader)
    with pytest.raises(
        FailedCasesError,
        match=r"^2 of 4 case\(s\) failed, the others are done:\n  2: the file is empty .*\n  visit 2/x: unforeseen Key",
    ) as error:
        loader.raise_for_failures()
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("bad", [(), (1,)])
def test_run_without_failures_ends_in_silence(bad):
    loader = make_loader(make_cases(3, bad=bad))
    loader.raise_for_failures()  # nothing has run yet
    list(loader)
    loader.dataset.data[1].pop("error", None)  # the file is copied again
    list(loader)
    loader.raise_for_failures()
    assert loader.failures == []


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_can_be_switched_off(capsys, progress):
    list(CaseLoader(CaseDataset(make_cases(2), Load()), progress=progress))
    assert ("images" in capsys.readouterr().err) is progress


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        make_loader(make_cases(1), batch_size=batch_size)


def evaluate(loader: CaseLoader) -> tuple[SupervisedEvaluator, list[tuple[int, ...]]]:
    shapes = []

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(images.shape))
            return images.mean((1, 2, 3))

    evaluator = SupervisedEvaluator(device=torch.device("cpu"), val_data_loader=loader, network=Network())
    evaluator.run()
    return evaluator, shapes


def test_evaluator_of_monai_takes_the_loader():
    loader = make_loader(make_cases(5, bad=(1,)), batch_size=2)
    evaluator, shapes = evaluate(loader)
    assert shapes == [(2, 3, 4, 6), (2, 3, 4, 6)]
    assert evaluator.state.iteration == 2
    assert len(loader.failures) == 1


def test_evaluation_without_a_single_good_file_ends_without_an_error():
    loader = make_loader(make_cases(3, bad=(0, 1, 2)))
    _, shapes = evaluate(loader)
    assert shapes == []
    assert len(loader.failures) == 3


def test_progress_of_real_files_is_counted_in_cases(tmp_path, tiny_clip, capsys):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    steps = build_preprocessing(tiny_clip.card, ImageView(image_size=56))
    loader = CaseLoader(CaseDataset(find_cases(tmp_path), steps))
    assert len(list(loader)) == 1
    assert "2/2" in capsys.readouterr().err
    assert loader.failures == [
        FailedCase("b", "not an image in any known format; check that the name is right and the copy complete")
    ]
