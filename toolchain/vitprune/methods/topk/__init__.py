"""Top-k by CLS attention: the fixed-rate baseline every adaptive method is compared with (methods.md §7.2 without fusing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.methods._dropping.sites import FixedRateOptions, kept_count
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_inside, with_all_queries
from vitprune.methods.topk.keys import Params

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.vit.reference_method import ReferenceMethod


class TopK(Method):
    """Top-k by CLS attention."""

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = "k highest CLS attentions per stage, fixed k, no parameters: the static baseline"
    paper: ClassVar[str] = "baseline; score and place of EViT (Liang et al., ICLR 2022) without its fused token"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "last"
    follows: ClassVar[bool] = True
    training_need: ClassVar[Literal["none", "optional", "required"]] = "optional"
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[FixedRateOptions]]:
        """One site per stage with its constant count; see `Method.sites`."""
        self.check_stages(params, geometry)
        rates = per_stage(params.keep_rate, params.stages, "keep_rate")
        counts = per_stage(params.keep, params.stages, "keep")
        entering, sites = geometry.patches, []
        for block, rate, count in zip(params.stages, rates, counts, strict=True):
            keep = kept_count(block, entering, rate, count)
            sites.append(Site(block, entering, keep, FixedRateOptions(score=params.score, slots=entering, keep=keep)))
            entering = keep
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Queries of tokens that leave are never computed; see `Method.block_tokens`."""
        asked = {site.block for site in sites if site.options.score == "mean_attention"}
        return with_all_queries(removed_inside(sites, geometry, kept), asked, geometry)

    def score_scale(self, params: Any, geometry: Geometry) -> float:
        """Scores are shares of one attention row; see `Method.score_scale`."""
        return 1.0 / geometry.tokens

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods._dropping.reference import FixedRateReference

        return FixedRateReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods._dropping.surgery import FixedRateSurgery

        return FixedRateSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods._dropping.knob import KeepRate

        return KeepRate()


METHOD = TopK()
