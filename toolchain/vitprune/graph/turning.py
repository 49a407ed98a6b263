"""Rotary positions in a graph under rewriting: tables follow the rows that are there."""

from __future__ import annotations

import hashlib

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.emit import BOOL, FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Rows, Surgery
from vitprune.graph.types import Tensor, given
from vitprune.support.attention import Rotation


def turned(surgery: Surgery, emit: Emitter, block: Block, x: Tensor, label: str) -> Tensor:
    """Flat queries or keys [B,N,H*d] of the rows that are there now, with their positions.

    Rotary ones turn them; for position biases it is noted which rows they are.
    """
    rotation = block.rotation
    if rotation is None:
        return _noted(surgery, block, x)
    cos, sin = tables(surgery, rotation)
    heads, width = block.heads, block.head_dim
    split = emit.op("Reshape", [x, emit.constant([0, 0, heads, width])], f"{label}/rotary/heads")
    partners = _partners(emit, split, rotation.half, heads, width, f"{label}/rotary")
    whole = emit.op("Mul", [split, cos], f"{label}/rotary/cos")
    placed = emit.op("Add", [whole, emit.op("Mul", [partners, sin], f"{label}/rotary/sin")], f"{label}/rotary/placed")
    return _noted(surgery, block, emit.op("Reshape", [placed, emit.constant([0, 0, heads * width])], f"{label}/rotary"))


def _noted(surgery: Surgery, block: Block, x: Tensor) -> Tensor:
    """Queries or keys, with a note of which rows they are, where position biases need it (`graph.biasing`)."""
    if block.position_bias is not None:
        surgery.rows_of[x.name] = Rows(surgery.patch, surgery.members)
    return x


def _partners(emit: Emitter, x: Tensor, half: bool, heads: int, width: int, label: str) -> Tensor:
    """The other channel of every pair of [B,N,H,d], negated where it comes second."""
    if half:
        first, second = emit.slice(x, 0, width // 2, 3, f"{label}/first"), emit.slice(x, width // 2, None, 3, f"{label}/second")
        return emit.op("Concat", [emit.op("Neg", [second], f"{label}/minus"), first], f"{label}/partners", axis=3)
    pairs = emit.op("Reshape", [x, emit.constant([0, 0, heads, width // 2, 2])], f"{label}/pairs")
    first, second = emit.slice(pairs, 0, 1, 4, f"{label}/first"), emit.slice(pairs, 1, 2, 4, f"{label}/second")
    swapped = emit.op("Concat", [emit.op("Neg", [second], f"{label}/minus"), first], f"{label}/swapped", axis=4)
    return emit.op("Reshape", [swapped, emit.constant([0, 0, heads, width])], f"{label}/partners")


def tables(surgery: Surgery, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B or 1,N,h,d] of the rows that are there now; blocks with the same tables share them."""
    digest = hashlib.sha256(rotation.cos.tobytes() + rotation.sin.tobytes()).hexdigest()
    key = (digest, id(surgery.patch), id(surgery.members))
    if key not in surgery.tables:
        emit = surgery.emitter.child(f"rotary{len(surgery.tables)}")
        surgery.tables[key] = (_rows(surgery, emit, rotation.cos, 1.0, "cos"), _rows(surgery, emit, rotation.sin, 0.0, "sin"))
    return surgery.tables[key]


def _rows(surgery: Surgery, emit: Emitter, table: np.ndarray, none: float, label: str) -> Tensor:
    """Of a table [h,P,d] the rows that are there; prefix tokens and added ones have the value `none`."""
    heads, patches, width = table.shape
    prefix = surgery.anatomy.prefix
    flat = table.transpose(1, 0, 2).reshape(patches, heads * width)
    front = np.full((prefix, heads * width), none, np.float32)
    if surgery.members is not None:
        rows = emit.op("MatMul", [surgery.members, emit.constant(flat, FLOAT)], f"{label}/means")
        if prefix:
            ahead = emit.op(
                "Expand", [emit.constant(front[None], FLOAT), like_images(surgery, emit.child(label))], f"{label}/prefix"
            )
            rows = emit.op("Concat", [ahead, rows], f"{label}/rows", axis=1)
        return emit.op("Reshape", [rows, emit.constant([0, 0, heads, width])], label)
    if surgery.patch is None:
        return emit.constant(np.concatenate([front, flat]).reshape(1, prefix + patches, heads, width), FLOAT)
    added = np.full((1, heads * width), none, np.float32)
    behind = emit.op("Gather", [emit.constant(np.concatenate([flat, added]), FLOAT), surgery.patch], f"{label}/patches", axis=0)
    if prefix:
        ahead = emit.op("Expand", [emit.constant(front[None], FLOAT), like_images(surgery, emit.child(label))], f"{label}/prefix")
        behind = emit.op("Concat", [ahead, behind], f"{label}/rows", axis=1)
    return emit.op("Reshape", [behind, emit.constant([0, 0, heads, width])], label)


def like_images(surgery: Surgery, emit: Emitter) -> Tensor:
    """Shape [B,1,1]."""
    if (batch := surgery.recipe.graph.static_batch) is not None:
        return emit.constant([batch, 1, 1])
    count = emit.op("Shape", [surgery.graph.inputs[0]], "batch", dtype=INT64, start=0, end=1)
    return emit.op("Concat", [count, emit.constant([1, 1])], "batch/shape", dtype=INT64, axis=0)


def members(surgery: Surgery, emit: Emitter, group: Tensor) -> Tensor:
    """Shares of the original patches in the rows that are there, [B,K,P]; group int64 [B,P]: the patch that represents each one's row."""
    own = emit.op("Unsqueeze", [given(surgery.patch), emit.constant([2])], "members/rows", dtype=INT64)
    theirs = emit.op("Unsqueeze", [group, emit.constant([1])], "members/patches", dtype=INT64)
    hits = emit.op("Cast", [emit.op("Equal", [own, theirs], "members/equal", dtype=BOOL)], "members/hits", to=1)
    count = emit.op("ReduceSum", [hits, emit.constant([2])], "members/count", keepdims=1)
    return emit.op("Div", [hits, emit.op("Max", [count, emit.constant(1.0, FLOAT)], "members/at_least_one")], "members")
