"""Typed nodes: given which nodes compute in a half type, put a Cast on every edge that leaves or enters them, and type their weights.

Works on the finished model; TensorRT has no precision flags any more, so that what is written here is what an engine computes in.
"""

from __future__ import annotations

from collections import defaultdict

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitprune.errors import ExportError
from vitprune.graph.protos import replace_initializers, replace_nodes
from vitprune.support.onnx_types import HALF

TYPES: dict[str, int] = {name: kind for kind, name in HALF.items()}
NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
# Operators whose further inputs are positions or shapes, which have no float type.
FIRST_ONLY = {"Reshape", "Transpose", "Gather", "GatherND", "Slice", "Unsqueeze", "Squeeze", "Split"}


def typed(tensor: TensorProto, mode: str, name: str) -> TensorProto:
    """A float32 initialiser in a half type, rounded to the nearest.

    Raises:
        ExportError: VP317 when a weight is beyond the type's range.
    """
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(NUMPY[mode])
    if not np.isfinite(half.astype(np.float32)).all():
        raise ExportError(
            317,
            f"the weights '{tensor.name}' do not fit into {mode}",
            cause=f"the largest is {float(np.abs(values).max()):.3g}",
            next_step="name the layer in precision.keep_fp32, or --set precision.mode=bf16",
        )
    made = TensorProto()
    made.name, made.data_type = name, TYPES[mode]
    made.dims.extend(values.shape)
    made.raw_data = half.tobytes()
    return made


def cast(model: onnx.ModelProto, nodes: set[str], mode: str) -> onnx.ModelProto:
    """The model with the named nodes computing in a half type.

    Args:
        model: all float tensors float32; not changed. nodes: names. mode: "fp16" or "bf16".

    Returns:
        A model with the same inputs and outputs, types included.

    Raises:
        ExportError: VP317 weights out of range.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    half = {output for node in graph.node if node.name in nodes for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    readers: dict[str, set[bool]] = defaultdict(set)
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers[name].add(node.name in nodes and _typed(node, position))
    into: dict[str, str] = {}
    typed_weights: dict[str, TensorProto] = {}
    written: list[onnx.NodeProto] = []

    def converted(name: str, kind: str, to: int) -> str:
        if name not in into:
            into[name] = f"{name}/{kind}"
            written.append(helper.make_node("Cast", [name], [into[name]], name=f"{name}/{kind}", to=to))
        return into[name]

    for node in graph.node:
        inside = node.name in nodes
        for position, name in enumerate(node.input):
            if not name or not _typed(node, position) and inside:
                continue
            if inside and name in weights:
                alone = readers[name] == {True}
                typed_weights.setdefault(name, typed(weights[name], mode, name if alone else f"{name}/{mode}"))
                node.input[position] = typed_weights[name].name
            elif inside and name not in half:
                node.input[position] = converted(name, mode, TYPES[mode])
            elif not inside and name in half:
                node.input[position] = converted(name, "fp32", TensorProto.FLOAT)
        written.append(node)
    outputs = {value.name for value in graph.output}
    for node in written:
        for name in node.output:
            if name in half and name in outputs:  # the graph's outputs stay float32
                raise ExportError(316, f"output '{name}' is made by a layer in {mode}", cause="outputs are float32")
    kept = [tensor for tensor in graph.initializer if tensor.name not in typed_weights or False in readers[tensor.name]]
    kept += typed_weights.values()
    replace_nodes(graph, written)
    replace_initializers(graph, kept)
    return result


def _typed(node: onnx.NodeProto, position: int) -> bool:
    return position == 0 or node.op_type not in FIRST_ONLY
