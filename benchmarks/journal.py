"""Time writing and opening a journal of many finished cases, and finding the unfinished cases.

Usage:
    python benchmarks/journal.py
    python benchmarks/journal.py --cases 100000 --slices 30

Each case has a file of 16 bytes and a result. ``pending`` is the work of a resumed run before its first case: it checks
all results, hashes all files and compares all keys.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from encoder import print_machine

from mrad_med import ResultWriter
from mrad_med.results.journal import Entry, Journal, what_matters
from mrad_med.store import hash_of_file


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Call a function, print its wall time and CPU time, and return its result."""
    start, worked = time.perf_counter(), time.process_time()
    result = work()
    print(f"{name}: {time.perf_counter() - start:.2f} s of wall time, {time.process_time() - worked:.2f} s of CPU time")
    return result


def make_cases(folder: Path, count: int) -> list[dict[str, Any]]:
    """Write a file and a result for each case, a thousand in each folder."""
    cases = []
    for index in range(count):
        name = f"{index // 1000:03}/{index:06}"
        for path in (folder / "images" / f"{name}.png", folder / "out" / "maps" / f"{name}.tiff"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"%016d" % index)
        cases.append({"image": str(folder / "images" / f"{name}.png"), "case_id": name, "study": ""})
    return cases


def finish(journal: Journal, cases: list[dict[str, Any]], slices: int) -> None:
    """Record all cases as finished."""
    rows = [{"slice": index, "position_mm": 1.5 * index, "score": 0.5, "peak": "1 2 3"} for index in range(slices)]
    for case in cases:
        name = case["case_id"]
        key = journal.key(name, case["image"], [hash_of_file(case["image"])])
        row = {"case_id": name, "status": "ok", "anomaly_score": "0.5", "study": "", "map": f"maps/{name}.tiff"}
        journal.add(Entry(key, row, (f"maps/{name}.tiff",), rows))


def main() -> None:
    """Measure with the number of cases given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="number of cases (default: %(default)s)")
    parser.add_argument(
        "--slices", type=int, default=0, help="number of slice rows of each case (default: %(default)s)"
    )
    options = parser.parse_args()
    print_machine()
    with TemporaryDirectory() as name:
        out = Path(name) / "out"
        cases = make_cases(Path(name), options.cases)
        settings = {**what_matters({}), "write": ["tiff"], "threshold": None, "keep_identifiers": False}
        journal = Journal(out / "finished.jsonl", settings, resume=True)
        timed("record all cases", lambda: finish(journal, cases, options.slices))
        print(f"size: {journal.path.stat().st_size / 1e6:.0f} MB")
        time.sleep(2)  # hashes of files that were just written are not cached
        timed("open the journal", lambda: Journal(journal.path, settings, resume=True))
        writer = timed("open the folder", lambda: ResultWriter(out, write=["tiff"], resume=True))
        pending = timed("pending", lambda: writer.pending(cases))
        print(f"unfinished: {len(pending)} of {len(cases)}")
        timed("write the tables", writer.finish)


if __name__ == "__main__":
    main()
