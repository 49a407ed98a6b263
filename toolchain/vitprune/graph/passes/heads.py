"""Readers of the tokens behind the last block no longer rely on how many there are.

Slices that take all tokens from one on are written with a start counted from the front and an open end; a sum over tokens divided
by their number becomes a mean.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph.emit import FLOAT
from vitprune.graph.passes.base import GraphPass, Surgery

OPEN = np.iinfo(np.int64).max


class Heads(GraphPass):
    """Rewrite the bounds of slices, and sums that are divided by a token count."""

    name = "heads"

    def requires(self, surgery: Surgery) -> str:
        """Every reader that the anatomy names is still there."""
        lost = [name for name in surgery.anatomy.slices if name not in surgery.nodes]
        return f"no node '{lost[0]}'" if lost else ""

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        changed = False
        for name, start in surgery.anatomy.slices.items():
            node, emit = surgery.nodes[name], surgery.emitter.child("head")
            wanted = [emit.constant([start]), emit.constant([OPEN])]
            bounds = [np.asarray(getattr(tensor, "values", np.nan)).reshape(-1) for tensor in node.inputs[1:3]]
            if bounds[0].tolist() != [start] or not bounds[1][0] >= 2**31 - 1:
                node.inputs = [node.inputs[0], *wanted, *node.inputs[3:]]
                changed = True
        for number, found in enumerate(surgery.anatomy.means):
            if found.divided:
                emit = surgery.emitter.child(f"head/mean{number}")
                tokens, keepdims = surgery.tensors[found.tokens], int(found.keepdims)
                if surgery.graph.opset < 18:
                    mean = emit.op("ReduceMean", [tokens], "mean", dtype=FLOAT, keepdims=keepdims, axes=[found.axis])
                else:
                    mean = emit.op("ReduceMean", [tokens, emit.constant([found.axis])], "mean", dtype=FLOAT, keepdims=keepdims)
                surgery.replace(surgery.tensors[found.output], mean)
                surgery.tensors[found.output] = mean
                changed = True
        return changed
