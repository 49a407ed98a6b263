"""Sites where reciprocal nearest pairs merge by Ward's criterion, in unrolled rounds.

A round after the first needs no Lance-Williams update of the whole table: Ward's damage between two groups is that between their
centroids, so the few directions that changed are replaced and the distances come from one product again. Squared lengths are columns
of that product, and a slot that is empty or gone has a huge one, so that it is nobody's nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import probabilities, queries, start
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.methods._dropping.sampling import cls_attention, token_sample
from vitprune.methods._merging.joining import join_rows, leaving, ramp, reduced
from vitprune.methods._merging.surgery import MergingSurgery
from vitprune.methods.base import Site
from vitprune.methods.tome_threshold.surgery import advance
from vitprune.methods.ward_merge.keys import WardOptions, signs

NOWHERE = 1e20  # squared length of a slot that nothing may merge with
FAR = 1e10  # damage of a pair that does not exist; less than NOWHERE times any mass
LIGHTEST = 1e-9
LONGEST = 1e-12


@dataclass(frozen=True)
class Rows:
    """Rows of a site: z float [B,P,d] directions, mass float [B,P], gone float [B,P] (1 = pad or absorbed) or None while none is."""

    z: Any
    mass: Any
    gone: Any


class WardMergeSurgery(MergingSurgery):
    """Merge what does the least damage."""

    name = "ward_merging"

    def merge(
        self, surgery: Surgery, em: Emitter, block: Block, site: Site[WardOptions], x: Any, h: Any, key: Any, value: Any
    ) -> Any:
        """See `MergingSurgery.merge`."""
        options, prefix = site.options, surgery.anatomy.prefix
        patches = em.slice(x, prefix, None, 1, "rows/patches") if prefix else x
        norm = reduced(em, "ReduceL2", patches, 2, "norm")
        flat_norm = em.op("Squeeze", [norm, em.constant([2])], "norm/flat")
        if options.r is None:
            start(surgery, em, flat_norm)
        live = None
        if surgery.valid is not None and not surgery.single:
            live = em.op("Cast", [surgery.valid], "live", to=1)
        size = self._sizes(surgery, em, flat_norm)
        attention = self._attention(surgery, em, block, h, key, live)
        mass = self._mass(em, site, attention, size)
        gone = None if live is None else em.op("Sub", [em.constant(1.0, FLOAT), live], "absent")
        slots = ramp(em, flat_norm, site.patches, "slots")
        rows = Rows(self._directions(em, block, site, patches, norm), mass, gone)
        into, after = self._rounds(surgery, em, site, rows, slots)
        stay = em.op("Equal", [into, slots], "stay/bool", dtype=BOOL)
        leaves = em.op("Cast", [em.op("Not", [stay], "leaves/bool", dtype=BOOL)], "leaves", to=1)
        who = leaving(em, into, leaves, self._most(surgery, em, site, leaves))
        join = em.child("join")
        written, sizes = join_rows(join, x, prefix, who, mass, flat_norm, size, lambda like: self._images(surgery, join, like))
        before = surgery.patch
        if before is None:
            numbers = em.constant(np.arange(surgery.anatomy.patches)[None])
            before = em.op("Expand", [numbers, self.column(surgery)], "patches/all", dtype=INT64)
        self.rename(em, before, who.sources, who.targets, who.active)
        kept = em.op("Where", [stay, after, em.constant(-1.0, FLOAT)], "heaviest")
        index, keep = self._pack(surgery, em, site, kept, before)
        if self.group is not None and (options.r is not None or options.capacity):
            self._lose(surgery, em)
        self.size = self.in_front(surgery, em, 1.0, em.op("GatherElements", [sizes, index], "size/kept", axis=1), "size")
        to = em.op("Add", [index, em.constant(prefix)], "stay/rows", dtype=INT64) if prefix else index
        merged = em.take_rows(written, self.token_rows(surgery, em, to), "rows/merged")
        self.hide(surgery, em, keep)
        return merged

    def _sizes(self, surgery: Surgery, em: Emitter, like: Any) -> Any:
        """Patches per row [B,P], without the prefix."""
        if self.size is not None:
            return em.slice(self.size, surgery.anatomy.prefix, None, 1, "size/patches") if surgery.anatomy.prefix else self.size
        everyone = np.ones((1, surgery.anatomy.patches))
        return em.op("Expand", [em.constant(everyone, FLOAT), self.column(surgery)], "size/patches")

    def _attention(self, surgery: Surgery, em: Emitter, block: Block, h: Any, key: Any, live: Any) -> Any:
        """Mean over heads of the attention that every patch row receives [B,P]: from the CLS token, or without one from all queries."""
        prefix = surgery.anatomy.prefix
        share = em.constant(1.0 / block.heads, FLOAT)
        if surgery.anatomy.reads_cls and prefix:
            row = cls_attention(em, block, h, key, surgery.bias)
            total = em.op("ReduceSum", [row, em.constant([2])], "attention/sum", keepdims=0)
        else:
            every = em.child("all")
            weights = probabilities(every, block, queries(every, block, h), key, surgery.bias)
            mean = em.op("ReduceSum", [weights, em.constant([1])], "attention/heads", keepdims=0)
            asking = self.size if self.size is not None else self._ones(surgery)
            if live is not None:
                asking = em.op("Mul", [asking, self.in_front(surgery, em, 1.0, live, "asking/live")], "asking/size")
            asking = em.op("Div", [asking, em.op("ReduceSum", [asking, em.constant([1])], "asking/sum", keepdims=1)], "asking")
            received = em.op("MatMul", [em.op("Unsqueeze", [asking, em.constant([1])], "asking/row"), mean], "attention/received")
            total = em.op("Squeeze", [received, em.constant([1])], "attention/flat")
        total = em.slice(total, prefix, None, 1, "attention/patches") if prefix else total
        return em.op("Mul", [total, share], "attention")

    def _mass(self, em: Emitter, site: Site[WardOptions], attention: Any, size: Any) -> Any:
        """Size times (attention per patch, 1 = average) to the power [B,P]."""
        if site.options.power == 0:
            return size
        each = em.op("Div", [attention, size], "importance/each")
        importance = em.op("Mul", [each, em.constant(float(site.options.everyone), FLOAT)], "importance")
        power = em.op("Pow", [importance, em.constant(site.options.power, FLOAT)], "importance/power")
        return em.op("Max", [em.op("Mul", [size, power], "mass/all"), em.constant(LIGHTEST, FLOAT)], "mass")

    def _directions(self, em: Emitter, block: Block, site: Site[WardOptions], patches: Any, norm: Any) -> Any:
        """Rows at unit length [B,P,C], or sums of their channels with fixed signs [B,P,d]."""
        width, sketch = block.heads * block.head_dim, site.options.sketch
        length = em.op("Max", [norm, em.constant(LONGEST, FLOAT)], "norm/length")
        if sketch is None or sketch >= width:
            return em.op("Div", [patches, length], "directions")
        signed = em.op("Mul", [patches, em.constant(signs(width), FLOAT)], "sketch/signed")
        if missing := -width % sketch:
            signed = em.op("Pad", [signed, em.constant([0, 0, 0, 0, 0, missing])], "sketch/padded")
        split = em.op("Reshape", [signed, em.constant([0, 0, (width + missing) // sketch, sketch])], "sketch/split")
        return em.op("Div", [em.op("ReduceSum", [split, em.constant([2])], "sketch", keepdims=0), length], "directions")

    def _rounds(self, surgery: Surgery, em: Emitter, site: Site[WardOptions], rows: Rows, slots: Any) -> tuple[Any, Any]:
        """Slot where every slot ends, int64 [B,P], and masses [B,P] after all rounds."""
        into, left = None, None
        itself = self._itself(surgery, em, site, slots)
        for number in range(site.options.rounds):
            scope = em.child(f"round{number}")
            partner, mutual, cost = self._nearest(scope, rows, slots, itself)
            joins, left = self._joins(scope, site, partner, mutual, cost, slots, left)
            step = scope.op("Where", [joins, partner, slots], "step", dtype=INT64)
            into = step if into is None else scope.op("GatherElements", [step, into], "into", dtype=INT64, axis=1)
            rows = self._grow(scope, rows, partner, mutual, joins, last=number + 1 == site.options.rounds)
        return into, rows.mass

    def _itself(self, surgery: Surgery, em: Emitter, site: Site[WardOptions], slots: Any) -> Any:
        """Float [P,P], FAR on the diagonal: no slot is its own nearest."""
        everyone = surgery.anatomy.patches
        table = np.zeros((everyone, everyone), np.float32)
        np.fill_diagonal(table, FAR)
        length = em.slice(em.op("Shape", [slots], "itself/shape", dtype=INT64), 1, 2, 0, "itself/length", dtype=INT64)
        both = em.op("Concat", [length, length], "itself/both", dtype=INT64, axis=0)
        return em.op("Slice", [em.constant(table, FLOAT), em.constant([0, 0]), both, em.constant([0, 1])], "itself")

    def _nearest(self, em: Emitter, rows: Rows, slots: Any, itself: Any) -> tuple[Any, Any, Any]:
        """Cheapest partner int64 [B,P], whether that is mutual, bool [B,P], and its damage [B,P]."""
        behind = em.constant([2])
        length = em.op("ReduceSum", [em.op("Mul", [rows.z, rows.z], "squares"), behind], "length2", keepdims=1)
        if rows.gone is not None:
            away = em.op("Mul", [rows.gone, em.constant(NOWHERE, FLOAT)], "nowhere")
            length = em.op("Add", [length, em.op("Unsqueeze", [away, behind], "nowhere/column")], "length2/live")
        none = em.op("Mul", [length, em.constant(0.0, FLOAT)], "zero")
        one = em.op("Add", [none, em.constant(1.0, FLOAT)], "one")
        minus = em.op("Mul", [rows.z, em.constant(-2.0, FLOAT)], "minus2")
        first = em.op("Concat", [minus, length, one], "first", axis=2)
        second = em.op("Transpose", [em.op("Concat", [rows.z, one, length], "second", axis=2)], "second/columns", perm=[0, 2, 1])
        inverse = em.op("Div", [em.constant(1.0, FLOAT), rows.mass], "inverse")
        spread = em.op(
            "Add",
            [
                em.op("Unsqueeze", [inverse, behind], "inverse/column"),
                em.op("Unsqueeze", [inverse, em.constant([1])], "inverse/row"),
            ],
            "spread",
        )  # 1 / m_i + 1 / m_j
        damage = em.op(
            "Add", [em.op("Div", [em.op("MatMul", [first, second], "distance2"), spread], "damage"), itself], "damage/others"
        )
        partner = em.op("ArgMin", [damage], "partner", dtype=INT64, axis=2, keepdims=0)
        at = em.op("Unsqueeze", [partner, behind], "partner/column", dtype=INT64)
        cost = em.op("Squeeze", [em.op("GatherElements", [damage, at], "cost/column", axis=2), behind], "cost")
        back = em.op("GatherElements", [partner, partner], "partner/back", dtype=INT64, axis=1)
        return partner, em.op("Equal", [back, slots], "mutual", dtype=BOOL), cost

    def _joins(
        self, em: Emitter, site: Site[WardOptions], partner: Any, mutual: Any, cost: Any, slots: Any, left: Any
    ) -> tuple[Any, Any]:
        """Bool [B,P], slots that join their partner; with fixed counts also how many pairs may still merge, float [B,1]."""
        higher = em.op("And", [mutual, em.op("Greater", [slots, partner], "higher/slot", dtype=BOOL)], "higher", dtype=BOOL)
        r = site.options.r
        if r is None:
            cheap = em.op("Less", [cost, em.constant(site.options.limit, FLOAT)], "cheap", dtype=BOOL)
            return em.op("And", [higher, cheap], "joins", dtype=BOOL), None
        r = min(r, site.patches)
        open_cost = em.op("Where", [higher, cost, em.constant(FAR, FLOAT)], "cost/pairs")
        outputs = [(FLOAT, None), (INT64, None)]
        costs, chosen = em.ops("TopK", [open_cost, em.constant([r])], "cheapest", outputs, axis=1, largest=0)
        real = em.op("Less", [costs, em.constant(FAR / 2, FLOAT)], "cheapest/real", dtype=BOOL)
        if left is not None:
            room = em.op("Less", [em.constant(np.arange(r)[None], FLOAT), left], "cheapest/room", dtype=BOOL)
            real = em.op("And", [real, room], "cheapest/left", dtype=BOOL)
        taken = em.op("Cast", [real], "taken", to=1)
        spent = em.op("ReduceSum", [taken, em.constant([1])], "spent", keepdims=1)
        left = em.op("Sub", [em.constant(float(r), FLOAT) if left is None else left, spent], "left")
        none = em.op("Mul", [cost, em.constant(0.0, FLOAT)], "none")
        marked = em.op("ScatterElements", [none, chosen, taken], "joins/float", axis=1)
        return em.op("Greater", [marked, em.constant(0.5, FLOAT)], "joins", dtype=BOOL), left

    def _grow(self, em: Emitter, rows: Rows, partner: Any, mutual: Any, joins: Any, last: bool) -> Rows:
        """After a round: masses add, a pair's direction is its centroid, absorbed slots are gone (after the last round only masses)."""
        absorbed = em.op("Cast", [joins], "absorbed", to=1)
        joined = em.op("GatherElements", [absorbed, partner], "joined", axis=1)
        joined = em.op("Mul", [joined, em.op("Cast", [mutual], "mutual/float", to=1)], "joined/mutual")
        theirs = em.op("Mul", [joined, em.op("GatherElements", [rows.mass, partner], "mass/partner", axis=1)], "mass/joined")
        mass = em.op("Add", [rows.mass, theirs], "mass/after")
        if last:
            return Rows(rows.z, mass, rows.gone)
        behind = em.constant([2])
        share = em.op("Unsqueeze", [em.op("Div", [theirs, mass], "share"), behind], "share/column")
        other = em.take_rows(rows.z, em.op("Unsqueeze", [partner, behind], "partner/rows", dtype=INT64), "directions/partner")
        step = em.op("Mul", [em.op("Sub", [other, rows.z], "directions/apart"), share], "directions/step")
        gone = absorbed if rows.gone is None else em.op("Max", [rows.gone, absorbed], "gone")
        return Rows(em.op("Add", [rows.z, step], "directions/after"), mass, gone)

    def _most(self, surgery: Surgery, em: Emitter, site: Site[WardOptions], leaves: Any) -> Any:
        """How many slots to look at as sources, int64 [1]: the largest number of an image, or a bound where shapes are constant."""
        if site.options.r is not None:
            return em.constant([min(site.options.r, site.patches - 1)])
        if surgery.padded:
            return em.constant([max(1, site.patches - -(-site.patches // 2**site.options.rounds))])
        count = em.op("ReduceSum", [leaves, em.constant([1])], "leaves/count", keepdims=0)
        most = em.op("Max", [reduced(em, "ReduceMax", count, 0, "leaves/most"), em.constant([1.0], FLOAT)], "leaves/some")
        return em.op("Cast", [most], "leaves/whole", dtype=INT64, to=7)

    def _pack(self, surgery: Surgery, em: Emitter, site: Site[WardOptions], kept: Any, before: Any) -> tuple[Any, Any]:
        """Slots that stay, int64 [B,K] ascending, and which of them are real (None: all); patch numbers and kept list follow."""
        if site.options.r is None:
            index, keep = token_sample(em, surgery, site, kept)
            advance(surgery, em, index, keep)
            return index, keep
        count, outputs = em.constant([site.limit]), [(FLOAT, None), (INT64, None)]
        _, heaviest = em.ops("TopK", [kept, count], "stay/heaviest", outputs, axis=1)
        numbers = em.op("Cast", [heaviest], "stay/float", to=1)
        ordered, _ = em.ops("TopK", [numbers, count], "stay/ordered", outputs, axis=1, largest=0)
        index = em.op("Cast", [ordered], "stay/index", dtype=INT64, to=7)
        surgery.patch = em.op("GatherElements", [before, index], "kept", dtype=INT64, axis=1)
        surgery.kept.append(surgery.patch)
        return index, None

    def _lose(self, surgery: Surgery, em: Emitter) -> None:
        """Patches whose row a capacity lost are represented by none: -1."""
        group = em.op("Unsqueeze", [self.group, em.constant([2])], "lost/column", dtype=INT64)
        row = em.op("Unsqueeze", [surgery.kept[-1], em.constant([1])], "lost/row", dtype=INT64)
        found = em.op("Cast", [em.op("Equal", [group, row], "lost/same", dtype=BOOL)], "lost/hits", to=1)
        hit = em.op(
            "Greater", [reduced(em, "ReduceMax", found, 2, "lost/any", 0), em.constant(0.5, FLOAT)], "lost/present", dtype=BOOL
        )
        self.group = em.op("Where", [hit, self.group, em.constant(-1)], "lost", dtype=INT64)
