"""ToMe's bipartite matching in a graph: even token rows are set A, odd ones set B, prefix tokens take no part."""

from __future__ import annotations

from vitprune.graph.emit import INT64, Emitter
from vitprune.graph.types import Tensor


def starts(prefix: int) -> tuple[int, int]:
    """First token row of A and of B among the patches."""
    return prefix + prefix % 2, prefix + 1 - prefix % 2


def every_second(emit: Emitter, x: Tensor, first: int, label: str) -> Tensor:
    """x[:, first::2]."""
    end = emit.constant([2**31 - 1])
    return emit.op("Slice", [x, emit.constant([first]), end, emit.constant([1]), emit.constant([2])], label)


def similarity(emit: Emitter, unit: Tensor, prefix: int) -> Tensor:
    """Cosines [B,|A|,|B|] of unit rows [B,N,d]; a quarter of the full N x N product."""
    first_a, first_b = starts(prefix)
    rows = every_second(emit, unit, first_a, "metric/a")
    columns = emit.op("Transpose", [every_second(emit, unit, first_b, "metric/b")], "metric/b_columns", perm=[0, 2, 1])
    return emit.op("MatMul", [rows, columns], "similarity")


def partners(emit: Emitter, similarity: Tensor, members: Tensor) -> Tensor:
    """Best partner in B of the members [B,r] of A, int64 [B,r]; ties to the lower one."""
    at = emit.op("Unsqueeze", [members, emit.constant([2])], "members/column", dtype=INT64)
    rows = emit.op("GatherND", [similarity, at], "similarity/leaving", batch_dims=1)
    return emit.op("ArgMax", [rows], "partners", dtype=INT64, axis=2, keepdims=0)


def spread(emit: Emitter, members: Tensor, first: int, label: str) -> Tensor:
    """Rows `first + 2 * members`."""
    twice = emit.op("Add", [members, members], f"{label}/twice", dtype=INT64)
    return twice if first == 0 else emit.op("Add", [twice, emit.constant(first)], label, dtype=INT64)
