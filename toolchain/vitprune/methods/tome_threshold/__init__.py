"""Threshold merging, ours: ToMe's bipartite matching, but only pairs more alike than a threshold merge (methods.md §17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import merged_after_attention
from vitprune.methods.tome_threshold.keys import Params, TomeThresholdOptions

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.vit.reference_method import ReferenceMethod


class TomeThreshold(Method):
    """Adaptive token merging."""

    name: ClassVar[str] = "tome_threshold"
    summary: ClassVar[str] = (
        "pairs of patches more alike than a threshold merge, at most r_max per block; counts follow the image"
    )
    paper: ClassVar[str] = "this project; matching after Bolya et al., ICLR 2023, arXiv 2210.09461"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "map"
    hidden_decisions: ClassVar[bool] = True
    needs_cls: ClassVar[bool] = False

    def sites(self, params: Any, geometry: Geometry) -> list[Site[TomeThresholdOptions]]:
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
            options = TomeThresholdOptions(
                tau=tau, r_max=r, most=limit if limit < entering else None,
                proportional=params.prop_attn, trace=params.trace, mode="threshold", threshold=0.5,
            )  # fmt: skip
            sites.append(Site(block, entering, limit, options))
            entering, fewest = limit, fewest - r
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Attention is whole, the MLP runs on merged rows; see `Method.block_tokens`."""
        return merged_after_attention(sites, geometry, kept)

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.tome_threshold.reference import TomeThresholdReference

        return TomeThresholdReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.tome_threshold.surgery import TomeThresholdSurgery

        return TomeThresholdSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.tome_threshold.knob import Similarity

        return Similarity()


METHOD = TomeThreshold()
