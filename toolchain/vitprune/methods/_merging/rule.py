"""Bipartite matching, shared by the methods that merge (Bolya et al., ICLR 2023; methods.md §7.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune.methods._merging.keys import NORM_FLOOR

if TYPE_CHECKING:
    from torch import Tensor


def metric(key: Tensor) -> Tensor:
    """What tokens are compared by: the mean over heads of the keys that attention uses (after k norm, where there is one).

    Args:
        key: [B,H,P,d] keys of the patches.

    Returns:
        float32 [B,P,d] of unit length.
    """
    mean = key.float().mean(dim=1)
    unit: Tensor = mean / mean.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
    return unit


def side(valid: Tensor, prefix: int) -> Tensor:
    """Slots in set A, bool [B,P]: the even token rows, prefix counted; the odd ones are set B."""
    import torch

    slots = torch.arange(valid.shape[1], device=valid.device)
    return ((slots + prefix) % 2 == 0)[None].expand_as(valid)


def match(metric: Tensor, valid: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best partner in B of every patch in A (methods.md §7.3); prefix tokens take no part, ties go to the lower slot.

    Args:
        metric: [B,P,d] of unit length. valid: bool [B,P]. prefix: number of prefix tokens.

    Returns:
        best float32 [B,P], similarity to the best partner, -inf for patches of B and pads; partner int64 [B,P], its slot; gap
        float32 [B,P], distance to the second best partner's similarity.
    """
    import torch

    first = side(valid, prefix)
    possible = (first & valid)[:, :, None] & (~first & valid)[:, None, :]
    similarity = (metric @ metric.transpose(1, 2)).masked_fill(~possible, float("-inf"))
    partner = similarity.argmax(dim=2)
    best = similarity.gather(2, partner[:, :, None])
    others = similarity.scatter(2, partner[:, :, None], float("-inf")).amax(dim=2)
    gap = torch.where(others.isinf(), torch.full_like(others, float("inf")), best[:, :, 0] - others)
    return best[:, :, 0], partner, gap


def ranks(best: Tensor) -> Tensor:
    """Rank of every slot by similarity, int64 [B,P]; 0 = most similar, ties to the lower slot."""
    return best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def cut(best: Tensor, rank: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities [B,1] just inside and just outside of the `count` [B,1] best pairs; +inf and -inf where there is none."""
    import torch

    inside = torch.where(rank < count, best, torch.full_like(best, float("inf"))).amin(dim=1, keepdim=True)
    outside = torch.where(rank >= count, best, torch.full_like(best, float("-inf"))).amax(dim=1, keepdim=True)
    return inside, outside


def order(joins: Tensor, prefix: int) -> Tensor:
    """Slots that stay, as ToMe lays them out: what is left of A, then B, both ascending; int64 [B,P-r]."""
    import torch

    slots = torch.arange(joins.shape[1], device=joins.device)[None]
    place = torch.where(side(joins, prefix), slots, slots + joins.shape[1])
    place = place.masked_fill(joins, 4 * joins.shape[1])
    return place.argsort(dim=1)[:, : joins.shape[1] - int(joins[0].sum())]
