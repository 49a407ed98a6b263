"""Tokens leave before a block when an attention score of earlier blocks does not exceed a threshold (AS-ViT).

The thresholds are scalar initialisers named `prune.threshold.block<n>`, so that they can be changed in the finished model:
TokenSample gets score - threshold and compares with zero, and in IEEE arithmetic s - t > 0 exactly when s > t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import attend, canonical, keys, project, queries, replace_attention, start, update, values
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.methods._dropping.sampling import cls_attention, head_indicator, token_sample
from vitprune.methods._dropping.selection import ascending, splice
from vitprune.methods.asvit import keys as asvit
from vitprune.methods.asvit.keys import AsvitOptions
from vitprune.methods.ats.surgery import attention_chains
from vitprune.methods.base import Site
from vitprune.ops.token_sample import NAME

LOWEST = float(np.finfo(np.float32).min)


def threshold_name(block: int) -> str:
    """Name of the initialiser that holds the threshold of a site."""
    return f"prune.threshold.block{block}"


def head_weighted(emit: Emitter, block: Block, row: Any, context: Any) -> Any:
    """CLS row [B,N,H] times the heads' share in the norm of the context [B,N,H*d], summed: [B,N]."""
    squares = emit.op(
        "MatMul", [emit.op("Mul", [context, context], "squares"), emit.constant(head_indicator(block), FLOAT)], "head_squares"
    )
    norms = emit.op("Sqrt", [squares], "head_norms")
    total = emit.op("ReduceSum", [norms, emit.constant([2])], "norm_sum", keepdims=1)
    share = emit.op("Div", [norms, emit.op("Add", [total, emit.constant(1e-8, FLOAT)], "norm_sum/eps")], "head_share")
    return emit.op("ReduceSum", [emit.op("Mul", [row, share], "weighted"), emit.constant([2])], "score/all", keepdims=0)


def head_mean(emit: Emitter, block: Block, row: Any) -> Any:
    """Mean over heads of the CLS row [B,N,H]: [B,N]."""
    total = emit.op("ReduceSum", [row, emit.constant([2])], "score/sum", keepdims=0)
    return emit.op("Div", [total, emit.constant(float(block.heads), FLOAT)], "score/all")


def batch_top_k(emit: Emitter, surgery: Surgery, excess: Any) -> tuple[Any, Any]:
    """The released batch path: index and keep [B,K] with K = mean number above the threshold in this batch, rounded down."""
    above = emit.op(
        "And",
        [surgery.valid, emit.op("Greater", [excess, emit.constant(0.0, FLOAT)], "above", dtype=BOOL)],
        "counted",
        dtype=BOOL,
    )
    total = emit.op(
        "ReduceSum", [emit.op("Cast", [above], "above/number", dtype=INT64, to=7)], "above/total", dtype=INT64, keepdims=0
    )
    batch = emit.slice(emit.op("Shape", [excess], "excess/shape", dtype=INT64), 0, 1, 0, "batch", dtype=INT64)
    mean = emit.op("Div", [total, batch], "count/mean", dtype=INT64)
    some = emit.op("Greater", [mean, emit.constant([0])], "count/some", dtype=BOOL)
    count = emit.op("Where", [some, mean, emit.constant([1])], "count", dtype=INT64)
    contest = emit.op("Where", [surgery.valid, excess, emit.constant(LOWEST, FLOAT)], "contest")
    _, best = emit.ops("TopK", [contest, count], "best", [(FLOAT, None), (INT64, None)], axis=1, largest=1, sorted=1)
    index = ascending(emit, best, count)
    keep = emit.op("Expand", [some, emit.op("Shape", [index], "keep/shape", dtype=INT64)], "keep", dtype=BOOL)
    return index, keep


class AsvitSurgery(GraphPass):
    """Write every block canonically, score where asked, and drop rows before the block of each site."""

    name = "threshold"

    def requires(self, surgery: Surgery) -> str:
        """Sites must lie in the graph and it must have prefix tokens to score by."""
        if surgery.anatomy.prefix < 1:
            return "the graph has no prefix token to score by"
        depth = len(surgery.anatomy.blocks)
        return next((f"site at block {site.block} of {depth}" for site in surgery.sites if site.block >= depth), "")

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        params: Any = surgery.recipe.prune
        asvit.refuse_padded_batch_topk(params.infer, surgery.padded)
        sites = {site.block: site for site in surgery.sites}
        scored, score = params.scored_blocks(), None
        for block in surgery.anatomy.blocks:
            if block.index in sites:
                score = self._drop(surgery, block, sites[block.index], score)
            if block.index in scored:
                new = self._scored_block(surgery, block, params.head_weight)
                score = self._accumulate(surgery, block, score, new, params.score_mode)
            else:
                canonical(surgery, block)
        return True

    def _scored_block(self, surgery: Surgery, block: Block, weighted: bool) -> Any:
        emit = surgery.emitter.child(f"block{block.index}/attn")
        scoring = surgery.emitter.child(f"block{block.index}/score")
        h = surgery.tensors[block.h]
        key, value = keys(emit, block, h), values(emit, block, h)
        context = attend(emit, block, queries(emit, block, h), key, value, surgery.bias)
        replace_attention(surgery, block, project(emit, block, context))
        row = cls_attention(scoring, block, h, key, surgery.bias)
        score = head_weighted(scoring, block, row, context) if weighted else head_mean(scoring, block, row)
        return scoring.slice(score, surgery.anatomy.prefix, None, 1, "score")

    def _accumulate(self, surgery: Surgery, block: Block, previous: Any, new: Any, mode: str) -> Any:
        if previous is None or mode == "last":
            return new
        emit = surgery.emitter.child(f"block{block.index}/score")
        if mode == "ema":
            previous = emit.op("Mul", [previous, emit.constant(asvit.EMA_OLD, FLOAT)], "old")
            new = emit.op("Mul", [new, emit.constant(asvit.EMA_NEW, FLOAT)], "new")
        return emit.op("Add", [previous, new], "running")

    def _drop(self, surgery: Surgery, block: Block, site: Site[AsvitOptions], score: Any) -> Any:
        emit = surgery.emitter.child(f"block{block.index}/prune")
        theta = gs.Constant(threshold_name(block.index), np.asarray(site.options.theta, np.float32))
        excess = emit.op("Sub", [score, theta], "excess")
        start(surgery, emit, excess)
        if site.options.infer == "batch_topk":
            index, keep = batch_top_k(emit, surgery, excess)
        else:
            index, keep = token_sample(emit, surgery, site, excess)
        rows = update(surgery, emit, index, keep)
        splice(surgery, block.x, lambda x: emit.take_rows(x, rows, "x/kept"))
        return emit.op("GatherElements", [score, index], "score/kept", axis=1)

    def ensures(self, surgery: Surgery) -> str:
        """One selection and one threshold per site, and one clean attention chain per block."""
        op = "TopK" if surgery.sites[0].options.infer == "batch_topk" else NAME
        found = sum(node.op == op for node in surgery.graph.nodes) // (2 if op == "TopK" else 1)
        if found != len(surgery.sites):
            return f"{found} {op} selections for {len(surgery.sites)} sites"
        names = {tensor.name for node in surgery.graph.nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)}
        lost = [site.block for site in surgery.sites if threshold_name(site.block) not in names]
        return f"no threshold initialiser for block {lost[0]}" if lost else attention_chains(surgery)
