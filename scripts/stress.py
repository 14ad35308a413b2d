"""Interrupt commands at random times, run them again, and compare the results with those of an uninterrupted run.

Usage:
    python scripts/stress.py
    python scripts/stress.py --rounds 4 --seed 7 --only detect evaluate

A round interrupts one command once. The process is killed (SIGKILL), asked to end (SIGTERM), or runs out of disk space.
The full disk is a small tmpfs if mounting is permitted, otherwise a limit on the size of files. The same command then
runs to its end, and these conditions are checked:

- The files equal those of an uninterrupted run: scores and maps within 1e-6, the rest exactly except times and dates.
- ``"complete"`` in ``run.json``, if the file exists, is false after the interruption and true at the end.
- No process is left.

Every fault and a table of the rounds are printed. The exit status is 1 if there is a fault.

The inputs are small: sample images, a series and surfaces, scored at 126 x 126 pixels with the embedded backbone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import tifffile
from compare_revisions import plain
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
INPUTS = """
import mrad_med
from mrad_med.data.phantoms import make_chest_phantom, write_sample_series
mrad_med.write_sample_images("images")
volume, _, affine = make_chest_phantom((64, 64, 6))
write_sample_series("images/ct", volume, affine)
mrad_med.write_sample_dataset("set", count=4)
mrad_med.write_surface_dataset("surfaces", surfaces=["fabric", "leather", "tiles"], count=2)
"""
SMALL = "--image_size 126 --device cpu"
COMMANDS = {
    "detect": f"detect images --bundle mrad_tf --out OUT --batch_size 1 --jobs 2 {SMALL}",
    "evaluate": f"evaluate mrad_tf --dataset folder --dataset_dir set --output_dir OUT --resamples 9 {SMALL}",
    "train": f"train mrad_ft --dataset_dir surfaces --output_dir OUT --tensorboard False --max_epochs 3 {SMALL}",
    "export": f"export mrad_tf --out OUT/mrad.ts {SMALL}",
}
INTERRUPTIONS = ("SIGKILL", "SIGTERM", "full disk")
TOLERANCE = 1e-6
LARGE = 2**30  # size in bytes of a disk that is not full
IN_NAMESPACE = "MRAD_MED_STRESS_CAN_MOUNT"


@dataclass
class Reference:
    """An uninterrupted run.

    Attributes:
        folder: folder of the results.
        status: exit status.
        seconds: time in seconds from the creation of the folder to the end of the run.
        size: size of the results in bytes.
    """

    folder: Path
    status: int
    seconds: float
    size: int


@dataclass
class Round:
    """Outcome of one round; ``moment`` is the time after the creation of the folder, or the free space of the disk."""

    command: str
    interruption: str
    moment: str
    status: int
    faults: list[str]


def start(words: list[str], out: Path, work: Path, *, file_limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command in a new process group, with its results in a folder."""
    command = [sys.executable, "-m", "mrad_med", *(word.replace("OUT", str(out)) for word in words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "0"}
    limit = None if file_limit is None else partial(resource.setrlimit, resource.RLIMIT_FSIZE, (file_limit, LARGE))
    settings = {"cwd": work, "env": environment, "start_new_session": True, "preexec_fn": limit}
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, **settings)


