"""Optimiser and schedule of a run, from timm."""

from __future__ import annotations

from typing import Any

from vitprune.errors import RecipeError
from vitprune.methods.train_keys import TrainKeys
from vitprune.support.suggestions import did_you_mean
from vitprune.training.behaviour import Behaviour


def optimiser(behaviour: Behaviour, keys: TrainKeys) -> Any:
    """Timm's optimiser over parameter groups by weight decay and learning-rate scale.

    Raises:
        RecipeError: VP162 timm has no such optimiser.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in behaviour.named_parameters():
        if not parameter.requires_grad:
            continue
        decays, scale = behaviour.decays(name, parameter), behaviour.lr_scale(name)
        group = groups.setdefault(
            (decays, scale), {"params": [], "weight_decay": keys.weight_decay if decays else 0.0, "lr_scale": scale}
        )
        group["params"].append(parameter)
    known = [str(name) for name in list_optimizers()]
    if keys.optimizer not in known:
        raise RecipeError(
            162,
            f"unknown optimizer '{keys.optimizer}'",
            cause=did_you_mean(keys.optimizer, known),
            next_step="set train.optimizer",
        )
    return create_optimizer_v2(
        list(groups.values()), opt=keys.optimizer, lr=keys.scaled_lr, weight_decay=keys.weight_decay, filter_bias_and_bn=False
    )


def schedule(made: Any, keys: TrainKeys, steps: int) -> tuple[Any, int]:
    """Timm's scheduler, stepped once per update, and the number of epochs with cooldown; a pure function of the update's number."""
    from timm.scheduler import create_scheduler_v2

    return create_scheduler_v2(
        made, sched=keys.schedule, num_epochs=keys.epochs, cooldown_epochs=keys.cooldown_epochs, min_lr=keys.min_lr,
        warmup_lr=keys.warmup_lr, warmup_epochs=keys.warmup_epochs, warmup_prefix=False, step_on_epochs=False,
        updates_per_epoch=steps, decay_epochs=max(1, keys.epochs // 3),
    )  # fmt: skip
