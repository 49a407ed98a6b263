"""A-ViT, adaptive tokens by halting (Yin et al., CVPR 2022, arXiv 2112.07658); equations of methods.md §6.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.errors import RecipeError
from vitprune.methods.avit.keys import Params, Train
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, SamplingOptions, Site, per_stage
from vitprune.methods.cost import removed_before
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.training.behaviour import Behaviour
    from vitprune.vit.reference_method import ReferenceMethod


class Avit(Method):
    """Adaptive tokens: every token has its own depth."""

    name: ClassVar[str] = "avit"
    summary: ClassVar[str] = "every token halts by a score in its own channel 0; CLS is a halting-weighted sum over blocks"
    paper: ClassVar[str] = "Yin et al., CVPR 2022, arXiv 2112.07658"
    params: ClassVar[type[MethodParams]] = Params
    training_need: ClassVar[Literal["none", "optional", "required"]] = "required"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "depth of each token"

    def sites(self, params: Any, geometry: Geometry) -> list[Site[SamplingOptions]]:
        """One site per compaction.

        Raises:
            RecipeError: VP110 beyond the depth, VP111 wrong number of capacities, VP141 compaction before block 0, VP142 no such
                channel.
        """
        self.check_stages(params, geometry)
        if params.channel >= geometry.width:
            raise RecipeError(
                142,
                f"prune.channel is {params.channel}, the model has {geometry.width} channels",
                cause="the halting score is read from one channel of the embedding",
                next_step="--set prune.channel=0",
            )
        entering, sites = geometry.patches, []
        for block, capacity in zip(params.stages, per_stage(params.capacity, params.stages, "capacity"), strict=True):
            limit = min(entering, capacity or entering)
            options = SamplingOptions(mode="threshold", threshold=0.0, capacity=limit if limit < entering else 0)
            sites.append(Site(block, entering, limit, options))
            entering = limit
        return sites

    def check_stages(self, params: MethodParams, geometry: Geometry) -> None:
        """Refuse compactions that lie beyond the model (VP110) or before its first block (VP141)."""
        fitting = [block for block in params.stages if 0 < block < geometry.depth]
        wrong = [block for block in params.stages if block not in fitting]
        if wrong:
            first = wrong[0] == 0
            raise RecipeError(
                141 if first else 110,
                "prune.compact_at holds block 0" if first else f"compact_at block {wrong[0]} is beyond the model's depth",
                cause="compaction happens before a block, and before block 0 no token can have halted"
                if first
                else f"the model has {geometry.depth} blocks, numbered 0 to {geometry.depth - 1}",
                next_step=f"--set 'prune.compact_at={fitting}'",
            )

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Rows leave before the block of a compaction; masked rows in between are still computed."""
        return removed_before(sites, geometry, kept)

    def score_scale(self, params: Any, geometry: Geometry) -> float:
        """A halting score reads the difference of two numbers of the gate's size; see `Method.score_scale`.

        sigmoid(gamma x - beta) moves by h (1 - h) times what its argument moves by, and that is rounded relative to gamma x and beta,
        which are alike where the gate is open. Scores that add up to the limit have slopes that add up to at most 1 - 1/L over L blocks.
        """
        return max(1.0, (1 - 1 / geometry.depth) * abs(float(params.gate_center)))

    @property
    def reference(self) -> type[ReferenceMethod]:
        """See `Method.reference`."""
        from vitprune.methods.avit.reference import AvitReference

        return AvitReference

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.avit.surgery import AvitSurgery

        return AvitSurgery

    @property
    def knob(self) -> Knob:
        """See `Method.knob`."""
        from vitprune.methods.avit.knob import GateCenter

        return GateCenter()

    @property
    def training(self) -> type[Behaviour]:
        """See `Method.training`."""
        from vitprune.methods.avit.training import AvitTraining

        return AvitTraining


METHOD = Avit()
