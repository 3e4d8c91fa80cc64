"""Towers of an exported graph behind conditions: the tower of a modality that a whole batch lacks does not run.

A modality is absent when its mask is all zero, and then its tower gives zeros. The condition changes no number; it
saves the time and the reading of the weights, a large part of the whole for one sentence or one voice alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from triemo.training.export_int8 import scope_of

__all__ = ["skip_absent_towers", "tower_states"]


def tower_states(file: Path, modalities: Iterable[str]) -> dict[str, str]:
    """By modality the name of its tower's output (batch, steps, width), of those that have one such output."""
    graph = onnx.load(file).graph
    shapes = {info.name: info.type.tensor_type for info in graph.value_info}
    states = {}
    for modality in modalities:
        scope = f"model.triemo.{modality}_tower"
        made = {name for node in graph.node if scope_of(node).startswith(scope) for name in node.output}
        read = {name for node in graph.node if not scope_of(node).startswith(scope) for name in node.input}
        found = [
            name
            for name in made & read & set(shapes)
            if shapes[name].elem_type == TensorProto.FLOAT and len(shapes[name].shape.dim) == 3
        ]
        if len(found) == 1:
            states[modality] = found[0]
    return states


def skip_absent_towers(file: Path, states: Mapping[str, str], masks: Mapping[str, str]) -> None:
    """
    Rewrite a graph in place.

    Args:
        file: the graph.
        states: modality to the tower's output, from `tower_states` of the float32 graph (the quantiser drops the
            scopes that it goes by, and keeps the names).
        masks: modality to the graph's input that says where it is present, (batch, steps).
    """
    model = onnx.load(file)
    for modality, name in states.items():
        _skip(model.graph, modality, name, masks[modality])
    onnx.save(model, file)


def _skip(graph: Any, modality: str, states: str, mask: str) -> None:
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
        helper.make_node("ReduceMax", [mask], [f"{prefix}_largest"], keepdims=0),
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
