"""The slice oracle: the same model with the same token count after every block, cut by a plain Slice (performance.md §0).

It has no score, no selection, no gather, no merging and no masks, so the ratio of the pruned graph to it is what the compiler is
answerable for. The cut lies where the method's own graph removes rows: queries are pruned where the method prunes them, and whole
attention is computed where the method needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from vitprune import methods
from vitprune.errors import ExportError
from vitprune.graph import canonical as parts
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import Block, find
from vitprune.graph.intake import take_in
from vitprune.graph.passes.base import Surgery
from vitprune.methods._dropping.selection import splice
from vitprune.methods.base import BlockTokens
from vitprune.recipe import Recipe


def places(blocks: Sequence[BlockTokens], tokens: int) -> list[tuple[str, int]]:
    """Where rows leave in every block, and how many are left, read off the method's own cost model.

    "before" the block, its "queries" alone (inside attention), or behind "attended" rows; "" where none leave.
    """
    found = []
    for block in blocks:
        entering, queries, rows = (round(count) for count in (block.entering, block.queries, block.mlp))
        if entering < tokens:
            found.append(("before", entering))
        elif queries < entering:
            found.append(("queries", queries))
        else:
            found.append(("attended" if rows < entering else "", rows))
        tokens = rows
    return found


def slice_oracle(dense: onnx.ModelProto, recipe: Recipe, kept: list[int]) -> onnx.ModelProto:
    """Cut to `kept[i]` patches (plus what the method adds) at the i-th site."""
    model = take_in(dense, recipe).model
    method = methods.get(recipe.prune.method)
    anatomy = find(model)
    if any(block.position_bias is not None for block in anatomy.blocks):
        raise ExportError(
            346,
            "there is no slice oracle of a model with position biases",
            cause="its attention adds a table over all tokens, which a slice does not cut",
            next_step="benchmark the bundle against its dense model alone",
        )
    sites = method.sites(recipe.prune, surgery.geometry(anatomy))
    sizes = surgery.geometry(anatomy)
    cuts = places(method.block_tokens(sites, sizes, [float(count) for count in kept]), sizes.tokens)
    work = Surgery(surgery.working_copy(model), anatomy, recipe, method, [])
    for block in work.anatomy.blocks:
        where, rows = cuts[block.index]
        emit = work.emitter.child(f"block{block.index}/cut")

        def cut(x: Any, emit: Any = emit, rows: int = rows) -> Any:
            return emit.slice(x, 0, rows, 1, "rows")

        if where == "before":
            splice(work, block.x, cut)
        if where == "queries":
            _cut_queries(work, block, rows)
        else:
            parts.canonical(work, block)
        if where == "attended":
            splice(work, block.attended, cut)
    return surgery.finish(work)


def _cut_queries(work: Surgery, block: Block, rows: int) -> None:
    emit = work.emitter.child(f"block{block.index}/attn")
    h, x = work.tensors[block.h], work.tensors[block.x]
    key, value = parts.keys(emit, block, h), parts.values(emit, block, h)
    left = emit.slice(h, 0, rows, 1, "h/cut")
    context = parts.attend(work, emit, block, parts.queries(emit, block, left), key, value)
    parts.replace_attention(work, block, parts.project(emit, block, context), emit.slice(x, 0, rows, 1, "x/cut"), left)
