"""What MONAI Label and MONAI Deploy read of a bundle, replayed, and the apps themselves where they are installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImaged, MapTransform, SaveImaged
from monai.utils import ensure_tuple
from PIL import Image

from mrad_med import AnomalyDetector
from mrad_med.transforms import SplitOutputd, ToPrediction, ToPredictiond

pytestmark = pytest.mark.usefixtures("embedded_is_loaded")

BUNDLES = Path(__file__).parent.parent / "bundles"
each_bundle = pytest.mark.parametrize("bundle", ["mrad_tf", "mrad_ft", "mrad_clip"])
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])
SIZE = 126
needs_label = pytest.mark.skipif(find_spec("monailabel") is None, reason="needs MONAI Label, an app of its own")


def small_bundle(folder: Path, name: str, **edits: Any) -> Path:
    """Copy a bundle with its bank, for small images."""
    for item in (name, "memory_banks"):
        shutil.copytree(BUNDLES / item, folder / item, ignore=shutil.ignore_patterns("eval"))
    file = folder / name / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "image_size": SIZE, "device": "cpu", **edits}), encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a volume and a photograph, neither square, each with a bright spot off its center."""
    folder, random = tmp_path_factory.mktemp("sources"), np.random.RandomState(0)
    volume = random.randint(0, 300, (48, 64, 3)).astype(np.int16)
    volume[10:25, 20:40] += 700
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), folder / "volume.nii.gz")
    pixels = random.randint(0, 80, (60, 90, 3)).astype(np.uint8)
    pixels[10:30, 50:80] = 250
    Image.fromarray(pixels).save(folder / "photograph.jpg", quality=95)
    return {"volume": folder / "volume.nii.gz", "photograph": folder / "photograph.jpg"}


def map_of(bundle: Path, source: Path) -> np.ndarray:
    """Return the map of the project's own entry, on the axes of the file."""
    (case,) = AnomalyDetector.from_bundle(bundle).detect(source, progress=False)
    return case.anomaly_map


def in_bytes(anomaly_map: np.ndarray) -> np.ndarray:
    return np.round(anomaly_map * 255).astype(np.uint8)


def steps(parser: ConfigParser, name: str) -> list[Any]:
    """Return the transforms that MONAI Label takes of a config, one by one."""
    parsed = parser.get_parsed_content(name, instantiate=True)
    chosen = list(parsed.transforms) if isinstance(parsed, Compose) else parsed
    return [step for step in chosen if not isinstance(step, SaveImaged)]


def label_network(bundle: Path, parser: ConfigParser) -> torch.nn.Module:
    """Build and load the network as MONAI Label 0.8.5 does (tasks/infer/bundle.py and basic_infer.py)."""
    network = parser.get_parsed_content("network_def", instantiate=True)
    weights = torch.load(bundle / "models" / "model.pt", map_location="cpu")
    network.load_state_dict(weights.get("model", weights), strict=False)
    return network.eval()


