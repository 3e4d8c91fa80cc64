"""What is done to an exported graph: its int8 counterpart, and towers that run only where their modality is.

The int8 graph is a third of the size. A weight is kept in one of three ways, by its place in the model; which way is
chosen by the noise that each place adds to the logits on the corpora (`tests/benchmarks/bench_onnx.py --agreement`
measures it again):

- Products in 8 bits (onnxruntime's dynamic quantisation: weights by output channel, activations by tensor, both
  unsigned) in the audio tower's queries and feed-forward layers, in the joint encoder and in the fusion.
- Weights stored in int8, in blocks along the input that share a scale, and products in float32, in the text tower,
  whose activations have outliers that one scale cannot hold, in convolutions, and in what the audio tower averages
  over a whole clip, where an error of a weight does not average out. The runtime expands them once, when it loads the
  file.
- In float32 the values and outputs of the audio tower's attention, small and the most sensitive of all, positions,
  normalisations, heads and the linear map to log-mel.

A modality is absent when its mask is all zero, and then its tower gives zeros. The condition before a tower changes
no number; it saves the time and the reading of the weights, a large part of the whole for one sentence or one voice
alone.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from triemo.modeling.inputs_triemo import MASKS

__all__ = ["quantize_int8", "skip_absent_towers", "tower_states"]

BLOCKS = (32, 16)  # values that share a scale; the first that divides the length
# The last part of PyTorch's name of the module that a product belongs to.
IN_INT8 = re.compile(r"(audio_tower\..*\.(q_proj|fc1|fc2)|triemo\.layers\..*|fusion\..*)$")
IN_FLOAT = re.compile(
    r"(audio_tower\..*\.(v_proj|out_proj)|front_end.*|classifier.*|.*_projection|.*_embedding\.projection)$"
)
SMALLEST = 4096  # values; smaller weights are not worth a node of their own
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter notes the modules that a node was traced in


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
        scope = _scope_of(node)
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
        # Unsigned like the activations: products of uint8 by int8 are summed in pairs of 16 bits by x86 processors
        # without VNNI, and saturate there. Those of uint8 by uint8 are exact on every processor.
        weight_type=QuantType.QUInt8,
    )


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


def tower_states(file: Path, modalities: Iterable[str]) -> dict[str, str]:
    """By modality the name of its tower's output (batch, steps, width), of those that have one such output."""
    graph = onnx.load(file).graph
    shapes = {info.name: info.type.tensor_type for info in graph.value_info}
    states = {}
    for modality in modalities:
        scope = f"model.triemo.{modality}_tower"
        made = {name for node in graph.node if _scope_of(node).startswith(scope) for name in node.output}
        read = {name for node in graph.node if not _scope_of(node).startswith(scope) for name in node.input}
        found = [
            name
            for name in made & read & set(shapes)
            if shapes[name].elem_type == TensorProto.FLOAT and len(shapes[name].shape.dim) == 3
        ]
        if len(found) == 1:
            states[modality] = found[0]
    return states


def skip_absent_towers(file: Path, states: Mapping[str, str]) -> None:
    """
    Put each tower of a graph, in place, behind the condition that its modality's mask has a valid step.

    Args:
        file: the graph.
        states: modality to the tower's output, from `tower_states` of the float32 graph (the quantiser drops the
            scopes that it goes by, and keeps the names).
    """
    model = onnx.load(file)
    for modality, name in states.items():
        _skip(model.graph, modality, name)
    onnx.save(model, file)


