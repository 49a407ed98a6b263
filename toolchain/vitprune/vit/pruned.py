"""A plain ViT of timm with a method applied: the oracle for graphs and engines."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vitprune import methods
from vitprune.errors import ExportError
from vitprune.recipe import Recipe
from vitprune.vit.blocks import rounded
from vitprune.vit.dense import DenseViT, row_weights
from vitprune.vit.features import Places, joined
from vitprune.vit.outside import require_plain
from vitprune.vit.precision import TYPES, HalfViT
from vitprune.vit.quantised import QuantViT
from vitprune.vit.timm_blocks import why_not
from vitprune.vit.timm_vit import TimmViT, can_weigh
from vitprune.vit.tokens import TokenState


def check_supported(model: nn.Module, method: methods.Method, by_cls: bool | None = None, pooled: bool = True) -> None:
    """Refuse models that the method cannot be applied to.

    Args:
        model: timm's. method: what prunes. by_cls: it scores by the CLS row (None: as it does by itself). pooled: the head is asked for.

    Raises:
        ExportError: VP310 no plain ViT of timm, VP311 blocks of another kind, VP312 no CLS token, VP313 pooling that cannot leave out pad
            slots.
    """
    require_plain(model)
    name, blocks = type(model).__name__, list(cast("nn.ModuleList", model.blocks))
    refused = [(index, why_not(block)) for index, block in enumerate(blocks) if why_not(block)]
    if refused or not blocks:
        index, cause = refused[0] if refused else (0, "it has no blocks")
        raise ExportError(
            311,
            f"cannot patch block {index} of {name}",
            cause=cause,
            next_step="use a model with timm's standard Block and Attention",
        )
    if (method.needs_cls if by_cls is None else by_cls) and model.cls_token is None:
        raise methods.needs_a_cls_token(
            method.name, f"{method.name} scores patches by the CLS row of attention and this model has none"
        )
    if not pooled:
        return
    pool = getattr(model, "attn_pool", None)
    pooling = pool is not None and not can_weigh(pool)
    if pooling or model.global_pool not in ("token", "avg", "", "map"):
        kind = f"attention pooling by {type(pool).__name__}" if pooling else f"'{model.global_pool}' pooling"
        raise ExportError(
            313,
            f"{kind} is not supported",
            cause="pad slots could not be left out of the pooled result",
            next_step="create the model with global_pool='token' or 'avg'",
        )


class PrunedViT(nn.Module):
    """The reference: forward(x [B,3,H,W]) -> logits [B,classes].

    After a forward, `kept` has one int64 [B,K] per site (original patch numbers, ascending, padded with -1), `margin` one
    float64 [B,P] per site, `margin_sizes` what a margin in roundings is divided by, float64 [B,P] (1 in fp32), `overflow` one int64 [B] per site, `extra` what the method carried along (sizes, groups, ...).
    With `output.kind: features` forward gives all outputs side by side, [B,values], and `features` has them one by one; the model
    then ends behind the last block that is asked for.
    """

    def __init__(self, model: nn.Module | DenseViT, recipe: Recipe) -> None:
        super().__init__()
        self.method = methods.get(recipe.prune.method)
        if not isinstance(model, DenseViT):
            by_cls = self.method.scores_by_cls(recipe.prune)
            check_supported(model, self.method, by_cls, pooled=not recipe.output.features)
            self.model = model  # registered, so that training and moving to a device reach its weights
            model = TimmViT(model)
        if recipe.precision.quantised:
            model = QuantViT(model, recipe.precision)
        elif recipe.precision.mode != "fp32":
            model = HalfViT(model, recipe.precision.mode, recipe.precision.keep_fp32)
        self.dense, self.geometry, self.output = model, model.geometry, recipe.output
        self.taken: list[int] = []
        if self.output.features:
            self.taken = model.taken(self.output)
            self.geometry = replace(self.geometry, depth=self.taken[-1], classes=0)
        self.sites = self.method.sites(recipe.prune, self.geometry)
        if recipe.precision.softmax == "half" and recipe.precision.mode != "fp32":
            places = {site.block for site in self.sites}
            for index, block in enumerate(model.blocks):
                block.attn.softmax = None if index in places else block.attn.dtype
        floats = TYPES[recipe.precision.floats] if recipe.precision.mode != "fp32" else None
        # A margin that the recipe sets is meant as it stands.
        self.sized = recipe.precision.mode != "fp32" and recipe.precision.flip_margin is None
        self.stream = floats if recipe.precision.residual == "half" else None
        self.io = torch.float16 if recipe.precision.io == "half" and floats is not None else None
        if self.stream is not None:
            for block in model.blocks:
                block.stream = self.stream
        if self.output.features:
            methods.require_places(self.method, self.output.fill, self.sites)
        if model.global_pool == "map" and not self.output.features and any(site.options.may_be_empty for site in self.sites):
            raise ExportError(
                313,
                f"{self.method.name} cannot be combined with attention pooling",
                cause="an image may keep no patch at all, and a softmax over no keys has no value",
                next_step="choose a method that keeps patches of every image: vitprune methods",
            )
        self.steps = self.method.reference(self.method, recipe.prune, self.sites, recipe.graph.shapes == "padded")
        self.steps.prepare(model)
        self.kept: list[Tensor] = []
        self.margin: list[Tensor] = []
        self.margin_sizes: list[Tensor] = []
        self.overflow: list[Tensor] = []
        self.extra: dict[str, Tensor] = {}
        self.features: list[Tensor] = []

    def forward(self, x: Tensor, decisions: list[Tensor] | None = None) -> Tensor:
        """Logits of a batch of images; see the class. decisions: per site, kept lists to follow (methods that `follows` only)."""
        x = rounded(self.dense.embed(rounded(x, self.io)), self.stream)
        state = TokenState.full(len(x), self.geometry.prefix, x.shape[1] - self.geometry.prefix, x.device)
        state.decisions, state.sized = decisions, self.sized
        x = self.steps.begin(x, state)
        x = self._features(x, state) if self.output.features else self._logits(x, state)
        self.kept, self.margin, self.overflow = state.kept, state.margin, state.overflow
        self.extra, self.margin_sizes = state.extra, state.size
        return rounded(x, self.io)

    def _logits(self, x: Tensor, state: TokenState) -> Tensor:
        """[B,classes] of the embedded tokens [B,N,C]."""
        for index, block in enumerate(self.dense.blocks):
            x = self.steps.block(index, block, x, state)
        weight = row_weights(state.valid, state.prefix, state.extra.get("size"))
        return self.dense.head(self.steps.finish(x, state), weight)

    def _features(self, x: Tensor, state: TokenState) -> Tensor:
        """[B,values] of the embedded tokens [B,N,C]: the tokens behind every block asked for, all in their places, and what reads them."""
        places, found = Places(self.output.fill), []
        for index in range(self.geometry.depth):
            if index in self.steps.sites:
                places.enter(x, state)
            x = self.steps.block(index, self.dense.blocks[index], x, state)
            if index + 1 in self.taken:
                found.append(places.whole(x, state))
        self.features = self.dense.features(found, self.output)
        return joined(self.features)
