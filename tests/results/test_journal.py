"""Which cases need not be scored again: those of the same content and the same settings whose results are all there.

First the journal alone, then runs of a `ResultWriter` that resume from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrad_med import CaseResult, ResultWriter
from mrad_med.io.frames import Frame, list_frames
from mrad_med.results.journal import Entry, Journal, files_of
from mrad_med.types import FailedCase

SETTINGS = {"memory_bank": {"sha256": "ab" * 32}, "settings": {"image_size": 518, "window": "auto"}, "write": None}
RESULTS = ("maps/a.tiff", "overlays/a.png")
YEAR_2000 = 946_684_800


def make_source(folder: Path, name: str = "a.png", content: bytes = b"pixels") -> Path:
    path = folder / name
    path.write_bytes(content)
    os.utime(path, (YEAR_2000, YEAR_2000))
    return path


def begin(folder: Path, *, settings=SETTINGS, resume: bool = True) -> Journal:
    return Journal(folder / "finished.jsonl", settings, resume=resume)


def finish(journal: Journal, source, case_id: str = "a", files: tuple[str, ...] = RESULTS) -> Entry:
    """Write the files of a case, and add it to the journal."""
    for name in files:
        path = journal.path.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"result")
    row, slices = {"case_id": case_id, "anomaly_score": "0.5"}, [{"slice": 0, "score": 0.5}]
    journal.add(Entry(journal.key(case_id, source, contents(source)), row, files, slices))
    return Entry(journal.key(case_id, source, contents(source)), row, files, slices, settings=journal.settings)


def contents(source) -> list[str]:
    """Return the hashes of the files of a source; none if it is in memory or gone."""
    files = [Path(path) for path in files_of(source)]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.exists()]


def is_finished(journal: Journal, case_id: str, source) -> bool:
    return journal.is_finished(case_id, source, contents(source))


def test_later_run_knows_what_is_finished_and_what_it_gave(tmp_path):
    source = make_source(tmp_path)
    entry = finish(journal := begin(tmp_path), source)
    assert is_finished(journal, "a", source)
    later = begin(tmp_path)
    assert is_finished(later, "a", source)
    assert is_finished(later, "a", str(source))
    assert later.entries == {"a": entry}
    assert not is_finished(later, "b", source)


def test_journal_is_one_line_of_json_a_case(tmp_path):
    journal, source = begin(tmp_path), make_source(tmp_path)
    assert not journal.path.exists()  # before there is a case
    for case_id in ("a", "b\nc", "é"):
        finish(journal, source, case_id)
    lines = journal.path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line)["row"]["case_id"] for line in lines] == ["a", "b\nc", "é"]
    first = json.loads(lines[0])
    assert first.pop("check") == hashlib.sha256(lines[0].rpartition(b', "check"')[0]).hexdigest()[:16]
    assert first == {
        "format": 2,
        "key": journal.key("a", source, contents(source)),
        "row": {"case_id": "a", "anomaly_score": "0.5"},
        "files": list(RESULTS),
        "slices": [{"slice": 0, "score": 0.5}],
        "video": "",
        "shortfalls": [],
        "settings": journal.settings,
    }


# what makes a case unfinished


@pytest.mark.parametrize("change", [{"threshold": 0.5}, {"write": ["tiff"]}, {"settings": {"image_size": 518}}])
def test_other_settings_start_from_the_beginning(tmp_path, change):
    source = make_source(tmp_path)
    finish(begin(tmp_path), source)
    assert not is_finished(begin(tmp_path, settings={**SETTINGS, **change}), "a", source)


def test_order_of_settings_does_not_matter_nor_whether_a_path_is_a_text(tmp_path):
    source, settings = make_source(tmp_path), {**SETTINGS, "path": Path("bank.safetensors")}
    finish(begin(tmp_path, settings=settings), source)
    reversed_settings = dict(reversed({**SETTINGS, "path": "bank.safetensors"}.items()))
    assert is_finished(begin(tmp_path, settings=reversed_settings), "a", source)


def changed(source: Path) -> None:
    """Change a file whose name, size and time of change stay."""
    content = source.read_bytes()
    source.write_bytes(bytes([content[0] ^ 255]) + content[1:])
    os.utime(source, (YEAR_2000, YEAR_2000))


def longer(source: Path) -> None:
    source.write_bytes(b"more pixels")
    os.utime(source, (YEAR_2000, YEAR_2000))


@pytest.mark.parametrize("change", [changed, longer, Path.unlink])
def test_source_that_changed_or_is_gone_is_not_finished(tmp_path, change):
    source = make_source(tmp_path)
    finish(begin(tmp_path), source)
    change(source)
    assert not is_finished(begin(tmp_path), "a", source)


@pytest.mark.parametrize("seconds", [0, YEAR_2000 + 1, 2 * YEAR_2000])
def test_times_of_a_source_do_not_matter(tmp_path, seconds):
    """Copies have other times, and clocks go back."""
    source = make_source(tmp_path)
    finish(begin(tmp_path), source)
    os.utime(source, (seconds, seconds))
    assert is_finished(begin(tmp_path), "a", source)


def test_other_content_or_another_name_of_a_case_is_not_finished(tmp_path):
    source = make_source(tmp_path, "a.png")
    finish(begin(tmp_path), source)
    assert not is_finished(begin(tmp_path), "a", make_source(tmp_path, "a.jpg", b"others"))
    assert not is_finished(begin(tmp_path), "b", source)


def test_folders_may_be_moved(tmp_path):
    """The path of the images does not matter."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    finish(begin(old), make_source(old))
    shutil.move(old, new)
    assert is_finished(begin(new), "a", new / "a.png")


