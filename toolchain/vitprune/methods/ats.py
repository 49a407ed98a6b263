"""ATS, Adaptive Token Sampling (Fayyaz et al., ECCV 2022, arXiv 2111.15667); modes of methods.md §3.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_inside

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[int, Field(gt=0, le=65536)]


class Params(MethodParams):
    """Recipe keys of ATS.

    mode: "paper" (per-head scores, patch order, mid-point grid) or "official" (the released code, one image at a time).
    num_samples: sampling points K, one for all stages or one per stage; null leaves the stage dense.
    capacity: largest number of patches a stage may keep (padded shapes); null = the method's bound min(K, P).
    value_norm: false leaves |V| out of the score, the paper's ablation.
    """

    method: Literal["ats"] = "ats"
    mode: Literal["paper", "official"] = "paper"
    stages: list[int] = Field(default=[3, 4, 5, 6, 7, 8, 9, 10, 11], min_length=1)
    num_samples: Positive | list[Positive | None] | None = 108
    capacity: Positive | list[Positive | None] | None = None
    value_norm: bool = True


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
    return (cls_attention.float() * value.float().norm(dim=-1)).sum(dim=1)


def score_pooled(cls_attention: Tensor, value: Tensor) -> Tensor:
    """Official code's score: (sum over heads of A_h[CLS,j]) * |[V_1j;...;V_Hj]| (methods.md §3.2); shapes as above."""
    return cls_attention.float().sum(dim=1) * value.float().norm(dim=-1).square().sum(dim=1).sqrt()


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


class Ats(Method):
    """Adaptive Token Sampling."""

    name: ClassVar[str] = "ats"
    summary: ClassVar[str] = "CLS attention x |V| scores, inverse transform sampling inside attention, no parameters"
    paper: ClassVar[str] = "Fayyaz et al., ECCV 2022, arXiv 2111.15667"
    kind: ClassVar[str] = "query_sampling"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "optional"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """One site per stage with its sampling points and static bound; see `Method.sites`."""
        self.check_stages(params, geometry)
        samples = per_stage(params.num_samples, params.stages, "num_samples")
        capacities = per_stage(params.capacity, params.stages, "capacity")
        official = params.mode == "official"
        entering, sites = geometry.patches, []
        for block, points, capacity in zip(params.stages, samples, capacities, strict=True):
            if points is None:
                if capacity is not None:
                    raise RecipeError(
                        112,
                        f"stage {block} has a capacity but no num_samples",
                        cause="num_samples: null leaves the stage dense, so there is nothing a capacity could bound",
                        next_step="give the stage a num_samples, or null in prune.capacity",
                    )
                sites.append(Site(block, entering, entering, {"bypass": True}))
                continue
            bound = min(points, entering if not official else max(entering - 1, 1))
            limit = min(bound, capacity or bound)
            form = "pooled" if official else "per_head"
            options = {
                "score": form if params.value_norm else "attention",
                "mode": "inverse_transform_official" if official else "inverse_transform",
                "num_samples": points,
                "capacity": limit if limit < bound else 0,
            }
            sites.append(Site(block, entering, limit, options))
            entering = limit
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Queries of tokens that leave are never computed; see `Method.block_tokens`."""
        return removed_inside(sites, geometry, kept)


METHOD = Ats()
