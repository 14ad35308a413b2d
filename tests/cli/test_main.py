"""The `mrad-med` command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from monai.data import load_net_with_metadata

import mrad_med
from mrad_med import CaseResult, ResultWriter
from mrad_med.cli import main
from mrad_med.data.catalog import DATASETS
from tests.small_archives import make_archive

SMALL = ["--image_size", "126", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("embedded_is_loaded")


def test_detect_writes_everything_and_says_so(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["detect", str(image_folder), "--out", str(tmp_path / "out"), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 case(s) scored" in printed
    scores = [float(line.split()[-1]) for line in printed.splitlines()[1:4]]
    assert scores == sorted(scores, reverse=True)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "scores.csv",
        "run.json",
        "finished.jsonl",
        *(f"maps/{name}.tiff" for name in "abc"),
        *(f"overlays/{name}.png" for name in "abc"),
    }


def test_detect_finishes_the_folder_and_fails_for_the_bad_file(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (image_folder / "a_text.png").write_text("hello", encoding="utf-8")
    assert main(["detect", str(image_folder), "--out", str(tmp_path / "out"), *SMALL, "--write", "tiff"]) == 1
    captured = capsys.readouterr()
    assert "3 of 4 case(s) scored" in captured.out
    assert "left out a_text: not an image" in captured.err
    assert json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["failed"] == 1


def test_results_may_be_inside_the_input_folder_and_are_not_scored_again(image_folder: Path):
    out = image_folder / "results"
    for _ in range(2):
        assert main(["detect", str(image_folder), "--out", str(out), *SMALL]) == 0
    with (out / "scores.csv").open(newline="") as stream:
        assert [row["case_id"] for row in csv.DictReader(stream)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bundle", "nothing"], "nothing is not a bundle directory"),
        (["--temprature", "1"], "no value named temprature"),
        (["--backbone", "no-such-model"], "neither a file nor a backbone"),
        (["--memory_bank", "missing.safetensors"], "there is no memory bank"),
        (["--image_size", "100"], "multiple of the patch size"),
        (["--bundle", "mrad_tf", "--temperature", "0"], "temperature must be positive"),
        (["stray"], "cannot understand 'stray'"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    assert main(["detect", str(image_folder), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_path_without_images_and_an_output_that_is_a_file_are_refused(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    assert main(["detect", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "no image below" in capsys.readouterr().err
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["detect", str(image_folder), "--out", str(tmp_path / "file"), *SMALL]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_run_executes_a_bundle_directory(image_folder: Path, tmp_path: Path):
    words = ["run", "mrad_tf", "--dataset_dir", str(image_folder), f"--output_dir={tmp_path / 'out'}", *SMALL]
    assert main(words) == 0
    assert (tmp_path / "out" / "scores.csv").is_file()
    (image_folder / "bad.png").write_bytes(b"")
    assert main(words) == 1


def test_banks_are_built_extended_merged_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = mrad_med.write_sample_dataset(tmp_path / "set", count=1)
    first, second, both = (str(tmp_path / f"{name}.safetensors") for name in ("first", "second", "both"))
    assert main(["bank", "build", folder, "--out", first, "--image_size", "126"]) == 0
    assert main(["bank", "extend", first, folder, "--out", second, "--image_size", "126"]) == 0
    assert main(["bank", "merge", first, second, "--out", both]) == 0
    assert main(["bank", "show", both]) == 0
    card = json.loads(capsys.readouterr().out.split("\n", 3)[3])
    assert card["counts"] == {"image_normal": 3, "image_anomalous": 3, "patch_normal": 6, "patch_anomalous": 3}
    assert [source["name"] for source in card["sources"]] == ["set"] * 3


def test_a_bank_is_saved_and_the_bad_file_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = mrad_med.write_sample_dataset(tmp_path / "set", count=2)
    (Path(folder) / "normal" / "phantom_2.png").write_bytes(b"")
    (Path(folder) / "normal" / "phantom_1.png").write_bytes(b"")
    assert main(["bank", "build", folder, "--out", str(tmp_path / "bank.safetensors"), "--image_size", "126"]) == 1
    assert "normal/phantom_1" in capsys.readouterr().err
    assert mrad_med.load_memory_bank(tmp_path / "bank.safetensors").card.counts["image_anomalous"] == 2


def test_version_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert mrad_med.__version__ in capsys.readouterr().out


def test_options_that_a_command_does_not_know_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = mrad_med.write_sample_dataset(tmp_path / "set", count=1)
    assert main(["bank", "build", folder, "--out", str(tmp_path / "b.safetensors"), "--devce", "cpu"]) == 2
    assert "unknown arguments: --devce cpu" in capsys.readouterr().err
    assert main(["run", "mrad_tf", "--data_dir", folder]) == 2
    assert "no value named data_dir" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_results_cannot_be_among_the_images(image_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["detect", str(image_folder), "--out", str(image_folder), *SMALL]) == 2
    assert "would hold both images and results" in capsys.readouterr().err


@pytest.mark.parametrize(("interruption", "status"), [(KeyboardInterrupt(), 130), (MemoryError("device"), 2)])
def test_what_is_done_stays_in_the_tables_when_a_run_is_stopped(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, status: int
):
    write = ResultWriter.write

    def write_one(self: ResultWriter, result: CaseResult) -> None:
        if result.case_id != "a":
            raise interruption
        write(self, result)

    monkeypatch.setattr(ResultWriter, "write", write_one)
    assert main(["detect", str(image_folder), "--out", str(tmp_path / "out"), *SMALL]) == status
    with (tmp_path / "out" / "scores.csv").open(newline="") as stream_of_rows:
        assert [row["case_id"] for row in csv.DictReader(stream_of_rows)] == ["a"]


def test_a_network_is_exported_and_the_difference_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "served" / "mrad.ts"
    assert main(["export", "mrad_tf", "--out", str(path), "--temperature", "0.5", *SMALL]) == 0
    assert f"{path}: differs from the network by at most " in capsys.readouterr().out
    _, metadata, _ = load_net_with_metadata(str(path))
    assert metadata["inputs"]["image"]["shape"] == ["batch", 3, 126, 126]
    assert metadata["settings"]["overrides"]["temperature"] == "0.5"
    assert metadata["memory_bank"]["card"]["backbone"] == metadata["backbone"]["name"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mrad_tf", "--out", "mrad.engine"], "must end in .onnx, .pt2, .ts"),
        (["mrad_tf", "--out", "mrad.ts", "--image_size", "100"], "multiple of the patch size"),
        (["mrad_tf", "--out", "mrad.ts", "--temprature", "1"], "no value named temprature"),
        (["mrad_ft", "--out", "mrad.ts", "--checkpoint", "missing.pt"], "there is no head file missing.pt"),
        (["nothing", "--out", "mrad.ts"], "nothing is not a bundle directory"),
    ],
)
def test_impossible_exports_are_reported_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_head_is_trained_and_its_file_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = mrad_med.write_surface_dataset(tmp_path / "set", surfaces=["fabric", "leather"], count=1)
    words = ["train", "mrad_ft", "--dataset_dir", folder, "--output_dir", str(tmp_path / "out"), *SMALL]
    assert main([*words, "--tensorboard", "False"]) == 0
    trained = tmp_path / "out" / "models" / "model.pt"
    assert f"trained: {trained}" in capsys.readouterr().out
    card = json.loads(trained.with_suffix(".json").read_text())
    assert card["variant"] == "MRAD-FT"
    assert card["configuration"]["image_size"] == 126


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mrad_tf", "--device", "cpu"], "put the labeled images there"),
        (["nothing"], "nothing is not a bundle directory"),
        (["mrad_ft", "--epoch", "2"], "no value named epoch"),
        (["mrad_ft", "--device", "cpu"], "put the labeled images there"),
    ],
)
def test_impossible_trainings_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    (tmp_path / "empty").mkdir()
    places = ["--dataset_dir", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out")]
    assert main(["train", *words, *places]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_training_needs_a_folder(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "mrad_ft"])
    assert "--dataset_dir" in capsys.readouterr().err


EVALUATED = ["--dataset", "folder", "--resamples", "0", "--progress", "False", *SMALL]


def test_a_bundle_is_evaluated_and_its_table_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = mrad_med.write_sample_dataset(tmp_path / "set", count=1), tmp_path / "out"
    words = ["evaluate", "mrad_tf", "--dataset_dir", folder, "--output_dir", str(out), *EVALUATED]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "metrics.md").read_text(encoding="utf-8") + "\n"
    assert "| pixel AUROC  " in printed
    assert json.loads((out / "metrics.json").read_text())["images"] == {"normal": 1, "anomalous": 1}
    (Path(folder) / "normal" / "broken.png").write_bytes(b"no image")
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "1 case(s) failed and are left out" in captured.out
    assert "1 of 3 case(s) failed, the others are done:\n  normal/broken: " in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "--dataset", "folder"], "nothing is not a bundle directory"),
        (["mrad_tf", "--dataset", "kvasr"], "there is no dataset 'kvasr'; did you mean 'kvasir'?"),
        (["mrad_tf", "--dataset", "folder", "--split", "test"], "put the labeled images there"),
        (["mrad_tf", "--dataset", "folder", "--resample", "5"], "no value named resample"),
    ],
)
def test_impossible_evaluations_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    (tmp_path / "empty").mkdir()
    places = ["--dataset_dir", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out")]
    assert main(["evaluate", *words, *places, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_bundles_are_compared_and_the_tables_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, out = Path(mrad_med.write_sample_dataset(tmp_path / "set", count=1)), tmp_path / "out"
    words = ["benchmark", f"folder={folder}", "--bundles", "mrad_tf", "mrad_ft", "--medical", "mrad_ft"]
    words += ["--out", str(out), "--progress", "False", *SMALL]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "benchmark.md").read_text(encoding="utf-8") + "\n"
    zero_shot, with_medical = printed.split("## Protocol: ")[1:]
    assert "| mrad_tf   | " in zero_shot
    assert "| mrad_ft   | " in with_medical
    (folder / "normal" / "broken.png").write_bytes(b"no image")
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "| mrad_ft   | " in captured.out
    assert "folder: 1 of 3 case(s) failed" in captured.err


@pytest.mark.parametrize("sets", [["kvasir"], ["kvasir="], ["=data"], ["kvasir=a", "kvasir=b"]])
def test_sets_of_a_benchmark_are_named_with_their_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: list[str]
):
    (tmp_path / "benchmark.md").write_text("of another run", encoding="utf-8")
    assert main(["benchmark", *sets, "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "write each dataset once as NAME=FOLDER, for example kvasir=data/Kvasir-SEG" in captured.err
    assert captured.out == ""


def test_a_benchmark_of_unknown_sets_shows_no_tables_of_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "benchmark.md").write_text("of another run", encoding="utf-8")
    assert main(["benchmark", f"kvasr={tmp_path}", "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "there is no dataset 'kvasr'; did you mean 'kvasir'?" in captured.err
    assert captured.out == ""


def test_public_datasets_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main(["datasets"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "domain", "normal", "anomalous", "masks", "license", "home"]
    assert [line.split()[0] for line in lines] == list(DATASETS)
    kvasir = next(line for line in lines if line.startswith("kvasir "))
    assert kvasir.split()[1:5] == ["medical", "0", "1000", "yes"]
    assert kvasir.endswith(DATASETS["kvasir"].home)
    brain = next(line for line in lines if line.startswith("brainmri "))
    assert brain.split()[2:5] == ["98", "155", "no"]


def test_datasets_on_disk_are_found_and_their_problems_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = make_archive("isic2016", tmp_path)
    assert main(["datasets", "--root", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    lines = {line.split()[0]: line for line in captured.out.splitlines()}
    assert lines["name"].endswith("found")
    assert "test 0 + 1" in lines["isic2016"]
    assert "train 0 + 1" in lines["isic2016"]
    assert lines["isic2016"].endswith(f" in {root}")
    assert lines["kvasir"].endswith(DATASETS["kvasir"].home)
    assert "isic2016: isic2016, split test: found 0 of 0 normal and 1 of 379 anomalous images" in captured.err
    assert main(["datasets", "--root", str(tmp_path / "missing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
