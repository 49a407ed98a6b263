"""Top-k, EViT and ToMe on timm's DeiT as one writes them in PyTorch without a toolchain: whole attention, the score read off its probabilities,
gathers. For benchmarks/plain_export.py, where torch's exporters cannot take our reference; logits are held against the reference's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class PlainModel(nn.Module):
    """A timm model whose blocks run one after the other through `after_attention`, which may change the tokens."""

    def __init__(self, model: Any, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.stages = model, stages

    def forward(self, x: Tensor) -> Any:
        """[B,classes] of [B,3,H,W]."""
        model = self.model
        x = model.patch_embed(x)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
        self.size: Tensor | None = None
        for index, block in enumerate(model.blocks):
            out, weights, key = attention(block.attn, block.norm1(x), self.size)
            x = self.after_attention(index, x + out, weights, key)
            x = x + block.mlp(block.norm2(x))
        self.size = None
        return model.head(model.norm(x)[:, 0])

    def after_attention(self, index: int, x: Tensor, weights: Tensor, key: Tensor) -> Tensor:
        """Tokens [B,N',C] of those behind the attention, x [B,N,C]; weights: [B,H,N,N]; key: [B,H,N,D]."""
        raise NotImplementedError


def attention(attn: Any, h: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B,N,C], probabilities [B,H,N,N] and keys [B,H,N,D]; size: [B,N,1], tokens that a token stands for."""
    batch, tokens, width = h.shape
    query, key, value = attn.qkv(h).reshape(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    logits = query @ key.transpose(-2, -1) * attn.scale
    weights = (logits if size is None else logits + size.log().transpose(1, 2)[:, None]).softmax(dim=-1)
    return attn.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width)), weights, key


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows [B,K,C] of x [B,N,C] by their numbers [B,K]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class TopK(PlainModel):
    """Keep the patches with the largest mean attention of the class token; with `fuse` the others become one token (EViT, section 3)."""

    def __init__(self, model: Any, stages: tuple[int, ...], rate: float, fuse: bool = False) -> None:
        super().__init__(model, stages)
        self.rate, self.fuse = rate, fuse

    def after_attention(self, index: int, x: Tensor, weights: Tensor, key: Tensor) -> Tensor:
        if index not in self.stages:
            return x
        score, patches = weights[:, :, 0, 1:].mean(dim=1), x[:, 1:]
        keep = math.ceil(self.rate * score.shape[1])
        order = score.argsort(dim=1, descending=True)
        parts = [x[:, :1], rows(patches, order[:, :keep])]
        if self.fuse:
            left = order[:, keep:]
            parts.append((rows(patches, left) * score.gather(1, left)[..., None]).sum(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)


class ToMe(PlainModel):
    """Merge r pairs a block: every second token with the token of the others whose key is most alike (ToMe, section 3 and appendix D)."""

    def __init__(self, model: Any, r: int) -> None:
        super().__init__(model, ())
        self.r = r

    def after_attention(self, index: int, x: Tensor, weights: Tensor, key: Tensor) -> Tensor:
        size = torch.ones_like(x[..., :1]) if self.size is None else self.size
        metric = nn.functional.normalize(key.mean(dim=1), dim=-1)
        r = min(self.r, (x.shape[1] - 1) // 2)
        alike = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        alike = torch.cat([torch.full_like(alike[:, :1], -math.inf), alike[:, 1:]], dim=1)  # the class token stays
        best, partner = alike.max(dim=-1)
        order = best.argsort(dim=1, descending=True)
        leaving, staying = order[:, :r], order[:, r:].sort(dim=1).values

        def merged(values: Tensor) -> Tensor:
            first, second = values[:, ::2], values[:, 1::2]
            into = partner.gather(1, leaving)[..., None].expand(-1, -1, values.shape[-1])
            return torch.cat([rows(first, staying), second.scatter_add(1, into, rows(first, leaving))], dim=1)

        x, self.size = merged(x * size), merged(size)
        return x / self.size
