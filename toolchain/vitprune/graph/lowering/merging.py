"""Merging sites as one operator of the native library, where the model says what they are (`graph/outlines.py`)."""

from __future__ import annotations

import numpy as np
import onnx

from vitprune.graph import types
from vitprune.graph.anatomy.static import value_of
from vitprune.graph.lowering.pruning import ATTRIBUTES, SAMPLED, written
from vitprune.graph.lowering.scoring import rounds_inside
from vitprune.graph.outlines import Outline, stored
from vitprune.graph.types import Graph, Tensor, dims
from vitprune.ops.sites import PAIR_MERGE, SKETCH_PRODUCTS, WARD_MERGE
from vitprune.ops.token_sample import DOMAIN
from vitprune.support.onnx_types import HALF

QUANTISED = ("QuantizeLinear", "DequantizeLinear")
OPTIONAL = ("size", "patch", "valid", "group")
ASKING = ("query", "key", "asked_bias")  # in place of "attention": what the row of the CLS token is computed from
INPUTS = {PAIR_MERGE: ("x", "products", "metric", *OPTIONAL), WARD_MERGE: ("x", "gram", "attention", *OPTIONAL, *ASKING)}
INTEGERS = ("patch", "valid", "group")  # what is no float
OUTPUTS = {
    "rows": np.float32, "size": np.float32, "bias": np.float32, "index": np.int64, "keep": np.bool_, "group": np.int64,
}  # fmt: skip
SAMPLED_INPUTS = ("x", "metric", "query", "key", "value", "score", "size", "patch", "valid", "group", "asked_bias")
SAMPLED_OUTPUTS = OUTPUTS | {"patch": np.int64, "kept": np.int64, "shape": np.int64}
SAMPLED_ATTRIBUTES = ATTRIBUTES | {
    "prefix": int, "most": int, "padded": int, "loses": int, "proportional": int, "floor": float,
}  # fmt: skip


def native_merging(graph: Graph, model: onnx.ModelProto, shapes: dict[int, Tensor]) -> int:
    """Put operators in the place of the merging sites of a graph in FP32, which is changed; returns how many.

    The plain nodes of a site go with the next clean-up, those that something else still reads stay. A graph with half types is left
    as it is: an operator would pass over what it rounds inside a site.

    Args:
        graph: the imported model. model: what it was imported from, with its outlines. shapes: gets the shape int64 [3] of the rows
            that an operator tells, by the id of its node.
    """
    if any(node.op == "Cast" and node.attrs["to"] in HALF for node in graph.nodes):
        return 0
    asks = not any(node.op in QUANTISED for node in graph.nodes)  # the attention's own queries are not those of the score there
    made = 0
    for number, one in enumerate(stored(model)):
        name = f"vitprune/native_merge{number}"
        if one.kind == SAMPLED:
            made += not rounds_inside(one, graph.tensors(), set()) and _replace_sampled(graph, one, name, shapes)
        else:
            made += _replace(graph, one, name, asks)
    return made


