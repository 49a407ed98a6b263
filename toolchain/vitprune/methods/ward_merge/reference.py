"""Reciprocal nearest pairs by Ward's criterion merge between attention and MLP; rows stay in ascending patch order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.methods._merging.reference import MergingReference, join, lose
from vitprune.methods.base import Site
from vitprune.methods.ward_merge import rule
from vitprune.methods.ward_merge.keys import WardOptions
from vitprune.vit.tokens import TokenState, cap, take_rows


class WardMergeReference(MergingReference):
    """Merge what does the least damage, in rounds; see `vitprune.methods.ward_merge.rule`."""

    has_cls = True

    def prepare(self, model: Any) -> None:
        """See `ReferenceMethod.prepare`; without a CLS token the attention of all queries counts."""
        self.has_cls = model.geometry.has_cls

    def merge(self, site: Site[WardOptions], x: Tensor, weights: Tensor, key: Tensor, value: Tensor, state: TokenState) -> Tensor:
        """See `MergingReference.merge`; `overflow` counts rows lost to a capacity."""
        options = site.options
        if options.idle:
            state.record()
            return x
        size = torch.where(state.valid, state.extra["size"], torch.zeros_like(state.extra["size"]))
        attention = rule.received(weights, size, state.prefix, self.has_cls)
        mass = rule.masses(attention, size, options.everyone, options.power)
        patches = x[:, state.prefix :]
        damage = rule.damages(rule.directions(patches, options.sketch), mass, state.valid)
        into, left, after, margin = self._rounds(options, damage, mass)
        slots = torch.arange(into.shape[1], device=x.device)[None]
        leaves = (into != slots) & state.valid
        x = join(x, leaves, into, state, mass, keep_norm=True)
        chosen, overflow = cap(state.valid & ~leaves, after, site.limit)
        margin = self._cut(margin, after, state.valid & ~leaves, chosen, overflow)
        margin = state.by_patch(margin)
        lose(chosen, state)
        size_after = state.extra["size"]
        rows = state.keep(chosen, site.limit if self.padded or options.r is not None else None)
        state.extra["size"] = size_after.gather(1, rows[:, state.prefix :] - state.prefix)
        state.record(margin, overflow)
        return take_rows(x, rows)

    def _rounds(self, options: WardOptions, damage: Tensor, mass: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where every slot ends, pairs left to merge, masses and margins after all rounds.

        A later round follows from the earlier ones, so its decisions are no surer than the least sure of those before it.
        """
        slots = torch.arange(mass.shape[1], device=mass.device)[None].expand(len(mass), -1)
        into, most = slots, torch.full_like(slots[:, :1], mass.shape[1] if options.r is None else options.r)
        margin = torch.full_like(mass, float("inf"), dtype=torch.float64)
        gone, surest = torch.zeros_like(mass, dtype=torch.bool), torch.full_like(margin[:, :1], float("inf"))
        for number in range(options.rounds):
            joins, partner, own = rule.pairs(damage, options.limit, most)
            margin = torch.where(gone, margin, torch.minimum(margin, torch.minimum(own, surest)))
            surest = torch.minimum(surest, own.amin(dim=1, keepdim=True))
            step = torch.where(joins, partner, slots)
            into, gone, most = step.gather(1, into), gone | joins, most - joins.sum(dim=1, keepdim=True)
            if number + 1 < options.rounds:
                damage, mass = rule.lance_williams(damage, mass, joins, partner)
            else:
                mass = mass.scatter_add(1, step, torch.where(joins, mass, torch.zeros_like(mass)))
        return into, most, mass, margin

    def _cut(self, margin: Tensor, mass: Tensor, left: Tensor, chosen: Tensor, overflow: Tensor) -> Tensor:
        """Where a capacity cuts, any decision moves it: no row is surer than the least sure one and the gap in mass at the cut."""
        lost = left & ~chosen
        inside = mass.masked_fill(~chosen, float("inf")).amin(dim=1)
        outside = mass.masked_fill(~lost, float("-inf")).amax(dim=1)
        least = torch.minimum(margin.amin(dim=1), (inside - outside).double())
        return torch.where((overflow > 0)[:, None], torch.minimum(margin, least[:, None]), margin)
