"""The tensor maths of DVT (methods.md §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability float64 [B] of logits [B,classes] (methods.md §4.5)."""
    return logits.double().softmax(dim=-1).amax(dim=-1)


def fires(certainty: Tensor, threshold: float | None) -> Tensor:
    """Which images [B] an exit answers: confidence >= threshold; a null threshold answers none."""
    import torch

    return torch.zeros_like(certainty, dtype=torch.bool) if threshold is None else certainty >= threshold
