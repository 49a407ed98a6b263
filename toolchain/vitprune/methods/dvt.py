"""DVT, Dynamic Vision Transformer (Wang et al., NeurIPS 2021, arXiv 2105.15075): a cascade of three ViTs with early exit.

Tokens are never dropped: an easy image is answered by a model with few, large patches, and only a hard one goes on to the next
model, which reuses features and relations of the one before (methods.md §4). What is exported is therefore three graphs and a rule,
carried out by `vitprune.cascade`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site
from vitprune.methods.cost import dense_blocks
from vitprune.models.t2t_sizes import tokenizer_macs
from vitprune.training.keys import Rate, TrainKeys, Weight

if TYPE_CHECKING:
    from torch import Tensor

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


def embedding(image: int, grid: int) -> tuple[int, int]:
    """Patch size and padding with which a convolution turns an image side into `grid` patches (methods.md §4.1: 32/0, 23/3, 16/0)."""
    patch = -(-image // grid)
    return patch, -(-(grid * patch - image) // 2)


def embed_macs(backbone: str, image: Sequence[int], grid: int, width: int) -> int:
    """MACs from an image (channels, height, width) to the tokens of one member."""
    if backbone == "t2t":
        return tokenizer_macs(image[1], grid, image[0], width)
    return grid * grid * image[0] * embedding(image[1], grid)[0] ** 2 * width


def confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability float64 [B] of logits [B,classes] (methods.md §4.5)."""
    return logits.double().softmax(dim=-1).amax(dim=-1)


def fires(certainty: Tensor, threshold: float | None) -> Tensor:
    """Which images [B] an exit answers: confidence >= threshold; a null threshold answers none."""
    import torch

    return torch.zeros_like(certainty, dtype=torch.bool) if threshold is None else certainty >= threshold


def member_macs(params: Any, geometry: Geometry, image: Sequence[int], member: int) -> float:
    """MACs of one member (0-based): backbone, wider MLP input, feature reuse, relation reuse and both resamplings.

    Args:
        params: `Params`. geometry: of the last member; width, heads, depth and MLP are those of all. image: (channels, height, width).
        member: which one.
    """
    grid, width = params.grids[member], geometry.width
    tokens = grid * grid + 1
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * geometry.mlp_hidden
    total = embed_macs(params.backbone, image, grid, width) + geometry.depth * block
    if member == 0:
        return float(total)
    before = params.grids[member - 1] ** 2 + 1
    channels = geometry.depth * geometry.heads
    feature = before * params.feature_hidden * (width + params.feature_dim) + tokens * before * params.feature_dim
    wider = tokens * params.feature_dim * geometry.mlp_hidden
    relation = 2 * before**2 * channels**2 * params.relation_ratio
    resampled = channels * (tokens * before**2 + tokens**2 * before)
    return float(total + geometry.depth * (feature + wider) + relation + resampled)


def exit_costs(params: Any, geometry: Geometry, image: Sequence[int]) -> list[float]:
    """Cumulative MACs of answering at each exit: an exit pays for all members before it (methods.md §4.6)."""
    total, costs = 0.0, []
    for member in range(EXITS):
        total += member_macs(params, geometry, image, member)
        costs.append(total)
    return costs


class Dvt(Method):
    """Dynamic Vision Transformer."""

    name: ClassVar[str] = "dvt"
    summary: ClassVar[str] = (
        "cascade of three DeiTs or T2T-ViTs on 7x7, 10x10, 14x14 tokens; confident images leave early, features are reused"
    )
    paper: ClassVar[str] = "Wang et al., NeurIPS 2021, arXiv 2105.15075"
    kind: ClassVar[str] = "reuse"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "required"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "models run per image (1 to 3)"
    pipeline: ClassVar[str] = "cascade"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """None: no tokens leave."""
        return []

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Of the last member; the cost of a cascade is `exit_costs`."""
        return dense_blocks(geometry)


METHOD = Dvt()
