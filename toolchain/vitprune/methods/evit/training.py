"""EViT: the reference in training mode, with a keep rate that may fall over the first epochs."""

from __future__ import annotations

import math

from vitprune.methods.base import keys_of
from vitprune.methods.evit.keys import Params, Train
from vitprune.training.reduction import Reduction
from vitprune.vit.pruned import PrunedViT


def ramped(rate: float, epoch: int, first: int, last: int) -> float:
    """Keep rate of an epoch: 1 until `first`, `rate` from `last` on, a cosine between."""
    progress = min(1.0, max(0.0, (epoch - first) / max(last - first, 1)))
    return rate + (1 - rate) * (1 + math.cos(math.pi * progress)) / 2


class EvitTraining(Reduction):
    """Fixed rates with an optional ramp."""

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch's keep rates; the sites are made again from them."""
        params = keys_of(self.recipe.prune, Params)
        ramp = keys_of(self.keys, Train).ramp
        if ramp is None or params.keep is not None:
            return
        rates = params.keep_rate if isinstance(params.keep_rate, list) else [params.keep_rate] * len(params.stages)
        now = [ramped(rate, epoch, *ramp) for rate in rates]
        prune = params.model_copy(update={"keep_rate": now})
        self.oracle = (PrunedViT(self.model, self.recipe.model_copy(update={"prune": prune})),)
