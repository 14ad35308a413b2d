"""Exported files: every variant in every format, read without this package, against the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export
from monai.data import load_net_with_metadata
from monai.inferers import SimpleInferer
from torch import Tensor, nn

import mrad_med
from mrad_med import (
    CLIP,
    MRAD,
    AnomalyInferer,
    MemoryBank,
    build_memory_bank,
    build_mrad_clip,
    build_mrad_ft,
    build_mrad_tf,
    describe_run,
    export_network,
)
from mrad_med.errors import ExportError, OutputError
from mrad_med.networks import upsample_and_blur
from mrad_med.types import HeadCard
from tests.conftest import TINY_SIZE, make_labeled_batches, make_tiny_clip, make_tiny_text_encoder

ROOT = Path(__file__).parents[2]
VARIANTS = {"tf": build_mrad_tf, "ft": build_mrad_ft, "clip": build_mrad_clip}
FILES = [(variant, suffix) for variant in VARIANTS for suffix in (".ts", ".pt2", ".onnx")]
FILES.remove(("tf", ".pt2"))  # a part of MRAD-FT's, and seconds less
SLOW = [("clip", ".pt2"), ("clip", ".onnx"), ("ft", ".onnx")]  # each variant and each format is among the others

Model = Callable[[Tensor], tuple[Tensor, Tensor]]

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")


def make_images(batch: int, height: int = TINY_SIZE, width: int = TINY_SIZE) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def read(path: Path) -> tuple[Model, dict[str, Any]]:
    """Return a file as a function, and its metadata, read with nothing of this package."""
    if path.suffix == ".ts":
        model, metadata, _ = load_net_with_metadata(str(path))
        return model, metadata
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        return torch.export.load(path, extra_files=extra).module(), json.loads(extra["metadata.json"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        maps, scores = session.run(["anomaly_map", "anomaly_score"], {"image": images.numpy()})
        return torch.from_numpy(maps), torch.from_numpy(scores)

    return run, metadata


@pytest.fixture(scope="module")
def clip() -> CLIP:
    """Two blocks per tower, the fewest with a first and a last one, because torch's exporter is slow for each."""
    whole = make_tiny_clip()
    blocks = whole.image_encoder.tower.transformer.resblocks
    whole.image_encoder.tower.transformer.resblocks = blocks[:2]
    return CLIP(whole.image_encoder, whole.card, make_tiny_text_encoder(layers=2))


@pytest.fixture(scope="module")
def bank(clip: CLIP) -> MemoryBank:
    return build_memory_bank(clip, make_labeled_batches(), progress=False)


@pytest.fixture(scope="module")
def networks(clip: CLIP, bank: MemoryBank) -> dict[str, MRAD]:
    torch.manual_seed(5)
    return {variant: build(clip, bank) for variant, build in VARIANTS.items()}


@pytest.fixture(scope="module")
def provenance(clip: CLIP, bank: MemoryBank) -> dict[str, Any]:
    return describe_run(clip, bank, variant="a variant")


@dataclass(frozen=True)
class Exported:
    """A network, and its file as it was read."""

    network: MRAD
    model: Model
    metadata: dict[str, Any]


