"""Models whose TokenSample is an operator: its function, which says what it does, is left out."""

from __future__ import annotations

import onnx

from vitprune.ops.token_sample import NAME


def without_sampling(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without TokenSample's function, for whoever has the operator of that name. Shapes of its outputs are stated."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [body for body in copy.functions if body.name != NAME]
    del copy.functions[:]
    copy.functions.extend(kept)
    for number, node in enumerate(node for node in copy.graph.node if node.op_type == NAME):
        for name, kind in zip(node.output[:2], (onnx.TensorProto.INT64, onnx.TensorProto.BOOL), strict=True):
            stated = [value for value in copy.graph.value_info if value.name == name]
            if any(value.type.tensor_type.HasField("shape") for value in stated):
                continue
            for value in stated:
                copy.graph.value_info.remove(value)
            shape = [f"images_{number}", f"kept_{number}"]
            copy.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    return copy
