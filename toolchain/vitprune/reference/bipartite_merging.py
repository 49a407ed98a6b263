"""Constant numbers of pairs merge at every site (ToMe); rows are laid out as ToMe does: what is left of A, then B."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.methods import tome
from vitprune.methods.base import Site
from vitprune.reference import merging
from vitprune.reference.merging import join
from vitprune.reference.tokens import TokenState


class Rule(merging.Rule):
    """Merge the r most similar pairs between attention and MLP."""

    def merge(self, site: Site, x: Tensor, weights: Tensor, key: Tensor, value: Tensor, state: TokenState) -> Tensor:
        """See `merging.Rule.merge`."""
        if not site.options["r"]:
            state.record()
            return x
        best, partner, gap = tome.match(tome.metric(key), state.valid, state.prefix)
        joins, margin = tome.select(best, gap, site.options["r"])
        margin = state.by_patch(margin)
        x = join(x, joins, partner, state)
        order = tome.order(joins, state.prefix)
        state.patch, state.valid = state.patch.gather(1, order), state.valid.gather(1, order)
        state.extra["size"] = state.extra["size"].gather(1, order)
        state.record(margin)
        patches = x[:, state.prefix :].gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))
        return torch.cat([x[:, : state.prefix], patches], dim=1)
