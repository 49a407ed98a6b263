"""Name the outputs: logits (or features) first, then the kept patches of every site."""

from __future__ import annotations

import numpy as np

from vitprune.graph.emit import INT64, Emitter
from vitprune.graph.passes.base import GraphPass, Surgery
from vitprune.graph.types import Tensor


def kept_name(block: int) -> str:
    """Name of the output that lists the patches kept at a site."""
    return f"kept_{block}"


class Outputs(GraphPass):
    """Add one int64 [B,K] output per site; a bypassed site repeats what was there before it."""

    name = "outputs"

    def apply(self, surgery: Surgery) -> bool:
        """See `GraphPass.apply`."""
        surgery.graph.outputs = list(surgery.graph.outputs) if surgery.recipe.output.features else [surgery.graph.outputs[0]]
        last: Tensor | None = None
        for site, kept in zip(surgery.sites, surgery.kept, strict=True):
            emit = surgery.emitter.child(f"block{site.block}/output")
            if kept is None:
                kept = last if last is not None else self._all(surgery, emit)
            name = kept_name(site.block)
            width = site.limit if surgery.padded else f"kept_{site.block}_count"
            output = emit.op("Identity", [kept], "kept", dtype=INT64)
            output.name, output.shape = name, ["batch", width]
            surgery.graph.outputs.append(output)
            last = kept
        for name, tensor in surgery.more_outputs.items():
            output = surgery.emitter.child(name).op("Identity", [tensor], "output", dtype=INT64)
            output.name, output.shape = name, ["batch", surgery.anatomy.patches]
            surgery.graph.outputs.append(output)
        return True

    def _all(self, surgery: Surgery, emit: Emitter) -> Tensor:
        image = surgery.graph.inputs[0]
        shape = emit.op("Shape", [image], "shape", dtype=INT64)
        batch = emit.slice(shape, 0, 1, 0, "batch", dtype=INT64)
        full = emit.op("Concat", [batch, emit.constant([surgery.anatomy.patches])], "full", dtype=INT64, axis=0)
        return emit.op("Expand", [emit.constant(np.arange(surgery.anatomy.patches)[None]), full], "all", dtype=INT64)

    def ensures(self, surgery: Surgery) -> str:
        """Exactly one output per site behind the logits."""
        heads = len(surgery.anatomy.output_shapes) or 1
        found = len(surgery.graph.outputs) - heads - len(surgery.more_outputs)
        return "" if found == len(surgery.sites) else f"{found} kept outputs for {len(surgery.sites)} sites"
