"""Numpy specification of the `vitprune::TokenHalt` operator: one step of A-ViT's halting (arXiv 2112.07658, equations 4 to 9; methods.md §6.1).

Every token adds up its scores and halts in the block where the sum c passes `limit` = 1 - eps. Everything that decides is float32,
rounded after each operation, and each value has one order of operations, so an implementation that tells its scores can be held to the
last bit. The scores themselves, sigmoid(gate_scale * x[:, :, channel] - gate_center), are each implementation's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitprune.ops.sites import TOKEN_HALT
from vitprune.ops.token_sample import Attributes, token_sample

NAME = TOKEN_HALT
PAD = np.float32(2.0)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Carried:
    """What a step leaves to the next: total float32 [B,N], 2 and more on pads; remainder float32 [B,p]; output float32 [B,p,C]."""

    total: Floats
    remainder: Floats
    output: Floats


@dataclass(frozen=True)
class Compacted:
    """Behind a compaction: index int64 [B,K], keep bool [B,K], rows float32 [B,p+K,C]; pad slots repeat slot 0."""

    index: NDArray[np.int64]
    keep: NDArray[np.bool_]
    rows: Floats


def step(x: Floats, score: Floats, before: Carried | None, prefix: int, limit: float, last: bool = False) -> Carried:
    """The step behind a block.

    Args:
        x: float32 [B,N,C], what the block made. score: float32 [B,N]. before: of the step before, None in the first block.
        prefix: p, tokens in front of the patches. limit: 1 - eps. last: whoever is active halts here.
    """
    one, bound = np.float32(1), np.float32(limit)
    total = score if before is None else before.total + score
    remainder = np.full((len(x), prefix), one) if before is None else before.remainder
    active = np.ones_like(remainder, dtype=bool) if before is None else before.total[:, :prefix] < bound
    h, c = score[:, :prefix], total[:, :prefix]
    weight = np.where(c < bound, h, np.where(active & (c > bound), remainder, np.float32(0)))
    left = np.where(c < bound, remainder - h, remainder)
    if last:
        weight, left = np.where(active, remainder, np.float32(0)), remainder
    share = x[:, :prefix] * weight[:, :, None]
    return Carried(total, left, share if before is None else before.output + share)


def compact(x: Floats, total: Floats, prefix: int, limit: float, exits: bool, attributes: Attributes) -> tuple[Compacted, Floats]:
    """Halted patches leave; with `exits` all of an image's once none of its prefix tokens goes on.

    Returns:
        What is left, and its sums float32 [B,p+K], 2 on pads.
    """
    bound = np.float32(limit)
    left = bound - total[:, prefix:]
    if exits:
        left = np.where((total[:, :prefix] < bound).any(axis=1, keepdims=True), left, np.float32(-1))
    index, keep, _ = token_sample(left, np.ones_like(left, dtype=bool), attributes)
    rows = np.concatenate([x[:, :prefix], np.take_along_axis(x[:, prefix:], index[:, :, None], 1)], axis=1)
    sums = np.where(keep, np.take_along_axis(total[:, prefix:], index, 1), PAD)
    return Compacted(index, keep, rows), np.concatenate([total[:, :prefix], sums], axis=1)
