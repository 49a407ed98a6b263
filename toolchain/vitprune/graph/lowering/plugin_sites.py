"""Sites as one plugin node each, for TensorRT: what `lowering.pruning` does for ONNX Runtime, in the form of that parser.

A node of TensorRT has no empty inputs or outputs. The tensors that a site has stand behind each other without gaps, and the attributes
`inputs` and `outputs` name them in the order of `INPUTS` and `OUTPUTS` (plugins/src/tensorrt/site_fields.h). Merging sites: `plugin_merging`.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner

from vitprune.graph import held, types
from vitprune.graph.lowering import plugin_merging
from vitprune.graph.lowering.pruning import INPUTS, KIND, as_gathered, entering, written
from vitprune.graph.lowering.sampling import without_sampling
from vitprune.graph.lowering.scoring import rounds_inside
from vitprune.graph.lowering.typed_sites import ANY, before_rounding, element, widened_behind
from vitprune.graph.outlines import Outline, stored
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Graph, Node, Tensor
from vitprune.ops.token_sample import DOMAIN, NAME

OUTPUTS = {
    "rows": np.float32, "rows2": np.float32, "index": np.int64, "keep": np.bool_, "patch": np.int64, "kept": np.int64, "mask": np.int32,
    "score_kept": np.float32, "bias": np.float32, "score": np.float32, "count": np.int64,
}  # fmt: skip
VALUED = ("per_head", "pooled", "head_share")  # forms of a score that read values


def with_plugin_sites(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A model whose sites are one `vitprune::PruneSite`, `PairMerge`, `WardMerge` or `SampledMerge` each, and how many there are.

    Rows, queries, keys and values of a PruneSite have the types that the graph has for them. Halting stays plain nodes, and so does a site
    inside of which something is rounded to a half type or quantised. Where TokenSample nodes are left, so is their function.

    Args:
        model: written by vitprune; not changed.
    """
    bare, weights = held.parted(without_sampling(model))
    graph = held.attached(held.inferred(onnx.inliner.inline_local_functions(bare)), weights)
    graph.cleanup(remove_unused_graph_inputs=False)
    made: list[tuple[Node, list[str], list[str]]] = []
    for number, told in enumerate(stored(model)):
        name = f"vitprune/plugin_site{number}"
        if told.kind in plugin_merging.ATTRIBUTES:
            made += plugin_merging.put_merging(graph, told, name)
        if told.kind != KIND:
            continue
        one = before_rounding(as_gathered(told, graph.tensors()), graph.tensors())
        if not rounds_inside(one, graph.tensors(), set()):
            made += _put(graph, one, name)
    graph.cleanup(remove_unused_graph_inputs=False)
    for node, inputs, outputs in reversed(made):  # what a site does not read, the one before it need not write
        _name_tensors(graph, node, inputs, outputs)
    graph.cleanup(remove_unused_graph_inputs=False)
    toposort(graph)
    result = held.rebuilt(graph)
    kept = {entry.domain: entry.version for entry in model.opset_import}
    del result.opset_import[:]
    result.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in (kept | {DOMAIN: 1}).items())
    result.ir_version = model.ir_version
    if any(node.domain == DOMAIN and node.op == NAME for node in graph.nodes):
        result.functions.extend(body for body in model.functions if body.name == NAME)
    return result, len(made)


def _put(graph: Graph, one: Outline, name: str) -> list[tuple[Node, list[str], list[str]]]:
    """Put the node of one site into a graph; with the roles of its inputs and outputs. Nothing where it cannot take the nodes' place."""
    tensors = graph.tensors()
    inputs = entering(one, tensors, ANY)
    if inputs is None or one.outputs.get("rows") not in tensors or _turns(one, inputs, tensors):
        return []
    whole = widened_behind(graph, one, inputs["x"], name)
    if whole is None:
        return []
    one, tensors = whole, graph.tensors()
    unread = {"value"} if one.attributes["form"] not in VALUED else set()
    unread |= {"h"} if one.outputs.get("rows2") not in tensors else set()
    reads = [role for role in INPUTS if role in inputs and role not in unread]
    counted = () if one.attributes["pad_to_capacity"] else ("count",)
    own = OUTPUTS | {"rows": inputs["x"].dtype} | ({"rows2": inputs["h"].dtype} if "h" in inputs else {})
    kinds = {role: kind for role, kind in own.items() if one.outputs.get(role) in tensors or role in counted}
    found = written(one, tensors, name, kinds)
    attributes = {**one.attributes, "plugin_version": "1", "plugin_namespace": DOMAIN}
    node = types.node(KIND, name, [inputs[role] for role in reads], list(found.values()), domain=DOMAIN, attrs=attributes)
    graph.nodes.append(node)
    return [(node, reads, list(kinds))]


def _turns(one: Outline, inputs: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    """Whether the second rows have another type than what they are gathered from."""
    second = tensors.get(one.outputs.get("rows2", ""))
    return second is not None and "h" in inputs and element(second.dtype) != element(inputs["h"].dtype)


def _name_tensors(graph: Graph, node: Node, inputs: list[str], outputs: list[str]) -> None:
    """Take off what nobody reads, and name the rest."""
    wanted = {id(tensor) for tensor in graph.outputs}
    kept = [
        (role, tensor)
        for role, tensor in zip(outputs, node.outputs, strict=True)
        if role in ("rows", "count") or tensor.outputs or id(tensor) in wanted
    ]
    roles = [role for role, _ in kept]
    useless = plugin_merging.unread(inputs, roles) if node.op != KIND else ["h"] if "rows2" not in roles and "h" in inputs else []
    for role in useless:
        del node.inputs[inputs.index(role)]
        inputs.remove(role)
    node.outputs = [tensor for _, tensor in kept]
    node.attrs |= {"inputs": ",".join(inputs), "outputs": ",".join(role for role, _ in kept)}
