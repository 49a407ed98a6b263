"""Operators of opset 23 written out in older ones, and casts that change nothing taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from vitprune.errors import ExportError
from vitprune.graph.normal import idle, newer

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


ROWS, HEADS = floats(2, 6, 8), floats(2, 2, 6, 4)
SEEN = np.tri(6, dtype=bool)
NUMBERS = np.arange(12).reshape(2, 6) % 7
Case = tuple[str, np.ndarray, dict[str, np.ndarray], dict[str, Any]]
CASES: dict[str, Case] = {
    "attention on heads": ("Attention", HEADS, {"k": floats(2, 2, 6, 4), "v": floats(2, 2, 6, 4)}, {}),
    "attention on rows": ("Attention", ROWS, {"k": floats(2, 6, 8), "v": floats(2, 6, 8)}, {"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.3}),
    "attention with a bias": ("Attention", HEADS, {"k": HEADS, "v": HEADS, "m": floats(2, 6, 6)}, {}),
    "attention with a mask": ("Attention", HEADS, {"k": HEADS, "v": HEADS, "m": SEEN}, {}),
    "rotary, half": ("RotaryEmbedding", HEADS, {"cos": floats(2, 6, 2), "sin": floats(2, 6, 2)}, {}),
    "rotary, pairs": ("RotaryEmbedding", HEADS, {"cos": floats(2, 6, 2), "sin": floats(2, 6, 2)}, {"interleaved": 1}),
    "rotary on rows, by number": ("RotaryEmbedding", ROWS, {"cos": floats(7, 2), "sin": floats(7, 2), "n": NUMBERS}, {"num_heads": 2}),
    "rotary in part": ("RotaryEmbedding", HEADS, {"cos": floats(2, 6, 1), "sin": floats(2, 6, 1)}, {"rotary_embedding_dim": 2}),
    "norm": ("RMSNormalization", ROWS, {"w": floats(8)}, {"epsilon": 1e-3}),
}  # fmt: skip


def graph(op: str, x: np.ndarray, others: dict[str, np.ndarray], attributes: dict[str, Any]) -> onnx.ModelProto:
    make = onnx.helper
    node = make.make_node(op, ["x", *others], ["y"], name="it", **attributes)
    one = make.make_graph(
        [node], "one", [make.make_tensor_value_info("x", 1, x.shape)], [make.make_tensor_value_info("y", 1, x.shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in others.items()],
    )  # fmt: skip
    return make.make_model(one, opset_imports=[make.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("label", CASES)
def test_they_compute_what_onnx_defines(label: str) -> None:
    op, x, others, attributes = CASES[label]
    model = graph(op, x, others, attributes)
    plain, counts = newer.write_out(model)
    assert counts == {op: 1}
    assert op not in {node.op_type for node in plain.graph.node}
    wanted, got = (ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (model, plain))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


REFUSED: dict[str, tuple[Case, str]] = {
    "causal": (("Attention", HEADS, {"k": HEADS, "v": HEADS}, {"is_causal": 1}), "is_causal"),
    "capped": (("Attention", HEADS, {"k": HEADS, "v": HEADS}, {"softcap": 3.0}), "softcap"),
    "shared heads": (("Attention", HEADS, {"k": floats(2, 1, 6, 4), "v": floats(2, 1, 6, 4)}, {}), "share"),
    "over two axes": (("RMSNormalization", ROWS, {"w": floats(6, 8)}, {"axis": 1}), "another axis"),
}


@pytest.mark.parametrize("label", REFUSED)
def test_other_forms_are_refused_by_name(label: str) -> None:
    (op, x, others, attributes), said = REFUSED[label]
    with pytest.raises(ExportError, match="VP334") as error:
        newer.write_out(graph(op, x, others, attributes))
    assert op in error.value.message
    assert "'it'" in error.value.cause
    assert said in error.value.cause
    assert "opset" in error.value.next_step


def test_a_graph_without_them_is_not_touched() -> None:
    model = graph("RMSNormalization", ROWS, {"w": floats(8)}, {})
    del model.graph.node[:]
    assert newer.write_out(model) == (model, {})


def test_casts_that_change_nothing_are_taken_away() -> None:
    """Float to float goes, also one behind another; float to int and what makes an output stay."""
    make = onnx.helper
    nodes = [
        make.make_node("Cast", ["x"], ["a"], to=1), make.make_node("Cast", ["a"], ["b"], to=1), make.make_node("Cast", ["b"], ["n"], to=7),
        make.make_node("Cast", ["n"], ["f"], to=1), make.make_node("Add", ["b", "f"], ["s"]), make.make_node("Cast", ["s"], ["y"], to=1),
    ]  # fmt: skip
    info = [make.make_tensor_value_info(name, 1, [3]) for name in ("x", "y")]
    model = make.make_model(make.make_graph(nodes, "casts", info[:1], info[1:]), opset_imports=[make.make_opsetid("", 18)])
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    assert idle.take_idle_casts(bare) == 2
    assert [(node.op_type, list(node.input)) for node in bare.graph.node] == [
        ("Cast", ["x"]), ("Cast", ["n"]), ("Add", ["x", "f"]), ("Cast", ["s"]),
    ]  # fmt: skip
    x = np.array([0.5, 1.25, -2.0], np.float32)
    np.testing.assert_array_equal(*(ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (model, bare)))
