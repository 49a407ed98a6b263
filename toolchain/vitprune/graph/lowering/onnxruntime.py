"""The graph specialised for ONNX Runtime's CPU kernels: fused attention and GELU (domain com.microsoft), Gemm for linear maps.

ONNX Runtime's own optimiser finds none of these on graphs with data-dependent token counts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs

from vitprune.graph import types
from vitprune.graph.anatomy.static import scalar_of, value_of
from vitprune.graph.lowering.constants import direct
from vitprune.graph.lowering.merging import native_merging
from vitprune.graph.lowering.packed import pack
from vitprune.graph.types import Graph, Node, Tensor, dims
from vitprune.ops.function import Valid, function
from vitprune.ops.token_sample import DOMAIN, NAME

CONTRIB = "com.microsoft"


def specialise(
    model: onnx.ModelProto, keep_outputs: bool, native: bool = False, packed: bool = False
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Fuse for ONNX Runtime.

    Args:
        model: a pruned (or dense, canonical) model written by vitprune; not changed.
        keep_outputs: keep the kept-patch outputs.
        native: leave TokenSample to the operator of the native library; else its function is written out.
        packed: lay the token rows of a batch behind each other (`lowering.packed`); needs the native library, too.

    Returns:
        The specialised model and how many of each fusion were made; `native`: operators that need the library.
    """
    opened = _native_sampling(model) if native else _shorter_sampling(model)
    flat = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(opened))
    graph: Graph = gs.import_onnx(flat)
    direct(graph)
    if not keep_outputs:
        graph.outputs = graph.outputs[:1]
        graph.cleanup(remove_unused_graph_inputs=False)
    merging = native_merging(graph, model) if native else 0
    _sort_integers(graph)
    facts: dict[str, Any] = {"attention": _fuse_attention(graph), "gelu": _fuse_gelu(graph)}
    if packed:
        facts["packed"] = pack(graph, model)
    facts["gemm"] = _fuse_gemm(graph)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    facts["merging"] = merging
    facts["native"] = sum(node.domain == DOMAIN for node in graph.nodes)
    result: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    del result.opset_import[:]
    result.opset_import.append(onnx.helper.make_opsetid("", graph.opset))
    if facts["native"]:
        result.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    result.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    result.ir_version = model.ir_version
    return result, facts


def _sort_integers(graph: Graph) -> None:
    """Positions are sorted as floats, which every builder takes; ONNX Runtime sorts int64 as it is and saves two Casts."""
    for key in [node for node in graph.nodes if node.op == "Cast" and node.name.endswith("/top/key")]:
        topk = key.outputs[0].outputs[0]
        back = topk.outputs[0].outputs[0]
        sorted_index = back.outputs[0]
        back.outputs.clear()
        topk.inputs[0], topk.outputs[0] = key.inputs[0], sorted_index


def _above(tensor: Tensor, *kinds: str) -> Node | None:
    node = tensor.inputs[0] if tensor.inputs else None
    return node if node is not None and node.op in kinds else None


def _flat_heads(tensor: Tensor, perm: list[int]) -> tuple[Tensor, int] | None:
    """Undo Reshape [B,N,H,d] + Transpose: the flat tensor [B,N,H*d] and H."""
    transpose = _above(tensor, "Transpose")
    reshape = _above(transpose.inputs[0], "Reshape") if transpose is not None and transpose.attrs.get("perm") == perm else None
    shape = value_of(reshape.inputs[1]) if reshape is not None else None
    return None if reshape is None or shape is None or len(shape) != 4 else (reshape.inputs[0], int(shape[2]))


