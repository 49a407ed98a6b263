"""A dense ViT taken apart: what the reference needs of a model, whichever library or file it comes from.

A family comes in as an adapter of this kind; blocks have the attributes that `vitprune.vit.blocks` reads: norm1, attn (qkv, num_heads,
head_dim, q_norm, k_norm, scale, norm, proj; where there is one a gate, a `support.attention.Rotation` as `rotation`, a `PositionBias`
as `position_bias`), ls1, norm2, mlp, ls2; with an MLP beside the attention `beside` instead of the last three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.methods.base import Geometry
from vitprune.recipe import OutputSection


class DenseViT(ABC):
    """Embedding, blocks and head of one model.

    Attributes:
        geometry: its sizes. blocks: one object per block. global_pool: "token" where the head reads prefix tokens alone, "avg" where it
            averages over patches, "map" where it pools them by attention.
    """

    geometry: Geometry
    blocks: Sequence[Any]
    global_pool: str

    @abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Images [B,channels,H,W] -> tokens [B,N,C] before block 0, prefix first."""

    @abstractmethod
    def head(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Logits [B,classes] of the tokens behind the last block.

        Args:
            tokens: [B,K,C], prefix first. weight: float [B,K], how many patches each row stands for: 0 on pads, 1 on prefix tokens.
        """

    def taken(self, output: OutputSection) -> list[int]:
        """Behind how many blocks features are taken, ascending."""
        raise NotImplementedError

    def features(self, tokens: list[Tensor], output: OutputSection) -> list[Tensor]:
        """Outputs, in order, made of all tokens [B,N,C] behind the blocks that `taken` names."""
        raise NotImplementedError


def mlp_hidden(model: Any) -> int:
    """Hidden width of a plain MLP with as many weights as the model's: gated ones have three matrices, packed or not."""
    split = getattr(model.blocks[0], "in_split", None)
    if split is not None:  # the MLP stands beside the attention
        return int(split[0])
    weights: int = sum(part.weight.numel() for part in model.blocks[0].mlp.modules() if isinstance(part, nn.Linear))
    return round(weights / (2 * int(model.embed_dim)))


def geometry(model: Any) -> Geometry:
    """Sizes of a timm model."""
    conv = model.patch_embed.proj
    grid = model.patch_embed.grid_size
    patches = grid[0] * grid[1]
    plain = patches * conv.weight.numel() if hasattr(conv, "weight") else 0
    embed = getattr(model.patch_embed, "macs", plain)  # tokens-to-token is more than its last convolution
    return Geometry(
        depth=len(model.blocks),
        patches=patches,
        prefix=model.num_prefix_tokens,
        width=model.embed_dim,
        heads=getattr(model.blocks[0], "attn", model.blocks[0]).num_heads,
        mlp_hidden=mlp_hidden(model),
        embed_macs=embed,
        classes=model.num_classes,
        has_cls=model.cls_token is not None,
    )


def row_weights(valid: Tensor, prefix: int, size: Tensor | None) -> Tensor:
    """Float32 [B,prefix+P'] for `DenseViT.head`: 1 on prefix tokens, 0 on pads, else how many patches a row stands for (size [B,P'])."""
    patches = valid.float() if size is None else valid.float() * size.float()
    return torch.cat([torch.ones_like(patches[:, :1]).expand(-1, prefix), patches], dim=1)
