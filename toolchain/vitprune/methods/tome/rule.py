"""The tensor maths of ToMe (methods.md §7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune.methods._merging.rule import cut, ranks

if TYPE_CHECKING:
    from torch import Tensor


def select(best: Tensor, gap: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The r most similar pairs of every image.

    Returns:
        bool [B,P], patches that join their partner, and float64 [B,P], the distance of every patch of A from another decision:
        to the cut, and for those that join to a second partner; infinite for all others.
    """
    import torch

    rank = ranks(best)
    joins = (rank < r) & ~best.isinf()
    inside, outside = cut(best, rank, torch.full_like(rank[:, :1], r))
    margin = torch.where(joins, torch.minimum(best - outside, gap), inside - best).double()
    return joins, margin.masked_fill(best.isinf(), float("inf"))
