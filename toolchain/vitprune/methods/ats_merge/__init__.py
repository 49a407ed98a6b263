"""ATS with dropped tokens merged instead of lost, ours (methods.md §17): "ATS with `dropped: merge`"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.methods.ats import Ats
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.ats_merge.keys import AtsMergeOptions, Params
from vitprune.methods.base import BlockTokens, Geometry, MethodParams, Site
from vitprune.methods.cost import merged_after_attention, with_all_queries

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.vit.reference_method import ReferenceMethod


class AtsMerge(Ats):
    """ATS whose dropped patches join their most similar kept patch."""

    name: ClassVar[str] = "ats_merge"
    summary: ClassVar[str] = "ATS with dropped: merge: a patch that is not sampled joins the kept patch most similar to it"
    paper: ClassVar[str] = "this project; sampling after Fayyaz et al., ECCV 2022, arXiv 2111.15667"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "map"
    follows: ClassVar[bool] = True
    hidden_decisions: ClassVar[bool] = True
    training_need: ClassVar[Literal["none", "optional", "required"]] = "none"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[AtsOptions]]:
        """ATS's sites with the options of merging."""
        return [
            Site(
                site.block, site.patches, site.limit,
                AtsMergeOptions(**asdict(site.options), proportional=params.prop_attn, trace=params.trace),
            )
            for site in super().sites(params, geometry)
        ]  # fmt: skip

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """All rows are needed after attention, so queries are not pruned; see `Method.block_tokens`."""
        asked = {site.block for site in sites if not site.options.bypass and site.options.asking == "all"}
        return with_all_queries(merged_after_attention(sites, geometry, kept), asked, geometry)

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.ats_merge.reference import AtsMergeReference

        return AtsMergeReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.ats_merge.surgery import AtsMergeSurgery

        return AtsMergeSurgery


METHOD = AtsMerge()
