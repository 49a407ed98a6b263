"""Means over tokens after the last block leave pad slots out and count a merged row as often as it has patches."""

from __future__ import annotations

import numpy as np

from vitprune.graph.emit import FLOAT
from vitprune.graph.passes.base import GraphPass, Surgery


class Pooling(GraphPass):
    """Replace ReduceMean over the token axis by a weighted mean over live tokens."""

    name = "pooling"

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        if not surgery.anatomy.means or (surgery.valid is None and surgery.weight is None):
            return False
        for found in surgery.anatomy.means:
            pooled, tokens = surgery.tensors[found.output], surgery.tensors[found.tokens]
            em = surgery.emitter.child(f"pool/{len(surgery.nodes)}")
            valid = surgery.weight if surgery.valid is None else em.op("Cast", [surgery.valid], "valid", to=1)
            if surgery.weight is not None and surgery.valid is not None:
                valid = em.op("Mul", [valid, surgery.weight], "patches")
            ahead = surgery.anatomy.prefix - found.skipped
            if ahead > 0:
                first = em.slice(valid, 0, 1, 1, "first")
                ones = em.op(
                    "Add",
                    [em.op("Mul", [first, em.constant(0.0, FLOAT)], "zero"), em.constant(np.ones((1, ahead)), FLOAT)],
                    "prefix",
                )
                valid = em.op("Concat", [ones, valid], "live", axis=1)
            others = [axis for axis in range(1, found.rank) if axis != found.axis]
            weight = em.op("Unsqueeze", [valid, em.constant(others)], "weight")
            total = em.op("ReduceSum", [em.op("Mul", [tokens, weight], "masked"), em.constant([found.axis])], "sum", keepdims=1)
            count = em.op(
                "Max",
                [em.op("ReduceSum", [weight, em.constant([found.axis])], "count", keepdims=1), em.constant(1.0, FLOAT)],
                "at_least_one",
            )
            mean = em.op("Div", [total, count], "mean")
            if not found.keepdims:
                mean = em.op("Squeeze", [mean, em.constant([found.axis])], "flat")
            surgery.replace(pooled, mean)
        return True
