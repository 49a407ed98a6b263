"""Canonical attention: separate Q, K, V maps of LN1(x) and one clean MatMul–Softmax–MatMul chain.

Every block is written this way, pruned or not, so that no reshape bakes a token count and every runtime sees the pattern it fuses.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.anatomy.projections import HeadNorm
from vitprune.graph.biasing import logit_bias
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.graph.turning import turned
from vitprune.graph.types import Tensor, redirect


def head_norm(emit: Emitter, x: Tensor, norm: HeadNorm, label: str) -> Tensor:
    """LayerNorm or RMSNorm over the last axis."""
    if norm.rms:
        squares = emit.reduce("ReduceMean", emit.op("Mul", [x, x], f"{label}/squares"), -1, f"{label}/mean", keepdims=1)
        length = emit.op(
            "Sqrt", [emit.op("Add", [squares, emit.constant(norm.epsilon, FLOAT)], f"{label}/floored")], f"{label}/length"
        )
        unit = emit.op("Div", [x, length], f"{label}/unit")
        return emit.op("Mul", [unit, emit.constant(norm.weight, FLOAT, f"{label}.weight")], label)
    bias = np.zeros_like(norm.weight) if norm.bias is None else norm.bias
    inputs = [x, emit.constant(norm.weight, FLOAT, f"{label}.weight"), emit.constant(bias, FLOAT, f"{label}.bias")]
    return emit.op("LayerNormalization", inputs, label, axis=-1, epsilon=norm.epsilon)


def scaled_query(block: Block) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and bias of the query map with the attention scale folded in (for blocks without q/k norm)."""
    factor, bias = np.float32(block.scale), block.query.bias
    return block.query.weight * factor, None if bias is None else bias * factor


def queries(emit: Emitter, block: Block, h: Tensor, label: str = "q") -> Tensor:
    """Scaled queries [B,M,H*d] of rows h [B,M,C]; the scale is folded into the weights unless q/k norm stands between.

    Rotary positions are not in them (see `graph.turning`).
    """
    if block.query_norm is None:
        return emit.linear(h, *scaled_query(block), label)
    flat = emit.linear(h, block.query.weight, block.query.bias, label)
    split = emit.op("Reshape", [flat, emit.constant([0, 0, block.heads, block.head_dim])], f"{label}/split")
    normed = head_norm(emit, split, block.query_norm, f"{label}/norm")
    scaled = emit.op("Mul", [normed, emit.constant(block.scale, FLOAT)], f"{label}/scale")
    return emit.op("Reshape", [scaled, emit.constant([0, 0, block.heads * block.head_dim])], f"{label}/merge")


def keys(emit: Emitter, block: Block, h: Tensor) -> Tensor:
    """Keys [B,N,H*d] of rows h [B,N,C], without rotary positions (see `graph.turning`)."""
    flat = emit.linear(h, block.key.weight, block.key.bias, "k")
    if block.key_norm is None:
        return flat
    split = emit.op("Reshape", [flat, emit.constant([0, 0, block.heads, block.head_dim])], "k/split")
    normed = head_norm(emit, split, block.key_norm, "k/norm")
    return emit.op("Reshape", [normed, emit.constant([0, 0, block.heads * block.head_dim])], "k/merge")


def values(emit: Emitter, block: Block, h: Tensor) -> Tensor:
    """Values [B,N,H*d] of rows h [B,N,C]."""
    return emit.linear(h, block.value.weight, block.value.bias, "v")


def _split(emit: Emitter, block: Block, x: Tensor, perm: list[int], label: str) -> Tensor:
    heads = emit.constant([0, 0, block.heads, block.head_dim])
    return emit.op("Transpose", [emit.op("Reshape", [x, heads], f"{label}/heads")], f"{label}/transpose", perm=perm)


