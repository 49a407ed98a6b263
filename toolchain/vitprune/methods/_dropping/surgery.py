"""Sites that keep a constant number of tokens: TopK with constant k, no custom op, no pad slots (top-k, EViT, POMT).

Without a combined token, queries and residual rows are gathered before Q·Kᵀ. With one, attention is whole; between attention
and MLP the dropped rows become one token by a product with weights that are zero where a row is kept.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import (
    attend,
    canonical,
    keys,
    probabilities,
    project,
    queries,
    replace_attention,
    values,
    weigh,
)
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.outlines import outline
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.conditions import attention_chains, sites_in_graph
from vitprune.graph.turning import turned
from vitprune.graph.types import Tensor
from vitprune.methods._dropping.operator import Roles, describe_ranking, entering, left_behind
from vitprune.methods._dropping.sampling import cls_attention, cls_query, received
from vitprune.methods._dropping.selection import append_slot, splice, top_k, track
from vitprune.methods._dropping.sites import FixedRateOptions
from vitprune.methods.base import Site
from vitprune.ops.sites import COLUMN_SCORE


def attention_score(
    emit: Emitter, surgery: Surgery, block: Block, h: Tensor, key: Tensor, everyone: bool
) -> tuple[Tensor, Roles]:
    """Mean over heads of the CLS row, or of the attention from all tokens, prefix columns cut off: [B,P']; and what it is made of."""
    query = None if everyone else cls_query(emit, block, h)
    row = received(surgery, emit, block, h, key) if everyone else cls_attention(surgery, emit, block, h, key, surgery.bias, query)
    mean = emit.reduce("ReduceMean", row, 2, "cls_row/mean")
    score = emit.slice(mean, surgery.anatomy.prefix, None, 1, "score")
    return score, {"score": score} if everyone else {"query": query, "key": key}


def column_score(emit: Emitter, surgery: Surgery, block: Block, weights: Tensor, value: Tensor) -> Tensor:
    """POMT's score [B,P']: column sums of the largest head over their maximum, plus softmax of the largest head's values."""
    prefix = surgery.anatomy.prefix
    top = emit.reduce("ReduceMax", weights, 1, "attention/max_head")
    column = emit.op("ReduceSum", [top, emit.constant([1])], "attention/columns", keepdims=0)
    column = emit.slice(column, prefix, None, 1, "attention/patches")
    relative = emit.op("Div", [column, emit.reduce("ReduceMax", column, 1, "attention/largest", keepdims=1)], "attention/term")
    heads = emit.op("Reshape", [value, emit.constant([0, 0, block.heads, block.head_dim])], "value/heads")
    content = emit.op(
        "ReduceSum", [emit.reduce("ReduceMax", heads, 2, "value/max_head"), emit.constant([2])], "value/sum", keepdims=0
    )
    content = emit.slice(content, prefix, None, 1, "value/patches")
    return emit.op("Add", [relative, emit.op("Softmax", [content], "value/term", axis=1)], "score")


def form_of(roles: Roles) -> str:
    """Form of a score by what it is made of."""
    return "given" if "score" in roles else "mean"


class FixedRateSurgery(GraphPass):
    """Write every block canonically and insert one ranking per site."""

    name = "fixed_rate"

    def requires(self, surgery: Surgery) -> str:
        """Sites must lie in the graph; scores by the CLS row need a prefix token."""
        if surgery.anatomy.prefix < 1 and any(site.options.score == "cls" for site in surgery.sites):
            return "the graph has no prefix token to score by"
        return sites_in_graph(surgery)

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        sites = {site.block: site for site in surgery.sites}
        for block in surgery.anatomy.blocks:
            site = sites.get(block.index)
            if site is None:
                canonical(surgery, block)
            elif site.options.combine is None:
                self._drop_queries(surgery, block, site)
            else:
                self._combine(surgery, block, site)
        return True

    def _drop_queries(self, surgery: Surgery, block: Block, site: Site[FixedRateOptions]) -> None:
        emit = surgery.emitter.child(f"block{block.index}/attn")
        scoring = surgery.emitter.child(f"block{block.index}/prune")
        h, x = surgery.tensors[block.h], surgery.tensors[block.x]
        key, value = turned(surgery, emit, block, keys(emit, block, h), "k"), values(emit, block, h)
        score, roles = attention_score(scoring, surgery, block, h, key, site.options.score == "mean_attention")
        entered: Roles = {"x": x, "h": h, **roles, **entering(surgery)}
        index = top_k(scoring, score, site.options.keep)
        rows = track(surgery, scoring, index)
        shape = surgery.rows_shape(block.index, site.options.keep)
        taken, left = emit.take_rows(h, rows, "h/kept", shape), scoring.take_rows(x, rows, "x/kept", shape)
        query = turned(surgery, emit, block, queries(emit, block, taken), "q")
        context = attend(surgery, emit, block, query, key, value)
        replace_attention(surgery, block, project(emit, block, context), left, taken)
        leaving = {"rows": left, "rows2": taken, "index": index, **left_behind(surgery)}
        describe_ranking(surgery, site.options.keep, form_of(roles), block.heads, entered, leaving)

    def _combine(self, surgery: Surgery, block: Block, site: Site[FixedRateOptions]) -> None:
        emit = surgery.emitter.child(f"block{block.index}/attn")
        scoring = surgery.emitter.child(f"block{block.index}/prune")
        h = surgery.tensors[block.h]
        key, value = turned(surgery, emit, block, keys(emit, block, h), "k"), values(emit, block, h)
        query = turned(surgery, emit, block, queries(emit, block, h), "q")
        weights = probabilities(surgery, emit, block, query, key)
        replace_attention(surgery, block, project(emit, block, weigh(emit, block, weights, value)))
        if site.options.score != "columns":
            score, roles = attention_score(scoring, surgery, block, h, key, site.options.score == "mean_attention")
        else:
            score = column_score(scoring, surgery, block, weights, value)
            roles = {"score": score}
            made_of = {"query": query, "key": key, "value": value}
            surgery.outlines.append(
                outline(COLUMN_SCORE, made_of, roles, heads=block.heads, prefix_tokens=surgery.anatomy.prefix)
            )
        keep, slots = site.options.keep, site.options.slots
        entered: Roles = {**roles, **entering(surgery)}
        index = top_k(scoring, score, keep)
        rows = track(surgery, scoring, index)
        append_slot(surgery, scoring)
        part = score if site.options.combine == "weighted" else self._share(scoring, score, slots - keep)

        def combined(attended: Tensor) -> Tensor:
            none = scoring.op("Sub", [zeros := scoring.op("Cast", [index], "dropped/like", to=1), zeros], "dropped/zeros")
            weight = scoring.op("ScatterElements", [part, index, none], "dropped/weights", axis=1)
            lone = scoring.op("Unsqueeze", [weight, scoring.constant([1])], "dropped/row")
            patches = scoring.slice(attended, surgery.anatomy.prefix, None, 1, "dropped/patches")
            token = scoring.op("MatMul", [lone, patches], "combined")
            kept = scoring.take_rows(attended, rows, "attended/kept")
            shape = surgery.rows_shape(block.index, keep + 1)
            reduced = scoring.op("Concat", [kept, token], "attended/reduced", shape=shape, axis=1)
            leaving = {"rows": reduced, "index": index, **left_behind(surgery)}
            describe_ranking(
                surgery, keep, form_of(roles), block.heads, {"x": attended, **entered}, leaving, site.options.combine
            )
            return reduced

        splice(surgery, block.attended, combined)

    def _share(self, emit: Emitter, score: Tensor, dropped: int) -> Tensor:
        """1 / number of dropped tokens in every slot, shaped like the score."""
        zeros = emit.op("Sub", [score, score], "dropped/blank")
        return emit.op("Add", [zeros, emit.constant(np.float32(1) / np.float32(dropped), FLOAT)], "dropped/share")

    def ensures(self, surgery: Surgery) -> str:
        """Two TopK per site besides those of the dense graph, and one clean attention chain per block save where column sums read the probabilities."""
        found = sum(node.op == "TopK" and node.name.startswith(f"{surgery.emitter.prefix}/") for node in surgery.graph.nodes)
        if found != 2 * len(surgery.sites):
            return f"{found} TopK nodes for {len(surgery.sites)} sites"
        return attention_chains(surgery, shared=sum(site.options.score == "columns" for site in surgery.sites))
