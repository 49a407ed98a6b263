"""Fused attention of ONNX Runtime (domain com.microsoft), written out as exporters write attention; masks are refused."""

from __future__ import annotations

import numpy as np

from vitprune.graph import types
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.normal.writing_out import given, nothing_else, refused
from vitprune.graph.types import Node, Tensor, dims


def _attend(emit: Emitter, parts: list[Tensor], heads: int, scale: float, width: int) -> Tensor:
    """Q, k, v [B,N,H*d] -> context [B,N,H*d], written as exporters do."""

    def split(x: Tensor, perm: list[int], label: str) -> Tensor:
        apart = emit.op("Reshape", [x, emit.constant([0, 0, heads, width // heads])], f"{label}/heads")
        return emit.op("Transpose", [apart], f"{label}/turned", perm=perm)

    query, key, value = (
        split(part, perm, label)
        for part, perm, label in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), "qkv", strict=True)
    )
    product = emit.op("Mul", [emit.op("MatMul", [query, key], "product"), emit.constant(scale, FLOAT)], "logits")
    weights = emit.op("Softmax", [product], "weights", axis=-1)
    context = emit.op("Transpose", [emit.op("MatMul", [weights, value], "context")], "context/turned", perm=[0, 2, 1, 3])
    return emit.op("Reshape", [context, emit.constant([0, 0, width])], "context/rows")


def attention(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Packed: input [B,N,C], weight [C,3*H*d], bias [3*H*d]."""
    nothing_else(node, 3, {"num_heads", "scale", "mask_filter_value"})
    weight = node.inputs[1]
    if not types.is_constant(weight):
        raise refused(node, "weights that are not constant")
    width, heads = int(list(dims(weight))[-1]) // 3, int(node.attrs["num_heads"])
    packed = emit.op("MatMul", [node.inputs[0], weight], "packed")
    bias = given(node, 2)
    packed = packed if bias is None else emit.op("Add", [packed, bias], "packed/biased")
    parts = [emit.slice(packed, part * width, (part + 1) * width, 2, "qkv"[part]) for part in range(3)]
    scale = float(node.attrs.get("scale") or (width // heads) ** -0.5)
    return [_attend(emit, parts, heads, scale, width), None]


def multi_head(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Separate: q, k, v [B,N,H*d], bias [3*H*d] or none."""
    nothing_else(node, 4, {"num_heads", "scale", "mask_filter_value"})
    if any(len(dims(tensor)) != 3 or not isinstance(dims(tensor)[2], int) for tensor in node.inputs[:3]):
        raise refused(node, "queries, keys and values other than three tensors [B,N,H*d] of known width")
    width, heads = int(dims(node.inputs[0])[2]), int(node.attrs["num_heads"])
    parts, bias = list(node.inputs[:3]), given(node, 3)
    if bias is not None:
        values = getattr(bias, "values", None)
        if values is None:
            raise refused(node, "a bias that is not constant")
        thirds = np.split(np.asarray(values), 3)
        parts = [
            emit.op("Add", [part, emit.constant(third, FLOAT)], f"biased{i}")
            for i, (part, third) in enumerate(zip(parts, thirds, strict=True))
        ]
    scale = float(node.attrs.get("scale") or (width // heads) ** -0.5)
    return [_attend(emit, parts, heads, scale, width), None, None]
