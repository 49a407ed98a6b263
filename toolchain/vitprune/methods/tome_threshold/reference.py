"""Pairs above a similarity merge, as many as an image has (threshold merging); rows stay in ascending patch order."""

from __future__ import annotations

from torch import Tensor

from vitprune.methods._merging.reference import MergingReference, join
from vitprune.methods._merging.rule import match, metric
from vitprune.methods.base import Site
from vitprune.methods.tome_threshold import rule as tome_threshold
from vitprune.methods.tome_threshold.keys import TomeThresholdOptions
from vitprune.vit.tokens import TokenState, take_rows


class TomeThresholdReference(MergingReference):
    """Merge the pairs above tau, at most r_max, between attention and MLP."""

    def merge(
        self, site: Site[TomeThresholdOptions], x: Tensor, weights: Tensor, key: Tensor, value: Tensor, state: TokenState
    ) -> Tensor:
        """See `MergingReference.merge`; `overflow` counts the pairs below tau that a capacity made merge."""
        options = site.options
        if not options.r_max:
            state.record()
            return x
        best, partner, gap = match(metric(key), state.valid, state.prefix)
        forced = (state.valid.sum(dim=1, keepdim=True) - site.limit).clamp(min=0)
        joins, margin = tome_threshold.select(best, gap, options.tau, options.r_max, forced)
        margin, overflow = state.by_patch(margin), (joins & (best <= options.tau)).sum(dim=1)
        x = join(x, joins, partner, state)
        left = state.extra["size"]
        rows = state.keep(state.valid & ~joins, site.limit if self.padded else None)
        state.extra["size"] = left.gather(1, rows[:, state.prefix :] - state.prefix)
        state.record(margin, overflow)
        return take_rows(x, rows)
