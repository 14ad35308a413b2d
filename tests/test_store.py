"""Keys of finished work, files that change while they are read, and locks of folders."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mrad_med import store as module
from mrad_med.errors import OutputError
from mrad_med.store import LOCK_NAME, FolderLock, Snapshot, content_key, contents_of, hash_of_file, make_key, paths_of

YEAR_2000 = 946_684_800
TICK = 0.02  # seconds, more than the step of the system's file times


def write(path: Path, content: bytes = b"pixels", *, old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if old:
        os.utime(path, (YEAR_2000, YEAR_2000))
    return path


# keys


def test_key_is_the_sha256_of_the_values_as_json():
    assert make_key("a", 1, None) == hashlib.sha256(b'[2, "a", 1, null]').hexdigest()


def test_order_of_settings_and_kind_of_path_do_not_matter():
    assert make_key({"b": Path("x"), "a": (1, 2)}) == make_key({"a": [1, 2], "b": "x"})


def test_values_that_differ_make_other_keys():
    values = [(), ("",), ("", ""), ("a", "b"), ("ab",), (["a", "b"],), ({"a": "b"},), (1,), (1.0,), (True,), (None,)]
    assert len({make_key(*item) for item in values}) == len(values)


def test_key_is_the_same_in_another_process():
    program = "from mrad_med.store import make_key; print(make_key({'a': 1, 'b': [0.1, 'é']}))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == make_key({"b": [0.1, "é"], "a": 1})


# hashes of files


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that are read to be hashed."""
    names: list[str] = []
    sha256 = module.sha256_of_file
    monkeypatch.setattr(module, "sha256_of_file", lambda path: names.append(Path(path).name) or sha256(path))
    return names


@pytest.fixture
def settled(monkeypatch) -> None:
    """Treat every file as one that was written long ago, because ctime cannot be set."""
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**18))


def test_hash_is_that_of_the_content_and_taken_once(tmp_path, hashed, settled):
    path = write(tmp_path / "a")
    assert [hash_of_file(path), hash_of_file(str(path))] == [hashlib.sha256(b"pixels").hexdigest()] * 2
    assert hashed == ["a"]


def test_file_of_another_content_is_hashed_again_whatever_its_name_size_and_time(tmp_path, hashed, settled):
    path = write(tmp_path / "a", b"one")
    first = hash_of_file(path)
    os.replace(write(tmp_path / "b", b"two"), path)
    assert hash_of_file(path) == hashlib.sha256(b"two").hexdigest() != first
    time.sleep(TICK)
    write(path, b"six")  # in place: the same inode, size and time of change
    assert hash_of_file(path) == hashlib.sha256(b"six").hexdigest()


def test_file_that_was_just_written_is_not_remembered(tmp_path, hashed):
    path = write(tmp_path / "a", old=False)
    assert hash_of_file(path) == hash_of_file(path)
    assert hashed == ["a", "a"]


@pytest.mark.parametrize("ahead", [10, 10**6])
def test_clock_that_went_back_costs_a_hash_and_no_trust(tmp_path, hashed, monkeypatch, ahead):
    """The times of the file then are in the future."""
    path, now = write(tmp_path / "a", old=False), time.time_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: now() - ahead * 10**9)
    assert hash_of_file(path) == hash_of_file(path)
    assert hashed == ["a", "a"]


def test_missing_file_has_no_hash_but_a_key_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        hash_of_file(tmp_path / "none")
    assert content_key(tmp_path / "none") != content_key(tmp_path / "other")
    assert content_key(write(tmp_path / "a")) == hashlib.sha256(b"pixels").hexdigest()


def test_only_paths_have_files(tmp_path):
    assert [list(paths_of(source)) for source in ("a", tmp_path, ["a", "b"], ("a",), None, 3, {"a": 1})] == [
        *(["a"], [tmp_path], ["a", "b"], ["a"], [], [], [])
    ]


# snapshots


@pytest.fixture(params=["settled", "just written"])
def pair(request, tmp_path, monkeypatch) -> list[Path]:
    """Two files that were written long ago, or just now."""
    if request.param == "settled":
        monkeypatch.setattr(module, "_SETTLED_NS", -(10**18))
    return [write(tmp_path / name, name.encode() * 3) for name in "ab"]


def test_contents_of_files_that_stayed_are_their_hashes_in_order(pair):
    hashes = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in pair)
    assert Snapshot(pair).contents() == hashes
    assert Snapshot(pair[::-1]).contents() == hashes[::-1]
    assert Snapshot([]).contents() == ()


