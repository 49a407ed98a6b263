"""The numpy specification against brute force, and the ONNX function against the specification."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vitprune.backends.onnxruntime import make_session
from vitprune.graph.surgery import forbidden
from vitprune.ops.function import function
from vitprune.ops.token_sample import DOMAIN, MODES, Attributes, token_sample


def kept(scores, mode="inverse_transform", **attributes):
    score = np.array([scores], np.float32)
    index, keep, _ = token_sample(score, np.ones_like(score, bool), Attributes(mode, **attributes))
    return index[0][keep[0]].tolist()


def nearest_paper(score, points):
    """Textbook form: the distance of every sampling point to every CDF value, in float64."""
    cdf = np.cumsum(score.astype(np.float64)) / score.astype(np.float64).sum()
    grid = (2 * np.arange(1, points + 1) - 1) / (2 * points)
    return np.unique(np.abs(grid[:, None] - cdf).argmin(1)).tolist()


def nearest_official(score, points):
    order = np.argsort(score, kind="stable")
    running = np.cumsum(score[order].astype(np.float64))
    scaled = (running - running[0]) / (running[-1] - running[0])
    grid = scaled[1] + (1 - scaled[1]) * np.arange(points) / (points - 1)
    return sorted(order[np.unique(np.abs(grid[:, None] - scaled).argmin(1))].tolist())


def model(attributes, overflow, valid="any"):
    node = helper.make_node(
        "TokenSample", ["score", "valid"], ["index", "keep", "count"], domain=DOMAIN, mode=attributes.mode, num_samples=attributes.num_samples,
        threshold=attributes.threshold, capacity=attributes.capacity, expected=0, pad_to_capacity=int(attributes.pad_to_capacity),
        plugin_version="1", plugin_namespace=DOMAIN,
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(n, t, ["B", "P"]) for n, t in (("score", TensorProto.FLOAT), ("valid", TensorProto.BOOL))
    ]
    outputs = [
        helper.make_tensor_value_info("index", TensorProto.INT64, ["B", "K"]), helper.make_tensor_value_info("keep", TensorProto.BOOL, ["B", "K"]),
        helper.make_tensor_value_info("count", TensorProto.INT64, []),
    ]  # fmt: skip
    body = function(attributes.mode, overflow=overflow, padded=attributes.pad_to_capacity, valid=valid)
    proto = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        functions=[body],
        ir_version=9,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
    )
    onnx.checker.check_model(proto, full_check=True)
    assert forbidden(proto) == []
    return make_session(proto.SerializeToString())


def test_worked_examples():
    """methods.md §3.7 a-d."""
    assert kept([0.1, 0.2, 0.3, 0.4], num_samples=4) == [0, 1, 2, 3]
    assert kept([0.02, 0.03, 0.05, 0.90], num_samples=4) == [2, 3]
    assert kept([0.25] * 4, num_samples=4) == [0, 1, 2]
    assert kept([0.01] * 5 + [0.15, 0.3, 0.5], mode="inverse_transform_official", num_samples=8) == [1, 5, 6, 7]


def test_degenerate_rows():
    assert kept([0.0, 0.0, 0.0], num_samples=3) == kept([1.0, 1.0, 1.0], num_samples=3)
    assert kept([5.0], num_samples=1) == [0]
    assert kept([5.0], mode="inverse_transform_official", num_samples=9) == [0]
    assert kept([-1.0, 2.0], mode="threshold", threshold=2.0) == []
    assert kept([0.3, 0.9, 0.5, 0.9], mode="threshold", threshold=0.1, capacity=2) == [1, 3]
    index, keep, count = token_sample(
        np.ones((1, 3), np.float32), np.zeros((1, 3), bool), Attributes("inverse_transform", num_samples=3)
    )
    assert (index.tolist(), keep.tolist(), count) == ([[0]], [[False]], 1)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), st.integers(1, 200), st.sampled_from([0.3, 1.0, 3.0]), st.integers(0, 10**6))
def test_closed_form_is_nearest_sampling(patches, points, shape, seed):
    score = np.random.default_rng(seed).gamma(shape, size=patches).astype(np.float32) + np.float32(1e-4)
    assert kept(score, num_samples=points) == nearest_paper(score, points)
    if patches > 3 and points > 1:
        assert kept(score, mode="inverse_transform_official", num_samples=points) == nearest_official(score, points)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("capacity", "padded"), [(0, False), (20, False), (20, True)])
def test_function_equals_specification(mode, capacity, padded):
    attributes = Attributes(mode, num_samples=60, threshold=0.5, capacity=capacity, pad_to_capacity=padded)
    session = model(attributes, bool(capacity))
    rng = np.random.default_rng(0)
    for case in range(60):
        patches, batch = int(rng.integers(21 if capacity else 1, 110)), int(rng.integers(1, 5))
        score = rng.gamma(0.3, size=(batch, patches)).astype(np.float32)
        score = np.round(score, 1) if case % 3 == 1 else np.ones_like(score) if case % 3 == 2 else score
        valid = rng.random((batch, patches)) < (0.7 if case % 4 else 0.05)
        valid[0] = True
        for wanted, got in zip(
            token_sample(score, valid, attributes), session.run(None, {"score": score, "valid": valid}), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("promise", ["first", "single"])
def test_shorter_bodies_equal_the_specification(promise):
    attributes = Attributes("inverse_transform", num_samples=40)
    session = model(attributes, False, promise)
    rng = np.random.default_rng(1)
    for case in range(40):
        patches, batch = int(rng.integers(1, 110)), 1 if promise == "single" else int(rng.integers(1, 5))
        score = rng.gamma(0.3, size=(batch, patches)).astype(np.float32)
        score = np.round(score, 1) if case % 3 == 1 else score
        counts = rng.integers(1, patches + 1, batch) if promise == "first" else np.array([patches])
        valid = np.arange(patches)[None] < counts[:, None]
        for wanted, got in zip(
            token_sample(score, valid, attributes), session.run(None, {"score": score, "valid": valid}), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


def test_work_is_linear_no_tensor_of_samples_times_patches():
    """Every intermediate of the paper's mode has at most a few times P elements, whatever the number of points."""
    import onnx.inliner

    attributes = Attributes("inverse_transform", num_samples=4096)
    node_model = onnx.load_from_string(_proto(attributes))
    flat = onnx.inliner.inline_local_functions(node_model)
    names = [o for n in flat.graph.node for o in n.output if n.op_type != "Constant" and o]
    del flat.graph.output[:]
    flat.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    score = np.random.default_rng(0).gamma(1.0, size=(1, 4096)).astype(np.float32)
    values = make_session(flat.SerializeToString()).run(None, {"score": score, "valid": np.ones((1, 4096), bool)})
    assert len(values) > 30
    assert max(np.size(value) for value in values) <= 2 * 4096


def _proto(attributes):
    node = helper.make_node(
        "TokenSample",
        ["score", "valid"],
        ["index", "keep", "count"],
        domain=DOMAIN,
        num_samples=attributes.num_samples,
        mode=attributes.mode,
    )
    inputs = [
        helper.make_tensor_value_info(n, t, ["B", "P"]) for n, t in (("score", TensorProto.FLOAT), ("valid", TensorProto.BOOL))
    ]
    outputs = [helper.make_tensor_value_info("index", TensorProto.INT64, ["B", "K"])]
    body = function(attributes.mode, overflow=False, padded=False)
    graph = helper.make_graph([node], "one", inputs, outputs)
    return helper.make_model(
        graph, functions=[body], ir_version=9, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    ).SerializeToString()
