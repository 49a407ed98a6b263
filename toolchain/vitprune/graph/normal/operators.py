"""Fused operators of ONNX Runtime's optimisers (domain com.microsoft), written out in ONNX's own.

What they compute: onnxruntime's ContribOperators.md. What is not in the table is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph import types
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.types import Graph, Node, Tensor, dims, redirect

CONTRIB = "com.microsoft"
STANDARD = ("", "ai.onnx", None)
# Of these ONNX Runtime writes some without their domain.
UNDOMAINED = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
Writer = Callable[[Emitter, Node], "list[Tensor | None]"]
ACTIVATIONS = {"Relu", "Tanh", "Sigmoid"}


def expand(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The same graph without foreign operators, and how many of each were written out.

    Raises:
        ExportError: VP334 naming an operator that is not understood.
    """
    if not any(_foreign(node.domain, node.op_type) for node in model.graph.node):
        return _imports_only(model), {}
    counts: dict[str, int] = {}
    for step in (_SIMPLE, _PRODUCTS):
        graph: Graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
        emit = Emitter(graph, "products" if step is _PRODUCTS else "plain")
        for node in [node for node in graph.nodes if _foreign(node.domain, node.op)]:
            if node.op in step:
                _replace(graph, node, step[node.op], emit.child(node.name))
                counts[node.op] = counts.get(node.op, 0) + 1
            elif node.op not in _SIMPLE and node.op not in _PRODUCTS:
                raise refused(node, "it is not one of ONNX's own and not known")
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
        model = _without_shapes(gs.export_onnx(graph, do_type_check=False), model)
    return _imports_only(model), counts


def refused(node: Node, why: str) -> ExportError:
    """VP334: which operator is not understood, and why."""
    return ExportError(
        334,
        f"the graph holds operator {node.domain or 'ai.onnx'}:{node.op}",
        cause=f"node '{node.name or node.outputs[0].name}': {why}",
        next_step="give the graph as it was before it was optimised for a runtime, or optimised at the level 'basic'",
    )


def _foreign(domain: str | None, op: str) -> bool:
    return domain not in STANDARD or op in UNDOMAINED


def _imports_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without imports of domains that no node uses; optimisers list all they know."""
    used = {node.domain for node in model.graph.node} | {node.domain for body in model.functions for node in body.node}
    unused = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx") and entry.domain not in used]
    if not unused:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for entry in unused:
        copy.opset_import.remove(entry)
    return copy


def _without_shapes(made: onnx.ModelProto, before: onnx.ModelProto) -> onnx.ModelProto:
    """What inference said of tensors that a later step will type anew."""
    del made.graph.value_info[:]
    made.ir_version = before.ir_version
    return made


def _replace(graph: Graph, node: Node, write: Writer, emit: Emitter) -> None:
    results, before = write(emit, node), list(node.outputs)
    node.outputs = []
    for old, new in zip(before, [*results, *[None] * len(before)], strict=False):
        leaves = any(old is output for output in graph.outputs)
        if new is None and (leaves or old.outputs):
            raise refused(node, "an output that only training needs is read")
        if new is not None:
            redirect(list(old.outputs), old, new)
            if leaves:
                graph.nodes.append(types.node("Identity", f"{emit.prefix}/named", [new], [old]))


def _given(node: Node, position: int) -> Tensor | None:
    """An input, None where it is left out."""
    tensor = node.inputs[position] if len(node.inputs) > position else None
    return tensor if tensor is not None and (tensor.name or types.is_constant(tensor)) else None


def _nothing_else(node: Node, known: int, attributes: set[str]) -> None:
    """Inputs beyond the first `known` and attributes that are not in the set change what is computed."""
    extra = next((number for number in range(known, len(node.inputs)) if _given(node, number) is not None), None)
    if extra is not None:
        raise refused(node, f"its input {extra} (a mask, a past or a bias of positions) is not understood")
    unknown = sorted(name for name, value in node.attrs.items() if name not in attributes and value not in (0, 0.0, "", None))
    if unknown:
        raise refused(node, f"its attribute {unknown[0]} is not understood")


def _sum(emit: Emitter, tensors: Iterable[Tensor | None], label: str) -> Tensor:
    live = [tensor for tensor in tensors if tensor is not None]
    total = live[0]
    for number, tensor in enumerate(live[1:]):
        total = emit.op("Add", [total, tensor], f"{label}{number}")
    return total


def _residual_sum(emit: Emitter, node: Node, bias: Tensor | None) -> Tensor:
    """Input + skip, with the bias on the one that a linear map makes: the other is the stream that residual sums add to."""
    first, second = node.inputs[:2]
    if second.inputs and second.inputs[0].op in ("MatMul", "Gemm"):
        first, second = second, first
    return _sum(emit, [first, bias, second], "sum")


def layer_norm(emit: Emitter, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """LayerNorm over the last axis, in primitives where the opset has no operator for it."""
    if emit.graph.opset >= 17:
        return emit.op("LayerNormalization", [x, weight, *([bias] if bias is not None else [])], "norm", axis=-1, epsilon=epsilon)
    centred = emit.op("Sub", [x, emit.reduce("ReduceMean", x, -1, "mean", keepdims=1)], "centred")
    normed = _over_root(emit, centred, epsilon)
    scaled = emit.op("Mul", [normed, weight], "scaled")
    return scaled if bias is None else emit.op("Add", [scaled, bias], "norm")


def _over_root(emit: Emitter, x: Tensor, epsilon: float) -> Tensor:
    """X divided by the root of its mean square over the last axis."""
    square = emit.op("Mul", [x, x], "square")
    mean = emit.reduce("ReduceMean", square, -1, "mean_square", keepdims=1)
    root = emit.op("Sqrt", [emit.op("Add", [mean, emit.constant(epsilon, FLOAT)], "plus_epsilon")], "root")
    return emit.op("Div", [x, root], "normed")


def _epsilon(node: Node, default: float) -> float:
    return float(node.attrs.get("epsilon", default))


def _skip_norm(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Input, skip, weight, [bias], [bias of the sum] -> norm, -, -, sum."""
    _nothing_else(node, 5, {"epsilon"})
    total = _residual_sum(emit, node, _given(node, 4))
    return [layer_norm(emit, total, node.inputs[2], _given(node, 3), _epsilon(node, 1e-12)), None, None, total]


