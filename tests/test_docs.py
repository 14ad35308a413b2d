"""The commands of the pages in `docs`, run with the embedded backbone, surfaces in VisA's layout and small images."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mrad_med
from mrad_med.cli import main
from tests.conftest import TINY_SIZE, make_tiny_clip
from tests.small_archives import make_archive

ROOT = Path(__file__).parent.parent
SERIES = "study-40c5e4875b/series_1-238d1e6b95"  # of the sample study
STAND_INS = {"openai": "embedded", "FOLDER": "VisA/fabric/Data/Images", "[1, 3, 518, 518]": "[1, 3, 126, 126]"}
SMALL = ["--image_size", "126", "--device", "cpu"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "bash")).splitlines()
    return [[STAND_INS.get(word, word) for word in shlex.split(line)] for line in lines if line]


def make_visa(folder: Path) -> None:
    """Arrange surfaces as VisA is downloaded: JPEGs, masks of class numbers, a table."""
    cases = mrad_med.load_labeled_folder(
        mrad_med.write_surface_dataset(folder.parent / "SET", surfaces=["fabric", "tiles"], count=1)
    )
    table = [["object", "split", "label", "image", "mask"]]
    for case in cases:
        stem, (kind, label) = (
            Path(case["image"]).stem,
            (("Normal", "normal"), ("Anomaly", "anomaly"))[case["label"]],
        )
        image, mask = f"{case['class']}/Data/Images/{kind}/{stem}.JPG", ""
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.open(case["image"]).save(folder / image)
        if case["label"]:
            mask = f"{case['class']}/Data/Masks/Anomaly/{stem}.png"
            (folder / mask).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.asarray(Image.open(case["mask"])) > 127).astype(np.uint8)).save(folder / mask)
        table.append([case["class"], "test", label, image, mask])
    (folder / "split_csv").mkdir()
    with (folder / "split_csv" / "1cls.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(table)


def run_python(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run ``python -m module ...`` in this process, which has imported everything already."""
    assert words[0] == "-m"
    patch.setattr(sys, "argv", words[1:])
    runpy.run_module(words[1], run_name="__main__")


