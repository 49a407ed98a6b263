"""EViT, token reorganisation (Liang et al., ICLR 2022, arXiv 2202.07800); equations of methods.md §7.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.methods._dropping.sites import FixedRateOptions, fixed_block_tokens, kept_count, rows_after
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import with_all_queries
from vitprune.methods.evit.keys import Params, Train
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.training.behaviour import Behaviour
    from vitprune.vit.reference_method import ReferenceMethod


class Evit(Method):
    """Expediting ViT by token reorganisation."""

    name: ClassVar[str] = "evit"
    summary: ClassVar[str] = "k highest CLS attentions per stage, the dropped tokens fused into one; fixed k"
    paper: ClassVar[str] = "Liang et al., ICLR 2022, arXiv 2202.07800"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "last"
    follows: ClassVar[bool] = True
    training_need: ClassVar[Literal["none", "optional", "required"]] = "optional"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[FixedRateOptions]]:
        """One site per stage; a stage that drops nothing makes no fused token; see `Method.sites`."""
        self.check_stages(params, geometry)
        rates = per_stage(params.keep_rate, params.stages, "keep_rate")
        counts = per_stage(params.keep, params.stages, "keep")
        patches, slots, sites = geometry.patches, geometry.patches, []
        for block, rate, count in zip(params.stages, rates, counts, strict=True):
            keep = kept_count(block, slots, rate, count)
            combine: Literal["weighted"] | None = "weighted" if params.fuse and keep < slots else None
            limit = min(keep, patches)
            options = FixedRateOptions(score=params.score, slots=slots, keep=keep, combine=combine)
            sites.append(Site(block, patches, keep, options))
            patches, slots = limit, rows_after(sites[-1])
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Counts follow from the sites alone: a kept fused token is a row although `kept` lists patches only."""
        asked = {site.block for site in sites if site.options.score == "mean_attention"}
        return with_all_queries(fixed_block_tokens(sites, geometry), asked, geometry)

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
        from vitprune.methods.evit.knob import FusingKeepRate

        return FusingKeepRate()

    @property
    def training(self) -> type[Behaviour]:
        """See `Method.training`."""
        from vitprune.methods.evit.training import EvitTraining

        return EvitTraining


METHOD = Evit()
