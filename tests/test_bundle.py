"""Bundle directories as MONAI workflows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrad_med import BundleWorkflow
from mrad_med.bundle import find_bundle

ROOT = Path(__file__).parent.parent


def test_a_bundle_is_found_by_directory_and_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert find_bundle("mrad_tf").resolve() == ROOT / "bundles" / "mrad_tf"
    assert find_bundle(ROOT / "bundles" / "mrad_tf") == ROOT / "bundles" / "mrad_tf"


def test_a_local_directory_takes_precedence_over_the_projects_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "mrad_tf" / "configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_bundle("mrad_tf").resolve() == tmp_path / "mrad_tf"


def test_a_missing_bundle_is_named_with_those_there_are(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nothing is not a bundle directory .* mrad_tf"):
        find_bundle("nothing")
    with pytest.raises(FileNotFoundError, match="is not a bundle directory"):
        BundleWorkflow(str(tmp_path))


def test_a_directory_stands_for_its_inference_config_and_becomes_the_root():
    workflow = BundleWorkflow(str(ROOT / "bundles" / "mrad_tf"), temperature=0.5)
    workflow.parser.parse()
    assert workflow.parser.get_parsed_content("bundle_root") == str(ROOT / "bundles" / "mrad_tf")
    assert workflow.parser.get_parsed_content("temperature") == 0.5


def test_an_explicit_root_and_config_file_are_kept():
    config = ROOT / "bundles" / "mrad_tf" / "configs" / "train.json"
    workflow = BundleWorkflow(str(config), bundle_root="elsewhere")
    workflow.parser.parse()
    assert workflow.parser.get_parsed_content("bundle_root") == "elsewhere"
    assert "evaluator" not in workflow.parser
