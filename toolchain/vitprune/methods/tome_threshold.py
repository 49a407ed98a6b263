"""Threshold merging, ours: ToMe's bipartite matching, but only pairs more alike than a threshold merge (methods.md §17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.tome import Count, MergingParams, cut, merged_after_attention, ranks

if TYPE_CHECKING:
    from torch import Tensor

Similarity = Annotated[float, Field(ge=-1, le=2)]
Positive = Annotated[int, Field(gt=0, le=65536)]


class Params(MergingParams):
    """Recipe keys of threshold merging (stages, prop_attn, trace: see `MergingParams`).

    tau: a pair merges only if its cosine similarity exceeds this; one for all stages or one per stage. Above 1 nothing merges.
    r_max: most pairs merged per block, one number or one per stage; cut to half of the fewest patches that can be left.
    capacity: largest number of rows a stage may leave; where tau would leave more, the most similar pairs merge regardless.
    null = no limit: in padded shapes a stage then keeps as many slots as enter it.
    """

    method: Literal["tome_threshold"] = "tome_threshold"
    tau: Similarity | list[Similarity] = 0.9
    r_max: Count | list[Count] = 8
    capacity: Positive | list[Positive | None] | None = None


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


class TomeThreshold(Method):
    """Adaptive token merging."""

    name: ClassVar[str] = "tome_threshold"
    summary: ClassVar[str] = (
        "pairs of patches more alike than a threshold merge, at most r_max per block; counts follow the image"
    )
    paper: ClassVar[str] = "this project; matching after Bolya et al., ICLR 2023, arXiv 2210.09461"
    kind: ClassVar[str] = "threshold_merging"
    params: ClassVar[type[MethodParams]] = Params
    needs_cls: ClassVar[bool] = False

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """One site per stage; see `Method.sites`.

        Raises:
            RecipeError: VP131 when a capacity cannot be reached by r_max merges.
        """
        stages = params.blocks(geometry)
        if params.stages is not None:
            self.check_stages(params, geometry)
        taus, counts = per_stage(params.tau, stages, "tau"), per_stage(params.r_max, stages, "r_max")
        capacities = per_stage(params.capacity, stages, "capacity")
        entering = fewest = geometry.patches
        sites = []
        for block, tau, wanted, capacity in zip(stages, taus, counts, capacities, strict=True):
            r = min(wanted, fewest // 2)
            limit = min(entering, capacity or entering)
            if entering - limit > r:
                raise RecipeError(
                    131,
                    f"stage {block} cannot come down to a capacity of {limit}",
                    cause=f"up to {entering} patches enter it and at most {r} pairs merge there",
                    next_step=f"--set prune.capacity with at least {entering - r} for stage {block}, or a larger prune.r_max",
                )
            options = {
                "tau": tau, "r_max": r, "most": limit if limit < entering else None,
                "proportional": params.prop_attn, "trace": params.trace,
                "mode": "threshold", "threshold": 0.5,
            }  # fmt: skip
            sites.append(Site(block, entering, limit, options))
            entering, fewest = limit, fewest - r
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Attention is whole, the MLP runs on merged rows; see `Method.block_tokens`."""
        return merged_after_attention(sites, geometry, kept)


METHOD = TomeThreshold()
