"""Methods in which every token has its own depth (A-ViT): halting after every block, compaction at the sites.

Carried from block to block: the cumulated score c [B,N] of the tokens present (2 on pads, so a pad counts as halted), and for the
prefix tokens alone the remainder [B,p] and the halting-weighted sum [B,p,C] that takes the place of the last block's output
before the final norm. Halted tokens are hidden as keys by an additive bias; TokenSample ("threshold" on what is left until a token
halts) removes them at the sites. Everything that decides is float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import canonical, start, update
from vitprune.graph.emit import BOOL, FLOAT, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.passes.conditions import attention_chains
from vitprune.graph.types import Tensor, given, redirect
from vitprune.methods._dropping.operator import Roles, describe_halting, left_behind
from vitprune.methods._dropping.sampling import token_sample
from vitprune.methods.avit.keys import Params
from vitprune.methods.base import SamplingOptions, Site, keys_of
from vitprune.ops.token_sample import NAME

HIDDEN = -1.0e4
PAD = 2.0


@dataclass
class _Carried:
    """cumulated [B,N], prefix_active bool [B,p], remainder [B,p], output [B,p,C]; None while nothing has been cumulated."""

    cumulated: Tensor | None = None
    prefix_active: Tensor | None = None
    remainder: Tensor | None = None
    output: Tensor | None = None

    def roles(self) -> Roles:
        """What a step of halting takes over from the one before, by role."""
        return {"total": self.cumulated, "remainder": self.remainder, "output": self.output}


class AvitSurgery(GraphPass):
    """Write every block canonically, halting after each and compaction before the sites' blocks."""

    name = "halting"

    def requires(self, surgery: Surgery) -> str:
        """A head that reads prefix tokens alone, and sites behind at least one block."""
        if surgery.anatomy.prefix < 1:
            return "the graph has no CLS token whose halting-weighted sum could be classified"
        if surgery.anatomy.means or surgery.anatomy.pools:
            return "the head averages or pools over patches, which have no halting-weighted sum"
        depth = len(surgery.anatomy.blocks)
        return next((f"compaction before block {s.block} of {depth}" for s in surgery.sites if not 0 < s.block < depth), "")

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        sites = {site.block: site for site in surgery.sites}
        carried = _Carried()
        blocks = surgery.anatomy.blocks
        for block in blocks:
            output = surgery.tensors[block.output]
            readers = list(output.outputs)  # those of the dense graph, before any of ours
            canonical(surgery, block)
            last, site = block is blocks[-1], sites.get(block.index + 1)
            entered: Roles = {"x": output, **carried.roles(), "patch": surgery.patch}
            self._halt(surgery, block, carried, last)
            leaving: Roles = {}
            if last:
                redirect(readers, output, given(carried.output))
            elif site is not None:
                left = self._compact(surgery, site, output, carried)
                redirect(readers, output, left)
                leaving = {"rows": left, "keep": surgery.valid, **left_behind(surgery)}
            if not last:
                self._hide(surgery, block, carried)
            leaving |= {**carried.roles(), "bias": None if last else surgery.bias}
            self._describe(surgery, block, site, entered, leaving, last)
        return True

    def _describe(
        self, surgery: Surgery, block: Block, site: Site[SamplingOptions] | None, entered: Roles, leaving: Roles, last: bool
    ) -> None:
        """Note what the step behind a block does, as one operator."""
        params = keys_of(surgery.recipe.prune, Params)
        if last:
            leaving = {"output": leaving["output"]}
        describe_halting(
            surgery, site, block.heads, entered, leaving, channel=params.channel, gate_scale=float(np.float32(params.gate_scale)),
            gate_center=float(np.float32(params.gate_center)), limit=float(np.float32(1 - params.eps)),
            exits=int(params.cls_exit), last=int(last),
        )  # fmt: skip

    def _halt(self, surgery: Surgery, block: Block, carried: _Carried, last: bool) -> None:
        """Cumulate the score of every token; add the prefix tokens' weighted output (methods.md §6.1)."""
        emit = surgery.emitter.child(f"block{block.index}/halt")
        params = keys_of(surgery.recipe.prune, Params)
        prefix = surgery.anatomy.prefix
        x = surgery.tensors[block.output]
        front = emit.slice(x, 0, prefix, 1, "prefix")
        if last:
            weight = self._last_weight(emit, carried, front)
        else:
            h = self._score(emit, x, params)
            cumulated = h if carried.cumulated is None else emit.op("Add", [carried.cumulated, h], "cumulated")
            weight = self._weight(emit, params, prefix, carried, h, cumulated)
            carried.cumulated = cumulated
        share = emit.op("Mul", [front, emit.op("Unsqueeze", [weight, emit.constant([2])], "weight/column")], "share")
        carried.output = share if carried.output is None else emit.op("Add", [carried.output, share], "output")

    def _score(self, emit: Emitter, x: Tensor, params: Params) -> Tensor:
        """Halting scores sigmoid(gamma * x[:, :, channel] - beta), [B,N]."""
        column = emit.slice(x, params.channel, params.channel + 1, 2, "channel/column")
        channel = emit.op("Squeeze", [column, emit.constant([2])], "channel")
        scaled = emit.op("Mul", [channel, emit.constant(params.gate_scale, FLOAT)], "scaled")
        return emit.op("Sigmoid", [emit.op("Sub", [scaled, emit.constant(params.gate_center, FLOAT)], "centred")], "score")

    def _weight(self, emit: Emitter, params: Params, prefix: int, carried: _Carried, h: Tensor, cumulated: Tensor) -> Tensor:
        """Weights [B,p] of this block's prefix outputs: the remainder at the halt, the score before it, nothing after it."""
        limit, zero = emit.constant(1 - params.eps, FLOAT), emit.constant(0.0, FLOAT)
        h, total = emit.slice(h, 0, prefix, 1, "prefix/score"), emit.slice(cumulated, 0, prefix, 1, "prefix/cumulated")
        over = emit.op("Greater", [total, limit], "prefix/over", dtype=BOOL)
        goes_on = emit.op("Less", [total, limit], "prefix/goes_on", dtype=BOOL)
        if carried.remainder is None:
            # the first block: all are active and the remainder is 1
            one = emit.constant(1.0, FLOAT)
            rest = emit.op("Sub", [one, h], "prefix/rest")
            weight = emit.op("Where", [goes_on, h, emit.op("Cast", [over], "prefix/whole", to=1)], "prefix/weight")
            carried.remainder = emit.op("Where", [goes_on, rest, one], "prefix/remainder")
        else:
            halts = emit.op("And", [given(carried.prefix_active), over], "prefix/halts", dtype=BOOL)
            at_halt = emit.op("Where", [halts, carried.remainder, zero], "prefix/at_halt")
            rest = emit.op("Sub", [carried.remainder, h], "prefix/rest")
            # c never falls, so a token below the limit has been active all the time
            weight = emit.op("Where", [goes_on, h, at_halt], "prefix/weight")
            carried.remainder = emit.op("Where", [goes_on, rest, carried.remainder], "prefix/remainder")
        carried.prefix_active = goes_on
        return weight

    def _last_weight(self, emit: Emitter, carried: _Carried, front: Tensor) -> Tensor:
        """H := 1 in the last block: whoever is active halts with its remainder."""
        if carried.remainder is None:
            return emit.op(
                "ConstantOfShape", [emit.op("Shape", [front], "shape", dtype=np.int64, end=2)], "one", value=np.ones(1, FLOAT)
            )
        return emit.op("Where", [given(carried.prefix_active), carried.remainder, emit.constant(0.0, FLOAT)], "prefix/weight")

    def _compact(self, surgery: Surgery, site: Site[SamplingOptions], x: Tensor, carried: _Carried) -> Tensor:
        """Remove halted patches before the site's block; returns the rows [B,p+K,C] that remain."""
        emit = surgery.emitter.child(f"block{site.block}/prune")
        params = keys_of(surgery.recipe.prune, Params)
        prefix = surgery.anatomy.prefix
        ahead = emit.slice(given(carried.cumulated), 0, prefix, 1, "cumulated/prefix")
        behind = emit.slice(given(carried.cumulated), prefix, None, 1, "cumulated/patches")
        left = emit.op("Sub", [emit.constant(1 - params.eps, FLOAT), behind], "score")
        if params.cls_exit:
            # Once no prefix token goes on, nothing can reach the logits any more: all patches of the image leave.
            going = emit.op("Cast", [given(carried.prefix_active)], "exit/going", to=1)
            most = emit.op("ReduceMax", [going, emit.constant([1])], "exit/most", keepdims=1)
            alive = emit.op("Greater", [most, emit.constant(0.5, FLOAT)], "exit/alive", dtype=BOOL)
            left = emit.op("Where", [alive, left, emit.constant(-1.0, FLOAT)], "score/exit")
        start(surgery, emit, left)
        index, keep = token_sample(emit, surgery, site, left)
        rows = update(surgery, emit, index, keep)
        kept = emit.op("GatherElements", [behind, index], "cumulated/gathered", axis=1)
        kept = emit.op("Where", [keep, kept, emit.constant(PAD, FLOAT)], "cumulated/kept")
        carried.cumulated = emit.op("Concat", [ahead, kept], "cumulated/compacted", axis=1)
        staying = emit.take_rows(x, rows, "x/kept")
        surgery.born(keep, staying)
        return staying

    def _hide(self, surgery: Surgery, block: Block, carried: _Carried) -> None:
        """Key bias of the next block: halted tokens and pads provide no keys.

        Where an image has no active token left all its keys carry the same finite bias, so its softmax stays defined; what it
        yields has weight 0.
        """
        emit = surgery.emitter.child(f"block{block.index}/hide")
        limit = emit.constant(1 - keys_of(surgery.recipe.prune, Params).eps, FLOAT)
        active = emit.op("Less", [given(carried.cumulated), limit], "active", dtype=BOOL)
        flat = emit.op("Where", [active, emit.constant(0.0, FLOAT), emit.constant(HIDDEN, FLOAT)], "flat")
        surgery.bias = emit.op("Unsqueeze", [flat, emit.constant([1, 2])], "bias")

    def ensures(self, surgery: Surgery) -> str:
        """One TokenSample per site, one clean attention chain per block, and the sum over blocks in the head."""
        found = sum(node.op == NAME for node in surgery.graph.nodes)
        if found != len(surgery.sites):
            return f"{found} TokenSample nodes for {len(surgery.sites)} sites"
        last = surgery.tensors[surgery.anatomy.blocks[-1].output]
        strangers = [node.name for node in last.outputs if not node.name.startswith("vitprune/")]
        if strangers:
            return f"the head still reads the last block's output at '{strangers[0]}'"
        return attention_chains(surgery)
