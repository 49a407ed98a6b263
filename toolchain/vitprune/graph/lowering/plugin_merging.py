"""Merging sites as one plugin node each, for TensorRT: what `lowering.merging` does for ONNX Runtime, in the form of that parser.

As with dropping sites (`plugin_sites`), the attributes `inputs` and `outputs` name the tensors of a node, in the order of `INPUTS` and
`OUTPUTS` (plugins/src/tensorrt/merge_fields.cpp).
"""

from __future__ import annotations

import numpy as np

from vitprune.graph import types
from vitprune.graph.lowering.merging import QUANTISED, SAMPLED_ATTRIBUTES, pair_entering, sampled_entering
from vitprune.graph.lowering.pruning import SAMPLED, written
from vitprune.graph.lowering.scoring import rounds_inside
from vitprune.graph.outlines import Outline
from vitprune.graph.types import Graph, Node, Tensor
from vitprune.ops.sites import PAIR_MERGE, WARD_MERGE
from vitprune.ops.token_sample import DOMAIN
from vitprune.support.onnx_types import HALF

INPUTS = (
    "x", "products", "gram", "metric", "attention", "query", "key", "value", "score", "size", "patch", "valid", "group", "asked_bias",
)  # fmt: skip
OUTPUTS = {
    "rows": np.float32, "size": np.float32, "bias": np.float32, "index": np.int64, "keep": np.bool_, "group": np.int64,
    "patch": np.int64, "kept": np.int64, "score": np.float32, "count": np.int64,
}  # fmt: skip
NUMBERS = ("group", "patch", "kept")  # outputs that the numbers of patches are needed for
COMMON = {"prefix": int, "most": int, "padded": int, "loses": int, "proportional": int}
ATTRIBUTES: dict[str, dict[str, type]] = {
    PAIR_MERGE: COMMON | {"pairs": int, "by_threshold": int, "threshold": float, "floor": float},
    WARD_MERGE: COMMON
    | {"pairs": int, "rounds": int, "heads": int, "limit": float, "power": float, "everyone": float, "share": float},
    SAMPLED: SAMPLED_ATTRIBUTES,
}


def put_merging(graph: Graph, one: Outline, name: str) -> list[tuple[Node, list[str], list[str]]]:
    """Put the node of one merging site into a graph; with the roles of its inputs and outputs. Nothing where the site keeps its nodes.

    Args:
        graph: changed. one: an outline of one of `ATTRIBUTES`' kinds. name: of the node, and the start of its tensors' names.
    """
    tensors = graph.tensors()
    bias = tensors.get(one.outputs.get("bias", ""))
    rounds = rounds_inside(one, tensors, set()) or (bias is not None and bias.dtype != np.float32)
    if rounds or not one.typed(ATTRIBUTES[one.kind]):
        return []
    # The attention's own queries are not those of the score where something is quantised or of a half type.
    asks = not any(node.op in QUANTISED or (node.op == "Cast" and node.attrs["to"] in HALF) for node in graph.nodes)
    found = sampled_entering(one, tensors) if one.kind == SAMPLED else pair_entering(graph, one, name, asks, plugin=True)
    if found is None:
        return []
    if "asked_bias" in found:
        found["asked_bias"] = _spread(found["asked_bias"])
    reads = [role for role in INPUTS if role in found]
    counted = () if _known_count(one) else ("count",)
    kinds = {role: kind for role, kind in OUTPUTS.items() if one.outputs.get(role) in tensors or role in counted}
    if "group" not in found:
        kinds.pop("group", None)
    outputs = written(one, tensors, name, kinds, ("bias",))
    if "bias" in outputs:
        _put_bias(graph, tensors[one.outputs["bias"]], outputs["bias"])
    attributes = {**one.attributes, "plugin_version": "1", "plugin_namespace": DOMAIN}
    node = types.node(one.kind, name, [found[role] for role in reads], list(outputs.values()), domain=DOMAIN, attrs=attributes)
    graph.nodes.append(node)
    return [(node, reads, list(kinds))]


def unread(inputs: list[str], outputs: list[str]) -> list[str]:
    """Inputs of a merging site that nothing is left to be done with, once the outputs that nobody reads are taken off."""
    return [] if any(role in outputs for role in NUMBERS) else [role for role in inputs if role == "patch"]


def _known_count(one: Outline) -> bool:
    """Whether the number of rows that stay follows from the shapes: it is padded, or a constant number of pairs merges."""
    return bool(one.attributes["padded"]) or (one.kind == PAIR_MERGE and not one.attributes["by_threshold"])


def _spread(bias: Tensor) -> Tensor:
    """The key bias [B,1,1,N] that a bias [B,N] is made of, where a plugin node writes it; else the bias itself."""
    maker = bias.inputs[0] if bias.inputs else None
    return maker.inputs[0] if maker is not None and maker.op == "Squeeze" else bias


def _put_bias(graph: Graph, flat: Tensor, bias: Tensor) -> None:
    """Let a node write the key bias as attention adds it, [B,1,1,M]; whoever reads it flat, [B,M], gets that from it."""
    flat.inputs.clear()
    for reader in [node for node in flat.outputs if node.op == "Unsqueeze"]:
        row = reader.outputs[0]
        types.redirect(list(row.outputs), row, bias)
    axes = types.constant(f"{bias.name}/axes", np.array([1, 2], np.int64))
    graph.nodes.append(types.node("Squeeze", f"{bias.name}/flat", [bias, axes], [flat]))
