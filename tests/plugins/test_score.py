"""TokenScoreSample: the scores are those of the two published forms, and kernels and host twin give the same bits."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from plugin_cases import assert_same
from plugin_device import HostMemory, score_sample

from vitprune.ops.token_sample import MODES, Attributes
from vitprune.plugins import PluginError, PluginLibrary, ScoreAttributes
from vitprune.plugins.library import DTYPES, FORMS


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """An array in an element type; bfloat16, by truncation, as its bits."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(array, dtype)
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def loaded(array: np.ndarray) -> np.ndarray:
    """The values of a stored array in double precision."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def attention_inputs(
    rng: np.random.Generator, dtype: str, batch: int = 2, heads: int = 3, patches: int = 49, width: int = 40, prefix: int = 1
) -> tuple[list[np.ndarray], np.ndarray]:
    shapes = [(batch, heads, width), *[(batch, heads, prefix + patches, width)] * 2]
    valid = rng.random((batch, patches)) < 0.8
    return [stored(rng.standard_normal(shape), dtype) for shape in shapes], valid


def formula(tensors: list[np.ndarray], valid: np.ndarray, setting: ScoreAttributes) -> np.ndarray:
    """The score as it is published, in double precision."""
    query, key, value = map(loaded, tensors)
    prefix = setting.prefix_tokens
    logits = np.einsum("bhd,bhnd->bhn", query, key) * (setting.scale or query.shape[-1] ** -0.5)
    everyone = np.concatenate([np.ones((len(valid), prefix), bool), valid], axis=1)
    exponential = np.exp(logits - logits.max(-1, keepdims=True)) * everyone[:, None]
    attention = (exponential / exponential.sum(-1, keepdims=True))[:, :, prefix:]
    squares = (value**2).sum(-1)[:, :, prefix:]
    if setting.form == "paper":
        return (attention * np.sqrt(squares)).sum(1)
    return attention.sum(1) * np.sqrt(squares.sum(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_scores_are_the_formula(library: PluginLibrary, form: str, dtype: str, prefix: int) -> None:
    tensors, valid = attention_inputs(np.random.default_rng(prefix), dtype, prefix=prefix)
    setting = ScoreAttributes(form, prefix_tokens=prefix)
    sampling = Attributes("inverse_transform", num_samples=30)
    score, *selection = library.token_score_sample(*tensors, valid, setting, sampling, dtype)
    np.testing.assert_allclose(score, formula(tensors, valid, setting), rtol=3e-6, atol=1e-9)
    assert_same(tuple(selection), score, valid, sampling)


@pytest.mark.parametrize(("form", "shares"), [("paper", (0.5556, 0.4444)), ("official", (0.5859, 0.4141))])
def test_two_heads_two_tokens_by_hand(library: PluginLibrary, form: str, shares: tuple[float, float]) -> None:
    # attention .6 .1 and .1 .3 (the class token has the rest), value norms 1 5 and 4 1
    attention = np.array([[[0.3, 0.6, 0.1], [0.6, 0.1, 0.3]]])
    norms = np.array([[[0.0, 1.0, 5.0], [0.0, 4.0, 1.0]]])
    tensors = [stored(a, "float32") for a in (np.ones((1, 2, 1)), np.log(attention)[..., None], norms[..., None])]
    setting = ScoreAttributes(form, scale=1.0)
    score, *_ = library.token_score_sample(*tensors, np.ones((1, 2), bool), setting, Attributes("threshold"))
    np.testing.assert_allclose(score[0] / score.sum(), shares, atol=5e-5)


def test_padded_tokens_change_nothing(library: PluginLibrary) -> None:
    tensors, valid = attention_inputs(np.random.default_rng(8), "float32")
    setting, sampling = ScoreAttributes(), Attributes("inverse_transform", num_samples=20)
    before = library.token_score_sample(*tensors, valid, setting, sampling)
    for tensor in tensors[1:]:
        tensor[:, :, 1:][np.broadcast_to(~valid[:, None], (2, 3, 49))] = 77
    after = library.token_score_sample(*tensors, valid, setting, sampling)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_emulated_kernel_has_the_bits_of_the_twin(library: PluginLibrary, emulated: ctypes.CDLL, form: str, dtype: str) -> None:
    rng = np.random.default_rng(11)
    for mode, patches, width, batch in [(MODES[0], 49, 64, 2), (MODES[1], 70, 20, 1), (MODES[2], 300, 33, 3)]:
        tensors, valid = attention_inputs(rng, dtype, batch=batch, heads=2, patches=patches, width=width, prefix=2)
        setting = ScoreAttributes(form, prefix_tokens=2)
        sampling = Attributes(mode, num_samples=patches // 2, threshold=0.05, capacity=40)
        twin = library.token_score_sample(*tensors, valid, setting, sampling, dtype)
        kernel = score_sample(emulated, HostMemory(), tensors, valid, setting, sampling, dtype)
        np.testing.assert_array_equal(kernel[0].view(np.uint32), twin[0].view(np.uint32))
        for ours, theirs in zip(kernel[1:], twin[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_half_precision_subnormals_and_infinities_are_exact(library: PluginLibrary) -> None:
    # attention 1 on a single patch, value norm = |value|: the score is the widened element
    halves = np.array([0x0001, 0x03FF, 0x0400, 0x3C01, 0x7BFF, 0x8001], np.uint16).view(np.float16)
    for half in halves:
        tensors = [np.zeros((1, 1, 1), np.float16), np.zeros((1, 1, 1, 1), np.float16), half.reshape(1, 1, 1, 1)]
        setting = ScoreAttributes(prefix_tokens=0)
        score, *_ = library.token_score_sample(*tensors, np.ones((1, 1), bool), setting, Attributes("threshold"), "float16")
        squared = np.float32(half) * np.float32(half)
        assert score[0, 0] == np.sqrt(squared)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (ScoreAttributes("mean"), "unknown score form"),
        (ScoreAttributes(scale=-1.0), "scale"),
        (ScoreAttributes(scale=float("nan")), "scale"),
    ],
)
def test_bad_score_attributes_are_refused(library: PluginLibrary, setting: ScoreAttributes, sentence: str) -> None:
    tensors, valid = attention_inputs(np.random.default_rng(0), "float32")
    with pytest.raises(PluginError, match=sentence):
        library.token_score_sample(*tensors, valid, setting, Attributes("threshold"))


def test_disagreeing_shapes_are_refused(library: PluginLibrary) -> None:
    tensors, valid = attention_inputs(np.random.default_rng(0), "float32")
    with pytest.raises(PluginError, match="must have the shape"):
        library.token_score_sample(*tensors, valid, ScoreAttributes(prefix_tokens=2), Attributes("threshold"))
    with pytest.raises(PluginError, match="Unknown dtype"):
        library.token_score_sample(*tensors, valid, ScoreAttributes(), Attributes("threshold"), "float64")
