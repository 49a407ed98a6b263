"""Builds by TensorRT-RTX that the methods' tests do not come by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vitprune.backends import tensorrt_rtx as backend


def test_a_convolution_whose_bias_is_a_tensor(tmp_path: Path) -> None:
    """As torch's older exporter writes convolutions with equal biases (ViTamin's): one initializer and Identity nodes behind it."""
    pytest.importorskip("tensorrt_rtx", reason=backend.missing())
    weights = {"kernel": np.ones((4, 3, 1, 1), np.float32), "shared": np.ones(4, np.float32)}
    nodes = [helper.make_node("Identity", ["shared"], ["bias"]), helper.make_node("Conv", ["x", "kernel", "bias"], ["y"])]
    ends = [helper.make_tensor_value_info(name, 1, ["batch", width, 8, 8]) for name, width in (("x", 3), ("y", 4))]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx")
    request = {"model": tmp_path / "model.onnx", "output": tmp_path / "engine", "log": tmp_path / "log", "batch": (1, 2, 4)}
    assert backend.build(request, lambda text: None)["layers_by_precision"] == {"fp32": 1}
