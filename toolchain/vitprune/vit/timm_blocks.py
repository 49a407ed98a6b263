"""timm's transformer blocks as `vitprune.vit.blocks` reads them; their modules are used, not copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.support.attention import PositionBias, Rotation

Rows = Callable[[Tensor], Tensor]


class AttentionParts:
    """An attention of timm with packed or separate maps, biases per part, shared key heads, rotary positions or position biases.

    Attributes: see `vitprune.vit.dense`; rotation, position_bias: or None.
    """

    def __init__(self, attn: Any, rotation: Rotation | None, position_bias: PositionBias | None) -> None:
        self.attn, self.rotation, self.position_bias = attn, rotation, position_bias
        self.num_heads, self.scale, self.proj = attn.num_heads, attn.scale, attn.proj
        self.head_dim = attn.proj.in_features // attn.num_heads
        none: Rows = nn.Identity()
        self.q_norm, self.k_norm, self.norm = (getattr(attn, name, none) for name in ("q_norm", "k_norm", "norm"))
        self.gate = getattr(attn, "gate", None)

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


class ParallelAttention:
    """The attention of timm's ParallelScalingBlock, whose first map makes the hidden rows of the MLP too."""

    def __init__(self, block: Any) -> None:
        self.block, self.rotation, self.position_bias, self.gate = block, None, None, None
        self.num_heads, self.head_dim, self.scale = block.num_heads, block.head_dim, block.scale
        self.q_norm, self.k_norm, self.norm = block.q_norm, block.k_norm, nn.Identity()

    def qkv(self, h: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,3*H*d]: queries, keys, values."""
        first = self.block.in_split[0]
        made, bias = self.block.in_proj, self.block.in_proj.bias
        return nn.functional.linear(h, made.weight[first:], None if bias is None else bias[first:])

    def proj(self, context: Tensor) -> Tensor:
        """[B,N,H*d] -> [B,N,C]."""
        whole = self.block.out_proj
        if whole is None:
            out: Tensor = self.block.attn_out_proj(context)
            return out
        return nn.functional.linear(context, whole.weight[:, : context.shape[-1]], whole.bias)


class ParallelParts:
    """timm's ParallelScalingBlock in parts: x + ls1(attn(norm1(x)) + beside(norm1(x)))."""

    def __init__(self, block: Any) -> None:
        self.block, self.attn, self.norm1, self.ls1 = block, ParallelAttention(block), block.in_norm, block.ls

    def beside(self, h: Tensor) -> Tensor:
        """The MLP of normalised rows [B,N,C]."""
        block, first = self.block, self.block.in_split[0]
        bias = block.mlp_bias if block.in_proj.bias is None else block.in_proj.bias[:first]
        hidden = block.mlp_act(nn.functional.linear(h, block.in_proj.weight[:first], bias))
        if block.out_proj is None:
            out: Tensor = block.mlp_out_proj(hidden)
            return out
        return nn.functional.linear(hidden, block.out_proj.weight[:, -hidden.shape[-1] :])


class BlockParts:
    """A block in parts: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    Args:
        block: EvaBlock, EvaBlockPostNorm, ResPostBlock, Block, or one with relative positions. attn: its attention. post: its norms follow attention and MLP.
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


def taken_apart(block: Any, rotation: Rotation | None = None, position_bias: PositionBias | None = None) -> Any:
    """A timm block in parts; the standard one is its own parts."""
    from timm.layers import Attention
    from timm.models.vision_transformer import Block, ParallelScalingBlock

    if type(block) is ParallelScalingBlock:
        return ParallelParts(block)
    plain = type(block.attn) is Attention
    if plain and type(block) is Block:
        return block
    attn = block.attn if plain else AttentionParts(block.attn, rotation, position_bias)
    return BlockParts(block, attn, type(block).__name__ in ("EvaBlockPostNorm", "ResPostBlock", "ResPostRelPosBlock"))


def why_not(block: nn.Module) -> str:
    """Why a timm block cannot be taken apart, or ""."""
    from timm.layers import Attention, AttentionRope
    from timm.models import beit
    from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
    from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
    from timm.models.vision_transformer_relpos import RelPosAttention, RelPosBlock, ResPostRelPosBlock

    if type(block) is ParallelScalingBlock:
        return ""
    if type(block) not in (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm, RelPosBlock, ResPostRelPosBlock, beit.Block):
        return f"its blocks are of type {type(block).__name__}"
    if type(block.attn) not in (Attention, AttentionRope, EvaAttention, RelPosAttention, beit.Attention):
        return f"its attention is of type {type(block.attn).__name__}"
    return ""
