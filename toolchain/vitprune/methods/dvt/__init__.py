"""DVT, Dynamic Vision Transformer (Wang et al., NeurIPS 2021, arXiv 2105.15075): a cascade of three ViTs with early exit.

Tokens are never dropped: an easy image is answered by a model with few, large patches, and only a hard one goes on to the next
model, which reuses features and relations of the one before (methods.md §4). What is exported is therefore three graphs and a rule,
carried out by `vitprune.methods.dvt.pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site
from vitprune.methods.cost import dense_blocks
from vitprune.methods.dvt.keys import Params, Train
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.pipeline import Pipeline
    from vitprune.training.behaviour import Behaviour


class Dvt(Method):
    """Dynamic Vision Transformer."""

    name: ClassVar[str] = "dvt"
    summary: ClassVar[str] = (
        "cascade of three DeiTs or T2T-ViTs on 7x7, 10x10, 14x14 tokens; confident images leave early, features are reused"
    )
    paper: ClassVar[str] = "Wang et al., NeurIPS 2021, arXiv 2105.15075"
    params: ClassVar[type[MethodParams]] = Params
    training_need: ClassVar[Literal["none", "optional", "required"]] = "required"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "models run per image (1 to 3)"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """None: no tokens leave."""
        return []

    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Of the last member; the cost of a cascade is `exit_costs`."""
        return dense_blocks(geometry)

    @property
    def surgery(self) -> type[GraphPass]:
        """See `Method.surgery`."""
        from vitprune.methods.dvt.surgery import DvtSurgery

        return DvtSurgery

    @property
    def training(self) -> type[Behaviour]:
        """See `Method.training`."""
        from vitprune.methods.dvt.training import DvtTraining

        return DvtTraining

    @property
    def pipeline(self) -> Pipeline:
        """See `Method.pipeline`."""
        from vitprune.methods.dvt.pipeline import CascadePipeline

        return CascadePipeline()


METHOD = Dvt()
