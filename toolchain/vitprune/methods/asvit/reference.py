"""Tokens leave before a block when the score their attention got in earlier blocks does not exceed a threshold (AS-ViT)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitprune.methods._dropping import sizes
from vitprune.methods.asvit import rule as asvit
from vitprune.methods.asvit.keys import AsvitOptions, Params, refuse_padded_batch_topk
from vitprune.methods.base import Method, MethodParams, Site, keys_of
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


class AsvitReference(ReferenceMethod):
    """Score in the blocks that are asked for, compare and drop before the blocks of the sites."""

    def __init__(self, method: Method, params: MethodParams, sites: list[Site[AsvitOptions]], padded: bool) -> None:
        super().__init__(method, params, sites, padded)
        keys = keys_of(params, Params)
        refuse_padded_batch_topk(keys.infer, padded)
        self.scored, self.mode, self.weighted = keys.scored_blocks(), keys.score_mode, keys.head_weight

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        if index in self.sites:
            x = self._drop(self.sites[index], x, state)
        if index not in self.scored:
            return run_block(block, x, state.key_bias(x.dtype), state)
        h = block.norm1(x)
        query, key, value = project(block.attn, h)
        query, key = placed(block.attn, query, key, state)
        probabilities = attention(query, key, state.key_bias(x.dtype))
        context = weigh(probabilities, value)
        row, heads = scoring_row(query, key, state.key_bias(x.dtype)), context[:, :, state.prefix :]
        new = asvit.score(row[:, :, state.prefix :], heads, self.weighted)
        state.extra["score"] = asvit.accumulate(state.extra.get("score"), new, self.mode)
        if state.sized:
            errors = sizes.share_errors(row, sizes.logit_sizes(query[:, :, :1], key)[:, :, 0])
            size = asvit.score_errors(errors[:, :, state.prefix :], row[:, :, state.prefix :], heads, self.weighted)
            state.extra["score_errors"] = asvit.accumulate(state.extra.get("score_errors"), size, self.mode)
        return feed_forward(block, added(block, x, attention_output(block, merge_heads(context), h)))

    def _drop(self, site: Site[AsvitOptions], x: Tensor, state: TokenState) -> Tensor:
        score, theta = state.extra["score"], site.options.theta
        decide = asvit.select_batch if site.options.infer == "batch_topk" else asvit.select
        chosen, margin = decide(score, state.valid, theta)
        margin, size = state.by_patch(margin), None
        if state.sized and site.options.infer == "per_image":
            size = state.by_patch(state.extra["score_errors"] * (state.prefix + state.patches), 1.0)
        chosen, overflow = cap(chosen, score - theta, site.limit)
        chosen = state.follow(chosen)
        rows = state.keep(chosen, site.limit if self.padded else None)
        state.record(margin, overflow, size)
        for name in ("score", "score_errors"):
            if name in state.extra:
                state.extra[name] = state.extra[name].gather(1, rows[:, state.prefix :] - state.prefix)
        return take_rows(x, rows)
