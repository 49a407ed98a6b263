"""Canonical attention: separate Q, K, V maps of LN1(x) and one clean MatMul–Softmax–MatMul chain.

Every block is written this way, pruned or not, so that no reshape bakes a token count and every runtime sees the pattern it fuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.anatomy.projections import HeadNorm
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery


def _head_norm(em: Emitter, x: Any, norm: HeadNorm, label: str) -> Any:
    """LayerNorm over the head dimension of [B,N,H,d]."""
    bias = np.zeros_like(norm.weight) if norm.bias is None else norm.bias
    inputs = [x, em.constant(norm.weight, FLOAT, f"{label}.weight"), em.constant(bias, FLOAT, f"{label}.bias")]
    return em.op("LayerNormalization", inputs, label, axis=-1, epsilon=norm.epsilon)


def scaled_query(block: Block) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and bias of the query map with the attention scale folded in (for blocks without q/k norm)."""
    factor, bias = np.float32(block.scale), block.query.bias
    return block.query.weight * factor, None if bias is None else bias * factor


def queries(em: Emitter, block: Block, h: Any, label: str = "q") -> Any:
    """Scaled queries [B,M,H*d] of rows h [B,M,C]; the scale is folded into the weights unless q/k norm stands between."""
    if block.query_norm is None:
        return em.linear(h, *scaled_query(block), label)
    flat = em.linear(h, block.query.weight, block.query.bias, label)
    split = em.op("Reshape", [flat, em.constant([0, 0, block.heads, block.head_dim])], f"{label}/split")
    normed = _head_norm(em, split, block.query_norm, f"{label}/norm")
    scaled = em.op("Mul", [normed, em.constant(block.scale, FLOAT)], f"{label}/scale")
    return em.op("Reshape", [scaled, em.constant([0, 0, block.heads * block.head_dim])], f"{label}/merge")


def keys(em: Emitter, block: Block, h: Any) -> Any:
    """Keys [B,N,H*d] of rows h [B,N,C]."""
    flat = em.linear(h, block.key.weight, block.key.bias, "k")
    if block.key_norm is None:
        return flat
    split = em.op("Reshape", [flat, em.constant([0, 0, block.heads, block.head_dim])], "k/split")
    normed = _head_norm(em, split, block.key_norm, "k/norm")
    return em.op("Reshape", [normed, em.constant([0, 0, block.heads * block.head_dim])], "k/merge")


def values(em: Emitter, block: Block, h: Any) -> Any:
    """Values [B,N,H*d] of rows h [B,N,C]."""
    return em.linear(h, block.value.weight, block.value.bias, "v")


def _split(em: Emitter, block: Block, x: Any, perm: list[int], label: str) -> Any:
    heads = em.constant([0, 0, block.heads, block.head_dim])
    return em.op("Transpose", [em.op("Reshape", [x, heads], f"{label}/heads")], f"{label}/transpose", perm=perm)


def probabilities(em: Emitter, block: Block, query: Any, key: Any, bias: Any = None) -> Any:
    """Attention probabilities [B,H,M,N] of flat q [B,M,H*d] over flat k [B,N,H*d]; bias [B,1,1,N] or None."""
    logits = em.op(
        "MatMul", [_split(em, block, query, [0, 2, 1, 3], "query"), _split(em, block, key, [0, 2, 3, 1], "key")], "logits"
    )
    if bias is not None:
        logits = em.op("Add", [logits, bias], "masked_logits")
    return em.op("Softmax", [logits], "probabilities", axis=-1)


def weigh(em: Emitter, block: Block, weights: Any, value: Any) -> Any:
    """Context [B,M,H*d]: probabilities [B,H,M,N] times flat values [B,N,H*d]."""
    context = em.op("MatMul", [weights, _split(em, block, value, [0, 2, 1, 3], "value")], "context/heads")
    rows = em.op("Transpose", [context], "context/transpose", perm=[0, 2, 1, 3])
    return em.op("Reshape", [rows, em.constant([0, 0, block.heads * block.head_dim])], "context")


def attend(em: Emitter, block: Block, query: Any, key: Any, value: Any, bias: Any = None) -> Any:
    """Attention of flat q [B,M,H*d] over flat k, v [B,N,H*d]; bias [B,1,1,N] or None; returns context [B,M,H*d]."""
    return weigh(em, block, probabilities(em, block, query, key, bias), value)


def project(em: Emitter, block: Block, context: Any) -> Any:
    """The block's output projection of context rows."""
    return em.linear(context, block.projection.weight, block.projection.bias, "proj")


def replace_attention(surgery: Surgery, block: Block, projected: Any, x: Any = None) -> None:
    """Put a new projection output in the place of the old one; x, if given, becomes the residual input."""
    surgery.replace(surgery.tensors[block.projected], projected)
    if x is not None:
        old = surgery.tensors[block.x]
        node = surgery.nodes[block.residual_node]
        node.inputs = [x if tensor is old else tensor for tensor in node.inputs]


