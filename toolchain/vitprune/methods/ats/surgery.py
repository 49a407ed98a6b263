"""Sites that score patches by the CLS row and gather queries before Q·Kᵀ (ATS, top-k by CLS).

Keys and values stay whole inside the block. The rows of LN1(x) and of the residual are gathered by the same indices, so neither
queries, attention, projection nor MLP are computed for tokens that leave.
"""

from __future__ import annotations

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
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.conditions import attention_chains, sites_in_graph
from vitprune.graph.turning import turned
from vitprune.methods._dropping.operator import FORMS, describe_sampling, entering, left_behind
from vitprune.methods._dropping.sampling import cls_query, score, token_sample
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.base import Site
from vitprune.ops.token_sample import NAME


class AtsSurgery(GraphPass):
    """Write every block canonically and insert one TokenSample per site."""

    name = "query_sampling"

    def requires(self, surgery: Surgery) -> str:
        """Sites must lie in the graph; scores by the CLS row need a prefix token."""
        if surgery.anatomy.prefix < 1 and any(not site.options.bypass and site.options.asking == "cls" for site in surgery.sites):
            return "the graph has no prefix token to score by"
        return sites_in_graph(surgery)

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        sites = {site.block: site for site in surgery.sites}
        for block in surgery.anatomy.blocks:
            site = sites.get(block.index)
            if site is None or site.options.bypass:
                canonical(surgery, block)
                if site is not None:
                    surgery.kept.append(None)
            else:
                self._site(surgery, block, site)
        return True

    def _site(self, surgery: Surgery, block: Block, site: Site[AtsOptions]) -> None:
        emit = surgery.emitter.child(f"block{block.index}/attn")
        scoring = surgery.emitter.child(f"block{block.index}/prune")
        h, x = surgery.tensors[block.h], surgery.tensors[block.x]
        key, value = turned(surgery, emit, block, keys(emit, block, h), "k"), values(emit, block, h)
        by_cls = site.options.asking == "cls"
        asking = cls_query(scoring, block, h) if by_cls else None
        significance = score(scoring, surgery, block, site.options.score, h, key, value, site.options.asking, asking)
        entered = {"x": x, "h": h, **entering(surgery)}
        entered |= {"query": asking, "key": key, "value": value} if by_cls else {"score": significance}
        start(surgery, scoring, significance)
        index, keep = token_sample(scoring, surgery, site, significance)
        bias = surgery.bias  # keys are still those of all tokens that entered
        rows = update(surgery, scoring, index, keep)
        shape = surgery.rows_shape(block.index, site.limit if surgery.padded else None)
        taken, left = emit.take_rows(h, rows, "h/kept", shape), scoring.take_rows(x, rows, "x/kept", shape)
        surgery.born(keep, taken, left)
        query = turned(surgery, emit, block, queries(emit, block, taken), "q")
        context = attend(surgery, emit, block, query, key, value, bias)
        replace_attention(surgery, block, project(emit, block, context), left, taken)
        leaving = {"rows": left, "rows2": taken, "index": index, "keep": keep, **left_behind(surgery)}
        describe_sampling(surgery, site, FORMS[site.options.score] if by_cls else "given", block.heads, entered, leaving)

    def ensures(self, surgery: Surgery) -> str:
        """One TokenSample per live site and one clean attention chain per block."""
        live = [site for site in surgery.sites if not site.options.bypass]
        found = sum(node.op == NAME for node in surgery.graph.nodes)
        if found != len(live):
            return f"{found} TokenSample nodes for {len(live)} sites"
        return attention_chains(surgery)
