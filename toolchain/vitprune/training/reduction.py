"""Training with the reduction on: the reference in training mode.

Gradients pass through the rows that stay (ATS, top-k, EViT, POMT) and through merged rows (ToMe, threshold merging, ATS with
merging); decisions themselves have none.
"""

from __future__ import annotations

from torch import Tensor, nn

from vitprune.recipe import Recipe
from vitprune.training.behaviour import Behaviour, Teacher
from vitprune.vit.pruned import PrunedViT


class Reduction(Behaviour):
    """Methods without parameters of their own."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        super().__init__(module, recipe)
        self.oracle = (PrunedViT(module, recipe),)  # a tuple: its weights are those of self.model, not further ones

    def logits_and_terms(self, images: Tensor, teacher: Teacher | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Behaviour.logits_and_terms`."""
        return self.oracle[0](images), {}
