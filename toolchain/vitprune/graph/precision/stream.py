"""The residual stream in a half type: every sum that the stream is made of is rounded to it, so that kernels can store it in 16 bits.

The sum itself is float32 of what the branch gives and of numbers of the half type, rounded once: what an addition in the half type gives.
"""

from __future__ import annotations

import numpy as np

from vitprune.errors import RecipeError
from vitprune.graph import types
from vitprune.graph.passes.base import Surgery

STREAM = "residual"  # what stands for a layer's name


def rounded_sums(surgery: Surgery) -> dict[str, str]:
    """Put a node behind the embedding and every residual sum whose result is to be of a half type; `STREAM` by node name.

    Raises:
        RecipeError: VP115 where features are asked for, which are sums of the stream.
    """
    if surgery.recipe.output.features:
        raise RecipeError(
            115,
            "precision.residual=half is not available for features",
            cause="they are rows of the residual stream, and outputs of the decoder's own are float32",
            next_step="--set precision.residual=fp32",
        )
    found = {}
    blocks = surgery.anatomy.blocks
    for name in dict.fromkeys([blocks[0].x, *(part for block in blocks for part in (block.attended, block.output))]):
        stream = surgery.tensors[name]
        maker = stream.inputs[0]
        exact = types.variable(f"{name}/exact", np.float32, stream.shape)
        maker.outputs = [exact if output is stream else output for output in maker.outputs]
        made = types.node("Identity", f"vitprune/residual/{name}", [exact], [stream])
        surgery.graph.nodes.append(made)
        found[made.name] = STREAM
    return found