def canonical(surgery: Surgery, block: Block) -> None:
    """Write a block without a site: all rows attend to all live keys."""
    em = surgery.emitter.child(f"block{block.index}/attn")
    h = surgery.tensors[block.h]
    context = attend(em, block, queries(em, block, h), keys(em, block, h), values(em, block, h), surgery.bias)
    replace_attention(surgery, block, project(em, block, context))


def start(surgery: Surgery, em: Emitter, score: Any) -> None:
    """Before the first site: all patches are valid and numbered in order; score [B,P] lends its shape."""
    if surgery.valid is not None:
        return
    shape = em.op("Shape", [score], "shape", dtype=INT64)
    none = em.op("Cast", [em.op("ConstantOfShape", [shape], "zeros", dtype=FLOAT)], "none", dtype=BOOL, to=9)
    surgery.valid = em.op("Not", [none], "valid", dtype=BOOL)
    numbers = em.constant(np.arange(surgery.anatomy.patches)[None])
    surgery.patch = em.op("Expand", [numbers, shape], "all_patches", dtype=INT64)


def _prefix_rows(surgery: Surgery) -> Any:
    """Row numbers of the prefix tokens, int64 [B,prefix]; made once."""
    prefix, batch = surgery.anatomy.prefix, surgery.recipe.graph.static_batch
    if surgery.front is None:
        em = surgery.emitter.child("prefix")
        if batch is not None:
            surgery.front = em.constant(np.tile(np.arange(prefix), (batch, 1)))
        else:
            shape = em.op("Shape", [surgery.graph.inputs[0]], "batch", dtype=INT64, start=0, end=1)
            full = em.op("Concat", [shape, em.constant([prefix])], "shape", dtype=INT64, axis=0)
            surgery.front = em.op("Expand", [em.constant(np.arange(prefix)[None]), full], "rows", dtype=INT64)
    return surgery.front


def _prefix_bias(surgery: Surgery) -> Any:
    """Zeros float32 [B,prefix]: prefix tokens are never hidden; made once."""
    if surgery.front_bias is None:
        em = surgery.emitter.child("prefix")
        none = em.op("Sub", [_prefix_rows(surgery), _prefix_rows(surgery)], "none", dtype=INT64)
        surgery.front_bias = em.op("Cast", [none], "bias", to=1)
    return surgery.front_bias


def update(surgery: Surgery, em: Emitter, index: Any, keep: Any) -> Any:
    """After a selection (index, keep [B,K]): token rows [B,prefix+K,1] to gather; state, key bias and kept output follow."""
    surgery.patch = em.op("GatherElements", [surgery.patch, index], "patch", dtype=INT64, axis=1)
    surgery.valid = keep
    surgery.kept.append(em.op("Where", [keep, surgery.patch, em.constant(-1)], "kept", dtype=INT64))
    rows = token_rows(surgery, em, index)
    if not surgery.single:
        missing = em.op("Cast", [em.op("Not", [keep], "bias/pad", dtype=BOOL)], "bias/pad_float", to=1)
        flat = em.op("Mul", [missing, em.constant(-1.0e4, FLOAT)], "bias/patches")
        if surgery.anatomy.prefix:
            flat = em.op("Concat", [_prefix_bias(surgery), flat], "bias/flat", axis=1)
        surgery.bias = em.op("Unsqueeze", [flat, em.constant([1, 2])], "bias")
    return em.op("Unsqueeze", [rows, em.constant([2])], "rows/column", dtype=INT64)


def token_rows(surgery: Surgery, em: Emitter, index: Any) -> Any:
    """Token rows [B,prefix+K] of the prefix and of patch slots index [B,K]."""
    prefix = surgery.anatomy.prefix
    if not prefix:
        return index
    behind = em.op("Add", [index, em.constant(prefix)], "rows/patches", dtype=INT64)
    return em.op("Concat", [_prefix_rows(surgery), behind], "rows", dtype=INT64, axis=1)


def attention_chains(surgery: Surgery, shared: int = 0) -> str:
    """Check that every block has exactly one MatMul–(Add)–Softmax–MatMul chain without other readers, save `shared` blocks."""
    clean = 0
    for node in surgery.graph.nodes:
        if node.op == "Softmax" and node.attrs.get("axis") == -1 and node.name.endswith("/probabilities"):
            reader = node.outputs[0].outputs
            above = node.inputs[0].inputs[0]
            above = above.inputs[0].inputs[0] if above.op == "Add" else above
            clean += len(reader) == 1 and reader[0].op == "MatMul" and above.op == "MatMul" and len(above.outputs[0].outputs) == 1
    wanted = len(surgery.anatomy.blocks) - shared
    return "" if clean == wanted else f"{clean} clean attention chains for {wanted} blocks"
