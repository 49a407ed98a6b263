"""Sites where ATS decides which patches stay and the others join the kept patch most similar to them.

All rows are computed in attention. Merging is one product of an [kept, patches] matrix with the rows: 1 on the kept patch itself,
1 where a patch joins it, weighted by sizes.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.canonical import advance, start
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Tensor, given
from vitprune.methods._dropping.operator import FORMS, Roles, describe_sampling, entering
from vitprune.methods._dropping.sampling import cls_query, score, token_sample
from vitprune.methods._merging.keys import NORM_FLOOR
from vitprune.methods._merging.surgery import IMPOSSIBLE, MergingSurgery, metric
from vitprune.methods.ats_merge.keys import AtsMergeOptions
from vitprune.methods.base import Site
from vitprune.ops.sites import SAMPLED_MERGE
from vitprune.ops.token_sample import NAME


class AtsMergeSurgery(MergingSurgery):
    """Sample as ATS does, merge what is not sampled."""

    name = "sampled_merging"

    def merge(
        self,
        surgery: Surgery,
        emit: Emitter,
        block: Block,
        site: Site[AtsMergeOptions],
        x: Tensor,
        h: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """See `MergingSurgery.merge`."""
        prefix = surgery.anatomy.prefix
        by_cls, turned_key = site.options.asking == "cls", given(self.turned_key)
        asking = cls_query(emit, block, h) if by_cls else None
        significance = score(
            emit, surgery, block, site.options.score, h, turned_key, value, site.options.asking, asking
        )  # fmt: skip
        entered: Roles = {"x": x, "metric": key, "size": self.size, "group": self.group, **entering(surgery)}
        entered |= {"score": significance}
        if by_cls:
            entered |= {"score": None, "query": asking, "key": turned_key, "value": value, "asked_bias": self.key_bias}
        start(surgery, emit, significance)
        index, keep = token_sample(emit, surgery, site, significance)
        unit = emit.slice(metric(emit, block, key)[1], prefix, None, 1, "metric/patches")
        owners, into = self._assign(surgery, emit, site, unit, index, keep)
        if self.group is not None:
            self._trace(surgery, emit, site, index, into, owners)
        if self.size is not None:
            size = emit.slice(self.size, prefix, None, 1, "size/patches")
            owners = emit.op("Mul", [owners, emit.op("Unsqueeze", [size, emit.constant([1])], "size/row")], "shares")
        joined = emit.op("ReduceSum", [owners, emit.constant([2])], "joined", keepdims=0)
        pads = emit.op("Cast", [emit.op("Not", [keep], "pads", dtype=BOOL)], "pads_float", to=1)
        sizes = emit.op("Add", [joined, pads], "size/kept")  # a pad counts 1, so that nothing is divided by 0
        mix = emit.op("Div", [owners, emit.op("Unsqueeze", [sizes, emit.constant([2])], "size/column")], "mix")
        merged = emit.op("MatMul", [mix, emit.slice(x, prefix, None, 1, "rows/patches")], "rows/merged_patches")
        merged = emit.op("Concat", [emit.slice(x, 0, prefix, 1, "rows/prefix"), merged], "rows/merged", axis=1)
        self.size = self.in_front(surgery, emit, 1.0, sizes, "size")
        advance(surgery, emit, index, keep)
        leaving: Roles = {"rows": merged, "size": self.size, "index": index, "keep": keep, "group": self.group}
        leaving |= {"bias": self.hide(surgery, emit, keep), "patch": surgery.patch, "kept": surgery.kept[-1]}
        describe_sampling(
            surgery, site, FORMS[site.options.score] if by_cls else "given", block.heads, entered, leaving, kind=SAMPLED_MERGE,
            prefix=prefix, most=site.limit if surgery.padded else 0, padded=int(surgery.padded), loses=0,
            proportional=int(self.proportional), floor=NORM_FLOOR * block.heads,
        )  # fmt: skip
        return merged

    def _assign(
        self, surgery: Surgery, emit: Emitter, site: Site[AtsMergeOptions], unit: Tensor, index: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Float [B,K,P'], 1 where slot k is the home of patch p, and the most similar kept slot of every patch, int64 [B,1,P']."""
        at = emit.op("Unsqueeze", [index, emit.constant([2])], "index/column", dtype=INT64)
        rows = emit.take_rows(unit, at, "metric/kept")
        if surgery.single:
            return self._assign_single(emit, site, unit, index, rows)
        cosines = emit.op("MatMul", [rows, emit.op("Transpose", [unit], "metric/columns", perm=[0, 2, 1])], "similarity")
        real = emit.op("Unsqueeze", [emit.op("Cast", [keep], "keep/float", to=1), emit.constant([2])], "keep/column")
        if not surgery.single:
            missing = emit.op("Sub", [emit.constant(1.0, FLOAT), real], "absent")
            cosines = emit.op(
                "Sub", [cosines, emit.op("Mul", [missing, emit.constant(IMPOSSIBLE, FLOAT)], "penalty")], "similarity/live"
            )
        into = emit.op("ArgMax", [cosines], "into", dtype=INT64, axis=1, keepdims=1)
        own = emit.op(
            "Cast",
            [emit.op("Equal", [at, self._ramp(emit, unit, site.patches, "patches")], "own/same", dtype=BOOL)],
            "own/float",
            to=1,
        )
        if not surgery.single:
            own = emit.op("Mul", [own, real], "own")
        live = emit.op("Unsqueeze", [emit.op("Cast", [surgery.slots.valid], "live", to=1), emit.constant([1])], "live/row")
        leaves = emit.op("Sub", [live, emit.reduce("ReduceMax", own, 1, "stays", keepdims=1)], "leaves")
        places = emit.op(
            "Unsqueeze", [self._ramp(emit, index, site.limit, "slots"), emit.constant([1])], "slots/column", dtype=INT64
        )
        home = emit.op("Cast", [emit.op("Equal", [into, places], "home/same", dtype=BOOL)], "home/float", to=1)
        return emit.op("Add", [own, emit.op("Mul", [home, leaves], "joins")], "owners"), into

    def _assign_single(
        self, emit: Emitter, site: Site[AtsMergeOptions], unit: Tensor, index: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`_assign` for graphs of one image: without pads every slot's own patch is told by writing slot numbers over the matches."""
        columns = emit.op("Transpose", [rows], "metric/kept_columns", perm=[0, 2, 1])
        nearest = emit.op(
            "ArgMax", [emit.op("MatMul", [unit, columns], "similarity")], "nearest", dtype=INT64, axis=2, keepdims=0
        )
        slots = emit.op("Unsqueeze", [self._ramp(emit, index, site.limit, "slots"), emit.constant([0])], "slots/row", dtype=INT64)
        homes = emit.op("ScatterElements", [nearest, index, slots], "homes", dtype=INT64, axis=1)
        into = emit.op("Unsqueeze", [homes, emit.constant([1])], "into", dtype=INT64)
        places = emit.op("Unsqueeze", [slots, emit.constant([2])], "slots/column", dtype=INT64)
        same = emit.op("Equal", [into, places], "owners/same", dtype=BOOL)
        return emit.op("Cast", [same], "owners", to=1), into

    def _ramp(self, emit: Emitter, like: Tensor, bound: int, label: str) -> Tensor:
        """0, 1, ... along axis 1 of a tensor of at most `bound` columns (Range would leave builders without a bound)."""
        shape = emit.op("Shape", [like], f"{label}/shape", dtype=INT64)
        length = emit.slice(shape, 1, 2, 0, f"{label}/length", dtype=INT64)
        zero = emit.constant([0])
        return emit.op("Slice", [emit.constant(np.arange(bound)), zero, length, zero], f"{label}/ramp", dtype=INT64)

    def _trace(
        self, surgery: Surgery, emit: Emitter, site: Site[AtsMergeOptions], index: Tensor, into: Tensor, owners: Tensor
    ) -> None:
        """Groups follow the homes of all slots."""
        flat = emit.op("Squeeze", [into, emit.constant([1])], "trace/into", dtype=INT64)
        targets = emit.op("GatherElements", [index, flat], "trace/targets", dtype=INT64, axis=1)
        ramp, shape = (
            self._ramp(emit, surgery.slots.patch, site.patches, "trace/slots"),
            emit.op("Shape", [surgery.slots.patch], "trace/s", dtype=INT64),
        )
        slots = emit.op("Expand", [ramp, shape], "trace/own", dtype=INT64)
        self.rename(emit, surgery.slots.patch, slots, targets, self._moves(emit, index, owners, slots))

    def _moves(self, emit: Emitter, index: Tensor, owners: Tensor, slots: Tensor) -> Tensor:
        """Float [B,P'], 1 for slots whose home is another slot."""
        homes = emit.op(
            "Cast", [emit.op("Unsqueeze", [index, emit.constant([2])], "trace/home", dtype=INT64)], "trace/home_float", to=1
        )
        where = emit.op(
            "ReduceSum", [emit.op("Mul", [owners, homes], "trace/at"), emit.constant([1])], "trace/at_sum", keepdims=0
        )
        taken = emit.op("ReduceSum", [owners, emit.constant([1])], "trace/taken", keepdims=0)
        same = emit.op("Equal", [emit.op("Cast", [where], "trace/at_int", dtype=INT64, to=7), slots], "trace/same", dtype=BOOL)
        away = emit.op("Cast", [emit.op("Not", [same], "trace/away", dtype=BOOL)], "trace/away_float", to=1)
        return emit.op("Mul", [away, taken], "trace/moves")

    def ensures(self, surgery: Surgery) -> str:
        """One TokenSample per live site, and what every merging pass ensures."""
        live = [site for site in surgery.sites if not site.options.bypass]
        found = sum(node.op == NAME for node in surgery.graph.nodes)
        return super().ensures(surgery) if found == len(live) else f"{found} TokenSample nodes for {len(live)} sites"
