"""Scores that a site is given (DynamicViT's predictor, POMT's columns) as one operator of the native library each, by `graph/outlines.py`."""

from __future__ import annotations

import numpy as np
import onnx

from vitprune.graph import types
from vitprune.graph.outlines import Outline, stored
from vitprune.graph.types import Graph, Tensor
from vitprune.ops.sites import COLUMN_SCORE, TOKEN_PREDICTOR
from vitprune.ops.token_sample import DOMAIN, NAME
from vitprune.support.onnx_types import HALF

PREDICTOR, COLUMNS = TOKEN_PREDICTOR, COLUMN_SCORE
WEIGHTS = (
    "norm.weight", "norm.bias", "local.weight", "local.bias", "global.weight", "global.bias", "here.weight", "there.weight",
    "there.bias", "next.weight", "next.bias", "gap.weight", "gap.bias",
)  # fmt: skip
INPUTS = {PREDICTOR: ("x", *WEIGHTS), COLUMNS: ("query", "key", "value")}
ATTRIBUTES: dict[str, dict[str, type]] = {
    PREDICTOR: {"prefix_tokens": int, "epsilon": float},
    COLUMNS: {"heads": int, "prefix_tokens": int},
}


def native_scores(graph: Graph, model: onnx.ModelProto) -> int:
    """Put an operator in the place of every such score of a graph, which is changed, unless something is rounded inside; returns how many.

    Args:
        graph: the imported model. model: what it was imported from, with its outlines.
    """
    made = 0
    for number, one in enumerate(stored(model)):
        if one.kind not in INPUTS or not one.typed(ATTRIBUTES[one.kind]):
            continue
        tensors = graph.tensors()
        score = tensors.get(one.outputs.get("score", ""))
        found = [tensors[one.inputs[role]] for role in INPUTS[one.kind] if one.inputs.get(role) in tensors]
        whole = score is not None and len(found) == len(INPUTS[one.kind])
        if not whole or any(tensor.dtype != np.float32 for tensor in found):
            continue
        if rounds_inside(one, tensors, set()):
            continue
        if one.kind == PREDICTOR and not all(types.is_constant(tensor) for tensor in found[1:]):
            continue
        types.given(score).inputs.clear()
        attributes = {**one.attributes, "plugin_version": "1", "plugin_namespace": DOMAIN}
        name = f"vitprune/native_score{number}"
        graph.nodes.append(types.node(one.kind, name, found, [types.given(score)], domain=DOMAIN, attrs=attributes))
        made += 1
    return made


def rounds_inside(one: Outline, tensors: dict[str, Tensor], known: set[int]) -> bool:
    """Whether between the inputs and outputs of a site something is rounded to a half type or quantised.

    Args:
        one: the site. tensors: of the graph, by name. known: ids of key biases that an operator accounts for already.
    """
    entering = {id(tensors[label]) for label in one.inputs.values() if label in tensors} | known
    above = [tensors[label] for role, label in one.outputs.items() if role != "bias" and label in tensors]
    seen: set[int] = set()
    while above:
        tensor = above.pop()
        node = tensor.inputs[0] if tensor.inputs and id(tensor) not in entering else None
        if node is None or id(node) in seen or (node.domain == DOMAIN and node.op != NAME):
            continue
        if node.op == "QuantizeLinear" or (node.op == "Cast" and node.attrs["to"] in HALF):
            return True
        seen.add(id(node))
        above += node.inputs
    return False
