"""The reference of a cascade in a half type: the products of attention and the linear maps of every block, and nothing else.

What one model hands to the next (tokens, attention logits) and the maps that reuse them are float32, as are the exits' confidences.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitprune.methods.dvt.reference import Cascade
from vitprune.recipe import Recipe
from vitprune.recipe_parts.precision import require_floats
from vitprune.support.precision import chosen, layer_names
from vitprune.vit.blocks import product, weigh
from vitprune.vit.precision import TYPES, HalfLinear


class HalfAttention(nn.Module):
    """`vitprune.methods.dvt.reference.Attention` with rounded operands; logits are handed on as float32."""

    def __init__(self, attn: Any, qkv: torch.dtype, proj: torch.dtype) -> None:
        super().__init__()
        self.heads, self.dtype = attn.heads, qkv
        self.qkv, self.proj = HalfLinear(attn.qkv, qkv), HalfLinear(attn.proj, proj)

    def forward(self, h: Tensor, relation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows h [B,N,C] and reused logits [B,H,N,N] or None -> output [B,N,C] and all logits [B,H,N,N], float32."""
        batch, tokens, width = h.shape
        query, key, value = self.qkv(h).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        query = (query.float() / (width // self.heads) ** 0.5).to(self.dtype)
        logits = product(query, key.transpose(-2, -1)).float()
        if relation is not None:
            logits = logits + relation
        context = weigh(logits.softmax(-1), value)
        return self.proj(context.transpose(1, 2).reshape(batch, tokens, width)).float(), logits


class HalfMlp(nn.Module):
    """fc2(GELU(fc1(x))) with rounded operands and a float32 GELU."""

    def __init__(self, mlp: Any, first: torch.dtype, second: torch.dtype) -> None:
        super().__init__()
        self.fc1, self.fc2 = HalfLinear(mlp.fc1, first), HalfLinear(mlp.fc2, second)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> float32 [..., width]."""
        return self.fc2(functional.gelu(self.fc1(x).float())).float()


def in_precision(cascade: Cascade, recipe: Recipe) -> Cascade:
    """The cascade that computes in a recipe's precision: itself for fp32, else a copy; the same layer names count in all members."""
    precision = recipe.precision
    if precision.mode == "fp32":
        return cascade
    require_floats(precision, "a cascade")
    half = copy.deepcopy(cascade)
    kept = chosen(layer_names(cascade.shape.depth), precision.keep_fp32)

    def kind(block: int, part: str) -> torch.dtype:
        return TYPES["fp32" if f"blocks.{block}.{part}" in kept else precision.mode]

    for member in half.members:
        blocks: Any = member.blocks
        for number, block in enumerate(blocks):
            block.attn = HalfAttention(block.attn, kind(number, "attn.qkv"), kind(number, "attn.proj"))
            block.mlp = HalfMlp(block.mlp, kind(number, "mlp.fc1"), kind(number, "mlp.fc2"))
    return half
