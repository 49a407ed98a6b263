"""The graph specialised for ONNX Runtime's CPU kernels: fused attention and GELU (domain com.microsoft), Gemm for linear maps.

ONNX Runtime's own optimiser finds none of these on graphs with data-dependent token counts.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
import onnx.inliner

from vitprune.graph import held, types
from vitprune.graph.anatomy.static import scalar_of
from vitprune.graph.lowering.attention import CONTRIB, above, fuse_attention
from vitprune.graph.lowering.linear import fuse_linear
from vitprune.graph.lowering.merging import native_merging
from vitprune.graph.lowering.packed import pack
from vitprune.graph.lowering.pruning import Sites, native_sites
from vitprune.graph.lowering.sampling import without_sampling
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Graph, is_constant, redirect
from vitprune.ops.function import Valid, function
from vitprune.ops.token_sample import DOMAIN, NAME


def specialise(
    model: onnx.ModelProto, keep_outputs: bool, native: bool = False, packed: bool = False
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Fuse for ONNX Runtime.

    Args:
        model: a pruned (or dense, canonical) model written by vitprune; not changed.
        keep_outputs: keep the kept-patch outputs.
        native: put operators of the native library in the place of sites and of TokenSample; else its function is written out.
        packed: lay the token rows of a batch behind each other (`lowering.packed`); needs the native library, too. Dropping sites then
            stay plain nodes: as one operator they would want every row with its pads.

    Returns:
        The specialised model and how many of each fusion were made; `sites`, `merging`: sites that are one operator, `halting`: steps of halting that are, `scores`: scores that a site is given, `native`: all
        operators that need the library.
    """
    opened = without_sampling(model) if native else _shorter_sampling(model)
    bare, weights = held.parted(opened)
    graph = held.attached(held.inferred(onnx.inliner.inline_local_functions(bare)), weights)
    if not keep_outputs:
        graph.outputs = graph.outputs[:1]
    graph.cleanup(remove_unused_graph_inputs=False)
    _skip_identities(graph)
    sites = native_sites(graph, model) if native and not packed else Sites()
    merging = native_merging(graph, model, sites.shapes) if native else 0
    graph.cleanup(remove_unused_graph_inputs=False)
    _sort_integers(graph)
    facts: dict[str, Any] = {
        "attention": fuse_attention(graph, sites.masks, native and not packed), "gelu": _fuse_gelu(graph),
    }  # fmt: skip
    if packed:
        facts["packed"] = pack(graph, model)
    facts["gemm"] = fuse_linear(graph, sites.shapes)
    graph.cleanup(remove_unused_graph_inputs=False)
    toposort(graph)
    facts["sites"], facts["merging"], facts["halting"] = sites.made, merging, sites.halts
    facts["scores"] = sites.scores
    facts["native"] = sum(node.domain == DOMAIN for node in graph.nodes)
    result = held.rebuilt(graph)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", graph.opset))
    if facts["native"]:
        result.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    result.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    result.ir_version = model.ir_version
    return result, facts


def _skip_identities(graph: Graph) -> None:
    """Whoever reads a copy of an initialiser reads the initialiser: exporters write one tensor for parameters that are equal."""
    for node in [node for node in graph.nodes if node.op == "Identity" and is_constant(node.inputs[0])]:
        copy = node.outputs[0]
        if not any(copy is one for one in graph.outputs):
            redirect(list(copy.outputs), copy, node.inputs[0])


def _sort_integers(graph: Graph) -> None:
    """Positions are sorted as floats, which every builder takes; ONNX Runtime sorts int64 as it is and saves two Casts."""
    for key in [node for node in graph.nodes if node.op == "Cast" and node.name.endswith("/top/key")]:
        topk = key.outputs[0].outputs[0]
        back = topk.outputs[0].outputs[0]
        sorted_index = back.outputs[0]
        back.outputs.clear()
        topk.inputs[0], topk.outputs[0] = key.inputs[0], sorted_index


def _fuse_gelu(graph: Graph) -> int:
    """X * (0.5 * (1 + erf(x / sqrt 2))), in whichever order it was written, -> Gelu."""
    made = 0
    for erf in [node for node in graph.nodes if node.op == "Erf"]:
        scaled = above(erf.inputs[0], "Div", "Mul")
        factor = next((s for t in scaled.inputs if (s := scalar_of(t)) is not None), None) if scaled is not None else None
        if (
            scaled is None
            or factor is None
            or not math.isclose(factor if scaled.op == "Mul" else 1 / factor, math.sqrt(0.5), rel_tol=1e-3)
        ):
            continue
        x = next(t for t in scaled.inputs if scalar_of(t) is None)
        plus = erf.outputs[0].outputs[0]
        if plus.op != "Add" or not any(scalar_of(t) == 1.0 for t in plus.inputs):
            continue
        last, half, product = plus, False, False
        while not (half and product):
            readers = last.outputs[0].outputs
            if len(readers) != 1 or readers[0].op != "Mul":
                break
            last = readers[0]
            half |= any(scalar_of(t) == 0.5 for t in last.inputs)
            product |= any(t is x for t in last.inputs)
        if not (half and product):
            continue
        output = last.outputs[0]
        last.outputs.clear()
        graph.nodes.append(types.node("Gelu", name=f"{erf.name}/gelu", inputs=[x], outputs=[output], domain=CONTRIB))
        made += 1
    return made


def _shorter_sampling(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shorter TokenSample body: in a pruned graph valid slots come first; for single images all are valid."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.op_type == NAME]
    modes = {attribute.s.decode() for node in nodes for attribute in node.attribute if attribute.name == "mode"}
    padded = any(attribute.i for node in nodes for attribute in node.attribute if attribute.name == "pad_to_capacity")
    single = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    for body in copy.functions:
        if body.name == NAME and len(modes) == 1:
            overflow = any(node.output[0] == "best" for node in body.node)
            opset = next(entry.version for entry in body.opset_import if not entry.domain)
            valid: Valid = "single" if single and not padded else "first"
            body.CopyFrom(function(next(iter(modes)), overflow=overflow, padded=padded, valid=valid, opset=opset))
    return copy
