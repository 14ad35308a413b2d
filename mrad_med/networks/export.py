"""Export a network to one file for serving: ONNX, `torch.export` or TorchScript."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import save_net_with_metadata
from monai.inferers import Inferer
from torch import Tensor, nn

from mrad_med.errors import ExportError
from mrad_med.files import atomic_path, prepare_output_file
from mrad_med.networks.heads import FineTunedHead, Head, PromptedHead, TrainFreeHead
from mrad_med.networks.inferers import AnomalyInferer
from mrad_med.networks.maps import fuse_scores
from mrad_med.networks.mrad import MRAD
from mrad_med.networks.retrieval import average_neighbors
from mrad_med.networks.sliding_window import SlidingWindowAnomalyInferer
from mrad_med.types import IMAGE_SIZE, AnomalyKeys, ImageFeatures

__all__ = ["export_network"]

logger = logging.getLogger(__name__)

METADATA = "metadata.json"  # the name that MONAI uses in TorchScript files
TOLERANCE = 1e-4
_KEYS_PER_CHUNK = 3072  # 16 MB of scores for an image of 37 x 37 patches
_ONNX_BYTES = 2**31  # size limit of a protocol buffer
_NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")  # names in different versions of onnxruntime
_INPUT = AnomalyKeys.IMAGE.value
_OUTPUTS = (AnomalyKeys.ANOMALY_MAP.value, AnomalyKeys.ANOMALY_SCORE.value)

_Model = Callable[[Tensor], tuple[Tensor, ...]]


def export_network(
    network: MRAD,
    path: str | os.PathLike[str],
    *,
    provenance: Mapping[str, Any],
    image_size: int = IMAGE_SIZE,
    inferer: Inferer | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Write encoder, memory bank and head to one file, and compare its outputs with those of the network.

    The input of the file is ``image``, (B, 3, H, W) normalized images with any B. The outputs are ``anomaly_map``
    (B, 1, H, W) and ``anomaly_score`` (B, 1). Its ``metadata.json`` describes both,
    the preprocessing and the provenance.

    Args:
        network: any variant of MRAD, in evaluation mode.
        path: output file. Its suffix selects the format: ``.onnx``, ``.pt2`` (`torch.export`) or ``.ts`` (TorchScript).
        provenance: result of `describe_run`, or `AnomalyDetector.provenance`.
        image_size: side of the square input images in pixels, fixed in the file.
        inferer: `AnomalyInferer` that defines how the score is fused; None uses the defaults.
        tolerance: largest allowed difference between the outputs of file and network, on random images.

    Returns:
        The largest difference found for each output.

    Raises:
        ExportError: the suffix is unknown, a package is missing, the network cannot be exported, or the outputs
            differ. In these cases no file is written.
        OutputError: the file cannot be written.
        ValueError: the image size does not fit the patches.
    """
    path = Path(path)
    write, read = _format(path.suffix)
    inferer = inferer or AnomalyInferer()
    if not isinstance(inferer, AnomalyInferer):
        raise ExportError(f"export supports the scores of an AnomalyInferer, not of a {type(inferer).__name__}")
    if isinstance(getattr(inferer, "slice_inferer", inferer), SlidingWindowAnomalyInferer):
        raise ExportError("exported networks score whole images: leave out sliding windows (and the profile sliding)")
    if any(module.training for module in network.modules()):
        raise ExportError("the network is in training mode, where retrieval differs: call network.eval() first")
    prepare_output_file(path)
    device = next(network.image_encoder.parameters()).device
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    expected = inferer(images, network)
    graph = _Graph(network, image_size, inferer).eval()
    with atomic_path(path) as partial, torch.no_grad(), warnings.catch_warnings():
        # TorchScript warns that it is deprecated. The tracer warns that shapes become constant, which is intended.
        warnings.simplefilter("ignore")
        write(graph, images, partial, json.dumps(_describe(graph, provenance), default=str))
        differences = _compare(read(partial), images, expected)
        if not all(difference <= tolerance for difference in differences.values()):
            raise ExportError(
                f"the outputs of {path.name} differ from the network's: differences {differences} exceed {tolerance}; "
                "no file was written"
            )
    logger.info("%s differs from the network by at most %s", path, differences)
    return differences


