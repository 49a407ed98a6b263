"""The kernels' parts of benchmarks/gpu.py with the emulated kernels in the place of a GPU's."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_kernels  # noqa: E402
import gpu_merging  # noqa: E402

from vitprune.plugins import PluginLibrary  # noqa: E402


def test_kernels_against_the_twin(emulated: ctypes.CDLL, library: PluginLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_kernels.against_twin(emulated, library.raw, "cpu", (1, 33))
    assert found == {"cases": len(gpu_kernels.FORMS) * len(gpu_kernels.RULES) * 2, "unequal": []}
    launch = gpu_kernels.Site.launch

    def wrong(self: Any) -> None:
        launch(self)
        self.held["rows"][0] += 1

    monkeypatch.setattr(gpu_kernels.Site, "launch", wrong)
    unequal = gpu_kernels.against_twin(emulated, library.raw, "cpu", (5,))["unequal"]
    assert len(unequal) == len(gpu_kernels.FORMS) * len(gpu_kernels.RULES)
    assert all(one.endswith(": rows") for one in unequal)


def test_times_of_sites(emulated: ctypes.CDLL) -> None:
    rows = gpu_kernels.site_times(emulated, "cpu", (5, 9), (1, 2), 1)
    assert [(row["tokens"], row["batch"]) for row in rows] == [(5, 1), (5, 2), (9, 1), (9, 2)]
    assert all(row["us"] > 0 for row in rows)
    assert rows[0]["bytes_read"] == 4 * (4 * 5 + 1) * 384


def test_merging_kernels_against_the_twin(emulated: ctypes.CDLL, library: PluginLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_merging.against_twin(emulated, library.raw, "cpu", (2, 33), 3)
    assert found["unequal"] == []
    assert found["cases"] > 9
    launch = gpu_merging.Merge.launch

    def wrong(self: Any) -> None:
        launch(self)
        self.held["rows"][0] += 1

    monkeypatch.setattr(gpu_merging.Merge, "launch", wrong)
    unequal = gpu_merging.against_twin(emulated, library.raw, "cpu", (5,), 2)["unequal"]
    assert len(unequal) > 3
    assert all(one.endswith(": rows") for one in unequal)


def test_times_of_merging_sites(emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    rows = gpu_merging.merge_times(emulated, "cpu", (9,), (1, 2), 1)
    assert [(row["kind"], row["batch"]) for row in rows] == [(kind, batch) for kind in gpu_merging.KINDS for batch in (1, 2)]
    assert all(row["us"] > 0 for row in rows)
    for kind in gpu_merging.KINDS:
        one = gpu_merging.deit_merging(kind, 2, 20)
        call = gpu_merging.Merge(emulated, one, "cpu")
        call.launch()
        status, count, wanted = gpu_merging.run(library.raw.vp_merge_cpu, one)
        assert (status, call.result()[0]) == (0, count)
        assert gpu_merging.unequal(wanted, call.result()[1]) == []
        assert (wanted["keep"].sum(1) < 19).all()


def test_packed_attention(emulated: ctypes.CDLL) -> None:
    counts = gpu_kernels.ragged(3, 9)
    assert max(counts) == 9
    assert len(set(counts)) > 1
    found = gpu_kernels.packed_attention(emulated, "cpu", counts, 1)
    assert found["error"] < 1e-5
    assert set(found["us"]) == {"packed", "padded", "equal"}
