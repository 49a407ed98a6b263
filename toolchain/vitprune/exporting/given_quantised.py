"""Graphs that were quantised elsewhere: refused by name."""

from __future__ import annotations

import onnx

from vitprune.errors import ExportError
from vitprune.recipe import Recipe

OPERATORS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulInteger", "QLinearConv", "ConvInteger",
    "TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear", "TRT_INT4DequantizeLinear",
}  # fmt: skip


def refuse_quantised(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Refuse a graph with quantisation in it: its scales belong to tensors of the dense model, and pruning rewrites those.

    Raises:
        ExportError: VP339.
    """
    found = [
        node for node in [*model.graph.node, *(n for body in model.functions for n in body.node)] if node.op_type in OPERATORS
    ]
    if not found:
        return
    mode = recipe.precision.mode if recipe.precision.quantised else "int8"
    raise ExportError(
        339,
        "the graph is quantised already",
        cause=f"it has {len(found)} operators such as {found[0].op_type} ('{found[0].name}')"
        + (
            f", and {mode} would be put on top"
            if recipe.precision.quantised
            else "; attention is rewritten, and they do not survive that"
        ),
        next_step=f"export the model before it was quantised, and vitprune rewrite it with --set precision.mode={mode} --data DIR",
    )
