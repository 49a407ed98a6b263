"""PruneSite through the C interface, on host memory: random sites, and calls of the twin and of the kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

INPUTS = ("x", "h", "query", "key", "value", "score", "theta", "valid", "patch")
TYPED = ("x", "h", "query", "key", "value")
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))  # by their number in the C interface
OUTPUTS = ("rows", "rows2", "index", "keep", "patch_out", "kept", "mask", "score_kept", "score_out", "bias")


class Sample(ctypes.Structure):
    _fields_ = (
        ("mode", ctypes.c_char_p), ("num_samples", ctypes.c_int64), ("threshold", ctypes.c_float), ("capacity", ctypes.c_int64),
        ("expected", ctypes.c_int64), ("pad_to_capacity", ctypes.c_int32),
    )  # fmt: skip


class Attributes(ctypes.Structure):
    _fields_ = (
        ("sample", Sample), ("form", ctypes.c_char_p), ("combine", ctypes.c_char_p), ("heads", ctypes.c_int64),
        ("prefix_tokens", ctypes.c_int64), ("originals", ctypes.c_int64),
    )  # fmt: skip


class Sizes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "patches", "width", "width2", "head_width"))


class Tensors(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in (*INPUTS, *OUTPUTS)) + tuple(
        (f"{name}_type", ctypes.c_int32) for name in TYPED
    )


def site(rng: np.random.Generator, form: str, combine: str, mode: str, patches: int, batch: int = 3) -> dict[str, Any]:
    """A random site: `attributes`, `sizes` and the arrays it reads."""
    heads, width, depth, prefix = (
        int(rng.integers(1, 4)),
        int(rng.integers(1, 40)),
        int(rng.integers(1, 300)),
        int(rng.integers(1, 3)),
    )
    tokens = prefix + patches
    ranking = combine != "nothing"

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    given = form == "given"
    arrays: dict[str, np.ndarray | None] = {
        "x": normal(batch, tokens, depth), "h": normal(batch, tokens, 17) if rng.integers(2) else None,
        "query": None if given else normal(batch, heads * width), "key": None if given else normal(batch, tokens, heads * width),
        "value": None if given else normal(batch, tokens, heads * width), "score": normal(batch, patches) if given else None,
        "theta": np.array(0.1, np.float32) if mode == "threshold" and not ranking else None,
        "valid": rng.random((batch, patches)) < 0.7 if rng.integers(2) and not ranking else None,
        "patch": rng.integers(0, patches + 2, (batch, patches)) if rng.integers(2) else None,
    }  # fmt: skip
    keep = int(rng.integers(1, patches + 1))
    padded = ranking or bool(rng.integers(2))
    sample = Sample(
        mode.encode(), int(rng.integers(1, 2 * patches + 1)), -3.4e38 if ranking else 0.0, keep if padded else 0, 0, padded
    )
    attributes = Attributes(sample, form.encode(), combine.encode(), heads, prefix, patches)
    second = arrays["h"]
    return {"attributes": attributes, "sizes": Sizes(batch, patches, depth, 0 if second is None else 17, width), "arrays": arrays}


def typed(rng: np.random.Generator, one: dict[str, Any]) -> dict[str, Any]:
    """The same site with every tensor that may have it in a type of its own, drawn by chance; one of the rows in a half type at least."""
    drawn = dict(zip(TYPED, rng.integers(0, 3, len(TYPED)), strict=True))
    drawn["h" if one["arrays"]["h"] is not None and rng.integers(2) else "x"] = rng.integers(1, 3)
    changed = {name: one["arrays"][name].astype(DTYPES[kind]) for name, kind in drawn.items() if one["arrays"][name] is not None}
    return {**one, "arrays": {**one["arrays"], **changed}}


def widened(one: dict[str, Any]) -> dict[str, Any]:
    """The same site in float32."""
    arrays = {
        name: value.astype(np.float32) if name in TYPED and value is not None else value for name, value in one["arrays"].items()
    }
    return {**one, "arrays": arrays}


def run(function: Any, one: dict[str, Any], workspace: Any = None) -> tuple[int, int, dict[str, np.ndarray]]:
    """Status, K and what was written, every output as [B,...] of K; workspace: the function that tells its size, for kernels."""
    sizes, attributes, arrays = one["sizes"], one["attributes"], one["arrays"]
    batch, patches, more = sizes.batch, sizes.patches, int(attributes.combine != b"nothing")
    tokens = attributes.prefix_tokens + patches + more
    second = np.float32 if arrays["h"] is None else arrays["h"].dtype
    room = {
        "rows": (tokens * sizes.width, arrays["x"].dtype), "rows2": (tokens * max(sizes.width2, 1), second), "index": (patches, np.int64),
        "keep": (patches, np.bool_), "patch_out": (patches + 1, np.int64), "kept": (patches, np.int64), "mask": (tokens, np.int32),
        "score_kept": (patches, np.float32), "score_out": (patches, np.float32), "bias": (tokens, np.float32),
    }  # fmt: skip
    held = {name: np.zeros(batch * size, dtype) for name, (size, dtype) in room.items()}
    if arrays["h"] is None:
        held.pop("rows2")
    read = {name: np.ascontiguousarray(value) for name, value in arrays.items() if value is not None}
    kinds = {f"{name}_type": DTYPES.index(read[name].dtype) for name in TYPED if name in read}
    tensors = Tensors(**{name: value.ctypes.data for name, value in (read | held).items()}, **kinds)
    count, needed = ctypes.c_int64(), ctypes.c_size_t()
    references = [ctypes.byref(part) for part in (attributes, sizes, tensors)]
    if workspace is None:
        status = function(*references, ctypes.byref(count))
    else:
        assert workspace(references[0], references[1], ctypes.byref(needed)) == 0
        memory = np.full(needed.value, 0xA5, np.uint8)
        status = function(*references, memory.ctypes.data_as(ctypes.c_void_p), needed, ctypes.byref(count), None)
    k = count.value
    return status, k, cut(held, one, k)


def cut(held: dict[str, np.ndarray], one: dict[str, Any], k: int) -> dict[str, np.ndarray]:
    """Of outputs with room for the largest K what belongs to this one, as [B,...]."""
    sizes, prefix, more = one["sizes"], one["attributes"].prefix_tokens, int(one["attributes"].combine != b"nothing")
    lengths = {
        "rows": (prefix + k + more) * sizes.width, "rows2": (prefix + k) * sizes.width2, "patch_out": k + more, "mask": prefix + k + more,
        "score_out": sizes.patches, "bias": prefix + k + more,
    }  # fmt: skip
    batch = sizes.batch
    return {name: value.ravel()[: batch * lengths.get(name, k)].reshape(batch, -1) for name, value in held.items()}
