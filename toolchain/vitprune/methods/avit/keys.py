"""Recipe keys and site options of A-ViT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from vitprune.errors import RecipeError
from vitprune.methods.base import MethodParams
from vitprune.methods.train_keys import Rate, TrainKeys, Weight

if TYPE_CHECKING:
    pass


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
