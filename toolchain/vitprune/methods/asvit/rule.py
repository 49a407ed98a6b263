"""The tensor maths of AS-ViT (methods.md §5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune.methods._dropping.rule import select as select_top
from vitprune.methods.asvit.keys import EMA_NEW, EMA_OLD

if TYPE_CHECKING:
    from torch import Tensor


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
    norm: Tensor = context.float().norm(dim=-1)
    return (row * norm / (norm.sum(dim=1, keepdim=True) + 1e-8)).sum(dim=1)


def score_errors(errors: Tensor, cls_attention: Tensor, context: Tensor, head_weight: bool) -> Tensor:
    """How far scores move for one rounding of the type.

    Args:
        errors: [B,H,P] of the shares alone (`vitprune.methods._dropping.sizes.share_errors`). Others: as in `score`; a head's weight is a
            norm over a sum of norms, of context that is rounded: two roundings of itself.

    Returns:
        float32 [B,P].
    """
    return score(errors + 2 * cls_attention if head_weight else errors, context, head_weight)


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
