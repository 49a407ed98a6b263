"""Check values of methods.md §1 (G = 1e9 MACs)."""

from __future__ import annotations

import pytest

from vitprune.methods.base import BlockTokens, Geometry
from vitprune.methods.cost import dense_blocks, model_macs, removed_before


def deit(width: int, heads: int) -> Geometry:
    return Geometry(depth=12, patches=196, prefix=1, width=width, heads=heads, mlp_hidden=4 * width, embed_macs=196 * 768 * width)


@pytest.mark.parametrize(("width", "heads", "expected"), [(192, 3, 1.254), (384, 6, 4.599), (768, 12, 17.56)])
def test_dense_deit(width, heads, expected):
    geometry = deit(width, heads)
    assert model_macs(geometry, dense_blocks(geometry)) / 1e9 == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(("stages", "expected"), [((3, 6, 9), 2.878), ((4, 7, 10), 3.133)])
def test_removal_before_three_blocks(stages, expected):
    from vitprune.methods.base import Site

    geometry = deit(384, 6)
    kept = [137, 96, 67]
    sites = [Site(block, 196, count) for block, count in zip(stages, kept, strict=True)]
    assert model_macs(geometry, removed_before(sites, geometry, kept)) / 1e9 == pytest.approx(expected, rel=1e-3)


def test_query_pruning_costs_less_than_removal_after_the_block():
    geometry = deit(384, 6)
    full = model_macs(geometry, dense_blocks(geometry))
    inside = model_macs(geometry, [*dense_blocks(geometry)[:-1], BlockTokens(197, 100, 100)])
    assert inside < full
