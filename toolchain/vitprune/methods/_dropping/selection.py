"""Pieces shared by passes that keep a constant number of tokens, or that take rows out between parts of a block."""

from __future__ import annotations

from collections.abc import Callable

from vitprune.graph.canonical import token_rows
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Tensor, given, redirect


def ascending(emit: Emitter, index: Tensor, count: Tensor) -> Tensor:
    """Sort positions [B,K] within each image; count int64 [1] = K. Float keys: exact to 2**24, and every builder sorts them."""
    key = emit.op("Cast", [index], "top/key", to=1)
    ordered, _ = emit.ops("TopK", [key, count], "top/ascending", [(FLOAT, None), (INT64, None)], axis=1, largest=0, sorted=1)
    return emit.op("Cast", [ordered], "top/index", dtype=INT64, to=7)


def top_k(emit: Emitter, score: Tensor, keep: int) -> Tensor:
    """Positions int64 [B,keep] of the largest of score [B,P], ascending; ties go to the lower index."""
    count = emit.constant([keep])
    _, index = emit.ops("TopK", [score, count], "top", [(FLOAT, None), (INT64, None)], axis=1, largest=1, sorted=1)
    return ascending(emit, index, count)


def track(surgery: Surgery, emit: Emitter, index: Tensor) -> Tensor:
    """Note a selection without pad slots, index [B,K]; returns the token rows [B,prefix+K,1] to gather.

    Numbers from `patches` on belong to tokens that a method added; `kept` shows -1 for them.
    """
    patches = surgery.anatomy.patches
    if surgery.patch is None:
        surgery.patch, listed = index, index
    else:
        surgery.patch = emit.op("GatherElements", [surgery.patch, index], "patch", dtype=INT64, axis=1)
        real = emit.op("Less", [surgery.patch, emit.constant(patches)], "is_patch", dtype=BOOL)
        listed = emit.op("Where", [real, surgery.patch, emit.constant(-1)], "kept", dtype=INT64)
    surgery.kept.append(listed)
    return emit.op("Unsqueeze", [token_rows(surgery, emit, index), emit.constant([2])], "rows/column", dtype=INT64)


def append_slot(surgery: Surgery, emit: Emitter) -> None:
    """One live slot that is not a patch follows the present ones (needs `track` before)."""
    first = emit.slice(given(surgery.patch), 0, 1, 1, "added/like", dtype=INT64)
    nothing = emit.op("Sub", [first, first], "added/zero", dtype=INT64)
    number = emit.op("Add", [nothing, emit.constant(surgery.anatomy.patches)], "added/number", dtype=INT64)
    surgery.patch = emit.op("Concat", [given(surgery.patch), number], "added/patch", dtype=INT64, axis=1)


def splice(surgery: Surgery, name: str, make: Callable[[Tensor], Tensor]) -> None:
    """Put what `make` makes of a tensor of the dense graph between it and all who read it so far."""
    old = surgery.tensors[name]
    readers = list(old.outputs)
    new = make(old)
    redirect(readers, old, new)
    surgery.tensors[name] = new
