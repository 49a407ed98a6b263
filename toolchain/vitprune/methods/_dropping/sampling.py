"""The `TokenSample` node and the score branches that feed it."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from vitprune.graph.anatomy.find import Block
from vitprune.graph.biasing import cls_bias
from vitprune.graph.canonical import probabilities, queries, scaled_query
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.graph.turning import turned
from vitprune.graph.types import Shape, Tensor
from vitprune.methods.base import SamplingOptions, Site
from vitprune.ops.function import BODY_OPSET, function
from vitprune.ops.token_sample import DOMAIN, NAME


def head_indicator(block: Block) -> np.ndarray:
    """[H*d, H]: column h is one on the channels of head h."""
    return np.repeat(np.eye(block.heads, dtype=np.float32), block.head_dim, axis=0)


def cls_query(emit: Emitter, block: Block, h: Tensor) -> Tensor:
    """Scaled query of the CLS token, [B,H*d], or [B,1,H*d] behind a query norm."""
    if block.query_norm is None:
        return emit.linear(emit.op("Gather", [h, emit.constant(0)], "cls", axis=1), *scaled_query(block), "cls_query")
    return queries(emit, block, emit.slice(h, 0, 1, 1, "cls"), "cls_query")


def cls_attention(
    surgery: Surgery, emit: Emitter, block: Block, h: Tensor, key: Tensor, bias: Tensor | None, query: Tensor | None = None
) -> Tensor:
    """CLS row of the attention probabilities, [B,N,H], by its own small product so that the main chain has no second reader.

    The product runs on flat keys [B,N,H*d] against a block-diagonal query, which spares a transposed copy of the keys. query: what
    `cls_query` made, None = make it here.
    """
    flat = cls_query(emit, block, h) if query is None else query
    if block.query_norm is None:
        column = emit.op("Unsqueeze", [flat, emit.constant([2])], "cls_query/column")
    else:
        column = emit.op("Transpose", [flat], "cls_query/column", perm=[0, 2, 1])
    spread = emit.op("Mul", [column, emit.constant(head_indicator(block), FLOAT)], "cls_query/heads")
    logits = emit.op("MatMul", [key, spread], "cls_logits")
    if block.position_bias is not None:
        logits = emit.op("Add", [logits, cls_bias(surgery, emit, block, key, "cls_positions")], "cls_placed")
    if bias is not None:
        logits = emit.op(
            "Add",
            [
                logits,
                emit.op(
                    "Squeeze", [emit.op("Transpose", [bias], "bias/rows", perm=[0, 3, 1, 2]), emit.constant([2])], "bias/column"
                ),
            ],
            "cls_masked",
        )
    return emit.op("Softmax", [logits], "cls_row", axis=1)


def received(surgery: Surgery, emit: Emitter, block: Block, h: Tensor, key: Tensor) -> Tensor:
    """Mean attention every token receives from those that are there, [B,N,H], by products of its own; keys with their positions."""
    every = emit.child("all")
    query = turned(surgery, every, block, queries(every, block, h), "q")
    weights = probabilities(surgery, every, block, query, key, surgery.bias)
    if surgery.valid is None or surgery.single:
        mean = every.reduce("ReduceMean", weights, 2, "received")
    else:
        live = every.op("Cast", [surgery.valid], "asking/live", to=1)
        if prefix := surgery.anatomy.prefix:
            first = every.slice(live, 0, 1, 1, "asking/first")
            none = every.op("Mul", [first, every.constant(0.0, FLOAT)], "asking/none")
            front = every.op("Add", [none, every.constant(np.ones((1, prefix)), FLOAT)], "asking/prefix")
            live = every.op("Concat", [front, live], "asking/all", axis=1)
        share = every.op("Div", [live, every.op("ReduceSum", [live, every.constant([1])], "asking/count", keepdims=1)], "asking")
        column = every.op("Unsqueeze", [share, every.constant([1, 3])], "asking/column")
        mean = every.op("ReduceSum", [every.op("Mul", [weights, column], "asked"), every.constant([2])], "received", keepdims=0)
    return every.op("Transpose", [mean], "received/rows", perm=[0, 2, 1])


def _per_head(emit: Emitter, block: Block, row: Tensor, value: Tensor) -> Tensor:
    squares = emit.op(
        "MatMul",
        [emit.op("Mul", [value, value], "value/squares"), emit.constant(head_indicator(block), FLOAT)],
        "value/head_squares",
    )
    products = emit.op("Mul", [row, emit.op("Sqrt", [squares], "value/norms")], "products")
    return emit.op("ReduceSum", [products, emit.constant([2])], "score/all", keepdims=0)


def _pooled(emit: Emitter, block: Block, row: Tensor, value: Tensor) -> Tensor:
    squares = emit.op("ReduceSumSquare", [value, emit.constant([2])], "value/squares", keepdims=0)
    total = emit.op("ReduceSum", [row, emit.constant([2])], "cls_row/heads", keepdims=0)
    return emit.op("Mul", [total, emit.op("Sqrt", [squares], "value/norm")], "score/all")


def _attention(emit: Emitter, block: Block, row: Tensor, value: Tensor) -> Tensor:
    return emit.op("ReduceSum", [row, emit.constant([2])], "score/all", keepdims=0)


SCORES = {"per_head": _per_head, "pooled": _pooled, "attention": _attention}


def score(
    emit: Emitter,
    surgery: Surgery,
    block: Block,
    form: str,
    h: Tensor,
    key: Tensor,
    value: Tensor,
    asking: str = "cls",
    query: Tensor | None = None,
) -> Tensor:
    """Significance score [B,P'] of the patches present, by the named form; asking: "cls", or "all" tokens that are there."""
    if asking == "all":
        row = received(surgery, emit, block, h, key)
    else:
        row = cls_attention(surgery, emit, block, h, key, surgery.bias, query)
    return emit.slice(SCORES[form](emit, block, row, value), surgery.anatomy.prefix, None, 1, "score")


def token_sample(emit: Emitter, surgery: Surgery, site: Site[SamplingOptions], score: Tensor) -> tuple[Tensor, Tensor]:
    """One TokenSample node; returns index and keep [B,K]."""
    options = site.options
    capacity = site.limit if surgery.padded else options.capacity
    overflow = options.capacity > 0
    attributes = {
        "mode": options.mode,
        "num_samples": options.num_samples,
        "threshold": options.threshold,
        "capacity": capacity,
        "expected": options.expected,
        "pad_to_capacity": int(surgery.padded),
        "plugin_version": "1",
        "plugin_namespace": DOMAIN,
    }
    wanted = overflow or any(other.options.capacity for other in surgery.sites)
    surgery.functions[NAME] = function(
        options.mode, overflow=wanted, padded=surgery.padded, opset=max(BODY_OPSET, surgery.graph.opset)
    )
    if wanted and not capacity:
        attributes["capacity"] = site.limit  # the shared body compares with it; the bound never cuts anything here
    width = site.limit if surgery.padded else None
    shape: Shape | None = None if width is None else ["batch", width]
    outputs: list[tuple[DTypeLike, Shape | None]] = [(INT64, shape), (BOOL, shape), (INT64, [])]
    index, keep, _ = emit.ops(NAME, [score, surgery.slots.valid], "sample", outputs, domain=DOMAIN, **attributes)
    return index, keep
