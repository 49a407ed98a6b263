"""What all merging passes share: attention over sized rows, merging by a one-hot product, groups, and the state behind it.

Merged rows are a product of a small one-hot matrix with the rows that leave: no scatter with a reduction, which edge builders refuse.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from vitprune.errors import ExportError
from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import attend, canonical, keys, project, queries, replace_attention, values
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.conditions import attention_chains, sites_in_graph
from vitprune.graph.turning import members, turned
from vitprune.graph.types import Tensor, given, redirect
from vitprune.methods._merging.keys import NORM_FLOOR, MergingOptions
from vitprune.methods.base import Site

HIDDEN = -1.0e4
MOST_IMAGES = 4096  # largest batch of a graph with a dynamic one, as for the dense export
IMPOSSIBLE = 4.0  # taken off a cosine, it falls below every threshold


class MergingSurgery(GraphPass):
    """Writes every block canonically and lets a kind merge rows between attention and MLP of its sites.

    size: float [B,N] patches per token row (1 for the prefix), None while all are 1. group: int64 [B,P], for every original patch the
    patch that represents its row; only traced when the recipe asks for it, for features, or where attention has positions. turned_key, turned_query:
    of the site's block with their positions.
    """

    def __init__(self) -> None:
        self.size: Tensor | None = None
        self.group: Tensor | None = None
        self.turned_key: Tensor | None = None
        self.turned_query: Tensor | None = None
        self.key_bias: Tensor | None = None
        self.proportional = self.placed = False
        self._column: Tensor | None = None
        self._numbers_of_images: Tensor | None = None

    @abstractmethod
    def merge(
        self, surgery: Surgery, emit: Emitter, block: Block, site: Site[Any], x: Tensor, h: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Rows [B,N',C] merged from x [B,N,C]; h, key (without positions) and value are the block's. Brings size, kept and the key bias up to date."""

    def requires(self, surgery: Surgery) -> str:
        """Sites must lie in the graph, and its head must read the CLS token or a mean.

        Raises:
            ExportError: VP313 for another head.
        """
        anatomy = surgery.anatomy
        if not surgery.recipe.output.features and not (anatomy.reads_cls or anatomy.means or anatomy.pools):
            raise ExportError(
                313,
                "the head of this graph is not supported",
                cause="it reads neither the CLS token nor a mean or a pool of the tokens",
                next_step="export the model with global_pool='token' or 'avg'",
            )
        return sites_in_graph(surgery)

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        sites = {site.block: site for site in surgery.sites}
        self.proportional = any(site.options.proportional for site in surgery.sites)
        self.placed = any(block.rotation or block.position_bias for block in surgery.anatomy.blocks)
        trace = any(site.options.trace for site in surgery.sites)
        if trace or self.placed or surgery.recipe.output.features:
            self.group = self._everyone(surgery)
        for block in surgery.anatomy.blocks:
            site = sites.get(block.index)
            if site is None or site.options.idle:
                canonical(surgery, block)
                if site is not None:
                    surgery.kept.append(None)
            else:
                self._site(surgery, block, site)
            if site is not None and self.group is not None:
                surgery.groups[block.index] = self.group
            if site is not None and self.group is not None and trace:
                surgery.more_outputs[f"group_{block.index}"] = self.group
        if self.size is not None and (surgery.anatomy.means or surgery.anatomy.pools):
            surgery.weight = surgery.emitter.child("pool").slice(self.size, surgery.anatomy.prefix, None, 1, "sizes")
        return True

    def ensures(self, surgery: Surgery) -> str:
        """One clean attention chain per block and one kept list per site."""
        if len(surgery.kept) != len(surgery.sites):
            return f"{len(surgery.kept)} kept lists for {len(surgery.sites)} sites"
        return attention_chains(surgery)

    def _site(self, surgery: Surgery, block: Block, site: Site[MergingOptions]) -> None:
        emit = surgery.emitter.child(f"block{block.index}/attn")
        h = surgery.tensors[block.h]
        key, value = keys(emit, block, h), values(emit, block, h)
        self.turned_key = turned(surgery, emit, block, key, "k")
        self.turned_query = turned(surgery, emit, block, queries(emit, block, h), "q")
        context = attend(surgery, emit, block, self.turned_query, self.turned_key, value, surgery.bias)
        replace_attention(surgery, block, project(emit, block, context))
        attended = surgery.tensors[block.attended]
        readers = list(attended.outputs)  # those of the dense graph: LN2 and the second residual sum
        merging = surgery.emitter.child(f"block{block.index}/merge")
        merged = self.merge(surgery, merging, block, site, attended, h, key, value)
        if self.placed:
            surgery.members = members(surgery, merging, given(self.group))
        if surgery.valid is not None:
            surgery.born(surgery.valid, merged)
        redirect(readers, attended, merged)

    def _everyone(self, surgery: Surgery) -> Tensor:
        emit = surgery.emitter.child("groups")
        return emit.op(
            "Expand", [emit.constant(np.arange(surgery.anatomy.patches)[None]), self.column(surgery)], "all", dtype=INT64
        )

    def combine(
        self,
        surgery: Surgery,
        emit: Emitter,
        x: Tensor,
        rows: Tensor,
        sources: Tensor,
        targets: Tensor,
        r: int,
        active: Tensor | None = None,
    ) -> Tensor:
        """Size-weighted means; `self.size` follows.

        Only the r rows that something joins change. They are computed by a product of [r,r] weights with the rows that leave and
        written over the old ones, before the rows that stay are gathered. Of the sources with one target the first writes; every
        other one writes to its own row, so that no place is written twice.

        Args:
            surgery, emit: where to write. x: [B,N,C]. rows: int64 [B,M,1], token rows that stay. sources, targets: int64 [B,r], token
                rows that leave and the ones they join. active: float [B,r], 0 where a source stays after all; None = all leave.

        Returns:
            [B,M,C]; a row that nothing joins is unchanged to the last bit.
        """
        behind, across = emit.constant([2]), emit.constant([1])
        column = emit.op("Unsqueeze", [targets, behind], "targets/column", dtype=INT64)
        row = emit.op("Unsqueeze", [targets, across], "targets/row", dtype=INT64)
        moved = emit.op("Cast", [emit.op("Equal", [column, row], "hits", dtype=BOOL)], "one_hot", to=1)
        before = self.size if self.size is not None else self._ones(surgery)
        writes = self._first(emit, moved, r, active)
        place = emit.op("Where", [writes, targets, sources], "rows/place", dtype=INT64)
        share = active
        if self.size is not None:
            share = emit.op("GatherElements", [before, sources], "sources/size", axis=1)
            share = share if active is None else emit.op("Mul", [share, active], "sources/share")
        if share is not None:
            moved = emit.op("Mul", [moved, emit.op("Unsqueeze", [share, across], "share/row")], "moved")
        old = emit.constant(1.0, FLOAT) if self.size is None else emit.op("GatherElements", [before, targets], "size/old", axis=1)
        total = emit.op("Add", [emit.op("ReduceSum", [moved, behind], "joined", keepdims=0), old], "size/joined")
        joins = emit.op("Div", [moved, emit.op("Unsqueeze", [total, behind], "size/column")], "share/moved")
        from_rows = emit.op("Unsqueeze", [sources, behind], "sources/column", dtype=INT64)
        own, leaving = emit.take_rows(x, column, "rows/joined"), emit.take_rows(x, from_rows, "rows/leaving")
        mixed = emit.op("MatMul", [joins, emit.op("Sub", [leaving, own], "rows/step")], "rows/mixed")
        means = emit.op("Add", [own, mixed], "rows/means")
        if active is not None:  # what stays after all must find its own row and size as they were
            means = emit.op(
                "Where", [emit.op("Unsqueeze", [writes, behind], "writes/column", dtype=BOOL), means, leaving], "rows/new"
            )
            lone = (
                emit.constant(1.0, FLOAT)
                if self.size is None
                else emit.op("GatherElements", [before, sources], "size/own", axis=1)
            )
            total = emit.op("Where", [writes, total, lone], "size/new")
        at = emit.op("Unsqueeze", [place, behind], "rows/place_column", dtype=INT64)
        places = emit.op("Concat", [self._images(surgery, emit, at), at], "rows/places", dtype=INT64, axis=2)
        merged = emit.take_rows(emit.op("ScatterND", [x, places, means], "rows/written"), rows, "rows/merged")
        sizes = emit.op("ScatterElements", [before, place, total], "size/written", axis=1)
        flat = emit.op("Squeeze", [rows, behind], "rows/flat", dtype=INT64)
        self.size = emit.op("GatherElements", [sizes, flat], "size", axis=1)
        return merged

    def _first(self, emit: Emitter, same: Tensor, r: int, active: Tensor | None) -> Tensor:
        """Bool [B,r]: sources that leave and are the first to join their target; same [B,r,r] is 1 where two targets are equal."""
        earlier = np.tril(np.ones((r, r), np.float32), -1)
        taken = emit.op("Mul", [same, emit.constant(earlier, FLOAT)], "writes/earlier")
        if active is not None:
            taken = emit.op("Mul", [taken, emit.op("Unsqueeze", [active, emit.constant([1])], "writes/active")], "writes/before")
        taken = emit.reduce("ReduceMax", taken, 2, "writes/taken")
        if active is None:
            return emit.op("Less", [taken, emit.constant(0.5, FLOAT)], "writes", dtype=BOOL)
        free = emit.op("Sub", [active, taken], "writes/free")
        return emit.op("Greater", [free, emit.constant(0.5, FLOAT)], "writes", dtype=BOOL)

    def _ones(self, surgery: Surgery) -> Tensor:
        """Sizes [B,N] before anything has merged."""
        emit = surgery.emitter.child("sizes")
        return emit.op(
            "Expand",
            [emit.constant(np.ones((1, surgery.anatomy.prefix + surgery.anatomy.patches)), FLOAT), self.column(surgery)],
            "ones",
        )

    def _images(self, surgery: Surgery, emit: Emitter, like: Tensor) -> Tensor:
        """Number of its image in the batch for every entry of int64 [B,r,1]."""
        if self._numbers_of_images is None:
            scope = surgery.emitter.child("images")
            batch = surgery.recipe.graph.static_batch
            if batch is not None:
                numbers = scope.constant(np.arange(batch)[:, None, None])
            else:
                zero = scope.constant([0])
                count = scope.slice(self.column(surgery), 0, 1, 0, "count", dtype=INT64)
                ramp = scope.op("Slice", [scope.constant(np.arange(MOST_IMAGES)), zero, count, zero], "ramp", dtype=INT64)
                numbers = scope.op("Unsqueeze", [ramp, scope.constant([1, 2])], "numbers", dtype=INT64)
            self._numbers_of_images = numbers
        none = emit.op("Sub", [like, like], "rows/none", dtype=INT64)
        return emit.op("Add", [none, self._numbers_of_images], "rows/images", dtype=INT64)

    def rename(self, emit: Emitter, numbers: Tensor, sources: Tensor, targets: Tensor, active: Tensor | None = None) -> None:
        """Let patches represented by slot sources [B,r] be represented by slot targets [B,r]; numbers int64 [B,P'] of the slots."""
        if self.group is None:
            return
        old = emit.op("GatherElements", [numbers, sources], "trace/from", dtype=INT64, axis=1)
        new = emit.op("GatherElements", [numbers, targets], "trace/to", dtype=INT64, axis=1)
        step = emit.op("Cast", [emit.op("Sub", [new, old], "trace/step", dtype=INT64)], "trace/step_float", to=1)
        step = step if active is None else emit.op("Mul", [step, active], "trace/active_step")
        group = emit.op("Unsqueeze", [self.group, emit.constant([2])], "trace/column", dtype=INT64)
        hits = emit.op(
            "Equal", [group, emit.op("Unsqueeze", [old, emit.constant([1])], "trace/row", dtype=INT64)], "trace/hits", dtype=BOOL
        )
        moved = emit.op(
            "Mul",
            [emit.op("Cast", [hits], "trace/one_hot", to=1), emit.op("Unsqueeze", [step, emit.constant([1])], "trace/step_row")],
            "trace/moved",
        )
        total = emit.op("ReduceSum", [moved, emit.constant([2])], "trace/total", keepdims=0)  # whole numbers, exact in float32
        self.group = emit.op(
            "Add", [self.group, emit.op("Cast", [total], "trace/whole", dtype=INT64, to=7)], "trace/group", dtype=INT64
        )

    def hide(self, surgery: Surgery, emit: Emitter, keep: Tensor | None = None) -> Tensor | None:
        """Key bias of later blocks: log(size) where asked for, and pad slots (keep bool [B,K] false) out of sight; flat [B,prefix+K] or None."""
        flat = emit.op("Log", [given(self.size)], "bias/log_size") if self.proportional else None
        if keep is not None and not surgery.single:
            pad = emit.op("Cast", [emit.op("Not", [keep], "bias/pad", dtype=BOOL)], "bias/pad_float", to=1)
            hidden = self.in_front(
                surgery, emit, 0.0, emit.op("Mul", [pad, emit.constant(HIDDEN, FLOAT)], "bias/patches"), "bias/hidden"
            )
            flat = hidden if flat is None else emit.op("Add", [flat, hidden], "bias/flat")
        self.key_bias = flat
        surgery.bias = None if flat is None else emit.op("Unsqueeze", [flat, emit.constant([1, 2])], "bias")
        return flat

    def column(self, surgery: Surgery) -> Tensor:
        """Shape [B,1], to spread constants over the batch; written once."""
        if self._column is None:
            emit = surgery.emitter.child("batch")
            shape = emit.op("Shape", [surgery.graph.inputs[0]], "shape", dtype=INT64)
            batch = emit.slice(shape, 0, 1, 0, "size", dtype=INT64)
            self._column = emit.op("Concat", [batch, emit.constant([1])], "column", dtype=INT64, axis=0)
        return self._column

    def in_front(self, surgery: Surgery, emit: Emitter, value: float, x: Tensor, label: str) -> Tensor:
        """X [B,K] behind a constant for every prefix token: [B,prefix+K]."""
        prefix = surgery.anatomy.prefix
        if not prefix:
            return x
        front = emit.op("Expand", [emit.constant(np.full((1, prefix), value), FLOAT), self.column(surgery)], f"{label}/prefix")
        return emit.op("Concat", [front, x], label, axis=1)

    def token_rows(self, surgery: Surgery, emit: Emitter, behind: Tensor) -> Tensor:
        """Token rows int64 [B,prefix+K,1] of the prefix and of patch rows [B,K]."""
        if surgery.anatomy.prefix:
            front = emit.constant(np.arange(surgery.anatomy.prefix)[None])
            front = emit.op("Expand", [front, self.column(surgery)], "stay/prefix", dtype=INT64)
            behind = emit.op("Concat", [front, behind], "stay", dtype=INT64, axis=1)
        return emit.op("Unsqueeze", [behind, emit.constant([2])], "stay/column", dtype=INT64)


def metric(emit: Emitter, block: Block, key: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over heads of flat keys [B,N,H*d], and to unit length: [B,N,d] (a mean has the same direction)."""
    heads = emit.op("Reshape", [key, emit.constant([0, 0, block.heads, block.head_dim])], "metric/heads")
    total = emit.op("ReduceSum", [heads, emit.constant([2])], "metric/sum", keepdims=0)
    squares = emit.op(
        "ReduceSum", [emit.op("Mul", [total, total], "metric/squares"), emit.constant([2])], "metric/norm2", keepdims=1
    )
    floor = emit.constant(NORM_FLOOR * block.heads, FLOAT)
    return total, emit.op(
        "Div", [total, emit.op("Max", [emit.op("Sqrt", [squares], "metric/norm"), floor], "metric/length")], "metric"
    )
