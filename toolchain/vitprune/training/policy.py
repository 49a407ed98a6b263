"""Attention under a key mask: in training tokens are not removed but hidden, so that the mask gets a gradient (methods.md §1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.errors import ExportError
from vitprune.methods.base import Geometry
from vitprune.vit.blocks import added, attention_output, feed_forward, merge_heads, project
from vitprune.vit.timm_blocks import taken_apart, why_not

EPS = 1e-6


def policy_softmax(logits: Tensor, policy: Tensor | None) -> Tensor:
    """Softmax in which masked keys keep about EPS/N and every row sees itself.

    Args:
        logits: [B,H,N,N]. policy: float [B,N], 1 = present; None = plain softmax.
    """
    if policy is None:
        return logits.softmax(dim=-1)
    tokens = logits.shape[-1]
    itself = torch.eye(tokens, device=logits.device, dtype=logits.dtype)
    seen = policy[:, None, None, :].to(logits.dtype)
    seen = seen + (1 - seen) * itself
    mass = (logits - logits.amax(dim=-1, keepdim=True)).exp() * seen
    return (mass + EPS / tokens) / (mass.sum(dim=-1, keepdim=True) + EPS)


def masked_block(block: Any, x: Tensor, policy: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """A block under a policy [B,N]: new rows [B,N,C], probabilities [B,H,N,N], attention output before the projection [B,H,N,d]."""
    h = block.norm1(x)
    query, key, value = project(block.attn, h)
    probabilities = policy_softmax(query @ key.transpose(-2, -1), policy)
    context = probabilities @ value
    return feed_forward(block, added(block, x, attention_output(block, merge_heads(context), h))), probabilities, context


def embed(model: Any, images: Tensor) -> Tensor:
    """Images [B,C,H,W] -> tokens [B,N,C] before block 0.

    Raises:
        ExportError: VP311 for blocks whose attention `masked_block` would leave something out of, VP313 for attention pooling.
    """
    if getattr(model, "attn_pool", None) is not None:
        raise ExportError(
            313,
            "a model with attention pooling cannot be trained under a mask",
            cause="the pool would attend to patches that the mask has taken out",
            next_step="train a model with global_pool='token' or 'avg', or take a method without trained parameters",
        )
    strange = [index for index, block in enumerate(model.blocks) if why_not(block) or taken_apart(block) is not block]
    if strange:
        raise ExportError(
            311,
            f"block {strange[0]} of this model cannot be trained under a mask",
            cause=f"it is of type {type(model.blocks[strange[0]]).__name__}, and masks are written for timm's standard Block",
            next_step="train a model with standard blocks, or take a method without trained parameters",
        )
    return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))


def classify(model: Any, tokens: Tensor, policy: Tensor | None) -> Tensor:
    """Normalised tokens [B,N,C] -> logits; average pooling leaves out masked patches."""
    if model.global_pool != "avg" or policy is None:
        return model.forward_head(tokens)
    if hasattr(model, "weighted_head"):
        return model.weighted_head(tokens, policy)
    start = 0 if model.pool_include_prefix else model.num_prefix_tokens
    weight = policy[:, start:, None].to(tokens.dtype)
    pooled = (tokens[:, start:] * weight).sum(1) / weight.sum(1).clamp(min=1)
    return model.head(model.head_drop(model.fc_norm(pooled)))


def block_macs(tokens: Tensor, geometry: Geometry) -> Tensor:
    """MACs of one block with float [B] tokens; differentiable."""
    width, hidden = geometry.width, geometry.mlp_hidden
    return tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens.square() * width