def _rms(emit: Emitter, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return emit.op("Mul", [_over_root(emit, x, epsilon), weight], "norm")


def _skip_rms(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Input, skip, weight, [bias of the sum] -> norm, -, -, sum."""
    _nothing_else(node, 4, {"epsilon"})
    total = _residual_sum(emit, node, _given(node, 3))
    return [_rms(emit, total, node.inputs[2], _epsilon(node, 1e-12)), None, None, total]


def _simplified_norm(emit: Emitter, node: Node) -> list[Tensor | None]:
    _nothing_else(node, 2, {"epsilon", "axis", "stash_type"})
    if node.attrs.get("axis", -1) != -1:
        raise refused(node, "a norm over another axis than the last")
    return [_rms(emit, node.inputs[0], node.inputs[1], _epsilon(node, 1e-5))]


def gelu(emit: Emitter, x: Tensor) -> Tensor:
    """X / 2 (1 + erf(x / sqrt 2))."""
    erf = emit.op("Erf", [emit.op("Div", [x, emit.constant(math.sqrt(2), FLOAT)], "scaled")], "erf")
    one = emit.op("Add", [erf, emit.constant(1.0, FLOAT)], "one")
    return emit.op("Mul", [emit.op("Mul", [x, one], "product"), emit.constant(0.5, FLOAT)], "gelu")


def _gelu(emit: Emitter, node: Node) -> list[Tensor | None]:
    _nothing_else(node, 2, set())
    return [gelu(emit, _sum(emit, [node.inputs[0], _given(node, 1)], "biased"))]


def _fast_gelu(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Hendrycks and Gimpel 2016: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    _nothing_else(node, 2, set())
    x = _sum(emit, [node.inputs[0], _given(node, 1)], "biased")
    cube = emit.op("Mul", [emit.op("Mul", [x, x], "square"), x], "cube")
    inner = emit.op("Add", [x, emit.op("Mul", [cube, emit.constant(0.044715, FLOAT)], "small")], "inner")
    tanh = emit.op("Tanh", [emit.op("Mul", [inner, emit.constant(math.sqrt(2 / math.pi), FLOAT)], "scaled")], "tanh")
    one = emit.op("Add", [tanh, emit.constant(1.0, FLOAT)], "one")
    return [emit.op("Mul", [emit.op("Mul", [x, one], "product"), emit.constant(0.5, FLOAT)], "gelu")]


def _quick_gelu(emit: Emitter, node: Node) -> list[Tensor | None]:
    """X sigmoid(alpha x)."""
    _nothing_else(node, 1, {"alpha"})
    alpha = emit.constant(float(node.attrs.get("alpha", 1.702)), FLOAT)
    return [emit.op("Mul", [node.inputs[0], emit.op("Sigmoid", [emit.op("Mul", [node.inputs[0], alpha], "s")], "gate")], "gelu")]


def _with_activation(kind: str) -> Writer:
    """An operator of ONNX's own with an activation behind it."""

    def write(emit: Emitter, node: Node) -> list[Tensor | None]:
        activation = str(node.attrs.get("activation", ""))
        if activation not in ACTIVATIONS:
            raise refused(node, f"its activation {activation or 'without a name'} is not understood")
        kept = {name: value for name, value in node.attrs.items() if not name.startswith("activation")}
        _nothing_else(node, 3, {*kept, "activation"})
        made = emit.op(kind, list(node.inputs[:3]), "linear", **kept)
        return [emit.op(activation, [made], "activated")]

    return write


def _attend(emit: Emitter, parts: list[Tensor], heads: int, scale: float, width: int) -> Tensor:
    """Q, k, v [B,N,H*d] -> context [B,N,H*d], written as exporters do."""

    def split(x: Tensor, perm: list[int], label: str) -> Tensor:
        apart = emit.op("Reshape", [x, emit.constant([0, 0, heads, width // heads])], f"{label}/heads")
        return emit.op("Transpose", [apart], f"{label}/turned", perm=perm)

    query, key, value = (
        split(part, perm, label)
        for part, perm, label in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), "qkv", strict=True)
    )
    product = emit.op("Mul", [emit.op("MatMul", [query, key], "product"), emit.constant(scale, FLOAT)], "logits")
    weights = emit.op("Softmax", [product], "weights", axis=-1)
    context = emit.op("Transpose", [emit.op("MatMul", [weights, value], "context")], "context/turned", perm=[0, 2, 1, 3])
    return emit.op("Reshape", [context, emit.constant([0, 0, width])], "context/rows")


def _attention(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Packed: input [B,N,C], weight [C,3*H*d], bias [3*H*d]."""
    _nothing_else(node, 3, {"num_heads", "scale", "mask_filter_value"})
    weight = node.inputs[1]
    if not types.is_constant(weight):
        raise refused(node, "weights that are not constant")
    width, heads = int(list(dims(weight))[-1]) // 3, int(node.attrs["num_heads"])
    packed = emit.op("MatMul", [node.inputs[0], weight], "packed")
    bias = _given(node, 2)
    packed = packed if bias is None else emit.op("Add", [packed, bias], "packed/biased")
    parts = [emit.slice(packed, part * width, (part + 1) * width, 2, "qkv"[part]) for part in range(3)]
    scale = float(node.attrs.get("scale") or (width // heads) ** -0.5)
    return [_attend(emit, parts, heads, scale, width), None]


def _multi_head(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Separate: q, k, v [B,N,H*d], bias [3*H*d] or none."""
    _nothing_else(node, 4, {"num_heads", "scale", "mask_filter_value"})
    if any(len(dims(tensor)) != 3 or not isinstance(dims(tensor)[2], int) for tensor in node.inputs[:3]):
        raise refused(node, "queries, keys and values other than three tensors [B,N,H*d] of known width")
    width, heads = int(dims(node.inputs[0])[2]), int(node.attrs["num_heads"])
    parts, bias = list(node.inputs[:3]), _given(node, 3)
    if bias is not None:
        values = getattr(bias, "values", None)
        if values is None:
            raise refused(node, "a bias that is not constant")
        thirds = np.split(np.asarray(values), 3)
        parts = [
            emit.op("Add", [part, emit.constant(third, FLOAT)], f"biased{i}")
            for i, (part, third) in enumerate(zip(parts, thirds, strict=True))
        ]
    scale = float(node.attrs.get("scale") or (width // heads) ** -0.5)
    return [_attend(emit, parts, heads, scale, width), None, None]


def _fused_matmul(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Alpha * op(A) @ op(B); transposing takes the number of axes."""
    _nothing_else(node, 2, {"alpha", "transA", "transB"})
    operands = []
    for tensor, name in zip(node.inputs, ("transA", "transB"), strict=True):
        rank = len(dims(tensor))
        if node.attrs.get(name, 0) and rank < 2:
            raise refused(node, f"{name} of a tensor whose number of axes is not known")
        perm = [*range(rank - 2), rank - 1, rank - 2]
        operands.append(emit.op("Transpose", [tensor], name, perm=perm) if node.attrs.get(name, 0) else tensor)
    product = emit.op("MatMul", operands, "product")
    alpha = float(node.attrs.get("alpha", 1.0))
    return [product if alpha == 1.0 else emit.op("Mul", [product, emit.constant(alpha, FLOAT)], "scaled")]


_SIMPLE: dict[str, Writer] = {
    "SkipLayerNormalization": _skip_norm, "SkipSimplifiedLayerNormalization": _skip_rms, "SimplifiedLayerNormalization": _simplified_norm,
    "Gelu": _gelu, "BiasGelu": _gelu, "FastGelu": _fast_gelu, "QuickGelu": _quick_gelu,
    "FusedGemm": _with_activation("Gemm"), "FusedConv": _with_activation("Conv"), "Attention": _attention,
}  # fmt: skip
# These need shapes that are known only when the others are written out.
_PRODUCTS: dict[str, Writer] = {"FusedMatMul": _fused_matmul, "MultiHeadAttention": _multi_head}
