"""Files that a run writes: their content, and that none is incomplete after an error."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from monai.data import MetaTensor
from PIL import Image

import mrad_med
from mrad_med import CaseResult, ResultSaver, ResultWriter, describe_run, find_cases
from mrad_med.detector import Results
from mrad_med.errors import OutputError
from mrad_med.results import ResultCollector, outputs
from mrad_med.results.case_result import slice_means
from mrad_med.transforms.preprocessing import ImageView
from mrad_med.types import FailedCase

ROWS, COLUMNS = 20, 30
AFFINE = np.array([[-0.8, 0.1, 0.0, 10.0], [0.1, 0.8, 0.2, -5.0], [0.0, -0.2, 2.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
FAILURES = [FailedCase("broken, very", "the file is empty (0 bytes); copy or export it again")]


def make_image_case(folder: Path, case_id: str = "photo", *, name: str = "photo.png") -> CaseResult:
    random = np.random.RandomState(0)
    Image.fromarray(random.randint(0, 256, (ROWS, COLUMNS, 3)).astype(np.uint8)).save(folder / name)
    anomaly_map = random.rand(ROWS, COLUMNS).astype(np.float32)
    anomaly_map[4, 25] = 2.5
    return CaseResult(case_id, folder / name, 0.123456789, anomaly_map)


def make_volume_case(folder: Path, case_id: str = "volume") -> CaseResult:
    random = np.random.RandomState(1)
    shape = (18, 20, 6)
    nibabel.save(nibabel.Nifti1Image(random.rand(*shape).astype(np.float32), AFFINE), folder / "volume.nii.gz")
    anomaly_map = random.rand(*shape).astype(np.float32)
    anomaly_map[3:9, 5:9, 4] = 1.5
    anomaly_map[7, 8, 4] = 1.75
    return CaseResult(case_id, folder / "volume.nii.gz", 0.75, anomaly_map, AFFINE)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


# one case


def test_result_of_an_image_is_turned_upright():
    stored = torch.arange(6.0, dtype=torch.float64).reshape(1, 3, 2)  # (1, W, H)
    output = {"anomaly_map": MetaTensor(stored), "anomaly_score": torch.tensor([0.25])}
    result = CaseResult.from_output({"image": "folder/b.png", "case_id": "a/b", "study": "s"}, output)
    assert (result.case_id, result.files, result.anomaly_score) == ("a/b", (Path("folder/b.png"),), 0.25)
    assert (result.study, result.kind, result.slice_scores) == ("s", "image", None)
    assert result.anomaly_map.dtype == np.float32
    assert result.anomaly_map.flags.c_contiguous
    np.testing.assert_array_equal(result.anomaly_map, [[0, 2, 4], [1, 3, 5]])
    assert result.affine is None


def test_result_of_a_volume_stays_as_stored():
    stored = torch.rand(1, 4, 5, 6)
    output = {
        "anomaly_map": MetaTensor(stored, affine=torch.from_numpy(AFFINE)),
        "anomaly_score": torch.tensor([0.5]),
        "slice_scores": torch.arange(6.0),
    }
    result = CaseResult.from_output({"image": "v.nii.gz", "case_id": "v"}, output)
    assert (result.kind, result.slice_axis) == ("volume", 2)
    np.testing.assert_array_equal(result.slice_scores, np.arange(6))
    np.testing.assert_array_equal(result.anomaly_map, stored[0])
    np.testing.assert_array_equal(result.affine, AFFINE)


def test_peak_is_the_index_of_the_highest_value(tmp_path):
    assert make_image_case(tmp_path).peak == (4, 25)
    assert make_volume_case(tmp_path).peak == (7, 8, 4)


def test_overlay_of_an_image_shows_all_of_it(tmp_path):
    case = make_image_case(tmp_path)
    image, upright, note = case.overlay_input()
    np.testing.assert_array_equal(image, np.asarray(Image.open(case.source)))
    np.testing.assert_array_equal(upright, case.anomaly_map)
    assert note == ""


def test_overlay_of_a_volume_shows_its_most_suspicious_slice_upright(tmp_path):
    """The stored axes run to the left, the front and the top; a radiologist sees the front at the top."""
    case = make_volume_case(tmp_path)
    assert nibabel.aff2axcodes(AFFINE) == ("L", "A", "S")
    image, upright, note = case.overlay_input()
    assert note == ", slice 5 of 6"
    np.testing.assert_array_equal(upright, case.anomaly_map[:, ::-1, 4].T)
    values = nibabel.load(case.source).get_fdata()
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values[:, ::-1, 4].T - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(image, np.dstack([expected] * 3), atol=1)


def make_scored(scores: list[float], **changes) -> CaseResult:
    """A volume of six slices along an axis that runs to the head; slice 4 has the highest map."""
    anomaly_map = np.zeros((18, 20, 6), np.float32)
    anomaly_map[..., 4] = 0.5
    values = {"affine": np.diag([1.0, 1.0, 2.0, 1.0]), "slice_scores": np.array(scores, np.float32), "slice_axis": 2}
    return CaseResult("scored", "volume.nii.gz", max(scores), anomaly_map, **{**values, **changes})


def test_slices_rank_by_their_scores_and_equal_ones_by_their_index():
    scores = [0.25, 0.75, 0.5, 0.75, 0.125, 0.5]
    ranking = make_scored(scores).rank_slices()
    np.testing.assert_array_equal(ranking.scores, scores)
    assert ranking.order.tolist() == [1, 3, 2, 5, 0, 4]
    assert ranking.upright_order.tolist() == [1, 3, 2, 5, 0, 4]
    flipped = make_scored(scores, affine=np.diag([1.0, 1.0, -2.0, 1.0])).rank_slices()
    assert flipped.order.tolist() == [1, 3, 2, 5, 0, 4]  # though upright, slice 3 is seen before slice 1
    assert flipped.upright_order.tolist() == [4, 2, 3, 0, 5, 1]
    np.testing.assert_array_equal(flipped.upright_scores, scores[::-1])


def test_slices_without_scores_rank_by_the_highest_pixels_of_their_map():
    """One percent of 200 pixels is two pixels: the means are 0.3, 0.5, 0.45, and all of the last slice are equal."""
    anomaly_map = np.zeros((10, 20, 4), np.float32)
    anomaly_map[..., 0] = 0.3
    anomaly_map[2, 5:7, 1] = 0.5
    anomaly_map[0, 0, 2] = 0.9
    np.testing.assert_allclose(slice_means(anomaly_map, axis=2), [0.3, 0.5, 0.45, 0.0])
    ranking = CaseResult("v", "v.nii", 0.5, anomaly_map, np.diag([1.0, 1.0, 2.0, 1.0])).rank_slices()
    assert ranking.order.tolist() == [1, 2, 0, 3]
    np.testing.assert_allclose(slice_means(anomaly_map, axis=0)[[0, 2, 9]], [0.9, 0.5, 0.3])  # of 80 pixels, one


def test_slices_that_cannot_be_ranked_are_refused(tmp_path):
    with pytest.raises(ValueError, match="only the slices of a volume can be ranked"):
        make_image_case(tmp_path).rank_slices()
    with pytest.raises(ValueError, match=r"one score for each of 6 slices, got shape \(5,\)"):
        make_scored([0.5] * 5).rank_slices()
    with pytest.raises(ValueError, match="scored along axis 2, but the view shows axis 1; show them in the plane"):
        make_scored([0.5] * 6).rank_slices(ImageView(plane="coronal"))


# files


def test_files_of_a_run_are_named_after_their_cases(tmp_path):
    writer = ResultWriter(tmp_path / "out")
    writer.write(make_image_case(tmp_path, "visit 1/left eye"))
    writer.write(make_volume_case(tmp_path, "brain"))
    writer.finish(FAILURES)
    assert files_below(tmp_path / "out") == [
        "finished.jsonl",
        "maps/brain.nii.gz",
        "maps/visit 1/left eye.tiff",
        "montages/brain.png",
        "overlays/brain.png",
        "overlays/visit 1/left eye.png",
        "run.json",
        "scores.csv",
    ]


def test_map_of_an_image_is_a_tiff_of_its_very_values(tmp_path):
    case = make_image_case(tmp_path)
    ResultWriter(tmp_path / "out", write=["tiff", "nifti"]).write(case)
    stored = tifffile.imread(tmp_path / "out/maps/photo.tiff")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, case.anomaly_map)
    with Image.open(tmp_path / "out/maps/photo.tiff") as image:  # any other reader sees the same
        np.testing.assert_array_equal(np.asarray(image), case.anomaly_map)


def test_map_of_a_volume_is_a_nifti_of_its_very_values_on_the_grid_of_the_file(tmp_path):
    case = make_volume_case(tmp_path)
    ResultWriter(tmp_path / "out", write=["tiff", "nifti"]).write(case)
    stored = nibabel.load(tmp_path / "out/maps/volume.nii.gz")
    assert stored.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(stored.dataobj), case.anomaly_map)
    np.testing.assert_allclose(stored.affine, nibabel.load(case.source).affine, atol=1e-6)


def test_header_of_a_map_holds_geometry_and_nothing_else(tmp_path):
    case = make_volume_case(tmp_path)
    named = nibabel.load(case.source)
    named.header["descrip"] = b"Beeblebrox"
    named.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Beeblebrox, Zaphod"))
    volume = nibabel.Nifti1Image(named.get_fdata(dtype=np.float32), named.affine, named.header)
    nibabel.save(volume, case.source)
    ResultWriter(tmp_path / "out", write=["tiff", "nifti"]).write(case)
    header = nibabel.load(tmp_path / "out/maps/volume.nii.gz").header
    assert [header[name].item() for name in ("descrip", "aux_file", "intent_name", "db_name")] == [b""] * 4
    assert len(header.extensions) == 0
    assert b"volume" not in (tmp_path / "out/maps/volume.nii.gz").read_bytes()[:40]  # gzip can keep a file name


def test_overlays_can_be_left_out(tmp_path):
    writer = ResultWriter(tmp_path / "out", write=["tiff", "nifti"])
    writer.write(make_image_case(tmp_path))
    writer.finish()
    assert files_below(tmp_path / "out") == ["finished.jsonl", "maps/photo.tiff", "run.json", "scores.csv"]
    assert read_table(tmp_path / "out")[0]["overlay"] == ""


def test_overlay_is_an_image_with_the_score_in_its_title(tmp_path, monkeypatch):
    titles = []
    drawn = outputs.draw_overlay
    monkeypatch.setattr(outputs, "draw_overlay", lambda *args, title: titles.append(title) or drawn(*args, title=title))
    writer = ResultWriter(tmp_path / "out")
    writer.write(make_image_case(tmp_path))
    writer.write(make_volume_case(tmp_path))
    assert titles == ["photo\nanomaly score 0.1235", "volume, slice 5 of 6\nanomaly score 0.7500"]
    for name in ("photo", "volume"):
        with Image.open(tmp_path / f"out/overlays/{name}.png") as image:
            assert image.format == "PNG"


def test_table_has_a_row_for_every_case(tmp_path):
    writer = ResultWriter(tmp_path / "out")
    photo, volume = make_image_case(tmp_path, "visit, 1/photo"), make_volume_case(tmp_path)
    writer.write(photo)
    writer.write(volume)
    writer.finish(FAILURES)
    rows = read_table(tmp_path / "out")
    assert rows[0] == {
        "case_id": "visit, 1/photo",
        "status": "ok",
        "anomaly_score": "0.1234568",
        "map_minimum": f"{photo.anomaly_map.min():.7g}",
        "map_maximum": "2.5",
        "peak": "4 25",
        "map": "maps/visit, 1/photo.tiff",
        "overlay": "overlays/visit, 1/photo.png",
        "kind": "image",
        "study": "",
        "time_s": "",
        "files": "",
        "reason": "",
    }
    assert (rows[1]["case_id"], rows[1]["peak"], rows[1]["map"]) == ("volume", "7 8 4", "maps/volume.nii.gz")
    assert {name: value for name, value in rows[2].items() if value} == {
        "case_id": "broken, very",
        "status": "failed",
        "reason": FAILURES[0].reason,
    }
    assert len(rows) == 3


def test_record_says_what_ran_and_how_it_went(tmp_path):
    writer = ResultWriter(tmp_path / "out", provenance={"backbone": {"name": "tiny"}, "settings": {"path": tmp_path}})
    writer.write(make_image_case(tmp_path))
    writer.finish([*FAILURES, replace(FAILURES[0], case_id="other")])
    record = read_record(tmp_path / "out")
    assert record["backbone"] == {"name": "tiny"}
    assert record["settings"] == {"path": str(tmp_path)}
    assert record["cases"] == {"total": 3, "ok": 1, "failed": 2, "nothing_to_score": 0}
    names = ("broken, very", "other")
    assert record["failures"] == [{"case_id": name, "reason": FAILURES[0].reason} for name in names]
    assert record["versions"]["mrad-med"] == mrad_med.__version__
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(record["versions"]) == {"python", "mrad-med", "monai", "torch", "open_clip_torch", "numpy"}
    assert datetime.fromisoformat(record["created"]).tzinfo is not None
    assert 0 <= record["seconds"] < 600


def test_run_without_a_single_result_is_recorded_too(tmp_path):
    ResultWriter(tmp_path / "out").finish(FAILURES)
    assert [row["status"] for row in read_table(tmp_path / "out")] == ["failed"]
    assert read_record(tmp_path / "out")["cases"] == {"total": 1, "ok": 0, "failed": 1, "nothing_to_score": 0}


def test_provenance_given_is_not_kept_by_reference(tmp_path):
    provenance = {"notes": 1}
    writer = ResultWriter(tmp_path / "out", provenance=provenance)
    provenance["notes"] = 2
    writer.finish()
    assert read_record(tmp_path / "out")["notes"] == 1


def test_description_of_a_run_is_plain_values(tiny_clip, tiny_bank):
    described = json.loads(json.dumps(describe_run(tiny_clip, tiny_bank, image_size=56, temperature=0.5)))
    assert described["backbone"]["name"] == "tiny 0"
    assert described["backbone"]["mean"] == [0.5, 0.5, 0.5]
    assert described["memory_bank"]["sha256"] == tiny_bank.sha256
    assert described["memory_bank"]["card"]["backbone_sha256"] == tiny_clip.card.sha256
    assert described["settings"] == {"image_size": 56, "temperature": 0.5}


def test_second_run_replaces_the_first(tmp_path):
    for score in (0.25, 0.75):
        writer = ResultWriter(tmp_path / "out", write=["tiff", "nifti"])
        case = make_image_case(tmp_path)
        writer.write(CaseResult(case.case_id, case.source, score, case.anomaly_map * np.float32(score)))
        writer.finish()
    assert [row["anomaly_score"] for row in read_table(tmp_path / "out")] == ["0.75"]
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "out/maps/photo.tiff"), case.anomaly_map * np.float32(0.75)
    )


# names


@pytest.mark.parametrize("case_id", ["../x", "a/../../x", "/abs", "a\\b", "..\\x", "", ".", ".."])
def test_case_name_that_leads_elsewhere_is_refused(tmp_path, case_id):
    writer = ResultWriter(tmp_path / "out")
    with pytest.raises(ValueError, match=r"cannot become a file below the output folder; rename the case"):
        writer.write(make_image_case(tmp_path, case_id))
    assert files_below(tmp_path / "out") == []
    assert writer.rows == []


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "name",
    [
        "50% $x_1$ {1}.png",
        "dots.in.name..png",
        "線維腫 é.png",
        "two\nlines.png",
        pytest.param("back\\slash.png", marks=pytest.mark.skipif(os.name == "nt", reason="separates folders there")),
        os.fsdecode(b"latin-1 \xe9.png"),  # not UTF-8, as old archives unpack it
        "n" * 240 + ".png",
    ],
    ids=["signs", "dots", "scripts", "newline", "backslash", "no unicode", "long"],
)
def test_any_image_that_can_be_found_has_results_that_can_be_written(tmp_path, name):
    """An unusual file name must not stop a run after hours of computing."""
    source = tmp_path / "in"
    source.mkdir()
    shown = make_image_case(source, name=name)
    (case,) = find_cases(source)
    writer = ResultWriter(tmp_path / "out")
    writer.write(CaseResult(case["case_id"], Path(case["image"]), 0.5, shown.anomaly_map))
    writer.finish([FailedCase("another", "reason")])
    (row, failed) = read_table(tmp_path / "out")
    assert (row["status"], failed["status"]) == ("ok", "failed")
    assert len(files_below(tmp_path / "out" / "maps")) == len(files_below(tmp_path / "out" / "overlays")) == 1


# what goes wrong


@pytest.mark.parametrize("place", ["out", "out/deeper"])
def test_file_in_the_place_of_the_output_folder_is_refused_at_once(tmp_path, place):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write to .*out.*; choose another folder"):
        ResultWriter(tmp_path / place)
    assert (tmp_path / "out").read_text() == "in the way"


def test_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"cannot write to .* \(Permission denied\); choose another folder"):
        ResultWriter(tmp_path)


def test_check_of_write_access_leaves_no_file(tmp_path):
    ResultWriter(tmp_path / "new" / "out")
    assert files_below(tmp_path) == []
    assert (tmp_path / "new" / "out").is_dir()


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def half_a_tiff(path, *_, **__):
    Path(path).write_bytes(b"half")
    raise no_space()


def half_a_nifti(_, path):
    Path(path).write_bytes(b"half")
    raise no_space()


def half_an_image(_, path, **__):
    Path(path).write_bytes(b"half")
    raise no_space()


@pytest.mark.parametrize(
    ("make_case", "module", "function", "stand_in", "left"),
    [
        (make_image_case, tifffile, "imwrite", half_a_tiff, []),
        (make_volume_case, nibabel, "save", half_a_nifti, []),
        (make_image_case, Figure, "savefig", half_an_image, ["maps/photo.tiff"]),
        (make_volume_case, Figure, "savefig", half_an_image, ["maps/volume.nii.gz"]),
    ],
    ids=["tiff", "nifti", "overlay", "overlay of a volume"],
)
def test_full_disk_leaves_no_half_of_a_file(tmp_path, monkeypatch, make_case, module, function, stand_in, left):
    case, writer = make_case(tmp_path), ResultWriter(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(module, function, stand_in)
        with pytest.raises(OutputError, match=rf"cannot write the results of {case.case_id} to .*No space left"):
            writer.write(case)
    assert files_below(tmp_path / "out") == left
    writer.finish()
    assert read_record(tmp_path / "out")["cases"]["ok"] == 0  # it is not counted


@pytest.mark.parametrize(
    ("owner", "method", "left"), [(csv.DictWriter, "writerows", []), (json, "dumps", ["scores.csv"])]
)
def test_full_disk_leaves_no_half_of_a_table(tmp_path, monkeypatch, owner, method, left):
    def fail(*_, **__):
        raise no_space()

    writer = ResultWriter(tmp_path / "out")
    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(OutputError, match=r"cannot write the tables to .*No space left"):
        writer.finish(FAILURES)
    assert files_below(tmp_path / "out") == left


def test_folder_that_is_replaced_by_a_file_meanwhile_is_an_error(tmp_path):
    writer = ResultWriter(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write the results of photo"):
        writer.write(make_image_case(tmp_path))
    with pytest.raises(OutputError, match="cannot write the tables"):
        writer.finish()


# all results at once


def test_results_are_saved_and_read_back(tmp_path):
    cases = [make_image_case(tmp_path, "b/photo"), make_volume_case(tmp_path, "a")]
    results = Results(cases, list(FAILURES), {"settings": {"image_size": 56}})
    results.save(tmp_path / "out", write=["tiff", "nifti"])
    rows = read_table(tmp_path / "out")
    assert [row["case_id"] for row in rows] == ["b/photo", "a", "broken, very"]
    assert [float(row["anomaly_score"]) for row in rows[:2]] == pytest.approx(list(results.scores.values()), abs=1e-6)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / rows[0]["map"]), cases[0].anomaly_map)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out" / rows[1]["map"]).get_fdata(), cases[1].anomaly_map)
    assert read_record(tmp_path / "out")["settings"] == {"image_size": 56}


def test_results_are_a_sequence_of_the_good_cases(tmp_path):
    cases = [make_image_case(tmp_path, "b"), make_volume_case(tmp_path, "a")]
    results = Results(cases, list(FAILURES))
    assert list(results) == cases
    assert len(results) == 2
    assert results.scores == {"b": 0.123456789, "a": 0.75}
    assert (len(Results()), Results().scores, Results().failures) == (0, {}, [])


# handlers


def run_engine(handler: ResultCollector | ResultSaver, folder: Path) -> None:
    """Run two batches past a handler, decollated as MONAI's evaluators leave them."""
    batches, score = [], iter((0.25, 0.5, 0.75))
    for names in (["a", "b"], ["c"]):
        images = [make_image_case(folder, name, name=f"{name}.png") for name in names]
        meta = [{"filename_or_obj": str(image.source)} for image in images]
        batches.append(
            [
                {"image": MetaTensor(torch.zeros(3, 4, 4), meta=item), "case_id": name}
                for name, item in zip(names, meta, strict=True)
            ]
        )

    def score_all(_: Engine, batch: list[dict]) -> list[dict]:
        shape = (1, COLUMNS, ROWS)
        return [
            {"anomaly_map": MetaTensor(torch.full(shape, 0.1)), "anomaly_score": torch.tensor([next(score)])}
            for _ in batch
        ]

    engine = Engine(score_all)
    handler.attach(engine)
    engine.run(batches)


def test_collector_hands_on_every_case(tmp_path):
    received = []
    run_engine(ResultCollector(received.append), tmp_path)
    assert [(case.case_id, case.files[0].name, case.anomaly_score) for case in received] == [
        ("a", "a.png", 0.25),
        ("b", "b.png", 0.5),
        ("c", "c.png", 0.75),
    ]
    assert {case.anomaly_map.shape for case in received} == {(ROWS, COLUMNS)}


def test_saver_writes_the_cases_and_at_the_end_the_tables(tmp_path):
    failures: list[FailedCase] = []
    saver = ResultSaver(ResultWriter(tmp_path / "out", write=["tiff", "nifti"]), failures)
    failures.extend(FAILURES)  # the loader fills its list while the engine runs
    run_engine(saver, tmp_path)
    assert [row["status"] for row in read_table(tmp_path / "out")] == ["ok", "ok", "ok", "failed"]
    assert files_below(tmp_path / "out")[1:4] == ["maps/a.tiff", "maps/b.tiff", "maps/c.tiff"]
