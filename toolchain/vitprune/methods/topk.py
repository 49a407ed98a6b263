"""Top-k by CLS attention: the fixed-rate baseline every adaptive method is compared with (methods.md §7.2 without fusing)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_inside

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Field(gt=0, le=65536)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Params(MethodParams):
    """Recipe keys of top-k.

    keep_rate: share of the entering patches that a stage keeps, rounded up; one for all stages or one per stage.
    keep: patches a stage keeps, one number or one per stage; wins over keep_rate.
    """

    method: Literal["topk"] = "topk"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None


def score(cls_attention: Tensor) -> Tensor:
    """Mean over heads of the CLS row of attention.

    Args:
        cls_attention: [B,H,P] CLS row of the softmax without the columns of prefix tokens.

    Returns:
        float32 [B,P].
    """
    return cls_attention.float().mean(dim=1)


def select(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` largest scores of every image, ties to the lower index.

    Args:
        score: float32 [B,P], every slot valid. keep: 1..P.

    Returns:
        chosen bool [B,P], and margin float64 [B,P]: distance of a score from the other side of the cut; infinite when
        nothing is cut.
    """
    import torch

    order = score.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, :keep], True)
    exact = score.double()
    if keep == score.shape[1]:
        return chosen, torch.full_like(exact, float("inf"))
    ranked = exact.gather(1, order)
    return chosen, torch.where(chosen, exact - ranked[:, keep : keep + 1], ranked[:, keep - 1 : keep] - exact)


def kept_count(block: int, entering: int, rate: float, count: int | None) -> int:
    """Tokens kept out of `entering`: `count`, else the rate rounded up (float64, as the published code does).

    Raises:
        RecipeError: VP120 when the count is larger than what enters.
    """
    if count is None:
        return min(entering, math.ceil(rate * entering))
    if count > entering:
        raise RecipeError(
            120,
            f"stage {block} is to keep {count} of {entering} tokens",
            cause=f"only {entering} tokens enter block {block}; the counts of prune.keep must not rise",
            next_step=f"keep at most {entering} at stage {block}",
        )
    return count


class TopK(Method):
    """Top-k by CLS attention."""

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = "k highest CLS attentions per stage, fixed k, no parameters: the static baseline"
    paper: ClassVar[str] = "baseline; score and place of EViT (Liang et al., ICLR 2022) without its fused token"
    kind: ClassVar[str] = "fixed_rate"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "optional"
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """One site per stage with its constant count; see `Method.sites`."""
        self.check_stages(params, geometry)
        rates = per_stage(params.keep_rate, params.stages, "keep_rate")
        counts = per_stage(params.keep, params.stages, "keep")
        entering, sites = geometry.patches, []
        for block, rate, count in zip(params.stages, rates, counts, strict=True):
            keep = kept_count(block, entering, rate, count)
            sites.append(Site(block, entering, keep, {"score": "cls", "slots": entering, "keep": keep, "combine": None}))
            entering = keep
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Queries of tokens that leave are never computed; see `Method.block_tokens`."""
        return removed_inside(sites, geometry, kept)


METHOD = TopK()
