"""AS-ViT: soft masks with straight-through thresholds under a MAC budget, taught by the dense model (methods.md §5.1).

Against the released code: a patch that is masked stays masked (there a later stage could bring it back when thresholds get tiny or
scores are accumulated), and the budget is relative to the dense MACs unless the recipe asks for giga MACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitprune import methods
from vitprune.methods.asvit import rule as asvit
from vitprune.methods.asvit.keys import Params, Train, with_thresholds
from vitprune.methods.base import keys_of, per_stage
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.recipe import Recipe
from vitprune.training import losses
from vitprune.training.behaviour import Behaviour, Teacher, Trained
from vitprune.training.policy import block_macs, classify, embed, masked_block
from vitprune.vit.dense import geometry
from vitprune.vit.pruned import check_supported


def straight_through(score: Tensor, theta: Tensor, temperature: float) -> Tensor:
    """1 where score > theta, else 0, float [B,P]; its gradient is that of sigmoid((score - theta) / temperature)."""
    soft = ((score - theta) / temperature).sigmoid()
    return (score > theta).to(soft.dtype) + soft - soft.detach()


class AsvitTraining(Behaviour):
    """Learns `thresholds` float32 [stages] together with the weights."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        super().__init__(module, recipe)
        method = methods.get(recipe.prune.method)
        check_supported(module, method)
        params = keys_of(recipe.prune, Params)
        self.geometry = geometry(module)
        method.sites(params, self.geometry)
        self.stages = {block: number for number, block in enumerate(params.stages)}
        self.scored = params.scored_blocks()
        values = per_stage(params.thresholds, params.stages, "thresholds")
        self.thresholds = nn.Parameter(torch.tensor(values, dtype=torch.float32))
        self.dense_macs = model_macs(self.geometry, dense_blocks(self.geometry))

    def logits_and_terms(self, images: Tensor, teacher: Teacher | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Behaviour.logits_and_terms`."""
        params = keys_of(self.recipe.prune, Params)
        keys = keys_of(self.keys, Train)
        x = embed(self.model, images)
        prefix = self.geometry.prefix
        policy: Tensor | None = None
        score: Tensor | None = None
        counts = x.new_full((len(x),), float(x.shape[1]))
        macs = torch.full_like(counts, float(self.geometry.embed_macs))
        for index, block in enumerate(self.model.blocks):
            if index in self.stages:
                assert score is not None  # the first stage lies behind the first scored block
                mask = straight_through(score, self.thresholds[self.stages[index]], keys.temperature)
                mask = mask if policy is None else mask * policy[:, prefix:]
                policy = torch.cat([mask.new_ones(len(mask), prefix), mask], dim=1)
                counts = policy.sum(dim=1)
            macs = macs + block_macs(counts, self.geometry)
            x, probabilities, context = masked_block(block, x, policy)
            if index in self.scored:
                new = asvit.score(probabilities[:, :, 0, prefix:], context[:, :, prefix:], params.head_weight)
                score = asvit.accumulate(score, new, params.score_mode)
        scale = self.dense_macs if keys.budget_unit == "relative" else 1e9
        term = keys.budget_weight * losses.budget(macs, keys.budget * self.dense_macs, scale)
        return classify(self.model, self.model.norm(x), policy), {"budget": term}

    def lr_scale(self, name: str) -> float:
        """Thresholds have their own."""
        keys = keys_of(self.keys, Train)
        return keys.threshold_lr_scale if name == "thresholds" else 1.0

    def facts(self) -> dict[str, float]:
        """The thresholds."""
        return {f"threshold_{number}": float(value) for number, value in enumerate(self.thresholds.detach())}

    def _learned(self) -> list[float]:
        return [float(value) for value in self.thresholds.detach().cpu()]

    def trained_recipe(self) -> Recipe:
        """With the learned thresholds."""
        return self.recipe.model_copy(update={"prune": self.recipe.prune.model_copy(update=with_thresholds(self._learned()))})

    def trained(self) -> Trained:
        """Weights and thresholds."""
        plain = super().trained()
        return Trained(plain.files, plain.changes | {"prune.thresholds": self._learned()})
