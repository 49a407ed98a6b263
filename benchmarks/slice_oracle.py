"""The slice oracle: the same model with the same token count after every block, cut by a plain Slice (performance.md §0).

It has no score, no sampling and no gather, so the ratio of the pruned graph to it is what the compiler is answerable for.
"""

from __future__ import annotations

import onnx

from vitprune import methods
from vitprune.graph import surgery
from vitprune.graph.anatomy import find
from vitprune.graph.passes import attention as parts
from vitprune.graph.passes.base import Surgery
from vitprune.recipe import Recipe


def slice_oracle(dense: onnx.ModelProto, recipe: Recipe, counts: dict[int, int]) -> onnx.ModelProto:
    """Cut to `counts[block]` patches inside the attention of each block named, queries pruned as by the real pass."""
    model = surgery.upgrade(dense, recipe.graph.opset)
    work = Surgery(surgery._working_copy(model), find(model), recipe, methods.get(recipe.prune.method), [])
    for block in work.anatomy.blocks:
        if block.index not in counts:
            parts.canonical(work, block)
            continue
        em = work.emitter.child(f"block{block.index}/attn")
        h, x = work.tensors[block.h], work.tensors[block.x]
        rows = work.anatomy.prefix + counts[block.index]
        key, value = parts.keys(em, block, h), parts.values(em, block, h)
        query = parts.queries(em, block, em.slice(h, 0, rows, 1, "h/cut"))
        context = parts.attend(em, block, query, key, value)
        parts.replace_attention(work, block, parts.project(em, block, context), em.slice(x, 0, rows, 1, "x/cut"))
    return surgery._finish(work)