@pytest.mark.parametrize("name", RESULTS)
def test_case_whose_result_was_deleted_is_not_finished(tmp_path, name):
    source = make_source(tmp_path)
    finish(begin(tmp_path), source)
    (tmp_path / name).unlink()
    assert not is_finished(begin(tmp_path), "a", source)


def test_case_of_which_nothing_was_to_be_written_is_finished(tmp_path):
    source = make_source(tmp_path)
    finish(begin(tmp_path), source, files=())
    assert is_finished(begin(tmp_path), "a", source)


@pytest.mark.parametrize("source", [np.zeros((4, 4), np.uint8), Image.new("L", (4, 4)), None])
def test_image_in_memory_is_never_finished(tmp_path, source):
    journal = begin(tmp_path)
    assert finish(journal, source).key == ""
    assert not is_finished(journal, "a", source)
    assert not is_finished(begin(tmp_path), "a", source)


def make_series(folder: Path) -> list[Path]:
    return [make_source(folder, f"{number}.dcm", b"slice" * (number + 1)) for number in range(3)]


def test_series_is_finished_with_all_its_files(tmp_path):
    paths = make_series(tmp_path)
    finish(begin(tmp_path), [str(path) for path in paths])
    later = begin(tmp_path)
    assert is_finished(later, "a", paths)
    assert is_finished(later, "a", tuple(paths))
    assert not is_finished(later, "a", paths[:2])
    assert not is_finished(later, "a", paths[::-1])  # the order of files is that of the frames of DICOM results
    assert not is_finished(later, "a", paths[0])
    changed(paths[1])
    assert not is_finished(later, "a", paths)


def test_frames_of_a_video_are_different_cases(tmp_path):
    path = make_source(tmp_path, "video.mp4")
    sources = [path, *(Frame(str(path), index, 0.0) for index in range(12))]
    keys = [begin(tmp_path).key("a", source, contents(source)) for source in sources]
    assert len(set(keys)) == len(keys)
    finish(begin(tmp_path), Frame(str(path), 3, 0.12))
    later = begin(tmp_path)
    assert is_finished(later, "a", Frame(str(path), 3, 0.12))
    assert not is_finished(later, "a", Frame(str(path), 4, 0.16))
    changed(path)
    assert not is_finished(later, "a", Frame(str(path), 3, 0.12))


