"""AS-ViT, Adaptive Sparse ViT (IJCAI 2023, arXiv 2209.13802); equations of methods.md §5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Method, MethodParams, Site, per_stage
from vitprune.methods.cost import removed_before
from vitprune.methods.topk import select as select_top
from vitprune.training.keys import Rate, TrainKeys, Weight

if TYPE_CHECKING:
    from torch import Tensor

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


def score(cls_attention: Tensor, context: Tensor, head_weight: bool) -> Tensor:
    """Class attention with heads weighted by the norm of their attention output before the projection.

    Args:
        cls_attention: [B,H,P] CLS row of the softmax, patches only. context: A·V of the patches, [B,H,P,d].
        head_weight: false gives the plain mean over heads.

    Returns:
        float32 [B,P], not normalised.
    """
    row = cls_attention.float()
    if not head_weight:
        return row.mean(dim=1)
    norm = context.float().norm(dim=-1)
    return (row * norm / (norm.sum(dim=1, keepdim=True) + 1e-8)).sum(dim=1)


def accumulate(previous: Tensor | None, new: Tensor, mode: str) -> Tensor:
    """Score to compare with the thresholds after one more scored block; both [B,P]."""
    if previous is None or mode == "last":
        return new
    return previous + new if mode == "accu" else EMA_OLD * previous + EMA_NEW * new


def select(score: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Strict comparison per image.

    Args:
        score: float32 [B,P]. valid: bool [B,P]. threshold: rounded to float32 before it is used.

    Returns:
        keep bool [B,P] and margin float64 [B,P] = |score - threshold|, infinite where not valid.
    """
    import torch

    limit = torch.tensor(threshold, dtype=torch.float32, device=score.device)
    margin = (score.double() - limit.double()).abs().masked_fill(~valid, float("inf"))
    return valid & (score > limit), margin


def select_batch(score: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The released code's batch path: all images keep the mean number above the threshold, rounded down; arguments as `select`."""
    import torch

    above, margin = select(score, valid, threshold)
    keep = int(above.sum()) // len(score)
    if keep == 0:
        return torch.zeros_like(above), margin
    chosen, gap = select_top(score.masked_fill(~valid, float("-inf")), keep)
    return chosen, torch.minimum(margin, gap)


class Asvit(Method):
    """Adaptive Sparse ViT."""

    name: ClassVar[str] = "asvit"
    summary: ClassVar[str] = "head-weighted class attention above a threshold, before 3 blocks; thresholds stay editable"
    paper: ClassVar[str] = "Adaptive Sparse ViT, IJCAI 2023, arXiv 2209.13802"
    kind: ClassVar[str] = "threshold"
    params: ClassVar[type[MethodParams]] = Params
    training: ClassVar[str] = "required"
    train: ClassVar[type[TrainKeys]] = Train

    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
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
            options = {
                "mode": "threshold",
                "theta": float(threshold),
                "capacity": limit if limit < entering else 0,
                "infer": params.infer,
                "may_be_empty": True,
            }
            sites.append(Site(block, entering, limit, options))
            entering = limit
        return sites

    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Tokens leave before the block; see `Method.block_tokens`."""
        return removed_before(sites, geometry, kept)


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


METHOD = Asvit()
