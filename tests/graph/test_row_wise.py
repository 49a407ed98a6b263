"""Nodes that are packed give, packed, the rows that they give with pads; nodes that mix tokens are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitprune.graph import types
from vitprune.graph.emit import Emitter
from vitprune.graph.lowering.row_wise import by_rows

B, N, C = 2, 5, 6
LIVE = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], bool)
Case = tuple[str, list[Any], dict[str, Any]]
# operator, inputs behind x (arrays; "x" for x itself), attributes
ROW_WISE: list[Case] = [
    ("Sigmoid", [], {}),
    ("Add", [np.ones(C, np.float32)], {}),
    ("Mul", [np.full((1, 1, C), 2, np.float32)], {}),
    ("Sub", [np.float32(3)], {}),
    ("Add", ["x"], {}),
    ("LayerNormalization", [np.ones(C, np.float32), np.zeros(C, np.float32)], {"axis": 2}),
    ("Softmax", [], {"axis": -1}),
    ("MatMul", [np.arange(C * 4, dtype=np.float32).reshape(C, 4)], {}),
    ("ReduceSum", [np.array([2])], {"keepdims": 0}),
    ("ReduceSum", [np.array([-1])], {"keepdims": 1}),
    ("Slice", [np.array([1]), np.array([3]), np.array([2])], {}),
    ("Reshape", [np.array([0, 0, 2, 3])], {}),
    ("Unsqueeze", [np.array([2])], {}),
    ("Unsqueeze", [np.array([-1])], {}),
]  # fmt: skip
NOT: list[Case] = [
    ("Softmax", [], {"axis": 1}),
    ("ReduceSum", [np.array([1])], {"keepdims": 0}),
    ("ReduceSum", [], {"keepdims": 1}),
    ("Slice", [np.array([1]), np.array([3]), np.array([1])], {}),
    ("Add", [np.arange(N, dtype=np.float32).reshape(1, N, 1)], {}),
    ("Reshape", [np.array([0, -1])], {}),
    ("Unsqueeze", [np.array([1])], {}),
    ("CumSum", [np.array(1)], {}),
    ("MatMul", [np.ones((B, C, C), np.float32)], {}),
    ("LayerNormalization", [np.ones((N, C), np.float32)], {"axis": 1}),
    ("Transpose", [], {"perm": [0, 2, 1]}),
]  # fmt: skip


def node_of(case: Case) -> tuple[types.Node, Emitter]:
    kind, others, attributes = case
    x = types.variable("x", np.float32, [B, N, C])
    inputs = [x] + [x if isinstance(other, str) else types.constant(f"c{i}", np.asarray(other)) for i, other in enumerate(others)]
    import onnx_graphsurgeon as gs

    return types.node(kind, "n", inputs, [types.variable("y", np.float32)], attrs=dict(attributes)), Emitter(
        gs.Graph(opset=18), "t"
    )


def evaluate(node: types.Node, x: np.ndarray) -> np.ndarray:
    names = [tensor.name for tensor in node.inputs]
    constants = [numpy_helper.from_array(t.values, t.name) for t in node.inputs if types.is_constant(t)]  # type: ignore[attr-defined]
    made = helper.make_node(node.op, names, ["y"], **node.attrs)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    graph = helper.make_graph([made], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return np.asarray(onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0])


@pytest.mark.parametrize("case", ROW_WISE, ids=lambda case: case[0])
def test_packed_rows_are_the_rows_with_pads(case: Case) -> None:
    x = np.random.default_rng(0).standard_normal((B, N, C), np.float32)
    node, emit = node_of(case)
    padded = evaluate(node, x)
    change = by_rows(node, [0 if types.is_constant(tensor) else 3 for tensor in node.inputs])
    assert change is not None
    assert change.rank == padded.ndim
    change.carry_out(node, emit)
    np.testing.assert_allclose(evaluate(node, x[LIVE]), padded[LIVE], rtol=1e-6)


@pytest.mark.parametrize("case", NOT, ids=lambda case: case[0])
def test_nodes_that_mix_tokens_are_left_alone(case: Case) -> None:
    node, _ = node_of(case)
    assert by_rows(node, [0 if types.is_constant(tensor) else 3 for tensor in node.inputs]) is None


@pytest.mark.parametrize(
    "case", [("Softmax", [], {"axis": -1}), ("MatMul", [np.ones((N, 2), np.float32)], {}), ("ReduceSum", [np.array([-1])], {})]
)
def test_the_last_axis_may_be_that_of_the_tokens(case: Case) -> None:
    """Of [B,N] it is: a softmax or a product over it goes over the tokens of an image."""
    node, _ = node_of(case)
    assert by_rows(node, [0 if types.is_constant(tensor) else 2 for tensor in node.inputs]) is None


def test_what_is_spread_over_unknown_axes_is_left_alone() -> None:
    """A tensor of another rank than the rows could be spread over images instead of channels."""
    node, _ = node_of(("Add", [np.ones(C, np.float32)], {}))
    node.inputs[1] = types.variable("unknown", np.float32)
    assert by_rows(node, [3, 0]) is None
    node.inputs[1] = types.variable("rows", np.float32, ["batch", N, 1])
    assert by_rows(node, [3, 0]) is not None
