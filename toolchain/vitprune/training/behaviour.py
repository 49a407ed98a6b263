"""What every behaviour offers to the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from vitprune.recipe import Recipe
from vitprune.training import losses
from vitprune.vit.loading import LoadedModel


@dataclass(frozen=True)
class Teacher:
    """What the frozen dense model says: logits [B,classes] and normalised tokens [B,N,C]."""

    logits: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Trained:
    """What a run leaves behind: tensors per file name, and recipe keys to change ("model.weights", "prune.thresholds", ...)."""

    files: dict[str, dict[str, Tensor]]
    changes: dict[str, Any] = field(default_factory=dict)


MODEL_FILE = "model.safetensors"


class Behaviour(nn.Module):
    """A module whose forward gives the loss terms; kinds override `logits_and_terms`, and what else is special about them.

    unused: some parameters may get no gradient in a step (DDP must be told).
    """

    unused: ClassVar[bool] = False

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model: Any = module
        self.recipe, self.keys = recipe, recipe.training

    @classmethod
    def load(cls, recipe: Recipe, name: str | None, *, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
        """The model that training starts from; arguments and errors as `vitprune.vit.loading.load`."""
        from vitprune.vit import loading

        section = recipe.model if name is None else recipe.model.model_copy(update={"name": name})
        return loading.load(section, pretrained=pretrained, seed=seed, weights=weights)

    @property
    def wants_teacher(self) -> bool:
        """Whether the dense model is asked in every step."""
        return self.keys.distill_weight > 0

    def logits_and_terms(self, images: Tensor, teacher: Teacher | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B,classes] and weighted loss terms besides cross-entropy and distillation of logits."""
        raise NotImplementedError

    def forward(self, images: Tensor, targets: Tensor, teacher: Teacher | None = None) -> dict[str, Tensor]:
        """Weighted loss terms; their sum is the loss."""
        logits, terms = self.logits_and_terms(images, teacher)
        found = {"ce": losses.cross_entropy(logits, targets, self.keys.smoothing)}
        if teacher is not None and self.keys.distill_weight:
            found["distill"] = self.keys.distill_weight * losses.distillation(logits, teacher.logits)
        return found | terms

    def start_epoch(self, epoch: int) -> None:
        """Called before every epoch, counted from 0; must depend on nothing but the recipe and the number."""

    def lr_scale(self, name: str) -> float:
        """Learning rate of a parameter relative to the recipe's."""
        return 1.0

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay applies: to matrices, not to biases, norms, positions and class tokens (as in timm)."""
        return parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token", "reg_token", "dist_token"))

    def facts(self) -> dict[str, float]:
        """Numbers worth a column in the log (learned thresholds, ...)."""
        return {}

    def pruned(self) -> nn.Module:
        """The model as it will run, tokens removed, in evaluation mode; shares the weights."""
        from vitprune.vit.pruned import PrunedViT

        made: nn.Module = PrunedViT(self.model, self.trained_recipe()).eval()
        return made

    def trained_recipe(self) -> Recipe:
        """The recipe with what was learned besides weights."""
        return self.recipe

    def trained(self) -> Trained:
        """Weights and recipe changes for export."""
        return Trained({MODEL_FILE: _plain(self.model)}, {"model.weights": MODEL_FILE})


def _plain(module: nn.Module) -> dict[str, Tensor]:
    """State dict on the CPU, ready for safetensors."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