class _Graph(nn.Module):
    """The exported module: normalized images of one size in, maps and scores out."""

    def __init__(self, network: MRAD, image_size: int, inferer: AnomalyInferer) -> None:
        super().__init__()
        self.network = MRAD(network.image_encoder, _fold(network.head), sigma=network.sigma)
        self.image_size = (image_size, image_size)
        self.score = {"image_weight": inferer.image_weight, "fraction": inferer.top_fraction}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, 1, H, W) maps and (B, 1) scores."""
        features = self.network.encode(images)
        maps = self.network.anomaly_map(features, self.image_size)
        return maps, fuse_scores(self.network.image_probability(features), maps, **self.score)


class _Retrieval(nn.Module):
    """`mrad_med.networks.retrieve` with keys that are projected and split by label once.

    Unlike in `retrieve`, the chunk size does not depend on the batch size.
    """

    anomalous: Tensor
    normal: Tensor

    def __init__(self, query_layer: nn.Module, keys: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.query_layer = query_layer
        is_anomalous = labels.bool()
        self.register_buffer("anomalous", keys[is_anomalous].float().contiguous())
        self.register_buffer("normal", keys[~is_anomalous].float().contiguous())

    def forward(self, queries: Tensor) -> Tensor:
        """Return the (B, N) probability that each of (B, N, C) queries is anomalous."""
        queries = self.query_layer(queries)
        return (_log_sum_exp(queries, self.anomalous) - _log_sum_exp(queries, self.normal)).sigmoid()


def _log_sum_exp(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the (B, N) log-sum-exp of the scores of all keys, computed in chunks."""
    chunks = [keys[start : start + _KEYS_PER_CHUNK] for start in range(0, len(keys), _KEYS_PER_CHUNK)]
    return torch.stack([(queries @ chunk.T).logsumexp(-1) for chunk in chunks]).logsumexp(0)


class _FoldedHead(nn.Module):
    """The retrieval of a train-free or fine-tuned head, ready for export."""

    def __init__(self, *, patch: _Retrieval, image: _Retrieval) -> None:
        super().__init__()
        self.patch = patch
        self.image = image

    def patch_probability(self, features: ImageFeatures, **_: None) -> Tensor:
        averaged = average_neighbors(features.patches, features.grid_size)
        return self.patch(F.normalize(averaged, dim=-1))  # type: ignore[no-any-return]

    def image_probability(self, features: ImageFeatures) -> Tensor:
        return self.image(F.normalize(features.image, dim=-1)[:, None])  # type: ignore[no-any-return]


@torch.no_grad()
def _fold(head: Head) -> Any:
    """Return an equivalent head with projected keys."""
    if isinstance(head, PromptedHead):
        fine_tuned = _fold(head.fine_tuned)
        return PromptedHead(fine_tuned, head.prompts, threshold=head.threshold, temperature=head.temperature)
    if isinstance(head, FineTunedHead):
        return _FoldedHead(
            patch=_Retrieval(head.patch_query, head.patch_key(head.patch_keys), head.patch_labels),
            image=_Retrieval(head.image_query, head.image_key(head.image_keys), head.image_labels),
        )
    if isinstance(head, TrainFreeHead):
        return _FoldedHead(
            patch=_Retrieval(nn.Identity(), head.patch_keys / head.temperature, head.patch_labels),
            image=_Retrieval(nn.Identity(), head.image_keys / head.temperature, head.image_labels),
        )
    raise ExportError(f"export supports the heads of MRAD-TF, MRAD-FT and MRAD-CLIP, not a {type(head).__name__}")


