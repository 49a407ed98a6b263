"""Merging sites as one operator of the native library, where the model says what they are (`graph/outlines.py`)."""

from __future__ import annotations

import numpy as np
import onnx

from vitprune.graph import types
from vitprune.graph.outlines import Outline, stored
from vitprune.graph.types import Graph, Tensor
from vitprune.ops.token_sample import DOMAIN

# Inputs in the operator's order; those behind the first line may be absent.
INPUTS = {"WardMerge": ("x", "directions", "attention"), "PairMerge": ("x", "similarity")}
OPTIONAL = ("size", "patch", "valid", "group")
OUTPUTS = {"rows": np.float32, "size": np.float32, "index": np.int64, "keep": np.bool_, "group": np.int64}


def native_merging(graph: Graph, model: onnx.ModelProto) -> int:
    """Put operators in the place of the merging sites of a graph in FP32, which is changed; returns how many.

    The plain nodes of a site go with the next clean-up, those that something else still reads stay.

    Args:
        graph: the imported model. model: what it was imported from, with its outlines.
    """
    made = 0
    for number, one in enumerate(stored(model)):
        made += _replace(graph, one, f"vitprune/native_merge{number}")
    return made


def _replace(graph: Graph, one: Outline, name: str) -> bool:
    tensors = graph.tensors()
    required = INPUTS.get(one.kind)
    if required is None or not all(one.inputs.get(role) in tensors for role in required) or "rows" not in one.outputs:
        return False
    behind = {role: one.inputs[role] for role in OPTIONAL if role in one.inputs}
    if behind.get("group") not in tensors:  # nobody reads groups; the numbers of patches are needed for them alone
        behind = {role: name for role, name in behind.items() if role not in ("group", "patch")}
    if any(name not in tensors for name in behind.values()):
        return False
    rows = tensors.get(one.outputs["rows"])
    inputs = [tensors[one.inputs[role]] for role in required]
    if rows is None or any(tensor.dtype != np.float32 for tensor in (rows, *inputs)):
        return False
    if one.kind == "WardMerge":
        inputs[1] = _products(graph, inputs[1], name)
    inputs += [tensors[behind[role]] if role in behind else types.absent() for role in OPTIONAL]
    outputs: list[Tensor] = []
    for role, dtype in OUTPUTS.items():
        tensor = tensors.get(one.outputs.get(role, ""))
        if role == "group" and "group" not in behind:
            continue
        if tensor is None:
            tensor = types.variable(f"{name}/{role}", dtype=dtype)
        tensor.inputs.clear()
        outputs.append(tensor)
    graph.nodes.append(types.node(one.kind, name=name, attrs=dict(one.attributes), inputs=inputs, outputs=outputs, domain=DOMAIN))
    return True


def _products(graph: Graph, directions: Tensor, name: str) -> Tensor:
    """Inner products [B,P,P] of directions [B,P,d]."""
    across = types.variable(f"{name}/columns", dtype=np.float32)
    gram = types.variable(f"{name}/gram", dtype=np.float32)
    graph.nodes += [
        types.node("Transpose", name=across.name, attrs={"perm": [0, 2, 1]}, inputs=[directions], outputs=[across]),
        types.node("MatMul", name=gram.name, inputs=[directions, across], outputs=[gram]),
    ]
    return gram
