"""Sites where reciprocal nearest pairs merge by Ward's criterion, in unrolled rounds.

A round after the first needs no Lance-Williams update of the whole table: Ward's damage between two groups is that between their
centroids, so the few directions that changed are replaced and the distances come from one product again. Squared lengths are columns
of that product, and a slot that is empty or gone has a huge one, so that it is nobody's nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import advance, probabilities, queries, start
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.graph.turning import turned
from vitprune.graph.types import Tensor, given
from vitprune.methods._dropping.sampling import cls_attention, token_sample
from vitprune.methods._merging.joining import join_rows, leaving, ramp
from vitprune.methods._merging.surgery import MergingSurgery
from vitprune.methods.base import Site
from vitprune.methods.ward_merge.keys import WardOptions, signs
from vitprune.methods.ward_merge.operator import Roles, described

NOWHERE = 1e20  # squared length of a slot that nothing may merge with
FAR = 1e10  # damage of a pair that does not exist; less than NOWHERE times any mass
LIGHTEST = 1e-9
LONGEST = 1e-12


@dataclass(frozen=True)
class Rows:
    """Rows of a site: z float [B,P,d] directions, mass float [B,P], gone float [B,P] (1 = pad or absorbed) or None while none is."""

    z: Tensor
    mass: Tensor
    gone: Tensor | None


class WardMergeSurgery(MergingSurgery):
    """Merge what does the least damage."""

    name = "ward_merging"

    def merge(
        self,
        surgery: Surgery,
        emit: Emitter,
        block: Block,
        site: Site[WardOptions],
        x: Tensor,
        h: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """See `MergingSurgery.merge`."""
        options, prefix, asked_bias = site.options, surgery.anatomy.prefix, self.key_bias
        entered = (surgery.valid, surgery.patch)
        patches = emit.slice(x, prefix, None, 1, "rows/patches") if prefix else x
        norm = emit.reduce("ReduceL2", patches, 2, "norm", keepdims=1)
        flat_norm = emit.op("Squeeze", [norm, emit.constant([2])], "norm/flat")
        if options.r is None:
            start(surgery, emit, flat_norm)
        live = None
        if surgery.valid is not None and not surgery.single:
            live = emit.op("Cast", [surgery.valid], "live", to=1)
        size = self._sizes(surgery, emit, flat_norm)
        by_cls, turned_key = surgery.anatomy.reads_cls and prefix, given(self.turned_key)
        row = cls_attention(surgery, emit, block, h, turned_key, surgery.bias) if by_cls else None
        attention = self._attention(surgery, emit, block, h, turned_key, live, row)
        mass = self._mass(emit, site, attention, size)
        gone = None if live is None else emit.op("Sub", [emit.constant(1.0, FLOAT), live], "absent")
        slots = ramp(emit, flat_norm, site.patches, "slots")
        summed, directions = self._directions(emit, block, site, patches, norm)
        rows = Rows(directions, mass, gone)
        into, after = self._rounds(surgery, emit, site, rows, slots)
        received = (attention if row is None else row) if site.options.power else None
        entering: Roles = {
            "x": x,
            "metric": summed,
            "attention": received,
            "size": self.size,
            "valid": None if live is None else entered[0],
            "patch": entered[1],
            "group": self.group,
        }
        if row is not None and site.options.power:
            entering |= {"query": self.turned_query, "key": self.turned_key, "asked_bias": asked_bias}
        stay = emit.op("Equal", [into, slots], "stay/bool", dtype=BOOL)
        leaves = emit.op("Cast", [emit.op("Not", [stay], "leaves/bool", dtype=BOOL)], "leaves", to=1)
        who = leaving(emit, into, leaves, self._most(surgery, emit, site, leaves))
        join = emit.child("join")
        written, sizes = join_rows(join, x, prefix, who, mass, flat_norm, size, lambda like: self._images(surgery, join, like))
        before = surgery.patch
        if before is None:
            numbers = emit.constant(np.arange(surgery.anatomy.patches)[None])
            before = emit.op("Expand", [numbers, self.column(surgery)], "patches/all", dtype=INT64)
        self.rename(emit, before, who.sources, who.targets, who.active)
        kept = emit.op("Where", [stay, after, emit.constant(-1.0, FLOAT)], "heaviest")
        index, keep = self._pack(surgery, emit, site, kept, before)
        if self.group is not None and (options.r is not None or options.capacity):
            self._lose(surgery, emit)
        self.size = self.in_front(surgery, emit, 1.0, emit.op("GatherElements", [sizes, index], "size/kept", axis=1), "size")
        to = emit.op("Add", [index, emit.constant(prefix)], "stay/rows", dtype=INT64) if prefix else index
        merged = emit.take_rows(written, self.token_rows(surgery, emit, to), "rows/merged")
        leaving_: Roles = {"rows": merged, "size": self.size, "index": index, "keep": keep, "group": self.group}
        leaving_ |= {"bias": self.hide(surgery, emit, keep), "patch": surgery.patch, "kept": surgery.kept[-1]}
        surgery.outlines.append(described(surgery, site, entering, leaving_, block.heads, row is not None, self.proportional))
        return merged

    def _sizes(self, surgery: Surgery, emit: Emitter, like: Tensor) -> Tensor:
        """Patches per row [B,P], without the prefix."""
        if self.size is not None:
            return emit.slice(self.size, surgery.anatomy.prefix, None, 1, "size/patches") if surgery.anatomy.prefix else self.size
        everyone = np.ones((1, surgery.anatomy.patches))
        return emit.op("Expand", [emit.constant(everyone, FLOAT), self.column(surgery)], "size/patches")

    def _attention(
        self, surgery: Surgery, emit: Emitter, block: Block, h: Tensor, key: Tensor, live: Tensor | None, row: Tensor | None
    ) -> Tensor:
        """Mean over heads of the attention that every patch row receives [B,P]: from the CLS token (row [B,N,H]), or from all queries."""
        prefix = surgery.anatomy.prefix
        share = emit.constant(1.0 / block.heads, FLOAT)
        if row is not None:
            total = emit.op("ReduceSum", [row, emit.constant([2])], "attention/sum", keepdims=0)
        else:
            every = emit.child("all")
            weights = probabilities(
                surgery, every, block, turned(surgery, every, block, queries(every, block, h), "q"), key, surgery.bias
            )
            mean = emit.op("ReduceSum", [weights, emit.constant([1])], "attention/heads", keepdims=0)
            asking = self.size if self.size is not None else self._ones(surgery)
            if live is not None:
                asking = emit.op("Mul", [asking, self.in_front(surgery, emit, 1.0, live, "asking/live")], "asking/size")
            asking = emit.op(
                "Div", [asking, emit.op("ReduceSum", [asking, emit.constant([1])], "asking/sum", keepdims=1)], "asking"
            )
            received = emit.op(
                "MatMul", [emit.op("Unsqueeze", [asking, emit.constant([1])], "asking/row"), mean], "attention/received"
            )
            total = emit.op("Squeeze", [received, emit.constant([1])], "attention/flat")
        total = emit.slice(total, prefix, None, 1, "attention/patches") if prefix else total
        return emit.op("Mul", [total, share], "attention")

    def _mass(self, emit: Emitter, site: Site[WardOptions], attention: Tensor, size: Tensor) -> Tensor:
        """Size times (attention per patch, 1 = average) to the power [B,P]."""
        if site.options.power == 0:
            return size
        each = emit.op("Div", [attention, size], "importance/each")
        importance = emit.op("Mul", [each, emit.constant(float(site.options.everyone), FLOAT)], "importance")
        power = emit.op("Pow", [importance, emit.constant(site.options.power, FLOAT)], "importance/power")
        return emit.op("Max", [emit.op("Mul", [size, power], "mass/all"), emit.constant(LIGHTEST, FLOAT)], "mass")

    def _directions(
        self, emit: Emitter, block: Block, site: Site[WardOptions], patches: Tensor, norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows [B,P,C], or sums of their channels with fixed signs [B,P,d], as they are and over the rows' length."""
        width, sketch = block.heads * block.head_dim, site.options.sketch
        length = emit.op("Max", [norm, emit.constant(LONGEST, FLOAT)], "norm/length")
        if sketch is None or sketch >= width:
            return patches, emit.op("Div", [patches, length], "directions")
        signed = emit.op("Mul", [patches, emit.constant(signs(width), FLOAT)], "sketch/signed")
        if missing := -width % sketch:
            signed = emit.op("Pad", [signed, emit.constant([0, 0, 0, 0, 0, missing])], "sketch/padded")
        split = emit.op("Reshape", [signed, emit.constant([0, 0, (width + missing) // sketch, sketch])], "sketch/split")
        summed = emit.op("ReduceSum", [split, emit.constant([2])], "sketch", keepdims=0)
        return summed, emit.op("Div", [summed, length], "directions")

    def _rounds(
        self, surgery: Surgery, emit: Emitter, site: Site[WardOptions], rows: Rows, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slot where every slot ends, int64 [B,P], and masses [B,P] after all rounds."""
        into: Tensor | None = None
        left: Tensor | None = None
        itself = self._itself(surgery, emit, site, slots)
        for number in range(site.options.rounds):
            scope = emit.child(f"round{number}")
            partner, mutual, cost = self._nearest(scope, rows, slots, itself)
            joins, left = self._joins(scope, site, partner, mutual, cost, slots, left)
            step = scope.op("Where", [joins, partner, slots], "step", dtype=INT64)
            into = step if into is None else scope.op("GatherElements", [step, into], "into", dtype=INT64, axis=1)
            rows = self._grow(scope, rows, partner, mutual, joins, last=number + 1 == site.options.rounds)
        return given(into), rows.mass

    def _itself(self, surgery: Surgery, emit: Emitter, site: Site[WardOptions], slots: Tensor) -> Tensor:
        """Float [P,P], FAR on the diagonal: no slot is its own nearest."""
        everyone = surgery.anatomy.patches
        table = np.zeros((everyone, everyone), np.float32)
        np.fill_diagonal(table, FAR)
        length = emit.slice(emit.op("Shape", [slots], "itself/shape", dtype=INT64), 1, 2, 0, "itself/length", dtype=INT64)
        both = emit.op("Concat", [length, length], "itself/both", dtype=INT64, axis=0)
        return emit.op("Slice", [emit.constant(table, FLOAT), emit.constant([0, 0]), both, emit.constant([0, 1])], "itself")

    def _nearest(self, emit: Emitter, rows: Rows, slots: Tensor, itself: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cheapest partner int64 [B,P], whether that is mutual, bool [B,P], and its damage [B,P]."""
        behind = emit.constant([2])
        length = emit.op("ReduceSum", [emit.op("Mul", [rows.z, rows.z], "squares"), behind], "length2", keepdims=1)
        if rows.gone is not None:
            away = emit.op("Mul", [rows.gone, emit.constant(NOWHERE, FLOAT)], "nowhere")
            length = emit.op("Add", [length, emit.op("Unsqueeze", [away, behind], "nowhere/column")], "length2/live")
        none = emit.op("Mul", [length, emit.constant(0.0, FLOAT)], "zero")
        one = emit.op("Add", [none, emit.constant(1.0, FLOAT)], "one")
        minus = emit.op("Mul", [rows.z, emit.constant(-2.0, FLOAT)], "minus2")
        first = emit.op("Concat", [minus, length, one], "first", axis=2)
        second = emit.op(
            "Transpose", [emit.op("Concat", [rows.z, one, length], "second", axis=2)], "second/columns", perm=[0, 2, 1]
        )
        inverse = emit.op("Div", [emit.constant(1.0, FLOAT), rows.mass], "inverse")
        spread = emit.op(
            "Add",
            [
                emit.op("Unsqueeze", [inverse, behind], "inverse/column"),
                emit.op("Unsqueeze", [inverse, emit.constant([1])], "inverse/row"),
            ],
            "spread",
        )  # 1 / m_i + 1 / m_j
        damage = emit.op(
            "Add", [emit.op("Div", [emit.op("MatMul", [first, second], "distance2"), spread], "damage"), itself], "damage/others"
        )
        partner = emit.op("ArgMin", [damage], "partner", dtype=INT64, axis=2, keepdims=0)
        at = emit.op("Unsqueeze", [partner, behind], "partner/column", dtype=INT64)
        cost = emit.op("Squeeze", [emit.op("GatherElements", [damage, at], "cost/column", axis=2), behind], "cost")
        back = emit.op("GatherElements", [partner, partner], "partner/back", dtype=INT64, axis=1)
        return partner, emit.op("Equal", [back, slots], "mutual", dtype=BOOL), cost

    def _joins(
        self,
        emit: Emitter,
        site: Site[WardOptions],
        partner: Tensor,
        mutual: Tensor,
        cost: Tensor,
        slots: Tensor,
        left: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Bool [B,P], slots that join their partner; with fixed counts also how many pairs may still merge, float [B,1]."""
        higher = emit.op("And", [mutual, emit.op("Greater", [slots, partner], "higher/slot", dtype=BOOL)], "higher", dtype=BOOL)
        r = site.options.r
        if r is None:
            cheap = emit.op("Less", [cost, emit.constant(site.options.limit, FLOAT)], "cheap", dtype=BOOL)
            return emit.op("And", [higher, cheap], "joins", dtype=BOOL), None
        r = min(r, site.patches)
        open_cost = emit.op("Where", [higher, cost, emit.constant(FAR, FLOAT)], "cost/pairs")
        outputs = [(FLOAT, None), (INT64, None)]
        costs, chosen = emit.ops("TopK", [open_cost, emit.constant([r])], "cheapest", outputs, axis=1, largest=0)
        real = emit.op("Less", [costs, emit.constant(FAR / 2, FLOAT)], "cheapest/real", dtype=BOOL)
        if left is not None:
            room = emit.op("Less", [emit.constant(np.arange(r)[None], FLOAT), left], "cheapest/room", dtype=BOOL)
            real = emit.op("And", [real, room], "cheapest/left", dtype=BOOL)
        taken = emit.op("Cast", [real], "taken", to=1)
        spent = emit.op("ReduceSum", [taken, emit.constant([1])], "spent", keepdims=1)
        left = emit.op("Sub", [emit.constant(float(r), FLOAT) if left is None else left, spent], "left")
        none = emit.op("Mul", [cost, emit.constant(0.0, FLOAT)], "none")
        marked = emit.op("ScatterElements", [none, chosen, taken], "joins/float", axis=1)
        return emit.op("Greater", [marked, emit.constant(0.5, FLOAT)], "joins", dtype=BOOL), left

    def _grow(self, emit: Emitter, rows: Rows, partner: Tensor, mutual: Tensor, joins: Tensor, last: bool) -> Rows:
        """After a round: masses add, a pair's direction is its centroid, absorbed slots are gone (after the last round only masses)."""
        absorbed = emit.op("Cast", [joins], "absorbed", to=1)
        joined = emit.op("GatherElements", [absorbed, partner], "joined", axis=1)
        joined = emit.op("Mul", [joined, emit.op("Cast", [mutual], "mutual/float", to=1)], "joined/mutual")
        theirs = emit.op("Mul", [joined, emit.op("GatherElements", [rows.mass, partner], "mass/partner", axis=1)], "mass/joined")
        mass = emit.op("Add", [rows.mass, theirs], "mass/after")
        if last:
            return Rows(rows.z, mass, rows.gone)
        behind = emit.constant([2])
        share = emit.op("Unsqueeze", [emit.op("Div", [theirs, mass], "share"), behind], "share/column")
        other = emit.take_rows(rows.z, emit.op("Unsqueeze", [partner, behind], "partner/rows", dtype=INT64), "directions/partner")
        step = emit.op("Mul", [emit.op("Sub", [other, rows.z], "directions/apart"), share], "directions/step")
        gone = absorbed if rows.gone is None else emit.op("Max", [rows.gone, absorbed], "gone")
        return Rows(emit.op("Add", [rows.z, step], "directions/after"), mass, gone)

    def _most(self, surgery: Surgery, emit: Emitter, site: Site[WardOptions], leaves: Tensor) -> Tensor:
        """How many slots to look at as sources, int64 [1]: the largest number of an image, or a bound where shapes are constant."""
        if site.options.r is not None:
            return emit.constant([min(site.options.r, site.patches - 1)])
        if surgery.padded:
            return emit.constant([max(1, site.patches - -(-site.patches // 2**site.options.rounds))])
        count = emit.op("ReduceSum", [leaves, emit.constant([1])], "leaves/count", keepdims=0)
        most = emit.op(
            "Max", [emit.reduce("ReduceMax", count, 0, "leaves/most", keepdims=1), emit.constant([1.0], FLOAT)], "leaves/some"
        )
        return emit.op("Cast", [most], "leaves/whole", dtype=INT64, to=7)

    def _pack(
        self, surgery: Surgery, emit: Emitter, site: Site[WardOptions], kept: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Slots that stay, int64 [B,K] ascending, and which of them are real (None: all); patch numbers and kept list follow."""
        if site.options.r is None:
            index, keep = token_sample(emit, surgery, site, kept)
            advance(surgery, emit, index, keep)
            return index, keep
        count, outputs = emit.constant([site.limit]), [(FLOAT, None), (INT64, None)]
        _, heaviest = emit.ops("TopK", [kept, count], "stay/heaviest", outputs, axis=1)
        numbers = emit.op("Cast", [heaviest], "stay/float", to=1)
        ordered, _ = emit.ops("TopK", [numbers, count], "stay/ordered", outputs, axis=1, largest=0)
        index = emit.op("Cast", [ordered], "stay/index", dtype=INT64, to=7)
        surgery.patch = emit.op("GatherElements", [before, index], "kept", dtype=INT64, axis=1)
        surgery.kept.append(surgery.patch)
        return index, None

    def _lose(self, surgery: Surgery, emit: Emitter) -> None:
        """Patches whose row a capacity lost are represented by none: -1."""
        group = emit.op("Unsqueeze", [given(self.group), emit.constant([2])], "lost/column", dtype=INT64)
        row = emit.op("Unsqueeze", [given(surgery.kept[-1]), emit.constant([1])], "lost/row", dtype=INT64)
        found = emit.op("Cast", [emit.op("Equal", [group, row], "lost/same", dtype=BOOL)], "lost/hits", to=1)
        hit = emit.op(
            "Greater", [emit.reduce("ReduceMax", found, 2, "lost/any"), emit.constant(0.5, FLOAT)], "lost/present", dtype=BOOL
        )
        self.group = emit.op("Where", [hit, given(self.group), emit.constant(-1)], "lost", dtype=INT64)