def _describe(graph: _Graph, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that is written to the file."""
    maps, scores = _OUTPUTS
    if not {"backbone", "memory_bank"} <= provenance.keys():
        raise ExportError("provenance must contain backbone and memory_bank: pass describe_run(clip, bank)")
    constants = {name: provenance["backbone"][name] for name in ("mean", "std")}
    preparation = "RGB in [0, 1], resized by bicubic interpolation with antialiasing, minus mean, divided by std"
    return {
        "inputs": {
            _INPUT: {
                "shape": ["batch", 3, *graph.image_size],
                "dtype": "float32",
                "preparation": preparation,
                **constants,
            }
        },
        "outputs": {
            maps: {"shape": ["batch", 1, *graph.image_size], "dtype": "float32", "range": [0, 1]},
            scores: {"shape": ["batch", 1], "dtype": "float32", "range": [0, 1]},
        },
        "score": graph.score,
        "versions": {name: version(name) for name in ("mrad-med", "torch")},
        **provenance,
    }


def _compare(model: _Model, images: Tensor, expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of each output, over a batch and over its first image alone."""
    differences = dict.fromkeys(_OUTPUTS, 0.0)
    for count in (len(images), 1):
        for name, output in zip(_OUTPUTS, model(images[:count]), strict=True):
            difference = (output.to(images.device) - expected[name][:count]).abs().max()
            differences[name] = torch.maximum(torch.tensor(differences[name]), difference.cpu()).item()  # keeps NaN
    return differences


def _format(suffix: str) -> tuple[Callable[[_Graph, Tensor, Path, str], None], Callable[[Path], _Model]]:
    """Return the functions that write and read the format with this suffix."""
    formats = {
        ".onnx": (_write_onnx, _read_onnx),
        ".pt2": (_write_program, _read_program),
        ".ts": (_write_torchscript, _read_torchscript),
    }
    if suffix not in formats:
        raise ExportError(f"the file name must end in {', '.join(formats)}; got {suffix!r}")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if suffix == ".onnx" and not find_spec(name)]
    if missing:
        raise ExportError(f"ONNX export needs {', '.join(missing)}: pip install 'mrad-med[onnx]'")
    return formats[suffix]


def _write_torchscript(graph: _Graph, images: Tensor, path: Path, metadata: str) -> None:
    traced = torch.jit.freeze(torch.jit.trace(graph, images, check_trace=False))  # type: ignore[no-untyped-call]
    with path.open("wb") as stream:  # a path would store the temporary file name in the archive
        save_net_with_metadata(traced, stream, include_config_vals=False, meta_values=json.loads(metadata))


def _read_torchscript(path: Path) -> _Model:
    return torch.jit.load(path)  # type: ignore[no-any-return, no-untyped-call]


def _program(graph: _Graph, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(graph, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _write_program(graph: _Graph, images: Tensor, path: Path, metadata: str) -> None:
    with path.open("wb") as stream:
        torch.export.save(_program(graph, images), stream, extra_files={METADATA: metadata})


def _read_program(path: Path) -> _Model:
    return torch.export.load(path).module()


def _write_onnx(graph: _Graph, images: Tensor, path: Path, metadata: str) -> None:
    import onnx

    size = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    if size > _ONNX_BYTES:
        raise ExportError(f"this network has {size / 2**30:.1f} GB, an ONNX file at most 2: export to .pt2 or .ts")
    program = torch.onnx.export(
        _program(graph, images), dynamo=True, input_names=[_INPUT], output_names=_OUTPUTS, verbose=False
    )
    if program is None:  # allowed by torch's type annotations
        raise ExportError("torch.onnx.export returned nothing")
    program.model.metadata_props[METADATA] = metadata
    onnx.save_model(program.model_proto, path)  # program.save writes weights to a second file from 1.5 GB


def _read_onnx(path: Path) -> _Model:
    session = _onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: tuple(torch.from_numpy(array) for array in session.run(None, {_INPUT: images.cpu().numpy()}))


def _onnxruntime() -> Any:
    """Return the module, with its telemetry off.

    Otherwise its import writes an identifier of the device and a database of events below ``~/.cache/Microsoft``, and
    sends events to Microsoft. The environment variables are read once, at the import.
    """
    for name in _NO_TELEMETRY:
        os.environ.setdefault(name, "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # Windows does not read the variables
    return onnxruntime
