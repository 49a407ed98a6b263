"""The slice oracle: the same model with the same token count after every block, cut by a plain Slice (performance.md §0).

It has no score, no selection, no gather, no merging and no masks, so the ratio of the pruned graph to it is what the compiler is
answerable for. The cut lies where the method's own graph removes rows: queries are pruned where the method prunes them, and whole
attention is computed where the method needs it.
"""

from __future__ import annotations

from typing import Any

import onnx

from vitprune import methods
from vitprune.graph import surgery
from vitprune.graph.anatomy import Block, find
from vitprune.graph.passes import attention as parts
from vitprune.graph.passes.base import Surgery
from vitprune.graph.passes.selection import splice
from vitprune.methods.base import Site
from vitprune.recipe import Recipe

PLACES = {
    "query_sampling": "queries",
    "fixed_rate": "queries",
    "threshold": "before",
    "predictor": "before",
    "halting": "before",
    "bipartite_merging": "attended",
    "threshold_merging": "attended",
    "sampled_merging": "attended",
}


def place(kind: str, site: Site) -> str:
    """Where a method's kind takes rows out: "queries" (inside attention), "attended" (behind it) or "before" the block."""
    return "attended" if site.options.get("combine") else PLACES[kind]


def rows_after(site: Site, kept: int) -> int:
    """Patch rows behind a site with `kept` patches: a combined token is one more."""
    return kept + bool(site.options.get("combine"))


def slice_oracle(dense: onnx.ModelProto, recipe: Recipe, kept: list[int]) -> onnx.ModelProto:
    """Cut to `kept[i]` patches (plus what the method adds) at the i-th site."""
    model = surgery.upgrade(dense, recipe.graph.opset)
    method = methods.get(recipe.prune.method)
    anatomy = find(model)
    sites = method.sites(recipe.prune, surgery.geometry(anatomy))
    counts = {site.block: (place(method.kind, site), rows_after(site, count)) for site, count in zip(sites, kept, strict=True)}
    work = Surgery(surgery._working_copy(model), anatomy, recipe, method, [])
    for block in work.anatomy.blocks:
        where, patches = counts.get(block.index, ("", 0))
        em = work.emitter.child(f"block{block.index}/cut")
        rows = work.anatomy.prefix + patches

        def cut(x: Any, em: Any = em, rows: int = rows) -> Any:
            return em.slice(x, 0, rows, 1, "rows")

        if where == "before":
            splice(work, block.x, cut)
        if where == "queries":
            _cut_queries(work, block, rows)
        else:
            parts.canonical(work, block)
        if where == "attended":
            splice(work, block.attended, cut)
    return surgery._finish(work)


def _cut_queries(work: Surgery, block: Block, rows: int) -> None:
    em = work.emitter.child(f"block{block.index}/attn")
    h, x = work.tensors[block.h], work.tensors[block.x]
    key, value = parts.keys(em, block, h), parts.values(em, block, h)
    query = parts.queries(em, block, em.slice(h, 0, rows, 1, "h/cut"))
    context = parts.attend(em, block, query, key, value)
    parts.replace_attention(work, block, parts.project(em, block, context), em.slice(x, 0, rows, 1, "x/cut"))
