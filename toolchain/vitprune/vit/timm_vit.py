"""timm's VisionTransformer, Eva, Beit and VisionTransformerRelPos as a `DenseViT`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitprune.recipe import OutputSection
from vitprune.support.attention import PositionBias, Rotation
from vitprune.vit.dense import DenseViT, geometry
from vitprune.vit.features import depth_of
from vitprune.vit.timm_blocks import taken_apart


class TimmViT(DenseViT):
    """A timm VisionTransformer, Eva, Beit or VisionTransformerRelPos; its modules are used, not copied."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.geometry = geometry(model)
        positions = zip(model.blocks, rotations_of(model), position_biases_of(model), strict=True)
        self.blocks = [taken_apart(block, rotation, bias) for block, rotation, bias in positions]
        self.pool = getattr(model, "attn_pool", None)
        self.global_pool = model.global_pool if self.pool is None else "map"

    def embed(self, image: Tensor) -> Tensor:
        """See `DenseViT.embed`."""
        model = self.model
        if not hasattr(model, "_pos_embed"):  # Beit, VisionTransformerRelPos
            patches: Tensor = model.patch_embed(image)
            if model.cls_token is not None:
                patches = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches], dim=1)
            added = getattr(model, "pos_embed", None)
            whole: Tensor = patches if added is None else patches + added
            return whole
        placed = model._pos_embed(model.patch_embed(image))
        if hasattr(model, "rope"):  # Eva: tokens and tables
            rows: Tensor = model.norm_pre(placed[0])
            return rows
        tokens: Tensor = model.norm_pre(model.patch_drop(placed))
        return tokens

    def head(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """See `DenseViT.head`."""
        model = self.model
        x = model.norm(tokens)
        if hasattr(model, "weighted_head"):
            read: Tensor = model.weighted_head(x, weight)
            return read
        if self.pool is not None:
            start = 0 if getattr(model, "pool_include_prefix", True) else self.geometry.prefix  # timm's Eva pools all rows
            counted = weight[:, start:].to(x.dtype).log()[:, None, None, :]  # pads -inf; a row of n patches is n equal keys
            found: Tensor = model.head(model.head_drop(model.fc_norm(model.attn_pool(x[:, start:], attn_mask=counted))))
            return found
        if model.global_pool != "avg" or hasattr(model, "head_dist"):
            logits: Tensor = model.forward_head(x)
            return logits
        start = 0 if getattr(model, "pool_include_prefix", False) else self.geometry.prefix
        share = weight[:, start:, None].to(x.dtype)
        pooled = (x[:, start:] * share).sum(1) / share.sum(1).clamp(min=1)
        averaged: Tensor = model.head(model.head_drop(model.fc_norm(pooled)))
        return averaged

    def taken(self, output: OutputSection) -> list[int]:
        """See `DenseViT.taken`; raises RecipeError VP118 beyond the last block."""
        return depth_of(output, self.geometry.depth)

    def features(self, tokens: list[Tensor], output: OutputSection) -> list[Tensor]:
        """See `DenseViT.features`: as the recipe's `output:` asks for, patches first, then prefix tokens."""
        prefix, (rows, columns) = self.geometry.prefix, self.model.patch_embed.grid_size
        every = [self.model.norm(x) if output.norm else x for x in tokens]
        patches = [x[:, prefix:] for x in every]
        if output.layout == "map":
            patches = [x.transpose(1, 2).unflatten(2, (rows, columns)) for x in patches]
        return patches + ([x[:, :prefix] for x in every] if output.prefix and prefix else [])


def can_weigh(pool: nn.Module) -> bool:
    """Whether a pool takes a bias on its keys and has no positions of its own, which would have to leave with their tokens."""
    from timm.layers import AttentionPoolLatent

    return type(pool) is AttentionPoolLatent and pool.pos_embed is None


def rotations_of(model: Any) -> list[Rotation | None]:
    """Rotary positions of every block, as the model itself computes them; None where it has none."""
    depth = len(model.blocks)
    if getattr(model, "rope", None) is None:
        return [None] * depth
    size = model.patch_embed.img_size
    with torch.no_grad():
        blank = next(model.parameters()).new_zeros(1, model.patch_embed.proj.in_channels, *size)
        tables = model._pos_embed(model.patch_embed(blank))[1].cpu()
    each = tables if model.rope_mixed else tables[None].expand(depth, *tables.shape)
    return [
        _rotation(table, bool(getattr(block.attn, "rotate_half", False))) for table, block in zip(each, model.blocks, strict=True)
    ]


def position_biases_of(model: Any) -> list[PositionBias | None]:
    """Biases on the attention logits of every block, as the model itself computes them; None where it has none."""
    shared = getattr(model, "rel_pos_bias", None)  # Beit's; VisionTransformerRelPos calls it shared_rel_pos
    of_all = getattr(model, "shared_rel_pos", None)
    found: list[PositionBias | None] = []
    for block in model.blocks:
        attn: Any = getattr(block, "attn", None)
        tables: list[Tensor] = []
        with torch.no_grad():
            if shared is not None:
                tables.append(shared())
            if getattr(attn, "relative_position_bias_table", None) is not None:
                tables.append(attn._get_rel_pos_bias())
            if getattr(attn, "rel_pos", None) is not None:
                tables.append(attn.rel_pos.get_bias())
            elif of_all is not None:
                tables.append(of_all.get_bias())
        whole = torch.stack([table.detach().float().cpu() for table in tables]).sum(dim=0) if tables else None
        found.append(
            None if whole is None else PositionBias(whole.reshape(-1, *whole.shape[-2:]).numpy(), model.num_prefix_tokens)
        )
    return found


def _rotation(table: Tensor, half: bool) -> Rotation:
    """Of timm's table [P,2d] or [H,P,2d], sines first."""
    sin, cos = (table if table.ndim == 3 else table[None]).float().chunk(2, dim=-1)
    return Rotation(cos.numpy(), sin.numpy(), half)
