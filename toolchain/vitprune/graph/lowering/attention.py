"""Attention as the one node that ONNX Runtime has for it (com.microsoft.MultiHeadAttention), or the native library (KeyBiasAttention)."""

from __future__ import annotations

import numpy as np

from vitprune.graph import types
from vitprune.graph.anatomy.static import value_of
from vitprune.graph.types import Graph, Node, Tensor
from vitprune.ops.sites import KEY_BIAS_ATTENTION
from vitprune.ops.token_sample import DOMAIN

CONTRIB = "com.microsoft"


def above(tensor: Tensor, *kinds: str) -> Node | None:
    """The node that makes a tensor if it is one of these operators, else None."""
    node = tensor.inputs[0] if tensor.inputs else None
    return node if node is not None and node.op in kinds else None


def _flat_heads(tensor: Tensor, perm: list[int]) -> tuple[Tensor, int] | None:
    """Undo Reshape [B,N,H,d] + Transpose: the flat tensor [B,N,H*d] and H."""
    transpose = above(tensor, "Transpose")
    reshape = above(transpose.inputs[0], "Reshape") if transpose is not None and transpose.attrs.get("perm") == perm else None
    shape = value_of(reshape.inputs[1]) if reshape is not None else None
    return None if reshape is None or shape is None or len(shape) != 4 else (reshape.inputs[0], int(shape[2]))


def fuse_attention(graph: Graph, masks: dict[int, Tensor], native: bool = False) -> int:
    """Canonical chains -> one node each; returns how many.

    Args:
        graph: changed in place. masks: key padding masks int32 [B,N] that exist, by the id of the bias they stand for; others are added.
        native: the native library is there: keys with values of their own (pads, log(size) of merged rows) meet its attention in float32.
    """
    made = 0
    for softmax in [node for node in graph.nodes if node.op == "Softmax" and node.name.endswith("/probabilities")]:
        add = above(softmax.inputs[0], "Add")
        bias = add.inputs[1] if add is not None else None
        logits = above(add.inputs[0] if add is not None else softmax.inputs[0], "MatMul")
        context = softmax.outputs[0].outputs[0]
        if logits is None or context.op != "MatMul" or len(softmax.inputs[0].outputs) > 1:
            continue  # logits that something else reads, too, have to be computed anyway
        query, key, value = (
            _flat_heads(logits.inputs[0], [0, 2, 1, 3]),
            _flat_heads(logits.inputs[1], [0, 2, 3, 1]),
            _flat_heads(context.inputs[1], [0, 2, 1, 3]),
        )
        merge = context.outputs[0].outputs[0]
        flat = merge.outputs[0].outputs[0] if merge.op == "Transpose" else None
        if query is None or key is None or value is None or flat is None or flat.op != "Reshape":
            continue
        inputs = [query[0], key[0], value[0]]
        floats = native and all(tensor.dtype == np.float32 for tensor in inputs)
        by_key = _by_key(bias, masks) if floats and bias is not None else None
        own = by_key is not None
        if by_key is not None:
            inputs += by_key
        elif bias is not None:
            inputs += _runtimes(graph, bias, masks, query[0], softmax.name)
        output = flat.outputs[0]
        flat.outputs.clear()
        attributes = {"num_heads": query[1], "scale": 1.0}
        kind, domain = (KEY_BIAS_ATTENTION, DOMAIN) if own else ("MultiHeadAttention", CONTRIB)
        if not own:
            attributes["mask_filter_value"] = -10000.0
        graph.nodes.append(
            types.node(kind, name=f"{softmax.name}/fused", attrs=attributes, inputs=inputs, outputs=[output], domain=domain)
        )
        made += 1
    return made


def _by_key(bias: Tensor, masks: dict[int, Tensor]) -> list[Tensor] | None:
    """Bias [B,N] and mask of KeyBiasAttention; None where a query has values of its own."""
    if id(bias) in masks:
        return [types.absent(), masks[id(bias)]]
    flat = above(bias, "Unsqueeze")
    return None if flat is None else [flat.inputs[0]]


def _runtimes(graph: Graph, bias: Tensor, masks: dict[int, Tensor], query: Tensor, name: str) -> list[Tensor]:
    """What MultiHeadAttention has for a bias, from its third input on: nothing for a linear map's, a padding mask, values to add."""
    if id(bias) in masks:
        return [types.absent(), masks[id(bias)]]
    if _is_sized(bias):
        return [types.absent(), types.absent(), _row_bias(graph, bias, query, name)]
    if above(bias, "Unsqueeze") is None:
        return [types.absent(), types.absent(), bias]  # one value per query and key, not a padding mask
    return [types.absent(), _padding_mask(graph, bias, masks)]


def _is_sized(bias: Tensor) -> bool:
    """Whether a key bias holds log(size) of merged rows: it is no mask, its values count."""
    flat = above(bias, "Unsqueeze")
    if flat is not None and flat.inputs[0].inputs and flat.inputs[0].inputs[0].domain == DOMAIN:
        return True  # of a merging operator
    source = above(flat.inputs[0], "Log", "Add") if flat is not None else None
    return source is not None and (source.op == "Log" or any(above(tensor, "Log") is not None for tensor in source.inputs))


def _row_bias(graph: Graph, bias: Tensor, query: Tensor, name: str) -> Tensor:
    """Key bias [B,1,1,N] repeated for every query row: [B,1,M,N], the smallest form MultiHeadAttention takes."""
    one = types.constant(f"{name}/one", np.asarray([1], np.int64))
    ones = types.constant(f"{name}/ones", np.asarray([1, 1], np.int64))
    rows = types.variable(f"{name}/rows", dtype=np.int64)
    shape = types.variable(f"{name}/bias_shape", dtype=np.int64)
    wide = types.variable(f"{name}/row_bias", dtype=np.float32)
    graph.nodes.append(types.node("Shape", name=rows.name, attrs={"start": 1, "end": 2}, inputs=[query], outputs=[rows]))
    graph.nodes.append(types.node("Concat", name=shape.name, attrs={"axis": 0}, inputs=[ones, rows, one], outputs=[shape]))
    graph.nodes.append(types.node("Expand", name=wide.name, inputs=[bias, shape], outputs=[wide]))
    return wide


def _padding_mask(graph: Graph, bias: Tensor, masks: dict[int, Tensor]) -> Tensor:
    """int32 [B,N], 1 where the additive bias [B,1,1,N] is zero; one per bias."""
    if id(bias) not in masks:
        flat = above(bias, "Unsqueeze")
        assert flat is not None
        zero = types.constant(f"{bias.name}/half", np.asarray(-0.5, np.float32))
        live = types.variable(f"{bias.name}/live", dtype=np.bool_)
        mask = types.variable(f"{bias.name}/mask", dtype=np.int32)
        graph.nodes.append(types.node("Greater", name=live.name, inputs=[flat.inputs[0], zero], outputs=[live]))
        graph.nodes.append(types.node("Cast", name=mask.name, attrs={"to": 6}, inputs=[live], outputs=[mask]))
        masks[id(bias)] = mask
    return masks[id(bias)]
