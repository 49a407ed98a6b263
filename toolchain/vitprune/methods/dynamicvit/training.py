"""DynamicViT: predictors with Gumbel-softmax decisions, taught by the dense model (methods.md §7.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitprune import methods
from vitprune.methods.base import keys_of
from vitprune.methods.dynamicvit.keys import NORM_EPS, Train
from vitprune.methods.dynamicvit.reference import DynamicVitReference
from vitprune.recipe import Recipe
from vitprune.training import losses
from vitprune.training.behaviour import MODEL_FILE, Behaviour, Teacher, Trained, _plain
from vitprune.training.policy import classify, embed, masked_block
from vitprune.vit.dense import geometry
from vitprune.vit.pruned import PrunedViT, check_supported

PREDICTOR_FILE = "predictor.safetensors"


class Predictor(nn.Module):
    """Log-probabilities (keep, drop) of every patch; parameters carry the published names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(), nn.Linear(width // 4, 2),
        )  # fmt: skip

    def forward(self, patches: Tensor, policy: Tensor) -> Tensor:
        """Patches [B,P,C], policy float [B,P] of what is left -> [B,P,2]; the global half is the mean over what is left."""
        x = self.in_conv(patches)
        half = x.shape[-1] // 2
        weight = policy[:, :, None].to(x.dtype)
        whole = (x[..., half:] * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
        chances: Tensor = self.out_conv(torch.cat([x[..., :half], whole.expand(-1, x.shape[1], -1)], dim=-1)).log_softmax(dim=-1)
        return chances


class DynamicVitTraining(Behaviour):
    """Trains `score_predictor` with the backbone."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        super().__init__(module, recipe)
        check_supported(module, methods.get("dynamicvit"))
        self.geometry = geometry(module)
        self.sites = methods.get("dynamicvit").sites(recipe.prune, self.geometry)
        self.score_predictor = nn.ModuleList(Predictor(self.geometry.width) for _ in self.sites)
        for linear in (part for part in self.score_predictor.modules() if isinstance(part, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    @property
    def wants_teacher(self) -> bool:
        """For logits or tokens."""
        keys = keys_of(self.keys, Train)
        return bool(keys.distill_weight or keys.token_weight)

    def logits_and_terms(self, images: Tensor, teacher: Teacher | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Behaviour.logits_and_terms`."""
        keys = keys_of(self.keys, Train)
        x, prefix = embed(self.model, images), self.geometry.prefix
        at = {site.block: number for number, site in enumerate(self.sites)}
        left, policy, decided = x.new_ones(len(x), x.shape[1] - prefix), None, []
        for index, block in enumerate(self.model.blocks):
            if index in at:
                chances = self.score_predictor[at[index]](x[:, prefix:], left)
                drawn = functional.gumbel_softmax(chances.float(), tau=keys.gumbel_temperature, hard=True)
                left = left * drawn[:, :, 0]
                decided.append(left)
                policy = torch.cat([left.new_ones(len(x), prefix), left], dim=1)
            x, _, _ = masked_block(block, x, policy)
        tokens = self.model.norm(x)
        ratios = [site.options.keep / self.geometry.patches for site in self.sites]
        terms = {"ratio": keys.ratio_weight * losses.keep_ratio(decided, ratios)}
        if teacher is not None and keys.token_weight:
            error = losses.token_distillation(tokens[:, prefix:], teacher.tokens[:, prefix:], left)
            terms["tokens"] = keys.token_weight * error
        return classify(self.model, tokens, policy), terms

    def lr_scale(self, name: str) -> float:
        """The backbone learns more slowly than the predictors."""
        keys = keys_of(self.keys, Train)
        return 1.0 if name.startswith("score_predictor") else keys.backbone_lr_scale

    def pruned(self) -> nn.Module:
        """The reference with the present predictors."""
        untrained = self.recipe.prune.model_copy(update={"predictor": "random"})
        oracle = PrunedViT(self.model, self.recipe.model_copy(update={"prune": untrained}))
        assert isinstance(oracle.steps, DynamicVitReference)
        oracle.steps.weights = [
            {name: value.float().numpy() for name, value in _plain(stage).items()} for stage in self.score_predictor
        ]
        return oracle.eval()

    def trained(self) -> Trained:
        """Backbone and predictors in two files."""
        predictors = {f"score_predictor.{name}": value for name, value in _plain(self.score_predictor).items()}
        return Trained(
            {MODEL_FILE: _plain(self.model), PREDICTOR_FILE: predictors},
            {"model.weights": MODEL_FILE, "prune.predictor": PREDICTOR_FILE},
        )
