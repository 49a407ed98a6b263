"""Fused operators of ONNX Runtime's optimisers (domain com.microsoft), written out in ONNX's own.

What they compute: onnxruntime's ContribOperators.md. What is not in the table is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx

from vitprune.graph import held
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.normal.attentions import attention, multi_head
from vitprune.graph.normal.writing_out import CONTRIB, STANDARD, Writer, given, nothing_else, over_root, refused, replace, rms
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Node, Tensor, dims

# Of these ONNX Runtime writes some without their domain.
UNDOMAINED = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
NORM_SINCE = 17
ACTIVATIONS = {"Relu", "Tanh", "Sigmoid"}


def expand(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The same graph without foreign operators, and how many of each were written out.

    Raises:
        ExportError: VP334 naming an operator that is not understood.
    """
    early = opset_of(model) < NORM_SINCE
    if not any(_foreign(node.domain, node.op_type, early) for node in model.graph.node):
        return _imports_only(model), {}
    counts: dict[str, int] = {}
    for step in (_SIMPLE, _PRODUCTS):
        bare, weights = held.parted(checkable(model))
        graph = held.attached(held.inferred(bare), weights)
        emit = Emitter(graph, "products" if step is _PRODUCTS else "plain")
        for node in [node for node in graph.nodes if _foreign(node.domain, node.op, early)]:
            if node.op in step:
                replace(graph, node, step[node.op], emit.child(node.name))
                counts[node.op] = counts.get(node.op, 0) + 1
            elif node.op not in _SIMPLE and node.op not in _PRODUCTS:
                raise refused(node, "it is not one of ONNX's own and not known")
        graph.cleanup(remove_unused_graph_inputs=False)
        toposort(graph)
        model = _without_shapes(held.rebuilt(graph), model)
    return _imports_only(model), counts


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators in a model."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def checkable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, with LayerNormalization marked as foreign where its opset does not have it: ONNX Runtime's optimisers write it all the same."""
    early = [n for n in model.graph.node if n.op_type == "LayerNormalization" and n.domain in STANDARD]
    if not early or opset_of(model) >= NORM_SINCE:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "LayerNormalization":
            node.domain = CONTRIB
    if not any(entry.domain == CONTRIB for entry in copy.opset_import):
        copy.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
    return copy


def _foreign(domain: str | None, op: str, early: bool) -> bool:
    return domain not in STANDARD or op in UNDOMAINED or (early and op == "LayerNormalization")


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
    normed = over_root(emit, centred, epsilon)
    scaled = emit.op("Mul", [normed, weight], "scaled")
    return scaled if bias is None else emit.op("Add", [scaled, bias], "norm")


def _epsilon(node: Node, default: float) -> float:
    return float(node.attrs.get("epsilon", default))


def _skip_norm(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Input, skip, weight, [bias], [bias of the sum] -> norm, -, -, sum."""
    nothing_else(node, 5, {"epsilon"})
    total = _residual_sum(emit, node, given(node, 4))
    return [layer_norm(emit, total, node.inputs[2], given(node, 3), _epsilon(node, 1e-12)), None, None, total]


def _skip_rms(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Input, skip, weight, [bias of the sum] -> norm, -, -, sum."""
    nothing_else(node, 4, {"epsilon"})
    total = _residual_sum(emit, node, given(node, 3))
    return [rms(emit, total, node.inputs[2], _epsilon(node, 1e-12)), None, None, total]


def _early_norm(emit: Emitter, node: Node) -> list[Tensor | None]:
    nothing_else(node, 3, {"epsilon", "axis", "stash_type"})
    if node.attrs.get("axis", -1) != -1:
        raise refused(node, "a norm over another axis than the last")
    return [layer_norm(emit, node.inputs[0], node.inputs[1], given(node, 2), _epsilon(node, 1e-5))]


def _simplified_norm(emit: Emitter, node: Node) -> list[Tensor | None]:
    nothing_else(node, 2, {"epsilon", "axis", "stash_type"})
    if node.attrs.get("axis", -1) != -1:
        raise refused(node, "a norm over another axis than the last")
    return [rms(emit, node.inputs[0], node.inputs[1], _epsilon(node, 1e-5))]


def gelu(emit: Emitter, x: Tensor) -> Tensor:
    """X / 2 (1 + erf(x / sqrt 2))."""
    erf = emit.op("Erf", [emit.op("Div", [x, emit.constant(math.sqrt(2), FLOAT)], "scaled")], "erf")
    one = emit.op("Add", [erf, emit.constant(1.0, FLOAT)], "one")
    return emit.op("Mul", [emit.op("Mul", [x, one], "product"), emit.constant(0.5, FLOAT)], "gelu")


def _gelu(emit: Emitter, node: Node) -> list[Tensor | None]:
    nothing_else(node, 2, set())
    return [gelu(emit, _sum(emit, [node.inputs[0], given(node, 1)], "biased"))]


def _fast_gelu(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Hendrycks and Gimpel 2016: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    nothing_else(node, 2, set())
    x = _sum(emit, [node.inputs[0], given(node, 1)], "biased")
    cube = emit.op("Mul", [emit.op("Mul", [x, x], "square"), x], "cube")
    inner = emit.op("Add", [x, emit.op("Mul", [cube, emit.constant(0.044715, FLOAT)], "small")], "inner")
    tanh = emit.op("Tanh", [emit.op("Mul", [inner, emit.constant(math.sqrt(2 / math.pi), FLOAT)], "scaled")], "tanh")
    one = emit.op("Add", [tanh, emit.constant(1.0, FLOAT)], "one")
    return [emit.op("Mul", [emit.op("Mul", [x, one], "product"), emit.constant(0.5, FLOAT)], "gelu")]


def _quick_gelu(emit: Emitter, node: Node) -> list[Tensor | None]:
    """X sigmoid(alpha x)."""
    nothing_else(node, 1, {"alpha"})
    alpha = emit.constant(float(node.attrs.get("alpha", 1.702)), FLOAT)
    return [emit.op("Mul", [node.inputs[0], emit.op("Sigmoid", [emit.op("Mul", [node.inputs[0], alpha], "s")], "gate")], "gelu")]


def _with_activation(kind: str) -> Writer:
    """An operator of ONNX's own with an activation behind it."""

    def write(emit: Emitter, node: Node) -> list[Tensor | None]:
        activation = str(node.attrs.get("activation", ""))
        if activation not in ACTIVATIONS:
            raise refused(node, f"its activation {activation or 'without a name'} is not understood")
        kept = {name: value for name, value in node.attrs.items() if not name.startswith("activation")}
        nothing_else(node, 3, {*kept, "activation"})
        made = emit.op(kind, list(node.inputs[:3]), "linear", **kept)
        return [emit.op(activation, [made], "activated")]

    return write


def _fused_matmul(emit: Emitter, node: Node) -> list[Tensor | None]:
    """Alpha * op(A) @ op(B); transposing takes the number of axes."""
    nothing_else(node, 2, {"alpha", "transA", "transB"})
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
    "LayerNormalization": _early_norm, "Gelu": _gelu, "BiasGelu": _gelu, "FastGelu": _fast_gelu, "QuickGelu": _quick_gelu,
    "FusedGemm": _with_activation("Gemm"), "FusedConv": _with_activation("Conv"), "Attention": attention,
}  # fmt: skip
# These need shapes that are known only when the others are written out.
_PRODUCTS: dict[str, Writer] = {"FusedMatMul": _fused_matmul, "MultiHeadAttention": multi_head}