def appears(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait for a file or folder, or for the end of the process."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def run_undisturbed(words: list[str], out: Path, work: Path) -> Reference:
    """Run a command without interruption and return its outcome.

    Raises:
        RuntimeError: the command failed.
    """
    process = start(words, out, work)
    appears(out, process)
    begun = time.monotonic()
    status = process.wait()
    if status:
        log = (work / "log.txt").read_text(encoding="utf-8")
        raise RuntimeError(f"{words[0]} ended with {status} without an interruption:\n{log[-2000:]}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Reference(out, status, time.monotonic() - begun, size)


@contextmanager
def disk(folder: Path, *, can_mount: bool) -> Iterator[None]:
    """Create a folder; if mounting is permitted, mount a tmpfs there, whose size `resize` changes."""
    folder.mkdir()
    if can_mount:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        if can_mount:
            subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def resize(folder: Path, size: int) -> None:
    """Change the size in bytes of a mounted disk."""
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", folder], check=True)


def interrupt(
    words: list[str], out: Path, work: Path, reference: Reference, interruption: str, share: float, *, can_mount: bool
) -> tuple[str, int]:
    """Run and interrupt a command after a fraction of its time or results; return the moment and the exit status.

    Raises:
        RuntimeError: processes of the command are still running 10 s after its end.
    """
    if interruption == "full disk":
        size = int(share * reference.size)
        if can_mount:
            resize(out.parent, size)
        status = start(words, out, work, file_limit=None if can_mount else size // 4).wait()
        if can_mount:
            resize(out.parent, LARGE)
        return f"{size} bytes", status
    process = start(words, out, work)
    appears(out, process)
    seconds = share * reference.seconds
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.Signals[interruption])
    status = process.wait()
    if group_is_left(process.pid):
        raise RuntimeError(f"{words[0]}: processes were left 10 s after {interruption}")
    return f"{seconds:.2f} s", status


def faults_of_interruption(interruption: str, status: int, out: Path, work: Path) -> list[str]:
    """Return the faults right after an interruption; the run may have ended before it."""
    faults = []
    log = (work / "log.txt").read_text(encoding="utf-8", errors="replace")
    if interruption != "SIGKILL" and "Traceback" in log:
        faults.append(f"a traceback after the interruption, with the last line: {log.strip().splitlines()[-1]}")
    is_complete = completeness(out)
    if is_complete is not None and is_complete is not (status == 0):
        faults.append(f'run.json has "complete": {is_complete} after exit status {status}')
    return faults


def completeness(out: Path) -> bool | None:
    """Return ``"complete"`` of ``run.json``; None if the file or the key is missing."""
    try:
        values = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return values.get("complete")


def group_is_left(group: int) -> bool:
    """Return whether processes of a group still run 10 s after the leader ended; such processes are killed."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return True


def differences(given: Path, expected: Path) -> list[str]:
    """Return the differences between the results of two runs."""
    names = [
        {path.relative_to(side).as_posix() for path in side.rglob("*") if path.is_file()} for side in (given, expected)
    ]
    faults = [f"{name} is left over" for name in sorted(names[0] - names[1])]
    faults += [f"{name} is missing" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        before, after = (comparable(side / name, side) for side in (expected, given))
        if not is_close(before, after):
            faults.append(f"{name} differs")
    return faults


def comparable(path: Path, folder: Path) -> Any:
    """Return the content of a file without times and without the name of the folder."""
    match path.suffix:
        case ".jsonl":  # a journal: the last line of each case counts, in any order
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return {
                line["row"]["case_id"]: {**plain(line), "key": bool(line["key"])} for line in lines if "row" in line
            }
        case ".tiff":
            return tifffile.imread(path)
        case ".png":
            return np.asarray(Image.open(path))
        case ".gz":
            image = nibabel.load(path)
            return [image.affine, np.asanyarray(image.dataobj)]
        case ".json" | ".csv" | ".md" | ".tex":
            text = path.read_text(encoding="utf-8").replace(str(folder), "OUT")
            return plain(json.loads(text)) if path.suffix == ".json" else re.split("[,\n]", text)
        case _:
            return path.read_bytes()


def is_close(first: Any, second: Any) -> bool:
    """Return whether two values are equal; numbers may differ by the tolerance."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(is_close(first[name], second[name]) for name in first)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return np.allclose(first.astype(np.float64), second, rtol=0, atol=TOLERANCE, equal_nan=True)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(is_close, first, second))
    try:
        return first == second or abs(float(first) - float(second)) <= TOLERANCE
    except (TypeError, ValueError):
        return False


def play_round(
    command: str, interruption: str, share: float, reference: Reference, work: Path, *, can_mount: bool
) -> Round:
    """Interrupt a command, run it again to its end, and compare the results."""
    words = COMMANDS[command].split()
    with disk(work / "disk", can_mount=can_mount):
        out = work / "disk" / "out"
        moment, status = interrupt(words, out, work, reference, interruption, share, can_mount=can_mount)
        faults = faults_of_interruption(interruption, status, out, work)
        again = start(words, out, work)
        if again.wait() != reference.status:
            log = (work / "log.txt").read_text(encoding="utf-8", errors="replace").strip() or "nothing was printed"
            faults.append(f"the run after it ended with {again.returncode}: {log.splitlines()[-1]}")
        else:
            faults += differences(out, reference.folder)
            if completeness(out) is False:
                faults.append('run.json has "complete": false at the end')
    return Round(command, interruption, moment, status, faults)


def play(options: argparse.Namespace, work: Path, *, can_mount: bool) -> list[Round]:
    """Run all rounds; commands and times of the interruptions depend only on the seed."""
    subprocess.run(
        [sys.executable, "-c", INPUTS], cwd=work, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=600
    )
    references = {}
    for command in options.only:
        (work / "reference").mkdir(exist_ok=True)
        references[command] = run_undisturbed(COMMANDS[command].split(), work / "reference" / command, work)
        print(
            f"{command}: uninterrupted, {references[command].seconds:.1f} s, {references[command].size} bytes",
            flush=True,
        )
    generator = random.Random(options.seed)
    rounds = []
    for number in range(options.rounds):
        # Each command meets each interruption in turn.
        command = options.only[number % len(options.only)]
        interruption = options.kinds[number // len(options.only) % len(options.kinds)]
        share = generator.random()
        played = play_round(command, interruption, share, references[command], work, can_mount=can_mount)
        rounds.append(played)
        print(row_of(number, played), flush=True)
        for fault in played.faults:
            print(f"      {fault}", flush=True)
    return rounds


def row_of(number: int, played: Round) -> str:
    """Return a row of the table of rounds."""
    result = f"{len(played.faults)} fault(s)" if played.faults else "equal"
    return f"{number + 1:5} {played.command:10}{played.interruption:12}{played.moment:>16}{played.status:8}  {result}"


def enter_namespace() -> bool:
    """Restart this script in a namespace that permits mounting, if possible; return whether it already runs in one."""
    if os.environ.get(IN_NAMESPACE):
        return True
    probe = ["sh", "-c", "mount -t tmpfs -o size=4096 tmpfs /tmp"]
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options]
        if shutil.which("unshare") and not subprocess.run([*command, *probe], capture_output=True).returncode:
            os.execvpe("unshare", [*command, sys.executable, *sys.argv], {**os.environ, IN_NAMESPACE: "1"})
    return False


def main() -> int:
    """Run the rounds, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="number of interruptions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="commands to interrupt (default: all)"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=INTERRUPTIONS,
        default=list(INTERRUPTIONS),
        help="kinds of interruption (default: all)",
    )
    options = parser.parse_args()
    can_mount = "full disk" in options.kinds and enter_namespace()
    print("the full disk is a tmpfs" if can_mount else "the full disk is a limit on the size of files", flush=True)
    with TemporaryDirectory() as name:
        rounds = play(options, Path(name), can_mount=can_mount)
    faulty = sum(bool(played.faults) for played in rounds)
    print(f"{len(rounds)} round(s), {faulty} with faults")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
