"""The order of nodes: graphsurgeon's, which is the other implementation here, and its errors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

import vitprune
from helpers import ats
from vitprune.graph import held, surgery
from vitprune.graph.sorting import toposort


def theirs(graph: Any) -> list[str]:
    graph.toposort()
    return [node.name for node in graph.nodes]


def ours(graph: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patched:
        patched.setattr(gs.Graph, "toposort", refuse)
        toposort(graph)
    return [node.name for node in graph.nodes]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it was left to graphsurgeon")


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_nodes_are_put_in_the_same_order(
    tiny_dense: onnx.ModelProto, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = surgery.rewrite(tiny_dense, vitprune.Recipe.load(ats(stages=[1])), has_cls=True)[0]
    del pruned.functions[:]
    for model in (tiny_dense, pruned):
        one, other = (held.imported(model) for _ in range(2))
        for graph in (one, other):
            random.Random(seed).shuffle(graph.nodes)
        shuffled = [node.name for node in one.nodes]
        assert theirs(other) == ours(one, monkeypatch) != shuffled


def test_several_outputs_shared_inputs_and_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def graph() -> Any:
        x, a, b, c, d, e = (gs.Variable(name, np.float32, (4,)) for name in "xabcde")
        two = gs.Constant("two", np.ones(2, np.float32))
        nodes = [
            gs.Node("Concat", "last", inputs=[c, a, b, gs.Variable.empty()], outputs=[d]),
            gs.Node("Relu", "unread", inputs=[b], outputs=[e]),
            gs.Node("Split", "first", inputs=[x, two], outputs=[a, b]),
            gs.Node("Add", "middle", inputs=[a, a], outputs=[c]),
        ]
        return gs.Graph(nodes, [x], [d])

    assert theirs(graph()) == ours(graph(), monkeypatch) == ["first", "middle", "unread", "last"]


def test_a_circle_is_graphsurgeons_to_refuse() -> None:
    a, b = (gs.Variable(name, np.float32, (4,)) for name in "ab")
    nodes = [gs.Node("Relu", "one", inputs=[b], outputs=[a]), gs.Node("Relu", "two", inputs=[a], outputs=[b])]
    with pytest.raises(Exception, match="Cycle"):
        toposort(gs.Graph(nodes, [], [b]))


def test_graphs_with_inner_graphs_are_graphsurgeons_to_sort() -> None:
    inner = helper.make_graph(
        [helper.make_node("Neg", ["early"], ["z"], name="inner")],
        "g",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["early"], name="maker"),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=inner, else_branch=inner),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]))
    graph = gs.import_onnx(model)
    graph.nodes.reverse()
    toposort(graph)
    assert [node.name for node in graph.nodes] == ["maker", "choice"]
