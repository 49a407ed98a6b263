"""What stands behind the blocks reads all tokens in their places: every patch gets the row of the slot that stands for it.

The slot of a patch is found by comparing numbers, which needs no scatter: a slot holds its patch number, and a patch the number of
the one that represents it. Where a token is gone and no row stands for it, `fill: last` gives the row with which it entered the block in
which it left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.graph.anatomy.taps import above
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.dense_shapes import read_dense_shapes
from vitprune.graph.types import Node, Tensor, redirect


@dataclass(frozen=True)
class Placed:
    """After a site.

    kept: int64 [B,K], patch number of every slot, -1 on pads. group: int64 [B,P], for every patch the one that represents it, -1 = none;
    None where every patch stands for itself or is gone.
    """

    kept: Tensor
    group: Tensor | None


class Unmerge(GraphPass):
    """Put all tokens back before the readers of block outputs that are no part of a block."""

    name = "unmerge"

    def requires(self, surgery: Surgery) -> str:
        """What no row stands for must have been refused, or be filled."""
        return "" if surgery.recipe.output.features else "the recipe asks for logits"

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        fill = surgery.recipe.output.fill is not None
        at = {site.block: kept for site, kept in zip(surgery.sites, surgery.kept, strict=True)}
        inside = self._inside(surgery)
        outside = above(list(surgery.graph.outputs)) - inside
        now: Placed | None = None
        before: Tensor | None = None
        for block in surgery.anatomy.blocks:
            kept = at.get(block.index)
            scope = surgery.emitter.child(f"block{block.index}/unmerge")
            if kept is not None:
                if fill:
                    before = self._patches(surgery, scope.child("before"), surgery.tensors[block.x], now, before)
                now = Placed(kept, surgery.groups.get(block.index))
            if now is not None:
                for label, rows in self._rows(surgery, block.index).items():
                    self._tap(surgery, scope.child(label), rows, outside, now, before)
        read_dense_shapes(surgery, inside)
        for output, shape in zip(surgery.graph.outputs, surgery.anatomy.output_shapes, strict=True):
            output.shape = [surgery.recipe.graph.static_batch or "batch", *shape]
        return now is not None

    def ensures(self, surgery: Surgery) -> str:
        """No reader behind the blocks is left on pruned rows."""
        if not any(kept is not None for kept in surgery.kept):
            return ""
        outside = above(list(surgery.graph.outputs)) - self._inside(surgery)
        first = next(site.block for site, kept in zip(surgery.sites, surgery.kept, strict=True) if kept is not None)
        for block in surgery.anatomy.blocks[first:]:
            for rows in self._rows(surgery, block.index).values():
                lost = [node.name for node in rows.outputs if id(node) in outside and not _ours(node)]
                if lost or any(rows is output for output in surgery.graph.outputs):
                    return f"{(lost or ['an output'])[0]} reads pruned rows behind block {block.index}"
        return ""

    def _rows(self, surgery: Surgery, block: int) -> dict[str, Tensor]:
        """Tensors of the rows behind a block: its output, and what the next block's norm makes of it."""
        blocks = surgery.anatomy.blocks
        behind = {"norm": surgery.tensors[blocks[block + 1].h]} if block + 1 < len(blocks) else {}
        return {"rows": surgery.tensors[blocks[block].output]} | behind

    def _inside(self, surgery: Surgery) -> set[int]:
        last = surgery.tensors[surgery.anatomy.blocks[-1].output]
        lists = [kept for kept in surgery.kept if kept is not None]
        return above([last, *lists, *surgery.groups.values(), *surgery.more_outputs.values()])

    def _tap(self, surgery: Surgery, emit: Emitter, rows: Tensor, outside: set[int], now: Placed, before: Tensor | None) -> None:
        """Redirect all readers of rows that are in no block."""
        readers: list[Node] = [node for node in rows.outputs if id(node) in outside and not _ours(node)]
        if not readers and not any(tensor is rows for tensor in surgery.graph.outputs):
            return
        whole = self._patches(surgery, emit, rows, now, before)
        if prefix := surgery.anatomy.prefix:
            whole = emit.op("Concat", [emit.slice(rows, 0, prefix, 1, "prefix"), whole], "tokens", axis=1)
        redirect(readers, rows, whole)
        if any(tensor is rows for tensor in surgery.graph.outputs):
            rows.shape = None  # what the graph says of its output is no longer so of these rows, and runtimes believe it
            surgery.graph.outputs = [whole if tensor is rows else tensor for tensor in surgery.graph.outputs]

    def _patches(self, surgery: Surgery, emit: Emitter, rows: Tensor, now: Placed | None, before: Tensor | None) -> Tensor:
        """Rows [B,N',C] -> [B,P,C] in the places of patches; `before` [B,P,C] where no row stands for one."""
        prefix, everyone = surgery.anatomy.prefix, surgery.anatomy.patches
        patches = emit.slice(rows, prefix, None, 1, "rows") if prefix else rows
        if now is None:
            return patches
        group = now.group
        if group is None:
            group = emit.constant(np.arange(everyone)[None])
        elif before is not None:  # a pad is -1 in the kept list, so a patch that none stands for must be something else
            none = emit.op("Less", [group, emit.constant(0)], "none", dtype=BOOL)
            group = emit.op("Where", [none, emit.constant(-2), group], "group", dtype=INT64)
        wanted = emit.op("Unsqueeze", [group, emit.constant([2])], "wanted", dtype=INT64)
        there = emit.op("Unsqueeze", [now.kept, emit.constant([1])], "there", dtype=INT64)
        hits = emit.op("Cast", [emit.op("Equal", [wanted, there], "same", dtype=BOOL)], "hits", to=1)
        slot = emit.op("ArgMax", [hits], "slot", dtype=INT64, axis=2, keepdims=0)
        placed = emit.take_rows(patches, emit.op("Unsqueeze", [slot, emit.constant([2])], "slot/column", dtype=INT64), "places")
        if before is None:
            return placed
        found = emit.op(
            "Greater", [emit.reduce("ReduceMax", hits, 2, "any", keepdims=1), emit.constant(0.5, FLOAT)], "found", dtype=BOOL
        )
        return emit.op("Where", [found, placed, before], "filled")


def _ours(node: Node) -> bool:
    return "/unmerge/" in node.name
