"""Processes that read ahead: no shared memory, unchanged items, and a lost process loses one item."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd

from mrad_med import CaseDataset, CaseLoader
from mrad_med.data import workers
from mrad_med.data.workers import LostItem, load_ahead
from mrad_med.errors import FailedCasesError
from mrad_med.types import FailedCase

KILLED = "the process that loaded it was killed, probably out of memory: use fewer --jobs (num_workers)"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of forking with threads, which later Pythons give
    pytest.mark.skipif(sys.platform != "linux", reason="these datasets reach forked processes only"),
]


class Actions:
    """A dataset of functions; an item is what its function returns."""

    def __init__(self, *actions) -> None:
        self.actions = actions

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, index: int):
        return self.actions[index]()


def give(value):
    return lambda: value


def die(number: int):
    def end() -> None:
        faulthandler.disable()  # pytest's, which would print the stack
        os.kill(os.getpid(), number)

    return end


def children() -> list:
    return multiprocessing.active_children()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split(")")[-1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 13])
def test_items_come_in_order_from_other_processes(num_workers, count):
    def item(index: int):
        def load() -> tuple[int, int]:
            time.sleep(0.02 * (index % 3 == 0))  # later ones are ready earlier
            return index, os.getpid()

        return load

    found = list(load_ahead(Actions(*map(item, range(count))), num_workers=num_workers))
    assert [index for index, _ in found] == list(range(count))
    assert os.getpid() not in {process for _, process in found}
    assert len({process for _, process in found}) <= num_workers
    assert children() == []


def test_tensors_arrays_and_the_history_of_transforms_arrive_as_they_were():
    steps = Compose([Flipd("image", spatial_axis=0)])
    image = MetaTensor(torch.arange(24.0).reshape(1, 4, 6), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    image.meta["windows"] = np.array([[1.0, 2.0]])

    def load() -> dict:
        return {
            **steps({"image": image}),
            "mask": torch.ones(2, 3, dtype=torch.uint8).T,
            "half": torch.tensor([1.5], dtype=torch.bfloat16),
            "name": "a",
            "nothing": None,
        }

    (found,), expected = load_ahead(Actions(load), num_workers=1), load()
    assert type(found["image"]) is MetaTensor
    for name in ("image", "mask", "half"):
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(expected[name]))
    assert torch.equal(found["image"].affine, expected["image"].affine)
    assert found["image"].affine.dtype == expected["image"].affine.dtype
    np.testing.assert_array_equal(found["image"].meta["windows"], image.meta["windows"])
    assert found["image"].applied_operations == expected["image"].applied_operations
    assert torch.equal(steps.inverse(found)["image"].as_tensor(), image.as_tensor())
    found["image"] += 1  # it is writable
    assert (found["name"], found["nothing"]) == ("a", None)


def test_no_tensor_goes_through_shared_memory(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("shared memory was asked for")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_shared"):
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)
    volume = torch.rand(3, 128, 128, 40)  # 8 MB, more than a pipe holds
    for found in load_ahead(Actions(*[give({"image": MetaTensor(volume)})] * 3), num_workers=2):
        assert torch.equal(found["image"].as_tensor(), volume)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (die(signal.SIGKILL), KILLED),
        (
            die(signal.SIGTERM),
            r"the process that loaded it crashed (SIGTERM); the file may be damaged: leave it out and ",
        ),
        (
            die(signal.SIGSEGV),
            r"the process that loaded it crashed (SIGSEGV); the file may be damaged: leave it out and ",
        ),
        (lambda: os._exit(3), "the process that loaded it ended with status 3; please report it"),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_lost_process_costs_its_item_alone(ending, reason, num_workers):
    dataset = Actions(give(0), ending, give(2), ending, ending, give(5), ending)
    found = list(load_ahead(dataset, num_workers=num_workers))
    assert [item if isinstance(item, int) else item.index for item in found] == list(range(7))
    lost = [item for item in found if isinstance(item, LostItem)]
    assert [item.index for item in lost] == [1, 3, 4, 6]
    assert all(item.reason.startswith(reason) for item in lost)
    assert children() == []


def test_a_process_that_is_killed_from_outside_while_it_loads_is_named(tmp_path):
    def load() -> None:
        (tmp_path / "process").write_text(str(os.getpid()))
        time.sleep(60)

    def kill() -> str:
        while not (tmp_path / "process").is_file() or not (tmp_path / "process").read_text():
            time.sleep(0.01)
        os.kill(int((tmp_path / "process").read_text()), signal.SIGKILL)
        return "done"

    assert list(load_ahead(Actions(load, kill), num_workers=2)) == [LostItem(0, KILLED), "done"]


def test_an_item_that_takes_too_long_is_given_up():
    dataset = Actions(give(0), lambda: time.sleep(60), give(2), give(3))
    start = time.monotonic()
    found = list(load_ahead(dataset, num_workers=1, time_limit=0.5))
    assert time.monotonic() - start < 30
    reason = "loading it took more than 0.5 s; check that its disk or network folder can be reached"
    assert found == [0, LostItem(1, reason), 2, 3]
    assert children() == []


def test_a_process_that_hardly_ended_its_item_before_it_was_killed_loses_the_next_one_at_most():
    def give_and_die() -> int:
        parent = os.getpid()
        if os.fork() == 0:  # kills this process soon after it has sent the item
            time.sleep(0.3)
            os.kill(parent, signal.SIGKILL)
            os._exit(0)
        return 0

    first, second = load_ahead(Actions(give_and_die, lambda: time.sleep(5)), num_workers=1)
    assert (first, second) == (0, LostItem(1, KILLED))


@pytest.mark.parametrize("error", [KeyError("a"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_is_raised_where_the_items_are_asked_for(error):
    def fail() -> None:
        raise error

    items = load_ahead(Actions(give(0), fail, give(2)), num_workers=2)
    assert next(items) == 0
    with pytest.raises(type(error)) as raised:
        next(items)
    assert raised.value.args == error.args
    assert children() == []


def test_what_cannot_be_sent_is_named_by_its_kind():
    class LocalError(Exception):
        pass

    def fail() -> None:
        raise LocalError(lambda: None)

    with pytest.raises(RuntimeError, match=r"^loading an item raised LocalError$"):
        list(load_ahead(Actions(fail), num_workers=1))
    with pytest.raises((AttributeError, TypeError, RuntimeError), match=r"lambda|loading an item raised"):
        list(load_ahead(Actions(give(lambda: None)), num_workers=1))


def test_processes_end_when_no_more_items_are_asked_for():
    items = load_ahead(Actions(*map(give, range(20))), num_workers=2)
    assert next(items) == 0
    assert len(children()) == 2
    items.close()
    assert children() == []


def test_processes_end_when_the_one_that_asks_is_killed(tmp_path):
    program = f"""
