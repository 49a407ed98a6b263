"""Methods that keep a constant number of tokens per site (top-k, EViT, POMT).

Without a combined token the rows of dropped tokens are never needed again and their queries are dropped inside attention; with
one (EViT's fused token, POMT's mean) attention is whole, and between attention and MLP the dropped rows are combined into one
token behind the kept ones. All images of a batch keep the same number, so there are no pad slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.methods._dropping import rule as ranking
from vitprune.methods._dropping import sizes
from vitprune.methods._dropping.sites import FixedRateOptions
from vitprune.methods.base import Site
from vitprune.methods.evit import rule as evit
from vitprune.methods.pomt import rule as pomt
from vitprune.vit.blocks import (
    added,
    attention,
    attention_output,
    feed_forward,
    merge_heads,
    placed,
    project,
    run_block,
    scoring_row,
    weigh,
)
from vitprune.vit.reference_method import ReferenceMethod
from vitprune.vit.tokens import TokenState, take_rows

COMBINE = {"weighted": evit.fuse, "mean": pomt.mean}


class FixedRateReference(ReferenceMethod):
    """Score, rank, drop and combine at every site."""

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        site = self.sites.get(index)
        if site is None:
            return run_block(block, x, None, state)
        h = block.norm1(x)
        query, key, value = project(block.attn, h)
        query, key = placed(block.attn, query, key, state)
        significance = self._score(site, query, key, value, state.prefix)
        chosen, margin = ranking.select(significance, site.options.keep)
        size = None
        if state.sized and site.options.score != "columns":
            errors = sizes.pair_errors(*self._shares(site, query, key), state.prefix) * (state.prefix + state.patches)
            size = state.by_patch(sizes.cut_sizes(significance, chosen, margin, errors), 1.0)
        margin, chosen = state.by_patch(margin), state.follow(chosen)
        combine = site.options.combine
        if combine is None:
            rows = state.keep(chosen)
            state.record(margin, size=size)
            at = rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
            context = merge_heads(weigh(attention(query.gather(2, at), key, None), value))
            return feed_forward(block, added(block, take_rows(x, rows), attention_output(block, context, take_rows(h, rows))))
        attended = added(block, x, attention_output(block, merge_heads(weigh(attention(query, key, None), value)), h))
        combined = COMBINE[combine](attended[:, state.prefix :], significance, ~chosen)
        rows = state.keep(chosen)
        state.record(margin, size=size)
        state.append()
        return feed_forward(block, torch.cat([take_rows(attended, rows), combined], dim=1))

    def _shares(self, site: Site[FixedRateOptions], query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of the rows that score, and the sizes of their logits, both [B,R,N]."""
        if site.options.score == "mean_attention":
            return attention(query, key, None).flatten(1, 2), sizes.logit_sizes(query, key).flatten(1, 2)
        return scoring_row(query, key, None), sizes.logit_sizes(query[:, :, :1], key)[:, :, 0]

    def _score(self, site: Site[FixedRateOptions], query: Tensor, key: Tensor, value: Tensor, prefix: int) -> Tensor:
        if site.options.score == "columns":
            return pomt.score(attention(query, key, None), value, prefix)
        if site.options.score == "mean_attention":
            weights = attention(query, key, None)
            everyone = torch.ones_like(weights[:, 0, 0, prefix:], dtype=torch.bool)
            return ranking.mean_received(weights, everyone, prefix).mean(dim=1)
        return ranking.score(scoring_row(query, key, None)[:, :, prefix:])
