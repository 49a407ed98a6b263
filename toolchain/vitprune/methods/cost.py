"""MACs of a ViT whose token count changes from block to block (papers call MACs "FLOPs"; methods.md §1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vitprune.methods.base import BlockTokens, Geometry, Site


def block_macs(tokens: BlockTokens, width: int, mlp_hidden: int, keys: int = 0) -> float:
    """MACs of one block.

    Q on its rows, K and V on all (or on a fixed number of rows), two attention products, projection, MLP, and what the method counts
    for its selection.
    """
    n, k = keys or tokens.entering, tokens.queries
    projections = 2 * n * width**2 + 2 * k * width**2
    return projections + 2 * n * k * width + 2 * tokens.mlp * width * mlp_hidden + tokens.selection


def model_macs(geometry: Geometry, blocks: Sequence[BlockTokens]) -> float:
    """MACs of the whole model: patch embedding and blocks; norms, softmax and head are not counted, selection by the methods that say so."""
    return geometry.embed_macs + sum(block_macs(block, geometry.width, geometry.mlp_hidden, geometry.keys) for block in blocks)


def dense_blocks(geometry: Geometry) -> list[BlockTokens]:
    """Token counts of the dense model."""
    return [BlockTokens(geometry.tokens, geometry.tokens, geometry.tokens)] * geometry.depth


def removed_inside(sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
    """Token counts when rows leave inside the attention of each site (query pruning); kept counts are patches."""
    after = dict(zip((site.block for site in sites), kept, strict=True))
    blocks, tokens = [], float(geometry.tokens)
    for block in range(geometry.depth):
        rows = geometry.prefix + after[block] if block in after else tokens
        blocks.append(BlockTokens(tokens, rows, rows))
        tokens = rows
    return blocks


def removed_before(sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
    """Token counts when rows leave before the block of each site."""
    after = dict(zip((site.block for site in sites), kept, strict=True))
    blocks, tokens = [], float(geometry.tokens)
    for block in range(geometry.depth):
        tokens = geometry.prefix + after[block] if block in after else tokens
        blocks.append(BlockTokens(tokens, tokens, tokens))
    return blocks


def with_all_queries(blocks: list[BlockTokens], asked: set[int], geometry: Geometry) -> list[BlockTokens]:
    """The same, with the queries and attention logits of all entering tokens in blocks where a score asks for them."""
    width = geometry.width
    return [
        replace(block, selection=block.selection + block.entering * width * (block.entering + width)) if index in asked else block
        for index, block in enumerate(blocks)
    ]


def merged_after_attention(sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
    """Token counts when rows merge between attention and MLP: attention is whole, the MLP runs on what is left."""
    after = dict(zip((site.block for site in sites), kept, strict=True))
    blocks, tokens = [], float(geometry.tokens)
    for block in range(geometry.depth):
        rows = geometry.prefix + after[block] if block in after else tokens
        blocks.append(BlockTokens(tokens, tokens, rows))
        tokens = rows
    return blocks
