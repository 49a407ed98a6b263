"""ToMe, Token Merging (Bolya et al., ICLR 2023, arXiv 2210.09461); written from methods.md §7.3 and the paper's equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site
from vitprune.methods.cost import merged_after_attention
from vitprune.methods.tome.keys import Params, TomeOptions, schedule

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.vit.reference_method import ReferenceMethod


class Tome(Method):
    """Token Merging."""

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "the r most similar pairs of patches merge in every block; constant counts, no parameters"
    paper: ClassVar[str] = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "map"
    hidden_decisions: ClassVar[bool] = True
    needs_cls: ClassVar[bool] = False
    varies: ClassVar[str] = "which patches merge; counts are constant"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[TomeOptions]]:
        """One site per stage; see `Method.sites`."""
        stages = params.blocks(geometry)
        if params.stages is not None:
            self.check_stages(params, geometry)
        entering, sites = geometry.patches, []
        for block, wanted in zip(stages, schedule(params.r, params.inflect, stages), strict=True):
            r = min(wanted, entering // 2)
            sites.append(Site(block, entering, entering - r, TomeOptions(r=r, proportional=params.prop_attn, trace=params.trace)))
            entering -= r
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Attention is whole, the MLP runs on merged rows; see `Method.block_tokens`."""
        return merged_after_attention(sites, geometry, kept)

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.tome.reference import TomeReference

        return TomeReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.tome.surgery import TomeSurgery

        return TomeSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.tome.knob import MergedPairs

        return MergedPairs()


METHOD = Tome()
