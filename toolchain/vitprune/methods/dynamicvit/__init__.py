"""DynamicViT (Rao et al., NeurIPS 2021, arXiv 2106.02034); equations of methods.md §7.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods._dropping.sites import kept_count
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_before
from vitprune.methods.dynamicvit.keys import DynamicVitOptions, Params, Train
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.training.behaviour import Behaviour
    from vitprune.vit.reference_method import ReferenceMethod


class DynamicVit(Method):
    """Dynamic token sparsification."""

    name: ClassVar[str] = "dynamicvit"
    summary: ClassVar[str] = "a trained predictor ranks the patches before 3 blocks; fixed k; needs its weights"
    paper: ClassVar[str] = "Rao et al., NeurIPS 2021, arXiv 2106.02034"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "last"
    follows: ClassVar[bool] = True
    needs_cls: ClassVar[bool] = False
    training_need: ClassVar[Literal["none", "optional", "required"]] = "required"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "which tokens; their number is fixed"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[DynamicVitOptions]]:
        """One site per stage; counts follow from the model's real number of patches; see `Method.sites`.

        Raises:
            RecipeError: VP110, VP111, VP120 when counts rise or a rate leaves no patch.
        """
        self.check_stages(params, geometry)
        rates = params.keep_rate
        if not isinstance(rates, list):
            rates = [rates**power for power in range(1, len(params.stages) + 1)]
        rates = per_stage(rates, params.stages, "keep_rate")
        counts = per_stage(params.keep, params.stages, "keep")
        entering, sites = geometry.patches, []
        for stage, (block, rate, count) in enumerate(zip(params.stages, rates, counts, strict=True)):
            keep = kept_count(block, entering, rate, int(geometry.patches * rate) if count is None else count)
            if keep < 1:
                raise RecipeError(
                    120,
                    f"stage {block} would keep no patch",
                    cause=f"the keep rate {rate:.3g} of {geometry.patches} patches is less than one",
                    next_step="raise prune.keep_rate or give prune.keep",
                )
            options = DynamicVitOptions(stage=stage, slots=entering, keep=keep, width=geometry.width)
            sites.append(Site(block, entering, keep, options))
            entering = keep
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Tokens leave before the block; the predictor itself is not counted; see `Method.block_tokens`."""
        return removed_before(sites, geometry, kept)

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.dynamicvit.reference import DynamicVitReference

        return DynamicVitReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.dynamicvit.surgery import DynamicVitSurgery

        return DynamicVitSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.dynamicvit.knob import PredictedKeepRate

        return PredictedKeepRate()

    @property
    def training(self) -> type[Behaviour]:
        """See `Method.training`."""
        from vitprune.methods.dynamicvit.training import DynamicVitTraining

        return DynamicVitTraining


METHOD = DynamicVit()
