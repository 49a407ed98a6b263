"""PruneSite's CUDA kernels, their own source run thread by thread on the host, against the host twin: every bit of every output."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from site_memory import Tensors, run, site, typed, widened

from vitprune.ops.token_sample import Attributes, token_sample
from vitprune.plugins import PluginLibrary

FORMS = ("given", "per_head", "pooled", "sum", "mean", "head_share")


@pytest.mark.parametrize("form", FORMS)
def test_kernels_and_twin_agree_on_every_bit(form: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    rng = np.random.default_rng(FORMS.index(form))
    cases = [("nothing", "inverse_transform"), ("nothing", "inverse_transform_official"), ("nothing", "threshold")]
    cases += [("weighted", "threshold"), ("mean", "threshold")]
    for combine, mode in cases:
        for patches in (1, 5, 33, 70):
            one = site(rng, form, combine, mode, patches)
            status, count, twin = run(library.raw.vp_prune_site_cpu, one)
            again, other, kernels = run(emulated.vp_prune_site_cuda, one, emulated.vp_prune_site_workspace)
            assert (status, again) == (0, 0)
            assert count == other
            for name, value in twin.items():
                np.testing.assert_array_equal(value, kernels[name], err_msg=f"{name}: {form}, {combine}, {mode}, {patches}")


@pytest.mark.parametrize("form", FORMS)
def test_half_types(form: str, emulated: ctypes.CDLL, library: PluginLibrary) -> None:
    """Each tensor in a type of its own: the kernels are the twin, bit for bit, and the twin is that of float32 on the widened numbers,
    of which rows go back to their type, a combined one rounded by NumPy."""
    rng = np.random.default_rng(FORMS.index(form))
    for combine, mode in [
        ("nothing", "inverse_transform"),
        ("nothing", "threshold"),
        ("weighted", "threshold"),
        ("mean", "threshold"),
    ]:
        for patches in (1, 5, 33, 70):
            one = typed(rng, site(rng, form, combine, mode, patches))
            label = f"{form}, {combine}, {mode}, {patches}"
            _, count, wide = run(library.raw.vp_prune_site_cpu, widened(one))
            status, same, twin = run(library.raw.vp_prune_site_cpu, one)
            again, other, kernels = run(emulated.vp_prune_site_cuda, one, emulated.vp_prune_site_workspace)
            assert (status, again) == (0, 0)
            assert count == same == other
            for name, value in twin.items():
                assert value.dtype == kernels[name].dtype
                np.testing.assert_array_equal(value.view(np.uint8), kernels[name].view(np.uint8), err_msg=f"{name}: {label}")
                np.testing.assert_array_equal(value, wide[name].astype(value.dtype), err_msg=f"{name}: {label}")


@pytest.mark.parametrize("form", FORMS)
def test_the_twin_decides_as_the_specification(form: str, library: PluginLibrary) -> None:
    rng = np.random.default_rng(7)
    for mode in ("inverse_transform", "inverse_transform_official", "threshold"):
        one = site(rng, form, "nothing", mode, 50)
        _, count, out = run(library.raw.vp_prune_site_cpu, one)
        arrays, sample = one["arrays"], one["attributes"].sample
        valid = np.ones((3, 50), bool) if arrays["valid"] is None else arrays["valid"]
        compared = out["score_out"] if arrays["theta"] is None else out["score_out"] - arrays["theta"]
        attributes = Attributes(mode, sample.num_samples, sample.threshold, sample.capacity, 0, bool(sample.pad_to_capacity))
        index, keep, wanted = token_sample(compared, valid, attributes)
        assert count == wanted
        np.testing.assert_array_equal(out["index"], index)
        np.testing.assert_array_equal(out["keep"], keep)


def test_what_makes_no_sense_is_refused(library: PluginLibrary) -> None:
    one = site(np.random.default_rng(0), "mean", "nothing", "threshold", 9)
    null_pointer, unknown_form, bad_heads, unknown_combine = 1, 9, 11, 16
    for key, value, status in (
        ("form", b"nonsense", unknown_form),
        ("combine", b"nonsense", unknown_combine),
        ("heads", 0, bad_heads),
    ):
        old = getattr(one["attributes"], key)
        setattr(one["attributes"], key, value)
        assert run(library.raw.vp_prune_site_cpu, one)[0] == status
        setattr(one["attributes"], key, old)
    unknown_dtype = 10
    named = Tensors(x=8, rows=8, query=8, key=8, key_type=3)  # refused before anything is read
    count = ctypes.c_int64()
    references = [ctypes.byref(part) for part in (one["attributes"], one["sizes"], named, count)]
    assert library.raw.vp_prune_site_cpu(*references) == unknown_dtype
    one["arrays"]["key"] = None
    assert run(library.raw.vp_prune_site_cpu, one)[0] == null_pointer
