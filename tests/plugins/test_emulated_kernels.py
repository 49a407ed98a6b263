"""The CUDA kernels' own source, run thread by thread on the host, against the specification.

This shows that the algorithm, its barriers and its indexing are right; what only a GPU can show is in test_gpu.py.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from plugin_cases import assert_same, cases
from plugin_device import HostMemory, sample

from vitprune.ops.token_sample import MODES, Attributes
from vitprune.plugins.library import sample_attributes


@pytest.mark.parametrize("mode", MODES)
def test_random_cases(emulated: ctypes.CDLL, mode: str) -> None:
    for score, valid, setting in cases(mode, 120, (1, 2, 3, 31, 64, 65, 100, 196), seed=1):
        assert_same(sample(emulated, HostMemory(), score, valid, setting), score, valid, setting)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capacity", [0, 300])
def test_more_tokens_than_threads_and_shared_memory(emulated: ctypes.CDLL, mode: str, capacity: int) -> None:
    rng = np.random.default_rng(2)
    score = np.round(np.exp(rng.standard_normal((2, 2100))), 1).astype(np.float32)
    valid = rng.random(score.shape) < 0.9
    setting = Attributes(mode, num_samples=1500, threshold=0.5, capacity=capacity)
    assert_same(sample(emulated, HostMemory(), score, valid, setting), score, valid, setting)


def test_small_workspace_is_refused(emulated: ctypes.CDLL) -> None:
    needed = ctypes.c_size_t()
    assert emulated.vp_token_sample_workspace(2, 50, ctypes.byref(needed)) == 0
    dummy = np.zeros(4096, np.uint8).ctypes.data
    arguments = (
        sample_attributes(Attributes("threshold")),
        dummy,
        dummy,
        2,
        50,
        dummy,
        needed.value - 1,
        dummy,
        dummy,
        dummy,
        None,
    )
    small_workspace = 8
    assert emulated.vp_token_sample_cuda(*arguments) == small_workspace


def test_workspace_refuses_bad_sizes(emulated: ctypes.CDLL) -> None:
    needed = ctypes.c_size_t()
    bad_patches, bad_batch, null_pointer = 3, 4, 1
    assert emulated.vp_token_sample_workspace(1, 0, ctypes.byref(needed)) == bad_patches
    assert emulated.vp_token_sample_workspace(0, 1, ctypes.byref(needed)) == bad_batch
    assert emulated.vp_token_sample_workspace(1, 1, None) == null_pointer
