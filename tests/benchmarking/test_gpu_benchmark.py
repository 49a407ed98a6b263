"""benchmarks/gpu.py without a GPU: it says so, leaves results alone, and its parts do on the CPU what they can."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_engines  # noqa: E402

from helpers import script, tiny  # noqa: E402

report = script(BENCHMARKS / "report.py")

without = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@without
def test_without_a_device_every_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "deep" / "gpu.json")]) == 0
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "deep" / "gpu.json").read_text())
    assert document["device"] is None
    assert document["parts"] == dict.fromkeys(gpu.PARTS, {"not_run": "no CUDA device"})
    assert all(f"{name}: not run: no CUDA device" in said for name in gpu.PARTS)


@without
def test_without_a_device_results_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    assert gpu.main(["--out", str(tmp_path / "below" / "gpu.json")]) == 0
    assert list(tmp_path.iterdir()) == []


def options(**changed: Any) -> Any:
    import argparse

    return argparse.Namespace(**{"library": None, "quick": True, "repeats": 2, "sanitized": False} | changed)


def test_one_part_that_breaks_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_options: Any) -> dict[str, Any]:
        raise RuntimeError("the driver is gone")

    def absent(_options: Any) -> dict[str, Any]:
        raise LookupError("the native library is not built")

    parts = {"kernels": broken, "capture": absent, "packed": lambda _options: {"rows": []}}
    monkeypatch.setattr(gpu, "PARTS", parts)
    document = gpu.measured(list(parts), {"name": "a GPU"}, options())
    assert document["parts"]["kernels"] == {"failed": "RuntimeError: the driver is gone"}
    assert document["parts"]["capture"] == {"not_run": "the native library is not built"}
    assert document["parts"]["packed"] == {"rows": []}
    assert not gpu.sound(document)


@pytest.mark.parametrize(
    ("part", "fine"),
    [
        ({"cases": 3, "unequal": [], "sanitizer": ""}, True), ({"cases": 3, "unequal": ["sum: rows"], "sanitizer": ""}, False),
        ({"rows": [{"replays_equal": True}]}, True), ({"rows": [{"replays_equal": False}]}, False), ({"not_run": "no nvcc"}, True),
        ({"cases": 3, "unequal": [], "sanitizer": "exit 0: ERROR SUMMARY: 0 errors"}, True),
        ({"cases": 3, "unequal": [], "sanitizer": "exit 9: ERROR SUMMARY: 2 errors"}, False),
        ({"rows": [{"dtype": "float16", "error": 2e-3}]}, True), ({"rows": [{"dtype": "float32", "error": 2e-3}]}, False),
        ({"rows": [{"dtype": "float32", "error": float("nan")}]}, False),
    ],
)  # fmt: skip
def test_what_is_sound(part: dict[str, Any], fine: bool) -> None:
    assert gpu.sound({"parts": {"a": part}}) is fine
    assert gpu.summary(part)


def test_a_sanitizer_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda _name: None)
    assert gpu.sanitizer(options()).startswith("not run")
    assert gpu._smi("clocks.sm") == ""


@pytest.fixture(scope="module")
def loaded() -> Any:
    from types import SimpleNamespace

    module = tiny(depth=10)
    pixels = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    return SimpleNamespace(module=module, image_shape=(3, 64, 64), preprocessing=pixels)


def test_dense_against_pruned_on_the_cpu(loaded: Any) -> None:
    for rows in (
        gpu_engines.against_dense("onnxruntime", "topk", 2, "fp32", "cpu", 2, loaded),
        gpu_engines.eager("topk", 2, "fp32", "cpu", 2, loaded),
    ):
        assert len(rows) == 1
        assert "failed" not in rows[0], rows[0]
        assert rows[0]["ratio"] == pytest.approx(rows[0]["ms"]["pruned"] / rows[0]["ms"]["dense"], abs=1e-3)


def test_both_graphs_are_those_of_the_models(loaded: Any) -> None:
    made, x = gpu_engines.graphs("topk", 2, "fp32", loaded)
    assert not any(node.domain for node in made["pruned"].graph.node)
    answers = {label: gpu_engines.onnxruntime_run(graph, x, False, "cpu")() for label, graph in made.items()}
    with torch.inference_mode():
        wanted = loaded.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answers["dense"], wanted, atol=1e-4)
    assert np.abs(answers["pruned"] - wanted).max() > 1e-3


@without
def test_a_runtime_that_cannot_is_a_row_with_its_words(loaded: Any) -> None:
    rows = gpu_engines.against_dense("onnxruntime", "topk", 2, "fp32", "cuda", 2, loaded)
    assert [row["cuda_graph"] for row in rows] == [False, True]
    assert all("CUDA provider" in row["failed"] or "NVIDIA" in row["failed"] or "CUDA" in row["failed"] for row in rows), rows


def test_an_engine_is_built_where_the_builder_is_here(loaded: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert gpu_engines.build(trt, gpu_engines.graphs("topk", 2, "fp16", loaded)[0]["pruned"]) is not None


def test_report_says_not_run_and_shows_a_stored_run(tmp_path: Path) -> None:
    assert "**Not run**" in "\n".join(report.gpu(tmp_path / "gpu.json"))
    device = {"name": "GPU X", "capability": "90", "memory_mib": 1, "driver": "1", "cuda": "13", "locked": False, "why": "w"}
    device["clocks"] = {"sm_mhz": "1 MHz", "memory_mhz": "", "power_limit": ""}
    row = {"runtime": "tensorrt", "case": "topk", "batch": 1, "mode": "fp16", "cuda_graph": True}
    parts = {
        "kernels": {"cases": 4, "unequal": [], "sanitizer": "exit 0"}, "capture": {"rows": [{"kind": "pair", "batch": 1, "captured": True, "replays_equal": True}]},
        "merge_times": {"rows": [{"kind": kind, "tokens": 577, "batch": 4, "us": us, "bytes_read": 1} for kind, us in (("pair", 7.5), ("ward", 9.5))]},
        "site_times": {"rows": [{"tokens": 197, "batch": 1, "us": 4.5, "bytes_read": 1}]}, "packed": {"failed": "RuntimeError: x"},
        "end_to_end": {
            "rows": [{**row, "ms": {"dense": 1.0, "pruned": 0.5}, "ratio": 0.5, "memory_mib": {"dense": 2, "pruned": 1}}, {**row, "failed": "E"}],
            "absent": {"torch": "not run: no"},
        },
    }  # fmt: skip
    (tmp_path / "gpu.json").write_text(json.dumps({"device": device, "parts": parts}))
    text = "\n".join(report.gpu(tmp_path / "gpu.json"))
    for wanted in (
        "GPU X",
        "not held",
        "| 197 | 4.5 |",
        "us of a merging site (pair) at batch | 4 |",
        "| 577 | 9.5 |",
        "pair, batch 1: equal",
        "packed: failed: RuntimeError: x",
        "| 1.0 | 0.5 | 0.50 | 2, 1 MiB |",
        "torch: not run",
    ):
        assert wanted in text