CHANGES = {
    "written": lambda path: write(path, b"xyz"),
    "longer": lambda path: write(path, b"xyzxyz"),
    "replaced": lambda path: os.replace(write(path.with_name("new"), b"xyz"), path),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_changed_since_the_snapshot_have_no_contents(pair, change):
    snapshot = Snapshot(pair)
    time.sleep(TICK)
    CHANGES[change](pair[1])
    assert snapshot.contents() is None
    assert (Snapshot(pair).contents() is None) is (change == "gone")


def test_snapshot_of_settled_files_reads_nothing(tmp_path, hashed, settled):
    Snapshot([write(tmp_path / "a")])
    assert hashed == []


# labeled cases


def test_labeled_case_is_its_files_its_label_and_its_threshold(tmp_path):
    case = {"case_id": "a", "image": write(tmp_path / "a"), "mask": write(tmp_path / "m", b"mask"), "label": 1}
    variants = [
        case,
        {**case, "label": 0},
        {**case, "mask": None},
        {**case, "mask": case["image"]},
        {**case, "image": case["mask"], "mask": case["image"]},
        {**case, "mask_threshold": 0},
        {**case, "mask_threshold": 127},
    ]
    keys = [contents_of([variant])[0]["a"] for variant in variants]
    assert len(set(keys)) == len(variants)
    same = {**case, "case_id": "b", "class": "c", "image": str(shutil.copy(case["image"], tmp_path / "moved"))}
    assert contents_of([same]) == ({"b": keys[0]}, [])
    assert contents_of([{**variants[5], "mask_threshold": 0.0}])[0]["a"] == keys[5]


def test_labeled_case_whose_file_is_gone_is_named_with_the_reason(tmp_path):
    good = {"case_id": "a", "image": write(tmp_path / "a"), "label": 0}
    bad = {**good, "case_id": "b", "mask": tmp_path / "none"}
    contents, (failure,) = contents_of([good, bad])
    assert list(contents) == ["a"]
    assert (failure.case_id, failure.reason) == (
        "b",
        "its mask cannot be read (No such file or directory); look at the path",
    )


# locks of folders


def lock_of(folder: Path) -> dict:
    return json.loads((folder / LOCK_NAME).read_text(encoding="utf-8"))


def leave_lock(folder: Path, **values) -> Path:
    """Write the lock of another process."""
    with FolderLock(folder):
        known = lock_of(folder)
    path = folder / LOCK_NAME
    path.write_text(json.dumps({**known, **values}), encoding="utf-8")
    return path


def start_of(pid: int) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"


@pytest.fixture
def sleeper():
    """Another process of this host."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    process.kill()
    process.wait()


def test_lock_names_host_and_process_and_goes_when_it_is_released(tmp_path):
    with FolderLock(tmp_path):
        found = lock_of(tmp_path)
        assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
        assert found["started"] == start_of(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_objects_of_one_process_share_a_lock_and_the_last_one_returns_it(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path / "." / "")
    first.release()
    first.release()  # once more does nothing
    assert (tmp_path / LOCK_NAME).exists()
    del second  # without being asked to
    assert not (tmp_path / LOCK_NAME).exists()


def test_another_process_is_refused_by_name_even_if_it_wants_to_take_over(tmp_path, sleeper):
    leave_lock(tmp_path, pid=sleeper, started=start_of(sleeper))
    for take_over in (False, True):
        with pytest.raises(OutputError) as refusal:
            FolderLock(tmp_path, take_over=take_over)
        who = f"process {sleeper} on {socket.gethostname()}"
        assert str(refusal.value) == (
            f"{tmp_path} is being written to by {who}: wait until it has finished, or choose another folder"
        )
    assert lock_of(tmp_path)["pid"] == sleeper


def test_lock_of_a_process_that_is_gone_is_replaced(tmp_path, sleeper):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for values in ({"pid": gone.pid}, {"pid": sleeper, "started": "another boot 7"}, {"pid": 0}, {"pid": -1}):
        leave_lock(tmp_path, **values)
        with FolderLock(tmp_path):
            assert lock_of(tmp_path)["pid"] == os.getpid()


def test_process_that_was_killed_and_waits_for_its_parent_is_gone(tmp_path):
    zombie = subprocess.Popen(["sleep", "60"])
    leave_lock(tmp_path, pid=zombie.pid, started=start_of(zombie.pid))
    zombie.kill()
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    FolderLock(tmp_path).release()
    zombie.wait()


def test_without_proc_a_process_that_lives_is_believed_to_be_the_one(tmp_path, sleeper, monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(module, "_start_of", lambda _: "")
    leave_lock(tmp_path, pid=sleeper, started="another boot 7")
    with pytest.raises(OutputError, match=f"process {sleeper} on"):
        FolderLock(tmp_path)
    lock = {**lock_of(tmp_path), "pid": gone.pid}
    (tmp_path / LOCK_NAME).write_text(json.dumps(lock), encoding="utf-8")
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("values", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_lock_of_another_host_or_container_is_replaced_only_on_request(tmp_path, values):
    leave_lock(tmp_path, pid=4711, **values)
    with pytest.raises(
        OutputError, match=r"process 4711 on \S+: .*\. If that process has ended, .*--take-over, in Python"
    ):
        FolderLock(tmp_path)
    FolderLock(tmp_path, take_over=True).release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": "x", "pid": "y"}', "\0\0\0"])
def test_lock_that_cannot_be_read_is_replaced_only_on_request(tmp_path, content):
    (tmp_path / LOCK_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=r"by another process \(its lock cannot be read\): .*--take-over"):
        FolderLock(tmp_path)
    FolderLock(tmp_path, take_over=True).release()


def test_lock_that_another_process_took_over_stays(tmp_path):
    mine = FolderLock(tmp_path)
    path = tmp_path / LOCK_NAME
    path.write_text(json.dumps({**lock_of(tmp_path), "host": "elsewhere"}), encoding="utf-8")
    mine.release()
    assert path.exists()


def test_folder_that_is_gone_or_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"cannot write to .*none \(No such file or directory\); choose another"):
        FolderLock(tmp_path / "none")

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.json, "dump", refuse)
    with pytest.raises(OutputError, match="Read-only file system"):
        FolderLock(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_processes_takes_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rank_and_world", lambda: (1, 2))
    FolderLock(tmp_path).release()
    with FolderLock(tmp_path):
        assert list(tmp_path.iterdir()) == []


def _hold(folder: str, connection) -> None:
    lock = FolderLock(folder)
    connection.send("held")
    connection.recv()
    lock.release()


def test_of_two_processes_one_has_the_folder_until_it_ends_or_is_killed(tmp_path):
    fork = multiprocessing.get_context("fork")
    for ends in ("by itself", "killed"):
        here, there = fork.Pipe()
        child = fork.Process(target=_hold, args=(str(tmp_path), there))
        child.start()
        assert here.recv() == "held"
        with pytest.raises(OutputError, match=f"process {child.pid} on"):
            FolderLock(tmp_path)
        if ends == "killed":
            os.kill(child.pid, signal.SIGKILL)
        else:
            here.send("end")
        child.join()
        assert (tmp_path / LOCK_NAME).exists() is (ends == "killed")
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def _give_up(lock: FolderLock) -> None:
    lock.release()


def test_forked_child_does_not_return_what_its_parent_holds(tmp_path):
    with FolderLock(tmp_path) as lock:
        child = multiprocessing.get_context("fork").Process(target=_give_up, args=(lock,))
        child.start()
        child.join()
        assert (tmp_path / LOCK_NAME).exists()


def _race(folder: str, barrier, won) -> None:
    barrier.wait()
    lock = None
    with suppress(OutputError):
        lock = FolderLock(folder)
        won.put(os.getpid())
    barrier.wait()  # the winner holds it until all have tried
    del lock


def test_of_many_that_find_a_stale_lock_one_wins(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    leave_lock(tmp_path, pid=gone.pid)
    fork = multiprocessing.get_context("fork")
    barrier, won = fork.Barrier(6), fork.Queue()
    children = [fork.Process(target=_race, args=(str(tmp_path), barrier, won)) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    winner = won.get(timeout=5)
    assert won.empty()
    assert winner in [child.pid for child in children]


def test_who_takes_a_folder_removes_what_killed_processes_left_in_it(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    half = f".partial-{process.pid}-a.tiff"
    for folder in ("maps", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / half).write_bytes(b"half")
    (tmp_path / "maps" / "a.tiff").write_bytes(b"whole")
    with FolderLock(tmp_path / "other"):
        assert not (tmp_path / "other" / half).exists()
        (tmp_path / "other" / half).write_bytes(b"half")
        with FolderLock(tmp_path):
            assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a.tiff"]
            assert (tmp_path / "other" / half).exists()  # its folder belongs to somebody else