def sampled_entering(one: Outline, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The inputs of a SampledMerge by role; None where the operator cannot take the place of the nodes."""
    grouped = one.inputs.get("group") in tensors
    numbered = grouped or any(one.outputs.get(role) in tensors for role in ("patch", "kept"))
    wanted = {role: label for role, label in one.inputs.items() if (role != "group" or grouped) and (role != "patch" or numbered)}
    found = {role: tensors[label] for role, label in wanted.items() if role in SAMPLED_INPUTS and label in tensors}
    scored = "score" in found or {"query", "key", "value"} <= found.keys()
    if len(found) < len(wanted) or not scored or not {"x", "metric"} <= found.keys() or not one.typed(SAMPLED_ATTRIBUTES):
        return None
    floats = (tensor.dtype == np.float32 for role, tensor in found.items() if role not in INTEGERS)
    return found if one.outputs.get("rows") in tensors and len(dims(found["x"])) == 3 and all(floats) else None


def _replace_sampled(graph: Graph, one: Outline, name: str, shapes: dict[int, Tensor]) -> bool:
    """A site that samples who stays (ATS) and merges the others."""
    tensors = graph.tensors()
    found = sampled_entering(one, tensors)
    if found is None:
        return False
    outputs = written(one, tensors, name, SAMPLED_OUTPUTS)
    if "group" not in found:
        outputs["group"] = types.absent()
    count = int(one.attributes["capacity"]) if one.attributes["pad_to_capacity"] else None
    left = f"{name}/left" if count is None else int(one.attributes["prefix_tokens"]) + count
    batch, _, width = dims(found["x"])
    outputs["rows"].shape = [batch, left, width]
    entering = [found.get(role, types.absent()) for role in SAMPLED_INPUTS]
    node = types.node(SAMPLED, name, entering, list(outputs.values()), domain=DOMAIN, attrs=dict(one.attributes))
    graph.nodes.append(node)
    shapes[id(node)] = outputs["shape"]
    return True


def pair_entering(graph: Graph, one: Outline, name: str, asks: bool, plugin: bool = False) -> dict[str, Tensor] | None:
    """The inputs of a PairMerge or WardMerge by role; None where the operator cannot take the place of the nodes.

    Products of rows become nodes of the graph.

    Args:
        asks: the row of the CLS token is computed from the attention's own queries and keys where the outline names them.
        plugin: for TensorRT, whose operator writes the numbers of patches too, and where there is no SketchProducts.
    """
    tensors = graph.tensors()
    behind = {role: one.inputs[role] for role in OPTIONAL if role in one.inputs}
    if behind.get("group") not in tensors:  # nobody reads groups; the numbers of patches are needed for them, or to be written
        listed = plugin and any(one.outputs.get(role) in tensors for role in ("patch", "kept"))
        behind = {role: label for role, label in behind.items() if role != "group" and (role != "patch" or listed)}
    asking = {role: one.inputs[role] for role in ASKING if role in one.inputs}
    asks = asks and {"query", "key"} <= asking.keys() and all(label in tensors for label in asking.values())
    left_out = (*OPTIONAL, *ASKING, "attention") if asks else (*OPTIONAL, *ASKING)
    needed = {role: label for role, label in one.inputs.items() if role not in left_out} | (asking if asks else {})
    known = one.kind in INPUTS and one.outputs.get("rows") in tensors and "prefix" in one.attributes
    if (
        not known
        or not {"x", "metric"} <= needed.keys()
        or any(label not in tensors for label in (*needed.values(), *behind.values()))
    ):
        return None
    if any(tensors[label].dtype != np.float32 for label in needed.values()):
        return None
    found = {role: tensors[label] for role, label in (needed | behind).items()}
    metric, prefix = found["metric"], int(one.attributes["prefix"])
    if one.kind == WARD_MERGE:
        gram = None if plugin else _of_sketches(graph, found["x"], metric, prefix, name)
        found["gram"] = gram or _product(graph, metric, metric, name)
    else:
        found["products"] = _halves(graph, metric, prefix, name)
    return {role: found[role] for role in INPUTS[one.kind] if role in found}


def _replace(graph: Graph, one: Outline, name: str, asks: bool) -> bool:
    tensors = graph.tensors()
    found = pair_entering(graph, one, name, asks)
    if found is None:
        return False
    inputs = [found.get(role, types.absent()) for role in INPUTS[one.kind]]
    attributes = ({"heads": 0} if one.kind == WARD_MERGE else {}) | one.attributes
    outputs: list[Tensor] = []
    for role, dtype in OUTPUTS.items():
        if role == "group" and "group" not in found:
            continue
        tensor = tensors.get(one.outputs.get(role, ""))
        if tensor is None:
            tensor = types.variable(f"{name}/{role}", dtype=dtype)
        tensor.inputs.clear()
        outputs.append(tensor)
    graph.nodes.append(types.node(one.kind, name=name, attrs=attributes, inputs=inputs, outputs=outputs, domain=DOMAIN))
    return True


def _of_sketches(graph: Graph, x: Tensor, metric: Tensor, prefix: int, name: str) -> Tensor | None:
    """Inner products [B,P,P] of sketches by one operator, from x [B,prefix+P,C]; None where the metric is something else."""
    reduce = metric.inputs[0] if metric.inputs else None
    split = reduce.inputs[0].inputs[0] if reduce is not None and reduce.op == "ReduceSum" and reduce.inputs[0].inputs else None
    shape = value_of(split.inputs[1]) if split is not None and split.op == "Reshape" else None
    above = split.inputs[0].inputs[0] if split is not None and split.inputs[0].inputs else None
    if above is not None and above.op == "Pad":
        above = above.inputs[0].inputs[0] if above.inputs[0].inputs else None
    if shape is None or shape.size != 4 or above is None or above.op != "Mul":
        return None
    signs = value_of(above.inputs[1])
    rows = above.inputs[0].inputs[0] if above.inputs[0].inputs else None
    behind = rows is not None and rows.op == "Slice" and rows.inputs[0] is x
    if signs is None or signs.ndim != 1 or not (behind if prefix else above.inputs[0] is x):
        return None
    made = types.variable(f"{name}/products", dtype=np.float32)
    signs_there = types.constant(f"{name}/signs", signs)
    attributes = {"prefix": prefix, "sums": int(shape[3])}
    graph.nodes.append(
        types.node(SKETCH_PRODUCTS, name=made.name, attrs=attributes, inputs=[x, signs_there], outputs=[made], domain=DOMAIN)
    )
    return made


def _product(graph: Graph, first: Tensor, second: Tensor, name: str) -> Tensor:
    """Inner products [B,n,m] of rows [B,n,d] and [B,m,d]."""
    across = types.variable(f"{name}/columns", dtype=np.float32)
    products = types.variable(f"{name}/products", dtype=np.float32)
    graph.nodes += [
        types.node("Transpose", name=across.name, attrs={"perm": [0, 2, 1]}, inputs=[second], outputs=[across]),
        types.node("MatMul", name=products.name, inputs=[first, across], outputs=[products]),
    ]
    return products


def _halves(graph: Graph, metric: Tensor, prefix: int, name: str) -> Tensor:
    """Products of even and odd token rows of [B,prefix+P,d], the prefix left out."""
    halves = []
    for label, first in (("even", prefix + prefix % 2), ("odd", prefix + 1 - prefix % 2)):
        half = types.variable(f"{name}/{label}", dtype=np.float32)
        values = {"first": first, "end": 2**31 - 1, "axis": 1, "step": 2}
        bounds = [types.constant(f"{half.name}_{what}", np.array([value], np.int64)) for what, value in values.items()]
        graph.nodes.append(types.node("Slice", name=half.name, inputs=[metric, *bounds], outputs=[half]))
        halves.append(half)
    return _product(graph, halves[0], halves[1], name)
