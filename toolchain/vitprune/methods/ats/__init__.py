"""ATS, Adaptive Token Sampling (Fayyaz et al., ECCV 2022, arXiv 2111.15667); modes of methods.md §3.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods.ats.keys import AtsOptions, Params, Score
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_inside, with_all_queries

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.vit.reference_method import ReferenceMethod


class Ats(Method):
    """Adaptive Token Sampling."""

    name: ClassVar[str] = "ats"
    summary: ClassVar[str] = "CLS attention x |V| scores, inverse transform sampling inside attention, no parameters"
    paper: ClassVar[str] = "Fayyaz et al., ECCV 2022, arXiv 2111.15667"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "last"
    follows: ClassVar[bool] = True
    training_need: ClassVar[Literal["none", "optional", "required"]] = "optional"
    families: ClassVar[tuple[str, ...]] = ("ViT", "CvT")

    def sites(self, params: Any, geometry: Geometry) -> list[Site[AtsOptions]]:
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
                sites.append(Site(block, entering, entering, AtsOptions(bypass=True)))
                continue
            bound = min(points, entering if not official else max(entering - 1, 1))
            limit = min(bound, capacity or bound)
            form: Score = "pooled" if official else "per_head"
            options = AtsOptions(
                score=form if params.value_norm else "attention",
                asking="cls" if params.score == "cls" else "all",
                mode="inverse_transform_official" if official else "inverse_transform",
                num_samples=points,
                capacity=limit if limit < bound else 0,
            )
            sites.append(Site(block, entering, limit, options))
            entering = limit
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Queries of tokens that leave are never computed; see `Method.block_tokens`."""
        asked = {site.block for site in sites if not site.options.bypass and site.options.asking == "all"}
        return with_all_queries(removed_inside(sites, geometry, kept), asked, geometry)

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.ats.reference import AtsReference

        return AtsReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.ats.surgery import AtsSurgery

        return AtsSurgery

    def surgery_for(self, family: str) -> type[GraphPass]:
        """CvT's projections are convolutions and have a pass of their own; see `Method.surgery_for`."""
        if family == "CvT":
            from vitprune.methods.ats.cvt_surgery import CvtSurgery

            return CvtSurgery
        return self.surgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.ats.knob import SamplingPoints

        return SamplingPoints()


METHOD = Ats()
