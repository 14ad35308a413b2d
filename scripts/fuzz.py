"""Damage small valid files at random, list and read each one as the product does, and report what goes wrong.

Usage:
    python scripts/fuzz.py --files 3000 --seed 0
    python scripts/fuzz.py --files 3000 --seed 0 --only 1234 --keep faults

Each file is one of ``fuzz_originals.py`` (DICOM, NIfTI, NRRD, PNG, JPEG, TIFF, GIF, WebP, MP4) with random changes:
flipped bits, extreme numbers, parts cut out, doubled or inserted, a cut end, or the end of another file. The changes
depend only on the seed and the number of the file. A process lists the file (`survey`) and loads its cases
(`CaseDataset`), as ``mrad-med detect`` does. There are three outcomes:

- ok: all its cases were loaded.
- refused: the project refused the file or one of its cases, with a reason.
- fault: another exception, more than 5 s of processor time, a crash, more than 1 GB of memory beyond that of the
  process before, output on stderr, a log message of a library, or a message that quotes the file. Messages on stderr of
  libtiff and of decoders in Rust are accepted unless they quote a text of the file: they cannot be switched off.

Every fault is printed with the number of its file. The exit status is 1 if there is a fault. With ``--keep`` these
files are written to a folder.
"""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import multiprocessing
import os
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pydicom
import torch
from fuzz_originals import SECRET, write_originals

from mrad_med import ImageView, build_preprocessing
from mrad_med.data.loader import CaseDataset
from mrad_med.data.search import survey
from mrad_med.errors import DatasetError
from mrad_med.io.dicom.headers import silent
from mrad_med.io.frames import close_frames
from mrad_med.types import BackboneCard, FailedCase

