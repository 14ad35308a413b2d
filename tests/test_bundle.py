"""Bundle directories as MONAI workflows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from mrad_med import BundleWorkflow
from mrad_med.bundle import config_files, find_bundle, literal, read_bundle

ROOT = Path(__file__).parent.parent


def test_a_bundle_is_found_by_directory_and_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert find_bundle("mrad_tf").resolve() == ROOT / "bundles" / "mrad_tf"
    assert find_bundle(ROOT / "bundles" / "mrad_tf") == ROOT / "bundles" / "mrad_tf"


def test_a_name_is_an_included_bundle_and_a_path_has_a_slash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("mrad_tf", "mine"):
        (tmp_path / name / "configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_bundle("mrad_tf").resolve() == ROOT / "bundles" / "mrad_tf"
    for path in ("./mrad_tf", "mrad_tf/", Path("mrad_tf"), str(tmp_path / "mrad_tf")):
        assert find_bundle(path).resolve() == tmp_path / "mrad_tf"
    monkeypatch.chdir(tmp_path / "mine")
    assert find_bundle(".").resolve() == tmp_path / "mine"
    assert find_bundle("../mrad_tf").resolve() == tmp_path / "mrad_tf"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mine is not .* mrad_tf; write a directory with a slash: \./mine$"):
        find_bundle("mine")
    (tmp_path / "mrad_ft").write_text("not a config", encoding="utf-8")
    assert BundleWorkflow("mrad_ft").parser["settings"]["variant"] == "MRAD-FT"


@pytest.mark.parametrize("name", ["../../other/configs/x", "", "volume/../volume", "*"])
def test_a_profile_is_a_name_and_no_path(name: str, tmp_path: Path):
    root = tmp_path / "mine"
    for folder in (root / "configs" / "inference_..", tmp_path / "other" / "configs"):
        folder.mkdir(parents=True)
    (tmp_path / "other" / "configs" / "x.json").write_text("{}", encoding="utf-8")
    shutil.copy(ROOT / "bundles" / "mrad_tf" / "configs" / "inference_volume.json", root / "configs")
    assert config_files(root, ["volume"])[1] == root / "configs" / "inference_volume.json"
    with pytest.raises(FileNotFoundError, match=rf"mine has no profile {re.escape(name)}; it has volume"):
        config_files(root, [name])


@pytest.mark.parametrize("config", ["nothing", "../configs/evaluate", "evaluate.json"])
def test_a_further_config_is_a_name_and_no_path(config: str):
    with pytest.raises(FileNotFoundError, match=r"mrad_tf has no configs/.*json; it has .*evaluate, inference"):
        read_bundle("mrad_tf", config=config)


# What MONAI's syntax would evaluate, follow, replace or drop.
TEXTS = ("$1 + 1", "@home", "@batch_size", "%20x", "%batch_size", "a#b", "a@::b", "$", "@", "%", "plain")


@pytest.mark.parametrize("text", TEXTS)
def test_a_literal_is_used_as_it_is(text: str):
    values = [text, [text], {"a": [{"b": text}]}, (text, [text]), [[text, None]], {text: 1}, None, 3, Path(text)]
    for value in values:
        parser = ConfigParser({"batch_size": 4, "value": literal(value), "same": "@value", "in": ["$@value"]})
        assert parser.get_parsed_content("value") == value
        assert parser.get_parsed_content("same") == value
        assert parser.get_parsed_content("in") == [value]
        assert type(parser.get_parsed_content("value")) is type(value)


OBJECTS = [{"_target_": "os.getcwd"}, [{"a": {"_target_": "os.getcwd"}}], ({"_target_": None},)]


@pytest.mark.parametrize("value", OBJECTS, ids=str)
def test_a_value_that_describes_an_object_is_refused(value: Any):
    message = "a value cannot contain _target_, which calls a function: edit a copy of the bundle"
    with pytest.raises(ValueError, match=message):
        literal(value)
    with pytest.raises(ValueError, match=message):
        read_bundle("mrad_tf", overrides={"inferer": value})
    with pytest.raises(ValueError, match=message):
        BundleWorkflow("mrad_tf", values={"clip#source": value})


def test_values_of_a_workflow_are_literals_and_keywords_are_in_the_syntax_of_monai():
    workflow = BundleWorkflow("mrad_tf", values={"window": "$1", "clip#model": "a#b"}, plane="$'ax' + 'ial'")
    workflow.parser.parse()
    assert workflow.parser.get_parsed_content("window") == "$1"
    assert workflow.parser.get_parsed_content("clip#model") == "a#b"
    assert workflow.parser.get_parsed_content("plane") == "axial"
    assert dict(workflow.parser.get_parsed_content("overrides")) == {
        "window": "$1",
        "clip#model": "a#b",
        "plane": "$'ax' + 'ial'",
    }


def test_a_value_below_one_without_parts_is_refused():
    for name in ("backbone#model", "clip#source#x", "nothing#x", "backbone::model"):
        with pytest.raises(KeyError, match="no value named"):
            read_bundle("mrad_tf", overrides={name: "x"})


def test_a_bundle_in_a_folder_whose_name_has_marks_of_monai_is_its_own_root(tmp_path: Path):
    root = tmp_path / "$a" / "@b#1" / "%mrad"
    shutil.copytree(ROOT / "bundles" / "mrad_tf" / "configs", root / "configs")
    assert read_bundle(root).get_parsed_content("bundle_root") == str(root)
    assert BundleWorkflow(str(root)).parser.get_parsed_content("bundle_root") == str(root)


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
    config = ROOT / "bundles" / "mrad_tf" / "configs" / "build_bank.json"
    workflow = BundleWorkflow(str(config), bundle_root="elsewhere")
    workflow.parser.parse()
    assert workflow.parser.get_parsed_content("bundle_root") == "elsewhere"
    assert "evaluator" not in workflow.parser