def probabilities(
    surgery: Surgery, emit: Emitter, block: Block, query: Tensor, key: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Attention probabilities [B,H,M,N] of flat q [B,M,H*d] over flat k [B,N,H*d], both placed by `turned`; bias [B,1,1,N] or None."""
    bias = logit_bias(surgery, emit, block, query, key, bias)
    logits = emit.op(
        "MatMul", [_split(emit, block, query, [0, 2, 1, 3], "query"), _split(emit, block, key, [0, 2, 3, 1], "key")], "logits"
    )
    if bias is not None:
        logits = emit.op("Add", [logits, bias], "masked_logits")
    return emit.op("Softmax", [logits], "probabilities", axis=-1)


def weigh(emit: Emitter, block: Block, weights: Tensor, value: Tensor) -> Tensor:
    """Context [B,M,H*d]: probabilities [B,H,M,N] times flat values [B,N,H*d]."""
    context = emit.op("MatMul", [weights, _split(emit, block, value, [0, 2, 1, 3], "value")], "context/heads")
    rows = emit.op("Transpose", [context], "context/transpose", perm=[0, 2, 1, 3])
    return emit.op("Reshape", [rows, emit.constant([0, 0, block.heads * block.head_dim])], "context")


def attend(
    surgery: Surgery, emit: Emitter, block: Block, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Attention of flat q [B,M,H*d] over flat k, v [B,N,H*d]; bias [B,1,1,N] or None; returns context [B,M,H*d]."""
    return weigh(emit, block, probabilities(surgery, emit, block, query, key, bias), value)


def project(emit: Emitter, block: Block, context: Tensor) -> Tensor:
    """The block's output projection of context rows [B,M,H*d], behind a norm where there is one."""
    if block.context_norm is not None:
        context = head_norm(emit, context, block.context_norm, "context/norm")
    return emit.linear(context, block.projection.weight, block.projection.bias, "proj")


def replace_attention(
    surgery: Surgery, block: Block, projected: Tensor, x: Tensor | None = None, h: Tensor | None = None
) -> None:
    """Put a new projection output in the place of the old one.

    Args:
        surgery, block: where. projected: [B,M,C]. x, h: rows of the residual input and of LN1's output that are left, where rows have left.
    """
    surgery.replace(surgery.tensors[block.projected], projected)
    if block.beside is not None:
        assert (x is None) == (h is None), "an MLP beside the attention reads the rows that are left"
        emit = surgery.emitter.child(f"block{block.index}/mlp")
        rows = surgery.tensors[block.h] if h is None else h
        hidden = emit.linear(rows, block.beside.linear.weight, block.beside.linear.bias, "hidden")
        surgery.replace(surgery.tensors[block.beside.hidden], hidden)
    if x is not None:
        old = surgery.tensors[block.x]
        redirect([surgery.nodes[block.residual_node]], old, x)


def canonical(surgery: Surgery, block: Block) -> None:
    """Write a block without a site: all rows attend to all live keys."""
    emit = surgery.emitter.child(f"block{block.index}/attn")
    h = surgery.tensors[block.h]
    query = turned(surgery, emit, block, queries(emit, block, h), "q")
    key = turned(surgery, emit, block, keys(emit, block, h), "k")
    context = attend(surgery, emit, block, query, key, values(emit, block, h), surgery.bias)
    replace_attention(surgery, block, project(emit, block, context))


def start(surgery: Surgery, emit: Emitter, score: Tensor) -> None:
    """Before the first site: all patches are valid and numbered in order; score [B,P] lends its shape."""
    if surgery.valid is not None:
        return
    shape = emit.op("Shape", [score], "shape", dtype=INT64)
    none = emit.op("Cast", [emit.op("ConstantOfShape", [shape], "zeros", dtype=FLOAT)], "none", dtype=BOOL, to=9)
    surgery.valid = emit.op("Not", [none], "valid", dtype=BOOL)
    numbers = emit.constant(np.arange(surgery.anatomy.patches)[None])
    surgery.patch = emit.op("Expand", [numbers, shape], "all_patches", dtype=INT64)


def _prefix_rows(surgery: Surgery) -> Tensor:
    """Row numbers of the prefix tokens, int64 [B,prefix]; made once."""
    prefix, batch = surgery.anatomy.prefix, surgery.recipe.graph.static_batch
    if surgery.front is None:
        emit = surgery.emitter.child("prefix")
        if batch is not None:
            surgery.front = emit.constant(np.tile(np.arange(prefix), (batch, 1)))
        else:
            shape = emit.op("Shape", [surgery.graph.inputs[0]], "batch", dtype=INT64, start=0, end=1)
            full = emit.op("Concat", [shape, emit.constant([prefix])], "shape", dtype=INT64, axis=0)
            surgery.front = emit.op("Expand", [emit.constant(np.arange(prefix)[None]), full], "rows", dtype=INT64)
    return surgery.front


def _prefix_bias(surgery: Surgery) -> Tensor:
    """Zeros float32 [B,prefix]: prefix tokens are never hidden; made once."""
    if surgery.front_bias is None:
        emit = surgery.emitter.child("prefix")
        none = emit.op("Sub", [_prefix_rows(surgery), _prefix_rows(surgery)], "none", dtype=INT64)
        surgery.front_bias = emit.op("Cast", [none], "bias", to=1)
    return surgery.front_bias


def advance(surgery: Surgery, emit: Emitter, index: Tensor, keep: Tensor) -> None:
    """After a selection (index, keep [B,K]): patch numbers, valid slots and the kept list follow."""
    surgery.patch = emit.op("GatherElements", [surgery.slots.patch, index], "patch", dtype=INT64, axis=1)
    surgery.valid = keep
    surgery.kept.append(emit.op("Where", [keep, surgery.patch, emit.constant(-1)], "kept", dtype=INT64))


def update(surgery: Surgery, emit: Emitter, index: Tensor, keep: Tensor) -> Tensor:
    """After a selection (index, keep [B,K]): token rows [B,prefix+K,1] to gather; state, key bias and kept output follow."""
    advance(surgery, emit, index, keep)
    rows = token_rows(surgery, emit, index)
    if not surgery.single:
        missing = emit.op("Cast", [emit.op("Not", [keep], "bias/pad", dtype=BOOL)], "bias/pad_float", to=1)
        flat = emit.op("Mul", [missing, emit.constant(-1.0e4, FLOAT)], "bias/patches")
        if surgery.anatomy.prefix:
            flat = emit.op("Concat", [_prefix_bias(surgery), flat], "bias/flat", axis=1)
        surgery.bias = emit.op("Unsqueeze", [flat, emit.constant([1, 2])], "bias")
    return emit.op("Unsqueeze", [rows, emit.constant([2])], "rows/column", dtype=INT64)


def token_rows(surgery: Surgery, emit: Emitter, index: Tensor) -> Tensor:
    """Token rows [B,prefix+K] of the prefix and of patch slots index [B,K]."""
    prefix = surgery.anatomy.prefix
    if not prefix:
        return index
    behind = emit.op("Add", [index, emit.constant(prefix)], "rows/patches", dtype=INT64)
    return emit.op("Concat", [_prefix_rows(surgery), behind], "rows", dtype=INT64, axis=1)
