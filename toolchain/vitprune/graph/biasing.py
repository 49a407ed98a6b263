"""Position biases in a graph under rewriting: rows follow the queries that are there, columns the keys."""

from __future__ import annotations

import hashlib

import numpy as np

from vitprune.graph.anatomy.find import Block
from vitprune.graph.emit import FLOAT, INT64, Emitter
from vitprune.graph.passes.base import Rows, Surgery
from vitprune.graph.turning import like_images
from vitprune.graph.types import Tensor
from vitprune.support.attention import PositionBias


def logit_bias(surgery: Surgery, emit: Emitter, block: Block, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor | None:
    """What is added to the attention logits of flat queries [B,M,H*d] and keys [B,N,H*d]: position biases and bias [B,1,1,N] or None."""
    if block.position_bias is None:
        return bias
    asking, asked = surgery.rows_of[query.name], surgery.rows_of[key.name]
    found = _between(surgery, block.position_bias, asking, asked)
    return found if bias is None else emit.op("Add", [found, bias], "positions/bias")


def cls_bias(surgery: Surgery, emit: Emitter, block: Block, key: Tensor, label: str) -> Tensor:
    """Position biases of the first prefix token against flat keys [B,N,H*d]: [B or 1,N,H]."""
    known = block.position_bias
    assert known is not None, "asked for where the block has position biases"
    rows, row = surgery.rows_of[key.name], np.ascontiguousarray(known.extended()[:, 0].T)  # [N+1,H]
    if rows.members is not None:
        return emit.op("MatMul", [_shares(surgery, rows, known.prefix), emit.constant(row[:-1], FLOAT)], label)
    if rows.patch is None:
        return emit.constant(row[None, :-1], FLOAT)
    return emit.op("Gather", [emit.constant(row, FLOAT), _tokens(surgery, rows, known.prefix)], label, axis=0)


def _between(surgery: Surgery, known: PositionBias, asking: Rows, asked: Rows) -> Tensor:
    """Biases [B or 1,H,M,N]; blocks with the same table and the same rows share them."""
    digest = hashlib.sha256(known.table.tobytes()).hexdigest()
    key = (digest, id(asking.patch), id(asking.members), id(asked.patch), id(asked.members))
    if key not in surgery.biases:
        emit = surgery.emitter.child(f"positions{len(surgery.biases)}")
        surgery.biases[key] = _made(surgery, emit, known, asking, asked)
    return surgery.biases[key]


def _made(surgery: Surgery, emit: Emitter, known: PositionBias, asking: Rows, asked: Rows) -> Tensor:
    if asking.patch is None and asked.patch is None:
        return emit.constant(known.table[None], FLOAT)
    if asking.members is not None and asked.members is not None:
        left = emit.op("Unsqueeze", [_shares(surgery, asking, known.prefix), emit.constant([1])], "asking")
        columns = emit.op("Transpose", [_shares(surgery, asked, known.prefix)], "asked/columns", perm=[0, 2, 1])
        table = emit.constant(known.table[None], FLOAT)
        half = emit.op("MatMul", [left, table], "means/asking")
        return emit.op("MatMul", [half, emit.op("Unsqueeze", [columns, emit.constant([1])], "asked")], "means")
    wide = known.extended()
    side = wide.shape[-1]
    flat = np.ascontiguousarray(wide.transpose(1, 2, 0).reshape(side * side, -1))
    first = emit.op("Mul", [_tokens(surgery, asking, known.prefix), emit.constant(side)], "asking/start", dtype=INT64)
    at = emit.op(
        "Add",
        [
            emit.op("Unsqueeze", [first, emit.constant([2])], "asking/rows", dtype=INT64),
            emit.op("Unsqueeze", [_tokens(surgery, asked, known.prefix), emit.constant([1])], "asked/columns", dtype=INT64),
        ],
        "pairs",
        dtype=INT64,
    )
    found = emit.op("Gather", [emit.constant(flat, FLOAT), at], "found", axis=0)
    return emit.op("Transpose", [found], "biases", perm=[0, 3, 1, 2])


def _tokens(surgery: Surgery, rows: Rows, prefix: int) -> Tensor:
    """Numbers of the model's tokens, int64 [B or 1,K]; a token that a method added is the one behind all."""
    if rows.patch is None:
        return surgery.emitter.constant(np.arange(prefix + surgery.anatomy.patches)[None])
    key = id(rows.patch)
    if key not in surgery.numbers:
        emit = surgery.emitter.child(f"numbers{len(surgery.numbers)}")
        numbers = rows.patch
        if prefix:
            behind = emit.op("Add", [numbers, emit.constant(prefix)], "patches", dtype=INT64)
            front = emit.op("Expand", [emit.constant(np.arange(prefix)[None]), _pair(surgery, emit)], "prefix", dtype=INT64)
            numbers = emit.op("Concat", [front, behind], "tokens", dtype=INT64, axis=1)
        surgery.numbers[key] = numbers
    return surgery.numbers[key]


def _shares(surgery: Surgery, rows: Rows, prefix: int) -> Tensor:
    """Shares of the model's tokens in merged rows, float32 [B,K,N]."""
    assert rows.members is not None
    if not prefix:
        return rows.members
    key = id(rows.members)
    if key not in surgery.numbers:
        emit = surgery.emitter.child(f"shares{len(surgery.numbers)}")
        patches = emit.op("Pad", [rows.members, emit.constant([0, 0, prefix, 0, 0, 0])], "patches")
        eye = np.eye(prefix, prefix + surgery.anatomy.patches, dtype=np.float32)
        front = emit.op("Expand", [emit.constant(eye[None], FLOAT), like_images(surgery, emit)], "prefix")
        surgery.numbers[key] = emit.op("Concat", [front, patches], "tokens", axis=1)
    return surgery.numbers[key]


def _pair(surgery: Surgery, emit: Emitter) -> Tensor:
    """Shape [B,1]."""
    return emit.slice(like_images(surgery, emit), 0, 2, 0, "shape", dtype=INT64)
