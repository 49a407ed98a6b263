"""The tensor maths of EViT (methods.md §7.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def fuse(rows: Tensor, score: Tensor, dropped: Tensor) -> Tensor:
    """The fused token: sum over dropped tokens of score * row; the weights are not normalised.

    Args:
        rows: [B,P,C] after the attention residual. score: [B,P]. dropped: bool [B,P].

    Returns:
        [B,1,C].
    """
    return (score * dropped).to(rows.dtype).unsqueeze(1) @ rows
