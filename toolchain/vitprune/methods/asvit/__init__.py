"""AS-ViT, Adaptive Sparse ViT (IJCAI 2023, arXiv 2209.13802); equations of methods.md §5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods.asvit.keys import FIRST_SCORE, AsvitOptions, Params, Train
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_before
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.training.behaviour import Behaviour
    from vitprune.vit.reference_method import ReferenceMethod


class Asvit(Method):
    """Adaptive Sparse ViT."""

    name: ClassVar[str] = "asvit"
    summary: ClassVar[str] = "head-weighted class attention above a threshold, before 3 blocks; thresholds stay editable"
    paper: ClassVar[str] = "Adaptive Sparse ViT, IJCAI 2023, arXiv 2209.13802"
    params: ClassVar[type[MethodParams]] = Params
    places: ClassVar[Literal["map", "last", ""]] = "last"
    follows: ClassVar[bool] = True
    training_need: ClassVar[Literal["none", "optional", "required"]] = "required"
    train: ClassVar[type[TrainKeys]] = Train

    def sites(self, params: Any, geometry: Geometry) -> list[Site[AsvitOptions]]:
        """One site per stage; see `Method.sites`.

        Raises:
            RecipeError: VP110, VP111, VP121 when the first stage has no score yet, VP122 for a capacity with batch_topk.
        """
        self.check_stages(params, geometry)
        if params.stages[0] <= FIRST_SCORE:
            raise RecipeError(
                121,
                f"the first stage of asvit is {params.stages[0]}, it must be {FIRST_SCORE + 1} or later",
                cause=f"a stage compares the score of the block before it, and scores exist from block {FIRST_SCORE} on",
                next_step="--set 'prune.stages=[4, 7, 10]'",
            )
        if params.infer == "batch_topk" and params.capacity is not None:
            raise RecipeError(
                122,
                "prune.capacity does not go with infer: batch_topk",
                cause="batch_topk keeps one number for the whole batch and has no overflow rule",
                next_step="--set prune.infer=per_image, or remove prune.capacity",
            )
        thresholds = per_stage(params.thresholds, params.stages, "thresholds")
        capacities = per_stage(params.capacity, params.stages, "capacity")
        entering, sites = geometry.patches, []
        for block, threshold, capacity in zip(params.stages, thresholds, capacities, strict=True):
            limit = min(entering, capacity or entering)
            options = AsvitOptions(
                mode="threshold",
                theta=float(threshold),
                capacity=limit if limit < entering else 0,
                infer=params.infer,
                may_be_empty=True,
            )
            sites.append(Site(block, entering, limit, options))
            entering = limit
        return sites

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Tokens leave before the block; see `Method.block_tokens`."""
        return removed_before(sites, geometry, kept)

    def score_scale(self, params: Any, geometry: Geometry) -> float:
        """Scores are shares of one attention row; see `Method.score_scale`."""
        return 1.0 / geometry.tokens

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.asvit.reference import AsvitReference

        return AsvitReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.asvit.surgery import AsvitSurgery

        return AsvitSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.asvit.knob import KeptShare

        return KeptShare()

    @property
    def training(self) -> type[Behaviour]:
        """See `Method.training`."""
        from vitprune.methods.asvit.training import AsvitTraining

        return AsvitTraining


METHOD = Asvit()