def test_case_scored_again_counts_as_it_was_last(tmp_path):
    source = make_source(tmp_path)
    finish(begin(tmp_path), source)
    longer(source)
    last = finish(begin(tmp_path), source, files=RESULTS[:1])
    assert begin(tmp_path).entries == {"a": last}
    assert is_finished(begin(tmp_path), "a", source)


def test_without_resume_the_file_is_replaced(tmp_path):
    finish(begin(tmp_path), source := make_source(tmp_path))
    journal = begin(tmp_path, resume=False)
    assert journal.entries == begin(tmp_path).entries == {}
    assert set(journal.files) == {"a"}  # which may have to be removed
    assert not is_finished(journal, "a", source)
    finish(journal, source, "b")
    assert list(begin(tmp_path).entries) == ["b"]


TORN = [
    b"",
    b"{",
    b'{"key": "ab", "row": {"case_id": "b", "anoma',
    b'{"key": "ab", "row": {"case_id": "b"}, "files": []}',
    b'{"key": "ab", "row": "b", "files": [], "slices": []}',
    b"[1, 2]",
    b"\0\0\0\0",  # as a file system leaves a block that was never written
]


@pytest.mark.parametrize("torn", TORN)
def test_torn_last_line_costs_only_its_case(tmp_path, torn):
    journal, source = begin(tmp_path), make_source(tmp_path)
    finish(journal, source)
    with journal.path.open("ab") as stream:
        stream.write(torn)
    later = begin(tmp_path)
    assert is_finished(later, "a", source)
    assert list(later.entries) == ["a"]


@pytest.mark.parametrize("torn", TORN[1:])
def test_what_is_noted_after_a_torn_line_is_kept(tmp_path, torn):
    journal, source = begin(tmp_path), make_source(tmp_path)
    finish(journal, source)
    with journal.path.open("ab") as stream:
        stream.write(torn)
    finish(begin(tmp_path), source, "c")
    assert set(begin(tmp_path).entries) == {"a", "c"}


def test_line_that_is_not_text_costs_only_its_case(tmp_path):
    journal, source = begin(tmp_path), make_source(tmp_path)
    finish(journal, source)
    with journal.path.open("ab") as stream:
        stream.write(b"\xff\xfe\x80")
    assert is_finished(begin(tmp_path), "a", source)


# runs of a writer


def photographs(folder: Path, names: str) -> list[CaseResult]:
    for name in names:
        if not (folder / f"{name}.png").exists():
            Image.new("RGB", (24, 16)).save(folder / f"{name}.png")
    anomaly_map = np.zeros((16, 24), np.float32)
    return [CaseResult(name, folder / f"{name}.png", 0.5, anomaly_map, study=f"of {name}") for name in names]


def video(folder: Path, study: str, count: int = 3) -> list[CaseResult]:
    """Return the results of the pages of a TIFF, which are the frames of a video."""
    path = folder / f"{study}.tif"
    if not path.exists():
        Image.new("L", (24, 16)).save(path, save_all=True, append_images=[Image.new("L", (24, 16))] * (count - 1))
    anomaly_map = np.zeros((16, 24), np.float32)
    return [CaseResult(f"{study}/{frame.index}", frame, 0.25, anomaly_map, study=study) for frame in list_frames(path)]


def resume(out: Path, results: list[CaseResult], **options) -> tuple[ResultWriter, list[str]]:
    """Return a writer that resumes an earlier run, and the cases that must still be scored."""
    writer = ResultWriter(out, **{"write": ["tiff", "video"], "resume": True, **options})
    cases = [{"image": result.source, "case_id": result.case_id, "study": result.study} for result in results]
    return writer, [case["case_id"] for case in writer.pending(cases)]


def run(out: Path, results: list[CaseResult], *, stop_at: str = "", failures=(), **options) -> list[str]:
    """Write what is pending, and return it; of a run that is stopped, what is done is in the tables."""
    writer, pending = resume(out, results, **options)
    for result in results:
        if result.case_id == stop_at:
            writer.finish(is_whole=False)
            return pending
        if result.case_id in pending and result.case_id not in {failure.case_id for failure in failures}:
            writer.write(result)
    writer.finish(failures)
    return pending


