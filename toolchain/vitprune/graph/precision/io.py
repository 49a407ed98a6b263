"""Images that come in, and logits or features that go out, in float16; what is between them stays as it was."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from vitprune.graph.protos import replace_nodes
from vitprune.support.answers import heads_and_lists


def half_io(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its float32 inputs and outputs in float16.

    Args:
        model: finished, inputs and outputs float32 (kept lists int64); not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    inner = {}
    before, behind = [], []
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            inner[value.name] = f"{value.name}/fp32"
            before.append(
                helper.make_node("Cast", [value.name], [inner[value.name]], name=inner[value.name], to=TensorProto.FLOAT)
            )
    heads, _ = heads_and_lists(value.name for value in graph.output)
    for value in graph.output:
        if value.name in heads and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            inner[value.name] = f"{value.name}/fp32"
            behind.append(
                helper.make_node("Cast", [inner[value.name]], [value.name], name=f"{value.name}/fp16", to=TensorProto.FLOAT16)
            )
    nodes = list(graph.node)
    for node in nodes:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    replace_nodes(graph, [*before, *nodes, *behind])
    return result
