"""NVIDIA's own plugin registry and ONNX parser load the library, on a machine without a GPU.

TensorRT-RTX does not run plugins; its parser ends the process after creating one, so everything runs in child processes.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from test_native_sites import ATS, dense, recipe  # noqa: F401

from helpers import absent
from vitprune.graph import surgery
from vitprune.graph.lowering.plugin_sites import with_plugin_sites
from vitprune.ops.token_sample import DOMAIN, NAME
from vitprune.plugins import BuildReport

pytestmark = pytest.mark.rtx

REGISTRY = """
import json, sys
import numpy as np
import tensorrt_rtx as trt

registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[1]) is not None
creators = [c for c in registry.all_creators if c.plugin_namespace == "vitprune"]
creator = registry.get_creator("TokenSample", "1", "vitprune")
kinds = trt.PluginFieldType
def field(name, array, kind):
    return trt.PluginField(name, array, kind)
def plugin(mode):
    return creator.create_plugin("node", trt.PluginFieldCollection([
        field("mode", np.frombuffer(mode, np.int8), kinds.CHAR),
        field("num_samples", np.array([108], np.int64), kinds.INT64),
        field("capacity", np.array([150], np.int32), kinds.INT32),
    ]), trt.TensorRTPhase.BUILD)
good = plugin(b"inverse_transform")
core = good.get_capability_interface(trt.PluginCapabilityType.CORE)
print(json.dumps({
    "creators": sorted((c.name, c.plugin_version, c.plugin_namespace) for c in creators),
    "created": [core.plugin_name, core.plugin_version, core.plugin_namespace],
    "refused": plugin(b"softmax") is None,
}))
"""

PARSER = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.VERBOSE)
trt.get_plugin_registry().load_library(sys.argv[1])
network = trt.Builder(logger).create_network(0)
trt.OnnxParser(network, logger).parse_from_file(sys.argv[2])
"""


def child(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def plugin_library(report: BuildReport) -> str:
    if not report.tensorrt:
        absent("nvcc and TensorRT headers ($TENSORRT_INCLUDE_DIR)")
    if importlib.util.find_spec("tensorrt_rtx") is None:
        if sys.version_info >= (3, 11) and platform.machine() == "x86_64":
            absent("tensorrt_rtx")
        pytest.skip("NVIDIA has no tensorrt_rtx for this Python or processor")
    return str(report.library)


def test_registry_lists_and_creates(plugin_library: str) -> None:
    done = child(REGISTRY, plugin_library)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["creators"] == [
        [name, "1", "vitprune"]
        for name in ("PairMerge", "PruneSite", "SampledMerge", "TokenSample", "TokenScoreSample", "WardMerge")
    ]
    assert answer["created"] == ["TokenSample", "1", "vitprune"]
    assert answer["refused"] is True
    assert "unknown mode" in done.stdout + done.stderr


def test_parser_prefers_the_plugin_to_the_function(plugin_library: str, tmp_path: Path) -> None:
    outputs = ["index", "keep", "count"]
    attributes = {"mode": "threshold", "threshold": 0.5, "capacity": 8, "plugin_version": "1", "plugin_namespace": DOMAIN}
    node = helper.make_node(NAME, ["score", "valid"], outputs, domain=DOMAIN, **attributes)
    body = [
        helper.make_node("Cast", ["score"], ["index"], to=TensorProto.INT64),
        helper.make_node("Not", ["valid"], ["keep"]),
        helper.make_node("Constant", [], ["count"], value_int=1),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    function = helper.make_function(DOMAIN, NAME, ["score", "valid"], outputs, body, opsets[:1], list(attributes))
    kinds = {"index": TensorProto.INT64, "keep": TensorProto.BOOL, "count": TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [2, 49]),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, [2, 49]),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8), path)
    done = child(PARSER, plugin_library, str(path))
    log = done.stdout + done.stderr
    assert "Successfully created plugin: TokenSample" in log, log[-2000:]


@pytest.mark.parametrize(
    ("operator", "prune"),
    [
        ("PruneSite", ATS),
        ("PairMerge", {"method": "tome", "r": 4}),
        ("PairMerge", {"method": "tome_threshold", "tau": 0.6, "r_max": 5}),
        ("WardMerge", {"method": "ward_merge", "mu": 0.6}),
        ("SampledMerge", {**ATS, "method": "ats_merge"}),
    ],
)
def test_parser_creates_a_site_from_its_node(
    operator: str,
    prune: dict[str, Any],
    plugin_library: str,
    dense: onnx.ModelProto,  # noqa: F811
    tmp_path: Path,
) -> None:
    """With the attributes that name its tensors. Of the first site, since the process ends there."""
    model, *_ = surgery.rewrite(dense, recipe(prune))
    path = tmp_path / "model.onnx"
    onnx.save(with_plugin_sites(model)[0], path)
    done = child(PARSER, plugin_library, str(path))
    log = done.stdout + done.stderr
    assert f"Successfully created plugin: {operator}" in log, log[-2000:]
