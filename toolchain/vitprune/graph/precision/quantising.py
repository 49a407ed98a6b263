"""Explicit quantisation: QuantizeLinear and DequantizeLinear on the inputs of linear maps, their weights in int8 or FP8.

Activations have one scale per layer, weights one per output channel, zero points are 0: the form that TensorRT's builders fuse into
one product. A scale is the largest number over what the type's largest number is; biases stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitprune.graph.precision.linears import LinearMap
from vitprune.graph.protos import drop_unread, replace_nodes
from vitprune.support.precision import LARGEST

TYPES = {"int8": int(TensorProto.INT8), "fp8": int(TensorProto.FLOAT8E4M3FN)}
OPSET = {"int8": 17, "fp8": 19}  # the first that has the type


def quantised_weight(weight: NDArray[np.float32], axis: int, mode: str) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Weights [.,.] in a type, and one scale per channel of `axis`; a channel of zeros has scale 1."""
    most = np.abs(weight).max(axis=1 - axis)
    scale = np.where(most > 0, most / np.float32(LARGEST[mode]), 1).astype(np.float32)
    steps = weight / np.expand_dims(scale, 1 - axis)
    if mode == "int8":
        return np.clip(np.rint(steps), -127, 127).astype(np.int8), scale
    return np.clip(steps, -LARGEST[mode], LARGEST[mode]).astype(ml_dtypes.float8_e4m3fn), scale


def insert(model: onnx.ModelProto, maps: Sequence[LinearMap], ranges: Mapping[str, float], mode: str) -> onnx.ModelProto:
    """The model with these linear maps quantised.

    Args:
        model: float32; not changed. maps: of `linear_maps`. ranges: largest input by layer. mode: "int8" or "fp8".

    Returns:
        A model whose named products still compute in float32 as ONNX reads it, on numbers of the type.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    wanted = {one.node: one for one in maps}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, TensorProto] = {}
    written: list[onnx.NodeProto] = []
    known: set[str] = set()

    def constant(name: str, values: NDArray[np.generic]) -> str:
        made.setdefault(name, numpy_helper.from_array(np.asarray(values), name))
        return name

    def data(one: LinearMap) -> str:
        base = f"{one.data}/{one.layer}"
        if base not in known:
            known.add(base)
            scale = constant(f"{one.layer}/scale", np.asarray(ranges[one.layer] / LARGEST[mode], np.float32))
            zero = constant(f"{mode}/zero", np.zeros((), np.int8 if mode == "int8" else ml_dtypes.float8_e4m3fn))
            written.append(helper.make_node("QuantizeLinear", [one.data, scale, zero], [f"{base}/q"], name=f"{base}/quantize"))
            written.append(
                helper.make_node("DequantizeLinear", [f"{base}/q", scale, zero], [f"{base}/dq"], name=f"{base}/dequantize")
            )
        return f"{base}/dq"

    def weights(one: LinearMap) -> str:
        base = f"{one.weight}/{mode}/{one.out_axis}"
        if base not in known:
            known.add(base)
            values, scale = quantised_weight(numpy_helper.to_array(stored[one.weight]), one.out_axis, mode)
            inputs = [constant(base, values), constant(f"{base}/scale", scale)]
            written.append(
                helper.make_node("DequantizeLinear", inputs, [f"{base}/dq"], name=f"{base}/dequantize", axis=one.out_axis)
            )
        return f"{base}/dq"

    for node in graph.node:
        if node.name in wanted:
            node.input[0], node.input[1] = data(wanted[node.name]), weights(wanted[node.name])
        written.append(node)
    replace_nodes(graph, written)
    graph.initializer.extend(made.values())
    drop_unread(graph)
    return result
