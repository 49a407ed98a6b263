"""Sites where a constant number of pairs merges (ToMe): TopK with constant k, one gather, one small product; no pad slots.

Rows are laid out as ToMe does, what is left of A and then B, because the next site splits them by row.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.emit import FLOAT, INT64, Emitter
from vitprune.graph.outlines import outline
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Tensor
from vitprune.methods._merging.keys import NORM_FLOOR
from vitprune.methods._merging.matching import partners, similarity, spread, starts
from vitprune.methods._merging.surgery import MergingSurgery, metric
from vitprune.methods.base import Site
from vitprune.methods.tome.keys import TomeOptions
from vitprune.ops.sites import PAIR_MERGE


class TomeSurgery(MergingSurgery):
    """Merge the r most similar pairs of every site."""

    name = "bipartite_merging"

    def merge(
        self,
        surgery: Surgery,
        emit: Emitter,
        block: Block,
        site: Site[TomeOptions],
        x: Tensor,
        h: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """See `MergingSurgery.merge`."""
        prefix = surgery.anatomy.prefix
        first_a, first_b = starts(prefix)
        summed, unit = metric(emit, block, key)
        cosines = similarity(emit, unit, prefix)
        leaving, staying = self._rank(emit, emit.reduce("ReduceMax", cosines, 2, "best"), site, first_a - prefix)
        sources = spread(emit, leaving, first_a, "sources")
        targets = spread(emit, partners(emit, cosines, leaving), first_b, "targets")
        fixed = np.arange(first_b, prefix + site.patches, 2)[None]
        stay = emit.op("Expand", [emit.constant(fixed), self.column(surgery)], "stay/b", dtype=INT64)
        if staying is not None:
            stay = emit.op("Concat", [spread(emit, staying, first_a, "stay/a"), stay], "stay/patches", dtype=INT64, axis=1)
        entering = {"x": x, "metric": summed, "size": self.size, "group": self.group, "patch": surgery.patch}
        index = self._numbers(surgery, emit, stay, sources, targets)
        merged = self.combine(surgery, emit, x, self.token_rows(surgery, emit, stay), sources, targets, site.options.r)
        leaving_ = {"rows": merged, "size": self.size, "index": index, "group": self.group, "bias": self.hide(surgery, emit)}
        leaving_["patch"] = leaving_["kept"] = surgery.patch
        surgery.outlines.append(
            outline(
                PAIR_MERGE, entering, leaving_, prefix=prefix, pairs=site.options.r, most=0, padded=0, loses=0, by_threshold=0,
                threshold=0.0, proportional=int(self.proportional), floor=NORM_FLOOR * block.heads,
            )
        )  # fmt: skip
        return merged

    def _rank(self, emit: Emitter, best: Tensor, site: Site[TomeOptions], offset: int) -> tuple[Tensor, Tensor | None]:
        """Members of A that leave, int64 [B,r], and that stay, ascending int64 [B,|A|-r] or None when all leave."""
        members, r = (site.patches - offset + 1) // 2, site.options.r
        if members == r:
            _, ranked = emit.ops("TopK", [best, emit.constant([r])], "rank", [(FLOAT, None), (INT64, None)], axis=1)
            return ranked, None
        _, ranked = emit.ops("TopK", [best, emit.constant([members])], "rank", [(FLOAT, None), (INT64, None)], axis=1)
        rest = emit.op("Cast", [emit.slice(ranked, r, None, 1, "rank/rest", dtype=INT64)], "rank/rest_float", to=1)
        outputs = [(FLOAT, None), (INT64, None)]
        ordered, _ = emit.ops("TopK", [rest, emit.constant([members - r])], "rank/ordered", outputs, axis=1, largest=0)
        return emit.slice(ranked, 0, r, 1, "leaving", dtype=INT64), emit.op("Cast", [ordered], "staying", dtype=INT64, to=7)

    def _numbers(self, surgery: Surgery, emit: Emitter, stay: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        """Kept list and groups; token rows [B,K] and [B,r]. Returns the slots [B,K] that stay."""

        def slots(rows: Tensor, label: str) -> Tensor:
            prefix = surgery.anatomy.prefix
            return emit.op("Sub", [rows, emit.constant(prefix)], label, dtype=INT64) if prefix else rows

        before = surgery.patch
        kept = index = slots(stay, "kept/slots")
        if before is not None:
            kept = emit.op("GatherElements", [before, kept], "kept", dtype=INT64, axis=1)
        if self.group is not None:
            if before is None:
                everyone = emit.constant(np.arange(surgery.anatomy.patches)[None])
                before = emit.op("Expand", [everyone, self.column(surgery)], "trace/all", dtype=INT64)
            self.rename(emit, before, slots(sources, "trace/sources"), slots(targets, "trace/targets"))
        surgery.patch = kept
        surgery.kept.append(kept)
        return index