def label_answer(bundle: Path, source: Path) -> np.ndarray:
    """Return what MONAI Label 0.8.5 writes for a file: the steps of its `BundleInferTask` with default options."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    image = next(iter(metadata["network_data_format"]["inputs"]))
    prediction = next(iter(metadata["network_data_format"]["outputs"]))
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(bundle), "use_click": False})
    network = label_network(bundle, parser)
    data: dict[str, Any] = {image: str(source), "model": bundle.name, "device": "cpu", "image_path": str(source)}
    for step in steps(parser, "preprocessing"):
        assert not isinstance(step, LoadImaged)
        data = step(data)
    with torch.no_grad():
        output = parser.get_parsed_content("inferer", instantiate=True)(data[image][None], network)
    data["pred"] = decollate_batch(output)[0] if isinstance(output, Mapping) else output[0]
    for step in steps(parser, "postprocessing"):
        data = step(data)
    answer = data[prediction]  # from here on what its transform Restored does, with the writer's key "pred"
    assert prediction == "pred"
    size = answer.shape[1:]
    np.testing.assert_array_equal(size, data[image].meta["spatial_shape"][-len(size) :])
    return np.asarray(answer if answer.ndim <= 3 else answer[0])


@each_bundle
@pytest.mark.parametrize("kind", ["volume", "photograph"])
def test_monai_label_writes_the_map_on_the_grid_of_the_file(
    bundle: str, kind: str, sources: dict[str, Path], tmp_path: Path
):
    copy = small_bundle(tmp_path, bundle)
    answer = label_answer(copy, sources[kind])
    assert answer.dtype == np.uint8  # what JPEG and PNG hold
    assert answer.shape == {"volume": (48, 64, 3), "photograph": (90, 60)}[kind]  # ITK's order of the axes
    expected = map_of(copy, sources[kind])
    np.testing.assert_array_equal(answer, in_bytes(expected if kind == "volume" else expected.T))
    spot = (slice(10, 25), slice(20, 40)) if kind == "volume" else (slice(50, 80), slice(10, 30))
    assert answer[spot].mean() > 1.2 * answer.mean()


def test_a_threshold_makes_it_a_mask(sources: dict[str, Path], tmp_path: Path):
    answer = label_answer(small_bundle(tmp_path, "mrad_ft", threshold=0.5), sources["volume"])
    expected = map_of(tmp_path / "mrad_ft", sources["volume"]) >= 0.5
    np.testing.assert_array_equal(answer, expected.astype(np.uint8))
    assert 0 < answer.sum() < answer.size


def test_what_a_config_declares_is_what_monai_label_runs(sources: dict[str, Path], tmp_path: Path):
    plain = label_answer(small_bundle(tmp_path / "plain", "mrad_ft"), sources["volume"])
    smooth = small_bundle(tmp_path / "smooth", "mrad_ft", smooth=2.0)
    np.testing.assert_array_equal(label_answer(smooth, sources["volume"]), in_bytes(map_of(smooth, sources["volume"])))
    assert (label_answer(smooth, sources["volume"]) != plain).mean() > 0.5


@each_bundle
def test_the_metadata_says_what_monai_label_and_deploy_show(bundle: str):
    metadata = json.loads((BUNDLES / bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    ((name, output),) = metadata["network_data_format"]["outputs"].items()
    assert name == "pred"
    assert output["type"] == "image"  # MONAI Deploy makes an Image of it, of probabilities a list of names
    labels = {meaning: int(number) for number, meaning in output["channel_def"].items()}
    assert labels == {"background": 0, "anomaly": 1}  # MONAI Label drops the background by its name
    assert (BUNDLES / bundle / "models" / "model.pt").is_file()  # it skips a bundle without


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle, and beside it the TorchScript file that MONAI makes of it."""
    bundle = small_bundle(tmp_path_factory.mktemp("exported"), "mrad_ft")
    ckpt_export(
        net_id="network_def",
        filepath=str(bundle.parent / "mrad_ft.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        use_trace=True,
        input_shape=[1, 3, SIZE, SIZE],
        bundle_root=str(bundle),
    )
    return bundle


def deploy_answer(file: Path, volume: MetaTensor) -> np.ndarray:
    """Return what the `MonaiBundleInferenceOperator` of the App SDK 4.0.0 makes of a volume without channels."""
    extra = {"metadata.json": "", "inference.json": ""}
    network = torch.jit.load(file, map_location="cpu", _extra_files=extra).eval()
    metadata = json.loads(extra["metadata.json"])["network_data_format"]
    parser = ConfigParser()
    parser.read_config(json.loads(extra["inference.json"]))
    pre, post = (parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing"))
    assert all(isinstance(compose.transforms[0], MapTransform) for compose in (pre, post))
    (image,) = metadata["inputs"]
    data = pre({image: volume})
    output = ensure_tuple(parser.get_parsed_content("inferer")(inputs=data[image][None], network=network))[0]
    (prediction,) = metadata["outputs"]
    return np.squeeze(post({prediction: output, **data})[prediction].cpu().numpy(), 0)


def test_monai_deploy_makes_the_same_of_a_volume(exported: Path, sources: dict[str, Path]):
    stored = nibabel.load(sources["volume"])
    meta = {"original_channel_dim": "no_channel", "spatial_shape": np.asarray(stored.shape)}
    volume = MetaTensor(torch.from_numpy(np.asarray(stored.dataobj, np.float32)), affine=AFFINE, meta=meta)
    answer = deploy_answer(exported.parent / "mrad_ft.ts", volume)
    expected = in_bytes(map_of(exported, sources["volume"]))
    assert answer.shape == (48, 64, 3)
    assert np.abs(answer.astype(int) - expected.astype(int)).max() <= 1  # rounding


def test_a_map_alone_is_split_like_a_dictionary():
    maps = torch.rand(1, 4, 4)
    assert SplitOutputd("pred")({"pred": maps, "a": 1}) == {"anomaly_map": maps, "a": 1}
    assert SplitOutputd("pred")({"pred": {"anomaly_map": maps, "b": 2}}) == {"anomaly_map": maps, "b": 2}


def test_a_prediction_is_in_bytes_or_a_mask():
    anomaly_map = MetaTensor([[[0.0, 0.5], [0.499, 1.0]]])
    assert ToPrediction()(anomaly_map).tolist() == [[0, 128], [127, 255]]
    assert ToPrediction(0.5)(anomaly_map).tolist() == [[0, 1], [0, 1]]
    volume = ToPredictiond("anomaly_map", 0.5)({"anomaly_map": anomaly_map[..., None]})["pred"]
    assert volume.tolist() == [[[[0], [1]], [[0], [1]]]]
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], as anomaly maps are, got 128"):
        ToPrediction(128)


def test_windows_are_refused_for_torchscript(exported: Path, sources: dict[str, Path]):
    from mrad_med.networks import SlidingWindowAnomalyInferer

    network = torch.jit.load(exported.parent / "mrad_ft.ts")
    with pytest.raises(ValueError, match="TorchScript network scores images whole: leave out the sliding windows"):
        SlidingWindowAnomalyInferer(roi_size=SIZE)(torch.zeros(1, 3, SIZE, SIZE), network)


@needs_label
@each_bundle
def test_monai_label_itself_infers_both(bundle: str, sources: dict[str, Path], tmp_path: Path):
    from monailabel.tasks.infer.bundle import BundleInferTask

    copy = small_bundle(tmp_path, bundle)
    task = BundleInferTask(str(copy), {})
    assert task.is_valid()
    assert task.info()["labels"] == {"anomaly": 1}
    file, _ = task({"model": bundle, "image": str(sources["volume"]), "device": "cpu"})
    written = nibabel.load(file)
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), in_bytes(map_of(copy, sources["volume"])))
    file, _ = task({"model": bundle, "image": str(sources["photograph"]), "device": "cpu"})
    photograph = np.asarray(Image.open(file)).astype(int)
    assert photograph.shape == (60, 90)
    assert np.abs(photograph - in_bytes(map_of(copy, sources["photograph"]))).mean() < 2  # JPEG is lossy
