"""ToMe, Token Merging (Bolya et al., ICLR 2023, arXiv 2210.09461); written from methods.md §7.3 and the paper's equations."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage

if TYPE_CHECKING:
    from torch import Tensor

NORM_FLOOR = 1e-12  # a metric of length zero stays zero instead of becoming NaN
Count = Annotated[int, Field(ge=0, le=65536)]


class MergingParams(MethodParams):
    """Keys of the methods that merge by bipartite matching.

    stages: blocks that merge; null = every block.
    prop_attn: add log(size) to the key logits, so that a row of n patches attracts as much attention as the n patches did.
    trace: also output `group_<block>`, int64 [B,P]: for every original patch the patch that represents its row.
    """

    stages: list[int] | None = None  # type: ignore[assignment]
    prop_attn: bool = True
    trace: bool = False

    @field_validator("stages")
    @classmethod
    def _ascending(cls, stages: list[int] | None) -> list[int] | None:  # type: ignore[override]
        return stages if stages is None else _distinct(stages)

    def blocks(self, geometry: Geometry) -> list[int]:
        """Blocks that merge, in order."""
        return list(range(geometry.depth)) if self.stages is None else self.stages


def _distinct(stages: list[int]) -> list[int]:
    if not stages or any(stage < 0 for stage in stages):
        raise ValueError("stages are block numbers counted from 0; null means every block")
    if stages != sorted(set(stages)):
        raise ValueError(f"stages must ascend without repetition; in order they are {sorted(set(stages))}")
    return stages


class Params(MergingParams):
    """Recipe keys of ToMe (stages, prop_attn, trace: see `MergingParams`).

    r: pairs merged per block: one number, or one per stage. More than half of the patches cannot merge at once; r is cut to that.
    inflect: with one number r, the slope of a linear schedule from r*(1 - inflect) in the first stage to r*(1 + inflect) in the
    last, rounded down; -1 falls from 2r to 0.
    """

    method: Literal["tome"] = "tome"
    r: Count | list[Count] = 13
    inflect: float = Field(default=0.0, ge=-1, le=1)


def schedule(r: int | Sequence[int], inflect: float, stages: Sequence[int]) -> list[int]:
    """Pairs to merge at every stage.

    Raises:
        RecipeError: VP130 when a list comes with an inflect, VP111 when it has a wrong length.
    """
    if not isinstance(r, int):
        if inflect:
            raise RecipeError(
                130,
                "prune.inflect goes with a single prune.r",
                cause=f"r is a list of {len(r)} numbers, which is a schedule already",
                next_step="remove prune.inflect, or give one number as prune.r",
            )
        return per_stage(list(r), stages, "r")
    if len(stages) == 1:
        return [r]
    slope, last = Fraction(str(inflect)), len(stages) - 1
    return [int(r * (1 + slope * (Fraction(2 * place, last) - 1))) for place in range(len(stages))]


def metric(key: Tensor) -> Tensor:
    """What tokens are compared by: the mean over heads of the keys that attention uses (after k norm, where there is one).

    Args:
        key: [B,H,P,d] keys of the patches.

    Returns:
        float32 [B,P,d] of unit length.
    """
    mean = key.float().mean(dim=1)
    return mean / mean.norm(dim=-1, keepdim=True).clamp(min=NORM_FLOOR)


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


def order(joins: Tensor, prefix: int) -> Tensor:
    """Slots that stay, as ToMe lays them out: what is left of A, then B, both ascending; int64 [B,P-r]."""
    import torch

    slots = torch.arange(joins.shape[1], device=joins.device)[None]
    place = torch.where(side(joins, prefix), slots, slots + joins.shape[1])
    place = place.masked_fill(joins, 4 * joins.shape[1])
    return place.argsort(dim=1)[:, : joins.shape[1] - int(joins[0].sum())]


def merged_after_attention(sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
    """Token counts when rows merge between attention and MLP: attention is whole, the MLP runs on what is left."""
    after = dict(zip((site.block for site in sites), kept, strict=True))
    blocks, tokens = [], float(geometry.tokens)
    for block in range(geometry.depth):
        rows = geometry.prefix + after[block] if block in after else tokens
        blocks.append(BlockTokens(tokens, tokens, rows))
        tokens = rows
    return blocks


class Tome(Method):
    """Token Merging."""

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "the r most similar pairs of patches merge in every block; constant counts, no parameters"
    paper: ClassVar[str] = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    kind: ClassVar[str] = "bipartite_merging"
    params: ClassVar[type[MethodParams]] = Params
    needs_cls: ClassVar[bool] = False
    varies: ClassVar[str] = "which patches merge; counts are constant"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """One site per stage; see `Method.sites`."""
        stages = params.blocks(geometry)
        if params.stages is not None:
            self.check_stages(params, geometry)
        entering, sites = geometry.patches, []
        for block, wanted in zip(stages, schedule(params.r, params.inflect, stages), strict=True):
            r = min(wanted, entering // 2)
            sites.append(Site(block, entering, entering - r, {"r": r, "proportional": params.prop_attn, "trace": params.trace}))
            entering -= r
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Attention is whole, the MLP runs on merged rows; see `Method.block_tokens`."""
        return merged_after_attention(sites, geometry, kept)


METHOD = Tome()
