"""Pieces shared by passes that keep a constant number of tokens, or that take rows out between parts of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitprune.graph.canonical import token_rows
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery


def ascending(em: Emitter, index: Any, count: Any) -> Any:
    """Sort positions [B,K] within each image; count int64 [1] = K. Float keys: exact to 2**24, and every builder sorts them."""
    key = em.op("Cast", [index], "top/key", to=1)
    ordered, _ = em.ops("TopK", [key, count], "top/ascending", [(FLOAT, None), (INT64, None)], axis=1, largest=0, sorted=1)
    return em.op("Cast", [ordered], "top/index", dtype=INT64, to=7)


def top_k(em: Emitter, score: Any, keep: int) -> Any:
    """Positions int64 [B,keep] of the largest of score [B,P], ascending; ties go to the lower index."""
    count = em.constant([keep])
    _, index = em.ops("TopK", [score, count], "top", [(FLOAT, None), (INT64, None)], axis=1, largest=1, sorted=1)
    return ascending(em, index, count)


def track(surgery: Surgery, em: Emitter, index: Any) -> Any:
    """Note a selection without pad slots, index [B,K]; returns the token rows [B,prefix+K,1] to gather.

    Numbers from `patches` on belong to tokens that a method added; `kept` shows -1 for them.
    """
    patches = surgery.anatomy.patches
    if surgery.patch is None:
        surgery.patch, listed = index, index
    else:
        surgery.patch = em.op("GatherElements", [surgery.patch, index], "patch", dtype=INT64, axis=1)
        real = em.op("Less", [surgery.patch, em.constant(patches)], "is_patch", dtype=BOOL)
        listed = em.op("Where", [real, surgery.patch, em.constant(-1)], "kept", dtype=INT64)
    surgery.kept.append(listed)
    return em.op("Unsqueeze", [token_rows(surgery, em, index), em.constant([2])], "rows/column", dtype=INT64)


def append_slot(surgery: Surgery, em: Emitter) -> None:
    """One live slot that is not a patch follows the present ones (needs `track` before)."""
    first = em.slice(surgery.patch, 0, 1, 1, "added/like", dtype=INT64)
    nothing = em.op("Sub", [first, first], "added/zero", dtype=INT64)
    number = em.op("Add", [nothing, em.constant(surgery.anatomy.patches)], "added/number", dtype=INT64)
    surgery.patch = em.op("Concat", [surgery.patch, number], "added/patch", dtype=INT64, axis=1)


def splice(surgery: Surgery, name: str, emit: Callable[[Any], Any]) -> None:
    """Put what `emit` makes of a tensor of the dense graph between it and all who read it so far."""
    old = surgery.tensors[name]
    readers = list(old.outputs)
    new = emit(old)
    for node in readers:
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    surgery.tensors[name] = new
