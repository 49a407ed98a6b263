"""The tensor maths of Ward merging: masses, damages, reciprocal nearest pairs, Lance-Williams (docs/methods/ward_merge.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune.methods.ward_merge.keys import signs

if TYPE_CHECKING:
    from torch import Tensor

FAINTEST = 1e-9  # a mass of zero would let a row be lost, and divides by zero
FAR = 1e15  # more than any damage between two rows


def received(weights: Tensor, size: Tensor, prefix: int, has_cls: bool) -> Tensor:
    """Attention that every patch row receives, float32 [B,P].

    Args:
        weights: [B,H,N,N] attention probabilities. size: [B,P] patches per row, 0 on pads. prefix: number of prefix tokens.
        has_cls: from the CLS token; otherwise from all queries, where a row of n patches asks n times.
    """
    import torch

    mean = weights.float().mean(dim=1)
    if has_cls:
        return mean[:, 0, prefix:]
    asking = torch.cat([size.new_ones(len(size), prefix), size], dim=1)
    asking = asking / asking.sum(dim=1, keepdim=True)
    return (asking[:, None, :] @ mean)[:, 0, prefix:]


def masses(attention: Tensor, size: Tensor, tokens: int, power: float) -> Tensor:
    """Mass of every row, float32 [B,P]: size times (attention per patch, 1 = average) to a power; pads 1.

    Args:
        attention, size: [B,P]. tokens: of the image before anything merged. power: importance_power.
    """
    import torch

    real = torch.where(size > 0, size, torch.ones_like(size))
    return (real * (attention / real * tokens).clamp(min=0) ** power).clamp(min=FAINTEST)


def directions(x: Tensor, sketch: int | None) -> Tensor:
    """Rows [B,P,C] at unit length, float32; with a sketch [B,P,d], sums of channels with random signs (fewer than C only)."""
    import torch

    length: Tensor = x.float().pow(2).sum(dim=-1, keepdim=True).sqrt()
    unit = x.float() / length.clamp(min=1e-12)
    width = x.shape[-1]
    if sketch is None or sketch >= width:
        return unit
    signed = torch.nn.functional.pad(unit * torch.from_numpy(signs(width)).to(x.device), (0, -width % sketch))
    return signed.reshape(*signed.shape[:-1], -1, sketch).sum(dim=-2)


def damages(z: Tensor, mass: Tensor, valid: Tensor) -> Tensor:
    """Ward's criterion between all rows, float32 [B,P,P]: |z_i - z_j|^2 m_i m_j / (m_i + m_j); infinite to oneself and to pads."""
    import torch

    square = (z * z).sum(dim=-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * z @ z.transpose(1, 2)
    found = distance * (mass[:, :, None] * mass[:, None, :] / (mass[:, :, None] + mass[:, None, :]))
    itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return found.masked_fill(itself | ~(valid[:, :, None] & valid[:, None, :]), float("inf"))


def pairs(damage: Tensor, limit: float, most: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One round: which reciprocal nearest pairs merge.

    Args:
        damage: [B,P,P], infinite where nothing can merge. limit: strict upper bound. most: int64 [B,1], pairs at most, the cheapest
            first (a number of rows or more: no bound).

    Returns:
        bool [B,P], rows that join their partner (the higher slot of each pair); int64 [B,P], the partner; float64 [B,P], how much
        damages may change before anything else becomes of a row; infinite for rows that nothing can merge with.
    """
    import torch

    first, partner = damage.min(dim=2)  # ties to the lower slot
    slots = torch.arange(damage.shape[1], device=damage.device)[None]
    mutual = (partner.gather(1, partner) == slots) & (first < min(limit, FAR))
    cost = first.masked_fill(~mutual | (partner > slots), float("inf"))  # every pair once, at its higher slot
    rank = cost.argsort(dim=1, stable=True).argsort(dim=1)
    joins = ~cost.isinf() & (rank < most)
    margin = _margin(damage, limit, cost, joins, joins.sum(dim=1, keepdim=True) >= most)
    return joins, partner, margin.masked_fill(most == 0, float("inf"))


def _margin(damage: Tensor, limit: float, cost: Tensor, joins: Tensor, full: Tensor) -> Tensor:
    """A pair merges where it is cheaper than all other pairs of either row and than the limit: its slack is negative then.

    full: bool [B,1], as many pairs join as may.
    """
    import torch

    two = damage.topk(min(2, damage.shape[2]), dim=2, largest=False)
    least, at = two.values[..., 0], two.indices[..., 0]
    second = two.values[..., -1] if two.values.shape[-1] > 1 else torch.full_like(least, float("inf"))
    slots = torch.arange(damage.shape[1], device=damage.device)[None, None]
    others = torch.where(at[:, :, None] == slots, second[:, :, None], least[:, :, None])  # cheapest of i without j
    slack = torch.maximum(torch.maximum(damage - others, damage - others.transpose(1, 2)), damage - limit)
    slack = slack.masked_fill(damage > FAR, float("inf")).nan_to_num(nan=float("inf"), posinf=float("inf"))
    inside = torch.where(joins, cost, torch.full_like(cost, float("-inf"))).amax(dim=1)[:, None, None]
    waiting = ~cost.isinf() & ~joins
    outside = torch.where(waiting, cost, torch.full_like(cost, float("inf"))).amin(dim=1)[:, None, None]
    slack = torch.where(slack < 0, torch.maximum(slack, damage - outside), slack)
    joined = slack < 0
    # Where a count is full a pair comes in the place of a dearer one, or of one that goes; and every coming may move other rows.
    room = slack.abs().masked_fill(~joined, float("inf")).amin(dim=(1, 2))[:, None, None]
    coming = torch.maximum(slack, torch.minimum(damage - inside, room))
    slack = torch.where(full[:, :, None] & ~joined, coming, slack)
    margin = slack.abs().amin(dim=2).double()
    first = slack.masked_fill(joined, float("inf")).amin(dim=(1, 2))[:, None].double()
    return torch.where(full, torch.minimum(margin, first), margin)


def lance_williams(damage: Tensor, mass: Tensor, joins: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Damages and masses after a round, without new distances: rows first, then columns with the new masses of the rows.

    D_(ij)k = ((m_i + m_k) D_ik + (m_j + m_k) D_jk - m_k D_ij) / (m_i + m_j + m_k)   (Lance and Williams 1967, Ward's method)

    Args:
        damage: [B,P,P]. mass: [B,P]. joins, partner: of the round.

    Returns:
        [B,P,P], infinite for rows that joined another; [B,P], masses added up.
    """
    import torch

    slots = torch.arange(joins.shape[1], device=joins.device)[None]
    grown = joins.gather(1, partner) & (partner.gather(1, partner) == slots) & ~joins
    other = mass.gather(1, partner)
    between = damage.gather(2, partner[:, :, None])[:, :, 0]
    itself = torch.eye(damage.shape[1], dtype=torch.bool, device=damage.device)
    known = damage.masked_fill(itself, 0.0)

    def update(table: Tensor, columns: Tensor) -> Tensor:
        theirs = table.gather(1, partner[:, :, None].expand_as(table))
        m, n, k = mass[:, :, None], other[:, :, None], columns[:, None, :]
        new = ((m + k) * table + (n + k) * theirs - k * between[:, :, None]) / (m + n + k)
        return torch.where(grown[:, :, None], new, table)

    after = torch.where(grown, mass + other, mass)
    rows = update(known, mass)
    both = update(rows.transpose(1, 2), after)
    return both.masked_fill(itself | damage.isinf() | joins[:, :, None] | joins[:, None, :], float("inf")), after
