"""Rows that join others, weighted by masses: one small product, no scatter with a reduction, any number of members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.types import Tensor

LAST = float(2**22)  # more than any slot number, exact in float32


@dataclass(frozen=True)
class Joining:
    """Which slots join which.

    sources, targets: int64 [B,M]. active: float [B,M], 0 where a source stays after all and is its own target.
    """

    sources: Tensor
    targets: Tensor
    active: Tensor


def leaving(emit: Emitter, into: Tensor, leaves: Tensor, most: Tensor) -> Joining:
    """List the slots that leave: into int64 [B,P], leaves float [B,P], most int64 [1], at least the largest number of an image."""
    outputs = [(FLOAT, None), (INT64, None)]
    active, sources = emit.ops("TopK", [leaves, most], "leaving", outputs, axis=1)
    return Joining(sources, emit.op("GatherElements", [into, sources], "targets", dtype=INT64, axis=1), active)


def join_rows(
    emit: Emitter,
    x: Tensor,
    prefix: int,
    who: Joining,
    mass: Tensor,
    norm: Tensor,
    size: Tensor,
    images: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Write mass-weighted means, brought to the largest norm among their members, over the rows that others join.

    Of the listed slots with one target the lowest writes there, every other one over its own row, so that no place is written twice;
    a row that nothing joins is unchanged to the last bit.

    Args:
        emit: where to write. x: [B,N,C], prefix first. who: the slots (patches, without the prefix). mass, norm: float [B,P].
        size: float [B,P] patches per row. images: number of its image for every entry of int64 [B,M,1].

    Returns:
        [B,N,C], and sizes [B,P]; rows that joined others are still in them.
    """
    across, behind = emit.constant([1]), emit.constant([2])

    def at(values: Tensor, slots: Tensor, label: str) -> Tensor:
        return emit.op("GatherElements", [values, slots], label, axis=1)

    def column(values: Tensor, label: str, dtype: DTypeLike = FLOAT) -> Tensor:
        return emit.op("Unsqueeze", [values, behind], label, dtype=dtype)

    def row(values: Tensor, label: str, dtype: DTypeLike = FLOAT) -> Tensor:
        return emit.op("Unsqueeze", [values, across], label, dtype=dtype)

    same = emit.op(
        "Equal", [column(who.targets, "targets/column", INT64), row(who.targets, "targets/row", INT64)], "same", dtype=BOOL
    )
    equal = emit.op("Cast", [same], "same/float", to=1)
    shared = emit.op("Mul", [equal, row(who.active, "active/row")], "shared")
    writes = _first(emit, equal, who.sources)
    place = emit.op("Where", [writes, who.targets, who.sources], "place", dtype=INT64)
    parts = emit.op("Mul", [shared, row(at(mass, who.sources, "mass/leaving"), "mass/row")], "parts")
    joined = emit.op("ReduceSum", [parts, behind], "mass/joined", keepdims=0)
    total = emit.op("Add", [joined, at(mass, who.targets, "mass/own")], "mass/all")
    merges = emit.op(
        "And", [writes, emit.op("Greater", [joined, emit.constant(0.0, FLOAT)], "merges/any", dtype=BOOL)], "merges", dtype=BOOL
    )
    own, left = _rows(emit, x, prefix, who.targets, "own"), _rows(emit, x, prefix, who.sources, "left")
    shares = emit.op("Div", [parts, column(total, "mass/column")], "shares")
    mean = emit.op("Add", [own, emit.op("MatMul", [shares, emit.op("Sub", [left, own], "step")], "mixed")], "mean")
    norms = emit.op("Mul", [shared, row(at(norm, who.sources, "norm/leaving"), "norm/row")], "norm/members")
    largest = emit.op(
        "Max", [emit.reduce("ReduceMax", norms, 2, "norm/joined"), at(norm, who.targets, "norm/own")], "norm/largest"
    )
    length = emit.op("Max", [emit.reduce("ReduceL2", mean, 2, "norm/mean"), emit.constant(1e-12, FLOAT)], "norm/length")
    scaled = emit.op("Mul", [mean, column(emit.op("Div", [largest, length], "norm/factor"), "norm/factor_column")], "kept_norm")
    fresh = emit.op("Where", [column(merges, "merges/column", BOOL), scaled, left], "fresh")
    rows = column(place, "place/column", INT64)
    rows = emit.op("Add", [rows, emit.constant(prefix)], "place/rows", dtype=INT64) if prefix else rows
    written = emit.op(
        "ScatterND", [x, emit.op("Concat", [images(rows), rows], "place/full", dtype=INT64, axis=2), fresh], "written"
    )
    sizes = emit.op("Mul", [shared, row(at(size, who.sources, "size/leaving"), "size/row")], "size/members")
    grown = emit.op(
        "Add", [emit.op("ReduceSum", [sizes, behind], "size/joined", keepdims=0), at(size, who.targets, "size/own")], "size/all"
    )
    values = emit.op("Where", [merges, grown, at(size, who.sources, "size/left")], "size/fresh")
    return written, emit.op("ScatterElements", [size, place, values], "size/written", axis=1)


def _first(emit: Emitter, same: Tensor, sources: Tensor) -> Tensor:
    """Bool [B,M]: the lowest of the sources with one target; a target that is listed itself (and stays) is the lowest."""
    rank = emit.op("Sub", [emit.constant(LAST, FLOAT), emit.op("Cast", [sources], "sources/float", to=1)], "rank")
    best = emit.op("Mul", [same, emit.op("Unsqueeze", [rank, emit.constant([1])], "rank/row")], "rank/shared")
    return emit.op("Equal", [emit.reduce("ReduceMax", best, 2, "rank/best"), rank], "writes", dtype=BOOL)


def _rows(emit: Emitter, x: Tensor, prefix: int, slots: Tensor, label: str) -> Tensor:
    at = emit.op("Unsqueeze", [slots, emit.constant([2])], f"{label}/column", dtype=INT64)
    at = emit.op("Add", [at, emit.constant(prefix)], f"{label}/at", dtype=INT64) if prefix else at
    return emit.take_rows(x, at, f"{label}/rows")


def ramp(emit: Emitter, like: Tensor, bound: int, label: str) -> Tensor:
    """int64 [1,P]: 0, 1, ... for the columns of a tensor of at most `bound` (Range would leave builders without a bound)."""
    length = emit.slice(emit.op("Shape", [like], f"{label}/shape", dtype=INT64), 1, 2, 0, f"{label}/length", dtype=INT64)
    zero = emit.constant([0])
    flat = emit.op("Slice", [emit.constant(np.arange(bound)), zero, length, zero], f"{label}/ramp", dtype=INT64)
    return emit.op("Unsqueeze", [flat, zero], label, dtype=INT64)