SECONDS = 5.0  # of processor time
WALL_SECONDS = 60.0  # longest time for a file on a busy machine
MEMORY = 1e9  # bytes
CASES = 6  # number of cases of a file that are loaded
NUMBERS_OF_CHANGES = (1, 1, 2, 4)
VIEW = ImageView(image_size=28)
CARD = BackboneCard("none", "0" * 64, 8, 8, 14, 28, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Such as "ZIPDecode: Decoding error at scanline 0." of libtiff, and the panic of a decoder in Rust, which is caught.
_ACCEPTED = re.compile(rb"(\w+: [^\n]*\.\n)*|\nthread '[^']*' panicked at src/lib\.rs:.*", re.DOTALL)


@dataclass
class Outcome:
    """What became of one file; ``faults`` is empty unless something went wrong."""

    number: int
    name: str
    refused: bool
    faults: list[str]


# Changes: each returns the changed bytes


def flip_bits(data: bytearray, dice: random.Random, _: list[bytes]) -> bytearray:
    """Flip up to 8 bits."""
    for _ in range(dice.choice([1, 2, 8])):
        data[_place(data, dice)] ^= 1 << dice.randrange(8)
    return data


def set_number(data: bytearray, dice: random.Random, _: list[bytes]) -> bytearray:
    """Replace 1 to 8 bytes by an extreme number."""
    kind = dice.choice("bBhHiIqQfd")
    if kind in "fd":
        value: float = dice.choice([0.0, -1.0, float("nan"), float("inf"), -1e30, 1e30, 1e-30])
    else:
        bits = 8 * struct.calcsize(kind)
        low = -(1 << (bits - 1)) if kind.islower() else 0
        value = dice.choice([0, 1, low, low + (1 << bits) - 1, (1 << (bits - 1)) - 1, 1 << (bits // 2)])
    packed, place = struct.pack(dice.choice("<>") + kind, value), _place(data, dice)
    data[place : place + len(packed)] = packed
    return data


def set_text_number(data: bytearray, dice: random.Random, _: list[bytes]) -> bytearray:
    """Replace a number that is written as text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(data[:2000])))
    if found:
        number = dice.choice([b"0", b"-1", b"99999999999", b"1e400", b"nan", b"65536", b"(1,2)", b"x"])
        one = dice.choice(found)
        data[one.start() : one.end()] = number
    return data


def cut_out(data: bytearray, dice: random.Random, _: list[bytes]) -> bytearray:
    """Remove a part."""
    place = _place(data, dice)
    del data[place : place + dice.choice([1, 2, 4, 16, 256])]
    return data


def insert(data: bytearray, dice: random.Random, _: list[bytes]) -> bytearray:
    """Insert random bytes, or a copy of another part."""
    place, other, size = _place(data, dice), _place(data, dice), dice.choice([1, 2, 4, 16, 256])
    data[place:place] = data[other : other + size] if dice.random() < 0.5 else dice.randbytes(size)
    return data


def truncate(data: bytearray, dice: random.Random, _: list[bytes]) -> bytearray:
    """Cut the end."""
    return data[: dice.randrange(len(data)) + 1]


def splice(data: bytearray, dice: random.Random, others: list[bytes]) -> bytearray:
    """Continue with the end of another file."""
    other = dice.choice(others)
    return data[: _place(data, dice) + 1] + other[dice.randrange(len(other)) :]


def set_element(data: bytearray, dice: random.Random, others: list[bytes]) -> bytearray:
    """Replace the value of a DICOM element by an extreme one of the same length; set a number in any other file."""
    try:
        with silent():
            dataset = pydicom.dcmread(io.BytesIO(data))
            elements = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118 - iteration yields elements
    except Exception:  # not DICOM, or already damaged beyond its structure
        return set_number(data, dice, others)
    short = [item for item in elements if getattr(item, "value_tell", 0) and 0 < item.length <= 64]
    if short:
        one = dice.choice(short)
        text = dice.choice([b"0", b"-1", b"nan", b"1e999", b"99999", b"\\", b"RGB", b"1.2", dice.randbytes(2)])
        filled = dice.choice([bytes(one.length), b"\xff" * one.length, text.ljust(one.length), text.ljust(one.length)])
        data[one.value_tell : one.value_tell + one.length] = filled[: one.length]
    return data


CHANGES = (
    set_element,
    set_element,
    flip_bits,
    set_number,
    set_number,
    set_text_number,
    cut_out,
    insert,
    truncate,
    splice,
)


def _place(data: bytearray, dice: random.Random) -> int:
    size = max(len(data), 1)
    if not data:
        data.append(0)
    return dice.randrange(size if dice.random() < 0.4 else min(size, 700))


def damage(original: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    """Return a file with one to four changes; packed values and checksums stay valid in half of the files."""
    packed, repaired = original.startswith(b"\x1f\x8b"), dice.random() < 0.5
    data = bytearray(gzip.decompress(original) if packed and repaired else original)
    for _ in range(dice.choice(NUMBERS_OF_CHANGES)):
        data = dice.choice(CHANGES)(data, dice, others)
    if packed and repaired:
        return gzip.compress(bytes(data), mtime=0)
    return _repair_png(data) if repaired else bytes(data)


def _repair_png(data: bytearray) -> bytes:
    """Return a PNG with valid checksums of its chunks, so that its values are read."""
    position = 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big") if end < len(data) else b""
        position = end + 4
    return bytes(data)


# Reading in a process


def examine(path: Path) -> tuple[bool, list[str], list[str]]:
    """List and load a file. Return whether it was refused, its faults, and all texts that it led to."""
    texts: list[str] = []
    try:
        found = survey(path)
    except DatasetError as error:
        return True, [], [str(error)]
    texts += [*found.remarks.values(), *found.descriptions.values(), *(item.reason for item in found.skipped)]
    dataset = CaseDataset(found.cases[:CASES], build_preprocessing(CARD, VIEW))
    failures = [item for item in (dataset[i] for i in range(len(dataset))) if isinstance(item, FailedCase)]
    reasons = [item.reason for item in failures]
    faults = [reason for reason in reasons if reason.startswith("unforeseen")]
    return bool(failures), faults, texts + reasons


def _memory(name: str) -> float:
    """Return a value of /proc/self/status in bytes; 0 where there is no such file."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0.0)


def serve(connection: Connection, log: Path) -> None:
    """Examine each file whose path is received, and send the outcome."""
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    messages = io.StringIO()
    logging.basicConfig(stream=messages, level=logging.WARNING, force=True)
    torch.set_num_threads(1)
    while path := connection.recv():
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, the peak
        before = _memory("VmRSS")
        try:
            refused, faults, texts = examine(path)
        except Exception as error:
            refused, faults, texts = False, [f"unforeseen {type(error).__name__} in the listing"], []
        close_frames()
        grown = _memory("VmHWM") - before
        if grown > MEMORY:
            faults.append(f"{grown / 1e9:.1f} GB of memory")
        lines = [line for line in messages.getvalue().splitlines() if not line.startswith("WARNING:mrad_med")]
        faults += [f"a library logged: {line[:200]}" for line in lines[:1]]
        if SECRET in "".join(texts) + messages.getvalue():
            faults.append("a message quotes the file")
        messages.seek(messages.truncate(0))
        connection.send((refused, faults))


class Process:
    """A process that examines files one after the other; it is replaced when it ends."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._log), daemon=True)
        self._process.start()
        theirs.close()
        self._read = 0  # bytes of the log

    def examine(self, path: Path) -> tuple[bool, list[str]]:
        """Return whether a file was refused, and its faults."""
        self._connection.send(path)
        used, started = psutil.Process(self._process.pid).cpu_times(), time.monotonic()
        reason = ""
        try:
            while not reason and not self._connection.poll(0.05):
                reason = self._overtime(used, started)
            refused, faults = (False, [reason]) if reason else self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            reason = f"the process ended with status {self._process.exitcode}"
            refused, faults = False, [reason]
        printed = self._log.read_bytes()[self._read :]
        self._read += len(printed)
        if SECRET.encode() in printed or not _ACCEPTED.fullmatch(printed):
            faults.append(f"on stderr: {printed[:200].decode(errors='replace')!r}")
        if reason:
            self.stop()
            self._start()
        return refused, faults

    def _overtime(self, used: Any, started: float) -> str:
        try:
            now = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return ""
        spent = now.user + now.system - used.user - used.system
        if spent > SECONDS or time.monotonic() - started > WALL_SECONDS:
            return f"more than {SECONDS:g} s of processor time, or {WALL_SECONDS:g} s in all"
        return ""

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


# Main program


def make_file(originals: list[Path], seed: int, number: int) -> tuple[str, bytes]:
    """Return the name and the content of a damaged file."""
    dice = random.Random(f"{seed} {number}")
    original = originals[number % len(originals)]
    others = [path.read_bytes() for path in dice.sample(originals, 3)]
    return original.name, damage(original.read_bytes(), dice, others)


def run(numbers: list[int], seed: int, jobs: int, keep: Path | None) -> Iterator[Outcome]:
    """Yield the outcome of each damaged file, in order."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "originals").mkdir()
        originals = write_originals(folder / "originals")
        processes = [Process(folder / f"stderr-{job}") for job in range(jobs)]

        def examine_share(job: int) -> Iterator[Outcome]:
            for number in numbers[job::jobs]:
                original, content = make_file(originals, seed, number)
                path = folder / f"job-{job}" / original
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
                refused, faults = processes[job].examine(path)
                if faults and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{number}-{original}").write_bytes(content)
                path.unlink()
                yield Outcome(number, original, refused, faults)

        collect: Callable[[int], list[Outcome]] = lambda job: [_shown(item, seed) for item in examine_share(job)]  # noqa: E731
        try:
            with ThreadPoolExecutor(jobs) as threads:
                for outcomes in threads.map(collect, range(jobs)):
                    yield from outcomes
        finally:
            for process in processes:
                process.stop()


def _shown(outcome: Outcome, seed: int) -> Outcome:
    for fault in outcome.faults:
        print(f"FAULT --seed {seed} --only {outcome.number} ({outcome.name}): {fault}", flush=True)
    return outcome


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000, help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the files to repeat, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--keep", type=Path, help="folder for the files with faults")
    options = parser.parse_args()
    numbers = options.only or list(range(options.files))
    count: Counter[tuple[str, str]] = Counter()
    for outcome in run(numbers, options.seed, min(options.jobs, len(numbers)), options.keep):
        what = "fault" if outcome.faults else "refused" if outcome.refused else "ok"
        count[Path(outcome.name).suffix, what] += 1
    for suffix in sorted({suffix for suffix, _ in count}):
        print(f"{suffix:6}", *(f"{what} {count[suffix, what]:5}" for what in ("ok", "refused", "fault")))
    faults = sum(number for (_, what), number in count.items() if what == "fault")
    print(f"{faults} of {len(numbers)} files have faults (seed {options.seed})")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
