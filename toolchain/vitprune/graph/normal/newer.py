"""Operators that ONNX has since opset 23, written out in those of the opsets that targets take.

Attention, RotaryEmbedding and RMSNormalization as ONNX's operator schemas define them (opset 23; 24 adds inputs, which are refused).
"""

from __future__ import annotations

import numpy as np
import onnx

from vitprune.graph import held, types
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.normal.writing_out import STANDARD, Writer, given, nothing_else, refused, replace, rms
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Node, Tensor, dims


def write_out(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The same graph without these operators, and how many of each were written out.

    Raises:
        ExportError: VP334 a past, shared heads, or another form that is not understood.
    """
    if not any(node.op_type in _WRITERS and node.domain in STANDARD for node in model.graph.node):
        return model, {}
    bare, weights = held.parted(model)
    graph = held.attached(held.inferred(bare), weights)
    emit, counts = Emitter(graph, "newer"), dict[str, int]()
    for node in [node for node in graph.nodes if node.op in _WRITERS and node.domain in STANDARD]:
        replace(graph, node, _WRITERS[node.op], emit.child(node.name))
        counts[node.op] = counts.get(node.op, 0) + 1
    graph.cleanup(remove_unused_graph_inputs=False)
    toposort(graph)
    made = held.rebuilt(graph)
    del made.graph.value_info[:]
    made.ir_version = model.ir_version
    return made, counts


def _rank(node: Node, tensor: Tensor) -> int:
    found = dims(tensor)
    if len(found) not in (3, 4):
        raise refused(node, f"rows [B,N,H*d] or heads [B,H,N,d] were expected, '{tensor.name}' is {list(found)}")
    return len(found)


def _width(node: Node, tensor: Tensor) -> int:
    last = dims(tensor)[-1]
    if not isinstance(last, int):
        raise refused(node, f"the width of '{tensor.name}' is not known")
    return last


def _heads(emit: Emitter, node: Node, tensor: Tensor, heads: int, label: str) -> Tensor:
    """[B,H,N,d] of the same, or of [B,N,H*d]."""
    if _rank(node, tensor) == 4:
        return tensor
    if heads < 1:
        raise refused(node, "rows [B,N,H*d] without a number of heads")
    apart = emit.op("Reshape", [tensor, emit.constant([0, 0, heads, _width(node, tensor) // heads])], f"{label}/heads")
    return emit.op("Transpose", [apart], f"{label}/turned", perm=[0, 2, 1, 3])


def _count(node: Node, tensor: Tensor, attribute: str) -> int:
    """How many heads a tensor has."""
    stated = int(node.attrs.get(attribute, 0))
    if _rank(node, tensor) == 3:
        return stated
    found = dims(tensor)[1]
    return found if isinstance(found, int) else stated


def attention(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Q, K, V [B,H,N,d] or [B,N,H*d], a mask to be added, or of truth values; softmax(scale QK' + mask) V, laid out as Q is."""
    nothing_else(node, 4, {"scale", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "softmax_precision"})
    heads, others = _count(node, node.inputs[0], "q_num_heads"), _count(node, node.inputs[1], "kv_num_heads")
    if heads != others:
        raise refused(node, f"{heads} heads of queries share {others} heads of keys and values")
    query, key, value = (_heads(emit, node, tensor, heads, label) for tensor, label in zip(node.inputs[:3], "qkv", strict=True))
    width = _width(node, node.inputs[0]) // (heads if _rank(node, node.inputs[0]) == 3 else 1)
    scale = float(node.attrs.get("scale") or width**-0.5)
    turned = emit.op("Transpose", [key], "k/columns", perm=[0, 1, 3, 2])
    logits = emit.op("Mul", [emit.op("MatMul", [query, turned], "product"), emit.constant(scale, FLOAT)], "logits")
    if (mask := given(node, 3)) is not None:
        if mask.dtype == np.bool_:  # true: the key is seen
            hidden = emit.constant(-np.inf, FLOAT)
            mask = emit.op("Where", [mask, emit.constant(0.0, FLOAT), hidden], "mask")
        elif mask.dtype != FLOAT:
            raise refused(node, "a mask of neither truth values nor float32 numbers")
        logits = emit.op("Add", [logits, mask], "masked")
    context = emit.op("MatMul", [emit.op("Softmax", [logits], "weights", axis=-1), value], "context")
    if _rank(node, node.inputs[0]) == 3:
        rows = emit.op("Transpose", [context], "context/turned", perm=[0, 2, 1, 3])
        context = emit.op("Reshape", [rows, emit.constant([0, 0, -1])], "context/rows")
    return [context]


def rotary(emit: Emitter, node: Node) -> list[Tensor | None]:
    """X [B,H,N,d] or [B,N,H*d]; tables [M,r/2] with row numbers [B,N], or [B,N,r/2]; the first r channels of each head are rotated."""
    nothing_else(node, 4, {"interleaved", "num_heads", "rotary_embedding_dim"})
    x = _heads(emit, node, node.inputs[0], int(node.attrs.get("num_heads", 0)), "x")
    width = _width(node, node.inputs[0]) // (int(node.attrs["num_heads"]) if _rank(node, node.inputs[0]) == 3 else 1)
    turned = int(node.attrs.get("rotary_embedding_dim", 0)) or width
    numbers = given(node, 3)
    tables = [one if numbers is None else emit.op("Gather", [one, numbers], f"t{i}") for i, one in enumerate(node.inputs[1:3])]
    cos, sin = (emit.op("Unsqueeze", [one, emit.constant([1])], f"t{i}/heads") for i, one in enumerate(tables))
    part = x if turned == width else emit.slice(x, 0, turned, 3, "part")
    if node.attrs.get("interleaved", 0):
        pairs = emit.op("Reshape", [part, emit.constant([0, 0, 0, turned // 2, 2])], "pairs")
        first, second = (emit.op("Gather", [pairs, emit.constant(i)], f"x{i}", axis=4) for i in range(2))
    else:
        first, second = (emit.slice(part, i * turned // 2, (i + 1) * turned // 2, 3, f"x{i}") for i in range(2))
    products = {
        f"{name}{i}": emit.op("Mul", [half, table], f"{name}{i}")
        for name, table in (("cos", cos), ("sin", sin))
        for i, half in enumerate((first, second))
    }
    real = emit.op("Sub", [products["cos0"], products["sin1"]], "real")
    imaginary = emit.op("Add", [products["sin0"], products["cos1"]], "imaginary")
    if node.attrs.get("interleaved", 0):
        apart = [emit.op("Unsqueeze", [one, emit.constant([-1])], f"y{i}") for i, one in enumerate((real, imaginary))]
        made = emit.op("Reshape", [emit.op("Concat", apart, "y", axis=4), emit.constant([0, 0, 0, turned])], "y/channels")
    else:
        made = emit.op("Concat", [real, imaginary], "y", axis=3)
    if turned != width:
        made = emit.op("Concat", [made, emit.slice(x, turned, None, 3, "rest")], "whole", axis=3)
    if _rank(node, node.inputs[0]) == 3:
        rows = emit.op("Transpose", [made], "turned", perm=[0, 2, 1, 3])
        made = emit.op("Reshape", [rows, emit.constant([0, 0, -1])], "rows")
    return [made]


def rms_norm(emit: Emitter, node: Node) -> list[Tensor | None]:
    """X / sqrt(mean(x^2) + epsilon) * scale over the last axis."""
    nothing_else(node, 2, {"axis", "epsilon", "stash_type"})
    rank, axis = len(dims(node.inputs[0])), int(node.attrs.get("axis", -1))
    if axis not in (-1, rank - 1):
        raise refused(node, "a norm over another axis than the last")
    if not types.is_constant(node.inputs[1]):
        raise refused(node, "weights that are not constant")
    return [rms(emit, node.inputs[0], node.inputs[1], float(node.attrs.get("epsilon", 1e-5)))]


_WRITERS: dict[str, Writer] = {"Attention": attention, "RotaryEmbedding": rotary, "RMSNormalization": rms_norm}
