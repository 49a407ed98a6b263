"""Dropping sites as one operator of the native library, where the model says what they are (`graph/outlines.py`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from vitprune.graph import types
from vitprune.graph.lowering.scoring import native_scores, rounds_inside
from vitprune.graph.lowering.typed_sites import TYPED, element
from vitprune.graph.outlines import Outline, stored
from vitprune.graph.types import Graph, Node, Shape, Tensor, dims
from vitprune.ops.sites import KEY_BIAS_ATTENTION, PRUNE_SITE, SAMPLED_MERGE, TOKEN_HALT
from vitprune.ops.token_sample import DOMAIN
from vitprune.support.onnx_types import FLOAT

KIND, HALT, SAMPLED = PRUNE_SITE, TOKEN_HALT, SAMPLED_MERGE
INPUTS = ("x", "valid", "query", "key", "value", "score", "h", "patch", "theta")
OUTPUTS = {
    "rows": np.float32, "rows2": np.float32, "index": np.int64, "keep": np.bool_, "patch": np.int64, "kept": np.int64,
    "mask": np.int32, "score_kept": np.float32, "shape": np.int64,
}  # fmt: skip
ATTRIBUTES = {
    "form": str, "combine": str, "heads": int, "prefix_tokens": int, "originals": int, "mode": str, "num_samples": int,
    "threshold": float, "capacity": int, "expected": int, "pad_to_capacity": int,
}  # fmt: skip
WAYS = ("/from_rows", "/to_rows", "/rows2_again")  # names of Reshapes between [B,M,C] and [B*M,C]
HALT_INPUTS = ("x", "total", "remainder", "output", "patch")
HALT_OUTPUTS = {
    "rows": np.float32, "output": np.float32, "total": np.float32, "remainder": np.float32, "mask": np.int32, "index": np.int64,
    "keep": np.bool_, "patch": np.int64, "kept": np.int64, "shape": np.int64,
}  # fmt: skip
HALT_ATTRIBUTES = ATTRIBUTES | {
    "channel": int, "gate_scale": float, "gate_center": float, "limit": float, "compacts": int, "exits": int, "last": int,
}  # fmt: skip
DATA = ("x", "query", "key", "value", "score", "h", "theta")


@dataclass
class Sites:
    """What came of the outlines of a graph.

    made: sites that are an operator. halts, scores: steps of halting and scores
    that a site is given, likewise. masks: key padding masks int32 [B,N] that stand for a key bias, by the id of the bias. shapes: by the id of
    rows [B,M,C] that an operator writes, where their shape int64 [3] is to be had.
    """

    made: int = 0
    halts: int = 0
    scores: int = 0
    masks: dict[int, Tensor] = field(default_factory=dict)
    shapes: dict[int, Tensor] = field(default_factory=dict)


def native_sites(graph: Graph, model: onnx.ModelProto) -> Sites:
    """Put an operator in the place of every dropping site of a graph, and of every step of halting; the graph is changed.

    The plain nodes of a site go with the next clean-up, those that something else still reads stay. In graphs with half types or
    quantised products a site stays as it is where something is rounded inside it: an operator would pass over that.

    Args:
        graph: the imported model. model: what it was imported from, with its outlines.
    """
    sites = Sites()
    sites.scores = native_scores(graph, model)
    for number, told in enumerate(stored(model)):
        one = as_gathered(told, graph.tensors())
        if one.kind in (KIND, HALT) and not rounds_inside(one, graph.tensors(), set(sites.masks)):
            put = _replace if one.kind == KIND else _halt
            put(graph, one, f"vitprune/native_site{number}", sites)
    return sites


def site_above(rows: Tensor) -> Node | None:
    """The node of a site whose rows a tensor [B,M,...] has, one for one, or None; only operators that keep rows are passed.

    They are its first output, and a dropping site has a second one with as many; what else a step of halting writes has others.
    """
    tensor = rows
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op in (KIND, HALT, SAMPLED):
            return node if node.op == KIND or tensor is node.outputs[0] else None
        following = _same_rows(node)
        if following is None:
            return None
        tensor = following
    return None


def _same_rows(node: Node) -> Tensor | None:
    """The input that has as many rows as the output of a node, None where that is not known."""
    if not node.inputs:
        return None
    first = node.inputs[0]
    if node.op in ("LayerNormalization", "Gelu", "Gemm", "MultiHeadAttention", KEY_BIAS_ATTENTION):
        return first
    if node.op == "MatMul":
        return first if types.is_constant(node.inputs[1]) else None
    if node.op == "Reshape":
        return first if node.name.endswith(WAYS) else None
    if node.op in ("Add", "Mul"):
        return next(
            (one for one in node.inputs if not types.is_constant(one) and len(dims(one)) == 3 and dims(one)[1] != 1), None
        )
    return None


def as_gathered(one: Outline, tensors: dict[str, Tensor]) -> Outline:
    """The site with LN1(x) as its rows are gathered from it: the score may read it before it is rounded to a half type."""
    rows2 = tensors.get(one.outputs.get("rows2", ""))
    gather = rows2.inputs[0] if rows2 is not None and rows2.inputs else None
    if gather is None or gather.op != "GatherND":
        return one
    return replace(one, inputs={**one.inputs, "h": gather.inputs[0].name})


def _replace(graph: Graph, one: Outline, name: str, sites: Sites) -> None:
    tensors = graph.tensors()
    inputs = entering(one, tensors)
    if inputs is None or one.outputs.get("rows") not in tensors:
        return
    batch, _, width = dims(inputs["x"])
    count = int(one.attributes["capacity"]) if one.attributes["pad_to_capacity"] else None
    more = int(one.attributes["combine"] != "nothing")
    left = f"{name}/left" if count is None else int(one.attributes["prefix_tokens"]) + count + more
    outputs = written(one, tensors, name, OUTPUTS, ("rows2",))
    outputs["rows"].shape = [batch, left, width]
    attributes = {**one.attributes, "plugin_version": "1", "plugin_namespace": DOMAIN}
    node = types.node(
        KIND, name, [inputs.get(role, types.absent()) for role in INPUTS], list(outputs.values()), domain=DOMAIN, attrs=attributes
    )
    graph.nodes.append(node)
    if (second := tensors.get(one.outputs.get("rows2", ""))) is not None:
        _rows_again(graph, second, outputs, [batch, left, width], name)
    if (bias := tensors.get(one.outputs.get("bias", ""))) is not None:
        sites.masks[id(bias)] = outputs["mask"]
    sites.shapes[id(node)] = outputs["shape"]
    sites.made += 1


def entering(one: Outline, tensors: dict[str, Tensor], kinds: Collection[int] = (FLOAT,)) -> dict[str, Tensor] | None:
    """The inputs of a site by role; None where the operator cannot take the place of the nodes.

    Args:
        kinds: element types that rows, queries, keys and values may have.
    """
    numbered = any(one.outputs.get(role) in tensors for role in ("patch", "kept"))  # else nobody reads the numbers of patches
    wanted = {role: label for role, label in one.inputs.items() if role != "patch" or numbered}
    found = {role: tensors[label] for role, label in wanted.items() if role in INPUTS and label in tensors}
    if (
        not one.typed(ATTRIBUTES)
        or len(found) < len(wanted)
        or "x" not in found
        or any(element(found[role].dtype) not in (kinds if role in TYPED else (FLOAT,)) for role in DATA if role in found)
    ):
        return None
    x, h = found["x"], found.get("h")
    if len(dims(x)) != 3 or not isinstance(dims(x)[2], int):
        return None
    alike = h is not None and list(dims(h))[2:] == list(dims(x))[2:]
    return found if alike or "rows2" not in one.outputs else None


def _halt(graph: Graph, one: Outline, name: str, sites: Sites) -> None:
    """The step of halting behind one block, and the compaction that follows it where there is one."""
    tensors = graph.tensors()
    wanted = {role: label for role, label in one.inputs.items() if role != "patch" or one.outputs.get("kept") in tensors}
    inputs = {role: tensors[label] for role, label in wanted.items() if role in HALT_INPUTS and label in tensors}
    if len(inputs) < len(wanted) or "x" not in inputs or not one.typed(HALT_ATTRIBUTES):
        return
    x, compacts = inputs["x"], bool(one.attributes["compacts"])
    floats = all(tensor.dtype == np.float32 for role, tensor in inputs.items() if role != "patch")
    if not floats or len(dims(x)) != 3 or one.outputs.get("rows" if compacts else "output") not in tensors:
        return
    outputs = written(one, tensors, name, HALT_OUTPUTS)
    if compacts:
        count = int(one.attributes["capacity"]) if one.attributes["pad_to_capacity"] else None
        left = f"{name}/left" if count is None else int(one.attributes["prefix_tokens"]) + count
        outputs["rows"].shape = [dims(x)[0], left, dims(x)[2]]
    attributes = {**one.attributes, "plugin_version": "1", "plugin_namespace": DOMAIN}
    node = types.node(
        HALT,
        name,
        [inputs.get(role, types.absent()) for role in HALT_INPUTS],
        list(outputs.values()),
        domain=DOMAIN,
        attrs=attributes,
    )
    graph.nodes.append(node)
    if (bias := tensors.get(one.outputs.get("bias", ""))) is not None:
        sites.masks[id(bias)] = outputs["mask"]
    sites.shapes[id(node)] = outputs["shape"]
    sites.made += compacts
    sites.halts += 1


def written(
    one: Outline, tensors: dict[str, Tensor], name: str, kinds: dict[str, Any], fresh: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The outputs of an operator by role: the graph's own tensors, taken from the nodes that made them, others where it has none.

    Args:
        kinds: types by role. fresh: roles that have a tensor of their own in any case.
    """
    made = {role: types.variable(f"{name}/{role}", dtype=dtype) for role, dtype in kinds.items()}
    taken: set[str] = set()  # numbers, positions and the kept list can be one tensor
    for role, label in one.outputs.items():
        if role in kinds and role not in fresh and label in tensors and label not in taken:
            tensors[label].inputs.clear()
            tensors[label].dtype = kinds[role]
            made[role] = tensors[label]
            taken.add(label)
    return made


def _rows_again(graph: Graph, rows: Tensor, made: dict[str, Tensor], shape: Shape, name: str) -> None:
    """The second rows come as [B*M,C]: what reads them is a linear map, which wants them so. For whoever else there is, [B,M,C]."""
    flat = made["rows2"]
    flat.shape = [f"{name}/flat", shape[2]]
    rows.inputs.clear()
    rows.shape = list(shape)
    graph.nodes.append(types.node("Reshape", name=f"{name}/rows2_again", inputs=[flat, made["shape"]], outputs=[rows]))