import os, signal, sys
from mrad_med.data.workers import load_ahead
class Numbers:
    def __len__(self): return 100
    def __getitem__(self, index): return os.getpid()
items = load_ahead(Numbers(), num_workers=3)
found = {{next(items) for _ in range(30)}}
open({str(tmp_path / "processes")!r}, "w").write(" ".join(map(str, found)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    processes = list(map(int, (tmp_path / "processes").read_text(encoding="utf-8").split()))
    assert 1 <= len(processes) <= 3
    until = time.monotonic() + 20
    while any(map(is_running, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, processes))


def test_a_lack_of_processes_is_named(monkeypatch):
    def refuse(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers._Pool, "_start", refuse)
    with pytest.raises(OSError, match=r"cannot start a process to read ahead \(Resource temp.*\): use fewer --jobs"):
        list(load_ahead(Actions(give(0)), num_workers=2))


@pytest.mark.parametrize(("ending", "lost"), [(give("well"), ["well", "well"]), (die(signal.SIGKILL), None)])
def test_fewer_processes_than_asked_for_do_the_work(monkeypatch, ending, lost):
    start = workers._Pool._start

    def start_one_at_a_time(pool: workers._Pool) -> None:
        if pool._workers:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(pool)

    monkeypatch.setattr(workers._Pool, "_start", start_one_at_a_time)
    dataset = Actions(give(0), ending, ending, give(3), give(4))
    found = list(load_ahead(dataset, num_workers=3))
    expected = lost or [LostItem(1, KILLED), LostItem(2, KILLED)]
    assert found == [0, *expected, 3, 4]


def test_workers_leave_the_number_of_threads_and_open_files_alone():
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, files = torch.get_num_threads(), open_files()
    found = list(load_ahead(Actions(*[torch.get_num_threads] * 6), num_workers=3))
    assert found == [1] * 6
    assert torch.get_num_threads() == before
    assert open_files() == files


class LoadOrDie:
    """Test preprocessing; one case is too large for the memory."""

    def __call__(self, case: dict) -> dict:
        if case["case_id"] == "large":
            os.kill(os.getpid(), signal.SIGKILL)
        return {**case, "image": MetaTensor(torch.zeros(3, 4, 4))}


def test_the_case_of_a_killed_process_is_named_and_the_others_are_done():
    cases = [{"case_id": name, "image": name, "study": "visit"} for name in ("a", "large", "b", "c")]
    loader = CaseLoader(CaseDataset(cases, LoadOrDie()), batch_size=2, num_workers=2, progress=False)
    for _ in range(2):
        assert [list(batch["case_id"]) for batch in loader] == [["a", "b"], ["c"]]
        assert loader.failures == [FailedCase("large", KILLED, "visit")]
    with pytest.raises(FailedCasesError, match=r"^1 of 4 case\(s\) failed, the others are done:\n  large: .*--jobs"):
        loader.raise_for_failures()
    assert children() == []


def test_an_iteration_that_is_given_up_stops_the_processes():
    cases = [{"case_id": str(index), "image": ""} for index in range(9)]
    batches = iter(CaseLoader(CaseDataset(cases, LoadOrDie()), batch_size=1, num_workers=2, progress=False))
    next(batches)
    assert len(children()) == 2
    batches.close()
    assert children() == []


def test_a_time_limit_reaches_the_processes():
    class Wait:
        def __call__(self, case: dict) -> dict:
            time.sleep(60 * (case["case_id"] == "slow"))
            return {**case, "image": MetaTensor(torch.zeros(3, 4, 4))}

    dataset = CaseDataset([{"case_id": "slow", "image": ""}, {"case_id": "fast", "image": ""}], Wait())
    loader = CaseLoader(dataset, num_workers=1, progress=False, time_limit=0.5)
    assert [list(batch["case_id"]) for batch in loader] == [["fast"]]
    (failure,) = loader.failures
    assert failure.case_id == "slow"
    assert "took more than 0.5 s" in failure.reason


def test_a_negative_number_of_processes_is_refused():
    with pytest.raises(ValueError, match=r"num_workers \(--jobs\) must be at least 0, got -1"):
        CaseLoader(CaseDataset([], LoadOrDie()), num_workers=-1)
