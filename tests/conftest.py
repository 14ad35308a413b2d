"""Fixtures: a tiny random backbone, a bank of it, and folders of small images. No network, no GPU."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before a test imports onnxruntime
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: each worker and its children use one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import torch.multiprocessing
from matplotlib.figure import Figure
from open_clip.model import CLIPTextCfg, _build_text_tower
from open_clip.transformer import VisionTransformer
from PIL import Image

import mrad_med
from mrad_med import CLIP, MemoryBank, build_memory_bank, load_clip
from mrad_med.networks import CLIPImageEncoder, CLIPTextEncoder
from mrad_med.types import BackboneCard
from tests.reference_weights import normalize, openai_state_dict

GOLDEN = Path(__file__).parent / "golden"
TINY_SIZE = 56  # four patches of 14 pixels a side


def make_tiny_clip(seed: int = 0, **keywords) -> CLIP:
    torch.manual_seed(seed)
    tower = VisionTransformer(
        image_size=TINY_SIZE, patch_size=14, width=32, layers=3, heads=2, mlp_ratio=2.0, output_dim=24
    )
    for parameter in tower.parameters():  # open_clip initializes some with zeros, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    card = BackboneCard(
        name=f"tiny {seed}",
        sha256=f"{seed:064d}",
        width=32,
        embed_dim=24,
        patch_size=14,
        native_size=TINY_SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return CLIP(CLIPImageEncoder(tower, **keywords), card, make_tiny_text_encoder(seed))


def make_tiny_text_encoder(seed: int = 0, *, layers: int = 3) -> CLIPTextEncoder:
    torch.manual_seed(seed)
    tower = _build_text_tower(24, CLIPTextCfg(width=16, heads=2, layers=layers))
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return CLIPTextEncoder(tower)


def make_labeled_batches(count: int = 6, batch_size: int = 2, size: int = TINY_SIZE, seed: int = 1) -> list[dict]:
    """Every second image is anomalous, in the left half."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.arange(count) % 2
    masks = torch.zeros(count, 1, size, size)
    masks[labels == 1, :, :, : size // 2] = 1
    return [
        {"image": images[i : i + batch_size], "mask": masks[i : i + batch_size], "label": labels[i : i + batch_size]}
        for i in range(0, count, batch_size)
    ]


def run_in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Run ``function(rank, *arguments)`` in two processes with the environment that `torchrun` sets.

    Both are forked from a third process, because importing MONAI takes most of the time of such a test.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mrad_med.detector", "tests.training_runs", "sklearn.metrics"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # before the first of them starts
        torch.multiprocessing.start_processes(
            _one_of_two, (port, function, arguments), nprocs=2, start_method="forkserver"
        )


def _one_of_two(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(rank, *arguments)


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """Restore the loggers, which MONAI configures for a bundle."""
    loggers = [logging.getLogger(), logging.getLogger("mrad_med")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def embedded() -> CLIP:
    """Return the embedded backbone, loaded once for all tests, which must not change it."""
    return load_clip("embedded")


@pytest.fixture
def embedded_is_loaded(embedded: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bundles and commands use the loaded embedded backbone."""

    def take(source: str = "embedded", *, device: Any = "cpu", precision: str = "fp32", **keywords: Any) -> CLIP:
        given = {name: value for name, value in keywords.items() if value is not None}
        if (source, str(device), precision, given) == ("embedded", "cpu", "fp32", {}):
            return embedded
        return load_clip(source, device=device, precision=precision, **keywords)

    monkeypatch.setattr(mrad_med, "load_clip", take)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Return the numbers of the published implementation, and the images that they were measured on."""
    return dict(np.load(GOLDEN / "mrad.npz")) | dict(np.load(GOLDEN / "images.npz"))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> CLIP:
    """Return the backbone of the golden numbers, loaded from a file in OpenAI's format."""
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    state = openai_state_dict()
    torch.save({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path)
    clip = load_clip(path)
    path.unlink()  # 350 MB, which pytest would keep
    return clip


@pytest.fixture(scope="session")
def golden_network(
    tmp_path_factory: pytest.TempPathFactory, reference: CLIP, golden: dict[str, np.ndarray]
) -> mrad_med.MRAD:
    folder = tmp_path_factory.mktemp("banks")
    files = {"image": folder / "cache_model_visa.pt", "patch": folder / "cache_patch_model_visa.pt"}
    for level, path in files.items():
        keys, labels = (torch.from_numpy(golden[f"bank_{level}_{part}"]) for part in ("keys", "labels"))
        torch.save({"keys": keys, "values": torch.nn.functional.one_hot(labels, 2).float()}, path)
    return mrad_med.build_mrad_tf(reference, mrad_med.load_official_bank(files["image"], files["patch"]))


@pytest.fixture(scope="session")
def golden_outcome(golden_network: mrad_med.MRAD, golden: dict[str, np.ndarray]) -> dict[str, Any]:
    """Map and score of the three query images, and the features of the one pass that made them."""
    passes = []
    handle = golden_network.image_encoder.register_forward_hook(lambda *call: passes.append(call[-1]))
    result = mrad_med.AnomalyInferer()(normalize(golden["query_images"]), golden_network)
    handle.remove()
    assert len(passes) == 1
    return result | {"features": passes[0]}


@pytest.fixture(scope="session")
def tiny_clip() -> CLIP:
    return make_tiny_clip()


@pytest.fixture(scope="session")
def tiny_bank(tiny_clip: CLIP) -> MemoryBank:
    return build_memory_bank(tiny_clip, make_labeled_batches(), progress=False)


@pytest.fixture
def plain_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw small figures without a layout, whose computation takes most of the time."""

    def plain(**_: Any) -> Figure:
        return Figure(figsize=(2, 1))

    monkeypatch.setattr("mrad_med.results.overlays.Figure", plain)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Write three photographs that are not square; one corner has another color, which reveals a wrong axis."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.RandomState(0)
    for name in ("a.png", "b.jpg", "c.bmp"):
        pixels = random.randint(0, 80, (40, 60, 3), np.uint8)
        pixels[:10, -20:] = (250, 120, 30)
        Image.fromarray(pixels).save(folder / name)
    return folder


_OPENED: list[str] = []  # files, while the fixture below is in use
_WATCH = {"hooked": False, "on": False}  # a hook cannot be removed, and one is enough


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCH["on"] and event == "open":
        _OPENED.append(str(arguments[0]))


@pytest.fixture
def opened() -> Iterator[Callable[[], Counter[str]]]:
    """Yield a function that returns how often each file was opened, by name, since its last call."""
    if not _WATCH["hooked"]:
        sys.addaudithook(_watch)

    def count() -> Counter[str]:
        names = Counter(Path(name).name for name in _OPENED)
        _OPENED.clear()
        return names

    _WATCH.update(hooked=True, on=True)
    yield count
    _WATCH["on"] = False
    _OPENED.clear()