def run_command(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a command of a page."""
    program, *rest = words
    if program == "mrad-med":
        assert main(rest if rest[0] == "datasets" else [*rest, *SMALL]) == 0
    elif program == "torchrun":
        whole = [sys.executable, "-m", "torch.distributed.run", "--standalone", *rest, *SMALL]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if "train.json" in " ".join(rest):
            whole += ["--output_dir", "trained_by_two", "--max_epochs", "1"]
        finished = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
    elif rest[:3] == ["-m", "monai.bundle", "ckpt_export"]:
        run_python(rest, patch)  # has its own size
    else:
        assert program == "python"
        run_python([*rest, *SMALL], patch)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which every command of docs/reproduce.md has run, except those on published files."""
    folder = tmp_path_factory.mktemp("reproduced")
    make_visa(folder / "VisA")
    (folder / "bundles").symlink_to(ROOT / "bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands("reproduce.md"):
            if words[:2] != ["python", "-c"]:
                run_command(words, patch)
    return folder


@pytest.mark.slow
def test_recipe_trains_scores_and_evaluates(reproduced: Path):
    for name, variant in (("trained", "MRAD-CLIP"), ("trained_by_two", "MRAD-CLIP"), ("trained_ft", "MRAD-FT")):
        card = json.loads((reproduced / name / "models" / "model.json").read_text(encoding="utf-8"))
        assert card["variant"] == variant
        assert card["configuration"]["held_out_classes"] == []
        assert [source["name"] for source in card["training_set"]] == ["fabric", "tiles"]
    assert not (reproduced / "trained_ft" / "features").exists()  # those of the first training are read
    for name in ("results", "results_tf"):
        with (reproduced / name / "scores.csv").open(newline="", encoding="utf-8") as stream:
            assert [row["status"] for row in csv.DictReader(stream)] == ["ok", "ok"]
    metrics = json.loads((reproduced / "evaluated" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"] == {"normal": 2, "anomalous": 2}
    assert 0 <= metrics["pixel"]["pro_200"] <= 1


@pytest.mark.slow
def test_commands_of_the_evaluation_page_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("kvasir", "cvc-colondb"):
        make_archive(name, tmp_path)
    pixels = np.random.RandomState(0).randint(0, 256, (16, 20), np.uint8)  # a constant image has nothing to score
    for path in tmp_path.rglob("images/*.*"):
        if path.suffix in (".jpg", ".png", ".tiff"):
            Image.fromarray(pixels).save(path)
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    for words in commands("evaluate.md"):
        run_command(words, monkeypatch)
    folders = ("evaluated", "evaluated_as_bundle", "evaluated_by_two", "benchmark/kvasir/mrad_clip")
    first, *others = (json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in folders)
    assert first["images"] == {"normal": 0, "anomalous": 2}
    for other in others:
        assert other["pixel"] == pytest.approx(first["pixel"], abs=1e-5)
    assert first["intervals"]["drawn"]["resamples"] == 1000
    page = (tmp_path / "benchmark" / "benchmark.md").read_text(encoding="utf-8")
    assert re.search(r"\| network +\| +kvasir, n = \d+ \| +cvc-colondb, n = \d+ \| +mean \|", page)
    assert "test 0 + 2 in Kvasir-SEG" in capsys.readouterr().out
    (code,) = blocks("evaluate.md", "python")
    from_bundle = mrad_med.AnomalyDetector.from_bundle
    monkeypatch.setattr(mrad_med.AnomalyDetector, "from_bundle", lambda name: from_bundle(name, device="cpu"))
    exec(code, {})
    assert 0 < float(capsys.readouterr().out.split("'auroc': ")[1].split(",")[0]) < 1


@pytest.mark.slow
def test_commands_of_the_clinical_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    (tmp_path / "frames").mkdir()
    Image.fromarray(mrad_med.make_phantom((90, 120))[0]).save(tmp_path / "frames" / "frame.png")
    monkeypatch.chdir(tmp_path)
    study, in_python = blocks("clinical.md", "python")
    exec(study, {})
    for words in commands("clinical.md"):
        run_command(words, monkeypatch)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        f"results/maps/{SERIES}.nii.gz",
        f"in_dicom/dicom/{SERIES}_seg.dcm",
        f"in_dicom/dicom/{SERIES}_map.dcm",
        f"in_dicom/montages/{SERIES}.png",
        "as_nrrd/maps/chest.nrrd",
        f"bundle_results/montages/{SERIES}.png",
        "bundle_frames/maps/frame.tiff",
    } <= written
    assert len([name for name in written if re.match(r"results/(maps|montages)/volume-", name)]) == 2
    assert len([name for name in written if name.startswith(f"in_dicom/dicom/{SERIES}/overlay_")]) == 9
    with (tmp_path / "as_nrrd" / "slices.csv").open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 112  # coronal: as many as the phantom has rows
    from_bundle = mrad_med.AnomalyDetector.from_bundle
    monkeypatch.setattr(
        mrad_med.AnomalyDetector,
        "from_bundle",
        lambda name, **options: from_bundle(name, image_size=126, device="cpu", **options),
    )
    exec(in_python, {})
    assert (tmp_path / "python_results" / "masks" / f"{SERIES}.nii.gz").is_file()


def test_published_files_become_a_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, width in (("cache_model_visa.pt", 24), ("cache_patch_model_visa.pt", 32)):
        torch.save({"keys": torch.nn.functional.normalize(torch.ones(2, width)), "values": torch.eye(2)}, name)
    (code,) = (words[2] for words in commands("reproduce.md") if words[:2] == ["python", "-c"])
    exec(code, {})
    assert mrad_med.load_memory_bank("visa.safetensors").patch_keys.shape == (2, 32)


@pytest.mark.slow
def test_commands_of_the_export_page_run(reproduced: Path, monkeypatch: pytest.MonkeyPatch):
    """Skip the writing of the files, which takes long for a whole backbone and is tested in test_export."""
    exported = []
    monkeypatch.setattr(mrad_med, "export_network", lambda _, out, **__: exported.append(out.name) or {"score": 0.0})
    monkeypatch.chdir(reproduced)
    for words in commands("export.md"):
        if words[0] == "pip":
            assert words == ["pip", "install", "mrad-med[onnx]"]
        else:
            swapped = [
                word.replace("trained/", "trained_ft/") if "mrad_ft" in " ".join(words) else word for word in words
            ]
            run_command(swapped, monkeypatch)
    assert exported == ["mrad_tf.onnx", "mrad_ft.pt2", "mrad_clip.ts"]
    maps = torch.jit.load("mrad_ft_maps.ts")(torch.zeros(2, 3, 126, 126))
    assert maps.shape == (2, 1, 126, 126)


@pytest.mark.slow
def test_a_served_file_gives_what_the_package_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (80, 120, 3), np.uint8)).save("image.png")
    clip = make_tiny_clip()
    tower = clip.image_encoder.tower.transformer
    tower.resblocks = tower.resblocks[:2]  # torch's exporter takes its time for each
    bank = mrad_med.MemoryBank(
        *(torch.nn.functional.normalize(torch.randn(2, 24), dim=-1), torch.tensor([0, 1])),
        *(torch.nn.functional.normalize(torch.randn(2, 32), dim=-1), torch.tensor([0, 1])),
        mrad_med.types.BankCard(clip.card.name, clip.card.sha256, None),
    )
    network = mrad_med.build_mrad_tf(clip, bank, temperature=0.07)
    provenance = mrad_med.describe_run(clip, bank)
    mrad_med.export_network(network, "mrad_tf.onnx", provenance=provenance, image_size=TINY_SIZE)
    (code,) = blocks("export.md", "python")
    served: dict = {}
    exec(code, served)
    prepared = mrad_med.build_preprocessing(clip.card, mrad_med.ImageView(image_size=TINY_SIZE))(
        {"image": "image.png", "case_id": "image"}
    )
    expected = mrad_med.AnomalyInferer()(prepared["image"][None].as_tensor(), network)
    np.testing.assert_allclose(served["maps"], expected["anomaly_map"].numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(served["scores"], expected["anomaly_score"].numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_code_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    images = mrad_med.write_sample_images("images")
    from_bundle = mrad_med.AnomalyDetector.from_bundle
    small = {"image_size": 126, "device": "cpu"}
    monkeypatch.setattr(mrad_med.AnomalyDetector, "from_bundle", lambda name: from_bundle(name, **small))
    detect, parts = blocks("python.md", "python")
    names: dict[str, object] = {"images": torch.rand(2, 3, 126, 126)}
    exec(detect.replace("path/to/folder", str(images)), names)
    assert len(names["results"]) == 6
    assert (tmp_path / "results" / "scores.csv").is_file()
    exec(parts, names)
    assert names["features"].patches.shape[:2] == (2, 81)


@pytest.mark.slow
def test_commands_of_the_page_on_memory_banks_build_extend_and_use_a_bank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    mrad_med.write_sample_dataset("FOLDER", count=1)
    mrad_med.write_sample_images("images")
    for line in blocks("memory_banks.md", "bash")[0].splitlines():
        run_command(shlex.split(line), monkeypatch)
    shipped = mrad_med.load_memory_bank("bundles/memory_banks/embedded_industrial.safetensors")
    assert len(mrad_med.load_memory_bank("bank.safetensors").image_labels) == 2
    assert len(mrad_med.load_memory_bank("mine.safetensors").image_labels) > len(shipped.image_labels)
    assert (tmp_path / "results" / "scores.csv").is_file()
