"""The merging sites' CUDA kernels, their own source run thread by thread on the host, against the host twin: every bit of every output."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merge_memory import KINDS, OUTPUTS, Attributes, merging, run
from site_memory import Sample

from vitprune.plugins import BuildReport, PluginLibrary, find_sources

NO_ROOM = 20


def both(one: dict[str, Any], emulated: ctypes.CDLL, library: PluginLibrary, what: str) -> dict[str, np.ndarray] | None:
    """What the twin and the kernels wrote, compared; None where more rows stay than there is room."""
    status, count, twin = run(library.raw.vp_merge_cpu, one)
    again, other, kernels = run(emulated.vp_merge_cuda, one, emulated.vp_merge_workspace)
    assert again == 0, what
    if status == NO_ROOM:
        return None
    assert (status, count) == (0, other), what
    for name, value in twin.items():
        np.testing.assert_array_equal(value, kernels[name], err_msg=f"{name}: {what}")
    return twin


def settings(kind: str, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([KINDS.index(kind), seed])
    return [merging(rng, kind, patches, batch=1 + case % 3) for patches in (1, 2, 5, 9, 33, 70) for case in range(6)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_and_twin_agree_on_every_bit(kind: str, seed: int, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    """Random settings; among them those in which nobody and in which everybody joins, with pads, ties, lost rows and bounds."""
    seen: set[str] = set()
    for number, one in enumerate(settings(kind, seed)):
        out = both(one, emulated, library, f"{kind}, seed {seed}, setting {number}")
        if out is None:
            continue
        sizes, arrays, patches = one["sizes"], one["arrays"], one["sizes"].patches
        joined = (out["kept"] >= 0).sum(1) < patches if arrays["valid"] is None else np.zeros(sizes.batch, bool)
        seen |= {"joins"} if joined.any() else {"stays"}
        seen |= {"pads"} if (out["kept"] < 0).any() else {"full"}
        if "group_out" in out and (out["group_out"] == -1).sum() > (arrays["group"] == -1).sum():
            seen.add("loses")
        if out["keep"].sum(1).min() <= 1 < patches:
            seen.add("everyone")
    assert seen >= {"joins", "stays", "pads", "full"}
    assert seen >= {"pair": set(), "ward": {"loses", "everyone"}, "sampled": {"everyone"}}[kind]


def test_a_processor_without_vectors_decides_alike(library: PluginLibrary, report: BuildReport) -> None:
    """Cosines are one chain of fused products in every form of the host."""
    plain = ctypes.CDLL(str(report.library.with_name("libplain_host.so")))
    for number, one in enumerate(settings("sampled", 9)):
        status, count, wanted = run(library.raw.vp_merge_cpu, one)
        again, other, found = run(plain.vp_merge_cpu, one)
        assert (status, count) == (again, other)
        for name, value in wanted.items():
            np.testing.assert_array_equal(value, found[name], err_msg=f"{name}: setting {number}")


@pytest.mark.parametrize("kind", KINDS)
def test_many_tokens(kind: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    """More than lists in shared memory have room for, and more rows than an image has blocks."""
    rng = np.random.default_rng(5)
    for _ in range(2):
        one = merging(rng, kind, 2100, batch=1)
        both(one, emulated, library, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_no_numbers(kind: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    rng, names = np.random.default_rng(6), ("x", "products", "metric", "gram", "attention", "query", "score", "size")
    for patches in (2, 9, 40):
        for _ in range(8):
            one = merging(rng, kind, patches)
            for name in names:
                value = one["arrays"][name]
                if value is not None:
                    wrong = rng.random(value.shape) < 1 / max(value.size, 1) + 0.01
                    value[wrong] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 0, 1e-40]), int(wrong.sum()))
            with np.errstate(all="ignore"):
                both(one, emulated, library, f"{kind}, {patches}")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_no_patches_belong_to_no_slot(kind: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    rng = np.random.default_rng(7)
    for _ in range(4):
        one = merging(rng, kind, 30)
        arrays, sizes = one["arrays"], one["sizes"]
        sizes.originals = 31
        arrays["patch"] = rng.choice([-(2**62), -1, 3, 30, 31, 32, 2**62], (3, 30))
        arrays["group"] = rng.choice([-(2**62), -1, 3, 30, 31, 2**62], (3, 31))
        out = both(one, emulated, library, kind)
        if out is not None:
            outside = (arrays["group"] < 0) | (arrays["group"] > 30)
            np.testing.assert_array_equal(out["group_out"][outside], arrays["group"][outside])


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_nobody_asks_for(kind: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    rng = np.random.default_rng(8)
    for _ in range(4):
        one = merging(rng, kind, 20) | {"without": OUTPUTS[1:]}
        both(one, emulated, library, kind)


@pytest.mark.parametrize("kind", ["pair", "sampled"])
def test_more_rows_than_there_is_room_for(kind: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    """The twin refuses; the kernels, which cannot, write the rows that there is room for and nothing behind them."""
    one = merging(np.random.default_rng(1), kind, 24, batch=1, pairs=3, by_threshold=0)
    one["attributes"].most, one["attributes"].padded = 5, 1
    one["arrays"]["valid"] = None
    one["attributes"].site.sample = Sample(b"threshold", 1, -3.4e38, 24, 0, 1)
    assert run(library.raw.vp_merge_cpu, one)[0] == NO_ROOM
    wide = {**one, "attributes": Attributes.from_buffer_copy(one["attributes"])}
    wide["attributes"].most = 24
    status, count, out = run(emulated.vp_merge_cuda, one, emulated.vp_merge_workspace, room=5)
    again, other, whole = run(library.raw.vp_merge_cpu, wide)
    assert (status, count, again, other) == (0, 5, 0, 24)
    for name in ("index", "keep", "kept", "patch_out"):
        np.testing.assert_array_equal(out[name], whole[name][:, :5])
    width = one["sizes"].width
    np.testing.assert_array_equal(out["rows"], whole["rows"][:, : (one["attributes"].prefix_tokens + 5) * width])


def test_what_makes_no_sense_is_refused(emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    def statuses(one: dict[str, Any]) -> set[int]:
        needed = ctypes.c_size_t()
        told = emulated.vp_merge_workspace(ctypes.byref(one["attributes"]), ctypes.byref(one["sizes"]), ctypes.byref(needed))
        return {told, run(library.raw.vp_merge_cpu, one)[0]}

    for key, value, status in (
        ("kind", b"nonsense", 18), ("most", -1, 6), ("pairs", -2, 19), ("rounds", -1, 19), ("prefix_tokens", -1, 12),
    ):  # fmt: skip
        one = merging(np.random.default_rng(0), "ward", 9)
        one["attributes"].padded = 0
        setattr(one["attributes"], key, value)
        assert statuses(one) == {status}
    one = merging(np.random.default_rng(0), "sampled", 9)
    one["attributes"].site.prefix_tokens += 1
    assert statuses(one) == {19}
    one = merging(np.random.default_rng(0), "pair", 1, prefix_tokens=0)
    assert statuses(one) == {3}
    for kind, name in (("pair", "metric"), ("pair", "products"), ("ward", "gram"), ("sampled", "metric"), ("pair", "x")):
        one = merging(np.random.default_rng(0), kind, 9)
        one["arrays"][name] = None
        assert run(library.raw.vp_merge_cpu, one)[0] == 1


POWERS = """
#include "powers.h"
extern "C" void logs(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = vitprune::natural_log(x[i]); }
extern "C" void powers(const float* x, float p, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = vitprune::power_of(x[i], p); }
"""


def test_logarithm_and_power(tmp_path: Path) -> None:
    """Within 0.50001 units in the last place of NumPy's float64, for floats of every size."""
    source, path = tmp_path / "powers.cpp", tmp_path / "powers.so"
    source.write_text(POWERS, encoding="utf-8")
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{find_sources() / 'src'}"]
    subprocess.run(["c++", *flags, "-o", path, source], check=True)
    raw, rng = ctypes.CDLL(str(path)), np.random.default_rng(0)
    every = rng.integers(1, 0x7F800000, 200_000).astype(np.uint32).view(np.float32)
    near = np.float32(1) + rng.integers(-1000, 1000, 50_000).astype(np.float32) * np.float32(2**-23)
    x = np.concatenate([every, near, np.arange(1, 5000, dtype=np.float32), np.float32([1e-45, 3.4e38])])
    out = np.zeros_like(x)

    def off(found: np.ndarray, true: np.ndarray) -> float:
        with np.errstate(over="ignore"):
            rounded = true.astype(np.float32)
        sane = np.isfinite(rounded)
        np.testing.assert_array_equal(found[~sane], rounded[~sane])
        return float((np.abs(found[sane] - true[sane]) / np.spacing(np.abs(rounded[sane]))).max())

    def pointer(array: np.ndarray) -> ctypes.c_void_p:
        return array.ctypes.data_as(ctypes.c_void_p)

    size = ctypes.c_long(len(x))
    raw.logs(pointer(x), pointer(out), size)
    assert off(out, np.log(x.astype(np.float64))) < 0.50001
    for power in (0.4, 0.5, 1.0, -0.5, 2.0, 0.1, 1 / 3, 7.0):
        raw.powers(pointer(x), ctypes.c_float(power), pointer(out), size)
        with np.errstate(over="ignore"):
            assert off(out, x.astype(np.float64) ** float(np.float32(power))) < 0.50001
    special = np.float32([0, np.inf, -1, np.nan])
    out = np.zeros_like(special)
    raw.logs(pointer(special), pointer(out), ctypes.c_long(4))
    np.testing.assert_array_equal(out, np.float32([-np.inf, np.inf, np.nan, np.nan]))
    for power, wanted in ((0.5, [0, np.inf, np.nan, np.nan]), (-0.5, [np.inf, 0, np.nan, np.nan])):
        raw.powers(pointer(special), ctypes.c_float(power), pointer(out), ctypes.c_long(4))
        np.testing.assert_array_equal(out, np.float32(wanted))
