"""The kernels on a GPU: the bits of the host twin for every element type, size and batch, also from a CUDA graph."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from plugin_cases import assert_same, cases, scores
from plugin_device import sample, score_sample
from test_score import attention_inputs

from vitprune.ops.token_sample import MODES, Attributes
from vitprune.plugins import PluginLibrary, ScoreAttributes
from vitprune.plugins.library import DTYPES, FORMS, sample_attributes

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class DeviceMemory:
    """Tensors on the first GPU."""

    def put(self, array: np.ndarray) -> Any:
        signed = array.view(np.int16) if array.dtype == np.uint16 else array
        return torch.from_numpy(signed.copy()).cuda()

    def pointer(self, tensor: Any) -> int:
        return tensor.data_ptr()

    def get(self, tensor: Any) -> np.ndarray:
        torch.cuda.synchronize()
        return tensor.cpu().numpy()


@pytest.fixture
def device(library: PluginLibrary) -> PluginLibrary:
    if "cuda" not in library.features:
        pytest.skip("needs nvcc")
    return library


@pytest.mark.parametrize("mode", MODES)
def test_random_cases(device: PluginLibrary, mode: str) -> None:
    for score, valid, setting in cases(mode, 300, (1, 2, 31, 196, 577, 1370), seed=6):
        assert_same(sample(device.raw, DeviceMemory(), score, valid, setting), score, valid, setting)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("batch", "patches"), [(64, 16), (64, 1024), (8, 2048), (8, 2049), (1, 16384), (4, 16384)])
def test_sizes(device: PluginLibrary, mode: str, batch: int, patches: int) -> None:
    rng = np.random.default_rng(patches)
    valid = rng.random((batch, patches)) < 0.9
    for kind in ("skewed", "coarse"):
        score = scores(kind, (batch, patches), rng)
        for capacity in (0, patches // 4):
            setting = Attributes(mode, num_samples=patches, threshold=0.5, capacity=capacity)
            twin = device.token_sample(score, valid, setting)
            for ours, theirs in zip(sample(device.raw, DeviceMemory(), score, valid, setting), twin, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "heads", "patches", "width"), [(1, 6, 196, 64), (8, 12, 577, 64), (2, 3, 4096, 32)])
def test_fused_has_the_bits_of_the_twin(
    device: PluginLibrary, form: str, dtype: str, batch: int, heads: int, patches: int, width: int
) -> None:
    rng = np.random.default_rng(9)
    tensors, valid = attention_inputs(rng, dtype, batch=batch, heads=heads, patches=patches, width=width)
    setting = ScoreAttributes(form)
    for mode in MODES:
        sampling = Attributes(mode, num_samples=patches // 2, threshold=0.001, capacity=patches // 3)
        twin = device.token_score_sample(*tensors, valid, setting, sampling, dtype)
        kernel = score_sample(device.raw, DeviceMemory(), tensors, valid, setting, sampling, dtype)
        np.testing.assert_array_equal(kernel[0].view(np.uint32), twin[0].view(np.uint32))
        for ours, theirs in zip(kernel[1:], twin[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("padded", [False, True])
def test_cuda_graph_replays_with_new_scores(device: PluginLibrary, padded: bool) -> None:
    batch, patches = 4, 196
    setting = Attributes("inverse_transform_official", num_samples=100, capacity=64, pad_to_capacity=padded)
    needed, slots = ctypes.c_size_t(), device.max_count(setting, patches)
    device.check(device.raw.vp_token_sample_workspace(batch, patches, ctypes.byref(needed)))
    score = torch.zeros((batch, patches), device="cuda")
    valid = torch.ones((batch, patches), dtype=torch.bool, device="cuda")
    workspace = torch.empty(needed.value, dtype=torch.uint8, device="cuda")
    index = torch.empty(batch * slots, dtype=torch.int64, device="cuda")
    keep = torch.empty(batch * slots, dtype=torch.bool, device="cuda")
    count = torch.empty(1, dtype=torch.int64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        status = device.raw.vp_token_sample_cuda(
            sample_attributes(setting),
            *(score.data_ptr(), valid.data_ptr(), batch, patches, workspace.data_ptr(), needed.value),
            *(index.data_ptr(), keep.data_ptr(), count.data_ptr(), torch.cuda.current_stream().cuda_stream),
        )
    assert status == 0
    rng = np.random.default_rng(0)
    for _ in range(3):
        new = np.exp(rng.standard_normal((batch, patches))).astype(np.float32)
        score.copy_(torch.from_numpy(new))
        graph.replay()
        torch.cuda.synchronize()
        total = batch * int(count)
        shape = (batch, int(count))
        got = index[:total].cpu().numpy().reshape(shape), keep[:total].cpu().numpy().reshape(shape), shape[1]
        assert_same(got, new, np.ones(new.shape, bool), setting)
