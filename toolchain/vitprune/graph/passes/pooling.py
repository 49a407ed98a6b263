"""Means over tokens after the last block leave pad slots out and count a merged row as often as it has patches."""

from __future__ import annotations

import numpy as np

from vitprune.graph.emit import FLOAT
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.types import given


class Pooling(GraphPass):
    """Replace ReduceMean over the token axis by a weighted mean over live tokens."""

    name = "pooling"

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        if not surgery.anatomy.means or (surgery.valid is None and surgery.weight is None):
            return False
        for found in surgery.anatomy.means:
            pooled, tokens = surgery.tensors[found.output], surgery.tensors[found.tokens]
            emit = surgery.emitter.child(f"pool/{len(surgery.nodes)}")
            valid = given(surgery.weight) if surgery.valid is None else emit.op("Cast", [surgery.valid], "valid", to=1)
            if surgery.weight is not None and surgery.valid is not None:
                valid = emit.op("Mul", [valid, surgery.weight], "patches")
            ahead = surgery.anatomy.prefix - found.skipped
            if ahead > 0:
                first = emit.slice(valid, 0, 1, 1, "first")
                ones = emit.op(
                    "Add",
                    [emit.op("Mul", [first, emit.constant(0.0, FLOAT)], "zero"), emit.constant(np.ones((1, ahead)), FLOAT)],
                    "prefix",
                )
                valid = emit.op("Concat", [ones, valid], "live", axis=1)
            others = [axis for axis in range(1, found.rank) if axis != found.axis]
            weight = emit.op("Unsqueeze", [valid, emit.constant(others)], "weight")
            total = emit.op(
                "ReduceSum", [emit.op("Mul", [tokens, weight], "masked"), emit.constant([found.axis])], "sum", keepdims=1
            )
            count = emit.op(
                "Max",
                [emit.op("ReduceSum", [weight, emit.constant([found.axis])], "count", keepdims=1), emit.constant(1.0, FLOAT)],
                "at_least_one",
            )
            mean = emit.op("Div", [total, count], "mean")
            if not found.keepdims:
                mean = emit.op("Squeeze", [mean, emit.constant([found.axis])], "flat")
            surgery.replace(pooled, mean)
        return True
