"""The tensor maths of ATS with merged drops (methods.md §17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def nearest_kept(metric: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Kept patch most similar to every patch, ties to the lower slot.

    Args:
        metric: float32 [B,P,d] of unit length (`vitprune.methods.tome.metric`). chosen: bool [B,P], kept slots.

    Returns:
        int64 [B,P], its slot, and float32 [B,P], how far ahead of the second most similar it is (infinite when alone).
    """
    import torch

    similarity = (metric @ metric.transpose(1, 2)).masked_fill(~chosen[:, None, :], float("-inf"))
    into = similarity.argmax(dim=2)
    best = similarity.gather(2, into[:, :, None])[:, :, 0]
    others = similarity.scatter(2, into[:, :, None], float("-inf")).amax(dim=2)
    return into, torch.where(others.isinf(), torch.full_like(others, float("inf")), best - others)
