"""The tensor maths of DynamicViT (methods.md §7.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitprune.methods.dynamicvit.keys import NORM_EPS

if TYPE_CHECKING:
    from torch import Tensor


def score(patches: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Log-probability of keeping, by the stage's predictor.

    Args:
        patches: rows of the patches present, [B,P,C]. weights: the predictor's tensors by the names of the published
            checkpoints (in_conv.0/1, out_conv.0/2/4), Linear weights [out,in].

    Returns:
        float32 [B,P].
    """
    import torch
    from torch.nn.functional import gelu, layer_norm, linear

    def apply(x: Tensor, name: str) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = patches.float()
    x = layer_norm(x, x.shape[-1:], weights["in_conv.0.weight"], weights["in_conv.0.bias"], NORM_EPS)
    x = gelu(apply(x, "in_conv.1"))
    half = x.shape[-1] // 2
    whole = x[..., half:].mean(dim=1, keepdim=True).expand(-1, x.shape[1], -1)
    x = torch.cat([x[..., :half], whole], dim=-1)
    x = apply(gelu(apply(gelu(apply(x, "out_conv.0")), "out_conv.2")), "out_conv.4")
    return x.log_softmax(dim=-1)[..., 0]
