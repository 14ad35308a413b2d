"""The public names of the package."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

import mrad_med
from mrad_med.bundle import BundleWorkflow

PUBLIC = {
    "AnomalyDetector",
    "AnomalyInferer",
    "AnomalyKeys",
    "BundleWorkflow",
    "CLIP",
    "CaseDataset",
    "CaseLoader",
    "CaseResult",
    "EarlyStop",
    "Evaluation",
    "FeatureCache",
    "FeatureInferer",
    "FineTuneTrainer",
    "ImageFeatures",
    "MRAD",
    "MemoryBank",
    "ImageView",
    "PixelMetricHandler",
    "PixelMetrics",
    "PrepareFeatures",
    "PromptTrainer",
    "ResultSaver",
    "ResultWriter",
    "ImageMetricHandler",
    "SliceAnomalyInferer",
    "SlidingWindowAnomalyInferer",
    "TrainingCheckpoint",
    "build_memory_bank",
    "build_mrad_clip",
    "build_mrad_ft",
    "build_mrad_tf",
    "build_postprocessing",
    "build_preprocessing",
    "choose_held_out",
    "collate_features",
    "describe_head",
    "describe_run",
    "export_network",
    "feature_loader",
    "find_cases",
    "find_series",
    "list_datasets",
    "load_clip",
    "load_datalist",
    "load_labeled_folder",
    "load_memory_bank",
    "load_official_bank",
    "load_official_checkpoint",
    "load_training_set",
    "make_chest_phantom",
    "make_phantom",
    "merge_memory_banks",
    "read_image",
    "read_series",
    "run_benchmark",
    "save_head",
    "select_trainable",
    "write_sample_dataset",
    "write_sample_images",
    "write_sample_study",
    "write_surface_dataset",
}
ROOMS = ("io", "transforms", "data", "networks", "metrics", "results", "training", "evaluation")
SUBMODULES = {*ROOMS, "benchmark", "bundle", "cli", "detector", "distributed", "errors", "files", "store", "types"}
PACKAGES = ("mrad_med", *(f"mrad_med.{room}" for room in ROOMS))
MOVED = [(place, name) for place, names in mrad_med._MOVED.items() for name in names.split()]


def test_public_names_are_these_and_no_others():
    assert set(mrad_med.__all__) == PUBLIC | SUBMODULES


@pytest.mark.parametrize("package", PACKAGES)
def test_names_of_a_package_exist_and_its_stub_lists_them_all(package: str):
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="ascii")  # in any locale
    listed = next(node.value for node in ast.parse(stub).body if isinstance(node, ast.Assign))
    assert sorted(ast.literal_eval(listed)) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str):
    module = importlib.import_module(package)
    values = {name: getattr(module, name) for name in module.__all__ if not name.isupper() or name in ("CLIP", "MRAD")}
    documented = {name: value for name, value in values.items() if callable(value) and hasattr(value, "__name__")}
    assert [name for name, value in documented.items() if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize(("place", "name"), MOVED)
def test_a_name_that_has_moved_is_refused_with_its_new_place(place: str, name: str):
    with pytest.raises(ImportError, match=rf"mrad_med\.{name} has moved to mrad_med\.{place}\.{name}; use"):
        getattr(mrad_med, name)
    assert hasattr(importlib.import_module(f"mrad_med.{place}"), name)


@pytest.mark.parametrize(("old", "new"), mrad_med._RENAMED.items())
def test_a_renamed_name_is_refused_with_its_new_spelling(old: str, new: str):
    with pytest.raises(ImportError, match=rf"mrad_med\.{old} is now mrad_med\.{new}; use the new name"):
        getattr(mrad_med, old)
    place, _, name = f"mrad_med.{new}".rpartition(".")
    assert hasattr(importlib.import_module(place), name)


def test_an_import_of_a_moved_name_says_where_it_is():
    with pytest.raises(ImportError, match=r"moved to mrad_med\.networks\.retrieve"):
        from mrad_med import retrieve  # noqa: F401


def test_a_config_that_names_a_moved_target_says_where_it_is(tmp_path: Path):
    config = tmp_path / "inference.json"
    config.write_text('{"window": {"_target_": "mrad_med.ApplyWindow"}, "run": ["$@window"]}', encoding="utf-8")
    with pytest.raises(ImportError, match=r"moved to mrad_med\.transforms\.ApplyWindow"):
        BundleWorkflow(str(config)).run()


def test_configs_may_name_a_room():
    parser = ConfigParser({"window": {"_target_": "mrad_med.transforms.ApplyWindow", "window": "lung"}})
    assert isinstance(parser.get_parsed_content("window"), mrad_med.transforms.ApplyWindow)


def test_a_name_that_never_was_is_no_attribute():
    with pytest.raises(AttributeError, match="no_such_name"):
        mrad_med.no_such_name  # noqa: B018


def test_importing_touches_no_network_and_changes_no_global_state():
    program = (
        "import socket\n"
        "def refuse(*arguments, **keywords): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import random, numpy, torch\n"
        "before = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())\n"
        "threads = torch.get_num_threads()\n"
        "import mrad_med\n"
        "[getattr(mrad_med, name) for name in mrad_med.__all__]\n"  # names are imported when they are first used
        "after = (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())\n"
        "assert before == after and threads == torch.get_num_threads()\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
