"""The linear maps of a finished model: MatMul or Gemm with constant weights, and where their inputs come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

# What moves rows or heads and leaves the channels (the last axis, or what becomes it again) as they are.
ROWS = {"Gather", "GatherND", "GatherElements", "Slice", "Identity", "Unsqueeze", "Squeeze", "Split"}


@dataclass(frozen=True)
class LinearMap:
    """One product with weights, float32 [in,out] (out_axis 1) or [out,in] (out_axis 0); data, weight: tensor names."""

    node: str
    layer: str
    data: str
    weight: str
    out_axis: int


def linear_maps(model: onnx.ModelProto, layers: Mapping[str, str]) -> list[LinearMap]:
    """The linear maps among the named nodes, in the graph's order.

    Args:
        model: all float tensors float32. layers: layer by node name.
    """
    weights = {
        tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    found = []
    for node in model.graph.node:
        if node.name in layers and node.op_type in ("MatMul", "Gemm") and node.input[1] in weights:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            found.append(LinearMap(node.name, layers[node.name], node.input[0], node.input[1], 0 if transposed else 1))
    return found


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes a tensor, by the tensor's name."""
    return {name: node for node in model.graph.node for name in node.output}


def readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read a tensor, by its name; an output of the graph is read by a node without a type."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in set(node.input):
            found.setdefault(name, []).append(node)
    for value in model.graph.output:
        found.setdefault(value.name, []).append(onnx.NodeProto())
    return found


def source_of(tensor: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor whose rows a tensor holds: up through nodes that only pick rows."""
    while tensor in makers and makers[tensor].op_type in ROWS:
        tensor = makers[tensor].input[0]
    return tensor


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """Values of initialisers and of what exporters put in their place: Constant, and Identity of a constant."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found
