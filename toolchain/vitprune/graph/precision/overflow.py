"""Which layers would leave the range of fp16: the largest number that goes into or comes out of each, on calibration images.

A number beyond 65504 becomes infinite in fp16, and one infinite value makes a whole row NaN; so the graph is looked at in float32 first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitprune.graph.precision.casting import FIRST_ONLY

PROBE = "probe"


def probed(model: onnx.ModelProto, nodes: Mapping[str, str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with one more output per tensor of a layer: its largest magnitude, a number.

    Args:
        model: float32; not changed. nodes: layer by node name.

    Returns:
        The model, and the layer of every added output, in the graph's order.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name for tensor in graph.initializer}
    layer_of: dict[str, str] = {}
    for node in graph.node:
        if node.name in nodes:
            reads = node.input[:1] if node.op_type in FIRST_ONLY else node.input
            for name in (*reads, *node.output):
                if name and name not in constants:
                    layer_of.setdefault(name, nodes[node.name])
    outputs: dict[str, str] = {}
    for number, (name, layer) in enumerate(layer_of.items()):
        size, most = f"{PROBE}/{number}/size", f"{PROBE}/{number}"
        graph.node.append(helper.make_node("Abs", [name], [size], name=size))
        graph.node.append(helper.make_node("ReduceMax", [size], [most], name=most, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(most, TensorProto.FLOAT, []))
        outputs[most] = layer
    return result, outputs


def weight_maxima(model: onnx.ModelProto, nodes: Mapping[str, str]) -> dict[str, float]:
    """Largest magnitude of the weights of every layer."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    found: dict[str, float] = {}
    for node in model.graph.node:
        if node.name in nodes and node.op_type not in FIRST_ONLY:
            sizes = [float(np.abs(numpy_helper.to_array(weights[name])).max(initial=0)) for name in node.input if name in weights]
            found[nodes[node.name]] = max(found.get(nodes[node.name], 0.0), *sizes, 0.0)
    return found


def largest(outputs: Mapping[str, str], values: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Largest magnitude by layer of the probes' values; NaN counts as infinite."""
    found: dict[str, float] = {}
    for name, layer in outputs.items():
        seen = float(values[name])
        found[layer] = max(found.get(layer, 0.0), float("inf") if np.isnan(seen) else seen)
    return found
