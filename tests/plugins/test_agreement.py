"""Specification, the graph's function, host twin and ONNX Runtime operator: one answer, bit for bit, on the same random cases.

The function's ranking under a capacity is defined for finite scores alone, which attention scores are; cases with others go to the
rest.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from plugin_cases import KINDS, assert_same, attributes, scores, validity

from vitprune.ops.function import function
from vitprune.ops.token_sample import DOMAIN, MODES, NAME, Attributes
from vitprune.plugins import BuildReport, PluginLibrary

SETTINGS, CASES, SIZES = 24, 50, (1, 2, 3, 7, 49, 196)


def model(setting: Attributes) -> bytes:
    node = helper.make_node(
        NAME, ["score", "valid"], ["index", "keep", "count"], domain=DOMAIN, mode=setting.mode, num_samples=setting.num_samples,
        threshold=setting.threshold, capacity=setting.capacity, expected=0, pad_to_capacity=int(setting.pad_to_capacity),
        plugin_version="1", plugin_namespace=DOMAIN,
    )  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, kind, ["B", "P"])
        for name, kind in (("score", TensorProto.FLOAT), ("valid", TensorProto.BOOL))
    ]
    kinds = {"index": TensorProto.INT64, "keep": TensorProto.BOOL, "count": TensorProto.INT64}
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    body = function(setting.mode, overflow=bool(setting.capacity), padded=setting.pad_to_capacity, valid="any")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    made = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs), functions=[body], ir_version=9, opset_imports=opsets
    )
    return bytes(made.SerializeToString())


def sessions(setting: Attributes, library: PluginLibrary, path: str) -> list[ort.InferenceSession]:
    """The model run by its function, and by the library's operator where that was built."""
    found = []
    for extra in [None, path] if "onnxruntime" in library.features else [None]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        if extra is not None:
            options.register_custom_ops_library(extra)
        found.append(ort.InferenceSession(model(setting), options, providers=["CPUExecutionProvider"]))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_thousand_cases(library: PluginLibrary, report: BuildReport, mode: str) -> None:
    rng = np.random.default_rng(11)
    seen = finite = 0
    for _ in range(SETTINGS):
        patches = int(rng.choice(SIZES))
        setting = attributes(mode, patches, rng)
        if setting.pad_to_capacity:  # what the function asks for: padded graphs always have a capacity, of at most P
            setting = dataclasses.replace(setting, capacity=min(max(setting.capacity, 1), patches))
        runs = sessions(setting, library, str(report.library))
        for _ in range(CASES):
            shape = (int(rng.integers(1, 5)), patches)
            score = scores(KINDS[seen % len(KINDS)], shape, rng)
            valid = validity(seen, shape, rng)
            assert_same(library.token_sample(score, valid, setting), score, valid, setting)
            for run in runs if np.isfinite(score).all() else runs[1:]:
                index, keep, count = run.run(None, {"score": score, "valid": valid})
                assert_same((index, keep, int(count)), score, valid, setting)
            seen += 1
            finite += bool(np.isfinite(score).all())
    assert seen >= finite >= 1000
