"""Recipe keys and site options of DVT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from vitprune.methods.base import MethodParams
from vitprune.methods.train_keys import Rate, TrainKeys, Weight

if TYPE_CHECKING:
    pass


EXITS = 3

Grid = Annotated[int, Field(ge=2, le=256)]

Width = Annotated[int, Field(gt=0, le=4096)]


class Params(MethodParams):
    """Recipe keys of DVT.

    stages: none, a cascade has no prune sites.
    backbone: "deit", plain DeiT members; "t2t", T2T-ViT members.
    grids: patches per side of the three members, ascending; the last is the grid of the named model.
    thresholds: confidence at which exits 1 and 2 answer; null = that exit never answers; the last one always does.
    feature_dim, feature_hidden: width of the reused features and of the hidden layer that makes them.
    relation_ratio: widening of the 1x1 convolutions on the reused relations.
    exit_cost: cumulative cost of answering at each exit in any unit (measured milliseconds); null = MACs of the cost model.
    single_graph: also write cascade.onnx, one graph for batch 1 with nested If.
    """

    method: Literal["dvt"] = "dvt"
    stages: list[int] = Field(default=[], max_length=0)
    backbone: Literal["deit", "t2t"] = "deit"
    grids: list[Grid] = Field(default=[7, 10, 14], min_length=EXITS, max_length=EXITS)
    thresholds: list[Annotated[float, Field(allow_inf_nan=False)] | None] = Field(min_length=EXITS - 1, max_length=EXITS - 1)
    feature_dim: Width = 48
    feature_hidden: Width = 128
    relation_ratio: Annotated[int, Field(gt=0, le=16)] = 3
    exit_cost: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        default=None, min_length=EXITS, max_length=EXITS
    )
    single_graph: bool = False

    @field_validator("grids")
    @classmethod
    def _finer(cls, grids: list[int]) -> list[int]:
        if grids != sorted(set(grids)):
            raise ValueError(f"every member's grid is finer than the one before; in order they are {sorted(set(grids))}")
        return grids

    @field_validator("exit_cost")
    @classmethod
    def _cumulative(cls, costs: list[float] | None) -> list[float] | None:
        if costs is not None and costs != sorted(costs):
            raise ValueError("costs are cumulative: reaching a later exit includes all members before it")
        return costs


class Train(TrainKeys):
    """Recipe keys of training DVT (methods.md §4.7).

    exit_weights: of the cross-entropies of the three exits, which are trained together.
    """

    epochs: Annotated[int, Field(gt=0, le=10000)] = 300
    lr: Rate = 5e-4
    min_lr: Weight = 1e-5
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    cooldown_epochs: Annotated[int, Field(ge=0)] = 10
    weight_decay: Weight = 0.05
    ema: float | None = 0.99996
    exit_weights: list[Weight] = Field(default=[1.0, 1.0, 1.0], min_length=EXITS, max_length=EXITS)
