"""Ranking by CLS attention, shared by the methods that keep a constant number of tokens (methods.md §7.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def score(cls_attention: Tensor) -> Tensor:
    """Mean over heads of the CLS row of attention.

    Args:
        cls_attention: [B,H,P] CLS row of the softmax without the columns of prefix tokens.

    Returns:
        float32 [B,P].
    """
    return cls_attention.float().mean(dim=1)


def mean_received(attention: Tensor, valid: Tensor, prefix: int) -> Tensor:
    """Mean over the tokens that are there of the attention that patches receive from them (LTP, Kim et al., KDD 2022, eq. 2).

    Args:
        attention: [B,H,N,N]. valid: bool [B,P], false on pads. prefix: number of prefix tokens, which ask as well.

    Returns:
        float32 [B,H,P].
    """
    import torch

    asking = torch.cat([valid.new_ones(len(valid), prefix), valid], dim=1).float()
    asking = asking / asking.sum(dim=1, keepdim=True)
    return torch.einsum("bq,bhqk->bhk", asking, attention.float())[:, :, prefix:]


def select(score: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` largest scores of every image, ties to the lower index.

    Args:
        score: float32 [B,P], every slot valid. keep: 1..P.

    Returns:
        chosen bool [B,P], and margin float64 [B,P]: distance of a score from the other side of the cut; infinite when
        nothing is cut.
    """
    import torch

    order = score.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, :keep], True)
    exact = score.double()
    if keep == score.shape[1]:
        return chosen, torch.full_like(exact, float("inf"))
    ranked = exact.gather(1, order)
    return chosen, torch.where(chosen, exact - ranked[:, keep : keep + 1], ranked[:, keep - 1 : keep] - exact)
