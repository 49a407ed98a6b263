"""Sites where pairs above a similarity merge, at most r_max (threshold merging); counts follow the image.

At most r_max sources are looked at, so everything but the gather of the rows that stay has a constant size. The rows that stay
are packed by a TokenSample node over "stays / leaves" scores, in ascending patch order.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import advance, start
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.outlines import outline
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Tensor
from vitprune.methods._dropping.sampling import token_sample
from vitprune.methods._merging.keys import NORM_FLOOR
from vitprune.methods._merging.matching import every_second, partners, similarity, spread, starts
from vitprune.methods._merging.surgery import IMPOSSIBLE, MergingSurgery, metric
from vitprune.methods.base import Site
from vitprune.methods.tome_threshold.keys import TomeThresholdOptions
from vitprune.ops.sites import PAIR_MERGE


class TomeThresholdSurgery(MergingSurgery):
    """Merge pairs above tau, at most r_max per site and image."""

    name = "threshold_merging"

    def merge(
        self,
        surgery: Surgery,
        emit: Emitter,
        block: Block,
        site: Site[TomeThresholdOptions],
        x: Tensor,
        h: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """See `MergingSurgery.merge`."""
        prefix, r = surgery.anatomy.prefix, site.options.r_max
        first_a, first_b = starts(prefix)
        summed, unit = metric(emit, block, key)
        padded, before = surgery.valid is not None and not surgery.single, surgery.patch
        start(
            surgery,
            emit,
            emit.slice(emit.op("ReduceSum", [unit, emit.constant([2])], "rows", keepdims=0), prefix, None, 1, "slots"),
        )
        live = emit.op("Cast", [surgery.slots.valid], "live", to=1)
        cosines = similarity(emit, unit, prefix)
        if padded:
            cosines = emit.op("Sub", [cosines, self._absent(emit, live, first_b - prefix, "b", 1)], "similarity/live")
        best = emit.reduce("ReduceMax", cosines, 2, "best")
        if padded:
            best = emit.op("Sub", [best, self._absent(emit, live, first_a - prefix, "a", None)], "best/live")
        alike, members = emit.ops("TopK", [best, emit.constant([r])], "rank", [(FLOAT, None), (INT64, None)], axis=1)
        active = emit.op("Cast", [self._merges(emit, site, alike, live)], "active", to=1)
        sources = spread(emit, members, first_a, "sources")
        targets = spread(emit, partners(emit, cosines, members), first_b, "targets")
        leaving = spread(emit, members, first_a - prefix, "leaving")
        stays = emit.op("Sub", [emit.constant(1.0, FLOAT), active], "stays")
        score = emit.op("ScatterElements", [live, leaving, stays], "score", axis=1)  # every source once: no reduction
        valid = surgery.valid if padded else None
        entering = {"x": x, "metric": summed, "size": self.size, "valid": valid, "group": self.group, "patch": before}
        index, keep = token_sample(emit, surgery, site, score)
        if self.group is not None:
            slots = emit.op("Sub", [targets, emit.constant(prefix)], "trace/targets", dtype=INT64)
            self.rename(emit, surgery.slots.patch, leaving, slots, active)
        advance(surgery, emit, index, keep)
        stay = emit.op("Add", [index, emit.constant(prefix)], "stay/patches", dtype=INT64)
        merged = self.combine(surgery, emit, x, self.token_rows(surgery, emit, stay), sources, targets, r, active)
        leaving_ = {"rows": merged, "size": self.size, "index": index, "keep": keep, "group": self.group}
        leaving_ |= {"bias": self.hide(surgery, emit, keep), "patch": surgery.patch, "kept": surgery.kept[-1]}
        surgery.outlines.append(
            outline(
                PAIR_MERGE, entering, leaving_, prefix=prefix, pairs=r, padded=int(surgery.padded), loses=0, by_threshold=1,
                most=site.limit if surgery.padded else site.options.most or 0, threshold=float(site.options.tau),
                proportional=int(self.proportional), floor=NORM_FLOOR * block.heads,
            )
        )  # fmt: skip
        return merged

    def _absent(self, emit: Emitter, live: Tensor, first: int, label: str, axis: int | None) -> Tensor:
        """IMPOSSIBLE on pads of one set, 0 elsewhere: [B,S], or [B,1,S] with axis 1."""
        missing = emit.op("Sub", [emit.constant(1.0, FLOAT), every_second(emit, live, first, f"live/{label}")], f"absent/{label}")
        penalty = emit.op("Mul", [missing, emit.constant(IMPOSSIBLE, FLOAT)], f"penalty/{label}")
        return penalty if axis is None else emit.op("Unsqueeze", [penalty, emit.constant([axis])], f"penalty/{label}_row")

    def _merges(self, emit: Emitter, site: Site[TomeThresholdOptions], alike: Tensor, live: Tensor) -> Tensor:
        """Which of the r_max best pairs [B,r] merge: those above tau, and those that a capacity demands."""
        above = emit.op("Greater", [alike, emit.constant(site.options.tau, FLOAT)], "above", dtype=BOOL)
        most = site.options.most
        if most is None:
            return above
        count = emit.op("ReduceSum", [live, emit.constant([1])], "count", keepdims=1)
        excess = emit.op("Sub", [count, emit.constant(float(most), FLOAT)], "excess")
        places = emit.constant(np.arange(site.options.r_max)[None], FLOAT)
        return emit.op("Or", [above, emit.op("Less", [places, excess], "forced", dtype=BOOL)], "merges", dtype=BOOL)
