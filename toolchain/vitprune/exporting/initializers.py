"""Weights of a graph: finite real numbers."""

from __future__ import annotations

import numpy as np
import onnx

from vitprune.errors import ExportError
from vitprune.support import onnx_weights
from vitprune.support.onnx_types import FLOATS


def check_initializers(model: onnx.ModelProto, name: str) -> None:
    """Refuse weights that are NaN, infinite or complex; a single infinite number is a bound and no weight.

    Args:
        model: with its external data loaded. name: of the file, for messages.

    Raises:
        ExportError: VP306 naming the first.
    """
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    for tensor in [*model.graph.initializer, *constants]:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if "COMPLEX" in kind:
            raise _refused(name, tensor.name, f"is {kind.lower()}")
        if tensor.data_type not in FLOATS:
            continue
        values = onnx_weights.values(tensor)
        fine = np.isfinite(values) if values.size > 1 else ~np.isnan(values)
        if not fine.all():
            raise _refused(name, tensor.name, f"holds {int((~fine).sum())} NaN or infinite of {values.size} values")


def _refused(name: str, tensor: str, why: str) -> ExportError:
    return ExportError(
        306,
        f"weights of '{name}' are not finite real numbers",
        cause=f"'{tensor or 'a constant'}' {why}",
        next_step="export the dense model from an earlier checkpoint",
    )
