"""A-ViT, adaptive tokens by halting (Yin et al., CVPR 2022, arXiv 2112.07658); equations of methods.md §6.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_before
from vitprune.training.keys import Rate, TrainKeys, Weight

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[int, Field(gt=0, le=65536)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Params(MethodParams):
    """Recipe keys of A-ViT.

    gate_scale, gate_center: gamma and beta of the halting score sigmoid(gamma * x[channel] - beta); required, because the
    published checkpoints hold them only in their file names. eps: a token halts when its cumulated score passes 1 - eps.
    channel: embedding channel that carries the score. compact_at: blocks before which halted patches are physically removed;
    between them they are masked, which gives the same result. cls_exit: drop all patches of an image once its CLS token has
    halted (exact for the logits). capacity: largest number of patches after a compaction (padded shapes), one or one per entry
    of compact_at; null = no bound.
    """

    method: Literal["avit"] = "avit"
    stages: list[int] = Field(default=[3, 6, 9], alias="compact_at")
    gate_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    gate_center: Finite
    eps: Annotated[float, Field(gt=0, lt=1)] = 0.01
    channel: Annotated[int, Field(ge=0)] = 0
    cls_exit: bool = True
    capacity: Positive | list[Positive | None] | None = None

    @model_validator(mode="before")
    @classmethod
    def _gate_is_given(cls, data: Any) -> Any:
        """Raise RecipeError VP140 when the gate's constants are missing: a guess would silently change every decision."""
        missing = [key for key in ("gate_scale", "gate_center") if isinstance(data, dict) and data.get(key) is None]
        if missing:
            raise RecipeError(
                140,
                f"prune.{missing[0]} is missing",
                cause="the halting score is sigmoid(gate_scale * x - gate_center); checkpoints do not store these two constants, "
                "the published ones carry them in the file name (small-10-75: gate_scale 10, gate_center 75)",
                next_step="set prune.gate_scale and prune.gate_center to the values used in training, "
                "for example --set prune.gate_scale=10 --set prune.gate_center=75",
            )
        return data


class Train(TrainKeys):
    """Recipe keys of training A-ViT (methods.md §6.1, §6.2).

    ponder_weight: of the mean of (depth + remainder) over tokens. prior_weight: of the divergence of the halting scores' means
    from a Gaussian over depth. target_depth: centre of that Gaussian, counted from 0; null = two thirds of the depth (8 of 12).
    target_width: its standard deviation. prior: "corrected" takes means over the active patches of all images and a target that
    sums to 1; "official" is the released code's: the first image of a batch is left out, CLS and halted tokens count, and the
    target sums to 3.26 at depth 12.
    """

    epochs: Annotated[int, Field(gt=0, le=10000)] = 100
    lr: Rate = 5e-4
    min_lr: Weight = 1e-5
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    weight_decay: Weight = 0.05
    ema: float | None = 0.99996
    ponder_weight: Weight = 5e-4
    prior_weight: Weight = 1e-3
    target_depth: float | None = None
    target_width: Rate = 1.0
    prior: Literal["corrected", "official"] = "corrected"


def halting_score(x: Tensor, channel: int, gate_scale: float, gate_center: float) -> Tensor:
    """Score h = sigmoid(gamma * x[:, :, channel] - beta) of every token; x [B,N,C] (a block's output) -> float32 [B,N]."""
    return (x[:, :, channel].float() * gate_scale - gate_center).sigmoid()


def accumulate(
    h: Tensor, cumulated: Tensor, remainder: Tensor, active: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of the halting rule (methods.md §6.1), per token; all tensors of one shape, `active` bool.

    A token whose cumulated score is exactly 1 - eps neither halts nor goes on: it leaves and its weight is lost, as in the
    official rule (c > 1 - eps, c < 1 - eps).

    Returns:
        cumulated, remainder, active after the block and the weight of this block's output; 0 where the token was inactive.
    """
    import torch

    limit = torch.tensor(1 - eps, dtype=cumulated.dtype, device=cumulated.device)
    total = torch.where(active, cumulated + h, cumulated)
    halts, goes_on = active & (total > limit), active & (total < limit)
    none = torch.zeros_like(h)
    weight = torch.where(halts, remainder, torch.where(goes_on, h, none))
    return total, torch.where(goes_on, remainder - h, remainder), goes_on, weight


def score(cumulated: Tensor, eps: float) -> Tensor:
    """What is left until a token halts, (1 - eps) - c: positive exactly for tokens that go on."""
    import torch

    return torch.tensor(1 - eps, dtype=cumulated.dtype, device=cumulated.device) - cumulated


class Avit(Method):
    """Adaptive tokens: every token has its own depth."""

    name: ClassVar[str] = "avit"
    summary: ClassVar[str] = "every token halts by a score in its own channel 0; CLS is a halting-weighted sum over blocks"
    paper: ClassVar[str] = "Yin et al., CVPR 2022, arXiv 2112.07658"
    kind: ClassVar[str] = "halting"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "required"
    train: ClassVar[type[TrainKeys]] = Train
    varies: ClassVar[str] = "depth of each token"

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
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
            options = {"mode": "threshold", "threshold": 0.0, "capacity": limit if limit < entering else 0}
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

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Rows leave before the block of a compaction; masked rows in between are still computed."""
        return removed_before(sites, geometry, kept)


METHOD = Avit()
