"""The parts of timm's attention block that every rule needs, written out so that rows can be dropped between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def project(attn: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (scaled), keys and values [B,H,N,d] of normalised rows h [B,N,C]."""
    batch, tokens, _ = h.shape
    packed = attn.qkv(h).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = packed.unbind(0)
    return attn.q_norm(query) * attn.scale, attn.k_norm(key), value


def product(left: Tensor, right: Tensor) -> Tensor:
    """Left @ right in their common type; half types are summed in float32 and rounded once, as tensor cores do."""
    if left.dtype not in (torch.float16, torch.bfloat16) or left.device.type != "cpu":
        return left @ right
    return (left.float() @ right.float()).to(left.dtype)


def attention(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax probabilities [B,H,M,N]; query [B,H,M,d], key [B,H,N,d], bias broadcastable to [B,H,M,N].

    Of half types the product alone is in that type; the probabilities are float32.
    """
    logits = product(query, key.transpose(-2, -1))
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def weigh(weights: Tensor, value: Tensor) -> Tensor:
    """Probabilities [B,H,M,N] times values [B,H,N,d], in the type of the values: [B,H,M,d]."""
    return product(weights.to(value.dtype), value)


def merge_heads(context: Tensor) -> Tensor:
    """[B,H,M,d] -> [B,M,H*d]."""
    return context.transpose(1, 2).flatten(2)


def attention_output(block: Any, context: Tensor) -> Tensor:
    """Projection and LayerScale of merged context rows [B,M,C]."""
    rows: Tensor = block.ls1(block.attn.proj(block.attn.norm(context)))
    return rows


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """X + LayerScale(MLP(LN2(x)))."""
    out: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return out


def run_block(block: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """A whole block with hidden keys; equals timm's own forward when bias is None."""
    query, key, value = project(block.attn, block.norm1(x))
    context = merge_heads(weigh(attention(query, key, bias), value))
    return feed_forward(block, x + attention_output(block, context))


def is_plain(block: nn.Module) -> str:
    """Why a timm block cannot be taken apart by these functions, or ""."""
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    if type(block) is not Block:
        return f"its blocks are of type {type(block).__name__}"
    if type(block.attn) is not Attention:
        return f"its attention is of type {type(block.attn).__name__}"
    if getattr(block.attn, "gate", None) is not None:
        return "its attention output is gated"
    return ""