def _fuse_attention(graph: Graph) -> int:
    """Canonical chains -> MultiHeadAttention with a key padding mask."""
    made = 0
    masks: dict[int, Tensor] = {}
    for softmax in [node for node in graph.nodes if node.op == "Softmax" and node.name.endswith("/probabilities")]:
        add = _above(softmax.inputs[0], "Add")
        bias = add.inputs[1] if add is not None else None
        logits = _above(add.inputs[0] if add is not None else softmax.inputs[0], "MatMul")
        context = softmax.outputs[0].outputs[0]
        if logits is None or context.op != "MatMul" or len(softmax.inputs[0].outputs) > 1:
            continue  # logits that something else reads, too, have to be computed anyway
        query, key, value = (
            _flat_heads(logits.inputs[0], [0, 2, 1, 3]),
            _flat_heads(logits.inputs[1], [0, 2, 3, 1]),
            _flat_heads(context.inputs[1], [0, 2, 1, 3]),
        )
        merge = context.outputs[0].outputs[0]
        flat = merge.outputs[0].outputs[0] if merge.op == "Transpose" else None
        if query is None or key is None or value is None or flat is None or flat.op != "Reshape":
            continue
        inputs = [query[0], key[0], value[0]]
        if bias is not None and _is_sized(bias):
            inputs += [types.absent(), types.absent(), _row_bias(graph, bias, query[0], softmax.name)]
        elif bias is not None and _above(bias, "Unsqueeze") is None:
            inputs += [types.absent(), types.absent(), bias]  # one value per query and key, not a padding mask
        elif bias is not None:
            inputs += [types.absent(), _padding_mask(graph, bias, masks)]
        output = flat.outputs[0]
        flat.outputs.clear()
        attributes = {"num_heads": query[1], "scale": 1.0, "mask_filter_value": -10000.0}
        graph.nodes.append(
            types.node(
                "MultiHeadAttention",
                name=f"{softmax.name}/fused",
                attrs=attributes,
                inputs=inputs,
                outputs=[output],
                domain=CONTRIB,
            )
        )
        made += 1
    return made


def _is_sized(bias: Tensor) -> bool:
    """Whether a key bias holds log(size) of merged rows: it is no mask, its values count."""
    flat = _above(bias, "Unsqueeze")
    if flat is not None and flat.inputs[0].inputs and flat.inputs[0].inputs[0].domain == DOMAIN:
        return True  # of a merging operator
    source = _above(flat.inputs[0], "Log", "Add") if flat is not None else None
    return source is not None and (source.op == "Log" or any(_above(tensor, "Log") is not None for tensor in source.inputs))


def _row_bias(graph: Graph, bias: Tensor, query: Tensor, name: str) -> Tensor:
    """Key bias [B,1,1,N] repeated for every query row: [B,1,M,N], the smallest form MultiHeadAttention takes."""
    one = types.constant(f"{name}/one", np.asarray([1], np.int64))
    ones = types.constant(f"{name}/ones", np.asarray([1, 1], np.int64))
    rows = types.variable(f"{name}/rows", dtype=np.int64)
    shape = types.variable(f"{name}/bias_shape", dtype=np.int64)
    wide = types.variable(f"{name}/row_bias", dtype=np.float32)
    graph.nodes.append(types.node("Shape", name=rows.name, attrs={"start": 1, "end": 2}, inputs=[query], outputs=[rows]))
    graph.nodes.append(types.node("Concat", name=shape.name, attrs={"axis": 0}, inputs=[ones, rows, one], outputs=[shape]))
    graph.nodes.append(types.node("Expand", name=wide.name, inputs=[bias, shape], outputs=[wide]))
    return wide


def _padding_mask(graph: Graph, bias: Tensor, masks: dict[int, Tensor]) -> Tensor:
    """int32 [B,N], 1 where the additive bias [B,1,1,N] is zero; one per bias."""
    if id(bias) not in masks:
        flat = _above(bias, "Unsqueeze")
        assert flat is not None
        zero = types.constant(f"{bias.name}/half", np.asarray(-0.5, np.float32))
        live = types.variable(f"{bias.name}/live", dtype=np.bool_)
        mask = types.variable(f"{bias.name}/mask", dtype=np.int32)
        graph.nodes.append(types.node("Greater", name=live.name, inputs=[flat.inputs[0], zero], outputs=[live]))
        graph.nodes.append(types.node("Cast", name=mask.name, attrs={"to": 6}, inputs=[live], outputs=[mask]))
        masks[id(bias)] = mask
    return masks[id(bias)]