def _skip(graph: Any, modality: str, states: str) -> None:
    """Move what only `states` needs into the branch of a condition whose other branch gives zeros."""
    kept, moved = _split(graph, states)
    shapes = {info.name: info for info in graph.value_info}
    dims = shapes[states].type.tensor_type.shape.dim
    steps = _same_steps(graph, kept, shapes, states)
    if steps is None or _sides(shapes[states]) is None:
        return
    then_name, else_name, prefix = f"{states}_present", f"{states}_absent", f"{modality}_skip"
    for node in moved:
        node.output[:] = [then_name if name == states else name for name in node.output]
        node.input[:] = [then_name if name == states else name for name in node.input]
    inside = {name for node in moved for name in (*node.input, *node.output)}
    outside = {name for node in kept for name in _names_in(node)} | {entry.name for entry in graph.output}
    weights = [entry for entry in graph.initializer if entry.name in inside - outside]
    notes = [info for info in graph.value_info if info.name in inside - outside]
    result = helper.make_tensor_value_info(then_name, TensorProto.FLOAT, [None, None, dims[2].dim_value])
    present = helper.make_graph(moved, f"{prefix}_present", [], [result], initializer=weights, value_info=notes)
    width = numpy_helper.from_array(np.array([dims[2].dim_value], dtype=np.int64), f"{prefix}_width")
    absent = helper.make_graph(
        [
            helper.make_node("Concat", [f"{prefix}_steps", width.name], [f"{prefix}_shape"], axis=0),
            helper.make_node("ConstantOfShape", [f"{prefix}_shape"], [else_name]),
        ],
        f"{prefix}_absent",
        [],
        [helper.make_tensor_value_info(else_name, TensorProto.FLOAT, [None, None, dims[2].dim_value])],
        initializer=[width],
    )
    zero = numpy_helper.from_array(np.array(0, dtype=np.int64), f"{prefix}_zero")
    condition = [
        helper.make_node("Shape", [steps], [f"{prefix}_steps"], start=0, end=2),
        helper.make_node("ReduceMax", [MASKS[modality]], [f"{prefix}_largest"], keepdims=0),
        helper.make_node("Greater", [f"{prefix}_largest", zero.name], [f"{prefix}_any"]),
        helper.make_node("If", [f"{prefix}_any"], [states], prefix, then_branch=present, else_branch=absent),
    ]
    # The last thing that the branches wait for decides where the condition stands.
    waits = inside | {steps}
    place = max((index + 1 for index, node in enumerate(kept) if waits & set(node.output)), default=0)
    graph.ClearField("node")
    graph.node.extend([*kept[:place], *condition, *kept[place:]])
    gone = {entry.name for entry in weights} | {info.name for info in notes}
    for field in (graph.initializer, graph.value_info):
        left = [entry for entry in field if entry.name not in gone]
        del field[:]
        field.extend(left)
    graph.initializer.append(zero)


def _split(graph: Any, states: str) -> tuple[list[Any], list[Any]]:
    """The graph's nodes, in order: those that something else needs too, and those that only `states` needs."""
    outside = {entry.name for entry in graph.output}
    kept: list[Any] = []
    moved: list[Any] = []
    for node in reversed(graph.node):
        if states in node.output or not outside & set(node.output):
            moved.append(node)
        else:
            kept.append(node)
            outside |= _names_in(node) - {states}
    return kept[::-1], moved[::-1]


def _names_in(node: Any) -> set[str]:
    """What a node reads, its branches included."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _names_in(inner)
    return names


def _same_steps(graph: Any, kept: list[Any], shapes: Mapping[str, Any], states: str) -> str | None:
    """A tensor outside the branches, made before `states`, whose first two sides are its batch and steps."""
    known = {info.name: info for info in graph.input} | dict(shapes)
    outside = {info.name for info in graph.input} | {name for node in kept for name in node.output}
    there = [info.name for info in graph.input]
    for node in graph.node:
        if states in node.output:
            break
        there += node.output
    sides = _sides(known[states])
    return next((name for name in there if name in known and name in outside and _sides(known[name]) == sides), None)


def _sides(info: Any) -> list[Any] | None:
    """The first two sides, by name or number; None where one is unknown."""
    sides = [side.dim_param or side.dim_value for side in info.type.tensor_type.shape.dim[:2]]
    return sides if len(sides) == 2 and all(sides) else None


def _scope_of(node: Any) -> str:
    """Name of the innermost module that an exported node was traced in, such as `model.triemo.layers.0.fc1`."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            names = ast.literal_eval(entry.value)
            return names[-2] if len(names) > 1 else ""
    return ""
