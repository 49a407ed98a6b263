"""Sites where ATS decides which patches stay and the others join the kept patch most similar to them.

All rows are computed in attention. Merging is one product of an [kept, patches] matrix with the rows: 1 on the kept patch itself,
1 where a patch joins it, weighted by sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import start
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.methods._dropping.sampling import score, token_sample
from vitprune.methods._merging.surgery import IMPOSSIBLE, MergingSurgery, highest, metric
from vitprune.methods.ats_merge.keys import AtsMergeOptions
from vitprune.methods.base import Site
from vitprune.methods.tome_threshold.surgery import advance
from vitprune.ops.token_sample import NAME


class AtsMergeSurgery(MergingSurgery):
    """Sample as ATS does, merge what is not sampled."""

    name = "sampled_merging"

    def merge(
        self, surgery: Surgery, em: Emitter, block: Block, site: Site[AtsMergeOptions], x: Any, h: Any, key: Any, value: Any
    ) -> Any:
        """See `MergingSurgery.merge`."""
        prefix = surgery.anatomy.prefix
        significance = score(em, surgery, block, site.options.score, h, key, value)
        start(surgery, em, significance)
        index, keep = token_sample(em, surgery, site, significance)
        unit = em.slice(metric(em, block, key), prefix, None, 1, "metric/patches")
        owners, into = self._assign(surgery, em, site, unit, index, keep)
        if self.group is not None:
            self._trace(surgery, em, site, index, into, owners)
        if self.size is not None:
            size = em.slice(self.size, prefix, None, 1, "size/patches")
            owners = em.op("Mul", [owners, em.op("Unsqueeze", [size, em.constant([1])], "size/row")], "shares")
        joined = em.op("ReduceSum", [owners, em.constant([2])], "joined", keepdims=0)
        pads = em.op("Cast", [em.op("Not", [keep], "pads", dtype=BOOL)], "pads_float", to=1)
        sizes = em.op("Add", [joined, pads], "size/kept")  # a pad counts 1, so that nothing is divided by 0
        mix = em.op("Div", [owners, em.op("Unsqueeze", [sizes, em.constant([2])], "size/column")], "mix")
        merged = em.op("MatMul", [mix, em.slice(x, prefix, None, 1, "rows/patches")], "rows/merged_patches")
        merged = em.op("Concat", [em.slice(x, 0, prefix, 1, "rows/prefix"), merged], "rows/merged", axis=1)
        self.size = self.in_front(surgery, em, 1.0, sizes, "size")
        advance(surgery, em, index, keep)
        self.hide(surgery, em, keep)
        return merged

    def _assign(
        self, surgery: Surgery, em: Emitter, site: Site[AtsMergeOptions], unit: Any, index: Any, keep: Any
    ) -> tuple[Any, Any]:
        """Float [B,K,P'], 1 where slot k is the home of patch p, and the most similar kept slot of every patch, int64 [B,1,P']."""
        at = em.op("Unsqueeze", [index, em.constant([2])], "index/column", dtype=INT64)
        rows = em.take_rows(unit, at, "metric/kept")
        if surgery.single:
            return self._assign_single(em, site, unit, index, rows)
        cosines = em.op("MatMul", [rows, em.op("Transpose", [unit], "metric/columns", perm=[0, 2, 1])], "similarity")
        real = em.op("Unsqueeze", [em.op("Cast", [keep], "keep/float", to=1), em.constant([2])], "keep/column")
        if not surgery.single:
            missing = em.op("Sub", [em.constant(1.0, FLOAT), real], "absent")
            cosines = em.op(
                "Sub", [cosines, em.op("Mul", [missing, em.constant(IMPOSSIBLE, FLOAT)], "penalty")], "similarity/live"
            )
        into = em.op("ArgMax", [cosines], "into", dtype=INT64, axis=1, keepdims=1)
        own = em.op(
            "Cast",
            [em.op("Equal", [at, self._ramp(em, unit, site.patches, "patches")], "own/same", dtype=BOOL)],
            "own/float",
            to=1,
        )
        if not surgery.single:
            own = em.op("Mul", [own, real], "own")
        live = em.op("Unsqueeze", [em.op("Cast", [surgery.valid], "live", to=1), em.constant([1])], "live/row")
        leaves = em.op("Sub", [live, highest(em, own, 1, "stays", keepdims=1)], "leaves")
        places = em.op("Unsqueeze", [self._ramp(em, index, site.limit, "slots"), em.constant([1])], "slots/column", dtype=INT64)
        home = em.op("Cast", [em.op("Equal", [into, places], "home/same", dtype=BOOL)], "home/float", to=1)
        return em.op("Add", [own, em.op("Mul", [home, leaves], "joins")], "owners"), into

    def _assign_single(self, em: Emitter, site: Site[AtsMergeOptions], unit: Any, index: Any, rows: Any) -> tuple[Any, Any]:
        """`_assign` for graphs of one image: without pads every slot's own patch is told by writing slot numbers over the matches."""
        columns = em.op("Transpose", [rows], "metric/kept_columns", perm=[0, 2, 1])
        nearest = em.op("ArgMax", [em.op("MatMul", [unit, columns], "similarity")], "nearest", dtype=INT64, axis=2, keepdims=0)
        slots = em.op("Unsqueeze", [self._ramp(em, index, site.limit, "slots"), em.constant([0])], "slots/row", dtype=INT64)
        homes = em.op("ScatterElements", [nearest, index, slots], "homes", dtype=INT64, axis=1)
        into = em.op("Unsqueeze", [homes, em.constant([1])], "into", dtype=INT64)
        places = em.op("Unsqueeze", [slots, em.constant([2])], "slots/column", dtype=INT64)
        same = em.op("Equal", [into, places], "owners/same", dtype=BOOL)
        return em.op("Cast", [same], "owners", to=1), into

    def _ramp(self, em: Emitter, like: Any, bound: int, label: str) -> Any:
        """0, 1, ... along axis 1 of a tensor of at most `bound` columns (Range would leave builders without a bound)."""
        shape = em.op("Shape", [like], f"{label}/shape", dtype=INT64)
        length = em.slice(shape, 1, 2, 0, f"{label}/length", dtype=INT64)
        zero = em.constant([0])
        return em.op("Slice", [em.constant(np.arange(bound)), zero, length, zero], f"{label}/ramp", dtype=INT64)

    def _trace(self, surgery: Surgery, em: Emitter, site: Site[AtsMergeOptions], index: Any, into: Any, owners: Any) -> None:
        """Groups follow the homes of all slots."""
        flat = em.op("Squeeze", [into, em.constant([1])], "trace/into", dtype=INT64)
        targets = em.op("GatherElements", [index, flat], "trace/targets", dtype=INT64, axis=1)
        ramp, shape = (
            self._ramp(em, surgery.patch, site.patches, "trace/slots"),
            em.op("Shape", [surgery.patch], "trace/s", dtype=INT64),
        )
        slots = em.op("Expand", [ramp, shape], "trace/own", dtype=INT64)
        self.rename(em, surgery.patch, slots, targets, self._moves(em, index, owners, slots))

    def _moves(self, em: Emitter, index: Any, owners: Any, slots: Any) -> Any:
        """Float [B,P'], 1 for slots whose home is another slot."""
        homes = em.op(
            "Cast", [em.op("Unsqueeze", [index, em.constant([2])], "trace/home", dtype=INT64)], "trace/home_float", to=1
        )
        where = em.op("ReduceSum", [em.op("Mul", [owners, homes], "trace/at"), em.constant([1])], "trace/at_sum", keepdims=0)
        taken = em.op("ReduceSum", [owners, em.constant([1])], "trace/taken", keepdims=0)
        same = em.op("Equal", [em.op("Cast", [where], "trace/at_int", dtype=INT64, to=7), slots], "trace/same", dtype=BOOL)
        away = em.op("Cast", [em.op("Not", [same], "trace/away", dtype=BOOL)], "trace/away_float", to=1)
        return em.op("Mul", [away, taken], "trace/moves")

    def ensures(self, surgery: Surgery) -> str:
        """One TokenSample per live site, and what every merging pass ensures."""
        live = [site for site in surgery.sites if not site.options.bypass]
        found = sum(node.op == NAME for node in surgery.graph.nodes)
        return super().ensures(surgery) if found == len(live) else f"{found} TokenSample nodes for {len(live)} sites"
