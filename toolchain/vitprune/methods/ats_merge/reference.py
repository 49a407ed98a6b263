"""ATS decides which patches stay; the others join the kept patch most similar to them (ATS with `dropped: merge`)."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.methods._dropping.rule import mean_received
from vitprune.methods._merging.reference import MergingReference, join
from vitprune.methods._merging.rule import metric
from vitprune.methods.ats import rule as ats
from vitprune.methods.ats.reference import SCORES
from vitprune.methods.ats_merge import rule as ats_merge
from vitprune.methods.ats_merge.keys import AtsMergeOptions
from vitprune.methods.base import Site
from vitprune.vit.tokens import TokenState, cap, take_rows


class AtsMergeReference(MergingReference):
    """Score and sample by ATS, then merge what was not sampled, between attention and MLP."""

    def merge(
        self, site: Site[AtsMergeOptions], x: Tensor, weights: Tensor, key: Tensor, value: Tensor, state: TokenState
    ) -> Tensor:
        """See `MergingReference.merge`."""
        if site.options.asking == "cls":
            row = weights[:, :, 0, state.prefix :]
        else:
            row = mean_received(weights, state.valid, state.prefix)
        score = SCORES[site.options.score](row, value[:, :, state.prefix :])
        official = site.options.mode == "inverse_transform_official"
        chosen, margin = ats.select(score, state.valid, site.options.num_samples, official)
        chosen, overflow = cap(chosen, score, site.limit)
        chosen = state.follow(chosen)
        into, ahead = ats_merge.nearest_kept(metric(key), chosen)
        leaves = state.valid & ~chosen
        # A patch that leaves has a second decision: which patch it joins.
        margin = state.by_patch(torch.where(leaves, torch.minimum(margin, ahead.double()), margin))
        x = join(x, leaves, into, state)
        left = state.extra["size"]
        kept = state.keep(chosen, site.limit if self.padded else None)
        state.extra["size"] = left.gather(1, kept[:, state.prefix :] - state.prefix)
        state.record(margin, overflow)
        return take_rows(x, kept)
