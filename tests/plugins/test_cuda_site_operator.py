"""PruneSite as ONNX Runtime's CUDA operator, with its kernels emulated on the CPU, against the operator for the CPU: every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_native_sites import CASES, SIDE, alone, dense, recipe, session  # noqa: F401

from helpers import images
from vitprune.graph import surgery
from vitprune.graph.lowering.onnxruntime import specialise


@pytest.fixture(scope="module")
def cuda_library(ort_library: Path) -> Path:
    """A library with the CUDA operator alone, for the CPU."""
    return ort_library.with_name("libemulated_kernels.so")


@pytest.mark.parametrize("padded", [0, 1])
@pytest.mark.parametrize("mode", ["inverse_transform", "inverse_transform_official", "threshold"])
def test_all_outputs(mode: str, padded: int, ort_library: Path, cuda_library: Path) -> None:
    rng = np.random.default_rng(padded)
    batch, patches, width = 3, 40, 24
    attributes = {
        "mode": mode, "num_samples": 30, "threshold": 0.4, "capacity": 17 * padded, "pad_to_capacity": padded, "form": "per_head",
        "combine": "nothing", "heads": 3, "prefix_tokens": 1, "originals": patches,
    }  # fmt: skip

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    feeds: dict[str, Any] = {
        "x": normal(batch, patches + 1, 10), "query": normal(batch, width), "key": normal(batch, patches + 1, width),
        "value": normal(batch, patches + 1, width), "valid": rng.random((batch, patches)) < 0.8,
        "patch": np.tile(np.arange(patches), (batch, 1)),
    }  # fmt: skip
    wanted, found = (alone(attributes, library)(None, feeds) for library in (ort_library, cuda_library))
    assert len(wanted) == 9
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", ["topk", "evit", "ats", "asvit"])
def test_whole_networks(case: str, dense: onnx.ModelProto, ort_library: Path, cuda_library: Path) -> None:  # noqa: F811
    """With LN1(x), thresholds, a combined row, and sites behind each other."""
    model, *_ = surgery.rewrite(dense, recipe(CASES[case]))
    native, facts = specialise(model, keep_outputs=True, native=True)
    assert sum(node.op_type == "PruneSite" for node in native.graph.node) == facts["sites"]
    x = images(3, (3, SIDE, SIDE), seed=3)
    for one, other in zip(*(session(native, path).run(None, {"image": x}) for path in (ort_library, cuda_library)), strict=True):
        np.testing.assert_array_equal(one, other)
