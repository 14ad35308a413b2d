"""Results as they come: what is written of each case, what another run need not do again, and what goes wrong."""

from __future__ import annotations

import csv
import gzip
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pydicom import dcmread

from mrad_med import CaseResult, ResultWriter
from mrad_med.detector import Results
from mrad_med.errors import OutputError
from mrad_med.io import frames as frames_module
from mrad_med.io.frames import Frame, list_frames
from mrad_med.results import outputs
from mrad_med.results.outputs import OUTPUTS
from mrad_med.store import LOCK_NAME
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import FailedCase
from tests.dicom_phantoms import OBLIQUE, PRIVATE, SLICES, affine_of, write_multiframe, write_series, write_ultrasound

SIZE = (24, 32)
ALL = [*OUTPUTS, "video"]


@pytest.fixture(autouse=True)
def nothing_stays_open():
    yield
    frames_module.close_frames()


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def make_map(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape).astype(np.float32)


def photograph(folder: Path, case_id: str = "photo") -> CaseResult:
    Image.fromarray((255 * make_map(*SIZE, 3)).astype(np.uint8)).save(folder / f"{case_id}.png")
    return CaseResult(case_id, folder / f"{case_id}.png", 0.5, make_map(*SIZE))


def volume(folder: Path, case_id: str = "volume") -> CaseResult:
    path, values, affine = folder / f"{case_id}.nii", make_map(18, 20, 16), np.diag([1.0, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return CaseResult(case_id, path, 0.5, values, affine, np.arange(16, dtype=np.float32), slice_axis=2)


def series(folder: Path, case_id: str = "series") -> CaseResult:
    affine = affine_of(OBLIQUE)
    return CaseResult(case_id, write_series(folder / case_id, axes=OBLIQUE), 0.5, make_map(24, 20, SLICES), affine)


def ultrasound(folder: Path, case_id: str = "ultrasound", **changes) -> CaseResult:
    return CaseResult(case_id, write_ultrasound(folder / f"{case_id}.dcm", **changes), 0.5, make_map(20, 24))


def video(folder: Path, study: str = "exam", count: int = 3) -> list[CaseResult]:
    """Return the results of the pages of an image file, which are the frames of a video."""
    first, *rest = (Image.fromarray(np.full(SIZE, 10 * number, np.uint8)) for number in range(count))
    path = folder / f"{study}.tif"
    first.save(path, save_all=True, append_images=rest)
    frames = [*list_frames(path), Frame(str(path), 0, None)][:count]
    return [CaseResult(f"{study}/{i}", f, 0.25 * i, make_map(*SIZE), study=study) for i, f in enumerate(frames)]


def run(out: Path, results: list[CaseResult], failures=(), **options) -> ResultWriter:
    writer = ResultWriter(out, **options)
    writer.pending([{"image": result.source, "case_id": result.case_id, "study": result.study} for result in results])
    for result in results:
        if result.case_id not in {failure.case_id for failure in failures}:
            writer.write(result)
    writer.finish(failures)
    return writer


def files_below(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def written(out: Path) -> list[str]:
    """Return the outputs alone, without tables and records."""
    return [name for name in files_below(out) if "/" in name]


def table(out: Path, name: str = "scores") -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


# what is written


@pytest.mark.usefixtures("plain_figures")
def test_each_kind_has_its_defaults(tmp_path, out):
    in_memory = CaseResult("array", np.zeros((*SIZE, 3), np.uint8), 0.5, make_map(*SIZE))
    cases = [photograph(tmp_path), in_memory, volume(tmp_path), *video(tmp_path)]
    run(out, cases, [FailedCase("exam/1", "damaged", "exam")])
    assert written(out) == [
        *("maps/array.tiff", "maps/photo.tiff", "maps/volume.nii.gz", "montages/volume.png"),
        *("overlays/array.png", "overlays/photo.png", "overlays/volume.png", "videos/exam.mp4"),
    ]
    assert [row["files"] for row in table(out)] == ["", "", "montages/volume.png", *["videos/exam.mp4"] * 2, ""]
    assert [row["position_mm"] for row in table(out, "slices")] == [f"{3 * number}.0" for number in range(16)]
    assert table(out, "studies") == [
        {
            "study": "exam",
            "cases": "2",
            "failed": "1",
            "nothing_to_score": "0",
            "anomaly_score": "0.5",
            "highest_case": "exam/2",
        }
    ]


def test_what_cannot_be_written_is_refused_before_a_folder_is_made(out):
    for options, message in (({"write": ["jpeg"]}, "there is no output jpeg"), ({"write": ["mask"]}, "give one")):
        with pytest.raises(ValueError, match=message):
            ResultWriter(out, **options)
    assert not out.exists()


CHOICES = {
    "tiff nifti": "maps/exam/0.tiff maps/photo.tiff maps/series.nii.gz maps/volume.nii.gz",
    "seg montage": "dicom/series_seg.dcm montages/series.png montages/volume.png",
    "nrrd mask": "maps/series.nrrd maps/volume.nrrd "
    "masks/exam/0.png masks/photo.png masks/series.nrrd masks/volume.nrrd",
    "nrrd nifti mask": "maps/series.nii.gz maps/series.nrrd maps/volume.nii.gz maps/volume.nrrd "
    "masks/exam/0.png masks/photo.png masks/series.nii.gz masks/volume.nii.gz",
    "video parametric-map": "dicom/series_map.dcm videos/exam.mp4",
    "capture": " ".join(f"dicom/series/overlay_000{number}.dcm" for number in range(1, 6)),
    "": "",
}


@pytest.mark.parametrize("write", CHOICES)
@pytest.mark.usefixtures("plain_figures")
def test_outputs_that_a_case_cannot_have_are_left_out_in_silence(tmp_path, out, write):
    cases = [photograph(tmp_path), volume(tmp_path), series(tmp_path), *video(tmp_path, count=1)]
    writer = run(out, cases, write=write.split(), threshold=0.5)
    assert written(out) == CHOICES[write].split()
    assert writer.shortfalls == record(out)["not_written"] == []
    assert [row["status"] for row in table(out)] == ["ok"] * 4


def test_each_video_is_written_as_another_case_begins(tmp_path, out):
    writer, seen = ResultWriter(out, write=["video"]), []
    for result in (*video(tmp_path, "a", 2), *video(tmp_path, "b", 3), photograph(tmp_path), *video(tmp_path, "c", 1)):
        writer.write(result)
        seen.append(len(written(out)))
    assert seen == [0, 0, 1, 1, 1, 2, 2]
    writer.finish()
    assert [len(list_frames(out / f"videos/{name}.mp4")) for name in "abc"] == [2, 3, 1]


def test_video_name_that_leads_elsewhere_is_refused(tmp_path, out):
    (frame,) = video(tmp_path, count=1)
    with pytest.raises(ValueError, match=r"'\.\./exam' cannot become a file"):
        ResultWriter(out).write(CaseResult("0", frame.source, 0.5, frame.anomaly_map, study="../exam"))
    assert not (tmp_path / "exam.mp4").exists()


def test_frame_of_no_video_is_written_as_it_is_scored_in_python(tmp_path, out):
    (frame,) = video(tmp_path, count=1)
    Results([CaseResult("frame", frame.source, 0.5, frame.anomaly_map)]).save(out)
    assert [row["status"] for row in table(out)] == ["ok"]


def test_results_are_saved_with_their_overlays_and_their_failures(tmp_path, out, monkeypatch):
    titles = []
    monkeypatch.setattr(outputs, "draw_overlay", lambda *_, title: titles.append(title) or Figure())
    view, failures = ImageView(plane="coronal"), [FailedCase("broken", "empty")]
    scored = replace(volume(tmp_path), slice_scores=np.arange(20, dtype=np.float32), slice_axis=1)
    results = Results([scored], failures, {"settings": {"plane": "coronal"}}, view)
    results.save(out, write=["overlay", "mask"], threshold=0.5)
    assert " of 20\n" in titles[0]  # coronal slices, not the 16 axial ones
    assert written(out) == ["masks/volume.nii.gz", "overlays/volume.png"]
    assert record(out)["settings"] == {"plane": "coronal"}
    assert [row["reason"] for row in table(out)] == ["", "empty"]


def test_results_are_saved_as_their_bundle_says_unless_told_otherwise(tmp_path, out):
    results = Results([photograph(tmp_path)], writing={"write": ["mask"], "threshold": 0.5})
    results.save(out)
    assert written(out) == ["masks/photo.png"]
    results.save(out, write=["tiff"])
    assert written(out) == ["maps/photo.tiff"]  # and no mask of the time before


def test_failed_case_counts_in_its_study_without_a_datalist(tmp_path, out):
    frames = video(tmp_path)
    Results(frames[:2], [FailedCase("exam/2", "damaged", "exam")]).save(out)
    (row,) = table(out, "studies")
    assert (row["cases"], row["failed"]) == ("2", "1")


def test_same_run_makes_the_same_files(tmp_path):
    """Except run.json and NRRD, which state the time."""
    cases = [series(tmp_path), ultrasound(tmp_path), photograph(tmp_path), volume(tmp_path), *video(tmp_path)]
    write = [name for name in ALL if name != "nrrd"]
    for name in ("first", "second"):
        run(tmp_path / name, cases, write=write, threshold=0.5)
    assert files_below(tmp_path / "first") == files_below(tmp_path / "second")
    names = [name for name in files_below(tmp_path / "first") if name != "run.json"]
    assert sum(name.startswith("dicom/") for name in names) == 2 + SLICES + 2
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


# another run into the same folder


@pytest.mark.usefixtures("plain_figures")
def test_case_that_fails_now_has_no_results_of_an_earlier_run(tmp_path, out):
    cases = [photograph(tmp_path, "a"), photograph(tmp_path, "b"), volume(tmp_path), series(tmp_path, "ct")]
    run(out, cases, write=[name for name in ALL if name != "capture"], threshold=0.5)
    run(out, cases[:1], [FailedCase(name, "empty") for name in ("b", "volume", "ct")])
    assert {Path(name).name.split(".")[0] for name in written(out)} == {"a"}


def test_captures_are_none_of_an_earlier_run(tmp_path, out, monkeypatch):
    result = series(tmp_path)
    for count in (4, 2):
        monkeypatch.setattr(outputs, "CAPTURES", count)
        run(out, [result], write=["capture"])
    assert written(out) == table(out)[0]["files"].split("; ")
    run(out, [], [FailedCase("series", "empty")])
    assert written(out) == []


@pytest.mark.parametrize("make", [lambda folder: [ultrasound(folder)], video])
@pytest.mark.usefixtures("plain_figures")
def test_output_that_cannot_be_made_now_is_none_of_an_earlier_run(tmp_path, out, monkeypatch, make):
    run(out, make(tmp_path), write=["overlay", "video"])
    assert len(written(out)) in (1, 4)

    def fail(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(outputs, "draw_overlay", fail)
    monkeypatch.setattr("mrad_med.results.overlay_video.blend_overlay", fail)
    run(out, make(tmp_path), write=["overlay", "video"])
    assert written(out) == []


def test_video_whose_frames_all_fail_now_is_none_of_an_earlier_run(tmp_path, out):
    run(out, frames := video(tmp_path))
    run(out, frames, [FailedCase(frame.case_id, "empty") for frame in frames])
    assert written(out) == []


def test_video_of_which_a_frame_fails_now_is_made_of_the_others(tmp_path, out):
    run(out, frames := video(tmp_path))
    run(out, frames, [FailedCase("exam/1", "empty")])
    assert len(list_frames(out / "videos/exam.mp4")) == 2


def test_run_that_was_repeated_and_stopped_leaves_no_results_of_the_first(tmp_path, out):
    run(out, cases := [photograph(tmp_path, name) for name in "abc"], write=["tiff"])
    ResultWriter(out, write=["tiff"]).write(cases[0])
    run(out, cases, [FailedCase("b", "empty")], write=["tiff"], resume=True)
    assert written(out) == ["maps/a.tiff", "maps/c.tiff"]


@pytest.mark.usefixtures("plain_figures")
def test_tables_without_rows_are_none_of_an_earlier_run(tmp_path, out):
    run(out, [volume(tmp_path), *video(tmp_path)])
    assert {"slices.csv", "studies.csv"} <= set(files_below(out))
    run(out, [photograph(tmp_path)])
    assert {"slices.csv", "studies.csv"} & set(files_below(out)) == set()


# who the patient is


def contents(folder: Path) -> dict[str, bytes]:
    """Return all bytes of all files, packed and unpacked, with their names."""
    read = {name: (folder / name).read_bytes() for name in files_below(folder)}
    packed = {name: gzip.decompress(data) for name, data in read.items() if name.endswith(".gz")}
    return {name: name.encode() + data + packed.get(name, b"") for name, data in read.items()}


def dicom_cases(folder: Path) -> list[CaseResult]:
    cine = write_multiframe(folder / "cine.dcm")
    return [series(folder), ultrasound(folder), CaseResult("cine", cine, 0.5, make_map(24, 20, 5), affine_of(OBLIQUE))]


def test_no_byte_of_any_result_identifies_the_patient(tmp_path, out, caplog):
    run(out, dicom_cases(tmp_path), write=ALL, threshold=0.5, provenance={"settings": {"window": "auto"}})
    assert len(contents(out)) > 20
    words = ["Olive", "Fingal", "Quill", "Larch", *(value for value in PRIVATE.values() if len(value) > 3)]
    for name, content in {**contents(out), "log": caplog.text.encode()}.items():
        assert [word for word in words if word.encode() in content] == [], name


@pytest.mark.usefixtures("plain_figures")
def test_identifiers_travel_into_dicom_alone_and_on_request(tmp_path, out):
    run(out, dicom_cases(tmp_path), write=ALL, threshold=0.5, keep_identifiers=True)
    named = {name for name, content in contents(out).items() if PRIVATE["PatientName"].encode() in content}
    assert named == {name for name in files_below(out) if name.startswith("dicom/")}
    assert {str(dcmread(out / name).PatientName) for name in named} == {PRIVATE["PatientName"]}


@pytest.mark.parametrize(
    ("write", "count"),
    [("overlay", 2), ("overlay capture", 2), ("tiff mask seg", 0)],
)
@pytest.mark.usefixtures("plain_figures")
def test_texts_burned_into_pixels_are_warned_of_once_where_pixels_are_shown(tmp_path, out, caplog, write, count):
    cases = [series(tmp_path), *(ultrasound(tmp_path, name) for name in ("a", "b"))]
    run(out, [*cases, ultrasound(tmp_path, "c", BurnedInAnnotation="YES")], write=write.split(), threshold=0.5)
    warnings = [entry.getMessage() for entry in caplog.records if "burned into" in entry.getMessage()]
    assert len(warnings) == count
    begins = [
        "a (and maybe others): images of this modality often have",
        "c (and maybe others): the source states that text",
    ]
    assert all(warning.startswith(begin) for warning, begin in zip(warnings, begins, strict=False))


# what goes wrong


def test_output_that_a_library_fails_at_costs_only_itself(tmp_path, out, monkeypatch, caplog):
    drawn = outputs.draw_overlay

    def fail(image, anomaly_map, *, title):
        if title.startswith("b"):
            raise RuntimeError("cannot draw Olive")
        return drawn(image, anomaly_map, title=title)

    monkeypatch.setattr(outputs, "draw_overlay", fail)
    writer = run(out, [photograph(tmp_path, name) for name in "abc"], write=["overlay", "tiff"])
    assert written(out) == [*(f"maps/{name}.tiff" for name in "abc"), "overlays/a.png", "overlays/c.png"]
    assert writer.shortfalls == [FailedCase("b", "no overlay could be written: unforeseen RuntimeError")]
    assert record(out)["not_written"] == [{"case_id": "b", "reason": writer.shortfalls[0].reason}]
    assert record(out)["cases"] == {"total": 3, "ok": 3, "failed": 0, "nothing_to_score": 0}
    assert [(row["status"], row["overlay"]) for row in table(out)] == [
        *(("ok", "overlays/a.png"), ("ok", ""), ("ok", "overlays/c.png"))
    ]
    assert "b: no overlay could be written: unforeseen RuntimeError" in caplog.text
    assert "Olive" not in caplog.text + json.dumps(record(out))


def test_output_that_does_not_fit_its_source_is_reported_with_the_reason(tmp_path, out):
    writer = run(out, [ultrasound(tmp_path)], write=["parametric-map", "seg"], threshold=0.5)
    (shortfall,) = writer.shortfalls
    assert shortfall.case_id == "ultrasound"
    assert shortfall.reason.startswith(
        "no parametric-map could be written: a parametric map needs source images with pos"
    )
    assert written(out) == ["dicom/ultrasound_seg.dcm"]


def test_source_that_is_gone_costs_only_its_overlays(tmp_path, out):
    photo, frames = photograph(tmp_path), video(tmp_path)
    photo.source.unlink()
    Path(frames[0].source.path).unlink()
    writer = run(out, [photo, *frames])
    assert written(out) == ["maps/photo.tiff"]
    assert [row["files"] for row in table(out)] == [""] * 4
    assert [shortfall.case_id for shortfall in writer.shortfalls] == ["photo", "exam"]
    assert [shortfall.reason.split(":")[:2] for shortfall in writer.shortfalls] == [
        [f"no {name} could be written", " there is no such file"] for name in ("overlay", "video")
    ]


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 100 bytes: the system then refuses to write on, whatever library asks."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", OUTPUTS)
def test_full_disk_is_reported_and_leaves_no_half_of_a_file(tmp_path, out, name):
    result = photograph(tmp_path) if name in ("tiff", "png") else series(tmp_path)
    writer = ResultWriter(out, write=[name], threshold=0.5)
    with full_disk(), pytest.raises(OutputError, match=rf"cannot write the results of {result.case_id} to .*out"):
        writer.write(result)
    assert files_below(out) == []


@pytest.mark.parametrize("side", [16, 128])
def test_full_disk_leaves_no_half_of_a_video(tmp_path, out, side):
    """The maps of large frames fill the disk while they wait for the others, those of small ones with the video."""
    writer, results = ResultWriter(out, write=["video"]), video(tmp_path)

    def write() -> None:
        for result in results:
            writer.write(replace(result, anomaly_map=make_map(side, side)))
        writer.finish()

    with full_disk(), pytest.raises(OutputError, match="cannot write the results of exam"):
        write()
    assert files_below(out) == []


def test_full_disk_is_found_before_anything_is_scored(tmp_path, out):
    with full_disk(), pytest.raises(OutputError, match=r"cannot write to .*out \(File too large\); choose another"):
        ResultWriter(out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("case_id", [pytest.param("n" * 251, id="long"), pytest.param("線" * 83 + "nn", id="scripts")])
def test_name_as_long_as_a_file_may_have_costs_at_most_its_own_case(tmp_path, out, case_id):
    writer = run(out, [photograph(tmp_path, case_id), photograph(tmp_path)], write=["tiff"])
    assert written(out) == ["maps/photo.tiff"]
    assert [(item.case_id, item.reason.endswith("rename the case")) for item in writer.shortfalls] == [(case_id, True)]


@pytest.mark.parametrize("case_id", ["n" * 250, "/absolute", "../above"])
def test_failed_case_of_any_name_is_in_the_table(tmp_path, out, case_id):
    run(out, [photograph(tmp_path)], [FailedCase(case_id, "empty")])
    assert [row["case_id"] for row in table(out)] == ["photo", case_id]


# whole and interrupted runs


def names_of(results: list[CaseResult]) -> list[str]:
    return [result.case_id for result in results]


def announce(out: Path, results: list[CaseResult], **options) -> ResultWriter:
    writer = ResultWriter(out, **options)
    writer.pending([{"image": result.source, "case_id": result.case_id, "study": result.study} for result in results])
    return writer


def test_whole_run_is_complete(tmp_path, out):
    run(out, [photograph(tmp_path, name) for name in "ab"], [FailedCase("b", "empty")])
    assert record(out)["complete"] is True
    assert record(out)["not_reached"] == {"count": 0, "cases": []}


@pytest.mark.parametrize("is_whole", [False, True])
def test_run_that_did_not_reach_all_cases_names_the_others(tmp_path, out, is_whole):
    results = [photograph(tmp_path, name) for name in "abcd"]
    writer = announce(out, results)
    writer.write(results[2])
    writer.finish([FailedCase("a", "empty")], is_whole=is_whole)
    assert record(out)["complete"] is False
    assert record(out)["not_reached"] == {"count": 2, "cases": ["b", "d"]}
    assert record(out)["cases"] == {"total": 4, "ok": 1, "failed": 1, "nothing_to_score": 0}


def test_stopped_run_that_reached_all_cases_is_not_complete(tmp_path, out):
    results = [photograph(tmp_path)]
    writer = announce(out, results)
    writer.write(results[0])
    writer.finish(is_whole=False)
    assert (record(out)["complete"], record(out)["not_reached"]["count"]) == (False, 0)


def test_run_that_is_killed_has_said_before_that_it_is_not_complete(tmp_path, out):
    results = [photograph(tmp_path, name) for name in "ab"]
    run(out, results)
    announce(out, results, resume=False)
    assert (record(out)["complete"], record(out)["not_reached"]["cases"]) == (False, ["a", "b"])


def test_time_of_a_run_is_not_that_of_a_clock_that_is_set(tmp_path, out, monkeypatch):
    monkeypatch.setattr("time.time", lambda: pytest.fail("the clock of the wall was asked for a duration"))
    run(out, [], write=[])
    assert record(out)["seconds"] >= 0


# one process a folder


def test_folder_is_locked_until_the_end_and_for_other_processes_alone(tmp_path, out):
    writer, again = ResultWriter(out), ResultWriter(out)
    assert (out / LOCK_NAME).exists()
    for item in (writer, again):
        item.finish()
    assert not (out / LOCK_NAME).exists()
    writer.write(photograph(tmp_path))
    assert (out / LOCK_NAME).exists()
    (out / "scores.csv").unlink()
    (out / "scores.csv").mkdir()
    with pytest.raises(OutputError, match="cannot write the tables to"):
        writer.finish()
    assert not (out / LOCK_NAME).exists()


def test_folder_of_another_host_is_taken_over_on_request(out):
    out.mkdir()
    (out / LOCK_NAME).write_text('{"host": "elsewhere", "pid": 4711}', encoding="utf-8")
    with pytest.raises(OutputError, match="process 4711 on elsewhere"):
        ResultWriter(out)
    ResultWriter(out, take_over=True).finish()
    assert files_below(out) == ["run.json", "scores.csv"]


# no folder for temporary files


def test_video_needs_no_other_folder(tmp_path, out, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    run(out, video(tmp_path))
    assert written(out) == ["videos/exam.mp4"]


# cases that change while they are scored


def repaint(result: CaseResult, gray: int) -> None:
    """Replace a photograph by another one of the same name, size and time of change."""
    path = Path(getattr(result.source, "path", result.source))
    stat = path.stat()
    if isinstance(result.source, Frame):
        Image.new("L", (32, 24), gray).save(path, save_all=True, append_images=[Image.new("L", (32, 24))] * 2)
    else:
        Image.new("RGB", (32, 24), (gray, 0, 0)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_case_that_changed_is_scored_once_more_and_then_as_it_is(tmp_path, out):
    results = [photograph(tmp_path, name) for name in "ab"]
    writer = announce(out, results, write=["tiff"])
    writer.write(results[0])
    repaint(results[1], 9)
    writer.write(results[1])
    assert written(out) == ["maps/a.tiff"]  # nothing is kept of what nobody can name
    assert [case["case_id"] for case in writer.changed()] == ["b"]
    writer.write(replace(results[1], anomaly_score=0.75))
    assert writer.changed() == []
    writer.finish()
    assert [row["anomaly_score"] for row in table(out)] == ["0.5", "0.75"]
    assert record(out)["complete"] is True
    assert [case["case_id"] for case in ResultWriter(out, write=["tiff"], resume=True).pending(cases_of(results))] == []


def cases_of(results: list[CaseResult]) -> list[dict]:
    return [{"image": result.source, "case_id": result.case_id, "study": result.study} for result in results]


def test_case_that_changes_twice_is_refused_and_tried_again_by_the_next_run(tmp_path, out):
    results = [photograph(tmp_path, name) for name in "ab"]
    writer = announce(out, results, write=["tiff"])
    for gray in (9, 10):
        repaint(results[1], gray)
        writer.write(results[1])
        writer.changed()
    writer.write(results[0])
    writer.finish()
    assert written(out) == ["maps/a.tiff"]
    (failure,) = writer.failures
    assert (failure.case_id, failure.reason) == (
        "b",
        "its file changed while it was read, twice; wait until nothing writes to it, for example until it is copied, "
        "and run again",
    )
    assert table(out)[-1]["reason"] == failure.reason
    pending = ResultWriter(out, write=["tiff"], resume=True).pending(cases_of(results))
    assert [case["case_id"] for case in pending] == ["b"]


def test_case_that_changed_and_is_not_scored_once_more_is_refused(tmp_path, out):
    writer = announce(out, results := [photograph(tmp_path)], write=["tiff"])
    repaint(results[0], 9)
    writer.write(results[0])
    writer.finish()
    assert [item.reason for item in writer.failures] == ["its file changed while it was read; run again"]


def test_case_that_failed_because_it_was_being_copied_is_scored_once_more(tmp_path, out):
    results = [photograph(tmp_path, name) for name in "ab"]
    writer = announce(out, results, write=["tiff"])
    failures = [FailedCase(name, "damaged") for name in "ab"]
    repaint(results[1], 9)
    assert [case["case_id"] for case in writer.changed(failures)] == ["b"]
    writer.write(results[1])
    writer.finish(failures)
    assert [(row["case_id"], row["status"]) for row in table(out)] == [("b", "ok"), ("a", "failed")]
    assert writer.failures == failures[:1]


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_video_that_changed_is_scored_once_more_as_a_whole(tmp_path, out, when):
    results = [*video(tmp_path), photograph(tmp_path)]
    writer = announce(out, results, write=["tiff", "video"])
    for number, result in enumerate(results):
        if number == when:
            repaint(results[0], 9)
        writer.write(result)
    assert written(out) == ["maps/photo.tiff"]
    assert [case["case_id"] for case in writer.changed()] == ["exam/0", "exam/1", "exam/2"]
    for result in results[:3]:
        writer.write(result)
    writer.finish()
    assert len(list_frames(out / "videos" / "exam.mp4")) == 3
    assert writer.failures == []
    assert [row["status"] for row in table(out)] == ["ok"] * 4


def test_source_that_goes_away_while_it_is_scored_is_scored_once_more(tmp_path, out):
    writer = announce(out, results := [photograph(tmp_path)], write=["tiff"])
    results[0].source.unlink()
    writer.write(results[0])
    assert [case["case_id"] for case in writer.changed()] == ["photo"]  # and the reader states that it is gone
    writer.finish([FailedCase("photo", "there is no such file")])
    assert [item.reason for item in writer.failures] == ["there is no such file"]


# what is not trusted


def older(out: Path) -> None:
    """Turn a journal into one as version 0.1 wrote it."""
    lines = [json.loads(line) for line in (out / "finished.jsonl").read_text(encoding="utf-8").splitlines()]
    for values in lines:
        for name in ("format", "check", "settings"):
            values.pop(name)
    (out / "finished.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in lines), encoding="utf-8")


def test_results_of_an_older_version_are_not_taken_for_finished_and_that_is_one_line(tmp_path, out, caplog):
    run(out, results := [photograph(tmp_path, name) for name in "ab"], write=["tiff"])
    older(out)
    pending = announce_pending(out, results)
    assert pending == ["a", "b"]
    assert caplog.messages == ["2 result(s) of an older version of mrad_med are not treated as finished"]
    run(out, results, [FailedCase("b", "empty")], write=["tiff"], resume=True)
    assert written(out) == ["maps/a.tiff"]  # what the older version wrote of a failed case is removed


def announce_pending(out: Path, results: list[CaseResult], **options) -> list[str]:
    writer = ResultWriter(out, **{"write": ["tiff"], "resume": True, **options})
    return [case["case_id"] for case in writer.pending(cases_of(results))]


def test_damaged_lines_cost_their_cases_and_that_is_one_line(tmp_path, out, caplog):
    run(out, results := [photograph(tmp_path, name) for name in "abc"], write=["tiff"])
    text = (out / "finished.jsonl").read_text(encoding="utf-8")
    lines = text.replace('"anomaly_score": "0.5"', '"anomaly_score": "0.1"', 1).splitlines(keepends=True)
    (out / "finished.jsonl").write_text("".join([lines[0], lines[1][:40] + "\n", lines[2]]), encoding="utf-8")
    assert announce_pending(out, results) == ["a", "b"]
    assert caplog.messages == ["2 line(s) of finished.jsonl are damaged; their cases are scored again"]


def test_line_that_names_files_elsewhere_is_damaged(tmp_path, out, caplog):
    run(out, results := [photograph(tmp_path)], write=["tiff"])
    text = (out / "finished.jsonl").read_text(encoding="utf-8").replace("maps/photo.tiff", "../photo.png")
    (out / "finished.jsonl").write_text(text, encoding="utf-8")
    older(out)
    run(out, results, [FailedCase("photo", "empty")], write=["tiff"], resume=True)
    assert results[0].source.exists()
    assert "1 line(s) of finished.jsonl are damaged" in caplog.text


def test_other_settings_are_stated_in_one_line(tmp_path, out, caplog):
    run(out, results := [photograph(tmp_path, name) for name in "ab"], write=["tiff"])
    for options in ({"threshold": 0.5}, {"provenance": {"parts": {"head": "other"}}}):
        caplog.clear()
        assert announce_pending(out, results, **options) == ["a", "b"]
        assert caplog.messages == ["2 case(s) were finished with other settings or versions and are scored again"]
    caplog.clear()
    assert announce_pending(out, results) == []
    assert caplog.messages == []


def test_results_that_lost_their_content_are_made_again(tmp_path, out):
    run(out, results := [photograph(tmp_path)], write=["tiff"])
    (out / "maps" / "photo.tiff").write_bytes(b"")
    assert announce_pending(out, results) == ["photo"]


def test_result_whose_files_nobody_looked_at_before_they_were_read_is_not_taken_for_finished(tmp_path, out):
    Results([result := photograph(tmp_path)]).save(out, write=["tiff"])
    assert announce_pending(out, [result]) == ["photo"]


def test_image_in_memory_and_photograph_of_its_name_are_not_one_case(tmp_path, out):
    in_memory = CaseResult("photo", np.zeros((*SIZE, 3), np.uint8), 0.5, make_map(*SIZE))
    run(out, [in_memory], write=["tiff"])
    assert announce_pending(out, [photograph(tmp_path)]) == ["photo"]


def test_volume_without_a_place_has_no_place_in_its_results(tmp_path):
    values = np.random.RandomState(0).rand(20, 24, 3).astype(np.float32)
    scores = np.array([0.1, 0.3, 0.2], np.float32)
    affine = np.diag([-2.0, -0.5, 4.0, 1.0])
    for has_position in (True, False):
        folder = tmp_path / str(has_position)
        result = CaseResult("a", values, 0.3, values, affine, scores, 2, has_position=has_position)
        writer = ResultWriter(folder, write=["nifti", "mask", "nrrd"], threshold=0.5)
        writer.write(result)
        writer.finish()
        with (folder / "slices.csv").open(encoding="utf-8") as stream:
            places = [row["position_mm"] for row in csv.DictReader(stream)]
        assert places == (["0.0", "4.0", "8.0"] if has_position else ["", "", ""])
        for name in ("maps/a.nii.gz", "masks/a.nii.gz"):
            header = nibabel.load(folder / name).header
            assert (int(header["sform_code"]), int(header["qform_code"])) == ((1, 1) if has_position else (0, 0))
            np.testing.assert_allclose(header.get_zooms(), [2, 0.5, 4])
        read, header = nrrd.read(str(folder / "maps/a.nrrd"))
        np.testing.assert_array_equal(read, values)
        assert ("space" in header) is has_position
        assert ("spacings" in header) is not has_position
