"""ATS on CvT (Hugging Face transformers), last stage: tokens leave, but queries, keys and values come from convolutions over the grid.

The ATS paper samples in the third stage of CvT, the only one with a CLS token, but no code for it was released and the
paper's text leaves open what the depthwise 3x3 projections see once tokens are gone. The definition used here, per image:

1. A dropped token is treated as the convolution treats everything beyond the image's edge: as zeros. Tokens are put back into
   their grid cells before each convolutional projection; queries are read at the cells of tokens that are present.
2. A cell of the (strided) key/value grid exists as long as one present token lies in its kernel window. Other cells are hidden as
   keys; without that, the bias of the projection's BatchNorm would make them keys without content.
3. In a sampling block keys and values are those of all tokens that entered, as in ATS on a ViT; the residual rows leave with the
   attention rows.
4. The CLS row scores key/value cells, not tokens. A cell's significance is shared equally among the present tokens in its
   window; a token's score is the sum of its shares, so the total is kept.

For 1x1 projections all four points reduce to ATS on a plain ViT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitprune import methods
from vitprune.errors import ExportError, RecipeError
from vitprune.methods.ats import rule as ats
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.ats.reference import SCORES
from vitprune.methods.base import Geometry, Site
from vitprune.recipe import Recipe
from vitprune.vit.tokens import TokenState, cap, take_rows


def windows(grid: tuple[int, int], kernel: int, stride: int, padding: int) -> Tensor:
    """Which grid cells lie in the kernel window of which output cell: float32 [cells, patches] of 0 and 1, row-major."""
    axes = []
    for size in grid:
        centre = torch.arange((size + 2 * padding - kernel) // stride + 1)[:, None] * stride - padding
        position = torch.arange(size)[None]
        axes.append(((position >= centre) & (position < centre + kernel)).float())
    return torch.kron(axes[0], axes[1])


def lift(score: Tensor, live: Tensor, window: Tensor) -> Tensor:
    """Share the scores of cells [B,cells] equally among the live tokens (bool [B,P]) in their windows; returns float32 [B,P]."""
    count = live.to(window.dtype) @ window.T
    return (score.to(window.dtype) / count.clamp(min=1)) @ window * live


def check_supported(model: Any) -> None:
    """Refuse what is not a CvT classifier with a CLS token in its last stage.

    Raises:
        ExportError: VP310 another model, VP311 projections that are not depthwise convolutions with one query per token, VP312 no
            CLS token.
    """
    name = type(model).__name__
    if not hasattr(model, "cvt") or not hasattr(model, "classifier"):
        raise ExportError(
            310,
            f"nothing to patch in {name}",
            cause="this reference takes a CvtForImageClassification of Hugging Face transformers",
            next_step="load the model with transformers.CvtForImageClassification",
        )
    config = model.config
    if not config.cls_token[-1]:
        raise ExportError(
            312,
            "ATS needs a CLS token",
            cause="ATS scores tokens by the CLS row and the last stage of this CvT has none",
            next_step="use a CvT with cls_token true in its last stage",
        )
    if config.qkv_projection_method[-1] != "dw_bn" or config.stride_q[-1] != 1:
        raise ExportError(
            311,
            f"cannot patch the last stage of {name}",
            cause=f"it needs one query per token from a depthwise convolution; found projection "
            f"'{config.qkv_projection_method[-1]}' with query stride {config.stride_q[-1]}",
            next_step="use a CvT with qkv_projection_method dw_bn and stride_q 1 in its last stage",
        )


class PrunedCvt(nn.Module):
    """The reference: forward(x [B,3,H,W]) -> logits [B,classes]; stages of the recipe count the blocks of CvT's last stage.

    After a forward `kept`, `margin` and `overflow` are those of `vitprune.vit.pruned.PrunedViT`.
    """

    def __init__(self, model: Any, recipe: Recipe, image_size: int) -> None:
        super().__init__()
        if recipe.prune.method != "ats":
            raise RecipeError(
                144,
                f"{recipe.prune.method} is not available for CvT",
                cause="only ATS has a definition for convolutional projections",
                next_step="--set prune.method=ats",
            )
        check_supported(model)
        self.model, self.padded = model, recipe.graph.shapes == "padded"
        config = model.config
        self.size = _last_grid(config, image_size)
        patches = self.size[0] * self.size[1]
        width = config.embed_dim[-1]
        geometry = Geometry(
            config.depth[-1],
            patches,
            1,
            width,
            config.num_heads[-1],
            int(width * config.mlp_ratio[-1]),
            classes=config.num_labels,
        )
        self.sites = methods.get("ats").sites(recipe.prune, geometry)
        self.window: Tensor
        window = windows(self.size, config.kernel_qkv[-1], config.stride_kv[-1], config.padding_kv[-1])
        self.register_buffer("window", window, persistent=False)
        self.kept: list[Tensor] = []
        self.margin: list[Tensor] = []
        self.overflow: list[Tensor] = []
        self.margin_sizes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        *early, last = self.model.cvt.encoder.stages
        for stage in early:
            x, _ = stage(x)
        x = last.embedding(x)
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"the last stage's grid is {tuple(x.shape[2:])}, the reference was made for {self.size}")
        x = torch.cat([last.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        state = TokenState.full(len(x), 1, x.shape[1] - 1, x.device)
        sites = {site.block: site for site in self.sites}
        for index, layer in enumerate(last.layers):
            x = self._layer(layer, x, state, sites.get(index))
        self.kept, self.margin, self.overflow, self.margin_sizes = state.kept, state.margin, state.overflow, state.size
        logits: Tensor = self.model.classifier(self.model.layernorm(x[:, :1]).mean(dim=1))
        return logits

    def _layer(self, layer: Any, x: Tensor, state: TokenState, site: Site[AtsOptions] | None) -> Tensor:
        attn = layer.attention.attention
        h = layer.layernorm_before(x)
        live = torch.zeros(len(x), state.patches + 1, dtype=torch.bool, device=x.device)
        number = torch.where(state.valid, state.patch, torch.full_like(state.patch, state.patches))
        live = live.scatter(1, number, True)[:, : state.patches]
        grid = self._to_grid(h[:, 1:], number, state.patches)
        query_cells = attn.convolution_projection_query(grid)
        key = torch.cat([h[:, :1], attn.convolution_projection_key(grid)], dim=1)
        value = torch.cat([h[:, :1], attn.convolution_projection_value(grid)], dim=1)
        key, value = _heads(attn, attn.projection_key(key)), _heads(attn, attn.projection_value(value))
        bias = _hide(live, self.window).to(x.dtype)

        def attend(rows: Tensor) -> Tensor:
            query = _heads(attn, attn.projection_query(rows))
            probabilities: Tensor = (query @ key.transpose(-2, -1) * attn.scale + bias).softmax(dim=-1)
            return probabilities

        if site is not None:
            if not site.options.bypass:
                cells = SCORES[site.options.score](attend(h[:, :1])[:, :, 0, 1:], value[:, :, 1:])
                x = self._sample(site, lift(cells, live, self.window), x, state)
            else:
                state.record()
        here = query_cells.gather(1, state.patch[:, :, None].expand(-1, -1, query_cells.shape[-1]))
        context = (attend(torch.cat([h[:, :1], here], dim=1)) @ value).transpose(1, 2).flatten(2)
        x = x + layer.attention.output.dense(context)
        out: Tensor = layer.output(layer.intermediate(layer.layernorm_after(x)), x)
        return out

    def _sample(self, site: Site[AtsOptions], by_patch: Tensor, x: Tensor, state: TokenState) -> Tensor:
        score = by_patch.gather(1, state.patch)
        official = site.options.mode == "inverse_transform_official"
        chosen, margin = ats.select(score, state.valid, site.options.num_samples, official)
        margin = state.by_patch(margin)
        chosen, overflow = cap(chosen, score, site.limit)
        rows = state.keep(chosen, site.limit if self.padded else None)
        state.record(margin, overflow)
        return take_rows(x, rows)

    def _to_grid(self, rows: Tensor, number: Tensor, patches: int) -> Tensor:
        """Rows [B,K,C] in their cells [B,C,H,W], zeros elsewhere; `number` is the cell, or `patches` for a pad."""
        wide = rows.new_zeros(len(rows), patches + 1, rows.shape[-1])
        wide = wide.scatter(1, number[:, :, None].expand_as(rows), rows)
        cells: Tensor = wide[:, :patches].transpose(1, 2).unflatten(2, self.size)  # type: ignore[no-untyped-call]
        return cells


def _last_grid(config: Any, image_size: int) -> tuple[int, int]:
    side = image_size
    for kernel, stride, padding in zip(config.patch_sizes, config.patch_stride, config.patch_padding, strict=True):
        side = (side + 2 * padding - kernel) // stride + 1
    return side, side


def _heads(attn: Any, x: Tensor) -> Tensor:
    """[B,N,C] -> [B,H,N,d]."""
    heads: Tensor = x.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    return heads


def _hide(live: Tensor, window: Tensor) -> Tensor:
    """Additive bias [B,1,1,1+cells] that hides cells without a live token; CLS stays."""
    empty = live.to(window.dtype) @ window.T == 0
    hidden = torch.cat([torch.zeros_like(empty[:, :1]), empty], dim=1)
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, float("-inf"))[:, None, None, :]


def reference(module: nn.Module, recipe: Recipe, image_size: int) -> PrunedCvt:
    """The PyTorch reference of an ATS recipe on a CvtForImageClassification, in evaluation mode.

    Args:
        module: the trained model; it is used, not copied.
        recipe: what to prune; `prune.stages` counts the blocks of the last stage.
        image_size: side of the square input.

    Raises:
        ExportError: VP310, VP311, VP312 when there is nothing that could be patched.
        RecipeError: VP144 another method than ATS, VP11x when the recipe does not fit the model.
    """
    return PrunedCvt(module, recipe, image_size).eval()
