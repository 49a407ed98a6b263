"""A graph that was given in a half type against its float32 form: they may differ by roundings alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import as_read, make_session
from vitprune.errors import ExportError, LoadError
from vitprune.graph.precision.audit import types
from vitprune.support.answers import joined
from vitprune.support.onnx_types import HALF
from vitprune.support.precision import ROUNDOFF

# Such a graph may round after every operator, those of norms and softmax included.
ROUNDINGS = 128.0


def compare_given(
    given: onnx.ModelProto, logits: NDArray[Any], pixels: NDArray[np.float32], batch: int | None, outputs: list[str]
) -> dict[str, Any]:
    """Run the given graph and compare with the logits [B,classes] of its float32 form.

    Returns:
        JSON-ready: type, max_abs and limit, or why the graph was not run (ONNX Runtime's CPU kernels know no bfloat16).

    Raises:
        ExportError: VP319 when they differ by more than roundings.
    """
    kinds = sorted({HALF[kind] for kind in types(given).values()})
    try:
        session = make_session(given.SerializeToString(), spin=False)
    except LoadError as error:
        return {"types": kinds, "compared": False, "why": error.cause}
    size = batch or 8
    parts = []
    for start in range(0, len(pixels), size):
        rows = np.minimum(np.arange(start, start + size), len(pixels) - 1)
        feeds = {session.get_inputs()[0].name: as_read(session, pixels[rows])}
        parts.append(np.asarray(joined(session.run(outputs, feeds)), np.float32))
    found = np.concatenate(parts)[: len(pixels)]
    difference = float(np.abs(found - logits).max())
    limit = ROUNDINGS * max(ROUNDOFF[kind] for kind in kinds) * max(1.0, float(np.abs(logits).max()))
    if not difference <= limit:
        raise ExportError(
            319,
            "the graph gives other logits in its own type than in float32",
            cause=f"they differ by {difference:.3g}, roundings explain {limit:.3g}; it may overflow on these images",
            next_step="export the dense model in float32 and let precision.mode choose the type",
        )
    return {"types": kinds, "compared": True, "max_abs": difference, "limit": limit}
