"""From one tensor of a block to another, up and down, over what only moves, norms or scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vitprune.graph.anatomy.projections import (
    PASS_THROUGH,
    RESHAPING,
    HeadNorm,
    Linear,
    data_input,
    fail,
    linear_above,
    producer,
)
from vitprune.graph.anatomy.static import scalar_of, value_of

LARGEST_BIAS = 1e3  # what is larger hides a key and is a mask


def only_consumer(tensor: Any, index: int | None) -> gs.Node:
    """The one node that reads a tensor; more are an error."""
    if len(tensor.outputs) != 1:
        raise fail(index, f"tensor '{tensor.name}'", f"one reader, found {len(tensor.outputs)}")
    return tensor.outputs[0]


def down_to_projection(node: gs.Node, index: int | None) -> tuple[Linear, Any, HeadNorm | None]:
    """From A·V down to the projection: linear, output tensor [B,N,C], norm before it."""
    tensor, norm = node.outputs[0], None
    for _ in range(8):
        node = only_consumer(tensor, index)
        if node.op in RESHAPING:
            tensor = node.outputs[0]
        elif node.op in ("MatMul", "Gemm"):
            output = node.outputs[0]
            after = only_consumer(output, index)
            if after.op == "Add" and any(value_of(t) is not None for t in after.inputs):
                output = after.outputs[0]
            linear, output = linear_above(output), _moved(output)
            if linear is None or len(output.shape or ()) != 3:
                raise fail(index, node, "a projection with constant weights to rows [B,N,C]")
            return linear, output, norm
        elif node.op == "LayerNormalization" and norm is None and (weight := value_of(node.inputs[1])) is not None:
            bias = value_of(node.inputs[2]) if len(node.inputs) > 2 else None
            norm, tensor = HeadNorm(weight, bias, float(node.attrs.get("epsilon", 1e-5))), node.outputs[0]
        else:
            raise fail(index, node, "only reshapes between A·V and the projection (gates are not supported)")
    raise fail(index, node, "the projection after A·V")


def _moved(tensor: Any) -> Any:
    """Down through what only moves values, as nn.MultiheadAttention does to put the batch first again."""
    while len(tensor.outputs) == 1 and tensor.outputs[0].op in RESHAPING:
        tensor = tensor.outputs[0].outputs[0]
    return tensor


def before_moves(tensor: Any, rows: list[int] | None = None) -> Any:
    """Up through what only moves values: the rows that queries, keys and values are made of, as the norm leaves them.

    With `rows`, no further than to a tensor [B,N,C] with these B and N.
    """
    while rows is None or len(tensor.shape or ()) != 3 or list(tensor.shape)[:2] != rows:
        node = producer(tensor)
        if node is None or node.op not in RESHAPING:
            break
        tensor = node.inputs[0]
    return tensor


def down_to_residual(tensor: Any, index: int) -> gs.Node:
    """The residual Add below a branch output (LayerScale or a norm in between is fine)."""
    for _ in range(8):
        node = only_consumer(tensor, index)
        live = [t for t in node.inputs if value_of(t) is None]
        if node.op == "Add" and len(live) == 2:
            return node
        if node.op in PASS_THROUGH | {"LayerNormalization"} or (node.op == "Mul" and len(live) == 1):
            tensor = node.outputs[0]
        else:
            raise fail(index, node, "LayerScale, a norm or the residual sum after the projection")
    raise fail(index, f"tensor '{tensor.name}'", "a residual sum")


def tensor_named(name: str, below: gs.Node) -> Any:
    """Find a tensor by name among the ancestors of a node."""
    frontier, seen = list(below.inputs), set()
    while frontier:
        tensor = frontier.pop(0)
        if tensor.name == name:
            return tensor
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        node = producer(tensor)
        if node is not None:
            frontier.extend(node.inputs)
    raise KeyError(name)


def ancestors_within(top: Any, bottom: gs.Node) -> set[str]:
    """Names of the tensors from `top` down to the inputs of `bottom`."""
    names, frontier = {top.name}, [top]
    while frontier:
        for node in frontier.pop().outputs:
            if node is not bottom:
                for output in node.outputs:
                    if output.name not in names:
                        names.add(output.name)
                        frontier.append(output)
    return names


def _pairs(table: np.ndarray, softmax: gs.Node, index: int | None, node: gs.Node) -> np.ndarray:
    """Constants on attention logits as float32 [H or 1,M,N]."""
    rows, columns = (int(size) for size in softmax.outputs[0].shape[-2:])
    table = np.asarray(table, np.float32)
    if table.ndim == 4 and (table == table[:1]).all():
        table = table[0]
    if not np.isfinite(table).all() or np.abs(table).max() > LARGEST_BIAS:
        raise fail(
            index, node, f"position biases that are numbers below {LARGEST_BIAS:g} (masks that hide keys are not supported)"
        )
    if table.ndim < 2 or table.ndim > 3 or table.shape[-2:] != (rows, columns):
        raise fail(
            index, node, f"position biases of {rows} x {columns} pairs, the same for every image, found {list(table.shape)}"
        )
    return table.reshape(-1, rows, columns)


def attention_product(softmax: gs.Node, index: int | None) -> tuple[gs.Node, float, np.ndarray | None]:
    """The Q·Kᵀ MatMul above a Softmax, the scale between them, and what is added to the logits for each pair of tokens, [H or 1,M,N] or None.

    Raises:
        ExportError: VP322 anything else between them, numbers that hide keys among them.
    """
    tensor, scale = softmax.inputs[0], 1.0
    bias: np.ndarray | None = None
    for _ in range(8):
        node = producer(tensor)
        if node is None:
            break
        if node.op == "MatMul":
            return node, scale, bias
        if node.op in ("Mul", "Div") and any(scalar_of(t) is not None for t in node.inputs):
            factor = next(s for t in node.inputs if (s := scalar_of(t)) is not None)
            scale *= factor if node.op == "Mul" else 1 / factor
            tensor = data_input(node)
        elif node.op in PASS_THROUGH:
            tensor = node.inputs[0]
        elif node.op == "Add" and (table := next((v for t in node.inputs if (v := value_of(t)) is not None), None)) is not None:
            if table.any():
                added = _pairs(table, softmax, index, node) * np.float32(scale)
                bias = added if bias is None else bias + added
            tensor = data_input(node)
        else:
            raise fail(index, node, "Q·Kᵀ, scaled, and constant position biases before Softmax (masks are not supported)")
    raise fail(index, softmax, "a MatMul of queries and keys above Softmax")
