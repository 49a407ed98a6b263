"""The tensor maths of threshold merging (methods.md §17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune.methods._merging.rule import cut, ranks

if TYPE_CHECKING:
    from torch import Tensor


def select(best: Tensor, gap: Tensor, tau: float, r_max: int, forced: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that merge, per image, in FP32.

    Args:
        best: float32 [B,P] similarity of every patch of A to its best partner, -inf elsewhere. gap: float32 [B,P] to the second
            best partner. tau: strict lower bound. r_max: most pairs. forced: int64 [B,1] pairs that merge whatever tau says
            (at most r_max), because a capacity asks for it.

    Returns:
        bool [B,P], patches that join their partner, and float64 [B,P], the distance of every patch of A from another decision
        (another partner included); infinite for all others.
    """
    import torch

    rank, asked = ranks(best), ~best.isinf()
    joins = asked & (rank < r_max) & ((best > tau) | (rank < forced))
    never, always = torch.full_like(best, float("-inf")), torch.full_like(best, float("inf"))
    room_in, room_out = cut(best, rank, torch.full_like(forced, r_max))
    force_in, force_out = cut(best, rank, forced)
    # What makes a pair merge is tau or force, whichever holds it more firmly, within the r_max best.
    firmly = torch.maximum(best - tau, torch.where(rank < forced, best - force_out, never))
    stays = torch.minimum(torch.minimum(firmly, best - room_out), gap)
    below = torch.minimum((tau - best).clamp(min=0), torch.where(forced > 0, force_in - best, always))
    leaves = torch.maximum(below, torch.where(rank >= r_max, room_in - best, torch.zeros_like(best)))
    margin = torch.where(joins, stays, leaves).double()
    return joins, margin.masked_fill(~asked, float("inf"))
