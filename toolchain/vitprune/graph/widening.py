"""Graphs that come in a half type: the same operators in float32, so that the anatomy, the passes and the reference see one type."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from vitprune.support.onnx_types import HALF


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without half types: weights as they are, now float32, Casts to a half type to float32; the model itself if it has none.

    The result rounds nowhere, so it is not what the given model computes, but what that one approximates.
    """
    if not _has_half(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type in HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in result.graph.initializer:
        _widen(tensor)
    for node in result.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALF:
                attribute.i = TensorProto.FLOAT
    del result.graph.value_info[:]
    return result


def _has_half(model: onnx.ModelProto) -> bool:
    graph = model.graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    kinds |= {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                kinds.add(attribute.t.data_type)
            elif node.op_type == "Cast" and attribute.name == "to":
                kinds.add(attribute.i)
    return any(kind in kinds for kind in HALF)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
