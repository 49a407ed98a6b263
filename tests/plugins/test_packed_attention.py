"""PackedAttention: host twin, CUDA kernel (run on the host by the emulator), ONNX Runtime operator and function against NumPy."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from vitprune.ops import packed_attention
from vitprune.ops.token_sample import DOMAIN
from vitprune.plugins import PluginLibrary
from vitprune.plugins.packed import CUDA_SIGNATURE, attend

# heads, width of a head, queries of every image, keys of every image
SHAPES = [
    (3, 16, [5, 1, 17, 40], [9, 1, 33, 70]),
    (2, 24, [0, 3, 2], [4, 0, 1]),
    (6, 64, [137], [197]),
    (1, 128, [3, 96], [64, 65]),
    (2, 7, [30, 2], [5, 6]),
]


def ends(counts: list[int]) -> np.ndarray:
    return np.r_[0, np.cumsum(counts)].astype(np.int64)


def tensors(shape: tuple[int, int, list[int], list[int]], seed: int = 0) -> dict[str, Any]:
    heads, width, queries, keys = shape
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {"query": rng.standard_normal((sum(queries), heads * width), np.float32)}
    made |= {name: rng.standard_normal((sum(keys), heads * width), np.float32) for name in ("key", "value")}
    made["bias"] = np.where(rng.random(sum(keys)) < 0.3, -1e4, rng.standard_normal(sum(keys))).astype(np.float32)
    return made | {"query_ends": ends(queries), "key_ends": ends(keys)}


def expected(given: dict[str, Any], heads: int, scale: float, bias: bool) -> np.ndarray:
    """Image by image, in float64."""
    out = np.zeros(given["query"].shape)
    width = out.shape[1] // heads
    asked, seen = given["query_ends"], given["key_ends"]
    for image in range(len(asked) - 1):
        own, theirs = slice(asked[image], asked[image + 1]), slice(seen[image], seen[image + 1])
        rows = {"query": own, "key": theirs, "value": theirs}
        q, k, v = (given[name][at].astype(np.float64).reshape(-1, heads, width).swapaxes(0, 1) for name, at in rows.items())
        if not k.shape[1]:
            continue
        logits = scale * q @ k.swapaxes(1, 2) + (given["bias"][theirs] if bias else 0.0)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[own] = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(-1, heads * width)
    return out


def model(heads: int, bias: bool, function: bool) -> bytes:
    names = ["query", "key", "value", "query_ends", "key_ends", *(["bias"] if bias else [])]
    node = helper.make_node(packed_attention.NAME, names, ["output"], domain=DOMAIN, num_heads=heads, scale=0.3)
    kinds = {"query_ends": TensorProto.INT64, "key_ends": TensorProto.INT64}
    shapes = {"query_ends": ["ends"], "key_ends": ["ends"], "bias": ["rows"]}
    inputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shapes.get(name, ["rows", "width"]))
        for name in names
    ]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["rows", "width"])]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)], ir_version=8)
    if function:
        made.functions.append(packed_attention.function(bias))
        onnx.checker.check_model(made)
    return made.SerializeToString()


def session(content: bytes, library: Path | None, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_forms_agree(shape: Any, bias: bool, library: PluginLibrary, emulated: ctypes.CDLL, ort_library: Path) -> None:
    given, heads = tensors(shape), shape[0]
    wanted = expected(given, heads, 0.3, bias)
    feeds = {name: value for name, value in given.items() if bias or name != "bias"}
    twin = attend(library, **feeds, heads=heads, scale=0.3)
    np.testing.assert_allclose(twin, wanted, atol=1e-5)
    for threads in (1, 2):
        found = session(model(heads, bias, function=False), ort_library, threads).run(None, feeds)[0]
        np.testing.assert_array_equal(found, twin)
    np.testing.assert_allclose(session(model(heads, bias, function=True), None).run(None, feeds)[0], wanted, atol=1e-5)
    np.testing.assert_allclose(kernel(emulated, given, heads, bias, "float32"), wanted, atol=1e-5)


def kernel(
    emulated: ctypes.CDLL, given: dict[str, Any], heads: int, bias: bool, dtype: str, longest: int | None = None
) -> np.ndarray:
    """The CUDA entry point on host memory; bfloat16 as the upper half of a float's bits."""
    emulated.vp_packed_attention_cuda.restype, emulated.vp_packed_attention_cuda.argtypes = CUDA_SIGNATURE
    asked = given["query_ends"]
    rows = [stored(given[name], dtype) for name in ("query", "key", "value")]
    output = np.full(rows[0].shape, 7, rows[0].dtype)
    status = emulated.vp_packed_attention_cuda(
        ("float32", "float16", "bfloat16").index(dtype), *(array.ctypes.data for array in rows),
        given["bias"].ctypes.data if bias else None, asked.ctypes.data, given["key_ends"].ctypes.data, len(asked) - 1, heads,
        rows[0].shape[1] // heads, longest or int(np.diff(asked).max()), 0.3, output.ctypes.data, None,
    )  # fmt: skip
    assert status == 0
    return (output.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else output.astype(np.float32)


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_on_the_device_round_once(dtype: str, emulated: ctypes.CDLL) -> None:
    """The kernel's result is the exact one of the rounded inputs, rounded: within half a unit in the last place and float32's own error."""
    given = tensors(SHAPES[0])
    for name in ("query", "key", "value"):
        rounded = stored(given[name], dtype)
        given[name] = (rounded.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else rounded.astype(np.float32)
    wanted = expected(given, 3, 0.3, bias=True)
    step = 2.0 ** (-11 if dtype == "float16" else -8)
    np.testing.assert_allclose(kernel(emulated, given, 3, True, dtype), wanted, rtol=1.001 * step, atol=4e-6)


def test_more_blocks_than_an_image_needs_change_nothing(emulated: ctypes.CDLL) -> None:
    given = tensors(SHAPES[0])
    usual = kernel(emulated, given, 3, True, "float32")
    np.testing.assert_array_equal(kernel(emulated, given, 3, True, "float32", longest=400), usual)


def test_keys_hidden_by_minus_infinity(library: PluginLibrary, emulated: ctypes.CDLL) -> None:
    """A whole tile of them, the first one too, and an image that has no others."""
    given = tensors((3, 16, [5, 4], [70, 33]))
    given["bias"][:40] = -np.inf
    given["bias"][70:] = -np.inf
    seen = {**given, "key_ends": ends([30, 0]), **{name: given[name][40:70] for name in ("key", "value", "bias")}}
    wanted = expected(seen, 3, 0.3, True)
    for found in (attend(library, **given, heads=3, scale=0.3), kernel(emulated, given, 3, True, "float32")):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert not found[5:].any()


def test_a_query_that_is_no_number_gives_none(library: PluginLibrary, emulated: ctypes.CDLL) -> None:
    """And no zeros, as if nothing were there to attend to."""
    given = tensors((3, 16, [5, 4], [70, 33]))
    given["query"][2] = np.nan
    for found in (attend(library, **given, heads=3, scale=0.3), kernel(emulated, given, 3, True, "float32")):
        assert np.isnan(found[2]).all()
        assert not np.isnan(np.delete(found, 2, axis=0)).any()


def test_rounding_to_half_is_numpys(emulated: ctypes.CDLL) -> None:
    """Two keys of equal weight: the output is the mean of two halves, which is as a rule between two halves, small and large ones."""
    rng = np.random.default_rng(3)
    scale = np.float32(10.0) ** rng.integers(-8, 4, (2, 128)).astype(np.float32)
    value = (rng.standard_normal((2, 128), np.float32) * scale[:1]).astype(np.float16).astype(np.float32)
    value[1, :64] = np.nextafter(value[0, :64].astype(np.float16), np.float16(np.inf)).astype(np.float32)  # a tie
    value[:, 64] = 65504
    none = np.zeros((2, 128), np.float32)
    given = {"query": none[:1], "key": none, "value": value, "bias": None, "query_ends": ends([1]), "key_ends": ends([2])}
    found = kernel(emulated, given, 1, False, "float16")[0]
    np.testing.assert_array_equal(found, ((value[0] + value[1]) / 2).astype(np.float16).astype(np.float32))


def test_bad_input_is_refused(library: PluginLibrary, ort_library: Path) -> None:
    given = tensors(SHAPES[0])
    operator = session(model(3, True, function=False), ort_library)
    for name, value, text in (
        ("query_ends", given["query_ends"][::-1].copy(), "rise"),
        ("key_ends", given["key_ends"] + 1, "rise"),
        ("key_ends", given["key_ends"][:-1], r"images \+ 1"),
        ("bias", given["bias"][:-1], "bias has a wrong shape"),
        ("value", given["value"][:-1], "one width"),
    ):
        with pytest.raises(Exception, match=text):
            operator.run(None, {**given, name: value})
    with pytest.raises(Exception, match="heads divide"):
        session(model(5, True, function=False), ort_library).run(None, given)
    with pytest.raises(Exception, match="rise from 0"):
        attend(library, **{**given, "key_ends": given["key_ends"][::-1].copy()}, heads=3, scale=0.3)
    with pytest.raises(Exception, match="scale"):
        attend(library, **given, heads=3, scale=0.0)


BATCHES = [(2, 3, 16, 7, 33), (3, 6, 64, 50, 50), (1, 1, 128, 96, 65), (4, 2, 7, 1, 5)]


def batch_model(heads: int, **kinds: int) -> bytes:
    """A `KeyBiasAttention` node; kinds: of its optional inputs."""
    names = ["query", "key", "value", *(name if name in kinds else "" for name in ("bias", "mask"))]
    node = helper.make_node("KeyBiasAttention", names, ["output"], domain=DOMAIN, num_heads=heads, scale=0.3)
    inputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), ["b", "n"] if name in kinds else ["b", "m", "c"])
        for name in names
        if name
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["b", "m", "c"])
    graph = helper.make_graph([node], "g", inputs, [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["nothing", "bias", "pads behind a bias", "mask", "mask and bias", "holes in a mask"])
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_a_batch_with_one_value_for_every_key(shape: tuple[int, ...], what: str, threads: int, ort_library: Path) -> None:
    images, heads, width, queries, keys = shape
    rng = np.random.default_rng(5)
    feeds: dict[str, Any] = {"query": rng.standard_normal((images, queries, heads * width), np.float32)}
    feeds |= {name: rng.standard_normal((images, keys, heads * width), np.float32) for name in ("key", "value")}
    bias, there = np.zeros((images, keys), np.float32), np.ones((images, keys), np.int32)
    if "bias" in what:
        bias = rng.standard_normal((images, keys)).astype(np.float32)
    if "mask" in what or "pads" in what:
        there = (np.arange(keys) <= rng.integers(0, keys, (images, 1))).astype(np.int32)
    if "holes" in what:
        there[:, ::3] = 0
        there[:, 1] = 1
    kinds = {}
    if "bias" in what:
        kinds["bias"] = TensorProto.FLOAT
        feeds["bias"] = np.where(there, bias, bias - np.float32(1e4)) if "pads" in what else bias
    if "mask" in what:
        kinds["mask"], feeds["mask"] = TensorProto.INT32, there
    found = session(batch_model(heads, **kinds), ort_library, threads).run(None, feeds)[0]
    q, k, v = (
        feeds[name].astype(np.float64).reshape(images, -1, heads, width).swapaxes(1, 2) for name in ("query", "key", "value")
    )
    logits = 0.3 * q @ k.swapaxes(2, 3) + np.where(there, bias, -np.inf)[:, None, None, :]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(images, queries, heads * width)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_batch_of_wrong_shapes_is_refused(ort_library: Path) -> None:
    rows, operator = np.zeros((2, 4, 6), np.float32), session(batch_model(3, mask=TensorProto.INT32), ort_library)
    good: dict[str, Any] = {"query": rows, "key": rows, "value": rows, "mask": np.zeros((2, 4), np.int32)}
    assert not operator.run(None, good)[0].any()  # nothing is there
    for name, value, text in (
        ("mask", good["mask"][:, :3], "mask has a wrong shape"),
        ("value", rows[:, :3], "value has a wrong shape"),
        ("key", rows[:1], "of one width"),
    ):
        with pytest.raises(Exception, match=text):
            operator.run(None, {**good, name: value})
    with pytest.raises(Exception, match="heads divide"):
        session(batch_model(4, mask=TensorProto.INT32), ort_library).run(None, good)
