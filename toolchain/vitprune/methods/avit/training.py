"""A-ViT: halting with a ponder loss and a prior on depth (methods.md §6.1, §6.4).

The reference runs in training mode: halted tokens are hidden, and removed at the compactions, which gives the same gradients. CLS's
early exit is off, so that the ponder loss sees the depth of every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitprune.methods.avit.keys import Params, Train
from vitprune.methods.avit.reference import AvitReference
from vitprune.methods.base import keys_of
from vitprune.recipe import Recipe
from vitprune.training import losses
from vitprune.training.behaviour import Behaviour, Teacher
from vitprune.vit.pruned import PrunedViT
from vitprune.vit.tokens import TokenState


class OfficialHalting(AvitReference):
    """As in the released training code: nothing is removed, halted rows enter a block as zeros, and their scores count too.

    `means` float [L]: the mean score of each block over all tokens of all images but the first.
    """

    def begin(self, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.begin`."""
        self.sites: dict[int, Any] = {}
        self._means: list[Tensor] = []
        return super().begin(x, state)

    def block(self, index: int, block: Any, x: Tensor, state: TokenState) -> Tensor:
        """See `ReferenceMethod.block`."""
        params = keys_of(self.params, Params)
        x = super().block(index, block, x * state.extra["active"][:, :, None].to(x.dtype), state)
        score = (x[:, :, params.channel].float() * params.gate_scale - params.gate_center).sigmoid()
        self._means.append(score[1:].mean())
        return x

    @property
    def means(self) -> Tensor:
        """See the class."""
        return torch.stack(self._means)


def active_means(score: Tensor, active: Tensor, prefix: int) -> Tensor:
    """Mean halting score of each block over active patches [L], 0 where none is left; score, active [L,B,N]."""
    score, active = score[:, :, prefix:], active[:, :, prefix:]
    total = torch.where(active, score, torch.zeros_like(score)).sum(dim=(1, 2))
    return total / active.sum(dim=(1, 2)).clamp(min=1)


class AvitTraining(Behaviour):
    """The gate's constants stay as in the recipe; the score lives in a channel of the embedding."""

    unused = True  # blocks that no token reaches get no gradient

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        super().__init__(module, recipe)
        keys = keys_of(self.keys, Train)
        prune = recipe.prune.model_copy(update={"cls_exit": False, "capacity": None})
        oracle = PrunedViT(module, recipe.model_copy(update={"prune": prune}))
        self.official = keys.prior == "official"
        if self.official:
            oracle.steps = OfficialHalting(oracle.method, prune, oracle.sites, False)
            oracle.steps.prepare(module)
        self.oracle = (oracle,)
        depth = oracle.geometry.depth
        centre = 2 * depth / 3 if keys.target_depth is None else keys.target_depth
        self.target: Tensor
        self.register_buffer("target", losses.depth_target(depth, centre, keys.target_width, self.official), persistent=False)

    def logits_and_terms(self, images: Tensor, teacher: Teacher | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Behaviour.logits_and_terms`."""
        keys = keys_of(self.keys, Train)
        oracle = self.oracle[0]
        logits, halting = oracle(images), oracle.steps
        assert isinstance(halting, AvitReference)
        if isinstance(halting, OfficialHalting):
            means = halting.means
        else:
            means = active_means(halting.halting, halting.active, oracle.geometry.prefix)
        return logits, {
            "ponder": keys.ponder_weight * halting.ponder.mean(),
            "prior": keys.prior_weight * losses.depth_prior(means, self.target, self.official),
        }

    def facts(self) -> dict[str, float]:
        """Mean number of blocks that a token took part in, in the last batch."""
        depth = getattr(self.oracle[0].steps, "depth", None)
        return {} if depth is None else {"mean_depth": float(depth.float().mean())}
