"""T2T-ViT as a timm VisionTransformer (Yuan et al., ICCV 2021, arXiv 2101.11986), written from the paper's equations.

Only the front end differs from a plain ViT, so it is a `patch_embed`; blocks are timm's. timm itself has no T2T-ViT: importing this module
adds t2t_vit_7, _10, _12, _14, _19 and _24 to its model list.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitprune.vit.t2t_sizes import FEATURES, TOKEN_DIM, Unfolding, tokenizer_macs, unfoldings

EPS = 1e-5  # of all LayerNorms; ViT and DeiT have 1e-6
STABLE = 1e-8  # added to the Performer's denominator

default_cfgs = generate_default_cfgs(
    {
        f"t2t_vit_{depth}": {
            "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.9, "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "classifier": "head", "url": "",
        }
        for depth in (7, 10, 12, 14, 19, 24)
    }
)  # fmt: skip


def sinusoids(rows: int, width: int) -> Tensor:
    """Fixed positions [1,rows,width]: sin (even channels) and cos (odd) of row / 10000^(2 floor(j/2) / width), made in double precision."""
    channel = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(rows, dtype=torch.float64)[:, None] / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


class Unfold(nn.Module):
    """Windows as rows: [B,C,S,S] -> [B,after*after,C*k*k], channels first, then rows and columns of the window.

    A grouped convolution whose kernels hold a single one each, because runtimes take that better than the Gathers im2col exports to.
    """

    def __init__(self, channels: int, sizes: Unfolding) -> None:
        super().__init__()
        self.channels, self.stride, self.padding = channels, sizes.stride, sizes.padding
        area = sizes.kernel**2
        one = torch.eye(area).reshape(area, 1, sizes.kernel, sizes.kernel).repeat(channels, 1, 1, 1)
        self.register_buffer("one", one, persistent=False)

    def forward(self, cells: Tensor) -> Tensor:
        """See the class."""
        windows = nn.functional.conv2d(cells, self.one, stride=self.stride, padding=self.padding, groups=self.channels)  # type: ignore[arg-type]
        return windows.flatten(2).transpose(1, 2)


class Performer(nn.Module):
    """One tokens-to-token layer with linear attention (Choromanski et al., arXiv 2009.14794): rows [B,N,width] -> [B,N,64].

    softmax(q k) is replaced by phi(q) phi(k), phi(u) = exp(w u - |u|^2 / 2) / sqrt(m), with m = 32 fixed random rows w. Rows become
    narrower, so the residual goes over the values instead of the input. Parameters carry the published names.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(TOKEN_DIM, eps=EPS)
        self.kqv, self.proj = nn.Linear(width, 3 * TOKEN_DIM), nn.Linear(TOKEN_DIM, TOKEN_DIM)
        self.mlp = nn.Sequential(nn.Linear(TOKEN_DIM, TOKEN_DIM), nn.GELU(), nn.Linear(TOKEN_DIM, TOKEN_DIM))
        rows = nn.init.orthogonal_(torch.empty(FEATURES, TOKEN_DIM)) * math.sqrt(FEATURES)
        self.w = nn.Parameter(rows, requires_grad=False)

    def features(self, u: Tensor) -> Tensor:
        """Phi: [B,N,64] -> [B,N,m]."""
        half = (u * u).sum(-1, keepdim=True) / 2
        return torch.exp(u @ self.w.T - half) / math.sqrt(FEATURES)

    def forward(self, rows: Tensor) -> Tensor:
        """See the class."""
        key, query, value = self.kqv(self.norm1(rows)).split(TOKEN_DIM, dim=-1)
        key, query = self.features(key), self.features(query)
        total = query @ key.sum(1, keepdim=True).transpose(1, 2)
        context = query @ (key.transpose(1, 2) @ value) / (total + STABLE)
        x = value + self.proj(context)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TokensToToken(nn.Module):
    """The front end as a timm patch_embed: [B,C,S,S] -> [B,grid*grid,width].

    The third unfolding and the projection are one convolution; `from_published` turns the linear map of checkpoints into it.
    """

    def __init__(self, img_size: Any, grid: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height != width:
            raise ValueError(f"tokens-to-token takes square images, not {height}x{width}")
        self.sizes = unfoldings(height, grid)
        self.img_size, self.grid_size, self.num_patches, self.in_chans = (height, width), (grid, grid), grid * grid, in_chans
        first, second, third = self.sizes
        self.split0, self.split1 = Unfold(in_chans, first), Unfold(TOKEN_DIM, second)
        self.attention1 = Performer(in_chans * first.kernel**2)
        self.attention2 = Performer(TOKEN_DIM * second.kernel**2)
        self.proj = nn.Conv2d(TOKEN_DIM, embed_dim, third.kernel, stride=third.stride, padding=third.padding)
        self.macs = tokenizer_macs(height, grid, in_chans, embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        first, second, _ = self.sizes
        x = self.attention1(self.split0(image))
        x = self.attention2(self.split1(as_map(x, first.after)))
        tokens: Tensor = self.proj(as_map(x, second.after)).flatten(2).transpose(1, 2)
        return tokens


def as_map(rows: Tensor, side: int) -> Tensor:
    """Rows [B,side*side,64] as cells [B,64,side,side]."""
    cells: Tensor = rows.transpose(1, 2).unflatten(2, (side, side))  # type: ignore[no-untyped-call]
    return cells


class T2TViT(VisionTransformer):
    """T2T-ViT: tokens-to-token, a CLS token, a fixed sinusoidal position table, then timm's blocks without q/k/v bias.

    Args: those of timm's VisionTransformer; grid: tokens per side, by default one for 16 pixels.

    Raises:
        ValueError: an image that is not square, or that no window turns into the grid.
    """

    def __init__(self, img_size: Any = 224, grid: int | None = None, **kwargs: Any) -> None:
        side = img_size if isinstance(img_size, int) else img_size[0]
        grid = grid or -(-side // 16)
        defaults = {
            "qkv_bias": False,
            "norm_layer": partial(nn.LayerNorm, eps=EPS),
            "embed_layer": partial(TokensToToken, grid=grid),
        }
        super().__init__(img_size=img_size, patch_size=-(-side // grid), **{**defaults, **kwargs})
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(sinusoids(self.pos_embed.shape[1], self.embed_dim), requires_grad=False)

    def convert_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Weights under the published names, or its own, as `load_state_dict` takes them."""
        return from_published(state, self)


def from_published(state: dict[str, Any], model: T2TViT) -> dict[str, Any]:
    """A state dict with the names of the papers' checkpoints, as one of this module; values stay as they are.

    `tokens_to_token` becomes `patch_embed`, and its linear `project` the convolution over the third unfolding.
    """
    renamed = {
        name.replace("tokens_to_token.", "patch_embed.").replace("patch_embed.project.", "patch_embed.proj."): value
        for name, value in state.items()
    }
    name = "patch_embed.proj.weight"
    if name in renamed:
        renamed[name] = renamed[name].reshape(model.patch_embed.proj.weight.shape)
    return renamed


def to_published(state: dict[str, Any]) -> dict[str, Any]:
    """The way back: a state dict of a T2TViT with the names of the papers' checkpoints."""
    return {
        name.replace("patch_embed.proj.", "tokens_to_token.project.").replace("patch_embed.", "tokens_to_token."): value.flatten(
            1
        )
        if name == "patch_embed.proj.weight"
        else value
        for name, value in state.items()
    }


def _create(name: str, pretrained: bool, sizes: dict[str, Any], kwargs: dict[str, Any]) -> T2TViT:
    model: T2TViT = build_model_with_cfg(T2TViT, name, pretrained, **{**sizes, **kwargs})
    return model


def _small(depth: int) -> dict[str, Any]:
    return {"embed_dim": 256, "depth": depth, "num_heads": 4, "mlp_ratio": 2.0}


def _large(depth: int, heads: int) -> dict[str, Any]:
    return {"embed_dim": 64 * heads, "depth": depth, "num_heads": heads, "mlp_ratio": 3.0}


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """4.3 M parameters."""
    return _create("t2t_vit_7", pretrained, _small(7), kwargs)


@register_model
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """5.9 M parameters."""
    return _create("t2t_vit_10", pretrained, _small(10), kwargs)


@register_model
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """6.9 M parameters."""
    return _create("t2t_vit_12", pretrained, _small(12), kwargs)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """21.5 M parameters."""
    return _create("t2t_vit_14", pretrained, _large(14, 6), kwargs)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """39.2 M parameters."""
    return _create("t2t_vit_19", pretrained, _large(19, 7), kwargs)


@register_model
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """64.1 M parameters."""
    return _create("t2t_vit_24", pretrained, _large(24, 8), kwargs)