def _fuse_gelu(graph: Graph) -> int:
    """X * (0.5 * (1 + erf(x / sqrt 2))), in whichever order it was written, -> Gelu."""
    made = 0
    for erf in [node for node in graph.nodes if node.op == "Erf"]:
        scaled = _above(erf.inputs[0], "Div", "Mul")
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


def _native_sampling(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without TokenSample's function: the operator of that name takes its place. Shapes of its outputs are stated."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [body for body in copy.functions if body.name != NAME]
    del copy.functions[:]
    copy.functions.extend(kept)
    for number, node in enumerate(node for node in copy.graph.node if node.op_type == NAME):
        for name, kind in zip(node.output[:2], (onnx.TensorProto.INT64, onnx.TensorProto.BOOL), strict=True):
            stated = [value for value in copy.graph.value_info if value.name == name]
            if any(value.type.tensor_type.HasField("shape") for value in stated):
                continue
            for value in stated:
                copy.graph.value_info.remove(value)
            shape = [f"images_{number}", f"kept_{number}"]
            copy.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    return copy


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


def _fuse_gemm(graph: Graph) -> int:
    """MatMul of rows [B,N,C] with weights + bias -> one Gemm over [B*N,C]; ONNX Runtime does this only for static shapes."""
    made = 0
    images = dims(graph.inputs[0])[0]
    batch = images if isinstance(images, int) else None
    shapes: dict[tuple[int, int], Tensor] = {}
    for matmul in [node for node in graph.nodes if node.op == "MatMul"]:
        weight = value_of(matmul.inputs[1])
        readers = matmul.outputs[0].outputs
        x = matmul.inputs[0]
        if (
            weight is None
            or weight.ndim != 2
            or len(readers) != 1
            or readers[0].op != "Add"
            or len(dims(x)) != 3
            or dims(x)[1] == 1
        ):
            continue
        add = readers[0]
        bias = next((t for t in add.inputs if (v := value_of(t)) is not None and v.ndim == 1 and v.size == weight.shape[1]), None)
        if bias is None:
            continue
        name, output = add.name or add.outputs[0].name, add.outputs[0]
        add.outputs.clear()
        rows = types.variable(f"{name}/rows", dtype=np.float32)
        flat = types.variable(f"{name}/flat", dtype=np.float32)
        minus = types.constant(f"{name}/rows_shape", np.array([-1, weight.shape[0]], np.int64))
        full = _outer_shape(graph, x, weight.shape[1], batch, shapes)
        graph.nodes += [
            types.node("Reshape", name=f"{name}/to_rows", inputs=[x, minus], outputs=[rows]),
            types.node("Gemm", name=f"{name}/gemm", inputs=[rows, matmul.inputs[1], bias], outputs=[flat]),
            types.node("Reshape", name=f"{name}/from_rows", inputs=[flat, full], outputs=[output]),
        ]
        made += 1
    return made


def _outer_shape(graph: Graph, x: Tensor, width: int, batch: int | None, shapes: dict[tuple[int, int], Tensor]) -> Tensor:
    """The shape [B,N,width] to go back to: a constant when batch or token count is fixed, else read off x once per width."""
    tokens = dims(x)[1]
    if batch is not None or isinstance(tokens, int):
        known = [-1, tokens, width] if batch is None else [batch, -1, width]
        return types.constant(f"{x.name}/back_{width}_{len(graph.nodes)}", np.array(known, np.int64))
    key = (id(x), width)
    if key not in shapes:
        outer = types.variable(f"{x.name}/outer_{width}", dtype=np.int64)
        full = types.variable(f"{x.name}/full_{width}", dtype=np.int64)
        constant = types.constant(f"{x.name}/width_{width}", np.array([width], np.int64))
        graph.nodes.append(types.node("Shape", name=outer.name, attrs={"start": 0, "end": -1}, inputs=[x], outputs=[outer]))
        graph.nodes.append(types.node("Concat", name=full.name, attrs={"axis": 0}, inputs=[outer, constant], outputs=[full]))
        shapes[key] = full
    return shapes[key]
