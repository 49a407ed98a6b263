"""EViT, token reorganisation (Liang et al., ICLR 2022, arXiv 2202.07800); equations of methods.md §7.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.topk import Count, Rate, kept_count
from vitprune.training.keys import TrainKeys

if TYPE_CHECKING:
    from torch import Tensor


class Params(MethodParams):
    """Recipe keys of EViT.

    keep_rate: share of the entering tokens (patches and earlier fused tokens) that a stage keeps, rounded up.
    keep: tokens a stage keeps, one number or one per stage; wins over keep_rate.
    fuse: put the score-weighted sum of the dropped tokens behind the kept ones.
    """

    method: Literal["evit"] = "evit"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None
    fuse: bool = True


class Train(TrainKeys):
    """Recipe keys of training EViT.

    ramp: two epochs between which keep_rate falls from 1 to its value along a cosine (10 and 110 in training from scratch); null =
    as in the recipe from the start.
    """

    ramp: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None


def fuse(rows: Tensor, score: Tensor, dropped: Tensor) -> Tensor:
    """The fused token: sum over dropped tokens of score * row; the weights are not normalised.

    Args:
        rows: [B,P,C] after the attention residual. score: [B,P]. dropped: bool [B,P].

    Returns:
        [B,1,C].
    """
    return (score * dropped).to(rows.dtype).unsqueeze(1) @ rows


def rows_after(site: Site) -> int:
    """Tokens behind the prefix after a fixed-rate site: the kept ones and the combined one, if there is one."""
    return int(site.options["keep"]) + (site.options["combine"] is not None)


def fixed_block_tokens(sites: Sequence[Site], geometry: Geometry) -> list[BlockTokens]:
    """Token counts with constant counts per site.

    With a combined token the rows of dropped tokens are needed after attention, so only the MLP is spared in the block of the
    site; without one their queries are not computed either.
    """
    at = {site.block: site for site in sites}
    blocks, tokens = [], geometry.tokens
    for block in range(geometry.depth):
        site = at.get(block)
        rows = tokens if site is None else geometry.prefix + rows_after(site)
        whole = site is not None and site.options["combine"] is not None
        blocks.append(BlockTokens(tokens, tokens if whole else rows, rows))
        tokens = rows
    return blocks


class Evit(Method):
    """Expediting ViT by token reorganisation."""

    name: ClassVar[str] = "evit"
    summary: ClassVar[str] = "k highest CLS attentions per stage, the dropped tokens fused into one; fixed k"
    paper: ClassVar[str] = "Liang et al., ICLR 2022, arXiv 2202.07800"
    kind: ClassVar[str] = "fixed_rate"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "optional"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """One site per stage; a stage that drops nothing makes no fused token; see `Method.sites`."""
        self.check_stages(params, geometry)
        rates = per_stage(params.keep_rate, params.stages, "keep_rate")
        counts = per_stage(params.keep, params.stages, "keep")
        patches, slots, sites = geometry.patches, geometry.patches, []
        for block, rate, count in zip(params.stages, rates, counts, strict=True):
            keep = kept_count(block, slots, rate, count)
            combine = "weighted" if params.fuse and keep < slots else None
            limit = min(keep, patches)
            sites.append(Site(block, patches, keep, {"score": "cls", "slots": slots, "keep": keep, "combine": combine}))
            patches, slots = limit, rows_after(sites[-1])
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Counts follow from the sites alone: a kept fused token is a row although `kept` lists patches only."""
        return fixed_block_tokens(sites, geometry)


METHOD = Evit()
