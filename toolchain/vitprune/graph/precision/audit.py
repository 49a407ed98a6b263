"""What types a finished model computes in: counts for reports, and proof that nothing which decides is in a half type.

This reads the file alone and knows neither recipe nor surgery, so that it finds what they did wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import onnx
from onnx import TensorProto

from vitprune.support.onnx_types import HALF

HEAVY = ("MatMul", "Gemm", "Conv")
STEPS = {int(TensorProto.INT8): "int8", int(TensorProto.FLOAT8E4M3FN): "fp8"}
QUANTISES = {"QuantizeLinear", "DequantizeLinear"}
# Operators of which a result has the type of the first input and is the same values elsewhere.
MOVES = {
    "Reshape", "Transpose", "Gather", "GatherND", "GatherElements", "Slice", "Unsqueeze", "Squeeze", "Split", "Identity", "Concat",
    "Expand", "Flatten", "Pad",
}  # fmt: skip
# Operators that turn numbers into decisions: positions or truth values.
DECIDES = {"TopK", "ArgMax", "ArgMin", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "TokenSample"}
UNTYPED = DECIDES - {"TopK", "TokenSample"} | {"Shape", "Size"}  # their results have no float type at all
NORMS = {"LayerNormalization", "Softmax"}


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of the main graph that is known to be fp16 or bf16."""
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer if tensor.data_type in HALF}
    for value in model.graph.input:
        if value.type.tensor_type.elem_type in HALF:
            found[value.name] = value.type.tensor_type.elem_type
    for node in model.graph.node:
        if node.op_type == "Cast":
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            if to in HALF:
                found[node.output[0]] = to
        elif node.op_type not in UNTYPED:
            kind = next((found[name] for name in node.input if name in found), None)
            if kind is not None:
                for position, name in enumerate(node.output):
                    if not (node.op_type == "TopK" and position == 1):
                        found[name] = kind
    return found


def steps(model: onnx.ModelProto) -> dict[str, str]:
    """The type, int8 or fp8, of every tensor that DequantizeLinear makes."""
    stored = {tensor.name: STEPS.get(tensor.data_type, "") for tensor in model.graph.initializer}
    quantised = {
        node.output[0]: stored.get(node.input[2], "") if len(node.input) > 2 else ""
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    kinds = {**stored, **quantised}
    return {node.output[0]: kinds.get(node.input[0], "") for node in model.graph.node if node.op_type == "DequantizeLinear"}


def quantised_products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The products of which both factors come from DequantizeLinear: those that builders compute in the type itself."""
    made = steps(model)
    return [node for node in model.graph.node if node.op_type in HEAVY and all(name in made for name in node.input[:2])]


def layers_by_type(model: onnx.ModelProto) -> dict[str, int]:
    """How many MatMul, Gemm and Conv compute in which type."""
    known, made = types(model), steps(model)
    quantised = {node.name: made[node.input[0]] for node in quantised_products(model)}
    heavy = [node for node in model.graph.node if node.op_type in HEAVY]
    counted = Counter(quantised.get(node.name) or HALF.get(known.get(node.output[0], 0), "fp32") for node in heavy)
    return dict(sorted(counted.items()))


def float32_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the MatMul, Gemm and Conv nodes that compute in float32."""
    known, quantised = types(model), {node.name for node in quantised_products(model)}
    heavy = [node for node in model.graph.node if node.op_type in HEAVY]
    return [node.name for node in heavy if node.output[0] not in known and node.name not in quantised]


def half_decisions(model: onnx.ModelProto) -> list[str]:
    """Nodes between the layers and a decision that compute in a half type or quantise; [] when there is none.

    From every decision the walk goes up through whatever computes, and stops where a value comes from a layer: a product of weights, or
    LayerNorm, or what is Cast from a half type. Moving half values is no computing.
    """
    known = types(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    weights |= {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights}
    wrong: list[str] = []
    frontier = [name for node in model.graph.node if node.op_type in DECIDES for name in node.input]
    frontier += [name for node in model.graph.node if node.op_type in DECIDES for name in node.output]
    seen: set[str] = set()
    while frontier:
        name = frontier.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        half = node.op_type != "Cast" and any(value in known for value in (*node.input, *node.output))
        if node.op_type == "LayerNormalization" and not half or _is_linear(node, makers, weights):
            continue  # what a layer gives is where the decision begins
        if node.op_type in QUANTISES:
            wrong.append(node.name or name)
            continue
        if half and node.op_type not in MOVES:
            if not _is_attention(node, makers, weights):
                wrong.append(node.name or name)
            continue
        frontier.extend(node.input)
    return wrong


def _is_linear(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], weights: set[str]) -> bool:
    """Whether a node is a product with weights, or adds the bias to one."""
    if node.op_type in HEAVY:
        return any(value in weights for value in node.input)
    above = [makers[name] for name in node.input if name in makers] if node.op_type == "Add" else []
    return len(above) == 1 and above[0].op_type == "MatMul" and any(value in weights for value in above[0].input)


def _is_attention(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], weights: set[str]) -> bool:
    """Whether a node is one of attention's two products: its operands are moved results of linear maps, or of Softmax or a norm."""
    if node.op_type != "MatMul":
        return False

    def comes_from_layer(name: str) -> bool:
        for _ in range(16):
            above = makers.get(name)
            if above is None:
                return False
            if above.op_type in NORMS or _is_linear(above, makers, weights):
                return True
            factors = [value for value in above.input if value in makers]
            if above.op_type not in MOVES | {"Cast"} and not (above.op_type == "Mul" and len(factors) == 1):
                return False
            # The one Mul on the way is the attention scale, a number; one with a matrix would be a score of its own.
            if above.op_type == "Mul" and any(value in weights for value in above.input):
                return False
            name = factors[0] if factors else ""
        return False

    return all(comes_from_layer(name) for name in node.input)


def report(model: onnx.ModelProto, mode: str, kept: tuple[str, ...]) -> dict[str, Any]:
    """For the export report: mode, heavy layers by type, layers kept in float32, bytes of weights by type."""
    sizes: dict[str, int] = defaultdict(int)
    for tensor in model.graph.initializer:
        sizes[HALF.get(tensor.data_type, onnx.TensorProto.DataType.Name(tensor.data_type).lower())] += len(tensor.raw_data)
    found = {"mode": mode, "layers": layers_by_type(model), "kept_fp32": list(kept), "weight_bytes": dict(sorted(sizes.items()))}
    pairs = Counter(node.op_type for node in model.graph.node if node.op_type in QUANTISES)
    return found | ({"quantize": pairs["QuantizeLinear"], "dequantize": pairs["DequantizeLinear"]} if pairs else {})
