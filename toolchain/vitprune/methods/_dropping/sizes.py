"""What the roundings of attention shares are relative to, computed from the reference's own queries and keys.

A share is a softmax, s_j = exp(l_j) / sum_k exp(l_k) with l_j = q . k_j. To first order ds_j = s_j (dl_j - sum_k s_k dl_k): a share moves by
itself times what its logit, and the mean logit, move by. What moves a logit is not its own rounding alone: q and k_j are results of
products, of inputs that differ already, so that their errors are relative to their length in every channel, also where the logit is a
small sum of large terms. By Cauchy and Schwarz |dl_j| <= u D_j with D_j = |q| |k_j|, u one rounding (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1, for products of rounded vectors).

A cut compares two scores, of which the mean's error is common: d(s_i - s_j) <= u (s_i D_i + s_j D_j + |s_i - s_j| sum_k s_k D_k),
averaged over rows (heads). A threshold is exact: ds_j <= u s_j (D_j + sum_k s_k D_k). Both are what a decision's distance is divided by
before it is compared with the roundings that a flip may be worth (`vitprune.support.precision.margin_tolerance`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def logit_sizes(query: Tensor, key: Tensor) -> Tensor:
    """|q| |k|: what roundings of attention logits are relative to.

    Args:
        query: [B,H,M,d], scaled. key: [B,H,N,d].

    Returns:
        float32 [B,H,M,N].
    """
    lengths = key.float().norm(dim=-1)
    product: Tensor = query.float().norm(dim=-1)[..., None] * lengths[..., None, :]
    return product


def share_errors(shares: Tensor, sizes: Tensor) -> Tensor:
    """How far shares move for one rounding: s_j (D_j + sum_k s_k D_k); all [...,N], the sum over the last axis."""
    return shares * (sizes + (shares * sizes).sum(dim=-1, keepdim=True))


def pair_errors(shares: Tensor, sizes: Tensor, prefix: int) -> Tensor:
    """How far the difference of two patches' scores moves for one rounding, where a score is the mean of R rows' shares.

    Args:
        shares: [B,R,N], rows of the softmax. sizes: [B,R,N] of their logits. prefix: leading tokens that are not compared.

    Returns:
        float64 [B,P,P].
    """
    weighted = (shares * sizes).double()
    mean = weighted.sum(dim=-1, keepdim=True)
    own = weighted.mean(dim=1)[:, prefix:]
    columns = (shares.double() * mean).transpose(1, 2)[:, prefix:].contiguous()
    return own[:, :, None] + own[:, None, :] + torch.cdist(columns, columns, p=1) / shares.shape[1]


def cut_sizes(score: Tensor, chosen: Tensor, margin: Tensor, errors: Tensor) -> Tensor:
    """What each patch's distance from the cut is to be divided by.

    A patch changes sides when any patch of the other side passes it, so the pair counts whose gap is the fewest roundings wide.

    Args:
        score: [B,P]. chosen: bool [B,P]. margin: float64 [B,P], the smallest gap of each patch to the other side. errors: [B,P,P] of
            `pair_errors`.

    Returns:
        float64 [B,P] with margin / size = the smallest gap in roundings; 1 where nothing is cut or two scores are equal.
    """
    exact = score.double()
    gap = (exact[:, :, None] - exact[:, None, :]).abs()
    across = chosen[:, :, None] ^ chosen[:, None, :]
    roundings = (gap / errors.clamp(min=torch.finfo(torch.float64).tiny)).masked_fill(~across, float("inf")).amin(dim=2)
    plain = (roundings == 0) | ~torch.isfinite(roundings) | ~torch.isfinite(margin)
    return torch.where(plain, torch.ones_like(margin), margin / torch.where(plain, torch.ones_like(margin), roundings))
