"""The tensor maths of ATS (methods.md §3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def score_attention(cls_attention: Tensor, value: Tensor) -> Tensor:
    """Score without |V|: sum over heads of A_h[CLS,j]; shapes as in `score_per_head`."""
    return cls_attention.float().sum(dim=1)


def score_per_head(cls_attention: Tensor, value: Tensor) -> Tensor:
    """Paper's significance score: sum over heads of A_h[CLS,j] * |V_hj| (methods.md §3.1).

    Args:
        cls_attention: [B,H,P] CLS row of the softmax, patches only. value: [B,H,P,d].

    Returns:
        float32 [B,P], not normalised: sampling does not depend on the scale.
    """
    score: Tensor = (cls_attention.float() * value.float().norm(dim=-1)).sum(dim=1)
    return score


def score_pooled(cls_attention: Tensor, value: Tensor) -> Tensor:
    """Official code's score: (sum over heads of A_h[CLS,j]) * |[V_1j;...;V_Hj]| (methods.md §3.2); shapes as above."""
    score: Tensor = cls_attention.float().sum(dim=1) * value.float().norm(dim=-1).square().sum(dim=1).sqrt()
    return score


def integer_weights(score: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Relative scores float32 [B,P] and integer weights int64 [B,P] (contract: `vitprune.ops.token_sample`)."""
    import torch

    clean = torch.where(valid & (score > 0), score, torch.zeros_like(score))
    top = clean.amax(dim=1, keepdim=True)
    relative = clean / torch.where(top > 0, top, torch.ones_like(top))
    weight = (relative * 2.0**30).to(torch.int64).clamp(min=1)
    return relative, torch.where(valid, weight, torch.zeros_like(weight))


def _points_below(edge: Tensor, weight: Tensor, total: Tensor, points: int, official: bool) -> Tensor:
    """Number of sampling points at or below each doubled midpoint `edge` [B,P] (weights in sampling order)."""
    import torch

    if not official:
        return torch.div(points * edge + total, 2 * total, rounding_mode="floor").clamp(0, points)
    running = weight.cumsum(1)
    rank = (weight > 0).cumsum(1) * (weight > 0)
    second = torch.where(rank == 2, running, torch.zeros_like(running)).amax(1, keepdim=True)
    over = edge - 2 * second
    inside = torch.div((points - 1) * over.clamp(min=0), (2 * (total - second)).clamp(min=1), rounding_mode="floor") + 1
    return torch.where(over < 0, torch.zeros_like(inside), inside).clamp(0, points)


def select(score: Tensor, valid: Tensor, num_samples: int, official: bool = False) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling in closed form, per image (methods.md §3.4).

    Args:
        score: float32 [B,P], any positive scale. valid: bool [B,P]. num_samples: sampling points. official: the released
            code's grid over ascending scores instead of the paper's over patch order.

    Returns:
        keep bool [B,P], and margin float64 [B,P]: distance, in CDF units, of the sampling point closest to flipping the token.
    """
    import torch

    relative, weight = integer_weights(score, valid)
    order = None
    if official:
        order = torch.where(valid, relative, torch.full_like(relative, 2.0)).argsort(dim=1, stable=True)
        weight = weight.gather(1, order)
    present = weight > 0
    running = weight.cumsum(1)
    total = running[:, -1:].clamp(min=1)
    edge = 2 * running - weight
    below = _points_below(edge, weight, total, num_samples, official)
    below = torch.where(running == weight, torch.zeros_like(below), below)  # nothing lies below the first token
    # Above token j begins the next present token: the smallest count to its right, or all points behind the last one.
    fenced = torch.where(present, below, torch.full_like(below, num_samples))
    after = torch.cat([fenced[:, 1:], torch.full_like(fenced[:, :1], num_samples)], dim=1)
    upper = after.flip(1).cummin(dim=1).values.flip(1)
    keep = present & (upper > below)
    margin = _margin(edge, weight, total, num_samples, official)
    if order is not None:
        inverse = order.argsort(dim=1)
        keep, margin = keep.gather(1, inverse), margin.gather(1, inverse)
    return keep, margin


def _margin(edge: Tensor, weight: Tensor, total: Tensor, points: int, official: bool) -> Tensor:
    """Distance of each token's two midpoints to the nearest sampling point, in CDF units (infinite when absent)."""
    import torch

    middle = edge.double() / (2 * total.double())
    if official:
        running = weight.cumsum(1).double() / total.double()
        rank = (weight > 0).cumsum(1) * (weight > 0)
        start = torch.where(rank == 2, running, torch.zeros_like(running)).amax(1, keepdim=True)
        spacing = ((1 - start) / max(points - 1, 1)).clamp(min=1e-12)
        position = (middle - start) / spacing
    else:
        spacing = torch.full_like(middle[:, :1], 1.0 / points)
        position = middle * points + 0.5
    nearest = position.round().clamp(0 if official else 1, points - 1 if official else points)
    lower = ((position - nearest).abs() * spacing).masked_fill(weight == 0, float("inf"))
    first = (weight > 0) & (weight.cumsum(1) == weight)
    lower = lower.masked_fill(first, float("inf"))
    behind = torch.cat([lower[:, 1:], torch.full_like(lower[:, :1], float("inf"))], dim=1)
    # Pads carry infinity, so the next present token's lower edge is found by a running copy from the right.
    upper = _next_present(behind, torch.cat([weight[:, 1:] > 0, torch.zeros_like(first[:, :1])], dim=1))
    return torch.minimum(lower, upper).masked_fill(weight == 0, float("inf"))


def _next_present(values: Tensor, present: Tensor) -> Tensor:
    """For every position the first present value at or after it, infinity when there is none; [B,P]."""
    import torch

    size = values.shape[1]
    here = torch.where(present, torch.arange(size, device=values.device), torch.full_like(values, size, dtype=torch.int64))
    at = here.flip(1).cummin(dim=1).values.flip(1)
    padded = torch.cat([values, torch.full_like(values[:, :1], float("inf"))], dim=1)
    return padded.gather(1, at)
