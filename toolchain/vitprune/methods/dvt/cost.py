"""Costs and sizes of the members of a DVT cascade (methods.md §4.1, §4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitprune.methods.base import Geometry
from vitprune.methods.dvt.keys import EXITS, Params
from vitprune.vit.t2t_sizes import tokenizer_macs

if TYPE_CHECKING:
    pass


def embedding(image: int, grid: int) -> tuple[int, int]:
    """Patch size and padding with which a convolution turns an image side into `grid` patches (methods.md §4.1: 32/0, 23/3, 16/0)."""
    patch = -(-image // grid)
    return patch, -(-(grid * patch - image) // 2)


def embed_macs(backbone: str, image: Sequence[int], grid: int, width: int) -> int:
    """MACs from an image (channels, height, width) to the tokens of one member."""
    if backbone == "t2t":
        return tokenizer_macs(image[1], grid, image[0], width)
    return grid * grid * image[0] * embedding(image[1], grid)[0] ** 2 * width


def member_macs(params: Params, geometry: Geometry, image: Sequence[int], member: int) -> float:
    """MACs of one member (0-based): backbone, wider MLP input, feature reuse, relation reuse and both resamplings.

    Args:
        params: `Params`. geometry: of the last member; width, heads, depth and MLP are those of all. image: (channels, height, width).
        member: which one.
    """
    grid, width = params.grids[member], geometry.width
    tokens = grid * grid + 1
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * geometry.mlp_hidden
    total = embed_macs(params.backbone, image, grid, width) + geometry.depth * block
    if member == 0:
        return float(total)
    before = params.grids[member - 1] ** 2 + 1
    channels = geometry.depth * geometry.heads
    feature = before * params.feature_hidden * (width + params.feature_dim) + tokens * before * params.feature_dim
    wider = tokens * params.feature_dim * geometry.mlp_hidden
    relation = 2 * before**2 * channels**2 * params.relation_ratio
    resampled = channels * (tokens * before**2 + tokens**2 * before)
    return float(total + geometry.depth * (feature + wider) + relation + resampled)


def exit_costs(params: Params, geometry: Geometry, image: Sequence[int]) -> list[float]:
    """Cumulative MACs of answering at each exit: an exit pays for all members before it (methods.md §4.6)."""
    total, costs = 0.0, []
    for member in range(EXITS):
        total += member_macs(params, geometry, image, member)
        costs.append(total)
    return costs
