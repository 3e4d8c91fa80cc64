"""The graph in int8: a quarter of the size, and faster where that costs no accuracy.

Two ways, by the place of a weight in the model; which way is chosen by the noise that each place adds to the logits on
the corpora (`tests/benchmarks/bench_onnx.py --agreement` measures it again):

- Products in int8 (onnxruntime's dynamic quantisation: weights in int8 by output channel, activations in uint8 by
  tensor) in the audio tower's queries and feed-forward layers, in the joint encoder and in the fusion.
- Weights stored in int8, in blocks along the input that share a scale, and products in float32, in the text tower,
  whose activations have outliers that one scale cannot hold, in convolutions, and in what the audio tower averages
  over a whole clip, where an error of a weight does not average out. The runtime expands them once, when it loads the
  file.

The values and outputs of the audio tower's attention, small and the most sensitive of all, stay in float32, as do
positions, normalisations, heads and the linear map to log-mel.
"""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

__all__ = ["MODULE_OF", "quantize_int8", "scope_of"]

BLOCKS = (32, 16)  # values that share a scale; the first that divides the length
# The last part of PyTorch's name of the module that a product belongs to.
IN_INT8 = re.compile(r"(audio_tower\..*\.(q_proj|fc1|fc2)|triemo\.layers\..*|fusion\..*)$")
IN_FLOAT = re.compile(
    r"(audio_tower\..*\.(v_proj|out_proj)|front_end.*|classifier.*|.*_projection|.*_embedding\.projection)$"
)
MODULE_OF = "pkg.torch.onnx.name_scopes"
SMALLEST = 4096  # values; smaller weights are not worth a node of their own


def quantize_int8(source: Path, target: Path) -> None:
    """
    Write the int8 counterpart of an exported graph.

    Args:
        source: the float32 graph.
        target: the file to write; whoever calls this makes sure that it appears only when it is complete.
    """
    model = onnx.load(source)
    weights = {weight.name: weight for weight in model.graph.initializer}
    in_int8 = []
    stored: dict[str, int | None] = {}  # weights, and the axis along which their blocks lie, None for embeddings
    for node in model.graph.node:
        scope = scope_of(node)
        if node.op_type == "Gather" and node.input[0] in weights:
            stored[node.input[0]] = None
        elif node.op_type not in ("MatMul", "Gemm", "Conv") or node.input[1] not in weights or IN_FLOAT.search(scope):
            continue
        elif IN_INT8.search(scope):
            in_int8.append(node.name)
        else:
            stored[node.input[1]] = 0 if node.op_type == "MatMul" or not _takes_transposed(node) else 1
    for name, axis in stored.items():
        weight = weights[name]
        if len(weight.dims) >= 2 and np.prod(weight.dims) >= SMALLEST:
            _store(model.graph, weight, axis)
    onnx.save(model, target)
    quantize_dynamic(
        target,
        target,
        nodes_to_quantize=in_int8 or ["none"],  # an empty list would mean all of them
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def scope_of(node: Any) -> str:
    """Name of the innermost module that an exported node was traced in, such as `model.triemo.layers.0.fc1`."""
    for entry in node.metadata_props:
        if entry.key == MODULE_OF:
            names = ast.literal_eval(entry.value)
            return names[-2] if len(names) > 1 else ""
    return ""


def _takes_transposed(node: Any) -> bool:
    """Whether the weight's first axis is the output: convolutions, and Gemm as PyTorch's Linear becomes one."""
    return node.op_type == "Conv" or any(entry.name == "transB" and entry.i for entry in node.attribute)


def _store(graph: Any, weight: Any, axis: int | None) -> None:
    """Replace a weight by int8 values and a DequantizeLinear node that gives it back under its old name."""
    values = numpy_helper.to_array(weight).astype(np.float32)
    if axis is None:  # a scale for each row
        scales = np.abs(values).max(1)
        options = {"axis": 0}
    else:
        block = next((size for size in BLOCKS if values.shape[axis] % size == 0), None)
        if block is None:
            return
        shape = values.shape
        parts = values.reshape(*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
        scales = np.abs(parts).max(axis + 1)
        options = {"axis": axis, "block_size": block}
    scales = np.maximum(scales, 1e-12).astype(np.float32) / np.float32(127)
    full = scales[:, None] if axis is None else np.repeat(scales, options["block_size"], axis)
    name = weight.name
    graph.initializer.remove(weight)
    graph.initializer.append(numpy_helper.from_array(np.round(values / full).astype(np.int8), f"{name}_int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
    graph.node.insert(
        0, helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], f"{name}_float", **options)
    )
