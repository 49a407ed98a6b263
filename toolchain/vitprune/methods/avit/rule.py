"""The tensor maths of A-ViT (methods.md §6.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
