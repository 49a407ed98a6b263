"""ToMe's bipartite matching in a graph: even token rows are set A, odd ones set B, prefix tokens take no part."""

from __future__ import annotations

from typing import Any

from vitprune.graph.emit import INT64, Emitter


def starts(prefix: int) -> tuple[int, int]:
    """First token row of A and of B among the patches."""
    return prefix + prefix % 2, prefix + 1 - prefix % 2


def every_second(em: Emitter, x: Any, first: int, label: str) -> Any:
    """x[:, first::2]."""
    end = em.constant([2**31 - 1])
    return em.op("Slice", [x, em.constant([first]), end, em.constant([1]), em.constant([2])], label)


def similarity(em: Emitter, unit: Any, prefix: int) -> Any:
    """Cosines [B,|A|,|B|] of unit rows [B,N,d]; a quarter of the full N x N product."""
    first_a, first_b = starts(prefix)
    rows = every_second(em, unit, first_a, "metric/a")
    columns = em.op("Transpose", [every_second(em, unit, first_b, "metric/b")], "metric/b_columns", perm=[0, 2, 1])
    return em.op("MatMul", [rows, columns], "similarity")


def partners(em: Emitter, similarity: Any, members: Any) -> Any:
    """Best partner in B of the members [B,r] of A, int64 [B,r]; ties to the lower one."""
    at = em.op("Unsqueeze", [members, em.constant([2])], "members/column", dtype=INT64)
    rows = em.op("GatherND", [similarity, at], "similarity/leaving", batch_dims=1)
    return em.op("ArgMax", [rows], "partners", dtype=INT64, axis=2, keepdims=0)


def spread(em: Emitter, members: Any, first: int, label: str) -> Any:
    """Rows `first + 2 * members`."""
    twice = em.op("Add", [members, members], f"{label}/twice", dtype=INT64)
    return twice if first == 0 else em.op("Add", [twice, em.constant(first)], label, dtype=INT64)
