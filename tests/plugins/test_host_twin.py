"""The host twin is the specification, bit for bit, and refuses what it must."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from plugin_cases import assert_same, cases

from vitprune.ops.token_sample import MODES, Attributes
from vitprune.plugins import PluginError, PluginLibrary
from vitprune.plugins.library import sample_attributes

SIZES = (1, 2, 3, 7, 49, 196, 197, 577)


@pytest.mark.parametrize("mode", MODES)
def test_thousand_random_cases(library: PluginLibrary, mode: str) -> None:
    for score, valid, setting in cases(mode, 1000, SIZES):
        assert_same(library.token_sample(score, valid, setting), score, valid, setting)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capacity", [0, 1000])
def test_largest_size(library: PluginLibrary, mode: str, capacity: int) -> None:
    rng = np.random.default_rng(3)
    score = np.exp(2 * rng.standard_normal((2, 16384))).astype(np.float32)
    setting = Attributes(mode, num_samples=65536, threshold=0.1, capacity=capacity)
    valid = np.ones(score.shape, bool)
    assert_same(library.token_sample(score, valid, setting), score, valid, setting)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_floats_and_patterns(library: PluginLibrary, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)))
    score = data.draw(arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
    valid = data.draw(arrays(np.bool_, shape))
    setting = Attributes(
        data.draw(st.sampled_from(MODES)),
        num_samples=data.draw(st.integers(1, 30)),
        threshold=data.draw(st.floats(-1, 1, width=32)),
        capacity=data.draw(st.integers(0, 14)),
        pad_to_capacity=data.draw(st.booleans()),
    )
    with np.errstate(invalid="ignore"):  # an infinite maximum: numpy warns about inf/inf
        assert_same(library.token_sample(score, valid, setting), score, valid, setting)


def test_result_does_not_depend_on_batch_mates(library: PluginLibrary) -> None:
    rng = np.random.default_rng(5)
    score = rng.random((6, 50), np.float32)
    valid = rng.random(score.shape) < 0.7
    setting = Attributes("inverse_transform_official", num_samples=30)
    index, keep, _ = library.token_sample(score, valid, setting)
    for image in range(6):
        alone, alone_keep, _ = library.token_sample(score[image : image + 1], valid[image : image + 1], setting)
        np.testing.assert_array_equal(alone[alone_keep], index[image][keep[image]])


@pytest.mark.parametrize(
    ("setting", "patches", "sentence"),
    [
        (Attributes("softmax"), 4, "unknown mode"),
        (Attributes("inverse_transform", num_samples=0), 4, "num_samples"),
        (Attributes("inverse_transform_official", num_samples=65537), 4, "num_samples"),
        (Attributes("threshold", capacity=-1), 4, "capacity"),
        (Attributes("threshold", expected=-1), 4, "expected"),
        (Attributes("threshold"), 0, "patches"),
        (Attributes("threshold"), 16385, "patches"),
    ],
)
def test_bad_input_is_refused(library: PluginLibrary, setting: Attributes, patches: int, sentence: str) -> None:
    score = np.zeros((1, patches), np.float32)
    with pytest.raises(PluginError, match=sentence) as caught:
        library.token_sample(score, score > 0, setting)
    assert caught.value.code == "VP202"


def test_num_samples_is_not_read_in_threshold_mode(library: PluginLibrary) -> None:
    score = np.array([[1.0, 2.0]], np.float32)
    setting = Attributes("threshold", num_samples=0, threshold=1.5)
    assert_same(library.token_sample(score, score > 0, setting), score, score > 0, setting)


def test_bad_calls_leave_outputs_alone(library: PluginLibrary) -> None:
    setting = sample_attributes(Attributes("threshold"))
    score, valid = np.zeros((1, 2), np.float32), np.ones((1, 2), bool)
    index, keep, count = np.full(2, 7), np.full(2, 9, np.uint8), ctypes.c_int64(5)
    outputs = (index.ctypes.data, keep.ctypes.data, ctypes.addressof(count))
    call = library.raw.vp_token_sample_cpu
    null_pointer, bad_batch = 1, 4
    assert call(setting, None, valid.ctypes.data, 1, 2, *outputs) == null_pointer
    assert call(None, score.ctypes.data, valid.ctypes.data, 1, 2, *outputs) == null_pointer
    assert call(setting, score.ctypes.data, valid.ctypes.data, 0, 2, *outputs) == bad_batch
    assert (index.tolist(), keep.tolist(), count.value) == ([7, 7], [9, 9], 5)


def test_wrong_arrays_are_refused(library: PluginLibrary) -> None:
    score = np.zeros((1, 4), np.float32)
    for bad_score, bad_valid in [(score.astype(np.float64), score > 0), (score, score), (score[:, ::2], score[:, ::2] > 0)]:
        with pytest.raises(PluginError, match="Expected a dense") as caught:
            library.token_sample(bad_score, bad_valid, Attributes("threshold"))
        assert caught.value.code == "VP201"
    with pytest.raises(PluginError, match="must both be"):
        library.token_sample(score, np.ones((1, 3), bool), Attributes("threshold"))


def test_every_status_has_its_own_sentence(library: PluginLibrary) -> None:
    sentences = [library.raw.vp_status_string(status).decode() for status in range(18)]
    assert len(set(sentences)) == 18
    assert "unknown status" not in sentences
    assert library.raw.vp_status_string(99) == b"unknown status"
