"""Tokens-to-token by its definition, under the names of published checkpoints: unfold, attend, fold to a map, three times (T2T-ViT).

The graph takes convolutions with constant kernels instead of unfolding; the Performer layer is the same.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from vitprune.vit.t2t import Performer, as_map
from vitprune.vit.t2t_sizes import TOKEN_DIM, Unfolding, unfoldings


def unfold(cells: Tensor, sizes: Unfolding) -> Tensor:
    """[B,C,S,S] -> [B,after*after,C*k*k]."""
    return functional.unfold(cells, sizes.kernel, padding=sizes.padding, stride=sizes.stride).transpose(1, 2)


class TokensToToken(nn.Module):
    """[B,channels,S,S] -> [B,grid*grid,width]."""

    def __init__(self, image: int, grid: int, channels: int, width: int) -> None:
        super().__init__()
        self.sizes = unfoldings(image, grid)
        self.attention1 = Performer(channels * self.sizes[0].kernel ** 2)
        self.attention2 = Performer(TOKEN_DIM * self.sizes[1].kernel ** 2)
        self.project = nn.Linear(TOKEN_DIM * self.sizes[2].kernel ** 2, width)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        first, second, third = self.sizes
        x = as_map(self.attention1(unfold(image, first)), first.after)
        x = as_map(self.attention2(unfold(x, second)), second.after)
        tokens: Tensor = self.project(unfold(x, third))
        return tokens
