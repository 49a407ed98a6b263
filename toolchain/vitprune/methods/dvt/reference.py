"""The reference of the DVT cascade: three DeiT or T2T-ViT models with feature and relation reuse (methods.md §4).

Parameters carry the official names, so a published checkpoint loads as it is. Resampling is written by its definition (repeat, then
average adaptively); the graph uses constant matrices instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitprune.methods.dvt import rule as dvt
from vitprune.methods.dvt.cost import embedding
from vitprune.methods.dvt.keys import EXITS, Params
from vitprune.vit.t2t import sinusoids
from vitprune.vit.tokenizing import TokensToToken

MEMBERS = ("less_less_token", "less_token", "normal_token")


@dataclass(frozen=True)
class Backbone:
    """What the three members share: image side and channels, width C, depth L, heads H, MLP hidden width, classes, LayerNorm eps, kind."""

    channels: int
    image: int
    width: int
    depth: int
    heads: int
    mlp_hidden: int
    classes: int
    qkv_bias: bool = True
    eps: float = 1e-6
    kind: str = "deit"


def resample(cells: Tensor, old: int, new: int) -> Tensor:
    """Cells on an old x old grid, [..., old*old], on a new x new one: nearest repetition, then adaptive average pooling."""
    lead = cells.shape[:-1]
    grid = cells.reshape(-1, 1, old, old)
    repeated = functional.interpolate(grid, scale_factor=float(-(-new // old)), mode="nearest")
    return functional.adaptive_avg_pool2d(repeated, new).reshape(*lead, new * new)


def resample_relation(relation: Tensor, old: int, new: int) -> Tensor:
    """R [B,LH,n,n] -> [B,LH,N,N]: keys first, then queries; the CLS row and column are carried over (methods.md §4.3)."""
    keys = torch.cat([relation[..., :1], resample(relation[..., 1:], old, new)], dim=-1).transpose(-2, -1)
    return torch.cat([keys[..., :1], resample(keys[..., 1:], old, new)], dim=-1).transpose(-2, -1)


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))) with the erf GELU."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., out]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Self-attention that takes and returns logits before the softmax."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=qkv_bias), nn.Linear(width, width)

    def forward(self, h: Tensor, relation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows h [B,N,C] and reused logits [B,H,N,N] or None -> output [B,N,C] and all logits [B,H,N,N]."""
        batch, tokens, width = h.shape
        query, key, value = self.qkv(h).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        logits = query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5
        if relation is not None:
            logits = logits + relation
        context = logits.softmax(-1) @ value
        return self.proj(context.transpose(1, 2).reshape(batch, tokens, width)), logits


