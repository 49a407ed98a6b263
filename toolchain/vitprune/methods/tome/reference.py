"""Constant numbers of pairs merge at every site (ToMe); rows are laid out as ToMe does: what is left of A, then B."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.methods._merging.reference import MergingReference, join
from vitprune.methods._merging.rule import match, metric, order
from vitprune.methods.base import Site
from vitprune.methods.tome.keys import TomeOptions
from vitprune.methods.tome.rule import select
from vitprune.vit.tokens import TokenState


class TomeReference(MergingReference):
    """Merge the r most similar pairs between attention and MLP."""

    def merge(self, site: Site[TomeOptions], x: Tensor, weights: Tensor, key: Tensor, value: Tensor, state: TokenState) -> Tensor:
        """See `MergingReference.merge`."""
        if not site.options.r:
            state.record()
            return x
        best, partner, gap = match(metric(key), state.valid, state.prefix)
        joins, margin = select(best, gap, site.options.r)
        margin = state.by_patch(margin)
        x = join(x, joins, partner, state)
        arranged = order(joins, state.prefix)
        state.patch, state.valid = state.patch.gather(1, arranged), state.valid.gather(1, arranged)
        state.extra["size"] = state.extra["size"].gather(1, arranged)
        state.record(margin)
        patches = x[:, state.prefix :].gather(1, arranged[:, :, None].expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, : state.prefix], patches], dim=1)
