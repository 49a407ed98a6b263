"""Rows that join others, weighted by masses: one small product, no scatter with a reduction, any number of members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter

LAST = float(2**22)  # more than any slot number, exact in float32


@dataclass(frozen=True)
class Joining:
    """Which slots join which.

    sources, targets: int64 [B,M]. active: float [B,M], 0 where a source stays after all and is its own target.
    """

    sources: Any
    targets: Any
    active: Any


def leaving(em: Emitter, into: Any, leaves: Any, most: Any) -> Joining:
    """List the slots that leave: into int64 [B,P], leaves float [B,P], most int64 [1], at least the largest number of an image."""
    outputs = [(FLOAT, None), (INT64, None)]
    active, sources = em.ops("TopK", [leaves, most], "leaving", outputs, axis=1)
    return Joining(sources, em.op("GatherElements", [into, sources], "targets", dtype=INT64, axis=1), active)


def join_rows(
    em: Emitter, x: Any, prefix: int, who: Joining, mass: Any, norm: Any, size: Any, images: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Write mass-weighted means, brought to the largest norm among their members, over the rows that others join.

    Of the listed slots with one target the lowest writes there, every other one over its own row, so that no place is written twice;
    a row that nothing joins is unchanged to the last bit.

    Args:
        em: where to write. x: [B,N,C], prefix first. who: the slots (patches, without the prefix). mass, norm: float [B,P].
        size: float [B,P] patches per row. images: number of its image for every entry of int64 [B,M,1].

    Returns:
        [B,N,C], and sizes [B,P]; rows that joined others are still in them.
    """
    across, behind = em.constant([1]), em.constant([2])

    def at(values: Any, slots: Any, label: str) -> Any:
        return em.op("GatherElements", [values, slots], label, axis=1)

    def column(values: Any, label: str, dtype: Any = FLOAT) -> Any:
        return em.op("Unsqueeze", [values, behind], label, dtype=dtype)

    def row(values: Any, label: str, dtype: Any = FLOAT) -> Any:
        return em.op("Unsqueeze", [values, across], label, dtype=dtype)

    same = em.op(
        "Equal", [column(who.targets, "targets/column", INT64), row(who.targets, "targets/row", INT64)], "same", dtype=BOOL
    )
    equal = em.op("Cast", [same], "same/float", to=1)
    shared = em.op("Mul", [equal, row(who.active, "active/row")], "shared")
    writes = _first(em, equal, who.sources)
    place = em.op("Where", [writes, who.targets, who.sources], "place", dtype=INT64)
    parts = em.op("Mul", [shared, row(at(mass, who.sources, "mass/leaving"), "mass/row")], "parts")
    joined = em.op("ReduceSum", [parts, behind], "mass/joined", keepdims=0)
    total = em.op("Add", [joined, at(mass, who.targets, "mass/own")], "mass/all")
    merges = em.op(
        "And", [writes, em.op("Greater", [joined, em.constant(0.0, FLOAT)], "merges/any", dtype=BOOL)], "merges", dtype=BOOL
    )
    own, left = _rows(em, x, prefix, who.targets, "own"), _rows(em, x, prefix, who.sources, "left")
    shares = em.op("Div", [parts, column(total, "mass/column")], "shares")
    mean = em.op("Add", [own, em.op("MatMul", [shares, em.op("Sub", [left, own], "step")], "mixed")], "mean")
    norms = em.op("Mul", [shared, row(at(norm, who.sources, "norm/leaving"), "norm/row")], "norm/members")
    largest = em.op(
        "Max", [reduced(em, "ReduceMax", norms, 2, "norm/joined", 0), at(norm, who.targets, "norm/own")], "norm/largest"
    )
    length = em.op("Max", [reduced(em, "ReduceL2", mean, 2, "norm/mean", 0), em.constant(1e-12, FLOAT)], "norm/length")
    scaled = em.op("Mul", [mean, column(em.op("Div", [largest, length], "norm/factor"), "norm/factor_column")], "kept_norm")
    fresh = em.op("Where", [column(merges, "merges/column", BOOL), scaled, left], "fresh")
    rows = column(place, "place/column", INT64)
    rows = em.op("Add", [rows, em.constant(prefix)], "place/rows", dtype=INT64) if prefix else rows
    written = em.op("ScatterND", [x, em.op("Concat", [images(rows), rows], "place/full", dtype=INT64, axis=2), fresh], "written")
    sizes = em.op("Mul", [shared, row(at(size, who.sources, "size/leaving"), "size/row")], "size/members")
    grown = em.op(
        "Add", [em.op("ReduceSum", [sizes, behind], "size/joined", keepdims=0), at(size, who.targets, "size/own")], "size/all"
    )
    values = em.op("Where", [merges, grown, at(size, who.sources, "size/left")], "size/fresh")
    return written, em.op("ScatterElements", [size, place, values], "size/written", axis=1)


def _first(em: Emitter, same: Any, sources: Any) -> Any:
    """Bool [B,M]: the lowest of the sources with one target; a target that is listed itself (and stays) is the lowest."""
    rank = em.op("Sub", [em.constant(LAST, FLOAT), em.op("Cast", [sources], "sources/float", to=1)], "rank")
    best = em.op("Mul", [same, em.op("Unsqueeze", [rank, em.constant([1])], "rank/row")], "rank/shared")
    return em.op("Equal", [reduced(em, "ReduceMax", best, 2, "rank/best", 0), rank], "writes", dtype=BOOL)


def _rows(em: Emitter, x: Any, prefix: int, slots: Any, label: str) -> Any:
    at = em.op("Unsqueeze", [slots, em.constant([2])], f"{label}/column", dtype=INT64)
    at = em.op("Add", [at, em.constant(prefix)], f"{label}/at", dtype=INT64) if prefix else at
    return em.take_rows(x, at, f"{label}/rows")


def reduced(em: Emitter, kind: str, x: Any, axis: int, label: str, keepdims: int = 1) -> Any:
    """ReduceMax, ReduceL2, ... over one axis; the axis is an input from opset 18 on."""
    if em.graph.opset < 18:
        return em.op(kind, [x], label, axes=[axis], keepdims=keepdims)
    return em.op(kind, [x, em.constant([axis])], label, keepdims=keepdims)


def ramp(em: Emitter, like: Any, bound: int, label: str) -> Any:
    """int64 [1,P]: 0, 1, ... for the columns of a tensor of at most `bound` (Range would leave builders without a bound)."""
    length = em.slice(em.op("Shape", [like], f"{label}/shape", dtype=INT64), 1, 2, 0, f"{label}/length", dtype=INT64)
    zero = em.constant([0])
    flat = em.op("Slice", [em.constant(np.arange(bound)), zero, length, zero], f"{label}/ramp", dtype=INT64)
    return em.op("Unsqueeze", [flat, zero], label, dtype=INT64)
