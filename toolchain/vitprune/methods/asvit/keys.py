"""Recipe keys and site options of AS-ViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import MethodParams, SamplingOptions
from vitprune.methods.train_keys import Rate, TrainKeys, Weight

if TYPE_CHECKING:
    pass


Capacity = Annotated[int, Field(gt=0, le=65536)]

Threshold = Annotated[float, Field(allow_inf_nan=False)]

FIRST_SCORE = 2  # the first block whose attention yields a score

EMA_OLD, EMA_NEW = 0.99, 0.01


class Params(MethodParams):
    """Recipe keys of AS-ViT.

    stages: blocks before which tokens leave, the first at 3 or later. thresholds: a patch stays if its score is strictly larger;
    one for all stages or one per stage (-1 keeps all).
    score_mode: "last" = score of the block before the stage, "accu" = sum of the scores since block 2, "ema" = their running
    mean with weight 0.99 on the old value. head_weight: weigh heads by the norm of their output; else plain mean of heads.
    infer: "per_image" thresholds every image; "batch_topk" is the released code's batch path, in which all images keep the same
    number and a result depends on its batch mates (only to reproduce published tables).
    capacity: largest number of patches a stage may keep; null = all that can enter.
    """

    method: Literal["asvit"] = "asvit"
    stages: list[int] = Field(default=[4, 7, 10], min_length=1)
    thresholds: Threshold | list[Threshold] = [0.001, 0.002, 0.003]
    score_mode: Literal["last", "accu", "ema"] = "last"
    head_weight: bool = True
    infer: Literal["per_image", "batch_topk"] = "per_image"
    capacity: Capacity | list[Capacity | None] | None = None

    def scored_blocks(self) -> set[int]:
        """Blocks in which a score is taken."""
        if self.score_mode == "last":
            return {stage - 1 for stage in self.stages}
        return set(range(FIRST_SCORE, self.stages[-1]))


@dataclass(frozen=True)
class AsvitOptions(SamplingOptions):
    """theta: the site's threshold. infer: as in `Params`."""

    theta: float = 0.0
    infer: Literal["per_image", "batch_topk"] = "per_image"


def with_thresholds(thresholds: list[float]) -> dict[str, Any]:
    """Method keys for thresholds, one per stage; calibrated and learned ones alike."""
    return {"thresholds": thresholds}


class Train(TrainKeys):
    """Recipe keys of training AS-ViT (methods.md §5.1, §5.2).

    budget: share of the dense MACs to aim at; budget_weight, budget_unit: the term |mean MACs - budget|, "relative" to the dense
    MACs (the paper) or in "giga" MACs (the released code). temperature: width of the sigmoid that stands in for the comparison in
    the backward pass; the published 1e-4 belongs to 196 patches. threshold_lr_scale: of the thresholds' learning rate, which
    never decay.
    """

    ema: float | None = 0.99996
    distill_weight: Weight = 0.5
    budget: Annotated[float, Field(gt=0, le=1)] = 0.7
    budget_weight: Weight = 2.0
    budget_unit: Literal["relative", "giga"] = "relative"
    temperature: Rate = 1e-4
    threshold_lr_scale: Rate = 1.0


def refuse_padded_batch_topk(infer: str, padded: bool) -> None:
    """Batch-wide top-k has no static size.

    Raises:
        RecipeError: VP122.
    """
    if padded and infer == "batch_topk":
        raise RecipeError(
            122,
            "infer: batch_topk does not go with padded shapes",
            cause="its count is computed from the whole batch at run time",
            next_step="--set graph.shapes=dynamic, or --set prune.infer=per_image",
        )
