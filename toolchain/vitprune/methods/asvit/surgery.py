"""Tokens leave before a block when an attention score of earlier blocks does not exceed a threshold (AS-ViT).

The thresholds are scalar initialisers named `prune.threshold.block<n>`, so that they can be changed in the finished model:
TokenSample gets score - threshold and compares with zero, and in IEEE arithmetic s - t > 0 exactly when s > t.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import (
    attend,
    canonical,
    keys,
    project,
    queries,
    replace_attention,
    start,
    update,
    values,
)
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.conditions import attention_chains, sites_in_graph
from vitprune.graph.turning import turned
from vitprune.graph.types import Tensor, constant, given, is_constant
from vitprune.methods._dropping.operator import Roles, describe_sampling, entering, left_behind
from vitprune.methods._dropping.sampling import cls_attention, cls_query, head_indicator, token_sample
from vitprune.methods._dropping.selection import ascending, splice
from vitprune.methods.asvit import keys as asvit
from vitprune.methods.asvit.keys import AsvitOptions
from vitprune.methods.base import Site, keys_of
from vitprune.ops.token_sample import NAME

LOWEST = float(np.finfo(np.float32).min)


def threshold_name(block: int) -> str:
    """Name of the initialiser that holds the threshold of a site."""
    return f"prune.threshold.block{block}"


def head_weighted(emit: Emitter, block: Block, row: Tensor, context: Tensor) -> Tensor:
    """CLS row [B,N,H] times the heads' share in the norm of the context [B,N,H*d], summed: [B,N]."""
    squares = emit.op(
        "MatMul", [emit.op("Mul", [context, context], "squares"), emit.constant(head_indicator(block), FLOAT)], "head_squares"
    )
    norms = emit.op("Sqrt", [squares], "head_norms")
    total = emit.op("ReduceSum", [norms, emit.constant([2])], "norm_sum", keepdims=1)
    share = emit.op("Div", [norms, emit.op("Add", [total, emit.constant(1e-8, FLOAT)], "norm_sum/eps")], "head_share")
    return emit.op("ReduceSum", [emit.op("Mul", [row, share], "weighted"), emit.constant([2])], "score/all", keepdims=0)


def head_mean(emit: Emitter, block: Block, row: Tensor) -> Tensor:
    """Mean over heads of the CLS row [B,N,H]: [B,N]."""
    total = emit.op("ReduceSum", [row, emit.constant([2])], "score/sum", keepdims=0)
    return emit.op("Div", [total, emit.constant(float(block.heads), FLOAT)], "score/all")


def batch_top_k(emit: Emitter, surgery: Surgery, excess: Tensor) -> tuple[Tensor, Tensor]:
    """The released batch path: index and keep [B,K] with K = mean number above the threshold in this batch, rounded down."""
    above = emit.op(
        "And",
        [surgery.slots.valid, emit.op("Greater", [excess, emit.constant(0.0, FLOAT)], "above", dtype=BOOL)],
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
    contest = emit.op("Where", [surgery.slots.valid, excess, emit.constant(LOWEST, FLOAT)], "contest")
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
        return sites_in_graph(surgery)

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        params = keys_of(surgery.recipe.prune, asvit.Params)
        asvit.refuse_padded_batch_topk(params.infer, surgery.padded)
        sites = {site.block: site for site in surgery.sites}
        scored = params.scored_blocks()
        score: Tensor | None = None
        roles: Roles = {}
        for block in surgery.anatomy.blocks:
            if block.index in sites:
                score = self._drop(surgery, block, sites[block.index], given(score), roles)
            if block.index in scored:
                new, roles = self._scored_block(surgery, block, params.head_weight)
                score = self._accumulate(surgery, block, score, new, params.score_mode)
                roles = roles if score is new else {"score": score}
            else:
                canonical(surgery, block)
        return True

    def _scored_block(self, surgery: Surgery, block: Block, weighted: bool) -> tuple[Tensor, Roles]:
        """The block's score and what it is made of."""
        emit = surgery.emitter.child(f"block{block.index}/attn")
        scoring = surgery.emitter.child(f"block{block.index}/score")
        h = surgery.tensors[block.h]
        key, value = turned(surgery, emit, block, keys(emit, block, h), "k"), values(emit, block, h)
        context = attend(
            surgery, emit, block, turned(surgery, emit, block, queries(emit, block, h), "q"), key, value, surgery.bias
        )
        replace_attention(surgery, block, project(emit, block, context))
        asking = cls_query(scoring, block, h)
        row = cls_attention(surgery, scoring, block, h, key, surgery.bias, asking)
        score = head_weighted(scoring, block, row, context) if weighted else head_mean(scoring, block, row)
        roles: Roles = {"query": asking, "key": key, **({"value": context} if weighted else {})}
        return scoring.slice(score, surgery.anatomy.prefix, None, 1, "score"), roles

    def _accumulate(self, surgery: Surgery, block: Block, previous: Tensor | None, new: Tensor, mode: str) -> Tensor:
        if previous is None or mode == "last":
            return new
        emit = surgery.emitter.child(f"block{block.index}/score")
        if mode == "ema":
            previous = emit.op("Mul", [previous, emit.constant(asvit.EMA_OLD, FLOAT)], "old")
            new = emit.op("Mul", [new, emit.constant(asvit.EMA_NEW, FLOAT)], "new")
        return emit.op("Add", [previous, new], "running")

    def _drop(self, surgery: Surgery, block: Block, site: Site[AsvitOptions], score: Tensor, roles: Roles) -> Tensor:
        emit = surgery.emitter.child(f"block{block.index}/prune")
        theta = constant(threshold_name(block.index), np.asarray(site.options.theta, np.float32))
        excess = emit.op("Sub", [score, theta], "excess")
        entered: Roles = {"x": surgery.tensors[block.x], "theta": theta, **roles, **entering(surgery)}
        start(surgery, emit, excess)
        if site.options.infer == "batch_topk":
            index, keep = batch_top_k(emit, surgery, excess)
        else:
            index, keep = token_sample(emit, surgery, site, excess)
        rows = update(surgery, emit, index, keep)
        shape = surgery.rows_shape(block.index, site.limit if surgery.padded else None)
        splice(surgery, block.x, lambda x: emit.take_rows(x, rows, "x/kept", shape))
        if site.options.infer != "batch_topk":  # which keeps as many in every image
            surgery.born(keep, surgery.tensors[block.x])
        kept = emit.op("GatherElements", [score, index], "score/kept", axis=1)
        if site.options.infer == "per_image":
            form = "given" if "score" in roles else "head_share" if "value" in roles else "mean"
            left = surgery.tensors[block.x]
            leaving = {"rows": left, "index": index, "keep": keep, "score_kept": kept, **left_behind(surgery)}
            describe_sampling(surgery, site, form, block.heads, entered, leaving)
        return kept

    def ensures(self, surgery: Surgery) -> str:
        """One selection and one threshold per site, and one clean attention chain per block."""
        op = "TopK" if surgery.sites[0].options.infer == "batch_topk" else NAME
        own = f"{surgery.emitter.prefix}/"  # the dense graph may have TopK nodes
        found = sum(node.op == op and node.name.startswith(own) for node in surgery.graph.nodes) // (2 if op == "TopK" else 1)
        if found != len(surgery.sites):
            return f"{found} {op} selections for {len(surgery.sites)} sites"
        names = {tensor.name for node in surgery.graph.nodes for tensor in node.inputs if is_constant(tensor)}
        lost = [site.block for site in surgery.sites if threshold_name(site.block) not in names]
        return f"no threshold initialiser for block {lost[0]}" if lost else attention_chains(surgery)
