"""PruneSite's CUDA kernels, their own source run thread by thread on the host, against the host twin: every bit of every output."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from site_memory import run, site

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
    one["arrays"]["key"] = None
    assert run(library.raw.vp_prune_site_cpu, one)[0] == null_pointer
