"""A timm VisionTransformer with a method applied: the oracle for graphs and engines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitprune import methods
from vitprune.errors import ExportError
from vitprune.methods.base import Geometry
from vitprune.recipe import Recipe
from vitprune.vit.blocks import is_plain
from vitprune.vit.tokens import TokenState


def geometry(model: Any) -> Geometry:
    """Sizes of a timm VisionTransformer."""
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
        heads=model.blocks[0].attn.num_heads,
        mlp_hidden=model.blocks[0].mlp.fc1.out_features,
        embed_macs=embed,
        classes=model.num_classes,
        has_cls=model.cls_token is not None,
    )


def check_supported(model: nn.Module, method: methods.Method) -> None:
    """Refuse models that the method cannot be applied to.

    Raises:
        ExportError: VP310 not a timm VisionTransformer, VP311 blocks of another kind, VP312 no CLS token, VP313 pooling that
            cannot leave out pad slots.
    """
    from timm.models.vision_transformer import VisionTransformer

    name = type(model).__name__
    if not isinstance(model, VisionTransformer):
        rotary = getattr(model, "rope", None) is not None
        cause = f"{name} is not a timm VisionTransformer" + (
            ": it uses rotary positions, which enter every attention by row and would have to be pruned with the tokens"
            if rotary
            else ""
        )
        raise ExportError(
            310,
            f"nothing to patch in {name}",
            cause=cause,
            next_step="use a timm VisionTransformer such as deit_small_patch16_224",
        )
    refused = [(index, is_plain(block)) for index, block in enumerate(model.blocks) if is_plain(block)]
    if refused or not len(model.blocks):
        index, cause = refused[0] if refused else (0, "it has no blocks")
        raise ExportError(
            311,
            f"cannot patch block {index} of {name}",
            cause=cause,
            next_step="use a model with timm's standard Block and Attention",
        )
    if method.needs_cls and model.cls_token is None:
        raise methods.needs_a_cls_token(
            method.name, f"{method.name} scores patches by the CLS row of attention and this model has none"
        )
    if model.attn_pool is not None or model.global_pool not in ("token", "avg", ""):
        pool = "attention pooling" if model.attn_pool is not None else f"'{model.global_pool}' pooling"
        raise ExportError(
            313,
            f"{pool} is not supported",
            cause="pad slots could not be left out of the pooled result",
            next_step="create the model with global_pool='token' or 'avg'",
        )


class PrunedViT(nn.Module):
    """The reference: forward(x [B,3,H,W]) -> logits [B,classes].

    After a forward, `kept` has one int64 [B,K] per site (original patch numbers, ascending, padded with -1), `margin` one
    float64 [B,P] per site, `overflow` one int64 [B] per site, `extra` what the method carried along (sizes, groups, ...).
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.method = methods.get(recipe.prune.method)
        check_supported(model, self.method)
        self.model: Any = model
        self.geometry = geometry(model)
        self.sites = self.method.sites(recipe.prune, self.geometry)
        self.steps = self.method.reference(self.method, recipe.prune, self.sites, recipe.graph.shapes == "padded")
        self.steps.prepare(model)
        self.kept: list[Tensor] = []
        self.margin: list[Tensor] = []
        self.overflow: list[Tensor] = []
        self.extra: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images; see the class."""
        model = self.model
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        state = TokenState.full(len(x), self.geometry.prefix, x.shape[1] - self.geometry.prefix, x.device)
        x = self.steps.begin(x, state)
        for index, block in enumerate(model.blocks):
            x = self.steps.block(index, block, x, state)
        x = self._head(model.norm(self.steps.finish(x, state)), state)
        self.kept, self.margin, self.overflow = state.kept, state.margin, state.overflow
        self.extra = state.extra
        return x

    def _head(self, x: Tensor, state: TokenState) -> Tensor:
        model = self.model
        if model.global_pool != "avg" or hasattr(model, "head_dist"):
            logits: Tensor = model.forward_head(x)
            return logits
        present = torch.cat([torch.ones_like(state.valid[:, :1]).expand(-1, state.prefix), state.valid], dim=1)
        start = 0 if model.pool_include_prefix else state.prefix
        weight = present[:, start:, None].to(x.dtype)
        if "size" in state.extra:  # a merged row stands for several patches
            ahead = weight.shape[1] - state.extra["size"].shape[1]
            weight = torch.cat([weight[:, :ahead], weight[:, ahead:] * state.extra["size"][:, :, None].to(x.dtype)], dim=1)
        pooled = (x[:, start:] * weight).sum(1) / weight.sum(1).clamp(min=1)
        logits = model.head(model.head_drop(model.fc_norm(pooled)))
        return logits
