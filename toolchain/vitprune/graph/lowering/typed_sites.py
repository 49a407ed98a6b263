"""Dropping sites in graphs with half types: what of their roundings stays plain nodes, so that an operator rounds as the graph does.

Inside a site nothing may be rounded (`scoring.rounds_inside`). On its edges the graph rounds: what enters in a half type is widened,
which is exact, and the operator does that itself; rows that leave are rounded by a Cast behind it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto

from vitprune.graph import types
from vitprune.graph.outlines import Outline
from vitprune.graph.types import Graph, Tensor
from vitprune.support.onnx_types import BFLOAT16, FLOAT, FLOAT16, HALF

TYPED = ("x", "query", "key", "value", "h")  # what may be of a half type; scores are float32
ANY = (FLOAT, FLOAT16, BFLOAT16)


def element(dtype: DTypeLike | int | None) -> int:
    """ONNX's number of a tensor's element type; bfloat16, which NumPy has not, is a number already. 0 = unknown."""
    if dtype is None:
        return TensorProto.UNDEFINED
    return dtype if isinstance(dtype, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def before_rounding(one: Outline, tensors: dict[str, Tensor]) -> Outline:
    """The site with its rows as they are before a Cast rounds them to a half type; the Cast then stands behind the site."""
    rows = tensors.get(one.outputs.get("rows", ""))
    if rows is None or element(rows.dtype) not in HALF:
        return one
    tensor = rows
    while tensor.inputs and tensor.inputs[0].op in ("Identity", "Cast"):
        node = tensor.inputs[0]
        tensor = node.inputs[0]
        if len(tensor.outputs) != 1:
            return one
        if node.op == "Cast":
            return replace(one, outputs={**one.outputs, "rows": tensor.name})
    return one


def widened_behind(graph: Graph, one: Outline, x: Tensor, name: str) -> Outline | None:
    """The site with rows of x's type, where the graph widens x to float32 first and gathers then: widening is exact, and may follow.

    A Cast from such rows to the graph's own is put in. None where rows have yet another type, or a combined row would be rounded.
    """
    rows = graph.tensors()[one.outputs["rows"]]
    if element(rows.dtype) == element(x.dtype):
        return one
    if element(rows.dtype) != FLOAT or element(x.dtype) not in HALF or one.attributes["combine"] != "nothing":
        return None
    short = types.variable(f"{name}/short", x.dtype or np.float16, rows.shape)
    rows.inputs.clear()
    graph.nodes.append(types.node("Cast", f"{name}/rows/fp32", [short], [rows], attrs={"to": FLOAT}))
    return replace(one, outputs={**one.outputs, "rows": short.name})
