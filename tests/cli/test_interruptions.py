"""Runs that are stopped, and standard streams that are closed, full, or no longer read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrad_med
from mrad_med.cli import console, main
from mrad_med.cli.interruptions import Stopped, stopping_in_order, sturdy_streams
from mrad_med.store import LOCK_NAME

SMALL = ["--bundle", "mrad_tf", "--image_size", "70", "--device", "cpu", "--batch_size", "1"]
COUNT = 400  # images of a run that must not come to its end
STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129}


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.RandomState(index).randint(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


# signals


@pytest.mark.parametrize("number", STATUS)
def test_signal_is_raised_once_in_the_main_thread_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stopping_in_order() as received:
        with pytest.raises(Stopped, match=f"stopped by {number.name}"):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # while the run ends: ignored
        assert received == [number]
    assert signal.getsignal(number) is before


def test_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_in_order() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_set_no_handlers():
    seen: list = []

    def look() -> None:
        with stopping_in_order():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_forked_process_ends_at_once():
    ready, started = os.pipe()
    with stopping_in_order():
        child = os.fork()
        if child == 0:
            os.write(started, b"!")
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


@pytest.mark.parametrize("number", STATUS)
def test_stopped_command_ends_with_the_status_of_the_signal_and_its_tables(tmp_path, monkeypatch, capsys, number):
    folder, out = photographs(tmp_path / "images", 3), tmp_path / "out"
    write = mrad_med.ResultWriter.write

    def write_and_stop(self, result) -> None:
        write(self, result)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(mrad_med.ResultWriter, "write", write_and_stop)
    assert main(["detect", str(folder), "--out", str(out), *SMALL]) == STATUS[number]
    assert record(out)["complete"] is False
    assert record(out)["not_reached"] == {"count": 2, "cases": ["001", "002"]}
    assert len((out / "scores.csv").read_text(encoding="utf-8").splitlines()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "mrad-med: stopped; files that are already written are complete"
    assert not (out / LOCK_NAME).exists()
    monkeypatch.undo()
    assert main(["detect", str(folder), "--out", str(out), *SMALL]) == 0
    assert "1 of 3 case(s) are finished already" in capsys.readouterr().out
    assert record(out)["complete"] is True


def test_worker_that_the_signal_ended_first_changes_no_status(monkeypatch, capsys):
    def end(_) -> int:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal")

    monkeypatch.setattr("mrad_med.cli.datasets._datasets", end)
    assert main(["datasets"]) == 143
    assert capsys.readouterr().err == "mrad-med: stopped; files that are already written are complete\n"


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_bytes().splitlines()) < lines:
        assert time.monotonic() < deadline, "nothing was finished in two minutes"
        time.sleep(0.02)


@pytest.mark.slow  # starts the command three times, and waits for it
def test_processes_that_are_killed_or_stopped_say_what_they_did_not_reach(tmp_path):
    folder, out = photographs(tmp_path / "images", COUNT), tmp_path / "out"
    words = [sys.executable, "-m", "mrad_med", "detect", str(folder), "--out", str(out), *SMALL, "--write", "png"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(out / "finished.jsonl", 3)
    process.kill()
    process.communicate()
    assert record(out)["complete"] is False
    assert record(out)["not_reached"]["count"] == COUNT  # as at its start: it had no time to count
    done = len((out / "finished.jsonl").read_text(encoding="utf-8").splitlines())
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(out / "finished.jsonl", done + 3)
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    done = len((out / "finished.jsonl").read_text(encoding="utf-8").splitlines())
    missing = record(out)["not_reached"]
    assert missing == {"count": COUNT - done, "cases": [f"{index:03}" for index in range(done, COUNT)]}
    assert refused.returncode == 2
    assert f"is being written to by process {process.pid} on " in refused.stderr.splitlines()[-1]


# standard streams


def run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m mrad_med"
    return subprocess.run(
        ["bash", "-c", command.replace("mrad-med", program)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "status", "errors"),
    [
        ("mrad-med datasets | head -1; exit ${PIPESTATUS[0]}", 0, ""),
        ("mrad-med datasets --help | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("mrad-med datasets >&-", 0, ""),
        ("mrad-med datasets 2>&-", 0, ""),
        ("mrad-med datasets >&- 2>&- <&-", 0, ""),
        ("mrad-med datasets --root /none >&- 2>&-", 2, ""),
        ("mrad-med datasets --root /none 2>/dev/full", 2, ""),
        (
            "mrad-med datasets >/dev/full",
            1,
            "mrad-med: standard output cannot be written (No space left on device); results are not affected\n",
        ),
    ],
)
def test_stream_that_cannot_be_written_stops_nothing_and_makes_no_noise(command, status, errors):
    finished = run_in_shell(command)
    assert (finished.returncode, finished.stderr) == (status, errors)


def test_work_continues_after_the_reader_of_both_streams_went_away(tmp_path):
    """Progress is written to standard error, again and again."""
    folder, out = photographs(tmp_path / "images", 4), tmp_path / "out"
    words = " ".join(["detect", str(folder), "--out", str(out), *SMALL, "--write", "png"])
    finished = run_in_shell(f"mrad-med {words} 2>&1 | true; exit ${{PIPESTATUS[0]}}")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert record(out)["complete"] is True


def test_closed_streams_do_not_end_up_in_a_file_of_results(tmp_path):
    program = (
        "from mrad_med.cli.interruptions import sturdy_streams\n"
        "import sys\n"
        "with sturdy_streams():\n"
        "    result = open(sys.argv[1], 'w')\n"
        "    assert result.fileno() > 2\n"
        "    print('to nobody')\n"
        "    print('to nobody', file=sys.stderr)\n"
        "    result.write('result')\n"
    )
    command = f'{sys.executable} -c "$PROGRAM" {tmp_path / "result"} <&- >&- 2>&-'
    environment = {**os.environ, "PROGRAM": program}
    subprocess.run(["bash", "-c", command], env=environment, check=True)
    assert (tmp_path / "result").read_text() == "result"


def test_streams_are_given_back(capsys):
    before = sys.stdout, sys.stderr
    with sturdy_streams() as problems:
        assert sys.stdout is not before[0]
        console.say("a line")
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "a line\n"
    assert problems == []


# no folder for temporary files


def test_images_and_videos_are_scored_without_a_folder_for_temporary_files(tmp_path, monkeypatch):
    folder, out = photographs(tmp_path / "images", 3), tmp_path / "out"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    for words in ([], ["--sequence_rate", "5"], ["--jobs", "1", "--restart"]):
        assert main(["detect", str(folder), "--out", str(out), *SMALL, *words]) == 0
