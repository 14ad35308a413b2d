"""Values of the command line are never code, and no code comes from the working directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mrad_med
from mrad_med.cli import main
from mrad_med.cli.overrides import read_overrides

ROOT = Path(__file__).parents[2]
SMALL = ["--image_size", "70", "--device", "cpu"]
BUNDLE_COMMANDS = ("detect", "detect --dry-run", "run", "train", "evaluate", "benchmark", "export")
each_command = pytest.mark.parametrize("command", BUNDLE_COMMANDS)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Return a file that executed code would make."""
    return tmp_path / "executed"


def touch(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def write_images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    pixels = np.random.RandomState(0).randint(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


def words_of(command: str, bundle: str, data: str, out: str) -> list[str]:
    """Return a whole command line, without further values."""
    name, *more = command.split()
    return {
        "detect": ["detect", data, "--out", out, "--bundle", bundle, *more],
        "run": ["run", bundle, "--dataset_dir", data, "--output_dir", out],
        "train": ["train", bundle, "--dataset_dir", data, "--output_dir", out, "--max_epochs", "0"],
        "evaluate": ["evaluate", bundle, "--dataset", "folder", "--dataset_dir", data, "--output_dir", out],
        "benchmark": ["benchmark", f"folder={data}", "--bundles", bundle, "--out", out],
        "export": ["export", bundle, "--out", f"{out}.ts"],
    }[name]


@each_command
def test_text_given_as_a_value_is_not_executed(
    command: str,
    tmp_path: Path,
    marker: Path,
    embedded_is_loaded: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    data = mrad_med.write_sample_dataset(tmp_path / "set", count=1)
    bundle = "mrad_ft" if command == "train" else "mrad_tf"
    code = touch(marker)
    for value in (f"${code}", repr([f"${code}"]), repr({"a": [f"${code}"]}), f"$import os; {code}"):
        for name in ("backbone", "clip#model", "memory_bank", "precision"):
            main([*words_of(command, bundle, data, str(tmp_path / "out")), *SMALL, f"--{name}", value])
            assert not marker.exists(), (name, value)
    assert "Traceback" not in capsys.readouterr().err


@each_command
def test_text_given_as_a_place_is_not_executed(
    command: str, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    bundle = "mrad_ft" if command == "train" else "mrad_tf"
    code = f"${touch(marker)}"
    for data, out in ((code, str(tmp_path / "out")), (str(tmp_path), code)):
        main(
            [*words_of(command, bundle, data, out.replace("/", "_") if out == code else out), *SMALL, "--backbone", "x"]
        )
        assert not marker.exists()
    assert "Traceback" not in capsys.readouterr().err


REFUSED = (
    *("_target_", "clip#_target_", "clip::_target_", "network_def#_mode_", "evaluator#_requires_", "clip#_disabled_"),
    *("imports", "imports#0", "run", "run::0", "initialize", "finalize", "_meta_", "handlers#0#_target_"),
    *("+imports", "~run", "+handlers", "clip#+a"),
)


@pytest.mark.parametrize("name", REFUSED)
def test_name_that_decides_what_code_runs_is_refused(name: str):
    message = r"is not an option, because it decides what code is run: edit a copy of the bundle"
    for words in ([f"--{name}", "os.getcwd"], [f"--{name}=os.getcwd"]):
        with pytest.raises(ValueError, match=message):
            read_overrides(words)


@each_command
def test_no_command_takes_code(command: str, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]):
    data = mrad_med.write_sample_dataset(tmp_path / "set", count=1)
    words = words_of(command, "mrad_ft" if command == "train" else "mrad_tf", data, str(tmp_path / "out"))
    call = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_0": str(marker)}}
    eager = {"_target_": "builtins.eval", "source": touch(marker)}
    for more, message in (
        (["--clip#_target_", "builtins.eval"], "--clip#_target_ is not an option"),
        (["--imports", repr([f"${touch(marker)}"])], "--imports is not an option"),
        (["--network_def", repr(call)], "a value cannot contain _target_, which calls a function"),
        (["--precision", repr([eager])], "a value cannot contain _target_"),
        (["--config_file", "x.json"], "no value named config_file"),
        (["--logging_file", "logging.conf"], "no value named logging_file"),
        (["--tracking", "x.json"], "tracking"),
    ):
        try:
            status = main([*words, *SMALL, *more])
        except SystemExit as ended:
            status = int(ended.code or 0)
        assert status == 2
        assert message in capsys.readouterr().err
        assert not marker.exists()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("true", True), ("false", False), ("null", None), ("None", None), ("3", 3), ("0.5", 0.5), ("lung", "lung")],
        *[("(40, 400)", (40, 400)), ("['border']", ["border"]), ("$1 + 1", "$1 + 1"), ("@a", "@a"), ("%a", "%a")],
        *[("(" * 5000, "(" * 5000), ("1 + 1", "1 + 1"), ("", "")],
    ],
    ids=lambda item: str(item)[:20],
)
def test_a_value_is_a_literal_or_a_text(word: str, value: Any):
    assert read_overrides(["--window", word]) == read_overrides([f"--window={word}"]) == {"window": value}