def tables(out: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in out.glob("*.csv")}


def test_run_that_is_finished_is_not_done_again_and_its_tables_are_the_same(tmp_path):
    out, results = tmp_path / "out", [*photographs(tmp_path, "ab"), *video(tmp_path, "v")]
    affine, scores = np.eye(4), np.array([0.25, 0.5], np.float32)
    volume = make_source(tmp_path, "c.nii")
    results.append(CaseResult("c", volume, 0.5, np.zeros((4, 5, 2), np.float32), affine, scores, slice_axis=2))
    assert run(out, results) == [result.case_id for result in results]
    before = tables(out)
    assert set(before) == {"scores.csv", "slices.csv", "studies.csv"}
    assert run(out, results) == []
    assert tables(out) == before
    assert json.loads((out / "run.json").read_text())["cases"] == {
        "total": 6,
        "ok": 6,
        "failed": 0,
        "nothing_to_score": 0,
    }
    assert run(out, results, resume=False) == [result.case_id for result in results]


def test_tables_follow_the_cases_of_the_run_at_hand(tmp_path):
    """The second run has other cases in another order and with another study."""
    out, results = tmp_path / "out", photographs(tmp_path, "abc")
    run(out, results)
    later = [*photographs(tmp_path, "dc"), replace(results[0], study="moved")]
    assert run(out, later) == ["d"]
    rows = [line.split(",") for line in tables(out)["scores.csv"].splitlines()[1:]]
    assert [(row[0], row[7]) for row in rows] == [("d", "of d"), ("c", "of c"), ("a", "moved")]


def test_case_that_failed_is_tried_again_but_a_frame_is_finished_with_its_video(tmp_path):
    out, results = tmp_path / "out", [*photographs(tmp_path, "ab"), *video(tmp_path, "v")]
    run(out, results, failures=[FailedCase("b", "empty"), FailedCase("v/1", "damaged", "v")])
    assert run(out, results) == ["b"]
    assert [line.split(",")[:2] for line in tables(out)["scores.csv"].splitlines()[1:]] == [
        *(["a", "ok"], ["b", "ok"], ["v/0", "ok"], ["v/2", "ok"], ["v/1", "failed"])
    ]
    assert "v,2,1," in tables(out)["studies.csv"]


def settings_of(*, window: str = "auto", plane: str = "auto", **overrides):
    """Return the provenance of a run: settings of the view, and values that change no result."""
    return {
        "memory_bank": {"sha256": "ab" * 32},
        "settings": {"bundle": "mrad_tf", "view": {"window": window, "plane": plane}, "overrides": overrides},
    }


@pytest.mark.parametrize(
    ("options", "is_done"),
    [
        ({"provenance": settings_of(window="lung", batch_size="8", device="cuda:0", frames_per_second="2")}, True),
        ({"provenance": settings_of(window="brain")}, False),
        ({"provenance": settings_of(window="lung", plane="coronal")}, False),
        ({"provenance": {**settings_of(window="lung"), "memory_bank": {"sha256": "ac" * 32}}}, False),
        ({"write": ["tiff"]}, False),
        ({"threshold": 0.5}, False),
        ({"keep_identifiers": True}, False),
    ],
)
def test_settings_that_results_depend_on_start_from_the_beginning(tmp_path, options, is_done):
    out, results, before = tmp_path / "out", photographs(tmp_path, "ab"), {"provenance": settings_of(window="lung")}
    run(out, results, **before)
    assert resume(out, results, **{**before, **options})[1] == ([] if is_done else ["a", "b"])


def test_other_versions_of_packages_start_from_the_beginning(tmp_path, monkeypatch):
    out, results = tmp_path / "out", photographs(tmp_path, "ab")
    run(out, results)
    monkeypatch.setattr("mrad_med.results.journal.package_versions", lambda: {"torch": "99"})
    assert resume(out, results)[1] == ["a", "b"]


