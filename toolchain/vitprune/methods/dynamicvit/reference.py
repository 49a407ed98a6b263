"""Tokens leave before a block by the rank a trained predictor gives them (DynamicViT); constant counts, no pad slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitprune.methods._dropping.rule import select
from vitprune.methods.base import Method, MethodParams, Site, keys_of
from vitprune.methods.dynamicvit import rule as dynamicvit
from vitprune.methods.dynamicvit import weights as predictor
from vitprune.methods.dynamicvit.keys import DynamicVitOptions, Params
from vitprune.vit.blocks import run_block
from vitprune.vit.reference_method import ReferenceMethod
from vitprune.vit.tokens import TokenState, take_rows


class DynamicVitReference(ReferenceMethod):
    """Predict, rank and drop before the blocks of the sites.

    `warning` says what a user must know about the predictor.
    """

    def __init__(self, method: Method, params: MethodParams, sites: list[Site[DynamicVitOptions]], padded: bool) -> None:
        super().__init__(method, params, sites, padded)
        keys = keys_of(params, Params)
        self.weights = predictor.load(keys, sites)
        self.warning = predictor.warning(keys)

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        site = self.sites.get(index)
        if site is not None:
            weights = {name: torch.from_numpy(w).to(x.device) for name, w in self.weights[site.options.stage].items()}
            chosen, margin = select(dynamicvit.score(x[:, state.prefix :], weights), site.options.keep)
            margin, chosen = state.by_patch(margin), state.follow(chosen)
            x = take_rows(x, state.keep(chosen))
            state.record(margin)
        return run_block(block, x, None, state)
