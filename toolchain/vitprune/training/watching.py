"""Counters of a run, and what is done when the numbers go wrong: warn early, stop before hours are lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from vitprune.errors import TrainError

MAX_BROKEN = 3  # steps in a row without finite gradients before training stops
SURGE = 30.0  # a gradient this many times its running mean is worth a warning


@dataclass
class State:
    """Counters that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    broken: int = 0
    norm: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def watch(state: State, finite: bool, norm: float, terms: dict[str, Tensor], warn: Callable[[str], None]) -> None:
    """Look at one step before it is taken; gradients are the same in all processes, so all decide alike.

    Args:
        state: its `broken` and `norm` are brought up to date. finite: whether the step may be taken. norm: of the gradient.
        terms: loss terms. warn: called with a sentence.

    Raises:
        TrainError: VP801 after MAX_BROKEN steps in a row without finite gradients.
    """
    wrong = [name for name, value in terms.items() if not bool(value.isfinite())]
    where = f"at step {state.step + 1}" + (f" in {', '.join(wrong)}" if wrong else "")
    if not finite:
        state.broken += 1
        if state.broken >= MAX_BROKEN:
            raise TrainError(
                801,
                f"training has diverged: {state.broken} steps in a row without finite gradients",
                cause=f"not finite {where}; the weights before the first of them are kept in the last checkpoint",
                next_step="lower train.lr, set train.clip_grad=1.0, or train.precision=no; then start again with --force",
            )
        warn(f"not finite {where}: the step is left out ({state.broken} of at most {MAX_BROKEN} in a row)")
        return
    state.broken = 0
    if math.isfinite(norm):
        if state.norm and norm > SURGE * state.norm and state.step > 20:
            warn(f"the gradient {where} is {norm / state.norm:.0f} times its usual size: training may be about to diverge")
        state.norm = norm if not state.norm else 0.95 * state.norm + 0.05 * min(norm, SURGE * state.norm)
