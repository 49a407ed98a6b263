"""The ONNX Runtime operators: loaded from the library, they take the place of the function that a model brings along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from plugin_cases import assert_same, cases

from vitprune.ops.token_sample import DOMAIN, MODES, NAME, Attributes, token_sample
from vitprune.plugins import PluginLibrary, ScoreAttributes

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
OUTPUTS = {"index": TensorProto.INT64, "keep": TensorProto.BOOL, "count": TensorProto.INT64}


def node_attributes(setting: Attributes) -> dict[str, object]:
    return {
        "mode": setting.mode,
        "num_samples": setting.num_samples,
        "threshold": setting.threshold,
        "capacity": setting.capacity,
        "expected": setting.expected,
        "pad_to_capacity": int(setting.pad_to_capacity),
        "plugin_version": "1",
        "plugin_namespace": DOMAIN,
    }


def decoy() -> onnx.FunctionProto:
    """A function of the operator's name that gives another answer: every position, nothing kept, count -7."""
    nodes = [
        helper.make_node("Cast", ["score"], ["index"], to=TensorProto.INT64),
        helper.make_node("Not", ["valid"], ["keep"]),
        helper.make_node("Constant", [], ["count"], value_int=-7),
    ]
    names = list(node_attributes(Attributes("threshold")))
    return helper.make_function(DOMAIN, NAME, ["score", "valid"], list(OUTPUTS), nodes, OPSETS[:1], names)


def model(attributes: dict[str, object], *, with_function: bool) -> bytes:
    node = helper.make_node(NAME, ["score", "valid"], list(OUTPUTS), domain=DOMAIN, **attributes)
    inputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B", "P"]),
        helper.make_tensor_value_info("valid", TensorProto.BOOL, ["B", "P"]),
    ]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in OUTPUTS.items()]
    graph = helper.make_graph([node], "g", inputs, outputs)
    functions = [decoy()] if with_function else []
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions, ir_version=8).SerializeToString()


def session(content: bytes, library: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def test_operator_wins_over_the_function_of_the_model(ort_library: Path) -> None:
    setting = Attributes("threshold", threshold=0.5)
    content = model(node_attributes(setting), with_function=True)
    score = np.array([[0.1, 0.6, 0.7], [0.9, 0.1, 0.1]], np.float32)
    feeds = {"score": score, "valid": np.ones(score.shape, bool)}
    assert session(content, None).run(["count"], feeds)[0] == -7
    index, keep, count = session(content, ort_library).run(None, feeds)
    assert_same((index, keep, int(count)), score, feeds["valid"], setting)
    assert count.shape == ()


def test_without_function_the_library_is_needed(ort_library: Path) -> None:
    content = model(node_attributes(Attributes("threshold")), with_function=False)
    with pytest.raises(Exception, match="TokenSample"):
        session(content, None)
    session(content, ort_library)


@pytest.mark.parametrize("mode", MODES)
def test_operator_gives_the_bits_of_the_specification(ort_library: Path, library: PluginLibrary, mode: str) -> None:
    for score, valid, setting in cases(mode, 60, (1, 7, 49, 196), seed=4):
        run = session(model(node_attributes(setting), with_function=True), ort_library)
        index, keep, count = run.run(None, {"score": score, "valid": valid})
        assert_same((index, keep, int(count)), score, valid, setting)
        np.testing.assert_array_equal(index, library.token_sample(score, valid, setting)[0])


def test_absent_attributes_have_the_defaults_of_the_specification(ort_library: Path) -> None:
    score = np.random.default_rng(0).random((2, 9), np.float32)
    valid = np.ones(score.shape, bool)
    run = session(model({"mode": "inverse_transform"}, with_function=False), ort_library)
    np.testing.assert_array_equal(
        run.run(["index"], {"score": score, "valid": valid})[0], token_sample(score, valid, Attributes("inverse_transform"))[0]
    )


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({}, "mode"),
        ({"mode": "softmax"}, "unknown mode"),
        ({"mode": "inverse_transform", "num_samples": 0}, "num_samples"),
        ({"mode": "inverse_transform", "num_samples": 3.0}, "'num_samples' has a wrong type"),
        ({"mode": "threshold", "threshold": 1}, "'threshold' has a wrong type"),
        ({"mode": "threshold", "capacity": "many"}, "'capacity' has a wrong type"),
    ],
)
def test_bad_attributes_stop_the_session(ort_library: Path, attributes: dict[str, object], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        session(model(attributes, with_function=False), ort_library)


def test_bad_shapes_stop_the_run(ort_library: Path) -> None:
    run = session(model({"mode": "threshold"}, with_function=False), ort_library)
    with pytest.raises(Exception, match="same|both have the shape"):
        run.run(None, {"score": np.zeros((1, 3), np.float32), "valid": np.zeros((1, 2), bool)})
    with pytest.raises(Exception, match="number of patches"):
        run.run(None, {"score": np.zeros((1, 0), np.float32), "valid": np.zeros((1, 0), bool)})


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_fused_operator_gives_the_bits_of_the_twin(ort_library: Path, library: PluginLibrary, element: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(element)
    rng = np.random.default_rng(2)
    query, key, value = (rng.standard_normal(s).astype(dtype) for s in [(2, 3, 16), (2, 3, 21, 16), (2, 3, 21, 16)])
    valid = rng.random((2, 20)) < 0.8
    setting, form = Attributes("inverse_transform", num_samples=8), ScoreAttributes("official")
    names = ["query", "key", "value", "valid"]
    node = helper.make_node(
        "TokenScoreSample", names, [*OUTPUTS, "score"], domain=DOMAIN, score_form=form.form, **node_attributes(setting)
    )
    kinds = [element] * 3 + [TensorProto.BOOL]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)],
        [helper.make_tensor_value_info(n, k, None) for n, k in {**OUTPUTS, "score": TensorProto.FLOAT}.items()],
    )
    content = helper.make_model(graph, opset_imports=OPSETS, ir_version=8).SerializeToString()
    feeds = dict(zip(names, (query, key, value, valid), strict=True))
    index, keep, count, score = session(content, ort_library).run(None, feeds)
    twin = library.token_score_sample(query, key, value, valid, form, setting, dtype.name)
    np.testing.assert_array_equal(score, twin[0], strict=True)
    np.testing.assert_array_equal(index, twin[1], strict=True)
    np.testing.assert_array_equal(keep, twin[2], strict=True)
    assert count == twin[3]
    with pytest.raises(Exception, match="disagree"):
        session(content, ort_library).run(None, {**feeds, "value": value[:, :, 1:]})
