"""timm's transformer blocks as `vitprune.vit.blocks` reads them; their modules are used, not copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.support.attention import Rotation

Rows = Callable[[Tensor], Tensor]


class AttentionParts:
    """timm's EvaAttention or AttentionRope: packed or separate maps, biases per part, shared key heads, rotary positions.

    Attributes: see `vitprune.vit.dense`; rotation: of the patches, or None.
    """

    def __init__(self, attn: Any, rotation: Rotation | None) -> None:
        self.attn, self.rotation = attn, rotation
        self.num_heads, self.head_dim, self.scale = attn.num_heads, attn.head_dim, attn.scale
        self.q_norm, self.k_norm, self.norm, self.proj = attn.q_norm, attn.k_norm, attn.norm, attn.proj
        self.gate = attn.gate

    def qkv(self, h: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,3*H*d]: queries, keys, values."""
        attn = self.attn
        if attn.qkv is not None:
            packed: Tensor = attn.qkv(h)
            bias = getattr(attn, "q_bias", None)
            return packed if bias is None else packed + torch.cat([bias, attn.k_bias, attn.v_bias])
        return torch.cat([attn.q_proj(h), self._every_head(attn.k_proj(h)), self._every_head(attn.v_proj(h))], dim=-1)

    def _every_head(self, rows: Tensor) -> Tensor:
        """Keys or values [B,N,h*d] of shared heads, repeated for the queries' heads: [B,N,H*d]."""
        groups = getattr(self.attn, "num_kv_groups", 1)
        heads = rows.reshape(*rows.shape[:-1], -1, self.head_dim)
        return heads.repeat_interleave(groups, dim=-2).flatten(-2)


class BlockParts:
    """A block in parts: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    Args:
        block: EvaBlock, EvaBlockPostNorm, ResPostBlock or Block. attn: its attention. post: its norms follow attention and MLP.
    """

    def __init__(self, block: Any, attn: Any, post: bool) -> None:
        none: Rows = nn.Identity()
        self.attn, self.mlp = attn, block.mlp
        self.norm1: Rows = none if post else block.norm1
        self.norm2: Rows = none if post else block.norm2
        self.ls1 = block.norm1 if post else _scaling(block, 1)
        self.ls2 = block.norm2 if post else _scaling(block, 2)


def _scaling(block: Any, number: int) -> Rows:
    """LayerScale as Block (`ls1`) or EvaBlock (`gamma_1`) has it."""
    own: Rows | None = getattr(block, f"ls{number}", None)
    if own is not None:
        return own
    gamma: Tensor | None = getattr(block, f"gamma_{number}", None)
    return nn.Identity() if gamma is None else lambda x: x * gamma


def taken_apart(block: Any, rotation: Rotation | None = None) -> Any:
    """A timm block in parts; the standard one is its own parts."""
    kind, attention = type(block).__name__, type(block.attn).__name__
    if attention == "Attention" and kind == "Block":
        return block
    attn = block.attn if attention == "Attention" else AttentionParts(block.attn, rotation)
    return BlockParts(block, attn, kind in ("EvaBlockPostNorm", "ResPostBlock"))


def why_not(block: nn.Module) -> str:
    """Why a timm block cannot be taken apart, or ""."""
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block, ResPostBlock

    if type(block) not in (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm):
        return f"its blocks are of type {type(block).__name__}"
    if type(block.attn) not in (Attention, AttentionRope, EvaAttention):
        return f"its attention is of type {type(block.attn).__name__}"
    return ""
