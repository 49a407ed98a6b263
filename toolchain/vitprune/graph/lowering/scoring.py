"""Scores that a site is given (DynamicViT's predictor, POMT's columns) as one operator of the native library each, by `graph/outlines.py`."""

from __future__ import annotations

import numpy as np
import onnx

from vitprune.graph import types
from vitprune.graph.outlines import stored
from vitprune.graph.types import Graph
from vitprune.ops.token_sample import DOMAIN

PREDICTOR, COLUMNS = "TokenPredictor", "ColumnScore"
WEIGHTS = (
    "norm.weight", "norm.bias", "local.weight", "local.bias", "global.weight", "global.bias", "here.weight", "there.weight",
    "there.bias", "next.weight", "next.bias", "gap.weight", "gap.bias",
)  # fmt: skip
INPUTS = {PREDICTOR: ("x", *WEIGHTS), COLUMNS: ("query", "key", "value")}
ATTRIBUTES = {
    PREDICTOR: {"prefix_tokens": int, "epsilon": float},
    COLUMNS: {"heads": int, "prefix_tokens": int},
}


def native_scores(graph: Graph, model: onnx.ModelProto) -> int:
    """Put an operator in the place of every such score of a graph in FP32, which is changed; returns how many.

    Args:
        graph: the imported model. model: what it was imported from, with its outlines.
    """
    made = 0
    for number, one in enumerate(stored(model)):
        if one.kind not in INPUTS or {key: type(value) for key, value in one.attributes.items()} != ATTRIBUTES[one.kind]:
            continue
        tensors = graph.tensors()
        score = tensors.get(one.outputs.get("score", ""))
        found = [tensors[one.inputs[role]] for role in INPUTS[one.kind] if one.inputs.get(role) in tensors]
        whole = score is not None and len(found) == len(INPUTS[one.kind])
        if not whole or any(tensor.dtype != np.float32 for tensor in found):
            continue
        if one.kind == PREDICTOR and not all(types.is_constant(tensor) for tensor in found[1:]):
            continue
        types.given(score).inputs.clear()
        attributes = {**one.attributes, "plugin_version": "1", "plugin_namespace": DOMAIN}
        name = f"vitprune/native_score{number}"
        graph.nodes.append(types.node(one.kind, name, found, [types.given(score)], domain=DOMAIN, attrs=attributes))
        made += 1
    return made
