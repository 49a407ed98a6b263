"""A half-typed graph in float32 arithmetic, every value rounded where the graph says: how ONNX Runtime's CPU kernels run it.

They have no bfloat16 products and emulate float16 by the node. Here a layer's result is computed in float32 from numbers of the half
type and rounded once, bias included, which is what tensor cores and fused kernels do. Not faster than float32.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitprune.graph.precision.audit import MOVES, types
from vitprune.graph.protos import replace_initializers, replace_nodes
from vitprune.support.onnx_types import HALF


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation with float32 tensors and roundings; the model itself where nothing is in a half type.

    Args:
        model: not changed. Inputs and outputs of a half type become float32, and are rounded.
    """
    known = types(model)
    if not known:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {tensor.name for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for value in graph.input:
        nodes += _given(value.name, known, readers)
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in known and node.output[0] not in known:
            nodes.append(helper.make_node("Identity", node.input, node.output, name=node.name))
            continue
        if node.op_type in MOVES or not any(name in known for name in node.output):
            nodes.append(node)
            continue
        if node.op_type == "MatMul" and _before_bias(node, readers, constants):
            nodes.append(node)
            continue
        nodes += _rounded(node, known)
    initializers = [_wide(tensor) if tensor.data_type in HALF else tensor for tensor in graph.initializer]
    replace_nodes(graph, nodes)
    replace_initializers(graph, initializers)
    return result


def _given(name: str, known: dict[str, int], readers: dict[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """What rounds an input of a half type before anything reads it."""
    if name not in known:
        return []
    inner = f"{name}/given"
    for node in readers[name]:
        node.input[:] = [inner if one == name else one for one in node.input]
    half = f"{name}/rounded"
    known[inner] = known[name]
    return [
        helper.make_node("Cast", [name], [half], name=f"{name}/round", to=known[name]),
        helper.make_node("Cast", [half], [inner], name=f"{name}/widen", to=TensorProto.FLOAT),
    ]


def _before_bias(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]], constants: set[str]) -> bool:
    """Whether a product goes into an Add of constants and nowhere else."""
    below = readers[node.output[0]]
    return len(below) == 1 and below[0].op_type == "Add" and any(name in constants for name in below[0].input)


def _rounded(node: onnx.NodeProto, known: dict[str, int]) -> list[onnx.NodeProto]:
    """A node whose results are rounded to their type and handed on as float32."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    made: list[onnx.NodeProto] = []
    if node.op_type == "Cast":
        source = node.input[0]
    else:
        made.append(copy)
        source = copy.output[0] = f"{node.output[0]}/exact"
    name, half = node.output[0], f"{node.output[0]}/rounded"
    made.append(helper.make_node("Cast", [source], [half], name=f"{name}/round", to=known[name]))
    made.append(helper.make_node("Cast", [half], [name], name=f"{name}/widen", to=TensorProto.FLOAT))
    return made


def _wide(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
