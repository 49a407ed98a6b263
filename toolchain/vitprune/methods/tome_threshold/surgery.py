"""Sites where pairs above a similarity merge, at most r_max (threshold merging); counts follow the image.

At most r_max sources are looked at, so everything but the gather of the rows that stay has a constant size. The rows that stay
are packed by a TokenSample node over "stays / leaves" scores, in ascending patch order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import start
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.methods._dropping.sampling import token_sample
from vitprune.methods._merging.matching import every_second, partners, similarity, spread, starts
from vitprune.methods._merging.surgery import IMPOSSIBLE, MergingSurgery, highest, metric
from vitprune.methods.base import Site
from vitprune.methods.tome_threshold.keys import TomeThresholdOptions


class TomeThresholdSurgery(MergingSurgery):
    """Merge pairs above tau, at most r_max per site and image."""

    name = "threshold_merging"

    def merge(
        self, surgery: Surgery, em: Emitter, block: Block, site: Site[TomeThresholdOptions], x: Any, h: Any, key: Any, value: Any
    ) -> Any:
        """See `MergingSurgery.merge`."""
        prefix, r = surgery.anatomy.prefix, site.options.r_max
        first_a, first_b = starts(prefix)
        unit = metric(em, block, key)
        padded = surgery.valid is not None and not surgery.single
        start(surgery, em, em.slice(em.op("ReduceSum", [unit, em.constant([2])], "rows", keepdims=0), prefix, None, 1, "slots"))
        live = em.op("Cast", [surgery.valid], "live", to=1)
        cosines = similarity(em, unit, prefix)
        if padded:
            cosines = em.op("Sub", [cosines, self._absent(em, live, first_b - prefix, "b", 1)], "similarity/live")
        best = highest(em, cosines, 2, "best")
        if padded:
            best = em.op("Sub", [best, self._absent(em, live, first_a - prefix, "a", None)], "best/live")
        alike, members = em.ops("TopK", [best, em.constant([r])], "rank", [(FLOAT, None), (INT64, None)], axis=1)
        active = em.op("Cast", [self._merges(em, site, alike, live)], "active", to=1)
        sources = spread(em, members, first_a, "sources")
        targets = spread(em, partners(em, cosines, members), first_b, "targets")
        leaving = spread(em, members, first_a - prefix, "leaving")
        stays = em.op("Sub", [em.constant(1.0, FLOAT), active], "stays")
        score = em.op("ScatterElements", [live, leaving, stays], "score", axis=1)  # every source once: no reduction
        index, keep = token_sample(em, surgery, site, score)
        if self.group is not None:
            slots = em.op("Sub", [targets, em.constant(prefix)], "trace/targets", dtype=INT64)
            self.rename(em, surgery.patch, leaving, slots, active)
        advance(surgery, em, index, keep)
        stay = em.op("Add", [index, em.constant(prefix)], "stay/patches", dtype=INT64)
        merged = self.combine(surgery, em, x, self.token_rows(surgery, em, stay), sources, targets, r, active)
        self.hide(surgery, em, keep)
        return merged

    def _absent(self, em: Emitter, live: Any, first: int, label: str, axis: int | None) -> Any:
        """IMPOSSIBLE on pads of one set, 0 elsewhere: [B,S], or [B,1,S] with axis 1."""
        missing = em.op("Sub", [em.constant(1.0, FLOAT), every_second(em, live, first, f"live/{label}")], f"absent/{label}")
        penalty = em.op("Mul", [missing, em.constant(IMPOSSIBLE, FLOAT)], f"penalty/{label}")
        return penalty if axis is None else em.op("Unsqueeze", [penalty, em.constant([axis])], f"penalty/{label}_row")

    def _merges(self, em: Emitter, site: Site[TomeThresholdOptions], alike: Any, live: Any) -> Any:
        """Which of the r_max best pairs [B,r] merge: those above tau, and those that a capacity demands."""
        above = em.op("Greater", [alike, em.constant(site.options.tau, FLOAT)], "above", dtype=BOOL)
        most = site.options.most
        if most is None:
            return above
        count = em.op("ReduceSum", [live, em.constant([1])], "count", keepdims=1)
        excess = em.op("Sub", [count, em.constant(float(most), FLOAT)], "excess")
        places = em.constant(np.arange(site.options.r_max)[None], FLOAT)
        return em.op("Or", [above, em.op("Less", [places, excess], "forced", dtype=BOOL)], "merges", dtype=BOOL)


def advance(surgery: Surgery, em: Emitter, index: Any, keep: Any) -> None:
    """After a selection (index, keep [B,K]): patch numbers, valid slots and the kept list follow."""
    surgery.patch = em.op("GatherElements", [surgery.patch, index], "patch", dtype=INT64, axis=1)
    surgery.valid = keep
    surgery.kept.append(em.op("Where", [keep, surgery.patch, em.constant(-1)], "kept", dtype=INT64))
