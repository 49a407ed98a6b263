"""The tensor maths of POMT (methods.md §7.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def score(attention: Tensor, value: Tensor, prefix: int) -> Tensor:
    """Column term plus value term, both normalised over the patches of one image.

    Args:
        attention: softmax probabilities [B,H,N,N]. value: [B,H,N,d]. prefix: leading tokens that are not scored.

    Returns:
        float32 [B,N-prefix]: c_j / max_i c_i + softmax_j(v), with c_j the sum over all queries of the maximum over heads of
        attention, v_j the sum over channels of the maximum over heads of the values.
    """
    column = attention.float().amax(dim=1).sum(dim=1)[:, prefix:]
    content = value.float().amax(dim=1).sum(dim=-1)[:, prefix:]
    return column / column.amax(dim=1, keepdim=True) + content.softmax(dim=1)


def mean(rows: Tensor, score: Tensor, dropped: Tensor) -> Tensor:
    """Mean of the dropped rows: rows [B,P,C], dropped bool [B,P] with the same count per image -> [B,1,C]."""
    weight = dropped.to(rows.dtype)
    return (weight / weight.sum(dim=1, keepdim=True)).unsqueeze(1) @ rows