def add_page(path: Path) -> None:
    """Replace the last page by another one."""
    pages = [Image.new("L", (24, 16), gray) for gray in (0, 0, 9)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


CHANGES = {
    "video": lambda folder: (folder / "out/videos/v.mp4").unlink(),
    "map": lambda folder: (folder / "out/maps/v/1.tiff").unlink(),
    "source": lambda folder: add_page(folder / "v.tif"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_frames_of_a_video_are_finished_together_or_not_at_all(tmp_path, change):
    out = tmp_path / "out"
    results = [*photographs(tmp_path, "a"), *video(tmp_path, "v"), *video(tmp_path, "w")]
    run(out, results)
    CHANGES[change](tmp_path)
    assert run(out, results) == ["v/0", "v/1", "v/2"]
    assert len(list_frames(out / "videos" / "v.mp4")) == 3
    assert run(out, results[:-1]) == ["w/0", "w/1"]  # the third one was not requested


@pytest.mark.parametrize(
    ("stop_at", "pending"), [("v/1", "v/0 v/1 v/2 w/0 b"), ("w/0", "v/0 v/1 v/2 w/0 b"), ("b", "w/0 b")]
)
def test_run_that_was_stopped_resumes_where_its_last_video_began(tmp_path, stop_at, pending):
    """A video is written as the next one begins or the run ends."""
    out, others = tmp_path / "out", photographs(tmp_path, "ab")
    results = [others[0], *video(tmp_path, "v"), *video(tmp_path, "w", 1), others[1]]
    run(out, results, stop_at=stop_at)
    assert run(out, results) == pending.split()
    assert resume(out, results)[1] == []


def test_video_of_fewer_frames_is_another_one_and_finished_as_such(tmp_path):
    out, results = tmp_path / "out", video(tmp_path, "v", 4)
    run(out, results)
    assert run(out, results[::2]) == ["v/0", "v/2"]
    assert len(list_frames(out / "videos" / "v.mp4")) == 2
    assert run(out, results[::2]) == []


def test_video_of_other_settings_finishes_nothing(tmp_path):
    out, results = tmp_path / "out", [*video(tmp_path, "v"), *photographs(tmp_path, "a")]
    run(out, results)
    other = {"provenance": settings_of(window="brain")}
    run(out, results, stop_at="a", **other)  # all frames are scored, but their video is not written
    assert resume(out, results, **other)[1] == ["v/0", "v/1", "v/2", "a"]


def test_output_that_could_not_be_written_is_reported_again(tmp_path, monkeypatch):
    out, results, reported = tmp_path / "out", [*photographs(tmp_path, "a"), *video(tmp_path, "v", 2)], []
    for function in ("outputs.tifffile.imwrite", "overlay_video.blend_overlay"):
        monkeypatch.setattr(f"mrad_med.results.{function}", lambda *_, **__: 1 / 0)
    for pending in (["a", "v/0", "v/1"], []):
        assert run(out, results) == pending
        reported.append(sorted(item["case_id"] for item in json.loads((out / "run.json").read_text())["not_written"]))
    assert reported == [["a", "v", "v/0", "v/1"]] * 2


def test_frames_that_make_no_video_are_finished_one_by_one(tmp_path):
    out, results = tmp_path / "out", video(tmp_path, "v")
    run(out, results, stop_at="v/2", write=["tiff"])
    assert run(out, results, write=["tiff"]) == ["v/2"]


def test_video_that_was_begun_is_left_to_the_next_run(tmp_path):
    out, results = tmp_path / "out", video(tmp_path, "v")
    writer, _ = resume(out, results)
    for result in results[:2]:
        writer.write(result)
    writer.finish(is_whole=False)
    assert not (out / "videos").exists()
    assert len(tables(out)["scores.csv"].splitlines()) == 3
    assert resume(out, results)[1] == ["v/0", "v/1", "v/2"]


def test_time_of_a_frame_is_part_of_its_key(tmp_path):
    journal, path = begin(tmp_path), make_source(tmp_path)
    frames = [Frame(str(path), 0, time) for time in (0.0, 0.04, None)]
    assert len({journal.key("a", frame, contents(frame)) for frame in frames}) == 3
