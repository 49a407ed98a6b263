"""Recipe keys and site options of DynamicViT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import Self

from vitprune.methods._dropping.sites import Count, Rate
from vitprune.methods.base import MethodParams, SiteOptions
from vitprune.methods.train_keys import TrainKeys, Weight
from vitprune.support.resources import SHIPPED

if TYPE_CHECKING:
    pass


NORM_EPS = 1e-5  # the predictor's LayerNorm; the backbone has 1e-6


class Params(MethodParams):
    """Recipe keys of DynamicViT.

    stages: blocks before which tokens leave. keep_rate: share rho of the model's patches; stage i keeps int(P * rho**i). A list
    gives the share of all P patches per stage. keep: patches a stage keeps; wins over keep_rate.
    predictor: checkpoint (.pth or .safetensors) with score_predictor.<i>.*, or "random" for untrained weights (smoke tests only).
    predictor_seed: seed of the untrained weights.
    """

    paths: ClassVar[tuple[str, ...]] = ("predictor",)

    method: Literal["dynamicvit"] = "dynamicvit"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None
    predictor: str | None = None
    predictor_seed: int = Field(default=0, ge=0)

    def portable(self) -> Self:
        """The checkpoint by its file name only, or as shipped."""
        return (
            self
            if self.predictor is None or self.predictor.startswith(SHIPPED)
            else self.model_copy(update={"predictor": PurePath(self.predictor).name})
        )


@dataclass(frozen=True)
class DynamicVitOptions(SiteOptions):
    """stage: number of the predictor. slots: patches that enter. keep: patches that stay. width: channels of a token."""

    stage: int = 0
    slots: int = 0
    keep: int = 0
    width: int = 0


class Train(TrainKeys):
    """Recipe keys of training DynamicViT (methods.md §7.1).

    ratio_weight: of the squared distance of the share of kept patches from keep_rate, mean over stages. distill_weight: of the
    teacher's logits, token_weight: of its patch tokens (mean squared error on kept patches). backbone_lr_scale: learning rate of
    the backbone relative to the predictors' (not published with the equations; ours). gumbel_temperature: of the sampled decision.
    """

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    min_lr: Weight = 1e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    weight_decay: Weight = 0.05
    distill_weight: Weight = 0.5
    ratio_weight: Weight = 2.0
    token_weight: Weight = 0.5
    backbone_lr_scale: Annotated[float, Field(gt=0, le=1)] = 0.1
    gumbel_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
