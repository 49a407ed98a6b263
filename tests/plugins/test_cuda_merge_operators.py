"""The merging sites as ONNX Runtime's CUDA operators, with kernels emulated on the CPU, against the operators for the CPU: every bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_native_merging import CASES, SIDE, dense, session  # noqa: F401

import vitprune
from helpers import images
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise

NETWORKS = (
    "ward",
    "ward, fixed",
    "ward, capacity",
    "tome",
    "threshold",
    "threshold, capacity",
    "sampled",
    "sampled, capacity, no sizes",
)


@pytest.fixture(scope="module")
def cuda_library(ort_library: Path) -> Path:
    """A library with the CUDA operators, for the CPU."""
    return ort_library.with_name("libemulated_kernels.so")


@pytest.mark.parametrize("shapes", ["dynamic", "padded"])
@pytest.mark.parametrize("case", NETWORKS)
def test_whole_networks(
    case: str,
    shapes: str,
    dense: Callable[[str], onnx.ModelProto],  # noqa: F811
    ort_library: Path,
    cuda_library: Path,
) -> None:
    """With groups that are followed, bounds, sizes as biases, and sites behind each other."""
    wanted = vitprune.Recipe.load({"prune": CASES[case], "graph": {"shapes": shapes, "batch": "1:4:8"}})
    native, facts = specialise(surgery.rewrite(dense("token"), wanted)[0], keep_outputs=True, native=True)
    assert facts["merging"] >= 3
    x = images(3, (3, SIDE, SIDE), seed=3)
    for batch in (x[:1], x):
        found = (session(native, path).run(None, {"image": batch}) for path in (ort_library, cuda_library))
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


def pair_node(feeds: dict[str, Any], outputs: tuple[str, ...], library: Path, **changed: Any) -> list[np.ndarray]:
    """Outputs of a PairMerge node alone."""
    attributes: dict[str, Any] = {
        "prefix": 1, "most": 0, "padded": 0, "loses": 0, "proportional": 1, "floor": 1e-6, "pairs": 3, "by_threshold": 0, "threshold": 0.0,
    } | changed  # fmt: skip
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64, np.dtype(np.bool_): TensorProto.BOOL}
    names = ("x", "products", "metric", "size", "patch", "valid", "group")
    node = helper.make_node(
        "PairMerge", [name if name in feeds else "" for name in names], list(outputs), domain="vitprune", **attributes
    )
    ins = [helper.make_tensor_value_info(name, kinds[value.dtype], value.shape) for name, value in feeds.items()]
    told = {"index": TensorProto.INT64, "keep": TensorProto.BOOL, "group_out": TensorProto.INT64}
    outs = [helper.make_tensor_value_info(name, told.get(name, TensorProto.FLOAT), None) for name in outputs if name]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("vitprune", 1)]
    model = helper.make_model(helper.make_graph([node], "one", ins, outs), opset_imports=opsets, ir_version=9)
    return session(model, library).run(None, feeds)


def pair_feeds() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    metric = rng.standard_normal((2, 10, 8)).astype(np.float32)
    even, odd = metric[:, 2::2], metric[:, 1::2]
    return {
        "x": rng.standard_normal((2, 10, 6)).astype(np.float32), "products": even @ odd.transpose(0, 2, 1), "metric": metric,
        "patch": np.tile(np.arange(9), (2, 1)), "group": np.tile(np.arange(9), (2, 1)),
    }  # fmt: skip


def test_numbers_that_are_no_patches(ort_library: Path, cuda_library: Path) -> None:
    """The operator for the CPU refuses them; the one for CUDA, which cannot look, lets them go on as they are."""
    feeds, outputs = pair_feeds(), ("rows", "size", "bias", "index", "keep", "group_out")
    for one, other in zip(*(pair_node(feeds, outputs, library) for library in (ort_library, cuda_library)), strict=True):
        np.testing.assert_array_equal(one, other)
    feeds["group"][0, 2] = 2**40
    with pytest.raises(Exception, match="group holds a number that is no patch"):
        pair_node(feeds, outputs, ort_library)
    assert pair_node(feeds, outputs, cuda_library)[-1][0, 2] == 2**40


def test_attributes_and_inputs_are_checked_alike(ort_library: Path, cuda_library: Path) -> None:
    outputs = ("rows", "size", "bias", "index", "keep")
    for library in (ort_library, cuda_library):
        with pytest.raises(Exception, match="negative"):
            pair_node(pair_feeds(), outputs, library, pairs=-1)
        wrong = pair_feeds()
        wrong["products"] = wrong["products"][:, :2]
        with pytest.raises(Exception, match="products has a wrong shape"):
            pair_node(wrong, outputs, library)
