"""Ward merging, ours: reciprocal nearest pairs merge by an attention-weighted Ward criterion (docs/methods/ward_merge.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import merged_after_attention
from vitprune.methods.ward_merge.keys import Params, WardOptions, threshold

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.vit.reference_method import ReferenceMethod

UNBOUNDED = float("inf")


class WardMerge(Method):
    """Ward merging."""

    name: ClassVar[str] = "ward_merge"
    summary: ClassVar[str] = (
        "nearest pairs of patches merge where Ward's criterion, weighted by attention, says it does little damage"
    )
    paper: ClassVar[str] = "this project; Ward's criterion (Ward 1963), sizes after Bolya et al., ICLR 2023, arXiv 2210.09461"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "map"
    hidden_decisions: ClassVar[bool] = True
    needs_cls: ClassVar[bool] = False

    def sites(self, params: Any, geometry: Geometry) -> list[Site[WardOptions]]:
        """One site per stage; see `Method.sites`.

        Raises:
            RecipeError: VP132 when `counts`, `r` and `capacity` contradict each other.
        """
        stages = params.blocks(geometry)
        if params.stages is not None:
            self.check_stages(params, geometry)
        _agree(params)
        counts = per_stage(params.r, stages, "r")
        capacities = per_stage(params.capacity, stages, "capacity")
        entering, sites = geometry.patches, []
        for block, wanted, capacity in zip(stages, counts, capacities, strict=True):
            r = None if wanted is None else min(wanted, entering - 1)
            limit = min(entering, capacity or entering) if r is None else entering - r
            options = WardOptions(
                limit=threshold(params.mu, block, geometry.depth) if r is None else UNBOUNDED, r=r, sketch=params.sketch,
                power=params.importance_power, rounds=params.rounds, everyone=geometry.tokens, proportional=params.prop_attn,
                trace=params.trace, mode="threshold", threshold=0.0, capacity=limit if r is None and limit < entering else 0,
            )  # fmt: skip
            sites.append(Site(block, entering, limit, options))
            entering = limit
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Attention is whole, the MLP runs on merged rows, and the distances of every round are counted; see `Method.block_tokens`."""
        blocks = merged_after_attention(sites, geometry, kept)
        for site in sites:
            if not site.options.idle:
                blocks[site.block] = replace(blocks[site.block], selection=_distances(site.options, blocks[site.block], geometry))
        return blocks

    def loses(self, sites: Sequence[Site[Any]]) -> bool:
        """See `Method.loses`: what a capacity cuts joins nothing."""
        return any(site.options.capacity for site in sites)

    def padded_advice(self, params: Any) -> str:
        """See `Method.padded_advice`."""
        if params.counts == "fixed":
            return ""
        return (
            "padded capacities hold what the fullest image needs, so they lose most of what adaptive counts gain; constant shapes "
            "are what prune.counts=fixed is for: vitprune calibrate RECIPE --set prune.counts=fixed --data DIR --budget-macs X -o NEW.yaml"
        )

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.ward_merge.reference import WardMergeReference

        return WardMergeReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.ward_merge.surgery import WardMergeSurgery

        return WardMergeSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.ward_merge.knob import Damage

        return Damage()


def _distances(options: WardOptions, tokens: BlockTokens, geometry: Geometry) -> float:
    """MACs of the decision: norms and sketch over all channels, distances [n,n] in every round, and their weighing by masses."""
    n, width = tokens.entering - geometry.prefix, geometry.width
    metric = width if options.sketch is None else min(options.sketch, width)
    return 2 * n * width + options.rounds * n * n * (metric + 4)


def _agree(params: Params) -> None:
    problem = cause = ""
    if params.counts == "fixed" and params.r is None:
        problem, cause = "prune.counts is fixed, but prune.r is missing", "fixed counts are the pairs to merge per block"
    elif params.counts == "adaptive" and params.r is not None:
        problem, cause = "prune.r goes with prune.counts=fixed", "adaptive counts follow from mu and the image"
    elif params.counts == "fixed" and params.capacity is not None:
        problem, cause = (
            "prune.capacity goes with adaptive counts",
            "with fixed counts every block leaves a constant number of rows",
        )
    if problem:
        raise RecipeError(
            132, problem, cause=cause,
            next_step="vitprune calibrate RECIPE --set prune.counts=fixed --data DIR --budget-macs 0.65 -o NEW.yaml finds them",
        )  # fmt: skip


METHOD = WardMerge()
