"""Softmax without the guard for rows that are masked as a whole.

torch writes scaled_dot_product_attention with a mask as Where(IsNaN(p), 0, p) of p = Softmax(...): a row whose keys are all hidden is
0/0. Where the logits are a product, and whatever is added to them is constant and leaves every row a finite entry, there is no such row.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vitprune.graph import held
from vitprune.graph.anatomy.static import scalar_of, static_copy, value_of
from vitprune.graph.sorting import toposort

STEPS = 8


def unguard(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same graph with superfluous guards of Softmax taken away, and how many; a guard that may act stays.

    Raises:
        ExportError: VP320 when a dimension other than the batch is open.
    """
    if not any(node.op_type == "IsNaN" for node in model.graph.node):
        return model, 0
    guards = {node.outputs[0].name: inner for node in static_copy(model).nodes if (inner := _guarded(node)) is not None}
    guards = {name: inner for name, inner in guards.items() if name not in {output.name for output in model.graph.output}}
    if not guards:
        return model, 0
    bare, weights = held.parted(model)
    for node in bare.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = guards.get(name, name)
    graph = held.attached(bare, weights)
    graph.cleanup(remove_unused_graph_inputs=False)
    toposort(graph)
    made = held.rebuilt(graph)
    made.ir_version = model.ir_version
    del made.graph.value_info[:]
    return made, len(guards)


def _guarded(node: gs.Node) -> str | None:
    """Name of the probabilities that a Where hands on unchanged, None where it is no such Where or may change them."""
    if node.op != "Where" or scalar_of(node.inputs[1]) != 0.0:
        return None
    inner = node.inputs[2]
    maker, asks = _maker(inner), _maker(node.inputs[0])
    if maker is None or maker.op != "Softmax" or asks is None or asks.op != "IsNaN" or asks.inputs[0] is not inner:
        return None
    return str(inner.name) if _rows_have_keys(maker) else None


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _rows_have_keys(softmax: gs.Node) -> bool:
    """Whether the logits are a scaled product plus constants that hide no row as a whole."""
    rank = len(softmax.outputs[0].shape or ())
    if not rank or softmax.attrs.get("axis", -1) not in (-1, rank - 1):
        return False
    tensor = softmax.inputs[0]
    for _ in range(STEPS):
        node = _maker(tensor)
        if node is None or node.op == "MatMul":
            return node is not None
        constants = [value for one in node.inputs if (value := value_of(one)) is not None]
        live = [one for one in node.inputs if value_of(one) is None]
        if len(live) != 1 or not (
            (node.op == "Add" and all(_leaves_keys(value) for value in constants))
            or (node.op in ("Mul", "Div") and all(value.size == 1 and np.isfinite(value).all() for value in constants))
            or node.op == "Identity"
        ):
            return False
        tensor = live[0]
    return False


def _leaves_keys(mask: np.ndarray) -> bool:
    """Whether every row over the last axis holds a finite number, and none is NaN or plus infinity."""
    rows = mask.reshape(-1, mask.shape[-1] if mask.ndim else 1)
    return bool(np.isfinite(rows).any(axis=1).all() and not np.isnan(rows).any() and not np.isposinf(rows).any())
