"""Loss terms as functions of tensors (methods.md §4.7, §5.1, §6.1, §7.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean over images; targets int64 [B], smoothed here, or float [B,classes], taken as they are (mixup has smoothed them)."""
    return functional.cross_entropy(logits, targets, label_smoothing=0.0 if targets.is_floating_point() else smoothing)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits [B,classes], mean over images."""
    return functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def token_distillation(student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Mean squared error over kept patches; tokens [B,P,C], kept float [B,P] of 0 and 1 (no gradient goes through it)."""
    weight = kept.detach()
    error = (student - teacher).square().mean(dim=-1)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def budget(macs: Tensor, aim: float, scale: float) -> Tensor:
    """|mean MACs - aim| / scale; macs float [B]."""
    return (macs.mean() - aim).abs() / scale


def keep_ratio(kept: list[Tensor], ratios: list[float]) -> Tensor:
    """Squared distance of the share of kept patches from its aim, mean over images and stages; kept: float [B,P] per stage."""
    terms = [(mask.mean(dim=1) - ratio).square().mean() for mask, ratio in zip(kept, ratios, strict=True)]
    return torch.stack(terms).mean()


def depth_target(depth: int, centre: float, width: float, official: bool) -> Tensor:
    """Gaussian over block numbers 0..depth-1, float32 [depth].

    Args:
        depth: number of blocks. centre, width: mean and standard deviation. official: scaled by 0.98 / (sum below the centre) as
            in the released code, whose result is no distribution (its sum at depth 12, centre 8 is 3.26); else by its sum.
    """
    density = [math.exp(-0.5 * ((block - centre) / width) ** 2) / (width * math.sqrt(2 * math.pi)) for block in range(depth)]
    if official:
        below = sum(density[: int(centre)])
        return torch.tensor([0.98 * value / below for value in density])
    return torch.tensor([value / sum(density) for value in density])


def depth_prior(means: Tensor, target: Tensor, official: bool) -> Tensor:
    """Divergence of the halting scores' distribution over depth from a target.

    Args:
        means: [L] mean halting score of each block. target: [L]. official: divide by L as `batchmean` does to a vector, and keep
            the clamp to [0.01, 0.99] that moves probability; else only a floor against log(0).
    """
    share = means / means.sum().clamp(min=1e-12)
    if official:
        return functional.kl_div(share.clamp(0.01, 0.99).log(), target, reduction="batchmean")
    return (target * (target.clamp(min=1e-12).log() - share.clamp(min=1e-6).log())).sum()