def test_a_folder_whose_name_is_a_number_is_a_folder():
    names = ("dataset_dir", "output_dir", "memory_bank", "checkpoint", "backbone")
    for word in ("2024", "1e5", "True", "(1, 2)", "true"):
        assert read_overrides([part for name in names for part in (f"--{name}", word)]) == dict.fromkeys(names, word)
    assert read_overrides(["--memory_bank", "None"]) == {"memory_bank": None}


@pytest.mark.parametrize("name", ["$RECYCLE", "@home", "%20x", "a#1", "2024"])
def test_folders_whose_names_look_like_code_are_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded_is_loaded: None
):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / name)
    for command in ("detect", "run"):
        assert main([*words_of(command, "mrad_tf", name, f"{command}/{name}"), *SMALL]) == 0
        assert (tmp_path / command / name / "scores.csv").is_file()


def test_sets_and_results_whose_names_look_like_code_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded_is_loaded: None
):
    monkeypatch.chdir(tmp_path)
    for name in ("@set#1", "$set", "%set"):
        mrad_med.write_sample_dataset(tmp_path / name / "a", count=1)
        data = f"{name}/a"
        assert main([*words_of("evaluate", "mrad_tf", data, f"{name}/e"), *SMALL, "--resamples", "0"]) == 0
        assert (tmp_path / name / "e" / "metrics.md").is_file()
        assert main([*words_of("benchmark", "mrad_tf", data, f"{name}/b"), *SMALL]) == 0
        assert (tmp_path / name / "b" / "benchmark.md").is_file()
        assert main([*words_of("export", "mrad_tf", data, f"{name}/x"), *SMALL]) == 0
        assert (tmp_path / name / "x.ts").is_file()


def test_a_bundle_of_the_working_directory_is_not_run_by_its_name(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, embedded_is_loaded: None
):
    code = f"${touch(marker)}"
    for name in ("mrad_tf", "mrad_ft", "mrad_clip", "mine"):
        configs = tmp_path / name / "configs"
        configs.mkdir(parents=True)
        config = {"bundle_root": ".", "imports": [code], "search": {"a": code}, "initialize": [code], "run": [code]}
        for file in ("inference", "train", "evaluate", "metadata"):
            (configs / f"{file}.json").write_text(json.dumps(config), encoding="utf-8")
    write_images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert main(["detect", "photos", "--dry-run"]) == 0
    for bundle in ("mrad_tf", "mine"):
        for command in BUNDLE_COMMANDS:
            main([*words_of(command, bundle, "photos", f"out/{bundle}"), "--backbone", "no-such-model"])
            assert not marker.exists()
    with pytest.raises(FileNotFoundError, match="mine is not a bundle directory"):
        mrad_med.AnomalyDetector.from_bundle("mine")
    main(["detect", "photos", "--dry-run", "--bundle", "./mine"])
    assert marker.exists()  # a path means that directory, and its config is code


@pytest.mark.slow
def test_python_files_of_the_working_directory_are_not_imported(tmp_path: Path, marker: Path):
    downloads = write_images(tmp_path / "downloads")
    for name in ("torch", "monai", "scripts", "mrad_med", "csv", "highdicom", "nrrd", "av", "tensorboard", "numpy"):
        (downloads / f"{name}.py").write_text(touch(marker), encoding="utf-8")
    (downloads / "configs").mkdir()
    (downloads / "configs" / "logging.conf").write_text("[loggers]\nkeys=root\n", encoding="utf-8")
    script = tmp_path / "bin" / "mrad-med"  # as pip writes it
    script.parent.mkdir()
    script.write_text("import sys\nfrom mrad_med.cli import main\nsys.exit(main())\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (
        ["detect", ".", "--out", "../out", "--bundle", "mrad_tf", *SMALL, "--jobs", "1"],
        ["run", "mrad_tf", "--dataset_dir", ".", "--output_dir", "../ran", *SMALL],
    ):
        command = [sys.executable, str(script), *words]
        finished = subprocess.run(command, cwd=downloads, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert not marker.exists()
