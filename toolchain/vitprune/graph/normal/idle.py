"""Casts to the type that a tensor has already, taken away: exporters write them where a model asks for float32 and has it.

What is read in front of such a Cast and what is read behind it are one tensor; a block whose norm reads the one and whose residual sum
the other would look like no block.
"""

from __future__ import annotations

import onnx

from vitprune.graph import held


def take_idle_casts(model: onnx.ModelProto) -> int:
    """Take them out of a model, which is changed; returns how many. Those that make an output of the graph stay."""
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.domain in ("", "ai.onnx")]
    if not casts:
        return 0
    types = _types(model)
    outputs = {output.name for output in model.graph.output}
    idle = {
        node.output[0]: node.input[0]
        for node in casts
        if types.get(node.input[0]) == next(one.i for one in node.attribute if one.name == "to") and node.output[0] not in outputs
    }
    for node in casts:
        if node.output[0] in idle:
            model.graph.node.remove(node)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            while name in idle:
                name = idle[name]
            node.input[place] = name
    return len(idle)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors whose types are known, by name."""
    graph = held.inferred(held.parted(model)[0]).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}