class Block(nn.Module):
    """Pre-norm block; with reuse its MLP also reads features made from the tokens of the model before."""

    def __init__(self, shape: Backbone, params: Params, old: int | None, new: int) -> None:
        super().__init__()
        self.old, self.new = old, new
        wide = shape.width + (params.feature_dim if old else 0)
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.attn = Attention(shape.width, shape.heads, shape.qkv_bias)
        self.norm2 = nn.LayerNorm(wide, eps=shape.eps)
        self.mlp = Mlp(wide, shape.mlp_hidden, shape.width)
        if old:
            maker = Mlp(shape.width, params.feature_hidden, params.feature_dim)
            self.feature_resuse_mlp = nn.Sequential(nn.LayerNorm(shape.width, eps=shape.eps), maker)

    def forward(self, x: Tensor, features: Tensor | None, relation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens x [B,N,C], tokens [B,n,C] of the model before, reused logits -> tokens and attention logits [B,H,N,N]."""
        attended, logits = self.attn(self.norm1(x), relation)
        x = x + attended
        rows = x
        if features is not None:
            assert self.old is not None
            made = self.feature_resuse_mlp(features[:, 1:]).transpose(1, 2)
            context = resample(made, self.old, self.new).transpose(1, 2)
            rows = torch.cat([x, functional.pad(context, (0, 0, 1, 0))], dim=-1)  # CLS receives zeros
        return x + self.mlp(self.norm2(rows)), logits


class PatchEmbed(nn.Module):
    """Convolution whose padding makes any grid fit the image."""

    def __init__(self, shape: Backbone, grid: int) -> None:
        super().__init__()
        patch, padding = embedding(shape.image, grid)
        self.proj = nn.Conv2d(shape.channels, shape.width, patch, stride=patch, padding=padding)

    def forward(self, image: Tensor) -> Tensor:
        """[B,channels,S,S] -> [B,grid*grid,C]."""
        rows: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return rows


class Member(nn.Module):
    """One model of the cascade; `old` is the grid of the one before, None for the first."""

    def __init__(self, shape: Backbone, params: Params, old: int | None, grid: int) -> None:
        super().__init__()
        self.heads, self.old, self.grid = shape.heads, old, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if shape.kind == "t2t":
            self.pos_embed = nn.Parameter(sinusoids(grid * grid + 1, shape.width), requires_grad=False)
            self.tokens_to_token = TokensToToken(shape.image, grid, shape.channels, shape.width)
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid + 1, shape.width))
            self.patch_embed = PatchEmbed(shape, grid)
        self.kind = shape.kind
        self.blocks = nn.ModuleList(Block(shape, params, old, grid) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.head = nn.Linear(shape.width, shape.classes)
        if old:
            maps = shape.depth * shape.heads
            hidden = params.relation_ratio * maps
            self.relation_reuse_conv = nn.Sequential(nn.Conv2d(maps, hidden, 1), nn.GELU(), nn.Conv2d(hidden, maps, 1))

    def forward(self, image: Tensor, features: Tensor | None = None, relations: Tensor | None = None) -> tuple[Tensor, ...]:
        """Image and the reuse tensors of the model before -> logits [B,classes], tokens Z [B,N,C], relations R [B,LH,N,N]."""
        x = self.tokens_to_token(image) if self.kind == "t2t" else self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        shared: list[Tensor | None] = [None] * len(self.blocks)
        if relations is not None:
            assert self.old is not None
            maps = resample_relation(self.relation_reuse_conv(relations), self.old, self.grid)
            shared = list(torch.split(maps, self.heads, dim=1))
        given = []
        for block, relation in zip(self.blocks, shared, strict=True):
            x, logits = block(x, features, relation)
            given.append(logits)
        return self.head(self.norm(x)[:, 0]), x, torch.cat(given, dim=1)


class Cascade(nn.Module):
    """Three members under their official names; forward(image) -> the logits [B,classes] of every exit."""

    def __init__(self, shape: Backbone, params: Params) -> None:
        super().__init__()
        self.shape = shape
        old: int | None = None
        for name, grid in zip(MEMBERS, params.grids, strict=True):
            self.add_module(name, Member(shape, params, old, grid))
            old = grid

    @property
    def members(self) -> list[nn.Module]:
        """The three models, coarse to fine."""
        return [getattr(self, name) for name in MEMBERS]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Run all members whatever their confidence."""
        exits, reused = [], ()
        for member in self.members:
            logits, *reused = member(image, *reused)
            exits.append(logits)
        return exits


class EarlyExit(nn.Module):
    """The reference: forward(image) -> logits [B,classes] of the exit that answers each image.

    Only images that no earlier exit answered reach a member. Afterwards `exits` int64 [B] counts from 1, `certainty` float64 [B,2] is
    the confidence at exits 1 and 2 (infinite where not reached), and `kept`, `margin`, `overflow` are empty: no tokens leave.
    """

    def __init__(self, cascade: Cascade, params: Params) -> None:
        super().__init__()
        self.cascade, self.thresholds = cascade, params.thresholds
        self.exits, self.certainty = torch.zeros(0, dtype=torch.int64), torch.zeros(0, EXITS - 1)
        self.kept: list[Tensor] = []
        self.margin: list[Tensor] = []
        self.overflow: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        result = image.new_zeros(len(image), self.cascade.shape.classes)
        self.exits = torch.zeros(len(image), dtype=torch.int64)
        self.certainty = torch.full((len(image), EXITS - 1), float("inf"), dtype=torch.float64)
        waiting, reused = torch.arange(len(image)), ()
        for number, member in enumerate(self.cascade.members):
            if not len(waiting):
                break
            logits, *reused = member(image[waiting], *reused)
            answered = torch.ones(len(waiting), dtype=torch.bool)
            if number < EXITS - 1:
                certainty = dvt.confidence(logits)
                self.certainty[waiting, number] = certainty
                answered = dvt.fires(certainty, self.thresholds[number])
            result[waiting[answered]] = logits[answered]
            self.exits[waiting[answered]] = number + 1
            reused = tuple(value[~answered] for value in reused)
            waiting = waiting[~answered]
        return result