@pytest.fixture(
    scope="module",
    params=[pytest.param(file, id="".join(file), marks=pytest.mark.slow if file in SLOW else ()) for file in FILES],
)
def exported(
    request: pytest.FixtureRequest,
    networks: dict[str, MRAD],
    provenance: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """Each file once: torch's exporter takes seconds for the smallest network."""
    variant, suffix = request.param
    path = tmp_path_factory.mktemp("exported") / f"mrad{suffix}"
    differences = export_network(networks[variant], path, provenance=provenance, image_size=TINY_SIZE)
    assert differences.keys() == {"anomaly_map", "anomaly_score"}
    assert max(differences.values()) < 1e-5
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return Exported(networks[variant], *read(path))


def test_file_gives_the_outputs_of_the_network_for_any_batch(exported: Exported):
    for batch in (1, 3):
        images = make_images(batch)
        expected = AnomalyInferer()(images, exported.network)
        maps, scores = exported.model(images)
        torch.testing.assert_close(maps, expected["anomaly_map"], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores, expected["anomaly_score"], atol=1e-5, rtol=0)


def test_file_states_how_to_serve_it(exported: Exported, provenance: dict[str, Any]):
    metadata = exported.metadata
    image = metadata["inputs"]["image"]
    assert image["shape"] == ["batch", 3, TINY_SIZE, TINY_SIZE]
    assert (image["mean"], image["std"]) == ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    assert metadata["outputs"]["anomaly_map"]["shape"] == ["batch", 1, TINY_SIZE, TINY_SIZE]
    assert metadata["outputs"]["anomaly_score"]["shape"] == ["batch", 1]
    assert metadata["backbone"]["sha256"] == provenance["backbone"]["sha256"]
    assert metadata["memory_bank"]["sha256"] == provenance["memory_bank"]["sha256"]
    assert metadata["settings"] == {"variant": "a variant"}
    assert metadata["versions"]["mrad-med"] == mrad_med.__version__


@pytest.mark.parametrize("size", [(70, 70), (28, 112)], ids=["larger", "as many patches"])
def test_file_refuses_images_of_another_size(exported: Exported, size: tuple[int, int]):
    with pytest.raises(Exception, match=r"(?i)size|dimension|shape"):  # each runtime has its own words
        exported.model(make_images(1, *size))


def save(network: MRAD, folder: Path, provenance: dict[str, Any], **keywords: Any) -> tuple[Path, dict[str, float]]:
    path = folder / "mrad.ts"  # the fastest to write
    return path, export_network(network, path, provenance=provenance, image_size=TINY_SIZE, **keywords)


def test_temperature_sigma_and_weights_of_the_score_are_in_the_file(
    clip: CLIP, bank: MemoryBank, provenance: dict[str, Any], tmp_path: Path
):
    network = build_mrad_tf(clip, bank, temperature=0.07, sigma=1.0)
    inferer = AnomalyInferer(image_weight=0.0, top_fraction=1.0)
    path, _ = save(network, tmp_path, provenance, inferer=inferer)
    images = make_images(2)
    model, metadata = read(path)
    maps, scores = model(images)
    torch.testing.assert_close(maps, network(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, maps.mean((1, 2, 3))[:, None], atol=1e-6, rtol=0)
    assert metadata["score"] == {"image_weight": 0.0, "fraction": 1.0}


def test_bank_larger_than_a_chunk_gives_the_same(
    networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mrad_med.networks.export._KEYS_PER_CHUNK", 2)  # the bank has 3 anomalous and 6 normal patches
    _, differences = save(networks["ft"], tmp_path, provenance)
    assert max(differences.values()) < 1e-6


def test_keys_are_projected_once_and_not_in_the_file(
    networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path
):
    path, _ = save(networks["ft"], tmp_path, provenance)
    graph = torch.jit.load(path).inlined_graph
    layers = [node for node in graph.nodes() if node.kind() == "aten::linear"]
    # Each block: query, key and value, output, two of the MLP; the second also the V-V output. Then two queries.
    assert len(layers) == 5 + 6 + 2


def test_network_is_left_as_it_was(networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path):
    network, images = networks["clip"], make_images(1)
    before = network(images)
    trainable = [name for name, weight in network.named_parameters() if weight.requires_grad]
    save(network, tmp_path, provenance)
    assert torch.equal(network(images), before)
    assert trainable
    assert trainable == [name for name, weight in network.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_file_that_disagrees_is_not_left_and_the_old_one_stays(
    networks: dict[str, MRAD],
    provenance: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: float,
):
    monkeypatch.setattr("mrad_med.networks.export.fuse_scores", lambda image, *_, **__: image + wrong)
    (tmp_path / "mrad.ts").write_bytes(b"old")
    with pytest.raises(ExportError, match=r"the outputs of mrad\.ts differ from the network's: .*anomaly_score"):
        save(networks["tf"], tmp_path, provenance)
    assert (tmp_path / "mrad.ts").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(
    networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(AnomalyInferer, "__call__", None)  # no score is asked for
    (tmp_path / "notes").touch()
    with pytest.raises(OutputError, match=r"cannot write to .*notes \((Not a directory|File exists)\); choose another"):
        export_network(networks["tf"], tmp_path / "notes" / "mrad.ts", provenance=provenance, image_size=TINY_SIZE)


def test_other_suffixes_are_refused(networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path):
    with pytest.raises(ExportError, match=r"must end in \.onnx, \.pt2, \.ts; got '\.engine'"):
        export_network(networks["tf"], tmp_path / "mrad.engine", provenance=provenance)


def test_onnx_without_its_packages_is_refused(
    networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mrad_med.networks.export.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ExportError, match=r"ONNX export needs onnxscript: pip install 'mrad-med\[onnx\]'"):
        export_network(networks["tf"], tmp_path / "mrad.onnx", provenance=provenance)


def test_onnxruntime_writes_and_sends_no_telemetry(tmp_path: Path):
    """Its import alone writes ``.cache/Microsoft/DeveloperTools/.onnxruntime`` below the home folder on Linux."""
    program = "from mrad_med.networks.export import _onnxruntime; _onnxruntime().get_available_providers()"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.rglob("*icrosoft*")) == []
    assert list(tmp_path.rglob("*onnxruntime*")) == []


def test_onnx_larger_than_its_format_allows_is_refused(
    networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mrad_med.networks.export._ONNX_BYTES", 1000)
    with pytest.raises(ExportError, match=r"an ONNX file at most 2: export to \.pt2 or \.ts"):
        export_network(networks["tf"], tmp_path / "mrad.onnx", provenance=provenance, image_size=TINY_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_network_in_training_mode_is_refused(
    clip: CLIP, bank: MemoryBank, provenance: dict[str, Any], tmp_path: Path
):
    network = build_mrad_ft(clip, bank)
    network.head.train()
    with pytest.raises(ExportError, match=r"training mode.*network\.eval\(\)"):
        save(network, tmp_path, provenance)


def test_unknown_heads_and_inferers_are_refused(
    clip: CLIP, networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path
):
    class OtherHead(nn.Module):
        def patch_probability(self, features):
            return torch.zeros(features.patches.shape[:2])

        def image_probability(self, features):
            return torch.zeros(len(features.image), 1)

    with pytest.raises(ExportError, match="not a OtherHead"):
        save(MRAD(clip.image_encoder, OtherHead()).eval(), tmp_path, provenance)
    with pytest.raises(ExportError, match="AnomalyInferer, not of a SimpleInferer"):
        save(networks["tf"], tmp_path, provenance, inferer=SimpleInferer())


def test_image_sizes_that_do_not_fit_and_incomplete_provenance_are_refused(
    networks: dict[str, MRAD], provenance: dict[str, Any], tmp_path: Path
):
    with pytest.raises(ValueError, match="multiples of the patch size 14"):
        export_network(networks["tf"], tmp_path / "mrad.ts", provenance=provenance, image_size=57)
    with pytest.raises(ExportError, match=r"pass describe_run\(clip, bank\)"):
        save(networks["tf"], tmp_path, {"backbone": provenance["backbone"]})
    assert list(tmp_path.iterdir()) == []


def test_maps_are_tensors_again_after_torch_has_exported_one():
    class Blur(nn.Module):
        def forward(self, patch_maps: Tensor) -> Tensor:
            return upsample_and_blur(patch_maps, (23, 29))  # a size no other test asks for

    torch.export.export(Blur(), (torch.rand(1, 1, 3, 4),))
    assert type(upsample_and_blur(torch.rand(1, 1, 3, 4), (23, 29))) is Tensor


@pytest.mark.parametrize("variant", ["ft", "clip"])
def test_the_weights_of_a_head_alone_load_into_a_network(
    clip: CLIP, bank: MemoryBank, networks: dict[str, MRAD], variant: str
):
    learned = networks[variant].head.learned_state()
    other = VARIANTS[variant](clip, bank)
    assert not torch.equal(other(make_images(1)), networks[variant](make_images(1)))
    other.load_state_dict(learned)
    assert torch.equal(other(make_images(1)), networks[variant](make_images(1)))
    other.load_state_dict(networks[variant].state_dict())
    name = next(iter(learned))
    with pytest.raises(RuntimeError, match=f"Missing key.*head.{name}"):
        other.load_state_dict({key: learned[key] for key in learned if key != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*head\.stranger"):
        other.load_state_dict({**learned, "stranger": torch.zeros(1)})


def test_the_prompted_network_can_be_traced_as_monai_does(networks: dict[str, MRAD]):
    with torch.no_grad():
        traced = torch.jit.trace(networks["clip"], make_images(1))
    torch.testing.assert_close(traced(make_images(3)), networks["clip"](make_images(3)), atol=1e-5, rtol=0)


def test_monai_exports_a_bundle_to_torchscript(tmp_path: Path):
    clip = mrad_med.load_clip("embedded")
    bank = mrad_med.load_memory_bank(ROOT / "bundles" / "memory_banks" / "embedded_industrial.safetensors")
    network = build_mrad_ft(clip, bank, seed=0)
    card = HeadCard("MRAD-FT", clip.card.name, clip.card.sha256, bank.sha256)
    mrad_med.save_head(network.head, tmp_path / "model.pt", card)
    bundle = ROOT / "bundles" / "mrad_ft"
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        use_trace=True,
        input_shape=[1, 3, 126, 126],
        bundle_root=str(bundle),
        checkpoint=str(tmp_path / "model.pt"),
        device="cpu",
    )
    model, metadata, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    assert metadata["name"].startswith("MRAD-FT")
    with torch.no_grad():
        torch.testing.assert_close(
            model(make_images(2, 126, 126)), network(make_images(2, 126, 126)), atol=1e-6, rtol=0
        )
