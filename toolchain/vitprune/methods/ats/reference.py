"""Methods that score patches by the CLS row and drop query rows inside attention (ATS, top-k).

Keys and values stay whole in the sampling block; the residual row leaves with the attention row.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitprune.methods._dropping.rule import mean_received
from vitprune.methods.ats import rule as ats
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.base import Site
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
from vitprune.vit.tokens import TokenState, cap, take_rows

SCORES = {"per_head": ats.score_per_head, "pooled": ats.score_pooled, "attention": ats.score_attention}


class AtsReference(ReferenceMethod):
    """Score, select and drop inside the attention of every site."""

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        site = self.sites.get(index)
        if site is None:
            return run_block(block, x, state.key_bias(x.dtype), state)
        if site.options.bypass:
            x = run_block(block, x, state.key_bias(x.dtype), state)
            state.record()
            return x
        return self._sample(site, block, x, state)

    def _sample(self, site: Site[AtsOptions], block: Any, x: Tensor, state: TokenState) -> Tensor:
        bias = state.key_bias(x.dtype)
        h = block.norm1(x)
        query, key, value = project(block.attn, h)
        query, key = placed(block.attn, query, key, state)
        if site.options.asking == "cls":
            row = scoring_row(query, key, bias)[:, :, state.prefix :]
        else:
            row = mean_received(attention(query, key, bias), state.valid, state.prefix)
        score = SCORES[site.options.score](row, value[:, :, state.prefix :])
        official = site.options.mode == "inverse_transform_official"
        chosen, margin = ats.select(score, state.valid, site.options.num_samples, official)
        margin = state.by_patch(margin)
        chosen, overflow = cap(chosen, score, site.limit)
        chosen = state.follow(chosen)
        rows = state.keep(chosen, site.limit if self.padded else None)
        state.record(margin, overflow)
        index = rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        context = merge_heads(weigh(attention(query.gather(2, index), key, bias), value))
        return feed_forward(block, added(block, take_rows(x, rows), attention_output(block, context, take_rows(h, rows))))
