"""Scores that a site is given, as operators: POMT's columns and DynamicViT's predictor against NumPy, and what they refuse."""

from __future__ import annotations

from math import erf
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from vitprune.graph.lowering.scoring import COLUMNS, INPUTS, PREDICTOR
from vitprune.ops.token_sample import DOMAIN

Arrays = dict[str, np.ndarray]


def operator(kind: str, ranks: dict[str, int], library: Path, threads: int = 1, **attributes: float) -> ort.InferenceSession:
    node = helper.make_node(kind, list(ranks), ["score"], domain=DOMAIN, **attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name, rank in ranks.items()]
    graph = helper.make_graph([node], "scores", inputs, [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, None])])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)], ir_version=9)
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def columns(given: Arrays, heads: int, prefix: int) -> np.ndarray:
    batch, tokens, row = given["query"].shape
    q, k, v = (given[name].astype(np.float64).reshape(batch, tokens, heads, -1).swapaxes(1, 2) for name in INPUTS[COLUMNS])
    logits = q @ k.swapaxes(2, 3)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    column = weights.max(1).sum(1)[:, prefix:]
    content = v.max(1).sum(-1)[:, prefix:]
    content = np.exp(content - content.max(1, keepdims=True))
    return column / column.max(1, keepdims=True) + content / content.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 50, 3, 16, 1), (2, 131, 2, 7, 0), (1, 196, 6, 64, 5)], ids=str)
def test_columns(shape: tuple[int, int, int, int, int], ort_library: Path) -> None:
    batch, patches, heads, width, prefix = shape
    rng = np.random.default_rng(patches)
    given = {name: rng.standard_normal((batch, prefix + patches, heads * width), np.float32) for name in INPUTS[COLUMNS]}
    found = []
    for threads in (1, 2):
        session = operator(COLUMNS, dict.fromkeys(given, 3), ort_library, threads, heads=heads, prefix_tokens=prefix)
        found.append(session.run(None, given)[0])
    np.testing.assert_allclose(found[0], columns(given, heads, prefix), rtol=2e-5)
    np.testing.assert_array_equal(found[0], found[1])
    alone = session.run(None, {name: value[-1:] for name, value in given.items()})[0]
    np.testing.assert_array_equal(alone, found[0][-1:])


def weights(rng: np.random.Generator, width: int, half: int, quarter: int) -> Arrays:
    shapes = (
        (width,), (width,), (width, half), (half,), (width, half), (half,), (half, half), (half, half), (half,), (half, quarter),
        (quarter,), (quarter, 1), (1,),
    )  # fmt: skip
    return {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in zip(INPUTS[PREDICTOR][1:], shapes, strict=True)
    }


def predicted(given: Arrays, prefix: int) -> np.ndarray:
    w = {name: value.astype(np.float64) for name, value in given.items()}
    bend = np.vectorize(lambda one: one / 2 * (1 + erf(one / np.sqrt(2))))
    x = w["x"] - w["x"].mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    whole = bend(x @ w["global.weight"] + w["global.bias"])[:, prefix:].mean(1, keepdims=True)
    here = bend(x @ w["local.weight"] + w["local.bias"]) @ w["here.weight"]
    y = bend(here + whole @ w["there.weight"] + w["there.bias"])
    y = bend(y @ w["next.weight"] + w["next.bias"])
    return (y @ w["gap.weight"] + w["gap.bias"])[:, prefix:, 0]


def test_predictor(ort_library: Path) -> None:
    rng = np.random.default_rng(0)
    for batch, patches, prefix in ((1, 1, 0), (3, 20, 2)):
        given = {"x": rng.standard_normal((batch, prefix + patches, 24), np.float32), **weights(rng, 24, 12, 6)}
        ranks = {name: value.ndim for name, value in given.items()}
        session = operator(PREDICTOR, ranks, ort_library, prefix_tokens=prefix, epsilon=1e-5)
        np.testing.assert_allclose(session.run(None, given)[0], predicted(given, prefix), rtol=1e-5, atol=1e-5)
    for name, value in given.items():
        if name != "x":
            with pytest.raises(Exception, match="weights"):
                session.run(None, {**given, name: value[:-1]})
    with pytest.raises(Exception, match="tokens"):
        session.run(None, {**given, "x": given["x"][:, :2]})


def test_what_makes_no_sense_is_refused(ort_library: Path) -> None:
    ranks = dict.fromkeys(INPUTS[COLUMNS], 3)
    given = {name: np.ones((2, 6, 8), np.float32) for name in ranks}
    with pytest.raises(Exception, match="heads"):
        operator(COLUMNS, ranks, ort_library, heads=0, prefix_tokens=1)
    with pytest.raises(Exception, match="heads"):
        operator(COLUMNS, ranks, ort_library, heads=3, prefix_tokens=1).run(None, given)
    with pytest.raises(Exception, match="tokens"):
        operator(COLUMNS, ranks, ort_library, heads=2, prefix_tokens=6).run(None, given)
    session = operator(COLUMNS, ranks, ort_library, heads=2, prefix_tokens=1)
    for name in ("key", "value"):
        with pytest.raises(Exception, match=name):
            session.run(None, {**given, name: given[name][:, 1:]})
