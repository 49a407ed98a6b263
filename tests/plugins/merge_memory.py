"""Merging sites through the C interface, on host memory: random sites, and calls of the twin and of the kernels."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from site_memory import Attributes as SiteAttributes
from site_memory import Sample

KINDS = ("pair", "ward", "sampled")
INPUTS = (
    "x", "products", "metric", "gram", "attention", "query", "key", "value", "score", "bias", "size", "patch", "valid", "group",
)  # fmt: skip
OUTPUTS = ("rows", "size_out", "bias_out", "index", "keep", "group_out", "patch_out", "kept", "score_out")
_NUMBERS, _FLOAT, _INT, _WORD = ctypes.c_int64, ctypes.c_float, ctypes.c_int32, ctypes.c_char_p


class Attributes(ctypes.Structure):
    _fields_ = (
        ("kind", _WORD), ("prefix_tokens", _NUMBERS), ("most", _NUMBERS), ("padded", _INT), ("loses", _INT), ("proportional", _INT),
        ("floor", _FLOAT), ("pairs", _NUMBERS), ("by_threshold", _INT), ("threshold", _FLOAT), ("limit", _FLOAT), ("rounds", _NUMBERS),
        ("power", _FLOAT), ("everyone", _FLOAT), ("share", _FLOAT), ("site", SiteAttributes),
    )  # fmt: skip


class Sizes(ctypes.Structure):
    _fields_ = tuple((name, _NUMBERS) for name in ("batch", "patches", "width", "heads", "depth", "originals"))


class Tensors(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in (*INPUTS, *OUTPUTS))


def merging(rng: np.random.Generator, kind: str, patches: int, batch: int = 3, **wanted: Any) -> dict[str, Any]:
    """A random merging site: `attributes`, `sizes` and the arrays it reads; `wanted` overrides attributes.

    Coarse values, pads, twins among the rows, sizes, groups and the like come and go by chance.
    """
    prefix, width, depth, heads = (int(rng.integers(*span)) for span in ((0, 3), (1, 80), (1, 40), (1, 4)))
    if kind != "pair":
        prefix = max(prefix, 1)
    elif patches == 1:
        prefix = 1
    tokens = prefix + patches
    coarse = bool(rng.integers(2))

    def normal(*shape: int) -> np.ndarray:
        values = rng.standard_normal(shape).astype(np.float32)
        return np.round(values) if coarse else values

    def chance() -> bool:
        return bool(rng.integers(2))

    x = normal(batch, tokens, width)
    if chance():
        x[:, prefix + patches // 2 :] = x[:, prefix : prefix + patches - patches // 2]
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(INPUTS)
    originals = patches + int(rng.integers(0, 4))
    arrays |= {
        "x": x, "size": rng.integers(1, 5, (batch, tokens)).astype(np.float32) if chance() else None,
        "valid": rng.random((batch, patches)) < 0.7 if chance() else None,
    }  # fmt: skip
    if chance():
        arrays["patch"] = np.stack([rng.permutation(originals)[:patches] for _ in range(batch)])
    if chance():
        arrays["group"] = np.stack([rng.integers(-1, originals, originals) for _ in range(batch)])
    attributes = Attributes(kind.encode(), prefix, 0, 0, chance(), chance(), 1e-6, 0, 0, 0.0, 0.0, 0, 0.0, 1.0, 1.0)
    attributes.site = SiteAttributes(Sample(b"threshold", 1, 0.0, 0, 0, 0), b"given", b"nothing", heads, prefix, patches)
    if kind == "pair":
        _pairs(rng, attributes, arrays, (batch, patches, prefix, depth), normal)
        heads = 0
    elif kind == "ward":
        heads = _wards(rng, attributes, arrays, (batch, patches, prefix, depth, heads), normal)
    else:
        _sampled(rng, attributes, arrays, (batch, patches, prefix, depth, heads), normal)
    for name, value in wanted.items():
        setattr(attributes, name, value)
    sizes = Sizes(batch, patches, width, heads, depth, originals if arrays["group"] is not None else 0)
    return {"attributes": attributes, "sizes": sizes, "arrays": arrays}


def alike(rng: Any, metric: np.ndarray, prefix: int) -> None:
    """Most rows become one row in other orders of its channels, the rest the same number in every channel: cosines differ by roundings."""
    row = rng.standard_normal(metric.shape[2]).astype(np.float32)
    for place in np.ndindex(*metric[:, prefix:].shape[:2]):
        metric[:, prefix:][place] = rng.permutation(row) if rng.random() < 0.7 else np.float32(0.3)


def _pairs(rng: Any, attributes: Attributes, arrays: Any, sizes: tuple[int, ...], normal: Any) -> None:
    batch, patches, prefix, depth = sizes
    arrays["metric"] = normal(batch, prefix + patches, depth)
    if rng.integers(3) == 0:
        alike(rng, arrays["metric"], prefix)
    rows = arrays["metric"][:, prefix:]
    a, b = rows[:, prefix % 2 :: 2], rows[:, 1 - prefix % 2 :: 2]
    arrays["products"] = np.ascontiguousarray(a @ b.transpose(0, 2, 1))
    attributes.pairs = int(rng.integers(0, patches // 2 + 2))
    attributes.by_threshold = int(rng.integers(2))
    attributes.threshold = float(rng.choice([-2.0, 0.0, 0.3, 0.9, 2.0]))
    attributes.most = int(rng.choice([0, max(1, patches // 2), patches]))
    attributes.padded = int(attributes.most == patches)


def _wards(rng: Any, attributes: Attributes, arrays: Any, sizes: tuple[int, ...], normal: Any) -> int:
    batch, patches, prefix, depth, heads = sizes
    rows = arrays["x"][:, prefix:]
    arrays["gram"] = np.ascontiguousarray(rows @ rows.transpose(0, 2, 1))
    attributes.limit, attributes.pairs = (
        float(rng.choice([0.0, 0.5, 2.0, 1e6])),
        int(rng.choice([-1, -1, 0, 1, patches // 3, patches])),
    )
    attributes.rounds = int(rng.integers(0, 4))
    attributes.power = float(rng.choice([0.0, 0.4, 1.0, -0.5]))
    attributes.everyone, attributes.share = float(patches + 1), 1 / heads
    attributes.most = int(rng.choice([0, max(1, patches // 3), patches]))
    attributes.padded = int(attributes.most > 0 and rng.integers(2))
    form = rng.integers(3)
    if form == 0:
        arrays["query"], arrays["key"] = (normal(batch, prefix + patches, heads * depth) for _ in range(2))
        arrays["bias"] = rng.choice(np.float32([0, -1e4, 0.7]), (batch, prefix + patches)) if rng.integers(2) else None
        return heads
    shape = (batch, prefix + patches, heads) if form == 1 else (batch, patches)
    arrays["attention"] = rng.random(shape).astype(np.float32) / patches
    return heads if form == 1 else 0


def _sampled(rng: Any, attributes: Attributes, arrays: Any, sizes: tuple[int, ...], normal: Any) -> None:
    batch, patches, prefix, depth, heads = sizes
    tokens = prefix + patches
    arrays["metric"] = normal(batch, tokens, heads * depth)
    if rng.integers(2):
        alike(rng, arrays["metric"], prefix)
    form = str(rng.choice(["given", "per_head", "pooled", "mean"]))
    if form == "given":
        arrays["score"] = normal(batch, patches)
    else:
        arrays["query"] = normal(batch, heads * depth)
        arrays["key"], arrays["value"] = (normal(batch, tokens, heads * depth) for _ in range(2))
        arrays["bias"] = normal(batch, tokens) if rng.integers(2) else None
    mode = str(rng.choice(["inverse_transform", "inverse_transform_official", "threshold"]))
    keep = int(rng.integers(1, patches + 1))
    padded = int(rng.integers(2))
    attributes.most = keep if padded or rng.integers(2) else 0
    attributes.padded = padded
    sample = Sample(mode.encode(), int(rng.integers(1, 2 * patches + 1)), 0.0, attributes.most, 0, padded)
    attributes.site = SiteAttributes(sample, form.encode(), b"nothing", heads, prefix, patches)


def written(one: dict[str, Any], room: int | None = None) -> dict[str, tuple[int, Any]]:
    """Elements and type of every output with `room` slots per image, the largest K if None."""
    sizes, attributes = one["sizes"], one["attributes"]
    slots = max(sizes.patches, attributes.most) if room is None else room
    tokens = attributes.prefix_tokens + slots
    held = {
        "rows": (tokens * sizes.width, np.float32), "size_out": (tokens, np.float32), "bias_out": (tokens, np.float32),
        "index": (slots, np.int64), "keep": (slots, np.bool_), "group_out": (sizes.originals, np.int64), "patch_out": (slots, np.int64),
        "kept": (slots, np.int64), "score_out": (sizes.patches, np.float32),
    }  # fmt: skip
    absent = {*one.get("without", ()), *([] if attributes.kind == b"sampled" else ["score_out"])}
    absent |= {"group_out"} if one["arrays"]["group"] is None else set()
    return {name: (sizes.batch * size, dtype) for name, (size, dtype) in held.items() if name not in absent}


def run(
    function: Any, one: dict[str, Any], workspace: Any = None, room: int | None = None
) -> tuple[int, int, dict[str, np.ndarray]]:
    """Status, K and what was written, every output as [B,...] of K.

    `workspace`: the function that tells its size, for kernels; `room` as in `written`.
    """
    held = {name: np.zeros(size, dtype) for name, (size, dtype) in written(one, room).items()}
    read = {name: np.ascontiguousarray(value) for name, value in one["arrays"].items() if value is not None}
    tensors = Tensors(**{name: value.ctypes.data for name, value in (read | held).items()})
    count, needed = ctypes.c_int64(), ctypes.c_size_t()
    references = [ctypes.byref(part) for part in (one["attributes"], one["sizes"], tensors)]
    if workspace is None:
        status = function(*references, ctypes.byref(count))
    else:
        assert workspace(references[0], references[1], ctypes.byref(needed)) == 0
        memory = np.full(needed.value, 0xA5, np.uint8)
        status = function(*references, memory.ctypes.data_as(ctypes.c_void_p), needed, ctypes.byref(count), None)
    return status, count.value, cut(held, one, count.value)


def cut(held: dict[str, np.ndarray], one: dict[str, Any], k: int) -> dict[str, np.ndarray]:
    """Of outputs with room for the largest K what belongs to this one, as [B,...]."""
    sizes, tokens = one["sizes"], one["attributes"].prefix_tokens + k
    lengths = {
        "rows": tokens * sizes.width, "size_out": tokens, "bias_out": tokens, "group_out": sizes.originals, "score_out": sizes.patches,
    }  # fmt: skip
    return {name: value.ravel()[: sizes.batch * lengths.get(name, k)].reshape(sizes.batch, -1) for name, value in held.items()}
