"""Weights stay where they are while a graph is copied, inferred, checked and written; a graph is read once for all that is done with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

import vitprune
from helpers import ats, images, run
from vitprune.graph import held, reading, surgery
from vitprune.graph.anatomy.static import static_copy, value_of
from vitprune.graph.reading import Source
from vitprune.support.onnx_weights import Spill

WIDTH = 40


def transposed() -> onnx.ModelProto:
    """y = x @ W.T with a bound of four bytes, and W [40,40] float32 beside a table of integers."""
    weight = np.arange(WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH)
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["z"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xz"]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(2), "b")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_bare_model_has_no_bytes_of_weights_and_gets_them_back():
    model = transposed()
    bare, weights = held.parted(model)
    assert bare.ByteSize() < 200 < 4 * WIDTH * WIDTH < model.ByteSize()
    assert [held.is_bare(tensor) for tensor in bare.graph.initializer] == [True, False]
    assert held.filled(bare, weights).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_graph_is_bare_when_it_is_written_also_after_its_values_were_read():
    graph = held.imported(transposed())
    weight = next(tensor for tensor in graph.tensors().values() if tensor.name == "w")
    assert value_of(weight)[1, 0] == WIDTH
    bare, weights = held.exported(graph)
    assert held.is_bare(next(tensor for tensor in bare.graph.initializer if tensor.name == "w"))
    x = np.ones((2, WIDTH), np.float32)
    np.testing.assert_array_equal(run(held.filled(bare, weights), x)[0], run(transposed(), x)[0])


def test_new_arrays_are_weights_too():
    graph = held.imported(transposed())
    node = next(node for node in graph.nodes if node.op == "MatMul")
    node.inputs[1] = gs.Constant("new", np.eye(WIDTH, dtype=np.float32))
    made = held.rebuilt(graph.cleanup())
    x = images(1, (WIDTH,))
    np.testing.assert_array_equal(run(made, x)[0], x + 2)


def test_arrays_that_went_to_a_file_leave_memory(tmp_path):
    graph = held.imported(transposed())
    next(node for node in graph.nodes if node.op == "MatMul").inputs[1] = gs.Constant("new", np.eye(WIDTH, dtype=np.float32))
    bare, weights = held.exported(graph.cleanup())
    held.filled(bare, weights, Spill(tmp_path / "weights"))
    assert weights["new"]._array is None
    np.testing.assert_array_equal(weights["new"].load(), np.eye(WIDTH))


def test_what_weights_alone_decide_is_folded():
    graph = static_copy(transposed(), 3)
    product = next(node for node in graph.nodes if node.op == "MatMul")
    assert value_of(product.inputs[1])[0, 1] == WIDTH
    assert tuple(graph.outputs[0].shape) == (3, WIDTH)


def test_shapes_are_learnt_as_a_graph_that_is_read_again_has_them(tiny_dense):
    bare, weights = held.parted(tiny_dense)
    del bare.graph.value_info[:]
    bare.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    graph = held.attached(bare, weights)
    again = held.attached(held.inferred(held.exported(graph)[0], data_prop=True), weights).tensors()
    unknown = [tensor for tensor in graph.tensors().values() if tensor.shape is None]
    assert len(unknown) > 20
    held.infer(graph)
    assert all(tensor.shape is not None for tensor in unknown)
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in graph.tensors().items()}
    assert found == {name: (tensor.shape, tensor.dtype) for name, tensor in again.items()}


@pytest.mark.parametrize("damage", ["type", "operator", "order"])
def test_the_checker_sees_what_it_saw_with_weights(damage):
    bare, _ = held.parted(transposed())
    held.check(bare)
    if damage == "type":
        next(tensor for tensor in bare.graph.initializer if held.is_bare(tensor)).data_type = TensorProto.INT64
    elif damage == "operator":
        bare.graph.node[0].op_type = "Transposed"
    else:
        bare.graph.node[0].input[0] = "z"
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        held.check(bare, check_type=True)


def test_a_source_is_taken_apart_once(tiny_dense, monkeypatch):
    asked = []
    taken_apart = reading._anatomy
    monkeypatch.setattr(reading, "_anatomy", lambda *args: asked.append("once") or taken_apart(*args))
    source, recipe = Source(tiny_dense), vitprune.Recipe.load(ats(stages=[1, 2]))
    first, second = (surgery.rewrite(source, recipe, has_cls=True)[0] for _ in range(2))
    surgery.canonical(source, recipe)
    assert asked == ["once"]
    plain = surgery.rewrite(tiny_dense, recipe, has_cls=True)[0]
    assert first == second == plain
    surgery.rewrite(source, recipe.with_("graph.batch", "1"), has_cls=True)
    assert len(asked) == 3  # the plain model, and another batch
